/* SPDX-License-Identifier: Apache-2.0 */
/*
 * way.h - how a relay grants an engine's memory to the card, and takes it back: the contract of the
 * relay's ways (tcp: way_tcp.c; rdma).
 *
 * The relay maps the engine's memfd, grants the mapping, and offers the grant's blob to the card in
 * REGISTER; what REGISTERED carries back is handed to answered(). A grant ends by revoke(): from
 * the moment that its state is GRANT_REVOKED nothing but the engine writes to the memory, whatever
 * the card does. Only then does the relay report an ending that is not the card's own.
 *
 * Threads: all calls on the relay's control thread; none blocks. A way may have threads of its own.
 */
#ifndef SSV_RELAY_WAY_H
#define SSV_RELAY_WAY_H

#include <netinet/in.h>
#include <sys/socket.h>

#include "base/base.h"
#include "base/blob.h"

enum grant_state {
	GRANT_HELD = 1,    /* the card may reach the memory */
	GRANT_BROKEN = 2,  /* the card's connection to it was lost or broke the rules: revoke it */
	GRANT_LEAVING = 3, /* revoke() was called */
	GRANT_REVOKED = 4, /* nothing of the card reaches the memory any more */
};

struct grant; /* a way's own */

struct relay_way_ops {
	const char *name; /* "tcp", "rdma" */
	uint32_t memory;  /* enum ssv_memory as the card is offered it */

	/* Grant map[bytes]; it stays mapped until release(). here: this machine's address as the
	 * card reaches it. On failure one line in error (SSV_ERROR_TEXT_MAX bytes). */
	int (*grant)(void *way, uint8_t *map, uint64_t bytes, const struct sockaddr_storage *here,
		     struct blob *ret_offer, struct grant **ret_grant, char *error);
	/* The card's answer, at most once. An error ends the session. */
	int (*answered)(void *way, struct grant *grant, const struct blob *answer, char *error);
	/* Take it back; may be called in any state and again. */
	void (*revoke)(void *way, struct grant *grant);
	enum grant_state (*state)(void *way, struct grant *grant);
	/* Forget a grant that is GRANT_REVOKED. */
	void (*release)(void *way, struct grant *grant);
	/* Readable when a grant's state may have changed by itself or after revoke(); the caller
	 * empties it by changed(). -1: states change only within calls. */
	int (*fd)(void *way);
	void (*changed)(void *way);
	void (*close)(void *way); /* all grants are released */
};

/* A way that was opened at start. */
struct relay_way {
	const struct relay_way_ops *ops;
	void *way;
};

#endif
