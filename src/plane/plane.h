/* SPDX-License-Identifier: Apache-2.0 */
/*
 * plane.h - the data plane's core: jobs in, chunks moved, completions out.
 *
 * The plane owns the arena, the workers and the jobs. It starts no thread, opens no socket and
 * reads no clock: the daemon (or a simulation) steps it.
 *
 *	control thread: plane_submit, plane_step, plane_poll, regions, sessions
 *	worker thread i: plane_worker_step(plane, i, now_ns), nothing else
 *
 * Control and worker i exchange small messages over two single-producer single-consumer rings;
 * each datum has one owner. A worker is run-to-completion: it submits to its own store handle,
 * decodes segments behind the watermark, delivers, and reports chunks back.
 *
 * A job is one request (struct ssv_request), split into chunk tasks. Its completion is given only
 * when no worker holds a task of it any more: from then on nothing touches its blocks.
 */
#ifndef SSV_PLANE_H
#define SSV_PLANE_H

#include <sys/types.h>

#include "base/base.h"
#include "base/message.h"
#include "deliver/deliver.h"
#include "profile/profile.h"
#include "shadowserve.h"
#include "store/store.h"

#define PLANE_WORKERS_MAX  64
#define PLANE_SESSIONS_MAX 1024
#define PLANE_REGIONS_MAX  1024

/* How far receiving and decoding overlap. All but the first are for measurements: what overlap is
 * worth shows only beside its absence. */
enum plane_overlap {
	PLANE_OVERLAP_SEGMENT = 0, /* a segment is decoded as soon as it has arrived */
	PLANE_OVERLAP_CHUNK = 1,   /* when its whole chunk has */
	PLANE_OVERLAP_NONE = 2,    /* all lanes are received, then all are decoded, in turn */
	PLANE_OVERLAPS = 3,
};

/* Who does the stages of a fetch. */
enum plane_pipeline {
	PLANE_ONE_PASS = 0, /* the worker that received does all, while it is in its cache */
	PLANE_STAGES = 1,   /* workers receive; stations do the rest */
	PLANE_PIPELINES = 2,
};

/* Threads beside the workers, with PLANE_STAGES. */
enum plane_station {
	PLANE_STATION_INFLATE = 0,
	PLANE_STATION_DEQUANTISE = 1,
	PLANE_STATION_DELIVER = 2, /* what is staged; what is decoded in place needs none */
	PLANE_STATIONS = 3,
};
extern const char *const plane_station_names[PLANE_STATIONS];

struct plane_config {
	const char *store_uri;
	uint64_t arena_bytes;   /* everything the data path uses, all workers together */
	uint32_t workers_count; /* 1..PLANE_WORKERS_MAX */
	uint32_t sessions_max, regions_max;
	uint32_t jobs_max;     /* requests in flight, all sessions together */
	uint32_t lanes;        /* chunk GETs in flight a worker */
	uint32_t captures_max; /* chunks captured and not yet put, a worker */
	uint32_t channels_max; /* largest tensor that can be registered */
	uint32_t fetch_deadline_ms, store_deadline_ms, lookup_deadline_ms;
	uint8_t tier, codec;     /* defaults of STORE; tier 0: by the model's profile */
	uint8_t trellis;         /* chunks stored with r16 are trellis-coded */
	uint8_t min_tier;        /* coarsest tier read; 0: any */
	uint8_t verbatim_tokens; /* of position 0 */
	uint8_t pin_memory;      /* mlock the arena; a failure is logged, not fatal */
	const char *rdma;        /* struct deliver_host, rdma */
	uint8_t huge_pages;      /* the arena from reserved huge pages; a failure is logged */
	uint8_t overwrite;       /* STORE: put without asking whether the chunk is there */
	uint8_t overlap;         /* enum plane_overlap */
	const struct profile_set *profiles; /* lent until plane_destroy(); NULL: none */
	uint8_t pipeline;                   /* enum plane_pipeline */
	uint32_t stations[PLANE_STATIONS];  /* threads of each kind, with PLANE_STAGES */
	const char *inflate; /* engine of `deflate` chunks (inflate/inflate.h); NULL: inflated where
			      * they are decoded, or, with PLANE_STAGES, by "cpu" */
	uint64_t seed;
	/* Opens a worker's store handle; NULL: store_open. The simulation brings its own. */
	int (*open_store)(void *context, uint32_t worker, const struct store_config *config,
			  struct store **ret_store, char *error);
	void *open_store_context;
	/* A finer clock, the same as now_ns, to tell receiving from work; NULL: the step's time. */
	uint64_t (*clock_ns)(void);
	/* Allocations of the calling thread so far; NULL: not counted. */
	uint64_t (*allocations)(void);
	uint8_t trace_off; /* keep no trace */
	/* Attaches a region; NULL: region_attach. The simulation brings its own. */
	int (*attach_region)(const struct ssv_region *offer, const struct ssv_layout *layout,
			     const struct deliver_owner *owner, struct region **ret_region,
			     char *error);
};

struct plane;

/**
 * Allocate everything and open the stores. One line in error (SSV_ERROR_TEXT_MAX bytes).
 * Errors: -ENOMEM, -ENOSPC arena too small for the configuration (with the numbers), the store's.
 */
SSV_MUST_CHECK int plane_create(const struct plane_config *config, struct plane **ret_plane,
				char *error);
void plane_destroy(struct plane *plane); /* takes NULL; workers must have stopped */

/* Bytes allocated at start: arena and tables. Constant from then on. */
uint64_t plane_bytes(const struct plane *plane);

/* ---- sessions and regions (control thread) -------------------------------------------------- */

/* A session is one connected process. ret_session is a slot number with generation. */
SSV_MUST_CHECK int plane_session_add(struct plane *plane, const char *engine_id, uint32_t rank,
				     uint32_t ranks_count, pid_t pid, uint64_t *ret_session,
				     char *error);

/* End a session: cancel its jobs and, when nothing touches its memory any more, detach its
 * regions and hand out PLANE_EVENT_SESSION_ENDED. Captured chunks are still put. */
void plane_session_end(struct plane *plane, uint64_t session);

/* Errors as ssv_region_register(). offered and ret_answer: of memory on another machine
 * (memory_is_remote()); else NULL. */
SSV_MUST_CHECK int plane_region_add(struct plane *plane, uint64_t session,
				    const struct ssv_region *offer, const struct ssv_layout *layout,
				    const struct blob *offered, struct blob *ret_answer,
				    uint32_t *ret_region, char *error);

/* Cancels the region's jobs; PLANE_EVENT_REGION_REMOVED follows once it is detached. -ENOENT. */
SSV_MUST_CHECK int plane_region_remove(struct plane *plane, uint64_t session, uint32_t region);

/* ---- requests (control thread) -------------------------------------------------------------- */

/* Accept one request; keys and blocks are copied. 0: exactly one completion follows; call
 * plane_step() before sleeping. -EAGAIN full; -EINVAL, -ENOENT, -E2BIG with one line in error
 * (SSV_ERROR_TEXT_MAX bytes, may be NULL). */
SSV_MUST_CHECK int plane_submit(struct plane *plane, uint64_t session,
				const struct ssv_request *request, uint64_t now_ns, char *error);

enum plane_event_kind {
	PLANE_EVENT_COMPLETION = 1,
	PLANE_EVENT_REGION_REMOVED = 2,
	PLANE_EVENT_SESSION_ENDED = 3,
};

struct plane_event {
	uint8_t kind;    /* enum plane_event_kind */
	uint8_t severed; /* COMPLETION: its blocks may still be written (region_sever()): it must
			  * not be given, and the session must end */
	uint32_t region;
	uint64_t session;
	struct ssv_completion completion;
};

/* Take events, in order per session; returns how many. Numbers of a session or region that ended
 * are used again only after its event was taken. */
uint32_t plane_poll(struct plane *plane, struct plane_event *events, uint32_t max);

/* Move jobs on: hand tasks to workers (round robin between sessions), take their reports, watch
 * deadlines. Returns 1 when something was done. */
int plane_step(struct plane *plane, uint64_t now_ns);

/* Latest time at which plane_step() must be called again; TIME_NEVER: when a worker wakes it. */
uint64_t plane_next_ns(const struct plane *plane);

/* eventfd that a worker signals when it reported something. */
int plane_control_fd(const struct plane *plane);

/* Capture nothing new from now on; returns 1 once every captured chunk has been put or dropped. */
int plane_drain(struct plane *plane, uint64_t now_ns);

/* ---- workers and stations (each on its own thread) ------------------------------------------ */

/* Threads to be run: workers, numbered from 0, then stations, which are stepped, asked for
 * descriptors and told that they slept as if they were workers. */
uint32_t plane_threads(const struct plane *plane);
#define PLANE_THREAD_NAME_MAX 24u
/* "worker 0", "inflate 0" ...; "control" for the one behind the last. */
void plane_thread_name(const struct plane *plane, uint32_t thread,
		       char name[PLANE_THREAD_NAME_MAX]);

/* A bounded amount of work: one segment or tensor at most. Returns 1: call again at once; 0: may
 * sleep until *ret_wake_ns or until a descriptor of plane_worker_pollfds() is ready. The time to
 * the next call is what the work cost: stage times are taken from it. */
int plane_worker_step(struct plane *plane, uint32_t worker, uint64_t now_ns, uint64_t *ret_wake_ns);

/* The worker's thread slept meanwhile: counted and traced. */
void plane_worker_slept(struct plane *plane, uint32_t worker, uint64_t from_ns, uint64_t to_ns);

/* The worker's thread stayed awake without work until some came (paid) or it went to sleep. */
void plane_worker_spun(struct plane *plane, uint32_t worker, int paid);

/* eventfd of the worker first, then its store's descriptors, as struct pollfd. */
uint32_t plane_worker_pollfds(struct plane *plane, uint32_t worker, void *pollfds, uint32_t max);

/* ---- observation (control thread) ----------------------------------------------------------- */

/* Count anew from now on what stat shows under "path". */
void plane_stat_reset(struct plane *plane, uint64_t now_ns);

/* What a thread did lately: up to max events from number `from` on, or from the oldest that is
 * still there. ret_head->track says whose; the rest of it but now_ns is set. */
void plane_trace(const struct plane *plane, uint64_t from, struct message_events *ret_head,
		 struct trace_event *events, uint32_t max);

/* Append the plane's state to a JSON object (struct cJSON *). Reads counters of running workers. */
int plane_stat(struct plane *plane, uint64_t now_ns, void *json);

#endif
