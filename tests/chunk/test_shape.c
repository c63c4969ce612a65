/* SPDX-License-Identifier: Apache-2.0 */
/* test_shape.c - sizes of shapes, and which are refused with which words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "sample.h"

static void dtypes_have_names_and_sizes(void **state)
{
	(void)state;
	assert_int_equal(dtype_bytes(SSV_DTYPE_BF16), 2);
	assert_int_equal(dtype_bytes(SSV_DTYPE_FP16), 2);
	assert_int_equal(dtype_bytes(SSV_DTYPE_FP32), 4);
	assert_int_equal(dtype_bytes(SSV_DTYPE_E4M3), 1);
	assert_int_equal(dtype_bytes(SSV_DTYPE_E5M2), 1);
	assert_int_equal(dtype_bytes(5), 0);
	assert_string_equal(dtype_name(SSV_DTYPE_E4M3), "e4m3");
	assert_string_equal(dtype_name(5), "unknown");
}

static void llama_8b_has_the_known_sizes(void **state)
{
	struct chunk_shape shape = sample_shape(32, 8, 128, 256);

	(void)state;
	assert_int_equal(shape_check(&shape, NULL), 0);
	assert_int_equal(shape_tensors(&shape), 64);
	assert_int_equal(shape_tensor_bytes(&shape, 1), 512 * KIB);
	assert_int_equal(shape_kv_bytes(&shape), 32 * MIB);
	assert_int_equal(shape_entries_max(&shape), 64 * 16);
	assert_true(shape_container_bytes_max(&shape) > 32 * MIB);
	assert_true(shape_container_bytes_max(&shape) < 33 * MIB);
}

static void wrong_shapes_are_refused_with_words(void **state)
{
	static const struct {
		uint16_t layers, heads, dim, tokens;
		int err;
		const char *word;
	} cases[] = {
	    {0, 8, 64, 256, -EINVAL, "layers"},   {1, 0, 64, 256, -EINVAL, "heads"},
	    {1, 8, 0, 256, -EINVAL, "channels"},  {1, 8, 64, 0, -EINVAL, "tokens"},
	    {1, 8, 64, 257, -EINVAL, "tokens"},   {1, 129, 64, 256, -EINVAL, "channels"},
	    {1, 1025, 1, 256, -EINVAL, "heads"},  {513, 1, 64, 256, -E2BIG, "tensors"},
	    {512, 128, 64, 256, -E2BIG, "4 GiB"}, {512, 1, 64, 256, 0, NULL},
	    {1, 128, 64, 256, 0, NULL},           {1, 1, 1, 1, 0, NULL},
	};

	(void)state;
	for (uint32_t i = 0; i < ARRAY_COUNT(cases); i++) {
		struct chunk_shape shape =
		    sample_shape(cases[i].layers, cases[i].heads, cases[i].dim, cases[i].tokens);
		const char *why = "unset";

		assert_int_equal(shape_check(&shape, &why), cases[i].err);
		if (cases[i].word)
			assert_non_null(strstr(why, cases[i].word));
		else
			assert_null(why);
	}
}

static void wrong_fields_are_refused(void **state)
{
	const struct chunk_shape sound = sample_shape(2, 8, 64, 256);
	struct chunk_shape shape;

	(void)state;
	shape = sound, shape.dtype = 5;
	assert_int_equal(shape_check(&shape, NULL), -EINVAL);
	shape = sound, shape.parts_count = 0;
	assert_int_equal(shape_check(&shape, NULL), -EINVAL);
	shape = sound, shape.parts_count = 5;
	assert_int_equal(shape_check(&shape, NULL), -EINVAL);
	shape = sound, shape.layer0 = 1;
	assert_int_equal(shape_check(&shape, NULL), -EINVAL);
	shape = sound, shape.rank = 1;
	assert_int_equal(shape_check(&shape, NULL), -EINVAL);
	shape = sound, shape.ranks_count = 65;
	assert_int_equal(shape_check(&shape, NULL), -EINVAL);
	shape = sound, shape.ranks_count = 64, shape.rank = 63;
	assert_int_equal(shape_check(&shape, NULL), 0);
	shape = sound, shape.parts[1].role = 4;
	assert_int_equal(shape_check(&shape, NULL), -EINVAL);
	shape = sound, shape.parts[1].role = 0;
	assert_int_equal(shape_check(&shape, NULL), -EINVAL);
	shape = sound, shape.parts[0].head0 = 65530;
	assert_int_equal(shape_check(&shape, NULL), -EINVAL);
}

static void equality_sees_every_field(void **state)
{
	const struct chunk_shape a = sample_shape(2, 8, 64, 256);
	struct chunk_shape b = a;

	(void)state;
	assert_true(shape_equal(&a, &b));
	b.parts[3].dim = 9; /* beyond parts_count: no part of the shape */
	assert_true(shape_equal(&a, &b));
	b = a, b.tokens--;
	assert_false(shape_equal(&a, &b));
	b = a, b.dtype++;
	assert_false(shape_equal(&a, &b));
	b = a, b.parts[1].head0++;
	assert_false(shape_equal(&a, &b));
	b = a, b.parts[0].role = SSV_ROLE_V;
	assert_false(shape_equal(&a, &b));
	b = a, b.ranks_count++;
	assert_false(shape_equal(&a, &b));
	b = a, b.layers_total++;
	assert_false(shape_equal(&a, &b));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(dtypes_have_names_and_sizes),
	    cmocka_unit_test(llama_8b_has_the_known_sizes),
	    cmocka_unit_test(wrong_shapes_are_refused_with_words),
	    cmocka_unit_test(wrong_fields_are_refused),
	    cmocka_unit_test(equality_sees_every_field),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
