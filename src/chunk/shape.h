/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shape.h - the shape of a chunk: which layers, parts and tokens it holds, and of which type.
 *
 * Canonical order of a tensor: [token][head][dim], so [tokens][channels] with channels = heads x
 * dim. Channels are handled in groups of 64; the last group of a part may be partial.
 */
#ifndef SSV_SHAPE_H
#define SSV_SHAPE_H

#include <stdint.h>

#include "base/base.h"
#include "shadowserve.h"

#define GROUP_CHANNELS 64u
#define GROUPS_MAX     (SSV_CHANNELS_MAX / GROUP_CHANNELS)

struct chunk_part {
	uint8_t role; /* enum ssv_role */
	uint16_t head0, heads, dim;
};

struct chunk_shape {
	uint8_t dtype; /* enum ssv_dtype */
	uint8_t parts_count;
	uint16_t tokens; /* 1..SSV_CHUNK_TOKENS */
	uint16_t layer0, layers_count, layers_total;
	uint16_t rank, ranks_count;
	struct chunk_part parts[SSV_PARTS_MAX];
};

/* 2, 2, 4, 1, 1; 0 for a value that is no enum ssv_dtype. */
uint32_t dtype_bytes(uint8_t dtype);
const char *dtype_name(uint8_t dtype);

static inline uint32_t part_channels(const struct chunk_part *part)
{
	return (uint32_t)part->heads * part->dim;
}

static inline uint32_t part_groups(const struct chunk_part *part)
{
	return (part_channels(part) + GROUP_CHANNELS - 1) / GROUP_CHANNELS;
}

static inline uint32_t shape_tensors(const struct chunk_shape *shape)
{
	return (uint32_t)shape->layers_count * shape->parts_count;
}

/* Bytes of one tensor and of the whole chunk, in canonical order, uncompressed. */
uint64_t shape_tensor_bytes(const struct chunk_shape *shape, uint32_t part);
uint64_t shape_kv_bytes(const struct chunk_shape *shape);

/* Upper bounds of what a container of this shape holds: every group of 64 channels may be an entry
 * of its own, with all optional meta. */
uint32_t shape_entries_max(const struct chunk_shape *shape);
uint64_t shape_meta_bytes_max(const struct chunk_shape *shape);

/* No container of this shape is longer, with any tier and codec (STORED bounds every segment). */
uint64_t shape_container_bytes_max(const struct chunk_shape *shape);

/* -EINVAL or -E2BIG for a shape that no container can hold; *ret_why (may be NULL) says why. */
SSV_MUST_CHECK int shape_check(const struct chunk_shape *shape, const char **ret_why);

/* Same in every field, tokens too. */
int shape_equal(const struct chunk_shape *a, const struct chunk_shape *b);

#endif
