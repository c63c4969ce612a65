/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cluster.c - Redis Cluster as a store: the URI, opening, and the way of an operation.
 *
 * A key's slot names the node; there are no hash tags, so the chunks of one prompt spread over all
 * masters and are fetched from all at once. A node that is gone costs its own keys a quick miss and
 * the others nothing. Replicas are not read: they are where a master's slots turn up when it fails.
 *
 * Names of hosts are resolved once, when the store is opened; the data path knows addresses alone.
 */
#include "store/cluster.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/log.h"
#include "store/backends.h"

#define OPEN_NS NS_PER_S /* waited for the first map */

/* This store's stretch of the table: all but the database, which is 0 in a cluster. */
#define OPTIONS_FIRST REDIS_OPTION_LANES
#define OPTIONS_COUNT (REDIS_OPTIONS_ALL - OPTIONS_FIRST)

static struct cluster *cluster_in(const struct store *store)
{
	return (struct cluster *)(uintptr_t)store;
}

/* ---- the URI -------------------------------------------------------------------------------- */

/* Each host of the URI in turn: 0 when visit returned 0 for all. */
static int for_each_seed(const struct uri *uri,
			 int (*visit)(void *context, const struct uri *uri, const char *host,
				      const char *port, char *error),
			 void *context, char *error)
{
	char list[STORE_URI_MAX];
	const char *host, *port;
	char *save = NULL, *text;
	int err;

	if (!uri->hosts)
		return visit(context, uri, uri->host, uri->port, error);
	(void)snprintf(list, sizeof(list), "%s", uri->hosts);
	for (text = strtok_r(list, ",", &save); text; text = strtok_r(NULL, ",", &save)) {
		err = uri_split_host(uri->scheme, text, &host, &port, error);
		if (!err)
			err = visit(context, uri, host, port, error);
		if (err)
			return err;
	}
	return 0;
}

static int check_seed(void *context, const struct uri *uri, const char *host, const char *port,
		      char *error)
{
	uint32_t *count = context;
	char *end = NULL;
	long number = port && port[0] ? strtol(port, &end, 10) : 6379;

	if (!host || !host[0])
		return uri_error(error, -EINVAL,
				 "store %s: no host; expected %s://host:port,host:port",
				 uri->scheme, uri->scheme);
	if ((end && *end) || number < 1 || number > 65535)
		return uri_error(error, -EINVAL, "store %s: port \"%.16s\": expected 1 to 65535",
				 uri->scheme, port);
	if (++*count > CLUSTER_SEEDS_MAX)
		return uri_error(error, -E2BIG, "store %s: more than %u hosts; expected a few",
				 uri->scheme, CLUSTER_SEEDS_MAX);
	return 0;
}

static int cluster_check(const struct uri *uri, char *error)
{
	struct uri_value values[REDIS_OPTIONS_ALL];
	const char *prefix;
	uint64_t lanes, nodes;
	uint32_t seeds = 0;
	int err;

	err = for_each_seed(uri, check_seed, &seeds, error);
	if (!err)
		err = uri_read_options(uri, redis_options + OPTIONS_FIRST, OPTIONS_COUNT,
				       values + OPTIONS_FIRST, error);
	if (err)
		return err;
	if (uri->path[0] && strcmp(uri->path, "/") && strcmp(uri->path, "/0"))
		return uri_error(error, -EINVAL,
				 "store %s: database \"%.32s\": expected none: a cluster has 0 "
				 "alone",
				 uri->scheme, uri->path);
	prefix = values[REDIS_OPTION_PREFIX].text;
	if (prefix && strchr(prefix, '{'))
		return uri_error(error, -EINVAL,
				 "store %s: option prefix=%.70s: expected no '{': with a hash tag "
				 "all keys would be on one node",
				 uri->scheme, prefix);
	lanes = values[REDIS_OPTION_LANES].number + REDIS_LANES_FIXED;
	nodes = values[REDIS_OPTION_NODES].number;
	if (nodes * lanes > CLUSTER_LANES_MAX)
		return uri_error(error, -EINVAL,
				 "store %s: nodes=%llu with lanes=%llu are up to %llu "
				 "connections; expected at most %u (nodes x (lanes + %u))",
				 uri->scheme, (unsigned long long)nodes,
				 (unsigned long long)(lanes - REDIS_LANES_FIXED),
				 (unsigned long long)(nodes * lanes), CLUSTER_LANES_MAX,
				 REDIS_LANES_FIXED);
	return 0;
}

/* Enter a host's addresses. One that does not resolve is passed over while there are others. */
static int add_seed(void *context, const struct uri *uri, const char *host, const char *port,
		    char *error)
{
	struct redis_address addresses[REDIS_ADDRESSES_MAX];
	uint32_t count = REDIS_ADDRESSES_MAX, i;
	struct cluster *cluster = context;
	char name[CLUSTER_NAME_MAX];

	if (redis_resolve_host(uri->scheme, host, port, addresses, &count, name, error)) {
		log_warn("redis cluster host does not resolve host=%s", name);
		return 0;
	}
	for (i = 0; i < count && cluster->seeds.count < CLUSTER_SEEDS_MAX; i++) {
		struct cluster_host *seed = &cluster->seed_hosts[cluster->seeds.count];

		(void)snprintf(seed->host, sizeof(seed->host), "%s", host);
		seed->address = addresses[i];
		cluster_name(NULL, &addresses[i], cluster->seed_names[cluster->seeds.count++]);
	}
	return 0;
}

/* ---- open and close ------------------------------------------------------------------------- */

static void cluster_close(struct store *store)
{
	struct cluster *cluster = cluster_in(store);
	uint32_t i;

	for (i = 0; i < cluster->rows_count; i++) {
		struct cluster_node *node = &cluster->nodes[i];

		if (node->used)
			redis_fini_lanes(node->redis);
		if (node->redis)
			explicit_bzero(node->redis->hello, sizeof(node->redis->hello));
		free(node->redis);
	}
	if (cluster->settings)
		explicit_bzero(cluster->settings->hello, sizeof(cluster->settings->hello));
	free(cluster->settings);
	if (cluster->epoll_fd >= 0)
		(void)close(cluster->epoll_fd);
	free(cluster);
}

/* Memory for every row, touched when a node takes it. */
static int make_rows(struct cluster *cluster)
{
	size_t bytes = sizeof(struct redis_store) + cluster->lanes_count * sizeof(struct lane);
	uint32_t i;

	cluster->rows_count = cluster->nodes_max + cluster->seeds.count;
	for (i = 0; i < cluster->rows_count; i++) {
		cluster->nodes[i].redis = calloc(1, bytes);
		if (!cluster->nodes[i].redis)
			return -ENOMEM;
	}
	return 0;
}

static int configure(struct cluster *cluster, const struct store_config *config,
		     const struct uri *uri, const struct uri_value *values, char *error)
{
	struct redis_store *settings = cluster->settings;
	int err = redis_configure(settings, uri, values, error);

	if (err)
		return err;
	settings->value_bytes_max = config->value_bytes_max;
	settings->ops_max = config->ops_max;
	settings->random = config->seed;
	cluster->value_bytes_max = config->value_bytes_max;
	cluster->ops_max = config->ops_max;
	cluster->prefix_crc = cluster_crc16(0, settings->prefix, strlen(settings->prefix));
	cluster->nodes_max = (uint32_t)values[REDIS_OPTION_NODES].number;
	cluster->lanes_count = (uint32_t)values[REDIS_OPTION_LANES].number + REDIS_LANES_FIXED;
	cluster->refresh_ns = values[REDIS_OPTION_REFRESH].number * NS_PER_MS;
	cluster->map_pause_ns = CLUSTER_MAP_PAUSE_NS;
	err = for_each_seed(uri, add_seed, cluster, error);
	if (err)
		return err;
	if (!cluster->seeds.count)
		return -ENOTCONN; /* with the last host's reason */
	cluster->seeds.hosts = cluster->seed_hosts;
	err = make_rows(cluster);
	if (!err) {
		cluster->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
		err = cluster->epoll_fd < 0 ? -errno : 0;
	}
	return err ? uri_error(error, err, "store %s: %s", uri->scheme, strerror(-err)) : 0;
}

static uint32_t cluster_poll(struct store *store, struct store_op **done, uint32_t max,
			     uint64_t now_ns);

/* Poll until there is a map, or nobody to have one from. */
static int await_map(struct cluster *cluster, char *error)
{
	uint64_t end_ns = clock_now_ns() + OPEN_NS;
	struct pollfd fd = {.fd = cluster->epoll_fd, .events = POLLIN};
	uint32_t i;
	int err;

	while (!cluster->maps && !cluster_has_no_map(cluster) && clock_now_ns() < end_ns) {
		(void)cluster_poll(&cluster->store, NULL, 0, clock_now_ns());
		if (cluster_is_gone(cluster))
			break;
		if (!cluster->maps)
			(void)poll(&fd, 1, 5);
	}
	if (cluster->maps)
		return 0;
	/* Ask for each seed's own words. */
	for (i = 0; i < cluster->rows_count; i++) {
		err = cluster->nodes[i].used ? redis_probe(cluster->nodes[i].redis, error) : 0;
		if (err)
			return err;
	}
	return uri_error(error, cluster->map_failures ? -EPROTO : -ETIMEDOUT,
			 "store redis+cluster: %s; expected a node of a Redis Cluster, and an "
			 "account that may use CLUSTER SLOTS",
			 cluster->trouble[0] ? cluster->trouble : "no map in a second");
}

static int cluster_open(const struct store_config *config, struct store **ret_store, char *error)
{
	struct uri_value values[REDIS_OPTIONS_ALL] = {0};
	struct cluster *cluster;
	char text[CLUSTER_TROUBLE_BYTES];
	struct uri uri;
	int err;

	err = uri_parse(config->uri, &uri, error);
	if (!err)
		err = uri_read_options(&uri, redis_options + OPTIONS_FIRST, OPTIONS_COUNT,
				       values + OPTIONS_FIRST, error);
	if (err)
		return err;
	cluster = calloc(1, sizeof(*cluster));
	if (!cluster)
		return uri_error(error, -ENOMEM, "store %s: out of memory", uri.scheme);
	cluster->store.ops = &store_redis_cluster;
	cluster->epoll_fd = -1;
	cluster->asked = cluster->hot = CLUSTER_NO_NODE;
	memset(cluster->owner, CLUSTER_NO_NODE, sizeof(cluster->owner));
	cluster->settings = calloc(1, sizeof(*cluster->settings));
	err = cluster->settings ? configure(cluster, config, &uri, values, error)
				: uri_error(error, -ENOMEM, "store %s: out of memory", uri.scheme);
	explicit_bzero(&uri, sizeof(uri));
	if (!err) {
		cluster_add_seeds(cluster);
		if (values[REDIS_OPTION_CONNECT].number == 0)
			err = await_map(cluster, error);
	}
	if (err) {
		cluster_close(&cluster->store);
		return err;
	}
	if (cluster->maps && cluster_describe(cluster, text, sizeof(text)))
		log_warn("redis cluster is not whole reason=\"%s\"", text);
	*ret_store = &cluster->store;
	return 0;
}

/* ---- operations ----------------------------------------------------------------------------- */

void cluster_finish(struct cluster *cluster, struct store_op *op, int status)
{
	op->status = status;
	op_count(&cluster->stats, op);
	op_queue_push(&cluster->done, op);
}

bool cluster_may_log(struct cluster *cluster)
{
	if (cluster->logged_ns && cluster->now_ns < cluster->logged_ns + NS_PER_S)
		return false;
	cluster->logged_ns = cluster->now_ns;
	return true;
}

void cluster_route(struct cluster *cluster, struct store_op *op)
{
	uint32_t owner = cluster->owner[cluster_slot(cluster->prefix_crc, &op->key)];

	op->mark &= ~OP_ASKING;
	if (owner != CLUSTER_NO_NODE) {
		redis_enqueue(cluster->nodes[owner].redis, op);
	} else if (!cluster->maps && !cluster_has_no_map(cluster)) {
		op_queue_push(&cluster->homeless, op);
	} else {
		cluster_want_map(cluster);
		cluster_finish(cluster, op, -ENOTCONN);
	}
}

static uint32_t cluster_submit(struct store *store, struct store_op *const *ops, uint32_t n,
			       uint64_t now_ns)
{
	struct cluster *cluster = cluster_in(store);
	uint32_t i;

	cluster->now_ns = now_ns;
	for (i = 0; i < n && cluster->held < cluster->ops_max; i++) {
		int err = op_check(ops[i], cluster->value_bytes_max);

		op_begin(ops[i]);
		cluster->held++;
		cluster->next_ns = 0;
		if (err)
			cluster_finish(cluster, ops[i], err);
		else
			cluster_route(cluster, ops[i]);
	}
	return i;
}

/* What the nodes finished becomes the cluster's. */
static void collect(struct cluster *cluster, struct cluster_node *node)
{
	struct store_op *op;

	while ((op = op_queue_pop(&node->redis->done))) {
		if (op->status == 0 || op->status == -ENOENT)
			cluster_note_success(node);
		op_queue_push(&cluster->done, op);
	}
}

static uint32_t cluster_poll(struct store *store, struct store_op **done, uint32_t max,
			     uint64_t now_ns)
{
	struct cluster *cluster = cluster_in(store);
	uint64_t next_ns;
	uint32_t i, n;

	cluster->now_ns = now_ns;
	cluster_step_io(cluster);
	cluster_step_map(cluster);
	next_ns = cluster_step_pauses(cluster);
	for (i = 0; i < cluster->rows_count; i++) {
		if (!cluster->nodes[i].used)
			continue;
		next_ns = u64_min(next_ns, redis_settle(cluster->nodes[i].redis, now_ns));
		collect(cluster, &cluster->nodes[i]);
	}
	cluster_retire(cluster);
	cluster_watch(cluster);
	next_ns = u64_min(next_ns, cluster_map_next_ns(cluster));
	n = op_queue_take(&cluster->done, done, max);
	cluster->held -= n;
	cluster->next_ns = cluster->done.first || cluster->hot != CLUSTER_NO_NODE ? 0 : next_ns;
	return n;
}

static uint64_t cluster_next_ns(const struct store *store)
{
	return cluster_in(store)->next_ns;
}

static uint32_t cluster_pollfds(const struct store *store, void *pollfds, uint32_t max)
{
	struct pollfd *fds = pollfds;

	if (!max)
		return 0;
	fds[0] = (struct pollfd){.fd = cluster_in(store)->epoll_fd, .events = POLLIN};
	return 1;
}

static void cluster_stats(const struct store *store, struct store_stats *ret_stats)
{
	cluster_sum_stats(cluster_in(store), ret_stats);
}

static bool describe(const struct store *store, char *text, size_t text_bytes)
{
	return cluster_describe(cluster_in(store), text, text_bytes);
}

/* ---- listing -------------------------------------------------------------------------------- */

struct listing {
	int (*visit)(void *context, const struct ssv_key *key, uint64_t bytes);
	void *context;
	int stop;
};

static int visit_key(void *context, const struct ssv_key *key, uint64_t bytes)
{
	struct listing *listing = context;

	listing->stop = listing->visit(listing->context, key, bytes);
	return listing->stop;
}

/* Master after master; a key that moves meanwhile may come twice or not at all. */
static int cluster_list(struct store *store,
			int (*visit)(void *context, const struct ssv_key *key, uint64_t bytes),
			void *context)
{
	struct listing listing = {.visit = visit, .context = context};
	struct cluster *cluster = cluster_in(store);
	int err = cluster->maps ? 0 : -ENOTCONN;
	uint32_t i;

	for (i = 0; i < cluster->rows_count && !err && !listing.stop; i++) {
		const struct cluster_node *node = &cluster->nodes[i];

		if (node->used && node->member)
			err = redis_list(&node->redis->store, visit_key, &listing);
	}
	return err;
}

const struct store_ops store_redis_cluster = {
    .scheme = "redis+cluster",
    .caps = STORE_CAP_SHARED | STORE_CAP_REMOTE | STORE_CAP_LIST | STORE_CAP_PERSISTENT,
    .options = redis_options + OPTIONS_FIRST,
    .options_count = OPTIONS_COUNT,
    .check = cluster_check,
    .open = cluster_open,
    .close = cluster_close,
    .submit = cluster_submit,
    .poll = cluster_poll,
    .next_ns = cluster_next_ns,
    .pollfds = cluster_pollfds,
    .stats = cluster_stats,
    .describe = describe,
    .list = cluster_list,
};
