/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_conformance.c - what every back end must do, over tiers, dtypes and shapes.
 *
 * A new back end is in this suite by being in the table of lossless.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "codec/lossless.h"
#include "fixture.h"

static const struct {
	uint32_t heads, dim, tokens;
} shapes[] = {
    {1, 64, 1},   {1, 64, 256}, {2, 64, 255}, {3, 80, 31},   {1, 96, 17},   {5, 96, 64},
    {2, 128, 33}, {8, 128, 16}, {1, 256, 40}, {1, 576, 20},  {1, 1, 9},     {3, 7, 50},
    {64, 128, 5}, {4, 64, 256}, {1, 130, 2},  {16, 256, 19}, {32, 256, 20}, {1, 33, 256},
};

static int scratch_open(void **state)
{
	static struct test_codec codec;

	test_codec_open(&codec);
	*state = &codec;
	return 0;
}

static int scratch_close(void **state)
{
	test_codec_close(*state);
	return 0;
}

static void lossless_is_bit_exact(void **state)
{
	uint64_t seed = test_seed();

	for (uint32_t b = 0; lossless_at(b); b++) {
		for (uint32_t i = 0; i < ARRAY_COUNT(shapes) * 5; i++) {
			uint32_t k = i / 5;
			struct chunk_shape shape = test_shape((uint8_t)(i % 5), shapes[k].heads,
							      shapes[k].dim, shapes[k].tokens);
			struct encode_options options = {.tier = SSV_TIER_LOSSLESS,
							 .codec = lossless_at(b)->codec};
			uint8_t *in = test_elements(&shape, i % CONTENTS_COUNT, seed + i);
			uint8_t *out = calloc(1, shape_kv_bytes(&shape));
			struct test_chunk chunk = test_encode(*state, &shape, &options, in);
			enum container_fault fault;
			struct container container;

			test_open(&chunk, &container);
			assert_int_equal(test_decode(*state, &container, out, &fault), 0);
			assert_memory_equal(in, out, shape_kv_bytes(&shape));
			free(chunk.bytes);
			free(out);
			free(in);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(lossless_is_bit_exact),
	};

	return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
