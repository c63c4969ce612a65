/* SPDX-License-Identifier: Apache-2.0 */
/* times.c - reading a histogram of times; see times.h. */
#include "base/times.h"

#include "base/base.h"

void times_read(const struct times *times, struct times_copy *sum)
{
	sum->count += counter_read(&times->count);
	sum->sum_ns += counter_read(&times->sum_ns);
	sum->longest_ns = u64_max(sum->longest_ns, counter_read(&times->longest_ns));
	for (uint32_t i = 0; i < TIMES_BUCKETS; i++)
		sum->buckets[i] += counter_read(&times->buckets[i]);
}

void times_subtract(struct times_copy *times, const struct times_copy *before)
{
	times->count -= before->count;
	times->sum_ns -= before->sum_ns;
	for (uint32_t i = 0; i < TIMES_BUCKETS; i++)
		times->buckets[i] -= before->buckets[i];
}

static uint64_t bucket_middle(uint32_t bucket)
{
	uint64_t quarter;

	if (bucket == 0)
		return (uint64_t)1 << (TIMES_FIRST_BIT - 1);
	quarter = (uint64_t)1 << ((bucket - 1) / 4 + TIMES_FIRST_BIT - 2);
	return (4 + (bucket - 1) % 4) * quarter + quarter / 2;
}

uint64_t times_quantile(const struct times_copy *times, double share)
{
	uint64_t all = 0, below = 0;
	uint32_t i = 0;

	/* Of the buckets, not of count: the writer may be between the two. */
	for (uint32_t k = 0; k < TIMES_BUCKETS; k++)
		all += times->buckets[k];
	if (all == 0)
		return 0;
	while (i < TIMES_BUCKETS - 1 && (double)(below + times->buckets[i]) < share * (double)all)
		below += times->buckets[i++];
	return u64_min(bucket_middle(i), times->longest_ns);
}
