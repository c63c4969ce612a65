/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_rig.h - what the tests of the data port share: memory between guard pages, a real receiver
 * that grants it, and a raw connection that can send anything.
 */
#ifndef TESTS_DELIVER_TCP_RIG_H
#define TESTS_DELIVER_TCP_RIG_H

#include "deliver/tcp_frame.h"
#include "receiver.h"

#define RIG_CANARY   0xab
#define RIG_LIMIT_NS 20000000000ull

struct tcp_rig {
	struct receiver *receiver;
	struct grant *grant;
	struct blob blob;
	struct tcp_offer offer;
	uint8_t *map; /* between guard pages, filled with RIG_CANARY */
	uint64_t bytes;
	uint8_t *guarded; /* the whole mapping */
	uint64_t guarded_bytes;
};

/* bytes: a multiple of the page's. */
void tcp_rig_open(struct tcp_rig *rig, uint64_t bytes);
void tcp_rig_close(struct tcp_rig *rig); /* revokes, waits, releases */

/* Until the receiver says that it has moved so many bytes of payload, and not one more: to a race
 * detector, which cannot see through a socket, its thread is done with the memory then. */
void tcp_rig_await_moved(struct tcp_rig *rig, uint64_t bytes);
void tcp_rig_revoke(struct tcp_rig *rig); /* and waits until it is */
void tcp_rig_await(struct tcp_rig *rig, enum grant_state state);
int tcp_rig_is_untouched(const struct tcp_rig *rig);

/* A connected socket that has said nothing, or HELLO as it is offered. */
int tcp_rig_connect(const struct tcp_rig *rig);
int tcp_rig_connect_from(const struct tcp_rig *rig, uint32_t host); /* 127.x.y.z: its low bits */
int tcp_rig_greet(const struct tcp_rig *rig);
void tcp_rig_hello(const struct tcp_rig *rig, int fd);
/* 1 when the peer closes it within the limit; what it says before is dropped. */
int tcp_rig_is_closed(int fd);
void tcp_rig_send(int fd, const void *bytes, size_t count);
void tcp_rig_receive(int fd, void *bytes, size_t count);

struct tcp_frame tcp_rig_frame(const struct tcp_rig *rig, enum tcp_kind kind, uint64_t sequence,
			       uint32_t runs, uint64_t bytes);

int test_tcp_relay(void); /* test_tcp_relay.c */

#endif
