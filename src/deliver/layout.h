/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layout.h - a region's layout, checked and turned into tables.
 *
 * Every packing met so far places an element at a sum of one stride per index digit, so an address
 * is block start + token_offset[t] + channel_offset[c]. Two small tables a part replace all layout
 * arithmetic on the data path. They are made once, at registration.
 *
 * A second pair of tables places the same elements without the holes that other tensors fill, in
 * the same order: the form in which a block travels through staging memory. A run is adjacent in
 * both forms.
 */
#ifndef SSV_LAYOUT_H
#define SSV_LAYOUT_H

#include "chunk/shape.h"
#include "shadowserve.h"

/* Elements of a part that are adjacent in a block: one run of a copy. In the order of the packed
 * form, where one run begins where the last one ended. */
struct layout_run {
	uint32_t offset; /* bytes from the tensor's place in the block */
	uint32_t bytes;
};

/* Element (t, c) of a block lies at token[t] + channel[c]; byte offsets. */
struct layout_map {
	uint32_t token[SSV_BLOCK_TOKENS_MAX];
	uint32_t *channel;     /* [channels] */
	uint32_t run_channels; /* adjacent channels per run: c..c+run-1 contiguous */
	uint32_t token_stride; /* constant distance of tokens if below a channel's, else 0 */
	uint32_t block_bytes;  /* last byte + 1 */
};

struct layout_part {
	struct chunk_part shape;
	struct layout_map place;  /* in the region */
	struct layout_map packed; /* in staging memory */
	struct layout_run *runs;  /* all elements of one block, joined */
	uint32_t runs_count;
};

struct layout {
	struct chunk_shape shape; /* tokens = SSV_CHUNK_TOKENS */
	uint8_t model[8];
	uint32_t block_tokens, blocks_count, element_bytes;
	uint32_t parts_count, tensors_count;
	struct layout_part parts[SSV_PARTS_MAX];
	struct ssv_tensor *tensors; /* [layer][part], index = layer * parts_count + part */
};

/**
 * Check a layout against a region of region_bytes and build its tables.
 *
 * Errors, with the numbers in error (SSV_ERROR_TEXT_MAX bytes): -EINVAL digits do not multiply to
 * the extents, misaligned, two elements share a byte; -ERANGE outside the region; -E2BIG; -ENOMEM.
 */
SSV_MUST_CHECK int layout_create(const struct ssv_layout *source, uint64_t region_bytes,
				 struct layout **ret_layout, char *error);
void layout_destroy(struct layout *layout); /* takes NULL */

static inline const struct layout_part *layout_tensor_part(const struct layout *layout,
							   uint32_t tensor)
{
	return &layout->parts[tensor % layout->parts_count];
}

/* Byte offset of (tensor, block)'s place from the region's start. */
static inline uint64_t layout_block_offset(const struct layout *layout, uint32_t tensor,
					   uint32_t block)
{
	return layout->tensors[tensor].offset + layout->tensors[tensor].block_stride * block;
}

#endif
