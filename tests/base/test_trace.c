/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_trace.c - the ring of events: what is read was written, in order, whole, and what was
 * overwritten is said; also while the writer goes on (ThreadSanitizer build).
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/trace.h"

#define SLOTS  64u
#define EVENTS 2000000u

/* Every field follows from the number, so that a mixed event is seen. */
static struct trace_event event_of(uint64_t number)
{
	return (struct trace_event){
	    .start_ns = number * 3,
	    .span = trace_span(TRACE_DECODE, (uint32_t)(number % 251), number),
	    .request = (uint32_t)(number * 7),
	    .piece = (uint16_t)(number * 11),
	    .detail = (uint16_t)(number * 13),
	    .value = ~number,
	};
}

static void put_some(struct trace *trace, uint64_t from, uint64_t to)
{
	for (uint64_t i = from; i < to; i++) {
		struct trace_event event = event_of(i);

		trace_put(trace, &event);
	}
}

static void assert_events(const struct trace_event *events, uint64_t first, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		struct trace_event expected = event_of(first + i);

		assert_memory_equal(&events[i], &expected, sizeof(expected));
	}
}

static void what_was_written_is_read_in_order(void **state)
{
	static struct trace_slot slots[SLOTS];
	struct trace_event events[SLOTS];
	struct trace trace;
	uint64_t first;

	(void)state;
	trace_init(&trace, slots, SLOTS);
	assert_int_equal(trace_read(&trace, 0, events, SLOTS, &first), 0);
	put_some(&trace, 0, 40);
	assert_int_equal(trace_read(&trace, 0, events, SLOTS, &first), 40);
	assert_int_equal(first, 0);
	assert_events(events, 0, 40);
	assert_int_equal(trace_read(&trace, 30, events, 4, &first), 4);
	assert_int_equal(first, 30);
	assert_events(events, 30, 4);
	assert_int_equal(trace_read(&trace, 40, events, SLOTS, &first), 0);
	assert_int_equal(trace_read(&trace, UINT64_MAX, events, SLOTS, &first), 0);
}

static void a_full_ring_forgets_the_oldest_and_says_so(void **state)
{
	static struct trace_slot slots[SLOTS];
	struct trace_event events[2 * SLOTS];
	struct trace trace;
	uint64_t first;

	(void)state;
	trace_init(&trace, slots, SLOTS);
	put_some(&trace, 0, 1000);
	/* The slot of the oldest may be in the writer's hands, so one less than the ring holds. */
	assert_int_equal(trace_read(&trace, 0, events, 2 * SLOTS, &first), SLOTS - 1);
	assert_int_equal(first, 1000 - SLOTS + 1);
	assert_events(events, first, SLOTS - 1);
	assert_int_equal(trace_head(&trace), 1000);
}

static void a_trace_without_slots_keeps_nothing(void **state)
{
	struct trace_event event = event_of(1);
	struct trace trace;
	uint64_t first;

	(void)state;
	trace_init(&trace, NULL, 0);
	trace_put(&trace, &event);
	assert_int_equal(trace_read(&trace, 0, &event, 1, &first), 0);
}

static void long_spans_stay_within_their_bits(void **state)
{
	struct trace_event event = {.span = trace_span(TRACE_GAUGE, 255, UINT64_MAX)};

	(void)state;
	assert_int_equal(trace_kind(&event), TRACE_GAUGE);
	assert_int_equal(trace_place(&event), 255);
	assert_int_equal(trace_duration_ns(&event), TRACE_DURATION_MAX);
}

static void *write_all(void *context)
{
	put_some(context, 0, EVENTS);
	return NULL;
}

static void a_reader_beside_the_writer_sees_whole_events(void **state)
{
	static struct trace_slot slots[SLOTS];
	struct trace_event events[SLOTS];
	uint64_t next = 0, read = 0, lost = 0;
	struct trace trace;
	pthread_t writer;

	(void)state;
	trace_init(&trace, slots, SLOTS);
	assert_int_equal(pthread_create(&writer, NULL, write_all, &trace), 0);
	while (next < EVENTS - 1) {
		uint64_t first;
		uint32_t n = trace_read(&trace, next, events, SLOTS, &first);

		assert_true(first >= next);
		assert_events(events, first, n);
		lost += first - next;
		read += n;
		next = first + n;
	}
	assert_int_equal(pthread_join(writer, NULL), 0);
	assert_int_equal(read + lost, next);
	print_message("%llu events read, %llu overwritten before\n", (unsigned long long)read,
		      (unsigned long long)lost);
	assert_true(read > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(what_was_written_is_read_in_order),
	    cmocka_unit_test(a_full_ring_forgets_the_oldest_and_says_so),
	    cmocka_unit_test(a_trace_without_slots_keeps_nothing),
	    cmocka_unit_test(long_spans_stay_within_their_bits),
	    cmocka_unit_test(a_reader_beside_the_writer_sees_whole_events),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
