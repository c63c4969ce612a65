/* SPDX-License-Identifier: Apache-2.0 */
/*
 * internal.h - what the files of the plane share: jobs and sessions (control thread), workers,
 * and the tasks that travel between them.
 *
 * Who owns what: a task is control's while its slot is free and the worker's from the TASK message
 * to the REPORT message. Everything in struct worker below "worker" belongs to the worker's thread,
 * everything in struct worker_desk to control. Keys and blocks of a job are written before its
 * first task is handed out and do not change while one is out.
 */
#ifndef SSV_PLANE_INTERNAL_H
#define SSV_PLANE_INTERNAL_H

#include "base/arena.h"
#include "base/counter.h"
#include "base/list.h"
#include "base/ring.h"
#include "base/slots.h"
#include "base/wake.h"
#include "codec/codec.h"
#include "plane/counters.h"
#include "plane/path.h"
#include "plane/plane.h"
#include "plane/stage.h"
#include "plane/ways.h"

#define WIRE_SLOT_BYTES    MIB
#define STAGE_SLOT_BYTES   (64 * KIB)
#define REQUEST_SLOT_BYTES (4 * KIB)
#define LOOKUP_BATCH       32u /* keys a task */
#define LOOKUP_TASKS       4u  /* at a worker */
#define FETCH_AHEAD        2u  /* tasks that wait at a worker beyond its lanes */
#define LANES_MAX          64u
#define CAPTURES_MAX       256u
#define TIME_BUCKETS       24u /* log2 of microseconds */
#define CAPTURE_SLICE      (256 * KIB)
#define MEASURE_AGE_NS     (30 * (uint64_t)1000000000)
#define DELETE_DEADLINE_NS (1000 * (uint64_t)1000000)
#define PLANE_KEY_TEXT     65u /* bytes of a key in hexadecimal, with its end */
#define FAULTS_COUNT       24u
#define NO_INDEX           UINT32_MAX

/* ---- tasks and messages --------------------------------------------------------------------- */

enum task_kind {
	TASK_LOOKUP = 0,
	TASK_FETCH = 1,
	TASK_STORE = 2,
};
#define TASK_KINDS 3

/* A piece of a job at a worker: one chunk, or some keys to look up. */
struct task {
	/* Written by control before the hand-over. */
	uint8_t kind; /* enum task_kind */
	uint8_t min_tier, tier, codec;
	uint8_t overwrite;   /* STORE: put without asking whether the chunk is there */
	uint32_t generation; /* of this slot; odd while it is in use */
	uint32_t region_index, region_generation;
	const struct region *region;
	const struct encode_profile *profile; /* STORE: of the region's model, or NULL */
	const struct ssv_key *keys;           /* one, or LOOKUP: keys_count */
	uint32_t keys_count;
	const uint32_t *blocks; /* of this chunk */
	uint32_t blocks_count;
	uint32_t first_token; /* of blocks[0], counted from the chunk's start */
	uint32_t position;    /* of the chunk in its sequence */
	uint64_t deadline_ns;
	uint32_t request; /* whose it is, for the trace: order of acceptance */
	uint16_t piece;   /* of the request */
	/* The worker's own. */
	uint64_t queued_ns, slots_ns; /* FETCH: came; began to wait for slots, or 0 */
	/* Written by the worker before it reports. */
	int status;
	uint8_t kept_fault; /* FETCH: enum container_fault of a chunk that stays stored; 0: none */
	uint8_t kept_tier;  /* its tier, where that is the fault */
	uint8_t returned;   /* FETCH: given back unbegun */
	uint8_t stored;     /* STORE, with DONE: the chunk was put */
	uint32_t found;     /* LOOKUP: leading keys that are stored */
	uint64_t value_bytes; /* FETCH: of the container; LOOKUP: of the found ones */
};

/* A message is kind << 56 | task index << 32 | task generation. */
enum message_kind {
	MESSAGE_TASK = 1,     /* to the worker: begin */
	MESSAGE_CANCEL = 2,   /* to the worker: end it soon; it may have ended meanwhile */
	MESSAGE_CAPTURED = 3, /* to control: the source is no longer read */
	MESSAGE_DONE = 4,     /* to control: the slot is yours again */
	MESSAGE_RECALL = 5,   /* to the worker: give back a chunk that waits, if there is one */
};

static inline uint64_t message_pack(enum message_kind kind, uint32_t index, uint32_t generation)
{
	return (uint64_t)kind << 56 | (uint64_t)index << 32 | generation;
}

static inline enum message_kind message_kind(uint64_t message)
{
	return (enum message_kind)(message >> 56);
}

static inline uint32_t message_index(uint64_t message)
{
	return (uint32_t)(message >> 32) & 0xffffff;
}

static inline uint32_t message_generation(uint64_t message)
{
	return (uint32_t)message;
}

/* ---- the worker ----------------------------------------------------------------------------- */

enum op_state {
	OP_IDLE = 0,
	OP_WAITING = 1, /* to be submitted */
	OP_HELD = 2,    /* the store's */
};

enum op_holder {
	HOLDER_LANE = 1,
	HOLDER_CAPTURE = 2,
	HOLDER_LOOKUP = 3,
};

/* A store operation and whose it is. The store hands back &op, the first member. */
struct worker_op {
	struct store_op op;
	uint8_t state;  /* enum op_state */
	uint8_t holder; /* enum op_holder */
	uint32_t index; /* of the holder */
	uint64_t begun_ns;
};

/* Tensors in work at once: those of an entry, or those that a way joins. */
#define JOBS_MAX ENTRY_TENSORS_MAX
static_assert(JOBS_MAX >= DELIVER_JOIN_MAX, "a joined group is opened whole");

enum lane_state {
	LANE_IDLE = 0,
	LANE_FETCH = 1,
	LANE_DELETE = 2, /* the task is reported; a bad chunk is being deleted */
	LANE_DRAIN = 3,  /* the task is reported; an engine still has segments */
};

/* One chunk on its way in. */
struct lane {
	uint8_t state; /* enum lane_state */
	uint8_t opened, retried;
	uint8_t over;         /* status is final; wait until quiescent */
	uint8_t heal;         /* delete the chunk then */
	uint8_t jobs_open;    /* jobs of the tensors in work */
	uint8_t jobs_decoded; /* of these, from the first on */
	uint8_t jobs_ready;   /* decoded, to be submitted */
	uint8_t jobs_out;     /* submitted, not handed back */
	uint32_t index, task;
	uint32_t entry, tensor; /* next entry; tensor of jobs[0] */
	int status;
	uint64_t tried_bytes; /* received when container_open() was tried last */
	uint64_t begun_ns;
	struct arrivals arrivals;
	struct slot_run wire, stage;
	struct worker_op op;
	struct container container;
	struct deliver_job jobs[JOBS_MAX];
	uint8_t **tokens;   /* [JOBS_MAX][SSV_CHUNK_TOKENS] */
	struct ssv_key key; /* of the chunk, for when the task is control's again */
	struct ahead ahead;
};

static inline uint64_t lane_received(const struct lane *lane)
{
	return lane->op.state == OP_IDLE ? lane->op.op.value_bytes : lane->op.op.received;
}

enum capture_state {
	CAPTURE_IDLE = 0,
	CAPTURE_ASK = 1,    /* is it stored already? */
	CAPTURE_WAIT = 2,   /* for slots */
	CAPTURE_COPY = 3,   /* out of the region */
	CAPTURE_READY = 4,  /* captured; waits for the encoder */
	CAPTURE_ENCODE = 5, /* in the encoder */
	CAPTURE_PUT = 6,
};

/* One chunk on its way out; its task has the same index among the worker's STORE tasks. */
struct capture {
	uint8_t state;               /* enum capture_state */
	uint8_t cancelled, failed;   /* some job came back with an error */
	uint8_t jobs_open, jobs_out; /* of the tensors in work */
	uint8_t tier, codec;
	uint32_t index, task;
	uint32_t tensor;             /* next to copy or encode */
	uint64_t kv_offset;          /* of that tensor in the capture slots */
	uint64_t number;             /* order of arrival */
	uint64_t begun_ns, waits_ns; /* waits: since when for what the state says */
	struct slot_run kv, wire, stage;
	struct worker_op op;
	struct chunk_identity identity;
	struct chunk_shape shape;
	const struct encode_profile *profile; /* NULL: uniform steps */
	struct deliver_job jobs[JOBS_MAX];
	uint8_t **tokens; /* [JOBS_MAX][SSV_CHUNK_TOKENS] */
};

struct lookup {
	uint8_t busy;
	uint32_t task, ops_out;
	struct worker_op ops[LOOKUP_BATCH];
};

/* Largest container seen of a region, to size the next GET. */
struct value_seen {
	uint32_t generation;
	uint64_t bytes;
};

struct worker {
	/* Shared: each has its own rules. */
	struct ring inbox;  /* control pushes */
	struct ring outbox; /* the worker pushes */
	struct wake wake;   /* the worker sleeps */
	struct task *tasks; /* [tasks_count]: LOOKUP, FETCH, STORE */
	struct counter counters[COUNTERS_COUNT];
	struct counter faults[FAULTS_COUNT];
	struct path path;
	struct counter store_counters[STORE_COUNTERS_COUNT];

	/* The worker's thread only. */
	_Alignas(CACHE_LINE_BYTES) struct plane *plane;
	uint32_t index;
	struct store *store;
	struct slots wire, capture, put, stage, inflated;
	struct lane *lanes;
	struct capture *captures;
	struct lookup lookups[LOOKUP_TASKS];
	uint32_t *held;  /* generation of each task that is the worker's now; 0: control's */
	uint32_t *queue; /* FETCH tasks that wait for a lane: ring of fetch_tasks */
	uint32_t queue_head, queue_count;
	struct value_seen *seen; /* [regions_max] */
	struct ways ways;
	struct inflate *inflate; /* ONE_PASS with an engine; else NULL */
	uint32_t segments_out;   /* at the engine, or at a station that has one */
	uint32_t stage_turn[PLANE_STATIONS];
	void *decode_scratch, *encode_scratch;
	struct encoder encoder;
	uint32_t encoding;  /* capture in the encoder, or NO_INDEX */
	uint32_t lane_turn; /* round robin */
	uint32_t lanes_busy, captures_busy, ops_waiting;
	uint64_t captures_number;
	uint64_t step_ns;        /* of the last step */
	uint8_t decoding_on;     /* the last unit was a fetch's: there may be more to decode */
	uint64_t looked_ns;      /* at the store */
	uint8_t decoding;        /* OVERLAP_NONE: what the lanes hold is being decoded */
	uint8_t work_stage;      /* enum stage: what is being done */
	uint64_t work_ns;        /* since when */
	uint64_t latest_ns;      /* the latest time that was read */
	uint64_t store_shown_ns; /* when control last got to see the store's counters */
	struct path_subject work;
	uint8_t reported; /* pushed to the outbox in this step */
};

/* What control knows of a worker. */
struct task_slot {
	uint32_t job, job_generation;
	uint32_t piece; /* of the job */
	uint8_t used, captured, cancelled;
	struct ssv_key key; /* STORE: the job's keys are gone before the chunk is put */
};

struct worker_desk {
	struct task_slot *slots; /* [tasks_count] */
	uint32_t busy[TASK_KINDS];
	uint8_t pushed;   /* a message since the last wake-up */
	uint8_t recalled; /* asked for a waiting chunk; no report since */
};

/* ---- jobs, sessions, regions (control) ------------------------------------------------------ */

enum job_state {
	JOB_FREE = 0,
	JOB_RUN = 1,
	JOB_PUTTING = 2, /* STORE: completed, some chunks not yet put */
};

#define PIECE_BYTES_NONE UINT32_MAX

struct job {
	uint8_t state; /* enum job_state */
	uint8_t op, tier, codec, min_tier;
	uint8_t stopped; /* hand out nothing more */
	int stop_status; /* why: -ETIMEDOUT, -ECANCELED ... */
	int gap_status;  /* of the piece at bound */
	uint32_t generation, number;
	uint32_t session; /* index; NO_INDEX: ended */
	uint32_t region;  /* index; NO_INDEX: none */
	uint64_t user_data;
	uint64_t target;   /* CANCEL: user_data of a request */
	uint64_t sequence; /* order of acceptance */
	uint64_t begun_ns, deadline_ns;
	uint32_t keys_count, blocks_count, ranks_count, first_token, position;
	uint32_t pieces_count, next_piece, out; /* out: at workers, source or target in use */
	uint32_t putting;                       /* captured, at workers */
	uint32_t bound; /* first piece (LOOKUP: key) that is known not to be there */
	uint64_t found_bytes, found_keys; /* LOOKUP */
	struct slot_run memory;
	struct ssv_key *keys;
	uint32_t *blocks;      /* blocks of piece i begin at i * blocks_per_chunk */
	uint32_t *piece_bytes; /* FETCH: value bytes of a piece in place */
	struct link of_session, active, ready;
};

struct session {
	uint8_t used, ending, ended; /* ended: its event is waiting */
	uint32_t generation, rank, ranks_count;
	uint32_t running; /* requests in flight */
	pid_t pid;
	char engine_id[SSV_ENGINE_ID_MAX];
	struct link jobs;              /* of_session, in order of acceptance */
	struct link ready[TASK_KINDS]; /* jobs with pieces to hand out */
};

/* Tiers of a region's chunks (quality.c). */
struct region_quality {
	const struct profile *profile; /* NULL: none; lent as long as the plane is */
	uint8_t tier;                  /* of a STORE that names none */
	uint8_t allowed[TIERS_COUNT];  /* by the tier that is asked for */
};

struct region_slot {
	uint8_t used, removing;
	uint32_t generation, session, jobs_count;
	struct region_quality quality;
	struct region *region; /* NULL: detached, its event is waiting */
};

/* A chunk that was refused and stays stored (refused.c). */
#define REFUSED_MAX 4096u
struct refused {
	struct ssv_key key;
	uint64_t until_ns;      /* 0: free */
	uint8_t fault;          /* enum container_fault */
	uint8_t tier, min_tier; /* TIER: of the chunk, and asked for */
};

struct plane {
	struct plane_config config;
	char store_uri[STORE_URI_MAX];
	char store_text[STORE_URI_MAX]; /* without passwords */
	char inflate_name[INFLATE_NAME_MAX];
	struct arena arena;
	uint64_t tables_bytes;
	uint64_t wire_bytes, capture_bytes, put_bytes, stage_bytes; /* pools of a worker */
	uint64_t inflated_bytes;
	struct inflate_caps inflate_caps; /* of the engines, all alike */
	uint32_t tasks_count, task_first[TASK_KINDS], task_count[TASK_KINDS];
	struct worker *workers;
	struct station *stations; /* [stations_count]; NULL with ONE_PASS */
	uint32_t stations_count;

	/* The control thread only. */
	struct wake wake;
	struct worker_desk *desks;
	struct job *jobs;
	struct session *sessions;
	struct region_slot *regions;
	struct refused *refused; /* [REFUSED_MAX] */
	struct link free_jobs, active_jobs;
	struct slots request_slots;
	struct slot_state *request_states;
	uint8_t *request_memory;
	struct plane_event *events; /* ring */
	uint32_t events_max, completions_max, events_head, events_count;
	uint32_t jobs_used;
	uint32_t ready_count[TASK_KINDS], turn[TASK_KINDS];
	uint64_t sequence;
	uint64_t deadline_ns; /* no job's deadline is earlier */
	uint64_t now_ns;      /* of the last call that brought one */
	uint8_t draining;
	uint64_t counters[PLANE_COUNTERS_COUNT];
	uint64_t fetch_times[TIME_BUCKETS];
	struct tally tally;
	struct trace trace;
	struct times stages[CONTROL_STAGES_COUNT];
	struct path_base *base;                  /* what was counted at the last reset */
	double rate_bytes, rate_ns, rate_chunks; /* of past fetches, decaying */
	uint64_t measured_ns;                    /* when the last of them ended */
};

/* plane.c */
int SSV_PRINTF(3, 4) plane_refuse(char *error, int code, const char *format, ...);
void plane_key_text(const struct ssv_key *key, char text[PLANE_KEY_TEXT]);
void plane_event_push(struct plane *plane, const struct plane_event *event);

/* Of worker or station `thread`, as plane_threads() numbers them; NULL: there is none. */
struct path *plane_thread_path(const struct plane *plane, uint32_t thread);

/* jobs.c: the life of a request. */
void job_start(struct plane *plane, struct job *job, struct session *session,
	       const struct ssv_request *request);
void job_stop(struct plane *plane, struct job *job, int status);
void job_settle(struct plane *plane, struct job *job);
void job_unready(struct plane *plane, struct job *job);
int job_has_piece(const struct job *job);
void job_fill_task(struct plane *plane, const struct job *job, uint32_t piece, struct task *task);
void job_piece_done(struct plane *plane, struct job *job, uint32_t piece, const struct task *task);
double plane_fetch_rate(const struct plane *plane);
int jobs_watch_deadlines(struct plane *plane);
struct job *session_find(struct session *session, uint64_t user_data);

/* stat_path.c: the hot path since the last reset. */
struct path_base *path_base_create(void);
void stat_path(struct plane *plane, uint64_t now_ns, void *json);

/* refused.c: chunks that were refused and stay stored. */
void refused_note(struct plane *plane, const struct ssv_key *key, const struct task *task);
int refused_hides(struct plane *plane, const struct ssv_key *key, uint8_t min_tier);
int refused_is_replaced(struct plane *plane, const struct ssv_key *key, uint8_t tier);
void refused_forget(struct plane *plane, const struct ssv_key *key);

/* dispatch.c: pieces to workers and their reports back. */
int dispatch_pieces(struct plane *plane);
int dispatch_reports(struct plane *plane);
void dispatch_cancel(struct plane *plane, const struct job *job, uint32_t from_piece);
void dispatch_wake(struct plane *plane);

/* regions.c: sessions and regions. */
struct session *plane_session(struct plane *plane, uint64_t number);
uint64_t session_number(const struct plane *plane, const struct session *session);
void session_settle(struct plane *plane, uint32_t index);
int session_ranks_are_complete(const struct plane *plane, const struct session *session,
			       uint32_t ranks_count);
struct region_slot *region_find(const struct plane *plane, uint64_t session, uint32_t number);
uint32_t region_index(uint32_t number);
uint32_t region_number(const struct plane *plane, uint32_t index);
void region_settle(struct plane *plane, uint32_t index);

/* quality.c */
void plane_hex(const uint8_t bytes[8], char text[17]);
/* -ENOTSUP: the configured tier breaks its promise on this model. */
SSV_MUST_CHECK int region_quality(const struct plane *plane, const struct layout *layout,
				  struct region_quality *ret_quality, char *error);
/* The tier that a STORE takes which asks for this one (0: for none). */
uint8_t quality_tier(struct plane *plane, const struct region_quality *quality, uint8_t asked);

/* worker.c */
SSV_MUST_CHECK int plane_inflate_open(struct plane *plane, const char *name, uint32_t handles,
				      uint32_t index, struct inflate **ret_inflate, char *error);
SSV_MUST_CHECK int worker_create(struct plane *plane, uint32_t index, char *error);
void worker_destroy(struct worker *worker);
void worker_report(struct worker *worker, uint32_t task, enum message_kind kind);
void worker_op_begin(struct worker *worker, struct worker_op *op, uint64_t now_ns);
void worker_op_cancel(struct worker_op *op);
uint64_t worker_now(struct worker *worker); /* finer than step_ns where there is a clock */
struct path_subject task_subject(const struct task *task, uint32_t place);
int worker_poll_delivered(struct worker *worker);
void worker_staged_job_back(struct worker *worker, const struct deliver_job *job,
			    struct slot_run *stage, const struct path_subject *subject);

/* fetch.c, capture.c, lookup.c: the three kinds of task at a worker. The _unit functions do one
 * unit of work and return 1, or 0 when there is none. */
void fetch_begin(struct worker *worker, uint32_t task);
void fetch_cancel(struct worker *worker, uint32_t task);
void fetch_return(struct worker *worker);
void fetch_op_done(struct worker *worker, struct lane *lane, uint64_t now_ns);
void fetch_delivered(struct worker *worker, struct lane *lane, const struct deliver_job *job);
int fetch_fill_lanes(struct worker *worker, uint64_t now_ns);
void fetch_end(struct worker *worker, struct lane *lane, int status);
void fetch_fault(struct worker *worker, struct lane *lane, enum container_fault fault);
void fetch_quiesce(struct worker *worker, struct lane *lane);

/* segment.c: a chunk's segments, from the wire slots to the region. */
int fetch_unit(struct worker *worker);
void segment_decoded(struct worker *worker, struct lane *lane);

/* lane_path.c: what a chunk's way through its lane costs. */
void lane_price(struct worker *worker, const struct lane *lane);
void lane_price_waits(struct worker *worker, struct lane *lane);
void lane_decode_begins(struct worker *worker, struct lane *lane,
			const struct container_entry *entry);
void lane_count_decoded(const struct worker *worker, struct lane *lane);
void fetch_watch(struct worker *worker, uint64_t now_ns); /* bytes arrived */

void capture_begin(struct worker *worker, uint32_t task, uint64_t now_ns);
void capture_cancel(struct worker *worker, uint32_t task);
void capture_op_done(struct worker *worker, struct capture *capture, uint64_t now_ns);
void capture_delivered(struct worker *worker, struct capture *capture,
		       const struct deliver_job *job);
int capture_unit(struct worker *worker, uint64_t now_ns);

void lookup_begin(struct worker *worker, uint32_t task, uint64_t now_ns);
void lookup_cancel(struct worker *worker, uint32_t task);
void lookup_op_done(struct worker *worker, struct lookup *lookup);

#endif
