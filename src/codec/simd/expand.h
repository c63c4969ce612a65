/* SPDX-License-Identifier: Apache-2.0 */
/* expand.h - bytes to the lanes of a mask, eight at a time, where the processor has no instruction
 * for it: indices for a byte shuffle. */
#ifndef SSV_CODEC_SIMD_EXPAND_H
#define SSV_CODEC_SIMD_EXPAND_H

#include <stdint.h>

/* By mask of 8 lanes: 0, 1, 2 ... for the lanes in it, 0x80 for the others. */
#define EXPAND_LANE(m, i)                                                                       \
	(((m) >> (i)&1 ? (uint64_t)__builtin_popcount((m) & ((1 << (i)) - 1)) : (uint64_t)0x80) \
	 << 8 * (i))
#define EXPAND(m)                                                                        \
	(EXPAND_LANE(m, 0) | EXPAND_LANE(m, 1) | EXPAND_LANE(m, 2) | EXPAND_LANE(m, 3) | \
	 EXPAND_LANE(m, 4) | EXPAND_LANE(m, 5) | EXPAND_LANE(m, 6) | EXPAND_LANE(m, 7))
#define EXPAND4(m)  EXPAND(m), EXPAND((m) + 1), EXPAND((m) + 2), EXPAND((m) + 3)
#define EXPAND16(m) EXPAND4(m), EXPAND4((m) + 4), EXPAND4((m) + 8), EXPAND4((m) + 12)
#define EXPAND64(m) EXPAND16(m), EXPAND16((m) + 16), EXPAND16((m) + 32), EXPAND16((m) + 48)

static const uint64_t expand_lanes[256] = {EXPAND64(0), EXPAND64(64), EXPAND64(128), EXPAND64(192)};

#endif
