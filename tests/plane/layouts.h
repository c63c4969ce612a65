/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layouts.h - every packing of KV memory met so far, made for tests, with reference arithmetic of
 * its own: an element's place is computed here from the digits alone, not from layout.c's tables.
 */
#ifndef SSV_TEST_LAYOUTS_H
#define SSV_TEST_LAYOUTS_H

#include "shadowserve.h"

enum packing {
	PACKING_NHD,       /* [layer][part][block][token][head][dim] */
	PACKING_HND,       /* [layer][block][part][head][token][dim] */
	PACKING_OUTERMOST, /* [block][layer][part][token][head][dim] */
	PACKING_CONTENT,   /* [layer][head][block][token][part][dim]: blocks interleave */
	PACKING_VEC,       /* [layer][block][head][part]; K as [dim][token], V as [token][dim] */
	PACKING_AMX,       /* [layer][block][head][part]; both in tiles */
	PACKING_BLNHC,     /* [block][layer][token][head][part][dim]: vLLM's on GPUs */
	PACKINGS_COUNT,
};

extern const char *const packing_names[PACKINGS_COUNT];

struct test_shape {
	uint8_t dtype;
	uint16_t layers, heads, dim;
	uint32_t block_tokens, blocks_count;
};

struct test_layout {
	struct ssv_layout layout;
	struct ssv_tensor tensors[64];
	uint64_t bytes; /* of the region */
};

/* AMX: 16-bit elements, blocks of 32, dims of 32 or more. */
void make_layout(enum packing packing, const struct test_shape *shape, struct test_layout *made);

/* Byte offset of an element from the region's start. */
uint64_t element_place(const struct ssv_layout *layout, uint32_t tensor, uint32_t block,
		       uint32_t token, uint32_t head, uint32_t dim);

/* splitmix64 */
uint64_t next_random(uint64_t *state);

/* The seed of this run: SSV_SEED, or `fallback`; printed. */
uint64_t test_seed(uint64_t fallback);

#endif
