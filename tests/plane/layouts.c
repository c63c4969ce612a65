/* SPDX-License-Identifier: Apache-2.0 */
/* layouts.c - see layouts.h. */
#include "layouts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const packing_names[PACKINGS_COUNT] = {"NHD", "HND", "outermost", "content",
						   "vec", "AMX", "BLNHC"};

uint64_t next_random(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

uint64_t test_seed(uint64_t fallback)
{
	const char *text = getenv("SSV_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : fallback;

	printf("seed %llu\n", (unsigned long long)seed);
	return seed;
}

static uint32_t element_bytes(uint8_t dtype)
{
	return dtype == SSV_DTYPE_FP32 ? 4 : dtype >= SSV_DTYPE_E4M3 ? 1 : 2;
}

static void digit(struct ssv_part *part, uint8_t axis, uint32_t extent, uint64_t stride)
{
	part->digits[part->digits_count++] =
	    (struct ssv_digit){.axis = axis, .extent = (uint16_t)extent, .stride = (int64_t)stride};
}

static void plain_digits(struct ssv_part *part, const struct test_shape *s, uint64_t token,
			 uint64_t head, uint64_t dim)
{
	digit(part, SSV_AXIS_TOKEN, s->block_tokens, token);
	digit(part, SSV_AXIS_HEAD, s->heads, head);
	digit(part, SSV_AXIS_DIM, s->dim, dim);
}

/* K: token bits [2,4,8,16,...], dim bits [1,32,64,...]; V: the other way round. */
static void tile_digits(struct ssv_part *part, const struct test_shape *s, int is_v)
{
	const uint64_t half = (uint64_t)s->block_tokens * s->dim;
	const uint64_t inner[4] = {2, 4, 8, 16};
	const uint8_t a = is_v ? SSV_AXIS_DIM : SSV_AXIS_TOKEN;
	const uint8_t b = is_v ? SSV_AXIS_TOKEN : SSV_AXIS_DIM;
	const uint32_t a_extent = is_v ? s->dim : s->block_tokens;
	const uint32_t b_extent = is_v ? s->block_tokens : s->dim;
	uint64_t stride = 32;

	for (int i = 0; i < 4; i++)
		digit(part, a, 2, inner[i]);
	digit(part, b, 2, 1);
	digit(part, b, b_extent / 2, stride);
	stride *= b_extent / 2;
	if (a_extent > 16)
		digit(part, a, a_extent / 16, stride);
	digit(part, SSV_AXIS_HEAD, s->heads, 2 * half);
}

static void fill_part(enum packing packing, const struct test_shape *s, uint32_t index,
		      struct ssv_part *part)
{
	const uint64_t bt = s->block_tokens, dim = s->dim, heads = s->heads;

	part->role = index ? SSV_ROLE_V : SSV_ROLE_K;
	part->heads = s->heads;
	part->dim = s->dim;
	switch (packing) {
	case PACKING_NHD:
	case PACKING_OUTERMOST:
		plain_digits(part, s, heads * dim, dim, 1);
		break;
	case PACKING_HND:
		plain_digits(part, s, dim, bt * dim, 1);
		break;
	case PACKING_CONTENT:
		plain_digits(part, s, 2 * dim, s->blocks_count * bt * 2 * dim, 1);
		break;
	case PACKING_BLNHC:
		plain_digits(part, s, 2 * heads * dim, 2 * dim, 1);
		break;
	case PACKING_VEC:
		if (index == 0)
			plain_digits(part, s, 1, 2 * bt * dim, bt);
		else
			plain_digits(part, s, dim, 2 * bt * dim, 1);
		break;
	default:
		tile_digits(part, s, (int)index);
		break;
	}
}

static void fill_tensor(enum packing packing, const struct test_shape *s, uint32_t layer,
			uint32_t part, struct ssv_tensor *tensor)
{
	const uint64_t eb = element_bytes(s->dtype);
	const uint64_t half = (uint64_t)s->block_tokens * s->dim * eb; /* of a head */
	const uint64_t one = half * s->heads;                          /* tensor in a block */
	const uint64_t all = one * s->blocks_count;

	tensor->layer = (uint16_t)layer;
	tensor->part = (uint16_t)part;
	switch (packing) {
	case PACKING_NHD:
		tensor->offset = (2 * layer + part) * all;
		tensor->block_stride = one;
		break;
	case PACKING_OUTERMOST:
		tensor->offset = (2 * layer + part) * one;
		tensor->block_stride = one * 2 * s->layers;
		break;
	case PACKING_BLNHC:
		tensor->offset = 2 * layer * one + part * s->dim * eb;
		tensor->block_stride = one * 2 * s->layers;
		break;
	case PACKING_HND:
		tensor->offset = 2 * layer * all + part * one;
		tensor->block_stride = 2 * one;
		break;
	case PACKING_CONTENT:
		tensor->offset = 2 * layer * all + part * s->dim * eb;
		tensor->block_stride = 2 * half;
		break;
	default:
		tensor->offset = 2 * layer * all + part * half;
		tensor->block_stride = 2 * one;
		break;
	}
}

void make_layout(enum packing packing, const struct test_shape *s, struct test_layout *made)
{
	struct ssv_layout *layout = &made->layout;

	memset(made, 0, sizeof(*made));
	layout->struct_size = sizeof(*layout);
	layout->dtype = s->dtype;
	layout->parts_count = 2;
	layout->layers_count = layout->layers_total = s->layers;
	layout->ranks_count = 1;
	layout->block_tokens = s->block_tokens;
	layout->blocks_count = s->blocks_count;
	layout->tensors_count = 2u * s->layers;
	memcpy(layout->model, "testmodl", 8);
	for (uint32_t i = 0; i < 2; i++)
		fill_part(packing, s, i, &layout->parts[i]);
	for (uint32_t i = 0; i < layout->tensors_count; i++)
		fill_tensor(packing, s, i / 2, i % 2, &made->tensors[i]);
	layout->tensors = made->tensors;
	made->bytes = 2ull * s->layers * s->blocks_count * s->block_tokens * s->heads * s->dim *
		      element_bytes(s->dtype);
}

uint64_t element_place(const struct ssv_layout *layout, uint32_t tensor, uint32_t block,
		       uint32_t token, uint32_t head, uint32_t dim)
{
	const struct ssv_part *part = &layout->parts[layout->tensors[tensor].part];
	uint32_t left[3] = {token, head, dim};
	uint64_t place = 0;

	for (uint32_t i = 0; i < part->digits_count; i++) {
		const struct ssv_digit *d = &part->digits[i];

		place += (uint64_t)d->stride * (left[d->axis] % d->extent);
		left[d->axis] /= d->extent;
	}
	return layout->tensors[tensor].offset + layout->tensors[tensor].block_stride * block +
	       place * element_bytes(layout->dtype);
}
