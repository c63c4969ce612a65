/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_time.h - processor time, so that other work on the machine counts as little as it can. */
#ifndef SSV_BENCH_CPU_TIME_H
#define SSV_BENCH_CPU_TIME_H

#include <stdint.h>
#include <time.h>

#include "base/clock.h"

/* CLOCK_PROCESS_CPUTIME_ID or CLOCK_THREAD_CPUTIME_ID. */
static inline uint64_t cpu_ns(clockid_t of)
{
	struct timespec t;

	clock_gettime(of, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

#endif
