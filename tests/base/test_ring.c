/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_ring.c - the message ring: against a plain queue, across the wrap of its indices, and
 * between two real threads (the ThreadSanitizer build judges the ordering).
 */
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "base/ring.h"
#include "base/wake.h"

#define THREAD_ITEMS 200000u

static void full_ring_refuses_and_changes_nothing(void **state)
{
	uint64_t items[4], item;
	struct ring ring;

	(void)state;
	ring_init(&ring, items, 4);
	assert_int_equal(ring_pop(&ring, &item), 0);
	for (uint64_t i = 0; i < 4; i++)
		assert_int_equal(ring_push(&ring, i), 1);
	assert_int_equal(ring_push(&ring, 99), 0);
	for (uint64_t i = 0; i < 4; i++) {
		assert_int_equal(ring_pop(&ring, &item), 1);
		assert_int_equal(item, i);
	}
	assert_int_equal(ring_pop(&ring, &item), 0);
}

static void order_is_kept_when_the_indices_wrap(void **state)
{
	uint64_t items[8], item, pushed = 0, popped = 0;
	struct ring ring;

	(void)state;
	ring_init(&ring, items, 8);
	atomic_store(&ring.head, UINT32_MAX - 20);
	atomic_store(&ring.tail, UINT32_MAX - 20);
	ring.head_copy = ring.tail_copy = UINT32_MAX - 20;
	for (int i = 0; i < 1000; i++) {
		for (int k = 0; k < 1 + i % 8; k++)
			pushed += (uint64_t)ring_push(&ring, pushed);
		assert_true(pushed - popped <= 8);
		for (int k = 0; k < 1 + i % 5 && ring_pop(&ring, &item); k++)
			assert_int_equal(item, popped++);
	}
	while (ring_pop(&ring, &item))
		assert_int_equal(item, popped++);
	assert_int_equal(pushed, popped);
}

struct pair {
	struct ring ring;
	struct wake wake;
	uint64_t items[64];
};

static void *produce(void *context)
{
	struct pair *pair = context;

	for (uint64_t i = 0; i < THREAD_ITEMS; i++) {
		while (!ring_push(&pair->ring, i))
			;
		wake_signal(&pair->wake);
	}
	return NULL;
}

static void two_threads_lose_no_item_and_no_wake_up(void **state)
{
	static struct pair pair;
	uint64_t expected = 0, item;
	pthread_t thread;

	(void)state;
	ring_init(&pair.ring, pair.items, 64);
	assert_int_equal(wake_init(&pair.wake), 0);
	assert_int_equal(pthread_create(&thread, NULL, produce, &pair), 0);
	while (expected < THREAD_ITEMS) {
		struct pollfd pollfd = {.fd = pair.wake.fd, .events = POLLIN};

		wake_begin(&pair.wake);
		while (ring_pop(&pair.ring, &item)) {
			if (item != expected)
				fail_msg("item out of order");
			expected++;
		}
		/* Without a time-out: a lost wake-up would hang here. */
		if (expected < THREAD_ITEMS && wake_may_sleep(&pair.wake))
			assert_int_equal(poll(&pollfd, 1, 30000), 1);
	}
	pthread_join(thread, NULL);
	wake_fini(&pair.wake);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(full_ring_refuses_and_changes_nothing),
	    cmocka_unit_test(order_is_kept_when_the_indices_wrap),
	    cmocka_unit_test(two_threads_lose_no_item_and_no_wake_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
