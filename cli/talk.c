/* SPDX-License-Identifier: Apache-2.0 */
/* talk.c - connect, ask, wait for the one answer; see talk.h. */
#include "talk.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli.h"

#define IN_BYTES (MESSAGE_STAT_BYTES_MAX + 64 * KIB)

static int broken(const struct talk *talk, const char *error)
{
	return cli_fail(EXIT_BROKEN, "%s: the daemon's answer makes no sense: %s", talk->command,
			error);
}

static int unreachable(const struct talk *talk, const char *error)
{
	return cli_fail(EXIT_UNREACHABLE, "%s: %s", talk->command, error);
}

/* ---- asking --------------------------------------------------------------------------------- */

static int talk_send(struct talk *talk, const uint8_t *bytes, size_t count)
{
	/* A question is shorter than any socket's buffer. */
	ssize_t n = send(talk->fd, bytes, count, MSG_NOSIGNAL | MSG_DONTWAIT);

	if (n == (ssize_t)count)
		return 0;
	return unreachable(talk, "the daemon closed the session");
}

/* More bytes, or the exit code. */
static int talk_receive(struct talk *talk, uint64_t deadline_ns)
{
	uint64_t now_ns = clock_now_ns();
	struct pollfd fd = {.fd = talk->fd, .events = POLLIN};
	int wait_ms = now_ns < deadline_ns ? (int)((deadline_ns - now_ns) / NS_PER_MS) + 1 : 0;
	ssize_t n;

	if (poll(&fd, 1, wait_ms) == 0)
		return unreachable(talk, "the daemon gave no answer in time");
	n = recv(talk->fd, talk->in + talk->in_bytes, talk->in_room - talk->in_bytes, 0);
	if (n <= 0 && !(n < 0 && errno == EINTR))
		return unreachable(talk, n ? strerror(errno) : "the daemon closed the session");
	talk->in_bytes += n > 0 ? (size_t)n : 0;
	return 0;
}

static void talk_forget(struct talk *talk)
{
	talk->in_bytes -= talk->taken;
	memmove(talk->in, talk->in + talk->taken, talk->in_bytes);
	talk->taken = 0;
}

/* A daemon's refusal or its goodbye, in its own words. */
static int talk_refused(const struct talk *talk, const struct message *message)
{
	char error[SSV_ERROR_TEXT_MAX];
	struct message_text text;

	if (message_decode_text(message, &text, error))
		return broken(talk, error);
	return cli_fail(EXIT_UNREACHABLE, "%s: the daemon refuses: %.*s", talk->command,
			(int)text.text_bytes, text.text);
}

static int talk_await(struct talk *talk, uint16_t type, struct message *ret_answer)
{
	const uint64_t deadline_ns = clock_now_ns() + talk->timeout_ms * NS_PER_MS;
	char error[SSV_ERROR_TEXT_MAX];
	size_t needed;
	int found, exit_code;

	for (;;) {
		found = message_find(talk->in, talk->in_bytes, MESSAGE_FROM_DAEMON, ret_answer,
				     &needed, error);
		if (found < 0)
			return broken(talk, error);
		if (found == 1)
			break;
		exit_code = talk_receive(talk, deadline_ns);
		if (exit_code)
			return exit_code;
	}
	talk->taken = ret_answer->bytes;
	if (ret_answer->type == MESSAGE_REFUSED || ret_answer->type == MESSAGE_CLOSE)
		return talk_refused(talk, ret_answer);
	if (ret_answer->type == type && ret_answer->id == talk->id)
		return 0;
	snprintf(error, sizeof(error), "%s number %llu, expected %s number %llu",
		 message_name(ret_answer->type), (unsigned long long)ret_answer->id,
		 message_name(type), (unsigned long long)talk->id);
	return broken(talk, error);
}

int talk_reset(struct talk *talk, struct message_text *ret_state)
{
	_Alignas(8) uint8_t question[64];
	char error[SSV_ERROR_TEXT_MAX];
	struct message answer;
	int exit_code;

	talk_forget(talk);
	exit_code =
	    talk_send(talk, question, message_encode_reset(question, sizeof(question), ++talk->id));
	if (!exit_code)
		exit_code = talk_await(talk, MESSAGE_STATUS, &answer);
	if (exit_code)
		return exit_code;
	if (message_decode_text(&answer, ret_state, error))
		return broken(talk, error);
	if (ret_state->status)
		return unreachable(talk, strerror(-ret_state->status));
	return 0;
}

int talk_trace(struct talk *talk, uint32_t track, uint64_t from, struct message_events *ret_head,
	       struct message *ret_answer)
{
	_Alignas(8) uint8_t question[64];
	char error[SSV_ERROR_TEXT_MAX];
	int exit_code;

	talk_forget(talk);
	exit_code =
	    talk_send(talk, question,
		      message_encode_trace(question, sizeof(question), ++talk->id, track, from));
	if (!exit_code)
		exit_code = talk_await(talk, MESSAGE_EVENTS, ret_answer);
	if (exit_code)
		return exit_code;
	if (message_decode_events(ret_answer, ret_head, error))
		return broken(talk, error);
	if (ret_head->track == track && ret_head->first <= ret_head->head &&
	    ret_head->count <= ret_head->head - ret_head->first &&
	    (!ret_head->count || ret_head->first >= from))
		return 0;
	snprintf(error, sizeof(error),
		 "EVENTS %llu to %llu of %llu, track %u: asked from %llu, track %u",
		 (unsigned long long)ret_head->first,
		 (unsigned long long)(ret_head->first + ret_head->count),
		 (unsigned long long)ret_head->head, ret_head->track, (unsigned long long)from,
		 track);
	return broken(talk, error);
}

/* ---- opening and closing -------------------------------------------------------------------- */

static int talk_connect(struct talk *talk, const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval wait = {.tv_sec = talk->timeout_ms / 1000,
			       .tv_usec = (suseconds_t)(talk->timeout_ms % 1000) * 1000};
	struct ucred peer;
	socklen_t bytes = sizeof(peer);
	int n = 0;

	if (!path)
		path = getenv("SHADOWSERVE_SOCKET");
	if (path && path[0])
		n = snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	else if (ssv_default_socket(address.sun_path, sizeof(address.sun_path)))
		n = -1;
	if (n < 0 || (size_t)n >= sizeof(address.sun_path))
		return cli_fail(EXIT_USAGE, "%s: the socket's path is too long", talk->command);
	talk->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (talk->fd < 0)
		return cli_fail(EXIT_BROKEN, "%s: %s", talk->command, strerror(errno));
	(void)setsockopt(talk->fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait));
	if (connect(talk->fd, (const struct sockaddr *)&address, sizeof(address)))
		return cli_fail(EXIT_UNREACHABLE, "%s: no daemon answers at %s: %s", talk->command,
				address.sun_path, strerror(errno));
	if (getsockopt(talk->fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) ||
	    (peer.uid != geteuid() && peer.uid != 0))
		return cli_fail(EXIT_UNREACHABLE, "%s: the daemon at %s is another user's",
				talk->command, address.sun_path);
	return 0;
}

static int talk_greet(struct talk *talk)
{
	struct message_hello hello = {.version_min = MESSAGE_VERSION_MIN,
				      .version_max = MESSAGE_VERSION_MAX,
				      .ranks_count = 1};
	_Alignas(8) uint8_t question[MESSAGE_HEADER_BYTES + sizeof(struct wire_hello)];
	char error[SSV_ERROR_TEXT_MAX];
	struct message_welcome welcome;
	struct message answer;
	int exit_code;

	snprintf(hello.engine_id, sizeof(hello.engine_id), "shadowserve-%s-%d", talk->command,
		 (int)getpid());
	exit_code = talk_send(talk, question,
			      message_encode_hello(question, sizeof(question), ++talk->id, &hello));
	if (!exit_code)
		exit_code = talk_await(talk, MESSAGE_WELCOME, &answer);
	if (!exit_code && message_decode_welcome(&answer, &welcome, error))
		exit_code = broken(talk, error);
	return exit_code;
}

int talk_open(struct talk *talk, const char *command, const char *path, uint32_t timeout_ms)
{
	int exit_code;

	*talk = (struct talk){.command = command, .fd = -1, .timeout_ms = timeout_ms};
	talk->in_room = IN_BYTES;
	talk->in = cli_alloc(talk->in_room);
	exit_code = talk_connect(talk, path);
	if (!exit_code)
		exit_code = talk_greet(talk);
	if (exit_code)
		talk_close(talk);
	return exit_code;
}

void talk_close(struct talk *talk)
{
	if (talk->fd >= 0)
		close(talk->fd);
	free(talk->in);
	*talk = (struct talk){.fd = -1};
}
