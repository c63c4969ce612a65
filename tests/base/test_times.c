/* SPDX-License-Identifier: Apache-2.0 */
/* test_times.c - buckets of times, quantiles, what a reset forgets; and the tally of a thread. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/tally.h"
#include "base/times.h"

static void buckets_rise_with_time_and_cover_everything(void **state)
{
	uint32_t last = 0;

	(void)state;
	assert_int_equal(times_bucket(0), 0);
	assert_int_equal(times_bucket(127), 0);
	assert_int_equal(times_bucket(128), 1);
	assert_int_equal(times_bucket(UINT64_MAX), TIMES_BUCKETS - 1);
	for (uint64_t ns = 1; ns < (uint64_t)1 << 40; ns += ns / 16 + 1) {
		uint32_t bucket = times_bucket(ns);

		assert_true(bucket == last || bucket == last + 1);
		last = bucket;
	}
	assert_int_equal(last, TIMES_BUCKETS - 1);
}

static void quantiles_are_right_to_an_eighth(void **state)
{
	static struct times times;
	struct times_copy copy = {0};

	(void)state;
	assert_int_equal(times_quantile(&copy, 0.5), 0);
	for (uint64_t i = 1; i <= 10000; i++)
		times_add(&times, i * 1000);
	times_read(&times, &copy);
	assert_int_equal(copy.count, 10000);
	assert_int_equal(copy.sum_ns, (uint64_t)10000 * 10001 / 2 * 1000);
	assert_int_equal(copy.longest_ns, 10000000);
	assert_true(times_quantile(&copy, 0.5) > 5000000 / 8 * 7);
	assert_true(times_quantile(&copy, 0.5) < 5000000 / 8 * 9);
	assert_true(times_quantile(&copy, 0.99) > 9900000 / 8 * 7);
	assert_true(times_quantile(&copy, 0.99) <= copy.longest_ns);
}

static void one_time_is_its_own_quantile_at_most(void **state)
{
	static struct times times;
	struct times_copy copy = {0};

	(void)state;
	times_add(&times, 1000);
	times_read(&times, &copy);
	assert_true(times_quantile(&copy, 0.5) <= 1000);
	assert_true(times_quantile(&copy, 0.5) >= 875);
}

static void what_was_counted_before_is_taken_away(void **state)
{
	static struct times times;
	struct times_copy before = {0}, after = {0};

	(void)state;
	times_add(&times, 5000000);
	times_read(&times, &before);
	times_restart(&times);
	times_add(&times, 3000);
	times_read(&times, &after);
	times_subtract(&after, &before);
	assert_int_equal(after.count, 1);
	assert_int_equal(after.sum_ns, 3000);
	assert_int_equal(after.longest_ns, 3000);
	assert_true(times_quantile(&after, 1) <= 3000);
}

static void *count_nowhere(void *context)
{
	(void)context;
	tally_add(TALLY_CALL_SEND, 1); /* this thread has no tally: not the other's */
	return NULL;
}

static void each_thread_counts_into_its_own_tally(void **state)
{
	static struct tally tally;
	pthread_t other;

	(void)state;
	tally_use(&tally);
	tally_add(TALLY_CALL_SEND, 2);
	tally_add(TALLY_BYTES_SENT, 100);
	assert_int_equal(pthread_create(&other, NULL, count_nowhere, NULL), 0);
	assert_int_equal(pthread_join(other, NULL), 0);
	tally_use(NULL);
	tally_add(TALLY_CALL_SEND, 1);
	assert_int_equal(counter_read(&tally.counters[TALLY_CALL_SEND]), 2);
	assert_int_equal(counter_read(&tally.counters[TALLY_BYTES_SENT]), 100);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(buckets_rise_with_time_and_cover_everything),
	    cmocka_unit_test(quantiles_are_right_to_an_eighth),
	    cmocka_unit_test(one_time_is_its_own_quantile_at_most),
	    cmocka_unit_test(what_was_counted_before_is_taken_away),
	    cmocka_unit_test(each_thread_counts_into_its_own_tally),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
