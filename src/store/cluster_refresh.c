/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cluster_refresh.c - keeping the map of a redis+cluster: store: whom to ask, when, and what a new
 * map changes.
 *
 * One question is out at a time, to another node each time: who is cut off from the rest, or lies,
 * is corrected by the next. A map that cannot be right, or that has no slots, changes nothing. It
 * is asked for periodically, soon after anything that tells of a change, and over and over (less
 * and less often) while a slot has nobody who serves it.
 */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "store/cluster.h"

void cluster_want_map(struct cluster *cluster)
{
	cluster->map_ns =
	    u64_min(cluster->map_ns,
		    u64_max(cluster->now_ns, cluster->map_asked_ns + cluster->map_pause_ns));
}

/* ---- taking over ---------------------------------------------------------------------------- */

/* What waits for a node may have another now. */
static void route_waiting(struct cluster *cluster)
{
	struct op_queue moving = {0};
	struct store_op *op;
	uint32_t i;

	for (i = 0; i < cluster->rows_count; i++) {
		struct cluster_node *node = &cluster->nodes[i];

		while (node->used && !node->member && (op = redis_pop_waiting(node->redis)))
			op_queue_push(&moving, op);
	}
	while ((op = op_queue_pop(&cluster->homeless)))
		op_queue_push(&moving, op);
	while ((op = op_queue_pop(&moving)))
		cluster_route(cluster, op);
}

static void take_over(struct cluster *cluster)
{
	const struct cluster_map *map = &cluster->map;
	uint8_t rows[CLUSTER_NODES_MAX];
	uint32_t i;

	for (i = 0; i < cluster->rows_count; i++)
		cluster->nodes[i].member = false;
	for (i = 0; i < map->members_count; i++) {
		const struct cluster_member *member = &map->members[i];
		uint32_t row = cluster_find(cluster, &member->address);

		if (row == CLUSTER_NO_NODE)
			row = cluster_add(cluster, &member->address, member->name);
		rows[i] = (uint8_t)row;
		if (row == CLUSTER_NO_NODE)
			continue;
		cluster->nodes[row].member = true;
		(void)snprintf(cluster->nodes[row].redis->name, CLUSTER_NAME_MAX, "%s",
			       member->name);
	}
	for (i = 0; i < CLUSTER_SLOTS; i++)
		cluster->owner[i] =
		    map->owner[i] == CLUSTER_NO_NODE ? CLUSTER_NO_NODE : rows[map->owner[i]];
	cluster->maps++;
	cluster->map_failures = 0;
	cluster->trouble[0] = '\0';
	route_waiting(cluster);
}

/* Nobody gave a map: keep the one there is, ask another node after a pause. */
static void map_failed(struct cluster *cluster, const char *why, const char *text)
{
	struct store_op *op;

	cluster->map_failures++;
	(void)snprintf(cluster->trouble, sizeof(cluster->trouble), "%s: %s%s%s",
		       cluster->nodes[cluster->asked].redis->name, why, text ? ": " : "",
		       text ? text : "");
	if (cluster_may_log(cluster))
		log_warn("redis cluster map refused reason=\"%s\"", cluster->trouble);
	while (cluster_has_no_map(cluster) && (op = op_queue_pop(&cluster->homeless)))
		cluster_finish(cluster, op, -ENOTCONN);
}

static void end_question(struct cluster *cluster)
{
	cluster->asked = CLUSTER_NO_NODE;
	cluster->map_ns = cluster->now_ns + cluster->map_pause_ns;
	if (!cluster->map_failures)
		cluster->map_ns = cluster->now_ns + cluster->refresh_ns;
}

void cluster_map_item_hook(struct redis_store *redis, const struct resp_item *item)
{
	struct cluster *cluster = cluster_of(redis);
	int got;

	if (cluster->asked == CLUSTER_NO_NODE || cluster_index(cluster, redis) != cluster->asked)
		return;
	if (!item) {
		map_failed(cluster, "the connection was lost", NULL);
		end_question(cluster);
		return;
	}
	if (item->type == RESP_ERROR && item->depth == 0) {
		map_failed(cluster, "CLUSTER SLOTS was refused", item->text);
		end_question(cluster);
		return;
	}
	got = cluster->map_bad ? -EPROTO : cluster_map_item(&cluster->reader, item);
	cluster->map_bad |= got < 0;
	if (!item->ends_reply)
		return;
	if (got < 0)
		map_failed(cluster, "its answer to CLUSTER SLOTS cannot be right", NULL);
	else if (!cluster->map.slots_placed)
		map_failed(cluster, "it knows of no node that has slots", NULL);
	else
		take_over(cluster);
	end_question(cluster);
}

/* ---- asking --------------------------------------------------------------------------------- */

/* A lane that can take the question: the quick one, or another while that is down. */
static struct lane *free_lane(struct redis_store *redis)
{
	uint32_t i;

	for (i = 0; i < redis->lanes_count; i++) {
		struct lane *lane = &redis->lanes[(i + 1) % redis->lanes_count];

		if (lane->state == LANE_UP && lane->count < LANE_REQUESTS_MAX)
			return lane;
	}
	return NULL;
}

/* False: nobody is up. */
static bool ask(struct cluster *cluster)
{
	uint32_t i;

	for (i = 0; i < cluster->rows_count; i++) {
		uint32_t row = (cluster->ask_next + i) % cluster->rows_count;
		struct redis_store *redis = cluster->nodes[row].redis;
		struct lane *lane = cluster->nodes[row].used ? free_lane(redis) : NULL;

		if (!lane)
			continue;
		cluster->asked = row;
		cluster->ask_next = row + 1;
		cluster->map_asked_ns = cluster->now_ns;
		cluster->map_bad = false;
		cluster_map_begin(&cluster->reader, &cluster->map, cluster->nodes_max,
				  &redis->addresses[0], &cluster->seeds);
		lane_add_map(lane, cluster->now_ns);
		lane_send(redis, lane, cluster->now_ns);
		return true;
	}
	return false;
}

/* The question is out for too long: its lane is no good. */
static void give_up_question(struct cluster *cluster)
{
	struct redis_store *redis = cluster->nodes[cluster->asked].redis;
	uint32_t i, j;

	for (i = 0; i < redis->lanes_count; i++) {
		struct lane *lane = &redis->lanes[i];

		for (j = 0; j < lane->count; j++) {
			if (lane_request_at(lane, j)->kind == REQUEST_MAP)
				lane_drop(redis, lane, -ETIMEDOUT, "no map in time",
					  cluster->now_ns);
		}
	}
	cluster->asked = CLUSTER_NO_NODE;
}

/* Does a slot have nobody who serves it, as far as is known? */
static bool has_trouble(const struct cluster *cluster)
{
	uint32_t i;

	if (!cluster->maps || cluster->map_failures)
		return true;
	for (i = 0; i < cluster->rows_count; i++) {
		const struct cluster_node *node = &cluster->nodes[i];

		if (node->used && node->member &&
		    (cluster_is_refusing(cluster, node) || redis_is_gone(node->redis)))
			return true;
	}
	return false;
}

static void watch_nodes(struct cluster *cluster)
{
	uint32_t i;

	for (i = 0; i < cluster->rows_count; i++) {
		struct cluster_node *node = &cluster->nodes[i];

		if (!node->used || node->lost_ns == node->redis->lost_ns)
			continue;
		node->lost_ns = node->redis->lost_ns;
		cluster_want_map(cluster);
	}
	if (!has_trouble(cluster)) {
		cluster->map_pause_ns = CLUSTER_MAP_PAUSE_NS;
		return;
	}
	cluster->map_ns =
	    u64_min(cluster->map_ns,
		    u64_max(cluster->now_ns, cluster->map_asked_ns + cluster->map_pause_ns));
}

static uint64_t give_up_ns(const struct cluster *cluster)
{
	return cluster->map_asked_ns + cluster->settings->timeout_ns;
}

void cluster_step_map(struct cluster *cluster)
{
	struct store_op *op;

	if (cluster_is_gone(cluster)) {
		cluster_add_seeds(cluster);
		while (cluster_is_gone(cluster) && (op = op_queue_pop(&cluster->homeless)))
			cluster_finish(cluster, op, -ENOTCONN);
	}
	watch_nodes(cluster);
	if (cluster->asked != CLUSTER_NO_NODE && cluster->now_ns >= give_up_ns(cluster))
		give_up_question(cluster);
	if (cluster->asked == CLUSTER_NO_NODE && cluster->now_ns >= cluster->map_ns &&
	    ask(cluster) && has_trouble(cluster))
		cluster->map_pause_ns =
		    u64_min(cluster->settings->backoff_max_ns, 2 * cluster->map_pause_ns);
}

uint64_t cluster_map_next_ns(const struct cluster *cluster)
{
	if (cluster->asked != CLUSTER_NO_NODE)
		return give_up_ns(cluster);
	/* When it is due already nobody is up: a lane that comes up wakes us. */
	return cluster->map_ns > cluster->now_ns ? cluster->map_ns : TIME_NEVER;
}
