/* SPDX-License-Identifier: Apache-2.0 */
/*
 * counter.h - a number that one thread counts and any thread may read.
 *
 * The writer is alone, so adding is a load and a store, not a locked instruction. A reader sees
 * some recent value of each counter; different counters need not fit together.
 */
#ifndef SSV_COUNTER_H
#define SSV_COUNTER_H

#include <stdatomic.h>
#include <stdint.h>

struct counter {
	_Atomic uint64_t value;
};

/* Pairs with counter_read(). The owner's thread only. */
static inline void counter_add(struct counter *counter, uint64_t n)
{
	uint64_t value = atomic_load_explicit(&counter->value, memory_order_relaxed);

	atomic_store_explicit(&counter->value, value + n, memory_order_relaxed);
}

/* A gauge: pairs with counter_read(). The owner's thread only. */
static inline void counter_set(struct counter *counter, uint64_t value)
{
	atomic_store_explicit(&counter->value, value, memory_order_relaxed);
}

/* Pairs with counter_add() and counter_set(); relaxed, the value alone matters. */
static inline uint64_t counter_read(const struct counter *counter)
{
	return atomic_load_explicit(&counter->value, memory_order_relaxed);
}

#endif
