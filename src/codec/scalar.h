/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scalar.h - the reference kernels (see kernels.h), by file: scalar_r16.c, scalar_decode.c,
 * scalar_encode.c (to integers, and their statistics), scalar_pack.c (to classes and raw bits),
 * scalar_trellis.c.
 */
#ifndef SSV_CODEC_SCALAR_H
#define SSV_CODEC_SCALAR_H

#include "codec/kernels.h"

#define R16_TOTAL 256u /* of a group's frequencies, and the least state */

/* What every lane's state is before encoding, and so after decoding. */
static inline uint32_t r16_start_state(uint32_t lane)
{
	return R16_TOTAL + (lane * 37 & 255);
}

SSV_MUST_CHECK int scalar_r16_table(struct r16_table *table, const uint8_t frequency[16]);
void scalar_r16_strip(const struct r16_strip *strip);
void scalar_fused(const struct fused_job *job);
void scalar_dequantise(const struct tile_job *job);
void scalar_join(const struct tile_job *job);
void scalar_write(const struct write_job *job);
void scalar_write_end(void);

/* For levels that encode whole groups only: one group of a stream, states in x; returns where
 * writing stands. */
uint8_t *scalar_r16_encode_group(const struct class_plane *plane, uint32_t group,
				 const uint8_t frequency[16], uint16_t x[LANES], uint8_t *next);
uint8_t *r16_encode_begin(uint16_t x[LANES], uint8_t *end);
uint8_t *r16_encode_finish(const uint16_t x[LANES], uint8_t *next);

/* One token's values of a group. */
void scalar_row(const struct group_view *view, uint32_t token, float values[LANES]);

void scalar_r16_encode(struct r16_encode_job *job);
void scalar_spread(struct spread_job *job);
void scalar_power(const struct power_job *job);
void scalar_quantise(const struct quantise_job *job);
void scalar_distance(struct distance_job *job);
void scalar_count(struct count_job *job);
void scalar_pack(struct pack_job *job);
void scalar_measure(struct measure_job *job);
void scalar_code(struct code_job *job);
void scalar_trellis(struct trellis_job *job);
void scalar_exponents(struct exponent_job *job);
void scalar_split(struct split_job *job);

#endif
