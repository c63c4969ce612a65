/* SPDX-License-Identifier: Apache-2.0 */
/* tcp_rig.c - a receiver, memory between guard pages, raw connections. */
#include "tcp_rig.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "shadowserve.h"

static struct sockaddr_storage loopback(uint16_t port)
{
	struct sockaddr_storage address = {0};
	struct sockaddr_in *v4 = (struct sockaddr_in *)&address;

	v4->sin_family = AF_INET;
	v4->sin_port = htons(port);
	v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return address;
}

void tcp_rig_open(struct tcp_rig *rig, uint64_t bytes)
{
	const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	struct sockaddr_storage address = loopback(0);
	char error[SSV_ERROR_TEXT_MAX] = "";

	memset(rig, 0, sizeof(*rig));
	rig->bytes = bytes;
	rig->guarded_bytes = bytes + 2 * page;
	rig->guarded =
	    mmap(NULL, rig->guarded_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(rig->guarded != MAP_FAILED);
	rig->map = rig->guarded + page;
	assert_int_equal(mprotect(rig->map, bytes, PROT_READ | PROT_WRITE), 0);
	memset(rig->map, RIG_CANARY, bytes);
	assert_int_equal(receiver_open(&address, -1, &rig->receiver, error), 0);
	assert_int_equal(relay_way_tcp.grant(rig->receiver, rig->map, bytes, &address, &rig->blob,
					     &rig->grant, error),
			 0);
	memcpy(&rig->offer, rig->blob.data, sizeof(rig->offer));
}

void tcp_rig_await(struct tcp_rig *rig, enum grant_state state)
{
	const uint64_t end_ns = clock_now_ns() + RIG_LIMIT_NS;

	while (relay_way_tcp.state(rig->receiver, rig->grant) != state) {
		struct pollfd fd = {.fd = relay_way_tcp.fd(rig->receiver), .events = POLLIN};

		assert_true(clock_now_ns() < end_ns);
		(void)!poll(&fd, 1, 1000);
		relay_way_tcp.changed(rig->receiver);
	}
}

void tcp_rig_await_moved(struct tcp_rig *rig, uint64_t bytes)
{
	const uint64_t end_ns = clock_now_ns() + RIG_LIMIT_NS;
	struct receiver_stats stats;

	for (;;) {
		receiver_stats(rig->receiver, &stats);
		if (stats.bytes >= bytes)
			break;
		assert_true(clock_now_ns() < end_ns);
		sched_yield();
	}
	assert_int_equal(stats.bytes, bytes);
}

void tcp_rig_revoke(struct tcp_rig *rig)
{
	relay_way_tcp.revoke(rig->receiver, rig->grant);
	tcp_rig_await(rig, GRANT_REVOKED);
}

void tcp_rig_close(struct tcp_rig *rig)
{
	tcp_rig_revoke(rig);
	relay_way_tcp.release(rig->receiver, rig->grant);
	relay_way_tcp.close(rig->receiver);
	munmap(rig->guarded, rig->guarded_bytes);
}

int tcp_rig_is_untouched(const struct tcp_rig *rig)
{
	for (uint64_t i = 0; i < rig->bytes; i++) {
		if (rig->map[i] != RIG_CANARY)
			return 0;
	}
	return 1;
}

int tcp_rig_connect_from(const struct tcp_rig *rig, uint32_t host)
{
	const struct sockaddr_storage to = loopback(receiver_port(rig->receiver));
	struct sockaddr_storage from = loopback(0);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	((struct sockaddr_in *)&from)->sin_addr.s_addr = htonl(INADDR_LOOPBACK + host);
	assert_true(fd >= 0);
	assert_int_equal(bind(fd, (const struct sockaddr *)&from, sizeof(struct sockaddr_in)), 0);
	assert_int_equal(connect(fd, (const struct sockaddr *)&to, sizeof(struct sockaddr_in)), 0);
	return fd;
}

int tcp_rig_connect(const struct tcp_rig *rig)
{
	return tcp_rig_connect_from(rig, 0);
}

void tcp_rig_send(int fd, const void *bytes, size_t count)
{
	const uint8_t *from = bytes;

	while (count) {
		ssize_t n = send(fd, from, count, MSG_NOSIGNAL);

		if (n < 0) /* closed meanwhile: what the caller looks for */
			return;
		from += n;
		count -= (size_t)n;
	}
}

void tcp_rig_receive(int fd, void *bytes, size_t count)
{
	assert_int_equal(recv(fd, bytes, count, MSG_WAITALL), (ssize_t)count);
}

void tcp_rig_hello(const struct tcp_rig *rig, int fd)
{
	struct tcp_hello hello = {.version = htole16(TCP_VERSION), .epoch = rig->offer.epoch};

	memcpy(hello.magic, TCP_MAGIC, sizeof(hello.magic));
	memcpy(hello.token, rig->offer.token, sizeof(hello.token));
	tcp_rig_send(fd, &hello, sizeof(hello));
}

int tcp_rig_greet(const struct tcp_rig *rig)
{
	int fd = tcp_rig_connect(rig);

	tcp_rig_hello(rig, fd);
	return fd;
}

int tcp_rig_is_closed(int fd)
{
	const uint64_t end_ns = clock_now_ns() + RIG_LIMIT_NS;
	uint8_t dropped[4096];

	while (clock_now_ns() < end_ns) {
		struct pollfd wait = {.fd = fd, .events = POLLIN};
		ssize_t n;

		if (poll(&wait, 1, 1000) != 1)
			continue;
		n = recv(fd, dropped, sizeof(dropped), MSG_DONTWAIT);
		if (n == 0 || (n < 0 && errno != EAGAIN))
			return 1;
	}
	return 0;
}

struct tcp_frame tcp_rig_frame(const struct tcp_rig *rig, enum tcp_kind kind, uint64_t sequence,
			       uint32_t runs, uint64_t bytes)
{
	return (struct tcp_frame){.kind = htole32((uint32_t)kind),
				  .runs_count = htole32(runs),
				  .epoch = rig->offer.epoch,
				  .sequence = htole64(sequence),
				  .bytes = htole64(bytes)};
}
