/* SPDX-License-Identifier: Apache-2.0 */
/*
 * receive.c - bench_receive: how fast one thread can take values from a Redis at all, as JSON.
 *
 *	bench_receive HOST PORT CONNECTIONS PIECE_KIB BUFFER_KIB ROUND_BYTES ROUNDS < VALUES
 *
 * The values (a line "KEY BYTES" each) are read in turn over CONNECTIONS connections: in pieces of
 * PIECE_KIB, two ahead on each, because that is how a Redis sends fastest, or whole (0). All of
 * it goes into a buffer that is used again and again, so a small one stays in the cache and a large
 * one does not; nothing looks at it. This is what a link and a core give at the most: the yardstick
 * beside the daemon's fetches, which check and decode as well.
 *
 * A round ends with the receive that completes ROUND_BYTES; the next begins there.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

#define CONNECTIONS_MAX 64u
#define VALUES_MAX      1024u
#define KEY_BYTES       128u
#define ROUNDS_MAX      1000u
#define AHEAD           2u
#define HEAD_BYTES      32u
#define STALL_MS        10000

struct connection {
	int fd;
	char head[HEAD_BYTES]; /* "$LENGTH\r\n" as far as it has come */
	uint32_t head_bytes;
	uint64_t left; /* of the piece and its line end */
};

struct value {
	char key[KEY_BYTES];
	uint64_t bytes;
};

struct receive {
	struct connection connections[CONNECTIONS_MAX];
	struct value values[VALUES_MAX];
	uint32_t connections_count, values_count, value;
	uint64_t at, piece_bytes; /* next to be asked for: at of value */
	uint8_t *buffer;
	uint64_t buffer_bytes, buffer_at, received;
};

struct round {
	uint64_t bytes, ns;
};

static void die(const char *what, const char *why)
{
	fprintf(stderr, "bench_receive: %s: %s\n", what, why);
	exit(2);
}

static uint64_t number(const char *text, uint64_t min, uint64_t max)
{
	char *end;
	unsigned long long value = strtoull(text, &end, 10);

	if (*end || value < min || value > max)
		die(text, "not a number in range");
	return value;
}

static void read_values(struct receive *r)
{
	char line[KEY_BYTES + 32];

	while (r->values_count < VALUES_MAX && fgets(line, sizeof(line), stdin)) {
		struct value *value = &r->values[r->values_count++];
		unsigned long long bytes;

		if (sscanf(line, "%127s %llu", value->key, &bytes) != 2 || !bytes)
			die("values", "expected lines of KEY BYTES");
		value->bytes = bytes;
	}
	if (!r->values_count)
		die("values", "none on stdin");
}

/* Ask for the next piece. */
static void ask(struct receive *r, struct connection *c)
{
	const struct value *value = &r->values[r->value];
	uint64_t bytes = r->piece_bytes ? r->piece_bytes : value->bytes;
	char from[24], to[24], text[KEY_BYTES + 128];
	int n, from_bytes, to_bytes;

	from_bytes = snprintf(from, sizeof(from), "%llu", (unsigned long long)r->at);
	to_bytes = snprintf(to, sizeof(to), "%llu", (unsigned long long)(r->at + bytes - 1));
	if (r->piece_bytes)
		n = snprintf(text, sizeof(text),
			     "*4\r\n$8\r\nGETRANGE\r\n$%zu\r\n%s\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n",
			     strlen(value->key), value->key, from_bytes, from, to_bytes, to);
	else
		n = snprintf(text, sizeof(text), "*2\r\n$3\r\nGET\r\n$%zu\r\n%s\r\n",
			     strlen(value->key), value->key);
	r->at += bytes;
	if (r->at >= value->bytes) {
		r->at = 0;
		r->value = (r->value + 1) % r->values_count;
	}
	if (send(c->fd, text, (size_t)n, MSG_NOSIGNAL) != n)
		die("send", strerror(errno));
}

static void dial(struct connection *c, const char *host, uint16_t port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
	const int one = 1;

	if (inet_pton(AF_INET, host, &to.sin_addr) != 1)
		die(host, "not an IPv4 address");
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->fd < 0 || connect(c->fd, (const struct sockaddr *)&to, sizeof(to)))
		die(host, strerror(errno));
	(void)setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

/* Bytes of the piece that the head announces, its line end included. */
static uint64_t head_value(const struct connection *c)
{
	char text[HEAD_BYTES + 1] = "";

	memcpy(text, c->head, c->head_bytes);
	if (text[0] != '$' || text[1] == '-')
		die("answer", text);
	return strtoull(text + 1, NULL, 10) + 2;
}

/* Read the head byte by byte: a few bytes a value of megabytes. 0: nothing there now. */
static int take_head(struct connection *c)
{
	while (c->head_bytes < HEAD_BYTES) {
		ssize_t n = recv(c->fd, c->head + c->head_bytes, 1, MSG_DONTWAIT);

		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n <= 0)
			die("recv", n ? strerror(errno) : "closed");
		if (c->head[c->head_bytes++] != '\n')
			continue;
		c->left = head_value(c);
		c->head_bytes = 0;
		return 1;
	}
	die("answer", "no length");
	return 0;
}

static void take_bytes(struct receive *r, struct connection *c)
{
	uint64_t room = r->buffer_bytes - r->buffer_at;
	ssize_t n =
	    recv(c->fd, r->buffer + r->buffer_at, c->left < room ? c->left : room, MSG_DONTWAIT);

	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0)
		die("recv", n ? strerror(errno) : "closed");
	r->buffer_at = (r->buffer_at + (uint64_t)n) % r->buffer_bytes;
	r->received += (uint64_t)n;
	c->left -= (uint64_t)n;
	if (c->left)
		return;
	ask(r, c);
}

/* Until `bytes` more have come. */
static struct round run_round(struct receive *r, uint64_t bytes)
{
	const uint64_t from = r->received, begin_ns = clock_now_ns();
	struct pollfd fds[CONNECTIONS_MAX];

	while (r->received - from < bytes) {
		int ready;

		for (uint32_t i = 0; i < r->connections_count; i++)
			fds[i] = (struct pollfd){.fd = r->connections[i].fd, .events = POLLIN};
		ready = poll(fds, r->connections_count, STALL_MS);

		if (ready < 0 && errno == EINTR)
			continue; /* it was stopped for a while */
		if (ready <= 0)
			die("poll", "nothing came for 10 s");
		for (uint32_t i = 0; i < r->connections_count; i++) {
			struct connection *c = &r->connections[i];

			if (fds[i].revents && (c->left || take_head(c)))
				take_bytes(r, c);
		}
	}
	return (struct round){.bytes = r->received - from, .ns = clock_now_ns() - begin_ns};
}

static double seconds(struct timeval t)
{
	return (double)t.tv_sec + (double)t.tv_usec / 1e6;
}

static void print_result(const struct round *rounds, uint32_t count, const struct rusage *before)
{
	struct rusage after;

	getrusage(RUSAGE_SELF, &after);
	printf("{\"rounds\": [");
	for (uint32_t i = 0; i < count; i++)
		printf("%s{\"wire_bytes\": %llu, \"seconds\": %.6f}", i ? ", " : "",
		       (unsigned long long)rounds[i].bytes, (double)rounds[i].ns / 1e9);
	printf("], \"user_s\": %.6f, \"sys_s\": %.6f}\n",
	       seconds(after.ru_utime) - seconds(before->ru_utime),
	       seconds(after.ru_stime) - seconds(before->ru_stime));
}

int main(int argc, char **argv)
{
	static struct receive r;
	static struct round rounds[ROUNDS_MAX];
	struct rusage before;
	uint64_t round_bytes;
	uint32_t count;
	uint16_t port;

	if (argc != 8)
		die("usage",
		    "HOST PORT CONNECTIONS PIECE_KIB BUFFER_KIB ROUND_BYTES ROUNDS < VALUES");
	port = (uint16_t)number(argv[2], 1, 65535);
	r.connections_count = (uint32_t)number(argv[3], 1, CONNECTIONS_MAX);
	r.piece_bytes = number(argv[4], 0, 1u << 20) << 10;
	r.buffer_bytes = number(argv[5], 4, 1u << 22) << 10;
	round_bytes = number(argv[6], 1, UINT64_MAX / 2);
	count = (uint32_t)number(argv[7], 1, ROUNDS_MAX);
	r.buffer = malloc(r.buffer_bytes);
	if (!r.buffer)
		die("buffer", "out of memory");
	memset(r.buffer, 1, r.buffer_bytes);
	read_values(&r);
	for (uint32_t i = 0; i < r.connections_count; i++)
		dial(&r.connections[i], argv[1], port);
	for (uint32_t i = 0; i < AHEAD * r.connections_count; i++)
		ask(&r, &r.connections[i % r.connections_count]);
	(void)run_round(&r, round_bytes / 4);
	getrusage(RUSAGE_SELF, &before);
	for (uint32_t i = 0; i < count; i++)
		rounds[i] = run_round(&r, round_bytes);
	print_result(rounds, count, &before);
	return 0;
}
