/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cluster_nodes.c - the nodes of a redis+cluster: store: rows of a fixed table, one server each.
 *
 * A node joins when a map or a redirection names its address, and leaves when a newer map does not
 * and its last operation is over. All lanes of all nodes are watched by one epoll descriptor, so a
 * poll costs one system call and what is ready, not what is connected.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/log.h"
#include "base/tally.h"
#include "store/cluster.h"

#define EVENTS_MAX 64 /* lanes served a step; the others are ready still */

static const struct redis_hooks hooks = {
    .refused = cluster_refused_hook,
    .map_item = cluster_map_item_hook,
};

/* ---- the table ------------------------------------------------------------------------------ */

uint32_t cluster_index(const struct cluster *cluster, const struct redis_store *redis)
{
	uint32_t i;

	for (i = 0; i < cluster->rows_count; i++) {
		if (cluster->nodes[i].redis == redis && cluster->nodes[i].used)
			return i;
	}
	return CLUSTER_NO_NODE;
}

uint32_t cluster_find(const struct cluster *cluster, const struct redis_address *address)
{
	uint32_t i;

	for (i = 0; i < cluster->rows_count; i++) {
		const struct cluster_node *node = &cluster->nodes[i];

		if (node->used && cluster_same_address(&node->redis->addresses[0], address))
			return i;
	}
	return CLUSTER_NO_NODE;
}

uint32_t cluster_add(struct cluster *cluster, const struct redis_address *address, const char *name)
{
	struct cluster_node *node;
	struct redis_store *redis;
	uint32_t i;

	for (i = 0; i < cluster->rows_count && cluster->nodes[i].used; i++)
		;
	if (i == cluster->rows_count) {
		if (cluster_may_log(cluster))
			log_warn("redis cluster has no room for node=%s nodes=%u", name,
				 cluster->nodes_max);
		return CLUSTER_NO_NODE;
	}
	node = &cluster->nodes[i];
	redis = node->redis;
	*node = (struct cluster_node){.redis = redis, .used = true};
	memcpy(redis, cluster->settings, offsetof(struct redis_store, scratch));
	redis->hooks = &hooks;
	redis->owner = cluster;
	redis->random += i;
	redis->lanes_count = cluster->lanes_count;
	redis->addresses[0] = *address;
	redis->addresses_count = 1;
	(void)snprintf(redis->name, sizeof(redis->name), "%s", name);
	redis_init_lanes(redis);
	return i;
}

uint32_t cluster_locate(struct cluster *cluster, const char *host, uint32_t port,
			const struct redis_store *from)
{
	struct redis_address address;
	char name[CLUSTER_NAME_MAX];
	uint32_t i;

	if (cluster_address(host, port, &from->addresses[0], &cluster->seeds, &address)) {
		/* A name: the map may have told its address. */
		(void)snprintf(name, sizeof(name), "%.70s:%u", host, port);
		for (i = 0; i < cluster->rows_count; i++) {
			if (cluster->nodes[i].used && !strcmp(cluster->nodes[i].redis->name, name))
				return i;
		}
		return CLUSTER_NO_NODE;
	}
	i = cluster_find(cluster, &address);
	if (i != CLUSTER_NO_NODE)
		return i;
	cluster_name(host, &address, name);
	return cluster_add(cluster, &address, name);
}

static void add_stats(struct store_stats *sum, const struct store_stats *stats)
{
	sum->gets += stats->gets;
	sum->hits += stats->hits;
	sum->puts += stats->puts;
	sum->exists += stats->exists;
	sum->deletes += stats->deletes;
	sum->errors += stats->errors;
	sum->timeouts += stats->timeouts;
	sum->reconnects += stats->reconnects;
	sum->bytes_in += stats->bytes_in;
	sum->bytes_out += stats->bytes_out;
}

void cluster_sum_stats(const struct cluster *cluster, struct store_stats *ret_stats)
{
	uint32_t i, up;

	*ret_stats = cluster->stats;
	for (i = 0; i < cluster->rows_count; i++) {
		const struct cluster_node *node = &cluster->nodes[i];

		if (!node->used)
			continue;
		up = redis_lanes_up(node->redis);
		add_stats(ret_stats, &node->redis->stats);
		ret_stats->connected += up;
		ret_stats->nodes += node->member;
		ret_stats->nodes_connected += node->member && up;
	}
}

static bool has_live_member(const struct cluster *cluster)
{
	uint32_t i;

	for (i = 0; i < cluster->rows_count; i++) {
		const struct cluster_node *node = &cluster->nodes[i];

		if (node->used && node->member && !redis_is_gone(node->redis))
			return true;
	}
	return false;
}

void cluster_retire(struct cluster *cluster)
{
	uint32_t i;

	if (!has_live_member(cluster)) /* then the seeds are needed */
		return;
	for (i = 0; i < cluster->rows_count; i++) {
		struct cluster_node *node = &cluster->nodes[i];

		if (!node->used || node->member || node->paused.first || cluster->asked == i ||
		    !redis_is_idle(node->redis))
			continue;
		redis_fini_lanes(node->redis);
		if (cluster->hot == i)
			cluster->hot = CLUSTER_NO_NODE;
		add_stats(&cluster->stats, &node->redis->stats);
		node->used = false;
	}
}

void cluster_add_seeds(struct cluster *cluster)
{
	uint32_t i;

	for (i = 0; i < cluster->seeds.count; i++) {
		const struct redis_address *address = &cluster->seed_hosts[i].address;

		if (cluster_find(cluster, address) == CLUSTER_NO_NODE)
			(void)cluster_add(cluster, address, cluster->seed_names[i]);
	}
}

bool cluster_is_gone(const struct cluster *cluster)
{
	uint32_t i;

	for (i = 0; i < cluster->rows_count; i++) {
		if (cluster->nodes[i].used && !redis_is_gone(cluster->nodes[i].redis))
			return false;
	}
	return true;
}

static uint32_t count_homeless_slots(const struct cluster *cluster)
{
	uint32_t i, n = 0;

	for (i = 0; i < CLUSTER_SLOTS; i++)
		n += cluster->owner[i] == CLUSTER_NO_NODE;
	return n;
}

bool cluster_describe(const struct cluster *cluster, char *text, size_t text_bytes)
{
	uint32_t i, gone = 0, members = 0, homeless = count_homeless_slots(cluster);
	const char *name = "", *refusing = NULL;

	for (i = 0; i < cluster->rows_count; i++) {
		const struct cluster_node *node = &cluster->nodes[i];

		if (!node->used || !node->member)
			continue;
		members++;
		if (redis_is_gone(node->redis)) {
			gone++;
			name = node->redis->name;
		} else if (cluster_is_refusing(cluster, node)) {
			refusing = node->redis->name;
		}
	}
	if (!cluster->maps)
		(void)snprintf(text, text_bytes, "no map of the cluster yet: %s",
			       cluster->trouble[0] ? cluster->trouble : "no node answers");
	else if (gone)
		(void)snprintf(text, text_bytes,
			       "%u of %u nodes do not answer (%s): their keys miss", gone, members,
			       name);
	else if (homeless)
		(void)snprintf(text, text_bytes, "%u of %u slots have no node: their keys miss",
			       homeless, CLUSTER_SLOTS);
	else if (refusing)
		(void)snprintf(text, text_bytes, "node %s refuses for now", refusing);
	else if (cluster->map_failures)
		(void)snprintf(text, text_bytes, "the map cannot be renewed: %s", cluster->trouble);
	else
		return false;
	return true;
}

/* ---- sleeping and waking -------------------------------------------------------------------- */

static void watch_lane(struct cluster *cluster, uint32_t node, uint32_t index)
{
	struct lane *lane = &cluster->nodes[node].redis->lanes[index];
	struct epoll_event event = {.data.u64 = (uint64_t)node << 32 | index};

	if (lane->state == LANE_CLOSED) /* the kernel forgets what is closed */
		return;
	event.events = (uint32_t)lane_events(lane); /* POLLIN, POLLOUT: EPOLL's are the same */
	if (event.events == lane->watched)
		return;
	tally_add(TALLY_CALL_POLL, 1);
	if (!epoll_ctl(cluster->epoll_fd, lane->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, lane->fd,
		       &event))
		lane->watched = event.events;
	else
		lane_drop(cluster->nodes[node].redis, lane, -ENOTCONN, strerror(errno),
			  cluster->now_ns);
}

void cluster_watch(struct cluster *cluster)
{
	uint32_t i, j;

	for (i = 0; i < cluster->rows_count; i++) {
		for (j = 0; cluster->nodes[i].used && j < cluster->lanes_count; j++)
			watch_lane(cluster, i, j);
	}
}

void cluster_step_io(struct cluster *cluster)
{
	struct epoll_event events[EVENTS_MAX];
	int n, k;

	if (cluster->hot != CLUSTER_NO_NODE &&
	    redis_step_hot(cluster->nodes[cluster->hot].redis, cluster->now_ns))
		return;
	if (cluster->hot != CLUSTER_NO_NODE)
		cluster->nodes[cluster->hot].redis->more = false;
	cluster->hot = CLUSTER_NO_NODE;
	tally_add(TALLY_CALL_POLL, 1);
	n = epoll_wait(cluster->epoll_fd, events, EVENTS_MAX, 0);
	/* One lane's value at a time, another one first each time: as redis.c does. */
	cluster->turn++;
	for (k = 0; k < n && cluster->hot == CLUSTER_NO_NODE; k++) {
		const struct epoll_event *event =
		    &events[(cluster->turn + (uint32_t)k) % (uint32_t)n];
		uint32_t index = (uint32_t)(event->data.u64 >> 32);
		struct redis_store *redis = cluster->nodes[index].redis;

		redis->hot = (uint32_t)event->data.u64;
		if (!cluster->nodes[index].used || !redis->lanes[redis->hot].watched)
			continue;
		lane_step_io(redis, &redis->lanes[redis->hot], (short)event->events,
			     cluster->now_ns);
		if (redis->more)
			cluster->hot = index;
	}
}
