/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stage.h - the pipeline taken apart: what a lane has at an inflate engine or at another thread,
 * and those threads, the stations.
 *
 * With PLANE_ONE_PASS a worker decodes what it has received, and an inflate engine, if there is
 * one, works beside it: segments go to the engine as they arrive, up to SEGMENTS_AHEAD of a lane,
 * and are decoded in order when they are back. With PLANE_STAGES a worker receives and verifies
 * alone; inflating, dequantising and delivering are done by stations, each for all workers.
 *
 * Who owns what: lanes, slots and jobs are the worker's. A number travels to a station through one
 * ring and back through another; meanwhile what it names is the station's, and the worker neither
 * changes nor gives back any of it. So a chunk ends in one place, whatever is out: see
 * fetch.c, lane_quiesce().
 */
#ifndef SSV_PLANE_STAGE_H
#define SSV_PLANE_STAGE_H

#include "base/ring.h"
#include "base/slots.h"
#include "base/wake.h"
#include "codec/codec.h"
#include "deliver/deliver.h"
#include "inflate/inflate.h"
#include "plane/path.h"
#include "plane/plane.h"
#include "plane/ways.h"

#define SEGMENTS_AHEAD      8u /* of a lane at the engine; a power of two */
#define INFLATED_SLOT_BYTES (64 * KIB)
#define INFLATE_DEPTH       32u /* jobs in flight that are asked of an engine */

struct worker;
struct lane;

enum segment_state {
	SEGMENT_NONE = 0,
	SEGMENT_OUT = 1,    /* the engine's */
	SEGMENT_BACK = 2,   /* inflated, or failed: job.status */
	SEGMENT_INLINE = 3, /* not for the engine: the decoder does all of it */
};

/* An entry of a container at the inflate engine, or back from it. */
struct segment {
	uint8_t state; /* enum segment_state */
	uint8_t lane;
	uint16_t worker;
	uint32_t index; /* in the lane */
	struct inflate_job job;
	struct slot_run run; /* of the worker's pool `inflated` */
	uint64_t begun_ns;
	struct path_subject subject;
};

/* An entry at the dequantiser. */
struct decode_work {
	uint8_t out;   /* a station's */
	uint8_t again; /* an engine's output was of no use: the decoder inflated it once more */
	uint32_t entry;
	const uint8_t *pairs; /* inflated; NULL: not yet */
	enum container_fault fault;
	struct decode_target targets[ENTRY_TENSORS_MAX];
	struct path_subject subject;
};

/* What a lane has elsewhere. */
struct ahead {
	uint16_t worker;    /* whose lane it is */
	uint8_t delivering; /* jobs of the lane that a station has not got back yet */
	uint32_t next;      /* entry to be looked at next; those before it are looked at */
	uint32_t checked;   /* entries whose wire data was verified */
	uint8_t out;        /* segments at the engine */
	struct segment segments[SEGMENTS_AHEAD]; /* entry i is in place i % SEGMENTS_AHEAD */
	struct decode_work work;
};

/* A thread that does one stage for all workers. Its rings have a pair for each of them. */
struct station {
	/* Written once. */
	struct plane *plane;
	enum plane_station kind;
	uint32_t index; /* among its kind */
	struct ring *in, *out;
	struct wake wake;
	struct path path;
	struct counter steps, idle_steps, items;
	/* The station's thread only. */
	void *scratch;           /* DEQUANTISE */
	struct inflate *inflate; /* INFLATE */
	struct ways ways;        /* DELIVER */
	uint64_t *held;          /* [workers]: taken and not begun, or HELD_NONE */
	uint32_t out_count, turn;
	uint64_t latest_ns;
};

/* stage.c: the worker's side. */
int stage_is_on(const struct worker *worker); /* is there an engine or a station at all? */
void stage_begin(const struct worker *worker, struct lane *lane);
/* Hand the next segments that have arrived to the engine; 1 when one was, or the lane ended. */
int stage_ahead(struct worker *worker, struct lane *lane);
/* May the lane's next entry be decoded? */
int stage_is_ready(const struct worker *worker, const struct lane *lane);
/* Decode ahead.work, here or at a station: then it is out. */
void stage_decode(struct worker *worker, struct lane *lane);
/* The entry was decoded: its inflated bytes are not needed any more. */
void stage_decoded(struct worker *worker, struct lane *lane, uint32_t entry);
/* The lane's jobs were given to a station that delivers; 0: there is none. */
int stage_deliver(struct worker *worker, struct lane *lane);
/* Forget what a lane that ends has inflated. Nothing of it may be out. */
void stage_end(struct worker *worker, struct lane *lane);
/* Take what engine and stations have done. */
int stage_poll(struct worker *worker);
int stage_is_busy(const struct worker *worker); /* must be polled again at once */

/* Dequantise one entry; both sides do it alike. */
void decode_work_run(const struct container *container, struct decode_work *work, void *scratch);

/* stations.c: creation, and the stations' side. */
SSV_MUST_CHECK int stations_create(struct plane *plane, char *error);
void stations_destroy(struct plane *plane);
int station_step(struct station *station, uint64_t now_ns, uint64_t *ret_wake_ns);
uint64_t inflated_pool_bytes(const struct plane_config *config);

#endif
