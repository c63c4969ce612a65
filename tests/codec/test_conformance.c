/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_conformance.c - what every back end must do, over tiers, dtypes and shapes.
 *
 * A new back end is in this suite by being in the table of lossless.c.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "codec/float.h"
#include "codec/kernels.h"
#include "codec/lossless.h"
#include "fixture.h"

static const struct {
	uint32_t heads, dim, tokens;
} shapes[] = {
    {1, 64, 1},   {1, 64, 256}, {2, 64, 255}, {3, 80, 31},   {1, 96, 17},   {5, 96, 64},
    {2, 128, 33}, {8, 128, 16}, {1, 256, 40}, {1, 576, 20},  {1, 1, 9},     {3, 7, 50},
    {64, 128, 5}, {4, 64, 256}, {1, 130, 2},  {16, 256, 19}, {32, 256, 20}, {1, 33, 256},
};

static void check_lossless(struct test_codec *codec, const struct chunk_shape *shape,
			   uint8_t backend, uint32_t content, uint64_t seed)
{
	struct encode_options options = {.tier = SSV_TIER_LOSSLESS, .codec = backend};
	uint8_t *in = test_elements(shape, content, seed);
	uint8_t *out = calloc(1, shape_kv_bytes(shape));
	struct test_chunk chunk = test_encode(codec, shape, &options, in);
	enum container_fault fault;
	struct container container;

	test_open(&chunk, &container);
	assert_int_equal(test_decode(codec, &container, out, &fault), 0);
	assert_memory_equal(in, out, shape_kv_bytes(shape));
	free(chunk.bytes);
	free(out);
	free(in);
}

static void lossless_is_bit_exact(void **state)
{
	uint64_t seed = test_seed();

	for (uint32_t b = 0; lossless_at(b); b++) {
		for (uint32_t i = 0; i < ARRAY_COUNT(shapes) * 5; i++) {
			uint32_t k = i / 5;
			struct chunk_shape shape = test_shape((uint8_t)(i % 5), shapes[k].heads,
							      shapes[k].dim, shapes[k].tokens);

			check_lossless(*state, &shape, lossless_at(b)->codec, i % CONTENTS_COUNT,
				       seed + i);
		}
	}
}

/* Half a step and half of what integers are rounded from (FRACTIONS, an inverse of 16 bits), for V
 * 3/8 of half a step more, the element's own rounding, and nothing for what is not finite. */
static uint32_t coded_entries[5]; /* by dtype: a test of stored entries alone proves little */

static void assert_within_step(const struct container *container, uint32_t index, const uint8_t *in,
			       const uint8_t *out)
{
	static const float rounding[] = {0x1p-8f, 0x1p-11f, 0x1p-23f, 0x1p-4f, 0x1p-3f};
	static const float least[] = {0, 0x1p-24f, 0, 0x1p-9f, 0x1p-16f};
	const struct chunk_shape *shape = &container->header.shape;
	struct container_entry entry;
	struct tensor_meta meta;
	uint32_t channels, dim;
	float half;

	container_entry(container, index, &entry);
	container_tensor_meta(container, &entry, 0, &meta);
	channels = part_channels(&shape->parts[entry.part]);
	dim = shape->parts[entry.part].dim;
	coded_entries[shape->dtype] += meta.steps != NULL;
	half = shape->parts[entry.part].role == SSV_ROLE_V ? .6875f : .5f;
	for (uint32_t i = 0; i < channels * shape->tokens; i++) {
		float x = element_value(shape->dtype, in, i),
		      y = element_value(shape->dtype, out, i);
		int exact = i / channels < container->header.verbatim_tokens || !meta.steps ||
			    !f32_is_finite(x);
		float step, limit;

		if (exact) {
			uint32_t bytes = dtype_bytes(shape->dtype);

			assert_memory_equal(in + i * bytes, out + i * bytes, bytes);
			continue;
		}
		step = f32_from_fp16(load_le16(meta.steps + 2 * (i % channels / dim)));
		limit = step * (half + .501f / FRACTIONS) + fabsf(x) * 0x1p-15f +
			fabsf(x) * rounding[shape->dtype] + step * rounding[shape->dtype] +
			least[shape->dtype];
		if (!(fabsf(x - y) <= limit))
			fail_msg("element %u: %g became %g, step %g", i, (double)x, (double)y,
				 (double)step);
	}
}

static void check_lossy(struct test_codec *codec, const struct chunk_shape *shape,
			const struct encode_options *options, uint32_t content, uint64_t seed)
{
	uint8_t *in = test_elements(shape, content, seed);
	uint8_t *out = calloc(1, shape_kv_bytes(shape)), *at = out;
	struct test_chunk chunk = test_encode(codec, shape, options, in);
	struct container container;
	enum container_fault fault;

	test_open(&chunk, &container);
	assert_int_equal(test_decode(codec, &container, out, &fault), 0);
	for (uint32_t e = 0; e < container.header.segments_count; e++) {
		assert_within_step(&container, e, in + (at - out), at);
		at += shape_tensor_bytes(shape, e % 2);
	}
	free(chunk.bytes);
	free(out);
	free(in);
}

static void lossy_stays_within_its_step(void **state)
{
	uint64_t seed = test_seed();

	for (uint32_t b = 0; lossless_at(b); b++) {
		memset(coded_entries, 0, sizeof(coded_entries));
		for (uint32_t i = 0; i < ARRAY_COUNT(shapes) * 5 * 4; i++) {
			uint32_t k = i / 5 % ARRAY_COUNT(shapes);
			struct chunk_shape shape = test_shape((uint8_t)(i % 5), shapes[k].heads,
							      shapes[k].dim, shapes[k].tokens);
			struct encode_options options = {.tier = (uint8_t)(SSV_TIER_HIGH + i % 4),
							 .codec = lossless_at(b)->codec,
							 .verbatim_tokens = (uint8_t)(i % 3 * 2)};

			check_lossy(*state, &shape, &options, i / 3 % CONTENTS_COUNT, seed + i);
		}
		for (uint32_t d = 0; lossless_at(b)->has_classes && d < 5; d++)
			assert_true(coded_entries[d] > 100);
	}
}

/* 2^21 elements a tensor: the longest planes, and exception indices of 21 bits. */
static void the_widest_chunk_of_256_tokens_keeps_every_rule(void **state)
{
	struct chunk_shape shape =
	    test_shape(SSV_DTYPE_BF16, SSV_CHANNELS_MAX / 128, 128, SSV_CHUNK_TOKENS);
	uint64_t seed = test_seed();

	for (uint32_t b = 0; lossless_at(b); b++) {
		struct encode_options options = {.tier = SSV_TIER_STANDARD,
						 .codec = lossless_at(b)->codec,
						 .verbatim_tokens = 4};

		check_lossless(*state, &shape, options.codec, b % CONTENTS_COUNT, seed + b);
		check_lossy(*state, &shape, &options, b % CONTENTS_COUNT, seed + b);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(lossless_is_bit_exact),
	    cmocka_unit_test(lossy_stays_within_its_step),
	    cmocka_unit_test(the_widest_chunk_of_256_tokens_keeps_every_rule),
	};

	return cmocka_run_group_tests(tests, test_scratch_open, test_scratch_close);
}
