/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pair.h - one engine's session and the card's session that serves it.
 *
 * Towards the engine a pair is a daemon, towards the card a client. Messages pass in order and are
 * checked on the way; what differs is WELCOME (this process proves its death), REGISTER (the memfd
 * is mapped here and offered as memory of another machine) and every ending: the memory is taken
 * back from the card before the engine hears that a request, a region or the session is over.
 *
 *	GREETING: the engine's HELLO is awaited    CALLING: the card's answer to it is
 *	OPEN      REVOKING: it ends; grants are taken back    LEAVING: CLOSE is on its way    DONE
 */
#ifndef SSV_RELAY_PAIR_H
#define SSV_RELAY_PAIR_H

#include <sys/types.h>

#include "deliver/deliver.h"
#include "end.h"
#include "way.h"

#define PAIR_REGIONS_MAX 64
#define PAIR_AFTER_BYTES 320 /* REFUSED or UNREGISTERED that waits for a revocation */

enum pair_state {
	PAIR_GREETING = 1,
	PAIR_CALLING = 2,
	PAIR_OPEN = 3,
	PAIR_REVOKING = 4,
	PAIR_LEAVING = 5,
	PAIR_DONE = 6,
};

enum pair_region_state {
	REGION_FREE = 0,
	REGION_ASKED = 1, /* REGISTER went to the card */
	REGION_USED = 2,
	REGION_LEAVING = 3, /* its grant is being revoked; then `after` is said */
};

struct pair_region {
	enum pair_region_state state;
	uint64_t id;     /* of REGISTER */
	uint32_t number; /* the card's */
	struct region *region;
	struct grant *grant;
	uint8_t after[PAIR_AFTER_BYTES];
	size_t after_bytes;
};

/* What all pairs share; outlives them. */
struct pair_world {
	struct stream_tls *tls;
	struct sockaddr_storage card;
	const char *card_text; /* host:port, for reasons */
	struct relay_way way;
	struct sockaddr_storage here; /* the data port's address; family 0: that of the session */
	uint64_t call_ns, card_ns;    /* to be welcomed; to hear something while there is work */
	struct ssv_tensor *tensors;   /* [SSV_TENSORS_MAX], scratch */
};

struct pair {
	struct pair_world *world;
	enum pair_state state;
	struct end engine, card;
	int pidfd; /* the engine's, -1: none */
	pid_t pid;
	char engine_id[SSV_ENGINE_ID_MAX];
	uint64_t deadline_ns; /* of GREETING, CALLING, LEAVING */
	uint64_t hello_id;
	uint64_t heard_ns, asked_ns; /* the card: last heard; last asked whether it lives, or 0 */
	uint32_t waiting;            /* questions and requests that it has to answer */
	/* For the log: messages, and times that the card was asked whether it lives. */
	uint64_t from_engine, from_card, asked;
	uint32_t regions_end; /* all regions from this one on are free */
	struct pair_region regions[PAIR_REGIONS_MAX];
	int status;
	char reason[SSV_ERROR_TEXT_MAX];
};

/* Around an engine's connected socket; both descriptors become the pair's, also on failure. */
SSV_MUST_CHECK int pair_create(struct pair_world *world, int fd, int pidfd, pid_t pid,
			       uint64_t now_ns, struct pair **ret_pair);
void pair_destroy(struct pair *pair); /* takes NULL; DONE, or nothing else runs any more */

void pair_engine_ready(struct pair *pair, int hung_up, uint64_t now_ns);
void pair_card_ready(struct pair *pair, uint64_t now_ns);
void pair_engine_died(struct pair *pair, uint64_t now_ns);
void pair_end(struct pair *pair, int status, const char *reason, uint64_t now_ns);

/* Deadlines, grants that changed, what waits to be sent. Call after anything happened. */
void pair_settle(struct pair *pair, uint64_t now_ns);
uint64_t pair_next_ns(const struct pair *pair); /* TIME_NEVER: nothing is due */

/* pair_region.c. -EPROTO with one line in error ends the session. */
SSV_MUST_CHECK int pair_register(struct pair *pair, const struct message *message, char *error);
SSV_MUST_CHECK int pair_registered(struct pair *pair, const struct message *message, char *error);
SSV_MUST_CHECK int pair_unregistered(struct pair *pair, const struct message *message, char *error);
/* 1 when the message is a region's and was kept until its grant is revoked. */
int pair_refused(struct pair *pair, const struct message *message);
void pair_regions_revoke(struct pair *pair);
/* Go on with those that are leaving; returns how many are not free yet. -EIO: one is broken. */
SSV_MUST_CHECK int pair_regions_settle(struct pair *pair);

#endif
