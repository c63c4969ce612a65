/* SPDX-License-Identifier: Apache-2.0 */
/* shape.c - sizes that follow from a shape, and which shapes a container can hold. */
#include "chunk/shape.h"

#include <errno.h>
#include <string.h>

#include "chunk/container.h"

static const struct {
	const char *name;
	uint32_t bytes;
} dtypes[] = {
    [SSV_DTYPE_BF16] = {"bf16", 2}, [SSV_DTYPE_FP16] = {"fp16", 2}, [SSV_DTYPE_FP32] = {"fp32", 4},
    [SSV_DTYPE_E4M3] = {"e4m3", 1}, [SSV_DTYPE_E5M2] = {"e5m2", 1},
};

uint32_t dtype_bytes(uint8_t dtype)
{
	return dtype < ARRAY_COUNT(dtypes) ? dtypes[dtype].bytes : 0;
}

const char *dtype_name(uint8_t dtype)
{
	return dtype < ARRAY_COUNT(dtypes) ? dtypes[dtype].name : "unknown";
}

uint64_t shape_tensor_bytes(const struct chunk_shape *shape, uint32_t part)
{
	return (uint64_t)shape->tokens * part_channels(&shape->parts[part]) *
	       dtype_bytes(shape->dtype);
}

uint64_t shape_kv_bytes(const struct chunk_shape *shape)
{
	uint64_t layer_bytes = 0;

	for (uint32_t p = 0; p < shape->parts_count; p++)
		layer_bytes += shape_tensor_bytes(shape, p);
	return layer_bytes * shape->layers_count;
}

uint32_t shape_entries_max(const struct chunk_shape *shape)
{
	uint32_t groups = 0;

	for (uint32_t p = 0; p < shape->parts_count; p++)
		groups += part_groups(&shape->parts[p]);
	return groups * shape->layers_count;
}

/* Meta of a part whose groups are all entries of their own, with every flag that adds bytes. */
uint64_t shape_meta_bytes_max(const struct chunk_shape *shape)
{
	const uint8_t flags = TENSOR_OFFSET_I16 | TENSOR_DELTA | TENSOR_FACTOR | TENSOR_ORDER;
	uint64_t layer_bytes = 0;

	for (uint32_t p = 0; p < shape->parts_count; p++) {
		const struct chunk_part *part = &shape->parts[p];
		uint32_t heads = (GROUP_CHANNELS - 1) / part->dim + 2;

		layer_bytes += (uint64_t)part_groups(part) *
			       (tensor_meta_bytes(flags, 0, heads, 1, GROUP_CHANNELS) + 16);
	}
	return layer_bytes * shape->layers_count;
}

uint64_t shape_container_bytes_max(const struct chunk_shape *shape)
{
	uint64_t entries = shape_entries_max(shape);
	uint64_t front =
	    CONTAINER_HEADER_BYTES + entries * CONTAINER_ENTRY_BYTES + shape_meta_bytes_max(shape);

	return align_up(front, WIRE_ALIGN_BYTES) + shape_kv_bytes(shape) +
	       entries * (WIRE_ALIGN_BYTES - 1);
}

static const char *part_wrong(const struct chunk_part *part)
{
	if (part->role < SSV_ROLE_K || part->role > SSV_ROLE_LATENT)
		return "a part's role is none of K, V, latent";
	if (!part->heads || part->heads > SSV_HEADS_MAX)
		return "a part's heads are not 1..1024";
	if (part->head0 > UINT16_MAX - part->heads)
		return "a part's last head exceeds 65535";
	if (!part->dim || part_channels(part) > SSV_CHANNELS_MAX)
		return "a part's channels (heads x dim) are not 1..8192";
	return NULL;
}

static const char *shape_wrong(const struct chunk_shape *shape)
{
	const char *why = NULL;

	if (!dtype_bytes(shape->dtype))
		return "dtype is none of bf16, fp16, fp32, e4m3, e5m2";
	if (!shape->parts_count || shape->parts_count > SSV_PARTS_MAX)
		return "parts are not 1..4";
	if (!shape->tokens || shape->tokens > SSV_CHUNK_TOKENS)
		return "tokens are not 1..256";
	if (!shape->layers_count || shape->layer0 + shape->layers_count > shape->layers_total)
		return "layers are none, or outside layers_total";
	if (!shape->ranks_count || shape->ranks_count > SSV_RANKS_MAX ||
	    shape->rank >= shape->ranks_count)
		return "rank is not below ranks_count, or ranks_count is not 1..64";
	for (uint32_t p = 0; p < shape->parts_count && !why; p++)
		why = part_wrong(&shape->parts[p]);
	return why;
}

int shape_check(const struct chunk_shape *shape, const char **ret_why)
{
	const char *why = shape_wrong(shape);
	int err = why ? -EINVAL : 0;

	if (!err && shape_tensors(shape) > SSV_TENSORS_MAX) {
		why = "tensors (layers x parts) exceed 1024";
		err = -E2BIG;
	}
	if (!err && shape_container_bytes_max(shape) > UINT32_MAX) {
		why = "a container could exceed 4 GiB";
		err = -E2BIG;
	}
	if (ret_why)
		*ret_why = why;
	return err;
}

int shape_equal(const struct chunk_shape *a, const struct chunk_shape *b)
{
	if (a->dtype != b->dtype || a->parts_count != b->parts_count || a->tokens != b->tokens ||
	    a->layer0 != b->layer0 || a->layers_count != b->layers_count ||
	    a->layers_total != b->layers_total || a->rank != b->rank ||
	    a->ranks_count != b->ranks_count)
		return 0;
	for (uint32_t p = 0; p < a->parts_count; p++) {
		const struct chunk_part *x = &a->parts[p], *y = &b->parts[p];

		if (x->role != y->role || x->head0 != y->head0 || x->heads != y->heads ||
		    x->dim != y->dim)
			return 0;
	}
	return 1;
}
