/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_client.c - connecting and submitting: options, versions, strangers, full queues, bad
 * requests. How sessions end is test_ends.c.
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

/* ---- connecting ----------------------------------------------------------------------------- */

static void nobody_listening_is_said(void **unused)
{
	struct peer peer = {.path = "/tmp/ssv-test-nobody-here/s"};
	char error[SSV_ERROR_TEXT_MAX];
	struct ssv *ssv = NULL;

	(void)unused;
	assert_int_equal(connect_to(&peer, 0, &ssv, error), -ENOTCONN);
	assert_non_null(strstr(error, peer.path));
	assert_null(ssv);
}

static void wrong_options_are_refused(void **unused)
{
	struct ssv_options good = {.struct_size = sizeof(good)}, bad;
	char error[SSV_ERROR_TEXT_MAX], id[SSV_ENGINE_ID_MAX + 1];
	struct ssv *ssv;

	(void)unused;
	bad = good;
	bad.struct_size--;
	assert_int_equal(ssv_connect(&bad, &ssv, error), -EINVAL);
	bad = good;
	bad.flags = 1;
	assert_int_equal(ssv_connect(&bad, &ssv, error), -EINVAL);
	bad = good;
	bad.rank = 1;
	assert_int_equal(ssv_connect(&bad, &ssv, error), -EINVAL);
	memset(id, 'x', sizeof(id));
	id[SSV_ENGINE_ID_MAX] = 0;
	bad = good;
	bad.engine_id = id;
	assert_int_equal(ssv_connect(&bad, &ssv, error), -EINVAL);
	assert_int_equal(ssv_connect(&good, NULL, NULL), -EINVAL);
}

static void script_refuse(int socket)
{
	struct message hello = next_message(socket);

	say_text(socket, MESSAGE_REFUSED, hello.id, -EPROTO, "speaks 7 to 9");
	say_text(socket, MESSAGE_CLOSE, 0, -EPROTO, "speaks 7 to 9");
}

static void script_refuse_with_success(int socket)
{
	struct message hello = next_message(socket);

	say_text(socket, MESSAGE_REFUSED, hello.id, 0, "done");
}

static void a_refusal_that_says_done_is_no_welcome(void **unused)
{
	char error[SSV_ERROR_TEXT_MAX];
	struct ssv *ssv = NULL;
	struct peer peer;

	(void)unused;
	peer_start(&peer, script_refuse_with_success);
	assert_int_equal(connect_to(&peer, SOON_MS, &ssv, error), -EPROTO);
	assert_non_null(strstr(error, "REFUSED: status 0"));
	assert_null(ssv);
	peer_stop(&peer);
}

static void another_version_is_eproto(void **unused)
{
	char error[SSV_ERROR_TEXT_MAX];
	struct ssv *ssv;
	struct peer peer;

	(void)unused;
	peer_start(&peer, script_refuse);
	assert_int_equal(connect_to(&peer, SOON_MS, &ssv, error), -EPROTO);
	assert_string_equal(error, "speaks 7 to 9");
	peer_stop(&peer);
}

static void script_http(int socket)
{
	static const char answer[] = "HTTP/1.1 400 Bad Request\r\n\r\n";

	(void)next_message(socket);
	say(socket, (const uint8_t *)answer, sizeof(answer));
	wait_for_ever(socket);
}

static void another_protocol_is_eproto(void **unused)
{
	char error[SSV_ERROR_TEXT_MAX];
	struct ssv *ssv;
	struct peer peer;

	(void)unused;
	peer_start(&peer, script_http);
	assert_int_equal(connect_to(&peer, SOON_MS, &ssv, error), -EPROTO);
	peer_stop(&peer);
}

static void script_hang_up(int socket)
{
	(void)next_message(socket);
	close(socket);
	pause();
}

static void a_daemon_that_hangs_up_is_enotconn(void **unused)
{
	char error[SSV_ERROR_TEXT_MAX];
	struct ssv *ssv;
	struct peer peer;

	(void)unused;
	peer_start(&peer, script_hang_up);
	assert_int_equal(connect_to(&peer, SOON_MS, &ssv, error), -ENOTCONN);
	peer_stop(&peer);
}

static void a_silent_daemon_is_etimedout(void **unused)
{
	char error[SSV_ERROR_TEXT_MAX];
	struct ssv *ssv;
	struct peer peer;

	(void)unused;
	peer_start(&peer, wait_for_ever);
	assert_int_equal(connect_to(&peer, 20, &ssv, error), -ETIMEDOUT);
	peer_stop(&peer);
}

static void another_users_daemon_is_eacces(void **unused)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct ssv_options options = {.struct_size = sizeof(options)};
	char folder[] = "/tmp/ssv-test-XXXXXX", error[SSV_ERROR_TEXT_MAX];
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct ssv *ssv;
	int status;
	pid_t pid;

	(void)unused;
	if (geteuid() != 0) {
		print_message("skip: needs two users\n");
		skip();
	}
	assert_non_null(mkdtemp(folder));
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/s", folder);
	assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	pid = fork();
	if (pid == 0) /* the credentials a client sees are those of listen() */
		_exit(setuid(65534) || listen(listener, 1) ? 1 : 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	options.socket_path = address.sun_path;
	assert_int_equal(ssv_connect(&options, &ssv, error), -EACCES);
	assert_non_null(strstr(error, "65534"));
	close(listener);
	unlink(address.sun_path);
	rmdir(folder);
}

/* ---- requests ------------------------------------------------------------------------------- */

static void a_full_queue_refuses_and_recovers(void **unused)
{
	struct ssv_request flush = {.op = SSV_OP_FLUSH, .user_data = 1 << 20};
	struct ssv_completion done[SSV_REQUESTS_MAX];
	uint8_t seen[SSV_REQUESTS_MAX] = {0};
	struct peer peer;
	struct ssv *ssv;
	uint32_t taken = 0;

	(void)unused;
	peer_start(&peer, script_answer_on_flush);
	ssv = connected(&peer);
	for (uint64_t i = 0; i < SSV_REQUESTS_MAX - 1; i++)
		assert_int_equal(submit_lookup(ssv, i), 1);
	assert_int_equal(ssv_submit(ssv, &flush, 1), 1);
	assert_int_equal(submit_lookup(ssv, 5000), -EAGAIN);
	assert_int_equal(ssv_in_flight(ssv), SSV_REQUESTS_MAX);
	while (taken < SSV_REQUESTS_MAX) {
		int n = ssv_poll(ssv, done, 7, SOON_MS);

		assert_true(n > 0);
		taken += (uint32_t)n;
		for (int i = 0; i < n; i++) {
			uint64_t at =
			    done[i].op == SSV_OP_FLUSH ? SSV_REQUESTS_MAX - 1 : done[i].user_data;

			assert_int_equal(seen[at]++, 0);
			assert_int_equal(done[i].status, at == SSV_REQUESTS_MAX - 1 ? 0 : -ENOENT);
		}
		/* What is left lies in memory: the descriptor must still say so. */
		if (taken < SSV_REQUESTS_MAX)
			assert_int_equal(is_readable(ssv_fd(ssv), SOON_MS), 1);
	}
	assert_int_equal(ssv_in_flight(ssv), 0);
	assert_int_equal(ssv_poll(ssv, done, 7, 0), 0);
	assert_int_equal(is_readable(ssv_fd(ssv), 0), 0);
	assert_int_equal(submit_lookup(ssv, 5000), 1);
	ssv_close(ssv);
	peer_stop(&peer);
}

static void a_batch_is_accepted_from_the_front(void **unused)
{
	static const struct ssv_key key;
	struct ssv_request batch[4] = {
	    {.op = SSV_OP_LOOKUP, .user_data = 1, .keys = &key, .keys_count = 1},
	    {.op = SSV_OP_LOOKUP, .user_data = 2, .keys = &key, .keys_count = 1},
	    {.op = SSV_OP_LOOKUP, .user_data = 1, .keys = &key, .keys_count = 1},
	    {.op = SSV_OP_LOOKUP, .user_data = 4, .keys = &key, .keys_count = 1},
	};
	struct peer peer;
	struct ssv *ssv;

	(void)unused;
	peer_start(&peer, script_answer_on_flush);
	ssv = connected(&peer);
	assert_int_equal(ssv_submit(ssv, batch, 4), 2);
	assert_int_equal(ssv_submit(ssv, batch + 2, 2), -EINVAL); /* in flight already */
	assert_int_equal(ssv_in_flight(ssv), 2);
	ssv_close(ssv);
	peer_stop(&peer);
}

static void bad_requests_are_refused_at_once(void **unused)
{
	static const struct ssv_key keys[2];
	static const uint32_t blocks[8];
	const struct {
		struct ssv_request request;
		int error;
	} cases[] = {
	    {{.op = 0}, -EINVAL},
	    {{.op = 9}, -EINVAL},
	    {{.op = SSV_OP_LOOKUP}, -EINVAL},
	    {{.op = SSV_OP_LOOKUP, .keys = keys, .keys_count = SSV_KEYS_MAX + 1}, -E2BIG},
	    {{.op = SSV_OP_LOOKUP, .keys_count = 1}, -EINVAL},
	    {{.op = SSV_OP_LOOKUP, .keys = keys, .keys_count = 1, .ranks_count = 65}, -E2BIG},
	    {{.op = SSV_OP_LOOKUP, .keys = keys, .keys_count = 1, .ranks_count = 2}, -EINVAL},
	    {{.op = SSV_OP_LOOKUP, .keys = keys, .keys_count = 1, .tier = 1}, -EINVAL},
	    {{.op = SSV_OP_LOOKUP, .keys = keys, .keys_count = 1, .min_tier = 6}, -EINVAL},
	    {{.op = SSV_OP_FETCH,
	      .keys = keys,
	      .keys_count = 1,
	      .blocks = blocks,
	      .blocks_count = 8,
	      .region = 3},
	     -ENOENT},
	    {{.op = SSV_OP_STORE, .keys = keys, .keys_count = 1, .region = 3}, -EINVAL},
	    {{.op = SSV_OP_CANCEL, .user_data = 5, .target = 5}, -EINVAL},
	    {{.op = SSV_OP_FLUSH, .target = 5}, -EINVAL},
	};
	struct peer peer;
	struct ssv *ssv;

	(void)unused;
	peer_start(&peer, script_answer_on_flush);
	ssv = connected(&peer);
	for (size_t i = 0; i < ARRAY_COUNT(cases); i++)
		assert_int_equal(ssv_submit(ssv, &cases[i].request, 1), cases[i].error);
	assert_int_equal(ssv_in_flight(ssv), 0);
	assert_int_equal(ssv_is_open(ssv), 1);
	ssv_close(ssv);
	peer_stop(&peer);
}

static void script_read_late(int socket)
{
	say_welcome(socket);
	kill(getpid(), SIGSTOP);
	for (;;) {
		struct message message = next_message(socket);

		say_completion(socket, message.id, SSV_OP_LOOKUP, 0);
	}
}

/* The socket and the library's buffer fill; nothing is lost, and the descriptor wakes. */
static void a_daemon_that_does_not_read_fills_a_bounded_buffer(void **unused)
{
	struct ssv_key *keys = calloc(SSV_KEYS_MAX, sizeof(*keys));
	struct ssv_request request = {
	    .op = SSV_OP_LOOKUP, .keys = keys, .keys_count = SSV_KEYS_MAX};
	struct ssv_completion done[8];
	uint32_t accepted = 0, taken = 0;
	struct peer peer;
	struct ssv *ssv;
	int rc;

	(void)unused;
	peer_start(&peer, script_read_late);
	ssv = connected(&peer);
	assert_int_equal(waitpid(peer.pid, &rc, WUNTRACED), peer.pid);
	assert_true(WIFSTOPPED(rc));
	while ((rc = ssv_submit(ssv, &request, 1)) == 1) {
		accepted++;
		request.user_data++;
	}
	assert_int_equal(rc, -EAGAIN);
	assert_true(accepted >= 8 && accepted < 64); /* 128 KiB each: 1 MiB, and the socket's */
	kill(peer.pid, SIGCONT);
	while (taken < accepted) {
		assert_int_equal(is_readable(ssv_fd(ssv), SOON_MS), 1);
		rc = ssv_poll(ssv, done, 8, 0);
		assert_true(rc >= 0);
		taken += (uint32_t)rc;
	}
	assert_int_equal(ssv_in_flight(ssv), 0);
	ssv_close(ssv);
	free(keys);
	peer_stop(&peer);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(nobody_listening_is_said),
	    cmocka_unit_test(wrong_options_are_refused),
	    cmocka_unit_test(another_version_is_eproto),
	    cmocka_unit_test(a_refusal_that_says_done_is_no_welcome),
	    cmocka_unit_test(another_protocol_is_eproto),
	    cmocka_unit_test(a_daemon_that_hangs_up_is_enotconn),
	    cmocka_unit_test(a_silent_daemon_is_etimedout),
	    cmocka_unit_test(another_users_daemon_is_eacces),
	    cmocka_unit_test(a_full_queue_refuses_and_recovers),
	    cmocka_unit_test(a_batch_is_accepted_from_the_front),
	    cmocka_unit_test(bad_requests_are_refused_at_once),
	    cmocka_unit_test(a_daemon_that_does_not_read_fills_a_bounded_buffer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
