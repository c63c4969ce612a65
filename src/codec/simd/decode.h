/* SPDX-License-Identifier: Apache-2.0 */
/*
 * decode.h - the decoding kernels (kernels.h) of each SIMD level, by file: avx512_decode.c,
 * avx2_decode.c, neon_decode.c. A file is compiled for its level's instructions and must be
 * entered only through the table that kernels.c offers.
 */
#ifndef SSV_CODEC_SIMD_DECODE_H
#define SSV_CODEC_SIMD_DECODE_H

#include "codec/kernels.h"

/* What templates and vector operations are made of: never a function of its own. */
#define INLINE static inline __attribute__((always_inline))

#define DECODE_KERNELS(level)                                              \
	SSV_MUST_CHECK int level##_r16_table(struct r16_table *table,      \
					     const uint8_t frequency[16]); \
	void level##_r16_strip(const struct r16_strip *strip);             \
	void level##_dequantise(const struct tile_job *job);               \
	void level##_join(const struct tile_job *job);                     \
	void level##_write(const struct write_job *job);                   \
	void level##_write_end(void);

void avx512_fused(const struct fused_job *job);

DECODE_KERNELS(avx512)
DECODE_KERNELS(avx2)
DECODE_KERNELS(neon)

#endif
