/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_ends.c - how sessions end: CLOSE, the socket's end, proven death, a broken protocol, a
 * fork's child; and that each accepted request still has exactly one completion.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "peer.h"

/* ---- ends ----------------------------------------------------------------------------------- */

static void script_end_without_close(int socket)
{
	say_welcome(socket);
	(void)next_message(socket);
	close(socket);
	pause();
}

static void the_sockets_end_completes_nothing_until_the_daemon_is_dead(void **unused)
{
	struct ssv_completion done;
	struct peer peer;
	struct ssv *ssv;

	(void)unused;
	peer_start(&peer, script_end_without_close);
	ssv = connected(&peer);
	assert_int_equal(submit_lookup(ssv, 77), 1);
	while (ssv_is_open(ssv))
		assert_int_equal(ssv_poll(ssv, &done, 1, 1), 0);
	assert_int_equal(ssv_poll(ssv, &done, 1, 50), 0);
	assert_int_equal(ssv_in_flight(ssv), 1);
	assert_int_equal(is_readable(ssv_daemon_pidfd(ssv), 0), 0);
	assert_int_equal(submit_lookup(ssv, 78), -ENOTCONN);
	kill(peer.pid, SIGKILL);
	assert_int_equal(is_readable(ssv_fd(ssv), SOON_MS), 1);
	assert_int_equal(ssv_poll(ssv, &done, 1, SOON_MS), 1);
	assert_int_equal(done.user_data, 77);
	assert_int_equal(done.op, SSV_OP_LOOKUP);
	assert_int_equal(done.status, -ENOTCONN);
	assert_int_equal(ssv_poll(ssv, &done, 1, SOON_MS), -ENOTCONN);
	assert_non_null(strstr(ssv_close_reason(ssv), "died"));
	ssv_close(ssv);
	peer_stop(&peer);
}

static void script_answer_and_hang_up(int socket)
{
	struct message message;

	say_welcome(socket);
	message = next_message(socket);
	say_completion(socket, message.id, SSV_OP_LOOKUP, 0);
	close(socket);
	pause();
}

/* Nothing can come any more, so nobody needs to wait for the daemon's death. */
static void the_sockets_end_with_nothing_in_flight_is_the_end(void **unused)
{
	struct ssv_completion done;
	struct peer peer;
	struct ssv *ssv;

	(void)unused;
	peer_start(&peer, script_answer_and_hang_up);
	ssv = connected(&peer);
	assert_int_equal(submit_lookup(ssv, 1), 1);
	assert_int_equal(ssv_poll(ssv, &done, 1, -1), 1);
	assert_int_equal(ssv_poll(ssv, &done, 1, -1), -ENOTCONN);
	assert_int_equal(is_readable(ssv_fd(ssv), SOON_MS), 1);
	assert_int_equal(ssv_poll(ssv, &done, 1, 0), -ENOTCONN);
	ssv_close(ssv);
	peer_stop(&peer);
}

static void script_close(int socket)
{
	struct message message;

	say_welcome(socket);
	(void)next_message(socket);
	message = next_message(socket);
	say_completion(socket, message.id, SSV_OP_LOOKUP, 0);
	say_text(socket, MESSAGE_CLOSE, 0, -ENOTCONN, "going home");
	close(socket);
	pause();
}

static void close_completes_what_is_left(void **unused)
{
	struct ssv_completion done[4];
	struct peer peer;
	struct ssv *ssv;
	int n = 0;

	(void)unused;
	peer_start(&peer, script_close);
	ssv = connected(&peer);
	assert_int_equal(submit_lookup(ssv, 1), 1);
	assert_int_equal(submit_lookup(ssv, 2), 1);
	while (n < 2) {
		int rc = ssv_poll(ssv, done + n, (uint32_t)(4 - n), SOON_MS);

		assert_true(rc > 0);
		n += rc;
	}
	assert_int_equal(done[0].user_data, 2);
	assert_int_equal(done[0].status, 0);
	assert_int_equal(done[1].user_data, 1);
	assert_int_equal(done[1].status, -ENOTCONN);
	assert_int_equal(ssv_poll(ssv, done, 4, SOON_MS), -ENOTCONN);
	assert_string_equal(ssv_close_reason(ssv), "going home");
	assert_int_equal(ssv_is_open(ssv), 0);
	assert_int_equal(ssv_region_unregister(ssv, 1, 10), -ENOTCONN);
	ssv_close(ssv);
	peer_stop(&peer);
}

static void script_complete_twice(int socket)
{
	struct message message;

	say_welcome(socket);
	message = next_message(socket);
	say_completion(socket, message.id, SSV_OP_LOOKUP, 0);
	say_completion(socket, message.id, SSV_OP_LOOKUP, 0);
	pause();
}

static void a_second_completion_breaks_the_session(void **unused)
{
	struct ssv_completion done[4];
	struct peer peer;
	struct ssv *ssv;
	int rc, taken = 0;

	(void)unused;
	peer_start(&peer, script_complete_twice);
	ssv = connected(&peer);
	assert_int_equal(submit_lookup(ssv, 1), 1);
	while ((rc = ssv_poll(ssv, done, 4, SOON_MS)) > 0)
		taken += rc;
	assert_int_equal(rc, -ENOTCONN);
	assert_int_equal(taken, 1);
	assert_int_equal(ssv_is_open(ssv), 0);
	assert_non_null(strstr(ssv_close_reason(ssv), "not in flight"));
	ssv_close(ssv);
	peer_stop(&peer);
}

static void script_unregister_late(int socket)
{
	uint8_t out[64];
	struct message message;

	say_welcome(socket);
	message = next_message(socket); /* REGISTER */
	say(socket, out,
	    message_encode_region(out, sizeof(out), MESSAGE_REGISTERED, message.id, 6));
	message = next_message(socket); /* UNREGISTER: answered when something else comes */
	(void)next_message(socket);
	say(socket, out,
	    message_encode_region(out, sizeof(out), MESSAGE_UNREGISTERED, message.id, 6));
	wait_for_ever(socket);
}

static void an_unregister_that_timed_out_can_be_asked_again(void **unused)
{
	struct ssv_region region = {.struct_size = sizeof(region),
				    .memory = SSV_MEMORY_ADDRESS,
				    .address = 4096,
				    .bytes = 4096};
	struct ssv_layout layout = {
	    .struct_size = sizeof(layout), .block_tokens = 32, .blocks_count = 4};
	char error[SSV_ERROR_TEXT_MAX];
	struct peer peer;
	struct ssv *ssv;
	uint32_t id;

	(void)unused;
	peer_start(&peer, script_unregister_late);
	ssv = connected(&peer);
	assert_int_equal(ssv_region_register(ssv, &region, &layout, &id, error), 0);
	assert_int_equal(id, 6);
	assert_int_equal(ssv_region_unregister(ssv, 7, 0), -ENOENT);
	assert_int_equal(ssv_region_unregister(ssv, 6, 10), -ETIMEDOUT);
	assert_int_equal(submit_lookup(ssv, 1), 1);
	assert_int_equal(ssv_region_unregister(ssv, 6, SOON_MS), 0);
	assert_int_equal(ssv_region_unregister(ssv, 6, 0), -ENOENT);
	ssv_close(ssv);
	peer_stop(&peer);
}

static void a_forks_child_has_no_session(void **unused)
{
	struct ssv_request flush = {.op = SSV_OP_FLUSH, .user_data = 2};
	struct ssv_completion done[4];
	struct peer peer;
	struct ssv *ssv;
	int status, n = 0;
	pid_t pid;

	(void)unused;
	peer_start(&peer, script_answer_on_flush);
	ssv = connected(&peer);
	assert_int_equal(submit_lookup(ssv, 1), 1);
	pid = fork();
	if (pid == 0) {
		int good = submit_lookup(ssv, 3) == -ENOTCONN &&
			   ssv_poll(ssv, done, 1, 0) == -ENOTCONN && ssv_fd(ssv) == -ENOTCONN &&
			   ssv_daemon_pidfd(ssv) == -ENOTCONN && !ssv_is_open(ssv) &&
			   ssv_in_flight(ssv) == 0 &&
			   ssv_region_unregister(ssv, 1, 0) == -ENOTCONN &&
			   ssv_stat(ssv, (char *)done, sizeof(done), 0) == -ENOTCONN;

		ssv_close(ssv); /* must not end the parent's */
		_exit(good ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(ssv_submit(ssv, &flush, 1), 1);
	while (n < 2) {
		int rc = ssv_poll(ssv, done, 4, SOON_MS);

		assert_true(rc > 0);
		n += rc;
	}
	ssv_close(ssv);
	peer_stop(&peer);
}

static void default_socket_names_user_and_version(void **unused)
{
	char path[108], expected[108];

	(void)unused;
	setenv("XDG_RUNTIME_DIR", "/run/somebody", 1);
	assert_int_equal(ssv_default_socket(path, sizeof(path)), 0);
	snprintf(expected, sizeof(expected), "/run/somebody/shadowserve-%u-v1.sock", geteuid());
	assert_string_equal(path, expected);
	assert_int_equal(ssv_default_socket(path, 10), -E2BIG);
	unsetenv("XDG_RUNTIME_DIR");
	assert_int_equal(ssv_default_socket(path, sizeof(path)), 0);
	assert_memory_equal(path, "/tmp/", 5);
	assert_string_equal(ssv_version(), "0.1.0");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(the_sockets_end_completes_nothing_until_the_daemon_is_dead),
	    cmocka_unit_test(the_sockets_end_with_nothing_in_flight_is_the_end),
	    cmocka_unit_test(close_completes_what_is_left),
	    cmocka_unit_test(a_second_completion_breaks_the_session),
	    cmocka_unit_test(an_unregister_that_timed_out_can_be_asked_again),
	    cmocka_unit_test(a_forks_child_has_no_session),
	    cmocka_unit_test(default_socket_names_user_and_version),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
