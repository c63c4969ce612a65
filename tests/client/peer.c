/* SPDX-License-Identifier: Apache-2.0 */
/* peer.c - a scripted daemon in a process of its own, and the client's first steps towards it. */
#include "peer.h"

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
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- the daemon's side ---------------------------------------------------------------------- */

static uint8_t *in_buffer;
static size_t in_bytes, in_start;

/* Next message from the client; exits quietly when it is gone. */
struct message next_message(int socket)
{
	char error[SSV_ERROR_TEXT_MAX];
	struct message message;
	size_t needed;
	int found;

	if (!in_buffer)
		in_buffer = malloc(2 * MESSAGE_REQUEST_BYTES_MAX);
	while ((found = message_find(in_buffer + in_start, in_bytes - in_start, MESSAGE_FROM_CLIENT,
				     &message, &needed, error)) == 0) {
		ssize_t n;

		memmove(in_buffer, in_buffer + in_start, in_bytes - in_start);
		in_bytes -= in_start;
		in_start = 0;
		n = read(socket, in_buffer + in_bytes, 2 * MESSAGE_REQUEST_BYTES_MAX - in_bytes);
		if (n <= 0)
			_exit(0);
		in_bytes += (size_t)n;
	}
	if (found < 0)
		_exit(9);
	in_start += message.bytes;
	return message;
}

void say(int socket, const uint8_t *bytes, size_t count)
{
	while (count) {
		ssize_t n = send(socket, bytes, count, MSG_NOSIGNAL);

		if (n <= 0)
			_exit(0);
		bytes += n;
		count -= (size_t)n;
	}
}

void say_text(int socket, uint16_t type, uint64_t id, int status, const char *text)
{
	uint8_t out[1024];

	say(socket, out,
	    message_encode_text(out, sizeof(out), type, id, status, text, strlen(text)));
}

void say_welcome(int socket)
{
	struct message_welcome welcome = {.version = 1, .pid = 1, .daemon_version = "test"};
	struct message hello = next_message(socket);
	uint8_t out[128];

	say(socket, out, message_encode_welcome(out, sizeof(out), hello.id, &welcome));
}

void say_completion(int socket, uint64_t user_data, uint8_t op, int status)
{
	struct ssv_completion completion = {.user_data = user_data, .op = op, .status = status};
	uint8_t out[128];

	message_completions_begin(out, sizeof(out));
	say(socket, out, message_completions_append(out, sizeof(out), &completion));
}

void wait_for_ever(int socket)
{
	for (;;)
		(void)next_message(socket);
}

/* ---- starting and connecting ---------------------------------------------------------------- */

void peer_start(struct peer *peer, daemon_script *script)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int ready[2];
	char byte;

	snprintf(peer->folder, sizeof(peer->folder), "/tmp/ssv-test-XXXXXX");
	assert_non_null(mkdtemp(peer->folder));
	snprintf(peer->path, sizeof(peer->path), "%s/s", peer->folder);
	strcpy(address.sun_path, peer->path);
	assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(pipe(ready), 0);
	peer->pid = fork();
	if (peer->pid == 0) {
		int socket;

		/* Also when the test fails: a stopped daemon must not outlive it. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		/* The process that listens is the one whose pidfd a client gets. */
		if (listen(listener, 8) || write(ready[1], "x", 1) != 1)
			_exit(9);
		socket = accept(listener, NULL, NULL);
		script(socket);
		_exit(0);
	}
	close(listener);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	close(ready[1]);
}

void peer_stop(struct peer *peer)
{
	kill(peer->pid, SIGKILL);
	waitpid(peer->pid, NULL, 0);
	unlink(peer->path);
	rmdir(peer->folder);
}

int connect_to(const struct peer *peer, uint32_t timeout_ms, struct ssv **ssv, char *error)
{
	struct ssv_options options = {.struct_size = sizeof(options),
				      .socket_path = peer->path,
				      .engine_id = "test",
				      .connect_timeout_ms = timeout_ms};

	return ssv_connect(&options, ssv, error);
}

struct ssv *connected(const struct peer *peer)
{
	char error[SSV_ERROR_TEXT_MAX];
	struct ssv *ssv = NULL;

	assert_int_equal(connect_to(peer, SOON_MS, &ssv, error), 0);
	return ssv;
}

int submit_lookup(struct ssv *ssv, uint64_t user_data)
{
	static const struct ssv_key key;
	struct ssv_request request = {
	    .op = SSV_OP_LOOKUP, .user_data = user_data, .keys = &key, .keys_count = 1};

	return ssv_submit(ssv, &request, 1);
}

int is_readable(int fd, int timeout_ms)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, timeout_ms);
}

/* Answers each LOOKUP when the next FLUSH comes, then the FLUSH. */
void script_answer_on_flush(int socket)
{
	static uint64_t waiting[SSV_REQUESTS_MAX];
	uint32_t n = 0;

	say_welcome(socket);
	for (;;) {
		struct message message = next_message(socket);
		struct ssv_request request;
		char error[SSV_ERROR_TEXT_MAX];

		if (message_decode_request(&message, &request, error))
			_exit(9);
		if (request.op != SSV_OP_FLUSH) {
			waiting[n++] = request.user_data;
			continue;
		}
		for (uint32_t i = 0; i < n; i++)
			say_completion(socket, waiting[i], SSV_OP_LOOKUP, -ENOENT);
		n = 0;
		say_completion(socket, request.user_data, SSV_OP_FLUSH, 0);
	}
}
