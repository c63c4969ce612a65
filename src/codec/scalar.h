/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scalar.h - the reference kernels (see kernels.h), by file: scalar_r16.c, scalar_decode.c,
 * scalar_encode.c.
 */
#ifndef SSV_CODEC_SCALAR_H
#define SSV_CODEC_SCALAR_H

#include "codec/kernels.h"

SSV_MUST_CHECK int scalar_r16_table(struct r16_table *table, const uint8_t frequency[16]);
void scalar_r16_strip(const struct r16_strip *strip);
uint8_t *scalar_r16_encode(const struct r16_encode_job *job);
void scalar_fused(const struct fused_strip *strip);
void scalar_dequantise(const struct tile_job *job);
void scalar_join(const struct tile_job *job);
void scalar_write(const struct write_job *job);
void scalar_write_end(void);
void scalar_split(const struct split_job *job);
void scalar_load(const struct load_job *job);
void scalar_quantise(const struct quantise_job *job);
void scalar_pack(const struct pack_job *job);
void scalar_measure(struct measure_job *job);

#endif
