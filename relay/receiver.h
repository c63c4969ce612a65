/* SPDX-License-Identifier: Apache-2.0 */
/*
 * receiver.h - the "tcp" way of a relay: a data port and the one thread that serves it.
 *
 * The thread may have a core of its own. It receives straight into granted memory and sleeps when
 * nothing comes. The control thread grants and revokes; the two share the list of grants under a
 * lock that the data path takes once a connection.
 */
#ifndef SSV_RELAY_RECEIVER_H
#define SSV_RELAY_RECEIVER_H

#include "way.h"

struct receiver;

struct receiver_stats {
	uint64_t connections, refused, broken, bytes;
};

/**
 * Listen on address (port 0: any) and start the thread. core: -1: not pinned.
 * Errors: the system's, with one line in error (SSV_ERROR_TEXT_MAX bytes).
 */
SSV_MUST_CHECK int receiver_open(const struct sockaddr_storage *address, int core,
				 struct receiver **ret_receiver, char *error);
uint16_t receiver_port(const struct receiver *receiver);
/* Processor time that the thread has used. */
uint64_t receiver_cpu_ns(const struct receiver *receiver);
void receiver_stats(struct receiver *receiver, struct receiver_stats *ret_stats);

extern const struct relay_way_ops relay_way_tcp; /* way: a struct receiver */

#endif
