/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_real.c - KV that a model computed (make_kv.py: docs-6m, two layers, one chunk of its own
 * documentation): what each tier promises in size and error, with every back end.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "codec/lossless.h"
#include "fixture.h"

#define DUMP_HEADER_BYTES 36u

static const char *path;

/* Floors of the ratio, ceilings of the relative error (K, V). */
static const struct {
	uint8_t tier;
	double ratio, error_k, error_v;
} promises[] = {
    {SSV_TIER_LOSSLESS, 1.45, 0, 0},     {SSV_TIER_HIGH, 2.9, .025, .039},
    {SSV_TIER_STANDARD, 3.9, .05, .112}, {SSV_TIER_COMPACT, 5.2, .10, .225},
    {SSV_TIER_TINY, 7.5, .20, .45},
};

static uint8_t *read_elements(struct chunk_shape *ret_shape)
{
	FILE *file = fopen(path, "rb");
	uint8_t head[DUMP_HEADER_BYTES], *elements;

	if (!file)
		fail_msg("cannot open %s", path);
	assert_int_equal(fread(head, 1, sizeof(head), file), sizeof(head));
	assert_memory_equal(head, "SSVKVD01", 8);
	*ret_shape = test_shape((uint8_t)load_le32(head + 8), load_le32(head + 24),
				load_le32(head + 28), load_le32(head + 20));
	assert_int_equal(load_le32(head + 12), ret_shape->layers_count);
	elements = malloc(shape_kv_bytes(ret_shape));
	assert_int_equal(fread(elements, 1, shape_kv_bytes(ret_shape), file),
			 shape_kv_bytes(ret_shape));
	fclose(file);
	return elements;
}

/* Relative L2 error of a part over all layers, from the elements themselves. */
static double part_error(const struct chunk_shape *shape, uint32_t part, const uint8_t *in,
			 const uint8_t *out)
{
	uint64_t bytes = shape_tensor_bytes(shape, part);
	double error = 0, norm = 0;

	for (uint32_t layer = 0; layer < shape->layers_count; layer++) {
		uint64_t at = (layer * 2 + part) * bytes;

		for (uint64_t i = 0; i < bytes / dtype_bytes(shape->dtype); i++) {
			double x = element_value(shape->dtype, in + at, i);
			double off = element_value(shape->dtype, out + at, i) - x;

			error += off * off;
			norm += x * x;
		}
	}
	return sqrt(error / norm);
}

static void check(struct test_codec *codec, uint32_t k, uint8_t backend)
{
	struct encode_options options = {.tier = promises[k].tier, .codec = backend};
	struct chunk_shape shape;
	uint8_t *in = read_elements(&shape), *out = calloc(1, shape_kv_bytes(&shape));
	struct test_chunk chunk = test_encode(codec, &shape, &options, in);
	struct container container;
	enum container_fault fault;

	test_open(&chunk, &container);
	assert_int_equal(test_decode(codec, &container, out, &fault), 0);
	assert_true((double)shape_kv_bytes(&shape) >=
		    promises[k].ratio * (double)chunk.bytes_count);
	for (uint32_t part = 0; part < 2; part++) {
		double error = part_error(&shape, part, in, out);
		double ceiling = part ? promises[k].error_v : promises[k].error_k;

		assert_true(error <= ceiling);
		/* the header says the same; the encoder leaves exceptions out of it */
		assert_true(fabs(error - (double)container.header.error[part]) <=
			    1e-6 + .02 * error);
	}
	if (promises[k].tier == SSV_TIER_LOSSLESS)
		assert_memory_equal(in, out, shape_kv_bytes(&shape));
	free(chunk.bytes);
	free(in);
	free(out);
}

static void tiers_keep_their_promises(void **state)
{
	for (uint32_t k = 0; k < ARRAY_COUNT(promises); k++)
		for (uint32_t b = 0; lossless_at(b); b++)
			if (lossless_at(b)->has_classes)
				check(*state, k, lossless_at(b)->codec);
}

/* A limit that the tier cannot keep is kept by a finer one, or by storing. */
static void error_limits_hold(void **state)
{
	static const float limits[] = {.3f, .15f, .05f, .01f};
	struct chunk_shape shape;
	uint8_t *in = read_elements(&shape);
	uint64_t last = 0;

	for (uint32_t i = 0; i < ARRAY_COUNT(limits); i++) {
		struct encode_options options = {.tier = SSV_TIER_TINY,
						 .codec = SSV_CODEC_R16,
						 .error_max = {limits[i], limits[i]}};
		struct test_chunk chunk = test_encode(*state, &shape, &options, in);
		struct container container;

		test_open(&chunk, &container);
		assert_true(container.header.error[0] <= limits[i]);
		assert_true(container.header.error[1] <= limits[i]);
		assert_true(chunk.bytes_count > last);
		last = chunk.bytes_count;
		free(chunk.bytes);
	}
	free(in);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(tiers_keep_their_promises),
	    cmocka_unit_test(error_limits_hold),
	};

	if (argc != 2) {
		fprintf(stderr, "usage: test_real DUMP\n");
		return 2;
	}
	path = argv[1];
	return cmocka_run_group_tests(tests, test_scratch_open, test_scratch_close);
}
