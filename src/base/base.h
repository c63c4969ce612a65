/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base.h - the few words every file uses: must-check results, assertions that stay on, sizes.
 *
 * Data from outside (files, sockets, arguments) never meets an assertion; it gets an error.
 */
#ifndef SSV_BASE_H
#define SSV_BASE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define SSV_MUST_CHECK          __attribute__((warn_unused_result))
#define SSV_PRINTF(text, first) __attribute__((format(printf, text, first)))

#define CACHE_LINE_BYTES   64u
#define ARRAY_COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define KIB                ((uint64_t)1024)
#define MIB                (1024 * KIB)
#define GIB                (1024 * MIB)

/* A programmer's mistake: print and abort, in release builds too. */
#define ssv_assert(condition)                                                                \
	do {                                                                                 \
		if (__builtin_expect(!(condition), 0)) {                                     \
			fprintf(stderr, "%s:%d: assertion failed: %s\n", __FILE__, __LINE__, \
				#condition);                                                 \
			abort();                                                             \
		}                                                                            \
	} while (0)

static inline uint64_t u64_min(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t u64_max(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* Rounds up to a multiple of a power of two. */
static inline uint64_t align_up(uint64_t value, uint64_t power_of_two)
{
	return (value + power_of_two - 1) & ~(power_of_two - 1);
}

#endif
