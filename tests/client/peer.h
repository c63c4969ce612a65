/* SPDX-License-Identifier: Apache-2.0 */
/*
 * peer.h - scripted daemons for tests of the library. Each is a forked process, so that its death
 * is a real one. Time-outs only bound a failure.
 */
#ifndef SSV_TEST_PEER_H
#define SSV_TEST_PEER_H

#include <sys/types.h>

#include "base/message.h"
#include "shadowserve.h"

#define SOON_MS 10000 /* bounds a failure */

typedef void daemon_script(int socket);

struct peer {
	char folder[64], path[96];
	pid_t pid;
};

/* In the daemon: the next message (it exits when the client is gone), and what it can say. */
struct message next_message(int socket);
void say(int socket, const uint8_t *bytes, size_t count);
void say_text(int socket, uint16_t type, uint64_t id, int status, const char *text);
void say_welcome(int socket);
void say_completion(int socket, uint64_t user_data, uint8_t op, int status);
void wait_for_ever(int socket);
void script_answer_on_flush(int socket); /* answers each LOOKUP when a FLUSH comes, then that */

/* In the test. */
void peer_start(struct peer *peer, daemon_script *script);
void peer_stop(struct peer *peer);
int connect_to(const struct peer *peer, uint32_t timeout_ms, struct ssv **ssv, char *error);
struct ssv *connected(const struct peer *peer);
int submit_lookup(struct ssv *ssv, uint64_t user_data);
int is_readable(int fd, int timeout_ms);

#endif
