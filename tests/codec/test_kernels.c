/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_kernels.c - which tables of kernels this machine offers, and how one is chosen.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "codec/kernels.h"

static void test_the_last_table_is_scalar_and_each_is_found_by_name(void **state)
{
	const struct kernels *table, *last = NULL;

	(void)state;
	for (uint32_t i = 0; (table = kernels_at(i)); i++) {
		assert_ptr_equal(kernels_find(table->name), table);
		last = table;
	}
	assert_ptr_equal(last, &kernels_scalar);
	assert_null(kernels_find("avx1024"));
#if defined(__x86_64__)
	assert_null(kernels_find("neon"));
#elif defined(__aarch64__)
	assert_null(kernels_find("avx2"));
#endif
}

static void test_every_table_is_whole(void **state)
{
	const struct kernels *table;

	(void)state;
	for (uint32_t i = 0; (table = kernels_at(i)); i++) {
		const void *const *entry = (const void *const *)table;

		for (uint32_t k = 0; k < sizeof(*table) / sizeof(*entry); k++)
			assert_non_null(entry[k]);
	}
}

static void test_the_first_is_used_unless_told(void **state)
{
	(void)state;
	unsetenv("SHADOWSERVE_SIMD");
	kernels_use(NULL);
	assert_ptr_equal(kernels_get(), kernels_at(0));
	kernels_use(&kernels_scalar);
	assert_ptr_equal(kernels_get(), &kernels_scalar);
	kernels_use(NULL);
	assert_ptr_equal(kernels_get(), kernels_at(0));
}

static void test_the_environment_chooses(void **state)
{
	const struct kernels *table;
	char error[128];

	(void)state;
	for (uint32_t i = 0; (table = kernels_at(i)); i++) {
		assert_int_equal(setenv("SHADOWSERVE_SIMD", table->name, 1), 0);
		kernels_use(NULL);
		assert_int_equal(kernels_check(error, sizeof(error)), 0);
		assert_ptr_equal(kernels_get(), table);
	}
	unsetenv("SHADOWSERVE_SIMD");
	kernels_use(NULL);
	assert_int_equal(kernels_check(error, sizeof(error)), 0);
}

static void test_a_wrong_environment_is_named(void **state)
{
	char error[128];

	(void)state;
	assert_int_equal(setenv("SHADOWSERVE_SIMD", "sse9", 1), 0);
	kernels_use(NULL);
	assert_int_equal(kernels_check(error, sizeof(error)), -EINVAL);
	assert_non_null(strstr(error, "SHADOWSERVE_SIMD: \"sse9\" is no SIMD level"));
	assert_non_null(strstr(error, "scalar"));
	assert_ptr_equal(kernels_get(), kernels_at(0));
#if defined(__x86_64__)
	assert_int_equal(setenv("SHADOWSERVE_SIMD", "neon", 1), 0);
#else
	assert_int_equal(setenv("SHADOWSERVE_SIMD", "avx2", 1), 0);
#endif
	assert_int_equal(kernels_check(error, sizeof(error)), -EINVAL);
	assert_non_null(strstr(error, "does not run here"));
	unsetenv("SHADOWSERVE_SIMD");
	kernels_use(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_the_last_table_is_scalar_and_each_is_found_by_name),
	    cmocka_unit_test(test_every_table_is_whole),
	    cmocka_unit_test(test_the_first_is_used_unless_told),
	    cmocka_unit_test(test_the_environment_chooses),
	    cmocka_unit_test(test_a_wrong_environment_is_named),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
