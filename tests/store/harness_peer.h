/* SPDX-License-Identifier: Apache-2.0 */
/*
 * harness_peer.h - a server that says anything but what Redis would. One a program.
 */
#ifndef SSV_TESTS_STORE_HARNESS_PEER_H
#define SSV_TESTS_STORE_HARNESS_PEER_H

#include "harness.h"

/* The texts must outlive the peer: it may still be reading an earlier script. */
struct peer_script {
	const char *hello;  /* NULL: no answer at all */
	const char *answer; /* to each command; NULL: none */
	const char *again;  /* to every command but the first, if set */
	const char *map;    /* to CLUSTER SLOTS, if set */
	bool close;         /* after the answer */
	bool bytewise;      /* a send for each byte */
};

void peer_start(void);
void peer_stop(void);
unsigned int peer_port(void);
void peer_tell(const struct peer_script *script);

#endif
