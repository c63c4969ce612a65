/* SPDX-License-Identifier: Apache-2.0 */
/*
 * harness_cluster.h - a Redis Cluster of a test's own: nodes 0 to masters - 1 have equal shares of
 * the slots, those behind are their replicas, in turn.
 */
#ifndef SSV_TESTS_STORE_HARNESS_CLUSTER_H
#define SSV_TESTS_STORE_HARNESS_CLUSTER_H

#include "harness.h"

#define HARNESS_NODES_MAX 8u

struct harness_cluster {
	struct harness_redis *nodes[HARNESS_NODES_MAX];
	unsigned int bus_ports[HARNESS_NODES_MAX];
	char ids[HARNESS_NODES_MAX][48];
	uint32_t count, masters;
	const char *password; /* set by the test when it sets one */
};

/* NULL: redis-server is not installed. whole: it serves nothing while a slot has no master. */
struct harness_cluster *harness_cluster_start(uint32_t masters, uint32_t replicas, bool whole);
void harness_cluster_stop(struct harness_cluster *cluster);
/* A new node without slots; its number. */
uint32_t harness_cluster_join(struct harness_cluster *cluster, bool whole);
/* "redis+cluster://..." with the first node as the only seed. */
void harness_cluster_uri(const struct harness_cluster *cluster, const char *options, char *uri,
			 size_t uri_bytes);

/* One command on a connection of its own; answer: a bulk string's bytes, or the reply's line. */
void harness_cluster_command(const struct harness_cluster *cluster, uint32_t node, char *answer,
			     size_t answer_bytes, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
/* CONFIG SET on every node that runs. */
void harness_cluster_set(const struct harness_cluster *cluster, const char *name,
			 const char *value);
/* Until every running node's answer has the word. */
void harness_cluster_await(const struct harness_cluster *cluster, const char *line,
			   const char *word);

/* Moving a slot: begin, its keys one by one (false: none is left), end. */
void harness_cluster_begin_move(const struct harness_cluster *cluster, uint32_t slot, uint32_t from,
				uint32_t to);
bool harness_cluster_move_key(const struct harness_cluster *cluster, uint32_t slot, uint32_t from,
			      uint32_t to);
void harness_cluster_end_move(const struct harness_cluster *cluster, uint32_t slot, uint32_t from,
			      uint32_t to);

#endif
