/* SPDX-License-Identifier: Apache-2.0 */
/*
 * symbols.h - what a tensor's meta says about its symbols, in the form that kernels want, and the
 * way from an entry to its class planes. Used by decoding, encoding and transcoding alike.
 */
#ifndef SSV_CODEC_SYMBOLS_H
#define SSV_CODEC_SYMBOLS_H

#include "base/bytes.h"
#include "chunk/container.h"
#include "codec/kernels.h"
#include "codec/lossless.h"

/* The factor's step size: M[b & 7] * 2^((b >> 3) - 23). No factor means STEP_FACTOR_ONE. */
#define STEP_FACTOR_ONE 128u

float step_scale(uint16_t step_bits, uint8_t factor);

/* Read one group's parameters; idle lanes get zeros. dim: of the tensor's part. */
void group_load(const struct tensor_meta *meta, const struct tensor_extent *extent, uint32_t dim,
		uint32_t group, struct tile_lanes *ret_lane);

/* Bytes of a plane as class pairs: byte k of a row is lane k | lane k+32 << 4. */
uint32_t class_pairs_bytes(const struct class_plane *plane);
void class_pairs_pack(const struct class_plane *plane, uint8_t *pairs);
void class_pairs_unpack(const struct class_plane *plane, const uint8_t *pairs);

void class_plane_open(struct class_plane *plane, struct codec_scratch *scratch,
		      const struct tensor_extent *extent, uint32_t tokens);
void class_source_open(const struct container *container, const struct container_entry *entry,
		       struct class_source *ret_source);

/* Which channel of the extent stands at a place of the coded order. */
static inline uint32_t meta_channel(const struct tensor_meta *meta, uint32_t place)
{
	return meta->order ? load_le16(meta->order + 2 * place) : place;
}

static inline uint32_t group_raw_bits(const struct container_header *header,
				      const struct tensor_meta *meta, uint32_t group)
{
	return meta->raw_bits ? meta->raw_bits[group] : dtype_raw_bits(header->shape.dtype);
}

#endif
