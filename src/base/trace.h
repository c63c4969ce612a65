/* SPDX-License-Identifier: Apache-2.0 */
/*
 * trace.h - what one thread did lately: a ring of fixed-size events, overwritten from the oldest
 * on.
 *
 * One thread writes and never waits; any thread may read at any time and learns which events were
 * overwritten under its eyes. Event i lies in slot i modulo the ring's size. The writer publishes
 * head = i before it writes event i, so a reader that has met a byte of event i finds head >= i
 * afterwards and drops event i - size, whose slot that is. Every word of a slot is atomic: there is
 * no fence, and no data race for ThreadSanitizer to forgive.
 */
#ifndef SSV_TRACE_H
#define SSV_TRACE_H

#include <assert.h>
#include <stdatomic.h>
#include <stdint.h>

#include "base/base.h"

/* What happened: X(symbol, name in the trace, what value and detail say). */
#define TRACE_KINDS(X)                                                                          \
	X(OPEN, "open")       /* a worker checked a chunk's front */                            \
	X(DECODE, "decode")   /* detail: segment; value: bytes of it */                         \
	X(DELIVER, "deliver") /* staged tensors were moved */                                   \
	X(CAPTURE, "capture") /* blocks were copied out */                                      \
	X(ENCODE, "encode")   /* detail: tensor */                                              \
	X(RECEIVE, "receive") /* the store's poll; value: bytes */                              \
	X(CHUNK, "chunk")     /* a lane's, begin to report; value: bytes */                     \
	X(GET, "get")         /* a lane's, asked to answered */                                 \
	X(WAIT_LANE, "wait lane")                                                               \
	X(WAIT_SLOTS, "wait slots")                                                             \
	X(STORE, "store") /* a capture's, begin to end */                                       \
	X(PUT, "put")                                                                           \
	X(SLEEP, "sleep")         /* a worker slept */                                          \
	X(GAUGE, "gauge")         /* value: TRACE_GAUGES, 16 bits each */                       \
	X(HAND, "hand out")       /* control gave a piece to worker `place` */                  \
	X(REQUEST, "request")     /* detail: session << 4 | op; value: status << 32 | tokens */ \
	X(INFLATE, "inflate")     /* detail: segment; value: bytes of it, inflated */           \
	X(INFLATING, "inflating") /* the same at an engine, from submit to hand-back */

enum trace_kind {
	TRACE_NONE = 0,
#define TRACE_ENUM(symbol, name) TRACE_##symbol,
	TRACE_KINDS(TRACE_ENUM)
#undef TRACE_ENUM
	    TRACE_KINDS_COUNT
};

/* An event; also its bytes in the protocol, little endian. */
struct trace_event {
	uint64_t start_ns;
	uint64_t span;    /* kind << 56 | place << 48 | duration in ns */
	uint32_t request; /* order of acceptance; 0: none */
	uint16_t piece;   /* of the request */
	uint16_t detail;
	uint64_t value;
};

static_assert(sizeof(struct trace_event) == 32, "wire format");

#define TRACE_DURATION_MAX (((uint64_t)1 << 48) - 1)

/* place: the lane, the capture, or HAND: the worker. */
static inline uint64_t trace_span(enum trace_kind kind, uint32_t place, uint64_t duration_ns)
{
	return (uint64_t)kind << 56 | (uint64_t)(place & 0xff) << 48 |
	       u64_min(duration_ns, TRACE_DURATION_MAX);
}

static inline uint32_t trace_kind(const struct trace_event *event)
{
	return (uint32_t)(event->span >> 56);
}

static inline uint32_t trace_place(const struct trace_event *event)
{
	return (uint32_t)(event->span >> 48) & 0xff;
}

static inline uint64_t trace_duration_ns(const struct trace_event *event)
{
	return event->span & TRACE_DURATION_MAX;
}

#define TRACE_WORDS (sizeof(struct trace_event) / sizeof(uint64_t))

struct trace_slot {
	_Atomic uint64_t words[TRACE_WORDS];
};

struct trace {
	_Alignas(CACHE_LINE_BYTES) _Atomic uint64_t head; /* events published so far */
	/* Written once. */
	struct trace_slot *slots; /* NULL: nothing is kept */
	uint64_t slots_count;     /* a power of two */
};

/* Release, pairs with trace_head(): the event before head is whole. */
static inline void trace_publish(struct trace *trace, uint64_t head)
{
	atomic_store_explicit(&trace->head, head, memory_order_release);
}

/* Acquire, pairs with trace_publish(). */
static inline uint64_t trace_head(const struct trace *trace)
{
	return atomic_load_explicit(&trace->head, memory_order_acquire);
}

/* Release, pairs with trace_word_get(): who reads this word sees the head before it. */
static inline void trace_word_put(_Atomic uint64_t *word, uint64_t value)
{
	atomic_store_explicit(word, value, memory_order_release);
}

/* Acquire, pairs with trace_word_put(): a later look at head is not older than this word. */
static inline uint64_t trace_word_get(const _Atomic uint64_t *word)
{
	return atomic_load_explicit(word, memory_order_acquire);
}

/* slots[count], zeroed, are the trace's from now on; count is a power of two. NULL and 0: it keeps
 * nothing. */
static inline void trace_init(struct trace *trace, struct trace_slot *slots, uint64_t count)
{
	ssv_assert((count & (count - 1)) == 0 && !slots == !count);
	atomic_init(&trace->head, 0);
	trace->slots = slots;
	trace->slots_count = count;
}

/* The writer. */
static inline void trace_put(struct trace *trace, const struct trace_event *event)
{
	const uint64_t third =
	    (uint64_t)event->detail << 48 | (uint64_t)event->piece << 32 | event->request;
	/* Own index: nobody else writes it, so relaxed. */
	uint64_t head = atomic_load_explicit(&trace->head, memory_order_relaxed);
	_Atomic uint64_t *words;

	if (!trace->slots)
		return;
	words = trace->slots[head & (trace->slots_count - 1)].words;
	/* The ring is longer than the cache: have the next lines here before they are written. */
	__builtin_prefetch(&trace->slots[(head + 4) & (trace->slots_count - 1)], 1);
	trace_word_put(&words[0], event->start_ns);
	trace_word_put(&words[1], event->span);
	trace_word_put(&words[2], third);
	trace_word_put(&words[3], event->value);
	trace_publish(trace, head + 1);
}

/**
 * Any thread: copy up to max events, the oldest first, beginning with number `from` or with the
 * oldest that is still there. Returns how many; *ret_first is the number of the first.
 */
uint32_t trace_read(const struct trace *trace, uint64_t from, struct trace_event *events,
		    uint32_t max, uint64_t *ret_first);

#endif
