/* SPDX-License-Identifier: Apache-2.0 */
/*
 * path.h - what the hot path of one worker costs: times of stages and of waits, system calls,
 * copies, and the trace of its last events.
 *
 * Everything is written by the worker's thread alone and read by control as it is. Counts never go
 * back: "since the last reset" is what control subtracts (stat_path.c). Only what cannot be
 * subtracted, the longest time and the fullest pool, begins anew, in the worker's own next step.
 */
#ifndef SSV_PLANE_PATH_H
#define SSV_PLANE_PATH_H

#include "base/tally.h"
#include "base/times.h"
#include "base/trace.h"

/* Stages whose times are kept: X(symbol, name in stat, enum trace_kind or TRACE_NONE). */
#define STAGES(X)                                                                         \
	/* Of a chunk, in the order of its way: waits, and work of others. */             \
	X(WAIT_LANE, "wait_lane", TRACE_WAIT_LANE)    /* at the worker */                 \
	X(WAIT_SLOTS, "wait_slots", TRACE_WAIT_SLOTS) /* for wire slots */                \
	X(GET, "get", TRACE_GET)                      /* asked to complete */             \
	X(WAIT_DECODE, "wait_decode", TRACE_NONE)     /* a segment, from its arrival */   \
	X(INFLATING, "inflating", TRACE_INFLATING)    /* a segment, at an engine */       \
	X(MOVE, "move", TRACE_NONE)                   /* staged, until it is in place */  \
	X(CHUNK, "chunk", TRACE_CHUNK)                /* a lane, begin to report */       \
	X(EXISTS, "exists", TRACE_NONE)                                                   \
	X(WAIT_CAPTURE, "wait_capture", TRACE_NONE) /* a STORE's chunk, for slots */      \
	X(WAIT_ENCODE, "wait_encode", TRACE_NONE)   /* captured, for the encoder */       \
	X(PUT, "put", TRACE_PUT)                                                          \
	/* The worker's own time. */                                                      \
	X(SLEEP, "sleep", TRACE_SLEEP)                                                    \
	X(RECEIVE, "receive", TRACE_RECEIVE) /* polls of the store that brought bytes */  \
	X(OPEN, "open", TRACE_OPEN)                                                       \
	X(INFLATE, "inflate", TRACE_INFLATE) /* checks, submits and polls of an engine */ \
	X(DECODE, "decode", TRACE_DECODE)                                                 \
	X(DELIVER, "deliver", TRACE_DELIVER)                                              \
	X(CAPTURE, "capture", TRACE_CAPTURE)                                              \
	X(ENCODE, "encode", TRACE_ENCODE)

enum stage {
#define STAGE_ENUM(symbol, name, kind) STAGE_##symbol,
	STAGES(STAGE_ENUM)
#undef STAGE_ENUM
	    STAGES_COUNT,
	STAGE_NONE = STAGES_COUNT
};

/* Times that control measures. */
#define CONTROL_STAGES(X)                                                    \
	X(WAIT_WORKER, "wait_worker") /* a chunk, from the FETCH's coming */ \
	X(FETCH, "fetch")             /* a FETCH, coming to completion */

enum control_stage {
#define STAGE_ENUM(symbol, name) CONTROL_STAGE_##symbol,
	CONTROL_STAGES(STAGE_ENUM)
#undef STAGE_ENUM
	    CONTROL_STAGES_COUNT
};

/* What a time or an event is about. */
struct path_subject {
	uint32_t request;
	uint16_t piece, detail;
	uint8_t place;
	uint64_t value;
};

struct path {
	struct tally tally;
	struct times stages[STAGES_COUNT];
	struct trace trace;
	_Atomic uint32_t epoch_asked; /* control's */
	/* The worker's thread only. */
	uint32_t epoch;
	uint64_t gauges; /* last traced */
};

/* Relaxed, pairs with path_epoch_begins(): the number alone matters. Control only. */
static inline void path_epoch_ask(struct path *path, uint32_t epoch)
{
	atomic_store_explicit(&path->epoch_asked, epoch, memory_order_relaxed);
}

/* Pairs with path_epoch_ask(). 1: forget what is longest and fullest. The worker only. */
static inline int path_epoch_begins(struct path *path)
{
	uint32_t asked = atomic_load_explicit(&path->epoch_asked, memory_order_relaxed);

	if (__builtin_expect(asked == path->epoch, 1))
		return 0;
	path->epoch = asked;
	for (uint32_t i = 0; i < STAGES_COUNT; i++)
		times_restart(&path->stages[i]);
	return 1;
}

void path_event(struct trace *trace, enum trace_kind kind, uint64_t start_ns, uint64_t end_ns,
		const struct path_subject *subject);

/* Count a time, and trace it. */
void path_stage(struct path *path, enum stage stage, uint64_t start_ns, uint64_t end_ns,
		const struct path_subject *subject);

/* How full things are, traced when it changed: X(symbol, name), 16 bits each. */
#define TRACE_GAUGES(X)            \
	X(QUEUE, "tasks waiting")  \
	X(LANES, "lanes busy")     \
	X(WIRE, "wire slots used") \
	X(CAPTURES, "captures busy")

void path_gauges(struct path *path, uint64_t now_ns, uint64_t gauges);

/* When the bytes of a value arrived: the last few marks of its watermark. */
#define ARRIVALS_MAX 32u
struct arrivals {
	uint32_t first, count;
	struct arrival {
		uint64_t bytes, now_ns;
	} marks[ARRIVALS_MAX];
};

/* The watermark is at `bytes`; nothing happens unless it moved. */
static inline void arrivals_note(struct arrivals *arrivals, uint64_t bytes, uint64_t now_ns)
{
	struct arrival *last =
	    &arrivals->marks[(arrivals->first + arrivals->count + ARRIVALS_MAX - 1) % ARRIVALS_MAX];

	if (arrivals->count ? bytes <= last->bytes : bytes == 0)
		return;
	/* When full, the last two become one: its time is the later, so a wait looks shorter. */
	if (arrivals->count < ARRIVALS_MAX) {
		last = &arrivals->marks[(arrivals->first + arrivals->count) % ARRIVALS_MAX];
		arrivals->count++;
	}
	*last = (struct arrival){.bytes = bytes, .now_ns = now_ns};
}

/* When byte `end` was there; earlier marks are forgotten. now_ns: when that is not known. */
static inline uint64_t arrivals_take(struct arrivals *arrivals, uint64_t end, uint64_t now_ns)
{
	while (arrivals->count && arrivals->marks[arrivals->first].bytes < end) {
		arrivals->first = (arrivals->first + 1) % ARRIVALS_MAX;
		arrivals->count--;
	}
	return arrivals->count ? arrivals->marks[arrivals->first].now_ns : now_ns;
}

#endif
