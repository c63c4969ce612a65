/* SPDX-License-Identifier: Apache-2.0 */
/*
 * times.h - how long something took: count, sum, longest, and a histogram coarse enough to be
 * cheap.
 *
 * Four buckets an octave from 128 ns to 68 s: a quantile is right to an eighth of its value. One
 * writer adds, any thread reads (counter.h). Count, sum and buckets never go back; the longest is
 * of the time since times_restart().
 */
#ifndef SSV_TIMES_H
#define SSV_TIMES_H

#include "base/counter.h"

#define TIMES_FIRST_BIT 7u
#define TIMES_LAST_BIT  35u
#define TIMES_BUCKETS   ((TIMES_LAST_BIT - TIMES_FIRST_BIT + 1) * 4 + 1)

struct times {
	struct counter count, sum_ns, longest_ns;
	struct counter buckets[TIMES_BUCKETS];
};

/* What a reader has copied; plain numbers, which may be added and subtracted. */
struct times_copy {
	uint64_t count, sum_ns, longest_ns;
	uint64_t buckets[TIMES_BUCKETS];
};

/* Bucket 0 holds what is below 128 ns; the last one everything above. */
static inline uint32_t times_bucket(uint64_t ns)
{
	uint32_t bit;

	if (ns >> TIMES_FIRST_BIT == 0)
		return 0;
	bit = 63u - (uint32_t)__builtin_clzll(ns);
	if (bit > TIMES_LAST_BIT)
		return TIMES_BUCKETS - 1;
	return (bit - TIMES_FIRST_BIT) * 4 + ((uint32_t)(ns >> (bit - 2)) & 3) + 1;
}

/* The owner's thread only. */
static inline void times_add(struct times *times, uint64_t ns)
{
	counter_add(&times->count, 1);
	counter_add(&times->sum_ns, ns);
	if (ns > counter_read(&times->longest_ns))
		counter_set(&times->longest_ns, ns);
	counter_add(&times->buckets[times_bucket(ns)], 1);
}

/* Forget the longest. The owner's thread only. */
static inline void times_restart(struct times *times)
{
	counter_set(&times->longest_ns, 0);
}

/* Add what was counted so far to a copy. */
void times_read(const struct times *times, struct times_copy *sum);

/* Take away what was counted at an earlier time; the longest stays. */
void times_subtract(struct times_copy *times, const struct times_copy *before);

/* The time that a share of all (0 to 1) did not exceed: the middle of its bucket, and never more
 * than the longest; 0 without any. */
uint64_t times_quantile(const struct times_copy *times, double share);

#endif
