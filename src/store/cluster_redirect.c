/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cluster_redirect.c - what a node's refusal does to an operation: it goes on to another node,
 * pauses, or ends.
 *
 * MOVED and ASK are followed at once; who is sent in circles pauses between. A node that is not
 * ready (CLUSTERDOWN, LOADING ...) is tried again for a quarter of a second with growing pauses,
 * and as long as it goes on refusing after that, its operations end at once. An operation follows
 * at most CLUSTER_HOPS_MAX refusals, always within its deadline.
 */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "store/cluster.h"

#define PAUSE_DOUBLINGS 4u
#define HOPS_AT_ONCE    2u /* more of them are a circle, or a cluster that is being changed */

static bool begins_with(const char *text, const char *word)
{
	size_t bytes = strlen(word);

	return !strncmp(text, word, bytes) && (text[bytes] == ' ' || text[bytes] == '\0');
}

/* The node does not serve op now: try again later, unless it refuses for long or op was sent about
 * too often. */
static void pause_op(struct cluster *cluster, struct cluster_node *node, struct store_op *op,
		     const char *text)
{
	if (!cluster_is_refusing(cluster, node)) {
		node->refusing_ns = cluster->now_ns;
		node->pauses = 0;
	}
	node->refused_ns = cluster->now_ns;
	cluster_want_map(cluster);
	if ((op->mark & CLUSTER_HOPS_MASK) > CLUSTER_HOPS_MAX ||
	    cluster->now_ns - node->refusing_ns >= CLUSTER_PATIENCE_NS) {
		if (cluster_may_log(cluster))
			log_warn("redis cluster node refuses node=%s answer=\"%s\"",
				 node->redis->name, text);
		redis_finish(node->redis, op, -ENOTCONN);
		return;
	}
	op->mark &= ~OP_ASKING;
	if (!node->paused.first) {
		node->retry_ns = cluster->now_ns + (CLUSTER_PAUSE_MIN_NS << node->pauses);
		if (node->pauses < PAUSE_DOUBLINGS)
			node->pauses++;
	}
	op_queue_push(&node->paused, op);
}

/* MOVED, ASK: where to. */
static void redirect(struct cluster *cluster, struct cluster_node *node, struct store_op *op,
		     const char *text)
{
	bool ask = begins_with(text, "ASK");
	struct cluster_redirect to;
	uint32_t target;

	if (cluster_read_redirect(text, &to) ||
	    to.slot != cluster_slot(cluster->prefix_crc, &op->key)) {
		redis_finish(node->redis, op, -EPROTO);
		return;
	}
	target = cluster_locate(cluster, to.host, to.port, node->redis);
	if (target == CLUSTER_NO_NODE || &cluster->nodes[target] == node) {
		pause_op(cluster, node, op, text);
		return;
	}
	if (!ask) {
		cluster->owner[to.slot] = (uint8_t)target;
		cluster->nodes[target].member = true;
	}
	if ((op->mark & CLUSTER_HOPS_MASK) > HOPS_AT_ONCE) {
		pause_op(cluster, node, op, text);
		return;
	}
	op->mark = ask ? op->mark | OP_ASKING : op->mark & ~OP_ASKING;
	redis_enqueue(cluster->nodes[target].redis, op);
}

static bool is_not_ready(const char *text)
{
	static const char *const words[] = {"CLUSTERDOWN", "LOADING",    "TRYAGAIN",
					    "READONLY",    "MASTERDOWN", "BUSY"};
	size_t i;

	for (i = 0; i < ARRAY_COUNT(words); i++) {
		if (begins_with(text, words[i]))
			return true;
	}
	return false;
}

bool cluster_refused_hook(struct redis_store *redis, struct store_op *op, const char *text)
{
	struct cluster *cluster = cluster_of(redis);
	uint32_t index = cluster_index(cluster, redis);
	struct cluster_node *node = &cluster->nodes[index];
	bool moved = begins_with(text, "MOVED");

	ssv_assert(index != CLUSTER_NO_NODE);
	if (!moved && !begins_with(text, "ASK") && !is_not_ready(text))
		return false;
	op->mark++;
	if (is_not_ready(text)) {
		pause_op(cluster, node, op, text);
		return true;
	}
	cluster->stats.redirects++;
	if (moved)
		cluster_want_map(cluster);
	redirect(cluster, node, op, text);
	return true;
}

uint64_t cluster_step_pauses(struct cluster *cluster)
{
	struct op_queue expired = {0};
	uint64_t next_ns = TIME_NEVER;
	struct store_op *op;
	uint32_t i, count;

	for (i = 0; i < cluster->rows_count; i++) {
		struct cluster_node *node = &cluster->nodes[i];

		if (!node->used || !node->paused.first)
			continue;
		next_ns =
		    u64_min(next_ns, op_queue_expire(&node->paused, &expired, cluster->now_ns));
		/* Those that meet the same pause again come behind these. */
		for (count = node->paused.count; count && cluster->now_ns >= node->retry_ns;
		     count--)
			cluster_route(cluster, op_queue_pop(&node->paused));
		if (node->paused.first)
			next_ns = u64_min(next_ns, node->retry_ns);
	}
	next_ns = u64_min(next_ns, op_queue_expire(&cluster->homeless, &expired, cluster->now_ns));
	while ((op = op_queue_pop(&expired)))
		cluster_finish(cluster, op, -ETIMEDOUT);
	return next_ns;
}
