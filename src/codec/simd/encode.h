/* SPDX-License-Identifier: Apache-2.0 */
/*
 * encode.h - the encoding kernels (kernels.h) of each SIMD level, by file:
 * LEVEL_encode.c, LEVEL_r16_encode.c. A file is compiled for its level's instructions and must be
 * entered only through the table that kernels.c offers. Partial groups go to the scalar kernels.
 */
#ifndef SSV_CODEC_SIMD_ENCODE_H
#define SSV_CODEC_SIMD_ENCODE_H

#include "codec/kernels.h"

void avx512_r16_encode(struct r16_encode_job *job);
void avx512_spread(struct spread_job *job);
void avx512_power(const struct power_job *job);
void avx512_quantise(const struct quantise_job *job);
void avx512_distance(struct distance_job *job);
void avx512_count(struct count_job *job);
void avx512_pack(struct pack_job *job);
void avx512_measure(struct measure_job *job);
void avx512_code(struct code_job *job);
void avx512_exponents(struct exponent_job *job);
void avx512_split(struct split_job *job);

void avx2_spread(struct spread_job *job);
void avx2_power(const struct power_job *job);
void avx2_quantise(const struct quantise_job *job);
void avx2_distance(struct distance_job *job);
void avx2_measure(struct measure_job *job);

void neon_spread(struct spread_job *job);
void neon_power(const struct power_job *job);
void neon_quantise(const struct quantise_job *job);
void neon_distance(struct distance_job *job);
void neon_measure(struct measure_job *job);

#endif
