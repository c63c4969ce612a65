/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_message_status.c - the status of REFUSED, CLOSE, STATUS and COMPLETION: what is let through
 * is 0 or a negative errno, and never a refusal that says done.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "base/message.h"

/* A status becomes a function's result, where above 0 means something else. */
static void a_status_is_zero_or_a_negative_errno(void **unused)
{
	static const struct {
		uint16_t type;
		int status, expected;
	} cases[] = {
	    {MESSAGE_CLOSE, 0, 0},
	    {MESSAGE_STATUS, 0, 0},
	    {MESSAGE_REFUSED, -1, 0},
	    {MESSAGE_REFUSED, -4095, 0},
	    {MESSAGE_REFUSED, 0, -EPROTO},
	    {MESSAGE_REFUSED, 1, -EPROTO},
	    {MESSAGE_CLOSE, 1, -EPROTO},
	    {MESSAGE_STATUS, -4096, -EPROTO},
	    {MESSAGE_STATUS, INT32_MIN, -EPROTO},
	    {MESSAGE_COMPLETION, 0, 0},
	    {MESSAGE_COMPLETION, -4095, 0},
	    {MESSAGE_COMPLETION, 1, -EPROTO},
	    {MESSAGE_COMPLETION, INT32_MIN, -EPROTO},
	};
	_Alignas(8) uint8_t buffer[256];
	char error[SSV_ERROR_TEXT_MAX];

	(void)unused;
	for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
		struct ssv_completion completion = {.op = SSV_OP_FETCH, .status = cases[i].status};
		const int of_request = cases[i].type == MESSAGE_COMPLETION;
		struct message_text text;
		struct message message;
		uint32_t count;
		size_t bytes, needed;

		if (of_request) {
			message_completions_begin(buffer, sizeof(buffer));
			bytes = message_completions_append(buffer, sizeof(buffer), &completion);
		} else {
			bytes = message_encode_text(buffer, sizeof(buffer), cases[i].type, 1,
						    cases[i].status, "why", 3);
		}
		assert_int_equal(
		    message_find(buffer, bytes, MESSAGE_FROM_DAEMON, &message, &needed, error), 1);
		assert_int_equal(of_request ? message_decode_completions(&message, &count, error)
					    : message_decode_text(&message, &text, error),
				 cases[i].expected);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_status_is_zero_or_a_negative_errno),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
