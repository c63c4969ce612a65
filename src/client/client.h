/* SPDX-License-Identifier: Apache-2.0 */
/*
 * client.h - inside libshadowserve: the session's state and the three parts that share it.
 *
 *	client.c   connect, close, what the session is
 *	link.c     bytes: buffers, the descriptor to sleep on, the daemon's death
 *	flight.c   requests in flight and completions not yet taken
 *	request.c  submit, poll, stat          region.c  register, unregister
 *
 * Invariant: a request is in flight from the moment it is accepted until its completion is taken,
 * and gets exactly one: from the daemon, or -ENOTCONN once the session ended for sure (LINK_ENDED).
 * A broken link (LINK_BROKEN) proves nothing: a stopped daemon can still write.
 */
#ifndef SSV_CLIENT_H
#define SSV_CLIENT_H

#include <sys/types.h>

#include "base/base.h"
#include "base/message.h"
#include "shadowserve.h"

#define CLIENT_OUT_BYTES   (1 * MIB) /* accepted requests that the socket did not take yet */
#define CLIENT_REGIONS_MAX 256
#define CLIENT_HEADS       1024 /* hash heads of the flight table; a power of two */

enum link_state {
	LINK_OPEN = 1,
	LINK_BROKEN = 2, /* the socket ended or the peer broke the protocol; the daemon may live */
	LINK_ENDED = 3,  /* closed by the daemon after quiescence, or its death is proven */
};

enum flight_state { FLIGHT_FREE = 0, FLIGHT_SENT = 1, FLIGHT_DONE = 2 };

struct flight {
	uint64_t user_data;
	uint8_t op, state; /* enum flight_state */
	uint16_t next;     /* in the hash chain or the free list; SSV_REQUESTS_MAX: none */
};

struct flights {
	struct flight entries[SSV_REQUESTS_MAX];
	uint16_t heads[CLIENT_HEADS];
	uint16_t free;
	uint32_t count;
	struct ssv_completion done[SSV_REQUESTS_MAX]; /* ring of completions not yet taken */
	uint32_t done_start, done_count;
};

enum region_state { REGION_FREE = 0, REGION_USED = 1, REGION_LEAVING = 2, REGION_GONE = 3 };

struct client_region {
	uint32_t id;
	uint8_t state;       /* enum region_state */
	uint64_t leaving_id; /* message that asked to unregister it */
	uint32_t block_tokens, blocks_count;
};

/* The one answer that a blocking call waits for. */
struct answer {
	uint64_t id; /* 0: none awaited */
	uint16_t type;
	int came;
	int32_t status;
	uint32_t region;
	uint32_t welcome_pid;
	char text[SSV_ERROR_TEXT_MAX];
	char *json; /* where a STATUS text goes */
	size_t json_bytes;
	int json_length; /* or -E2BIG */
};

struct ssv {
	pid_t owner; /* process that connected: a fork's child is not it */
	pid_t daemon;
	enum link_state state;
	int socket, pidfd, epoll, wakeup;
	int watching_out, wakeup_set;
	int fault; /* why it broke: -ENOTCONN, -EPROTO, -ENOMEM */
	uint64_t last_id;
	uint8_t *in; /* [in_room], aligned to 8 */
	size_t in_room, in_bytes;
	uint8_t *out; /* [CLIENT_OUT_BYTES], aligned to 8 */
	size_t out_start, out_end;
	struct answer answer;
	struct flights flights;
	struct client_region regions[CLIENT_REGIONS_MAX];
	char reason[SSV_ERROR_TEXT_MAX];
};

/* 0 in the process that connected, -ENOTCONN in a fork's child. */
SSV_MUST_CHECK int client_check(const struct ssv *ssv);

/* ---- link.c */
/* Make descriptors and buffers around a connected socket, which becomes owned on success. */
SSV_MUST_CHECK int link_open(struct ssv *ssv, int socket, char *error);
void link_close(struct ssv *ssv);
size_t link_room(const struct ssv *ssv);        /* bytes that can be queued now */
uint8_t *link_reserve(struct ssv *ssv);         /* where link_room() bytes may be written */
void link_queue(struct ssv *ssv, size_t bytes); /* they were */
void link_flush(struct ssv *ssv);               /* send what the socket takes */
/* Send a message with a descriptor beside it, after everything queued. */
SSV_MUST_CHECK int link_send_fd(struct ssv *ssv, const uint8_t *bytes, size_t count, int fd,
				uint64_t deadline_ns);
/* Wait for anything to happen, at most timeout_ms (-1: no limit), and deal with it.
 * Returns -EINTR when a signal came first. */
SSV_MUST_CHECK int link_wait(struct ssv *ssv, int timeout_ms);
/* Until the awaited answer came, the session ended or the deadline passed (-ETIMEDOUT); a broken
 * link ends the wait with -ENOTCONN unless through_break is set. */
SSV_MUST_CHECK int link_await(struct ssv *ssv, uint64_t deadline_ns, int through_break);
void link_break(struct ssv *ssv, int fault, const char *reason);
/* 1 when no completion can come any more: it ended, or it broke with nothing in flight. */
int link_is_over(const struct ssv *ssv);
/* Keep ssv_fd() readable exactly while ssv_poll() would return at once. */
void link_signal(struct ssv *ssv);

/* ---- flight.c */
void flights_init(struct flights *flights);
struct flight *flights_find(struct flights *flights, uint64_t user_data);
void flights_add(struct flights *flights, uint64_t user_data, uint8_t op); /* not full, not there */
/* -EPROTO when no such request waits for a completion. */
SSV_MUST_CHECK int flights_complete(struct flights *flights,
				    const struct ssv_completion *completion);
void flights_end(struct flights *flights, int status); /* complete all that still wait */
uint32_t flights_take(struct flights *flights, struct ssv_completion *completions, uint32_t max);

/* ---- region.c */
const struct client_region *client_region_find(const struct ssv *ssv, uint32_t id);
/* A REGISTERED that nobody waits for any more, and an UNREGISTERED, waited for or not. */
void client_region_disown(struct ssv *ssv, uint32_t id);
void client_region_left(struct ssv *ssv, uint64_t message_id);

#endif
