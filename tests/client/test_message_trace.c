/* SPDX-License-Identifier: Apache-2.0 */
/* test_message_trace.c - TRACE and EVENTS come back as they were; lengths that lie are refused. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/message.h"

#define ROOM (MESSAGE_HEADER_BYTES + 4096)

static void trace_question_comes_back(void **unused)
{
	_Alignas(8) uint8_t buffer[64];
	char error[SSV_ERROR_TEXT_MAX];
	struct message message;
	size_t bytes = message_encode_trace(buffer, sizeof(buffer), 5, 3, (uint64_t)1 << 50),
	       needed;
	uint32_t track;
	uint64_t from;

	(void)unused;
	assert_int_equal(message_find(buffer, bytes, MESSAGE_FROM_CLIENT, &message, &needed, error),
			 1);
	assert_int_equal(message_decode_trace(&message, &track, &from, error), 0);
	assert_int_equal(track, 3);
	assert_int_equal(from, (uint64_t)1 << 50);
	buffer[MESSAGE_HEADER_BYTES + 4] = 1;
	assert_int_equal(message_decode_trace(&message, &track, &from, error), -EPROTO);
	assert_int_equal(message_encode_trace(buffer, 31, 5, 3, 0), 0);
}

static void trace_events_come_back(void **unused)
{
	const struct message_events head = {.track = 2,
					    .tracks_count = 5,
					    .count = 3,
					    .slots_count = 4096,
					    .first = (uint64_t)1 << 40,
					    .head = ((uint64_t)1 << 40) + 7,
					    .now_ns = 123456789012345};
	const struct trace_event event = {.start_ns = 11,
					  .span = trace_span(TRACE_DECODE, 3, 99),
					  .request = 0xfffffffe,
					  .piece = 0xfffd,
					  .detail = 0xfffc,
					  .value = ~(uint64_t)5};
	const struct trace_event events[3] = {event, {0}, event};
	uint8_t *buffer = malloc(ROOM);
	char error[SSV_ERROR_TEXT_MAX];
	struct message_events back;
	struct trace_event third;
	struct message message;
	size_t bytes = message_encode_events(buffer, ROOM, 8, &head, events), needed;

	(void)unused;
	assert_int_equal(message_find(buffer, bytes, MESSAGE_FROM_DAEMON, &message, &needed, error),
			 1);
	assert_int_equal(message_decode_events(&message, &back, error), 0);
	assert_int_equal(back.track, head.track);
	assert_int_equal(back.tracks_count, head.tracks_count);
	assert_int_equal(back.count, head.count);
	assert_memory_equal(&back.slots_count, &head.slots_count, 4 * sizeof(uint64_t));
	message_event_at(&message, 2, &third);
	assert_memory_equal(&third, &event, sizeof(event));
	buffer[MESSAGE_HEADER_BYTES + 8] = 4; /* one more than it holds */
	assert_int_equal(message_decode_events(&message, &back, error), -EPROTO);
	assert_non_null(strstr(error, "4 events"));
	free(buffer);
}

static void more_events_than_a_message_holds_are_not_encoded(void **unused)
{
	static struct trace_event events[MESSAGE_EVENTS_MAX + 1];
	struct message_events head = {.count = MESSAGE_EVENTS_MAX + 1};
	const size_t room = MESSAGE_HEADER_BYTES + 64 + sizeof(events);
	uint8_t *buffer = malloc(room);

	(void)unused;
	assert_int_equal(message_encode_events(buffer, room, 1, &head, events), 0);
	head.count--;
	assert_int_not_equal(message_encode_events(buffer, room, 1, &head, events), 0);
	assert_int_equal(message_encode_events(buffer, 4096, 1, &head, events), 0);
	free(buffer);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(trace_question_comes_back),
	    cmocka_unit_test(trace_events_come_back),
	    cmocka_unit_test(more_events_than_a_message_holds_are_not_encoded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
