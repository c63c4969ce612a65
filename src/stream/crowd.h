/* SPDX-License-Identifier: Apache-2.0 */
/*
 * crowd.h - who has to go when all places for connections that have proven nothing yet are taken.
 *
 * A port that always refused the newcomer would belong to whoever holds the places. Here a host
 * that has more than a quarter of them gets no more, and pays for newcomers of others: the one that
 * has most, with its oldest. When no host has so many the oldest of all goes. So one host crowds
 * out nobody but itself, and many hosts must be faster than a greeting. A /64 counts as one host,
 * as one machine may own it.
 */
#ifndef SSV_STREAM_CROWD_H
#define SSV_STREAM_CROWD_H

#include <sys/socket.h>

#include "base/base.h"

#define CROWD_MAX 128u

/* Of an IPv4 address (also as IPv6 writes it) the address, of another its first 64 bits. */
uint64_t crowd_host(const struct sockaddr_storage *address);
/* The same of a connected socket's peer; 0: it has none any more. */
uint64_t crowd_host_of(int fd);

/* hosts[count], in order of arrival, the newcomer last; 2 <= count <= CROWD_MAX. Returns the place
 * of the one that goes. */
uint32_t crowd_pays(const uint64_t *hosts, uint32_t count);

#endif
