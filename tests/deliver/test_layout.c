/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_layout.c - layouts from outside: each mistake is refused with its number, and the overlap
 * check agrees with painting every element of thousands of random small layouts.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "deliver/layout.h"
#include "deliver/overlap.h"

#define REGION 4096u

static uint64_t next_random(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

/* Two layers, K and V of 2 heads x 4 dims, blocks of 8 tokens, bf16: [block][layer][part] NHD. */
static struct ssv_tensor tensors[4];

static struct ssv_layout good_layout(void)
{
	struct ssv_layout layout = {
	    .struct_size = sizeof(layout),
	    .dtype = SSV_DTYPE_BF16,
	    .parts_count = 2,
	    .layers_count = 2,
	    .layers_total = 2,
	    .ranks_count = 1,
	    .block_tokens = 8,
	    .blocks_count = 4,
	    .tensors_count = 4,
	    .tensors = tensors,
	};

	for (uint32_t i = 0; i < 2; i++) {
		struct ssv_part *part = &layout.parts[i];

		part->role = (uint8_t)(SSV_ROLE_K + i);
		part->heads = 2;
		part->dim = 4;
		part->digits_count = 3;
		part->digits[0] =
		    (struct ssv_digit){.axis = SSV_AXIS_TOKEN, .extent = 8, .stride = 8};
		part->digits[1] =
		    (struct ssv_digit){.axis = SSV_AXIS_HEAD, .extent = 2, .stride = 4};
		part->digits[2] =
		    (struct ssv_digit){.axis = SSV_AXIS_DIM, .extent = 4, .stride = 1};
	}
	for (uint32_t i = 0; i < 4; i++)
		tensors[i] = (struct ssv_tensor){.layer = (uint16_t)(i / 2),
						 .part = (uint16_t)(i % 2),
						 .offset = i * 128,
						 .block_stride = 512};
	return layout;
}

static void check(const struct ssv_layout *source, uint64_t bytes, int code, const char *says)
{
	struct layout *layout = NULL;
	char error[SSV_ERROR_TEXT_MAX] = "";
	int err = layout_create(source, bytes, &layout, error);

	if (err != code || !strstr(error, says))
		fail_msg("expected %d \"%s\", got %d \"%s\"", code, says, err, error);
	layout_destroy(layout);
}

static void good_layout_is_taken_and_its_tables_place_every_element(void **state)
{
	struct ssv_layout source = good_layout();
	struct layout *layout = NULL;
	char error[SSV_ERROR_TEXT_MAX] = "";

	(void)state;
	assert_int_equal(layout_create(&source, 2048, &layout, error), 0);
	assert_int_equal(layout->parts[0].place.token[3], 48);
	assert_int_equal(layout->parts[0].place.channel[5], 10);
	assert_int_equal(layout->parts[0].place.run_channels, 8);
	assert_int_equal(layout->parts[0].place.block_bytes, 128);
	assert_int_equal(layout->parts[0].runs_count, 1);
	assert_int_equal(layout->parts[0].runs[0].bytes, 128);
	assert_int_equal(layout_block_offset(layout, 3, 2), 3 * 128 + 2 * 512);
	layout_destroy(layout);
}

static void each_mistake_is_refused_with_its_number(void **state)
{
	struct ssv_layout l;

	(void)state;
	l = good_layout();
	check(&l, 2047, -ERANGE, "pass the region's 2047 bytes");
	l.block_tokens = 24;
	check(&l, REGION, -EINVAL, "block_tokens 24 does not divide 256");
	l = good_layout();
	l.blocks_count = 0;
	check(&l, REGION, -EINVAL, "blocks_count is 0");
	l = good_layout();
	l.tensors_count = 3;
	check(&l, REGION, -EINVAL, "3 tensors, expected 2 layers x 2 parts = 4");
	l = good_layout();
	l.parts[1].digits[0].extent = 4;
	check(&l, REGION, -EINVAL, "part 1: the token digits multiply to 4, expected 8");
	l = good_layout();
	l.parts[0].digits[2].stride = 0;
	check(&l, REGION, -EINVAL, "part 0 digit 2: stride 0");
	l = good_layout();
	l.parts[0].digits[2].axis = 3;
	check(&l, REGION, -EINVAL, "axis 3");
	l = good_layout();
	l.parts[0].digits_count = 25;
	check(&l, REGION, -E2BIG, "25 digits");
	l = good_layout();
	l.parts[0].digits[0].stride = INT64_MAX;
	check(&l, REGION, -E2BIG, "span 4 GiB");
	l = good_layout();
	l.parts[0].dim = 0;
	check(&l, REGION, -EINVAL, "channels");
	l = good_layout();
	l.dtype = 9;
	check(&l, REGION, -EINVAL, "dtype");
	l = good_layout();
	tensors[2].offset = 257;
	check(&l, REGION, -EINVAL, "tensor 2: offset 257");
	l = good_layout();
	tensors[1].block_stride = UINT64_MAX - 1;
	check(&l, REGION, -ERANGE, "tensor 1");
	l = good_layout();
	tensors[3].part = 0;
	check(&l, REGION, -EINVAL, "tensor 3: layer 1 part 0 comes twice");
	l = good_layout();
	tensors[3].layer = 2;
	check(&l, REGION, -EINVAL, "tensor 3: layer 2");
	l = good_layout();
	tensors[3].offset = 256 + 126;
	check(&l, REGION, -EINVAL,
	      "elements overlap: layer 1 part 0 at offset 256 and layer 1 part 1");
	l = good_layout();
	tensors[0].block_stride = 126;
	check(&l, REGION, -EINVAL, "elements overlap: layer 0 part 0");
}

/* The truth about a layout of up to REGION bytes: paint each element. */
static int paint_overlaps(const struct ssv_layout *l)
{
	uint8_t painted[REGION] = {0};

	for (uint32_t i = 0; i < l->tensors_count; i++) {
		const struct ssv_part *part = &l->parts[l->tensors[i].part];
		uint32_t elements = l->block_tokens * part->heads * part->dim;

		for (uint32_t e = 0; e < elements * l->blocks_count; e++) {
			uint64_t at =
			    l->tensors[i].offset + l->tensors[i].block_stride * (e / elements);
			uint32_t rest = e % elements;

			for (uint32_t d = 0; d < part->digits_count; d++) {
				at += (uint64_t)part->digits[d].stride * 2 *
				      (rest % part->digits[d].extent);
				rest /= part->digits[d].extent;
			}
			if (painted[at]++)
				return 1;
		}
	}
	return 0;
}

/* One number of a sound layout changed: often an overlap, sometimes only a hole. */
static void disturb(struct ssv_layout *l, uint64_t *seed)
{
	struct ssv_tensor *tensor = &tensors[next_random(seed) % 4];
	struct ssv_digit *digit = &l->parts[next_random(seed) % 2].digits[next_random(seed) % 5];

	switch (next_random(seed) % 4) {
	case 0:
		digit->stride = 1ll << next_random(seed) % 10;
		break;
	case 1:
		digit->stride = 1 + (int64_t)(next_random(seed) % 160);
		break;
	case 2:
		tensor->offset = next_random(seed) % 256 * 2;
		break;
	default:
		tensor->block_stride = next_random(seed) % 300 * 2;
		break;
	}
}

/*
 * Ten positions of a mixed-radix number: 32 elements a tensor and block (five binary digits), four
 * blocks (two), four tensors (two, as offsets), one to spare. Any order of them packs densely.
 */
static struct ssv_layout random_layout(uint64_t *seed)
{
	const uint8_t axes[5] = {SSV_AXIS_TOKEN, SSV_AXIS_TOKEN, SSV_AXIS_HEAD, SSV_AXIS_DIM,
				 SSV_AXIS_DIM};
	struct ssv_layout l = good_layout();
	uint32_t order[8]; /* 0..4 element digits, 5 blocks (two positions), 6, 7 tensors */
	uint64_t stride[8], next = 1;

	for (uint32_t i = 0; i < 8; i++)
		order[i] = i;
	for (uint32_t i = 7; i > 0; i--) {
		uint32_t k = (uint32_t)(next_random(seed) % (i + 1)), kept = order[i];

		order[i] = order[k];
		order[k] = kept;
	}
	for (uint32_t i = 0; i < 8; i++) {
		stride[order[i]] = next;
		next *= order[i] == 5 ? 4 : 2;
	}
	l.block_tokens = 4;
	for (uint32_t i = 0; i < 2; i++) {
		l.parts[i].digits_count = 5;
		for (uint32_t d = 0; d < 5; d++)
			l.parts[i].digits[d] = (struct ssv_digit){
			    .axis = axes[d], .extent = 2, .stride = (int64_t)stride[d]};
	}
	for (uint32_t i = 0; i < 4; i++) {
		tensors[i].offset = 2 * (i / 2 * stride[6] + i % 2 * stride[7]);
		tensors[i].block_stride = 2 * stride[5];
	}
	while (next_random(seed) % 2)
		disturb(&l, seed);
	return l;
}

static void overlap_check_agrees_with_painting(void **state)
{
	const char *text = getenv("SSV_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : 11;
	uint32_t overlaps = 0, sound = 0;

	(void)state;
	for (int i = 0; i < 8000; i++) {
		uint64_t this_seed = seed;
		struct ssv_layout source = random_layout(&seed);
		struct layout *layout = NULL;
		char error[SSV_ERROR_TEXT_MAX] = "";
		int err = layout_create(&source, REGION, &layout, error);

		if (err == -ERANGE)
			continue;
		if ((err != 0) != paint_overlaps(&source))
			fail_msg("SSV_SEED=%llu: layout_create says %d \"%s\"",
				 (unsigned long long)this_seed, err, error);
		overlaps += err != 0;
		sound += err == 0;
		layout_destroy(layout);
	}
	print_message("%u overlap, %u do not\n", overlaps, sound);
	assert_true(overlaps > 1000 && sound > 1000);
}

static void realistic_sizes_are_checked_without_enumeration(void **state)
{
	static struct ssv_tensor many[1024];
	struct ssv_layout l = good_layout();
	const uint64_t one = 16 * 1024 * 2; /* a tensor in a block */
	struct layout *layout = NULL;
	char error[SSV_ERROR_TEXT_MAX] = "";

	(void)state;
	l.layers_count = l.layers_total = 512;
	l.tensors_count = 1024;
	l.tensors = many;
	l.block_tokens = 16;
	l.blocks_count = 1000000;
	for (uint32_t i = 0; i < 2; i++) {
		l.parts[i].heads = 8;
		l.parts[i].dim = 128;
		l.parts[i].digits[0] =
		    (struct ssv_digit){.axis = SSV_AXIS_TOKEN, .extent = 16, .stride = 1024};
		l.parts[i].digits[1] =
		    (struct ssv_digit){.axis = SSV_AXIS_HEAD, .extent = 8, .stride = 128};
		l.parts[i].digits[2] =
		    (struct ssv_digit){.axis = SSV_AXIS_DIM, .extent = 128, .stride = 1};
	}
	for (uint32_t i = 0; i < 1024; i++)
		many[i] = (struct ssv_tensor){.layer = (uint16_t)(i / 2),
					      .part = (uint16_t)(i % 2),
					      .offset = i * one,
					      .block_stride = 1024 * one};
	assert_int_equal(layout_create(&l, 1024 * one * 1000000, &layout, error), 0);
	layout_destroy(layout);
	many[700].offset -= 2;
	check(&l, 1024 * one * 1000000, -EINVAL, "elements overlap: layer 349 part 1");
}

/* Two tensors whose elements interleave without an overlap, `steps` times over: nothing but
 * enumerating them, 65,000 or so a step, shows it. */
static int check_ladders(uint32_t steps)
{
	const uint32_t extent = 181;
	const uint64_t rung = 4 * extent * extent, step = 16 * extent * rung;
	struct overlap_tensor ladders[2];
	uint32_t a, b;

	memset(ladders, 0, sizeof(ladders));
	for (uint32_t i = 0; i < 2; i++) {
		struct overlap_digit *digits = ladders[i].digits;

		/* Other strides, so that the steps are not compared as one. */
		digits[0] = (struct overlap_digit){step + i * 64, steps};
		digits[1] = (struct overlap_digit){rung + 4 * extent, extent};
		digits[2] = (struct overlap_digit){rung + 4, extent};
		ladders[i].digits_count = 3;
		ladders[i].offset = 2 * i;
		overlap_prepare(&ladders[i], 2);
	}
	return overlap_check(ladders, 2, &a, &b);
}

static void irregular_layouts_are_enumerated_up_to_a_limit(void **state)
{
	(void)state;
	assert_int_equal(check_ladders(2), OVERLAP_NONE);
	assert_int_equal(check_ladders(16), OVERLAP_UNKNOWN);
	assert_int_equal(check_ladders(1u << 20), OVERLAP_UNKNOWN);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(good_layout_is_taken_and_its_tables_place_every_element),
	    cmocka_unit_test(each_mistake_is_refused_with_its_number),
	    cmocka_unit_test(overlap_check_agrees_with_painting),
	    cmocka_unit_test(realistic_sizes_are_checked_without_enumeration),
	    cmocka_unit_test(irregular_layouts_are_enumerated_up_to_a_limit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
