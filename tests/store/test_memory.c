/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_memory.c - what memory: has to itself: its table of keys grows while it is used.
 *
 * The conformance suite (test_store.c) covers the rest; it never holds so many values.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "harness.h"

#define VALUES      70000u /* the table doubles three times */
#define VALUE_BYTES 8u

/* Is value n there, unless it was deleted? Every seventh was. */
static void check(struct store *store, uint64_t n)
{
	uint64_t bytes;

	assert_int_equal(harness_exists(store, n, &bytes), n % 7 ? 0 : -ENOENT);
}

static void growing_loses_nothing(void **state)
{
	struct store *store = harness_open("memory:grows");
	uint64_t seed = harness_seed(1);

	(void)state;
	for (uint64_t n = 0; n < VALUES; n++) {
		assert_int_equal(harness_put(store, n, VALUE_BYTES), 0);
		if (n % 7 == 0)
			assert_int_equal(harness_delete(store, n), 0);
		check(store, harness_random(&seed) % (n + 1)); /* while buckets are moved */
	}
	for (uint64_t n = 0; n < VALUES; n++)
		check(store, n);
	assert_int_equal(harness_get(store, VALUES - 1, VALUE_BYTES), 0);
	assert_int_equal(harness_stats(store).bytes_used,
			 (VALUES - (VALUES + 6) / 7) * VALUE_BYTES);
	store_close(store);
}

static void growing_keeps_the_order_of_use(void **state)
{
	/* room for half of them: the older half is evicted, whatever bucket it is in */
	struct store *store = harness_open("memory:limited?bytes=280000");
	uint64_t bytes;

	(void)state;
	for (uint64_t n = 0; n < VALUES; n++)
		assert_int_equal(harness_put(store, n, VALUE_BYTES), 0);
	for (uint64_t n = 0; n < VALUES; n++)
		assert_int_equal(harness_exists(store, n, &bytes), n < VALUES / 2 ? -ENOENT : 0);
	store_close(store);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(growing_loses_nothing),
	    cmocka_unit_test(growing_keeps_the_order_of_use),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
