/* SPDX-License-Identifier: Apache-2.0 */
/* avx2_decode.c - the decoding kernels of level avx2. */
#include "codec/simd/avx2_ops.h"

#include "codec/simd/r16_template.h"

#include "codec/simd/tile_template.h"

#include "codec/simd/write_template.h"

/* By mask of 8 lanes, for each lane in it 0, 1, 2 ..., 0x80 for the others. */
#define LANE(mask, i)                                                              \
	((mask) >> (i)&1 ? (uint64_t)__builtin_popcount((mask) & ((1 << (i)) - 1)) \
			 : (uint64_t)0x80)                                         \
	    << 8 * (i)
#define MASK(m)                                                                        \
	(LANE(m, 0) | LANE(m, 1) | LANE(m, 2) | LANE(m, 3) | LANE(m, 4) | LANE(m, 5) | \
	 LANE(m, 6) | LANE(m, 7))
#define MASKS4(m)  MASK(m), MASK((m) + 1), MASK((m) + 2), MASK((m) + 3)
#define MASKS16(m) MASKS4(m), MASKS4((m) + 4), MASKS4((m) + 8), MASKS4((m) + 12)
#define MASKS64(m) MASKS16(m), MASKS16((m) + 16), MASKS16((m) + 32), MASKS16((m) + 48)

const uint64_t avx2_expand[256] = {MASKS64(0), MASKS64(64), MASKS64(128), MASKS64(192)};
