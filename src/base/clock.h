/* SPDX-License-Identifier: Apache-2.0 */
/*
 * clock.h - the one place that reads the monotonic clock. Called by the mains, the client library
 * and tests; everything below them is handed now_ns, so that it can run in virtual time.
 */
#ifndef SSV_CLOCK_H
#define SSV_CLOCK_H

#include <stdint.h>
#include <time.h>

#define NS_PER_US ((uint64_t)1000)
#define NS_PER_MS ((uint64_t)1000000)
#define NS_PER_S  ((uint64_t)1000000000)

#define TIME_NEVER UINT64_MAX

static inline uint64_t clock_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

#endif
