/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cluster.h - what the files of the redis+cluster: store share. No other file includes it.
 *
 *	cluster.c           URI, opening, operations in and out
 *	cluster_nodes.c     the table of nodes: who is in it, connections, sleeping
 *	cluster_refresh.c   asking for the map, taking it over
 *	cluster_redirect.c  MOVED, ASK and the other refusals; pauses
 *	cluster_map.c       pure: slots, reading a map
 *
 * A node is one server of redis.c with its lanes. An operation stands with one node (in its queues,
 * lanes or pause), in homeless (no map yet) or in done. The table, its lanes and the map are there
 * from the begin: a node that joins takes a free row.
 */
#ifndef SSV_STORE_CLUSTER_H
#define SSV_STORE_CLUSTER_H

#include "base/clock.h"
#include "store/cluster_map.h"
#include "store/redis.h"

#define CLUSTER_SEEDS_MAX     16u /* addresses */
#define CLUSTER_ROWS_MAX      (CLUSTER_NODES_MAX + CLUSTER_SEEDS_MAX)
#define CLUSTER_LANES_MAX     1024u
#define CLUSTER_HOPS_MAX      6u /* refusals that an operation follows */
#define CLUSTER_PAUSE_MIN_NS  (5 * NS_PER_MS)
#define CLUSTER_PATIENCE_NS   (250 * NS_PER_MS) /* a node that refuses longer is not waited for */
#define CLUSTER_FORGET_NS     NS_PER_S          /* ... unless its last refusal was so long ago */
#define CLUSTER_MAP_PAUSE_NS  (100 * NS_PER_MS) /* between two questions for the map */
#define CLUSTER_TROUBLE_BYTES 160

/* store_op.mark: refusals so far, and OP_ASKING */
#define CLUSTER_HOPS_MASK 0xffu

struct cluster_node {
	struct redis_store *redis; /* memory is there from the begin */
	bool used;
	bool member;            /* the map names it; else it is a seed, or leaves when it is idle */
	uint64_t lost_ns;       /* redis->lost_ns as last seen */
	struct op_queue paused; /* refused for now; tried again at retry_ns */
	uint64_t retry_ns;
	uint64_t refusing_ns; /* since when it refuses without a success; 0: it does not */
	uint64_t refused_ns;  /* its last refusal */
	uint32_t pauses;      /* in a row */
};

struct cluster {
	struct store store;
	uint64_t value_bytes_max;
	uint32_t ops_max, held;
	uint16_t prefix_crc;
	uint64_t now_ns, next_ns, logged_ns;
	int epoll_fd;
	uint32_t hot;  /* node with a lane that had more than could be taken; CLUSTER_NO_NODE */
	uint32_t turn; /* which of the ready lanes is the first */

	struct cluster_host seed_hosts[CLUSTER_SEEDS_MAX];
	char seed_names[CLUSTER_SEEDS_MAX][CLUSTER_NAME_MAX];
	struct cluster_hosts seeds;

	struct redis_store *settings;                /* without lanes: what a node begins with */
	uint32_t rows_count, nodes_max, lanes_count; /* rows: nodes_max and the seeds */
	struct cluster_node nodes[CLUSTER_ROWS_MAX];
	uint8_t owner[CLUSTER_SLOTS]; /* node, or CLUSTER_NO_NODE */

	/* The map: asked for at map_ns at the latest. */
	struct cluster_map map; /* being read, or the last one */
	struct cluster_map_reader reader;
	bool map_bad; /* the answer being read cannot be right */
	uint64_t map_ns, map_asked_ns, map_pause_ns, refresh_ns;
	uint32_t asked;                      /* node, or CLUSTER_NO_NODE: none is asked now */
	uint32_t ask_next;                   /* where the search for somebody to ask begins */
	uint64_t maps;                       /* taken over so far */
	uint32_t map_failures;               /* answers in a row that gave none that is right */
	char trouble[CLUSTER_TROUBLE_BYTES]; /* why, in the cluster's words or ours */

	struct op_queue homeless, done;
	struct store_stats stats; /* of nodes that left, and of operations that met none */
};

/* ---- cluster.c ------------------------------------------------------------------------------ */

void cluster_finish(struct cluster *cluster, struct store_op *op, int status);
/* Give an operation to the node of its slot; without one it ends. */
void cluster_route(struct cluster *cluster, struct store_op *op);
bool cluster_may_log(struct cluster *cluster);

/* ---- cluster_nodes.c ------------------------------------------------------------------------ */

static inline struct cluster *cluster_of(const struct redis_store *redis)
{
	return redis->owner;
}

/* The row of a node; CLUSTER_NO_NODE: it left. */
uint32_t cluster_index(const struct cluster *cluster, const struct redis_store *redis);
uint32_t cluster_find(const struct cluster *cluster, const struct redis_address *address);
/* CLUSTER_NO_NODE: the table is full. */
uint32_t cluster_add(struct cluster *cluster, const struct redis_address *address,
		     const char *name);
/* Where host:port is, as the node `from` said; added if it is new. CLUSTER_NO_NODE: a name that
 * nobody resolved, or the table is full. */
uint32_t cluster_locate(struct cluster *cluster, const char *host, uint32_t port,
			const struct redis_store *from);
/* Close what does not belong to the cluster any more and has nothing to do. */
void cluster_retire(struct cluster *cluster);
void cluster_add_seeds(struct cluster *cluster);
/* All nodes' counters, and those of nodes that left. */
void cluster_sum_stats(const struct cluster *cluster, struct store_stats *ret_stats);
/* The cluster's state in one sentence; false: all is well. */
bool cluster_describe(const struct cluster *cluster, char *text, size_t text_bytes);
/* No node could serve anything. */
bool cluster_is_gone(const struct cluster *cluster);
/* One system call: move bytes on the lanes that are ready. */
void cluster_step_io(struct cluster *cluster);
/* Tell the kernel which lanes to watch. */
void cluster_watch(struct cluster *cluster);

/* ---- cluster_refresh.c ---------------------------------------------------------------------- */

/* Something tells that the map changed: ask soon. */
void cluster_want_map(struct cluster *cluster);
/* redis_hooks.map_item */
void cluster_map_item_hook(struct redis_store *redis, const struct resp_item *item);
/* Ask when it is time, and somebody is there to be asked. */
void cluster_step_map(struct cluster *cluster);
/* When it has to be called again at the latest. */
uint64_t cluster_map_next_ns(const struct cluster *cluster);

/* There is no map, and whom the URI names has none. */
static inline bool cluster_has_no_map(const struct cluster *cluster)
{
	return !cluster->maps && cluster->map_failures >= cluster->seeds.count;
}

/* ---- cluster_redirect.c --------------------------------------------------------------------- */

/* redis_hooks.refused */
bool cluster_refused_hook(struct redis_store *redis, struct store_op *op, const char *text);
/* It refuses operations now. */
static inline bool cluster_is_refusing(const struct cluster *cluster,
				       const struct cluster_node *node)
{
	return node->refusing_ns && cluster->now_ns - node->refused_ns < CLUSTER_FORGET_NS;
}

/* Try again what paused for long enough; end what is over. Returns when to call again. */
uint64_t cluster_step_pauses(struct cluster *cluster);
/* An operation of this node succeeded. */
static inline void cluster_note_success(struct cluster_node *node)
{
	node->refusing_ns = 0;
	node->pauses = 0;
}

#endif
