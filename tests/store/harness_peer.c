/* SPDX-License-Identifier: Apache-2.0 */
/*
 * harness_peer.c - a server that says what the test tells it: one thread with plain sockets.
 *
 * It answers the log-in, then every command with the script's answer; with a map in the script,
 * CLUSTER has that for an answer and ASKING an OK.
 */
#include "harness_peer.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS_MAX 64

static struct {
	pthread_t thread;
	pthread_mutex_t lock; /* guards script and answers */
	struct peer_script script;
	uint32_t answers;
	unsigned int port;
	int listener, stop[2];
} peer;

/* Used by the peer's thread alone. */
struct connection {
	int fd;
	bool greeted;
};

static void say(int fd, const char *text, bool bytewise)
{
	size_t bytes = strlen(text);
	size_t at, piece = bytewise ? 1 : bytes;

	for (at = 0; at < bytes; at += piece)
		(void)send(fd, text + at, piece, MSG_NOSIGNAL);
}

/* Each command begins with '*' at the begin of a line; values here hold none. Returns the text of
 * the next one, NULL: none. */
static const char *next_command(const char *at, const char *data, const char *end)
{
	for (; at < end; at++) {
		if (*at == '*' && (at == data || at[-1] == '\n'))
			return at;
	}
	return NULL;
}

static const char *answer_to(const struct peer_script *script, const char *command)
{
	if (script->map && !strncmp(command, "*2\r\n$7\r\nCLUSTER", 15))
		return script->map;
	if (script->map && !strncmp(command, "*1\r\n$6\r\nASKING", 14))
		return "+OK\r\n";
	return script->answer;
}

/* Returns false when the connection is over. */
static bool serve(struct connection *connection)
{
	char data[4096];
	ssize_t n = recv(connection->fd, data, sizeof(data) - 1, 0);
	const char *at = data, *answer;
	struct peer_script script;
	uint32_t commands = 0;

	if (n <= 0)
		return false;
	data[n] = '\0';
	while ((at = next_command(at, data, data + n))) {
		commands++;
		at++;
	}
	pthread_mutex_lock(&peer.lock);
	script = peer.script;
	if (connection->greeted && commands)
		peer.answers += commands;
	if (connection->greeted && script.again && peer.answers > commands)
		script.answer = script.again;
	pthread_mutex_unlock(&peer.lock);
	if (!connection->greeted) {
		if (script.hello)
			say(connection->fd, script.hello, script.bytewise);
		connection->greeted = true;
		return true;
	}
	for (at = data; (at = next_command(at, data, data + n)); at++) {
		answer = answer_to(&script, at);
		if (answer)
			say(connection->fd, answer, script.bytewise);
	}
	return !script.close || script.answer == script.again;
}

static void *run_peer(void *context)
{
	struct connection connections[CONNECTIONS_MAX];
	struct pollfd fds[CONNECTIONS_MAX + 2];
	const int one = 1;
	nfds_t n = 0, i;

	(void)context;
	for (;;) {
		fds[0] = (struct pollfd){.fd = peer.stop[0], .events = POLLIN};
		fds[1] = (struct pollfd){.fd = peer.listener, .events = POLLIN};
		for (i = 0; i < n; i++)
			fds[i + 2] = (struct pollfd){.fd = connections[i].fd, .events = POLLIN};
		(void)poll(fds, n + 2, -1);
		if (fds[0].revents)
			break;
		for (i = n; i-- > 0;) {
			if (!fds[i + 2].revents || serve(&connections[i]))
				continue;
			(void)close(connections[i].fd);
			connections[i] = connections[--n];
		}
		if (fds[1].revents && n < CONNECTIONS_MAX) {
			int fd = accept4(peer.listener, NULL, NULL, SOCK_CLOEXEC);

			(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
			connections[n++] = (struct connection){.fd = fd};
		}
	}
	for (i = 0; i < n; i++)
		(void)close(connections[i].fd);
	return NULL;
}

void peer_tell(const struct peer_script *script)
{
	pthread_mutex_lock(&peer.lock);
	peer.script = *script;
	peer.answers = 0;
	pthread_mutex_unlock(&peer.lock);
}

unsigned int peer_port(void)
{
	return peer.port;
}

void peer_start(void)
{
	pthread_mutex_init(&peer.lock, NULL);
	peer.port = harness_port(&peer.listener);
	assert_int_equal(pipe(peer.stop), 0);
	assert_int_equal(pthread_create(&peer.thread, NULL, run_peer, NULL), 0);
}

void peer_stop(void)
{
	(void)close(peer.stop[1]);
	(void)pthread_join(peer.thread, NULL);
	(void)close(peer.stop[0]);
	(void)close(peer.listener);
}
