/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_cluster.c - a redis+cluster: store with real masters and replicas: values spread over all,
 * slots that move while they are fetched, masters that are killed in the middle of a fetch. Every
 * GET is checked: it gives the value's own bytes or an error, and no error costs a deadline.
 */
#include "harness_cluster.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "store/cluster_map.h"

#define VALUES      16u
#define VALUE_BYTES (MIB)
#define FAILOVER_NS (6 * NS_PER_S) /* longer than a node tries: 5 s */

static struct harness_cluster *cluster;
static struct store *store;
static struct store_op gets[VALUES];
static uint8_t *buffers[VALUES];

static void open_store(const char *options)
{
	char uri[256];

	harness_cluster_uri(cluster, options, uri, sizeof(uri));
	store = harness_open(uri);
}

static int close_store(void **state)
{
	(void)state;
	store_close(store);
	store = NULL;
	return 0;
}

static int open_error(const char *uri, char *error)
{
	struct store_config config = {.uri = uri, .value_bytes_max = MIB, .ops_max = 4};
	struct store *other;

	return store_open(&config, &other, error);
}

static uint32_t slot_of(uint64_t n)
{
	struct ssv_key key = harness_key(n);

	return cluster_slot(cluster_crc16(0, "ssv:", 4), &key);
}

static uint32_t master_of(uint64_t n)
{
	uint32_t i;

	for (i = 0; slot_of(n) >= (i + 1) * CLUSTER_SLOTS / cluster->masters; i++)
		;
	return i;
}

static void put_values(void)
{
	uint64_t n;

	for (n = 0; n < VALUES; n++)
		assert_int_equal(harness_put(store, n, VALUE_BYTES), 0);
}

static void submit_gets(void)
{
	uint64_t n;

	memset(gets, 0, sizeof(gets));
	for (n = 0; n < VALUES; n++) {
		struct store_op *op = &gets[n];

		memset(buffers[n], 0xee, VALUE_BYTES);
		op->kind = STORE_OP_GET;
		op->key = harness_key(n);
		op->data = buffers[n];
		op->capacity = VALUE_BYTES;
		op->deadline_ns = clock_now_ns() + HARNESS_PATIENCE;
		assert_int_equal(store->ops->submit(store, &op, 1, clock_now_ns()), 1);
	}
}

/* Poll until some bytes of a value of this master are here. Returns how many operations ended. */
static uint32_t poll_until_some_bytes(uint32_t master)
{
	struct store_op *done[VALUES];
	uint32_t finished = 0, n;

	for (;;) {
		finished += store->ops->poll(store, done, VALUES, clock_now_ns());
		for (n = 0; n < VALUES; n++) {
			if (master_of(n) == master && gets[n].received)
				return finished;
		}
	}
}

/* Those of the lost master may be missing; all others are whole. Returns how many are missing. */
static uint32_t check_gets(uint32_t lost)
{
	uint32_t n, missing = 0;

	for (n = 0; n < VALUES; n++) {
		if (gets[n].status) {
			assert_int_equal(gets[n].status, -ENOTCONN);
			assert_int_equal(master_of(n), lost);
			missing++;
			continue;
		}
		assert_int_equal(gets[n].received, VALUE_BYTES);
		assert_true(harness_is_filled(buffers[n], VALUE_BYTES, n));
	}
	return missing;
}

/* Get until it is there again, whole; meanwhile only quick errors. */
static void assert_comes_back(uint64_t n, int expected)
{
	uint64_t end_ns = clock_now_ns() + HARNESS_PATIENCE;
	int status;

	while ((status = harness_get(store, n, VALUE_BYTES)) != expected) {
		assert_int_equal(status, -ENOTCONN);
		assert_true(clock_now_ns() < end_ns);
		(void)usleep(5000);
	}
}

/* All at once; a GET of key n between the keys' way and the end meets ASK, behind it MOVED. */
static void move_slot(uint32_t slot, uint32_t from, uint32_t to)
{
	harness_cluster_begin_move(cluster, slot, from, to);
	while (harness_cluster_move_key(cluster, slot, from, to))
		;
	assert_int_equal(harness_get(store, 0, VALUE_BYTES), 0);
	harness_cluster_end_move(cluster, slot, from, to);
}

/* ---- a cluster that is well ----------------------------------------------------------------- */

static void values_spread_over_all_nodes(void **state)
{
	char answer[64];
	uint64_t n;
	uint32_t i;

	(void)state;
	open_store("");
	put_values();
	submit_gets();
	harness_poll(store, VALUES);
	assert_int_equal(check_gets(HARNESS_NODES_MAX), 0);
	for (i = 0; i < cluster->masters; i++) {
		harness_cluster_command(cluster, i, answer, sizeof(answer), "DBSIZE");
		assert_true(atoi(answer + 1) > 0);
	}
	for (n = 0; n < VALUES; n++) {
		char key[80] = "ssv:";
		struct ssv_key bytes = harness_key(n);

		for (i = 0; i < 32; i++)
			(void)snprintf(key + 4 + 2 * i, 3, "%02x", bytes.bytes[i]);
		harness_cluster_command(cluster, 0, answer, sizeof(answer), "CLUSTER KEYSLOT %s",
					key);
		assert_int_equal(atoi(answer + 1), slot_of(n));
	}
	assert_int_equal(harness_stats(store).redirects, 0);
	assert_int_equal(harness_stats(store).nodes, cluster->masters);
	assert_int_equal(harness_stats(store).nodes_connected, cluster->masters);
	assert_false(store->ops->describe(store, answer, sizeof(answer)));
}

static void seeds_that_are_down_are_passed_over(void **state)
{
	char uri[256], error[SSV_ERROR_TEXT_MAX];

	(void)state;
	(void)snprintf(uri, sizeof(uri),
		       "redis+cluster://127.0.0.1:%u,no.such.host.invalid:1,[::1]:%u,127.0.0.1:%u",
		       harness_port(NULL), harness_port(NULL), cluster->nodes[2]->port);
	store = harness_open(uri);
	assert_int_equal(harness_get(store, 1, VALUE_BYTES), 0);
	(void)snprintf(uri, sizeof(uri), "redis+cluster://127.0.0.1:%u,127.0.0.1:%u",
		       harness_port(NULL), harness_port(NULL));
	assert_int_equal(open_error(uri, error), -ENOTCONN);
	assert_non_null(strstr(error, "Connection refused"));
}

static void server_without_a_cluster_is_told(void **state)
{
	struct harness_redis *alone = harness_redis_start(NULL);
	char uri[128], error[SSV_ERROR_TEXT_MAX];

	(void)state;
	(void)snprintf(uri, sizeof(uri), "redis+cluster://127.0.0.1:%u", alone->port);
	assert_int_equal(open_error(uri, error), -EPROTO);
	assert_non_null(strstr(error, "cluster support disabled"));
	strcat(uri, "?connect=later");
	store = harness_open(uri);
	assert_int_equal(harness_get(store, 1, 10), -ENOTCONN);
	assert_int_equal(harness_put(store, 1, 10), -ENOTCONN);
	assert_true(store->ops->describe(store, error, sizeof(error)));
	assert_non_null(strstr(error, "cluster support disabled"));
	/* Among the seeds it is passed over. */
	store_close(store);
	(void)snprintf(uri, sizeof(uri), "redis+cluster://127.0.0.1:%u,127.0.0.1:%u", alone->port,
		       cluster->nodes[0]->port);
	store = harness_open(uri);
	assert_int_equal(harness_get(store, 1, VALUE_BYTES), 0);
	harness_redis_stop(alone);
}

static void passwords_hold_for_every_node(void **state)
{
	char uri[128], answer[64], error[SSV_ERROR_TEXT_MAX];
	uint64_t n;
	uint32_t i;

	(void)state;
	harness_cluster_set(cluster, "masterauth", "s3cret");
	harness_cluster_set(cluster, "requirepass", "s3cret");
	cluster->password = "s3cret";
	harness_cluster_uri(cluster, "", uri, sizeof(uri));
	assert_int_equal(open_error(uri, error), -EACCES);
	assert_non_null(strstr(error, "NOAUTH"));
	(void)snprintf(uri, sizeof(uri), "redis+cluster://default:s3cret@127.0.0.1:%u",
		       cluster->nodes[1]->port);
	store = harness_open(uri);
	for (n = 0; n < VALUES; n++)
		assert_int_equal(harness_get(store, n, VALUE_BYTES), 0);
	store_close(store);
	harness_cluster_set(cluster, "requirepass", "\"\"");
	cluster->password = NULL;
	/* An account that can do no more than docs/stores.md says. */
	for (i = 0; i < cluster->count; i++) {
		harness_cluster_command(cluster, i, answer, sizeof(answer),
					"ACL SETUSER kv on >other ~ssv:* +get +getrange +watch "
					"+multi +exec +set +strlen +unlink +asking +cluster|slots "
					"+scan");
		assert_string_equal(answer, "+OK");
	}
	(void)snprintf(uri, sizeof(uri), "redis+cluster://kv:other@127.0.0.1:%u?range=64K",
		       cluster->nodes[0]->port);
	store = harness_open(uri);
	assert_int_equal(harness_get(store, 0, VALUE_BYTES), 0);
	move_slot(slot_of(0), master_of(0), (master_of(0) + 1) % 3);
	assert_int_equal(harness_put(store, 0, VALUE_BYTES), 0);
	move_slot(slot_of(0), (master_of(0) + 1) % 3, master_of(0));
}

static void hostnames_and_unknown_endpoints(void **state)
{
	char answer[64], name[32];
	uint64_t n;
	uint32_t i;

	(void)state;
	for (i = 0; i < cluster->count; i++) {
		(void)snprintf(name, sizeof(name), "node%u.invalid", i);
		harness_cluster_command(cluster, i, answer, sizeof(answer),
					"CONFIG SET cluster-announce-hostname %s", name);
		assert_string_equal(answer, "+OK");
	}
	harness_cluster_set(cluster, "cluster-preferred-endpoint-type", "hostname");
	for (i = 0; i < cluster->masters; i++) { /* gossip takes a moment */
		(void)snprintf(name, sizeof(name), "node%u.invalid", i);
		harness_cluster_await(cluster, "CLUSTER NODES", name);
	}
	open_store("?refresh-ms=1000");
	for (n = 0; n < VALUES; n++)
		assert_int_equal(harness_get(store, n, VALUE_BYTES), 0);
	/* A redirection names the host alone: the map has told its address. */
	move_slot(slot_of(0), master_of(0), (master_of(0) + 1) % 3);
	assert_int_equal(harness_get(store, 0, VALUE_BYTES), 0);
	assert_true(harness_stats(store).redirects > 0);
	move_slot(slot_of(0), (master_of(0) + 1) % 3, master_of(0));
	store_close(store);

	harness_cluster_set(cluster, "cluster-preferred-endpoint-type", "unknown-endpoint");
	open_store("?protocol=2");
	for (n = 0; n < VALUES; n++)
		assert_int_equal(harness_get(store, n, VALUE_BYTES), 0);
	harness_cluster_set(cluster, "cluster-preferred-endpoint-type", "ip");
}

static void bad_uris_are_refused(void **state)
{
	static const char *const uris[][2] = {
	    {"redis+cluster://", "no host"},
	    {"redis+cluster://a:70000", "70000"},
	    {"redis+cluster://a:1,b:x", "x"},
	    {"redis+cluster://[::1,b:1", "IPv6"},
	    {"redis+cluster://a:1/3", "/3"},
	    {"redis+cluster://a:1?db=1", "db"},
	    {"redis+cluster://a:1?prefix={x}", "hash tag"},
	    {"redis+cluster://a:1?lanes=64", "expected at most 1024"},
	    {"redis+cluster://a:1?nodes=129", "1 to 128"},
	    {"redis+cluster://a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q", "more than 16 hosts"},
	    {"redis://a:1,b:2", "redis+cluster"},
	};
	char error[SSV_ERROR_TEXT_MAX];
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_COUNT(uris); i++) {
		assert_true(store_uri_check(uris[i][0], error) < 0);
		if (!strstr(error, uris[i][1]))
			fail_msg("%s: %s", uris[i][0], error);
	}
	assert_int_equal(
	    store_uri_check("redis+cluster://[::1]:7000,b,c:1/?lanes=64&nodes=15", error), 0);
}

/* ---- a cluster that changes ----------------------------------------------------------------- */

/* A slot's keys move one by one while all values are fetched again and again. */
static void slots_move_while_values_are_fetched(void **state)
{
	uint64_t random = harness_seed(71), moved = 0, n;
	uint32_t round, k;

	(void)state;
	open_store("?lanes=2&refresh-ms=100000&range=64K");
	put_values();
	for (round = 0; round < 6; round++) {
		bool home = round % 2, more = true; /* the one that went comes home */
		uint32_t slot, from, to;

		moved = home ? moved : harness_random(&random) % VALUES;
		slot = slot_of(moved);
		from = (master_of(moved) + home) % cluster->masters;
		to = (master_of(moved) + !home) % cluster->masters;
		harness_cluster_begin_move(cluster, slot, from, to);
		for (k = 0; more; k++) {
			submit_gets();
			if (k)
				more = harness_cluster_move_key(cluster, slot, from, to);
			harness_poll(store, VALUES);
			assert_int_equal(check_gets(HARNESS_NODES_MAX), 0);
			assert_int_equal(harness_exists(store, moved, &n), 0);
		}
		submit_gets();
		harness_cluster_end_move(cluster, slot, from, to);
		harness_poll(store, VALUES);
		assert_int_equal(check_gets(HARNESS_NODES_MAX), 0);
		for (n = 0; n < VALUES; n++)
			assert_int_equal(harness_get(store, n, VALUE_BYTES), 0);
	}
	assert_true(harness_stats(store).redirects > 0);
	/* A PUT meets a slot that moves, whose key is not there yet. */
	harness_cluster_begin_move(cluster, slot_of(500), master_of(500),
				   (master_of(500) + 1) % cluster->masters);
	assert_int_equal(harness_put(store, 500, 1000), 0);
	assert_int_equal(harness_get(store, 500, 1000), 0);
	assert_int_equal(harness_delete(store, 500), 0);
	assert_int_equal(harness_get(store, 500, 1000), -ENOENT);
	harness_cluster_end_move(cluster, slot_of(500), (master_of(500) + 1) % cluster->masters,
				 master_of(500));
}

static void new_node_is_found(void **state)
{
	uint32_t slot = slot_of(3), from = master_of(3), to;
	uint64_t n;

	(void)state;
	open_store("?refresh-ms=100000");
	to = harness_cluster_join(cluster, true);
	harness_cluster_begin_move(cluster, slot, from, to);
	while (harness_cluster_move_key(cluster, slot, from, to))
		;
	assert_int_equal(harness_get(store, 3, VALUE_BYTES), 0); /* ASK */
	harness_cluster_end_move(cluster, slot, from, to);
	for (n = 0; n < VALUES; n++)
		assert_int_equal(harness_get(store, n, VALUE_BYTES), 0);
	assert_int_equal(harness_stats(store).nodes, cluster->masters + 1);
	/* It leaves again. */
	harness_cluster_begin_move(cluster, slot, to, from);
	while (harness_cluster_move_key(cluster, slot, to, from))
		;
	harness_cluster_end_move(cluster, slot, to, from);
	assert_comes_back(3, 0);
	harness_redis_kill(cluster->nodes[to]);
	for (n = 0; n < VALUES; n++)
		assert_int_equal(harness_get(store, n, VALUE_BYTES), 0);
}

/* ---- masters that die ----------------------------------------------------------------------- */

static void killed_master_fails_over(void **state)
{
	uint32_t finished, lost = 1;
	char uri[128];
	uint64_t n;

	(void)state;
	(void)snprintf(uri, sizeof(uri), "redis+cluster://127.0.0.1:%u?lanes=2&backoff-max-ms=100",
		       cluster->nodes[5]->port); /* a replica knows the map as well */
	store = harness_open(uri);
	put_values();
	harness_cluster_command(cluster, lost, (char[64]){0}, 64, "WAIT 1 5000");
	submit_gets();
	finished = poll_until_some_bytes(lost);
	harness_redis_kill(cluster->nodes[lost]);
	harness_poll(store, VALUES - finished);
	(void)check_gets(lost);
	/* The replica takes over with the values; the others were served all the time. */
	for (n = 0; n < VALUES; n++)
		assert_comes_back(n, 0);
	assert_int_equal(harness_put(store, 1, VALUE_BYTES), 0);
}

/* The replica takes over from a master that lives: everything is served all the time. */
static void master_that_steps_down_misses_nothing(void **state)
{
	uint64_t ask_ns = 0, end_ns = clock_now_ns() + 2 * HARNESS_PATIENCE;
	bool is_master = false;
	char answer[2048];

	(void)state;
	open_store("?lanes=2&refresh-ms=100000");
	put_values();
	/* The replica may be master for a moment before the old one knows: until a GET was sent on.
	 */
	while (!is_master || harness_stats(store).redirects == 0) {
		/* Nodes of a busy machine may give a failover up: then it is asked for again. */
		if (!is_master && clock_now_ns() >= ask_ns) {
			harness_cluster_command(cluster, 3, answer, sizeof(answer),
						"CLUSTER FAILOVER");
			ask_ns = clock_now_ns() + FAILOVER_NS;
		}
		submit_gets();
		harness_poll(store, VALUES);
		assert_int_equal(check_gets(HARNESS_NODES_MAX), 0);
		harness_cluster_command(cluster, 3, answer, sizeof(answer), "INFO replication");
		is_master = strstr(answer, "role:master");
		assert_true(clock_now_ns() < end_ns);
	}
	submit_gets();
	harness_poll(store, VALUES);
	assert_int_equal(check_gets(HARNESS_NODES_MAX), 0);
	put_values();
}

/* Without a replica its keys miss at once; the rest is served. */
static void killed_master_without_replica_misses(void **state)
{
	char text[SSV_ERROR_TEXT_MAX];
	uint32_t finished, lost, missing;
	uint64_t n, start_ns;

	(void)state;
	lost = 2;
	open_store("?lanes=2&backoff-max-ms=100&connect-timeout-ms=300");
	put_values();
	submit_gets();
	finished = poll_until_some_bytes(lost);
	harness_redis_kill(cluster->nodes[lost]);
	harness_poll(store, VALUES - finished);
	(void)check_gets(lost);
	submit_gets();
	harness_poll(store, VALUES);
	missing = check_gets(lost);
	assert_true(missing > 0 && missing < VALUES);
	/* 100 misses come long before one deadline. */
	for (n = 0; master_of(n) != lost; n++)
		;
	start_ns = clock_now_ns();
	for (missing = 0; missing < 100; missing++)
		assert_int_equal(harness_get(store, n, VALUE_BYTES), -ENOTCONN);
	assert_true(clock_now_ns() - start_ns < HARNESS_PATIENCE);
	assert_true(store->ops->describe(store, text, sizeof(text)));
	assert_non_null(strstr(text, "1 of 3 nodes"));
}

static void stopped_master_misses_in_time(void **state)
{
	char text[64];
	uint64_t n;

	(void)state;
	open_store("?lanes=2&timeout-ms=200&connect-timeout-ms=200&backoff-max-ms=100");
	put_values();
	(void)kill(cluster->nodes[0]->pid, SIGSTOP);
	submit_gets();
	harness_poll(store, VALUES);
	assert_true(check_gets(0) > 0);
	(void)kill(cluster->nodes[0]->pid, SIGCONT);
	for (n = 0; n < VALUES; n++)
		assert_comes_back(n, 0);
	while (store->ops->describe(store, text, sizeof(text)))
		assert_comes_back(0, 0);
}

/* With cluster-require-full-coverage everybody refuses while one is missing: still no waiting. */
static void cluster_that_is_down_refuses_quickly(void **state)
{
	uint64_t end_ns = clock_now_ns() + HARNESS_PATIENCE;
	uint64_t n;
	int i, status = 0;

	(void)state;
	open_store("?lanes=1&backoff-max-ms=50");
	put_values();
	harness_redis_kill(cluster->nodes[0]);
	for (n = 0; master_of(n) != 1; n++)
		;
	while (status != -ENOTCONN) { /* the others need a while to agree */
		status = harness_get(store, n, VALUE_BYTES);
		assert_true(status == 0 || status == -ENOTCONN);
		assert_true(clock_now_ns() < end_ns);
	}
	end_ns = clock_now_ns() + HARNESS_PATIENCE;
	for (i = 0; i < 200; i++)
		assert_int_equal(harness_get(store, n, VALUE_BYTES), -ENOTCONN);
	assert_true(clock_now_ns() < end_ns);
	harness_cluster_set(cluster, "cluster-require-full-coverage", "no");
	assert_comes_back(n, 0);
}

static int start(uint32_t masters, uint32_t replicas, bool whole)
{
	cluster = harness_cluster_start(masters, replicas, whole);
	return cluster ? 0 : -1;
}

static int start_whole(void **state)
{
	(void)state;
	return start(3, 0, true);
}

static int start_with_replica(void **state)
{
	(void)state;
	return start(3, 3, true);
}

static int start_in_parts(void **state)
{
	(void)state;
	return start(3, 0, false);
}

static int stop(void **state)
{
	(void)state;
	harness_cluster_stop(cluster);
	cluster = NULL;
	return 0;
}

#define TEST(name) cmocka_unit_test_teardown(name, close_store)

int main(void)
{
	const struct CMUnitTest quiet[] = {
	    TEST(bad_uris_are_refused),
	    TEST(values_spread_over_all_nodes),
	    TEST(seeds_that_are_down_are_passed_over),
	    TEST(server_without_a_cluster_is_told),
	    TEST(passwords_hold_for_every_node),
	    TEST(hostnames_and_unknown_endpoints),
	    TEST(slots_move_while_values_are_fetched),
	    TEST(new_node_is_found),
	    TEST(cluster_that_is_down_refuses_quickly),
	};
	const struct CMUnitTest with_replica[] = {TEST(master_that_steps_down_misses_nothing),
						  TEST(killed_master_fails_over)};
	const struct CMUnitTest in_parts[] = {
	    TEST(stopped_master_misses_in_time),
	    TEST(killed_master_without_replica_misses),
	};
	struct harness_redis *redis = harness_redis_start(NULL);
	int failed;
	uint32_t n;

	if (!redis)
		return SKIP;
	harness_redis_stop(redis);
	for (n = 0; n < VALUES; n++) {
		buffers[n] = malloc(VALUE_BYTES);
		if (!buffers[n])
			return 1;
	}
	failed = cmocka_run_group_tests(quiet, start_whole, stop);
	failed += cmocka_run_group_tests(with_replica, start_with_replica, stop);
	failed += cmocka_run_group_tests(in_parts, start_in_parts, stop);
	for (n = 0; n < VALUES; n++)
		free(buffers[n]);
	return failed;
}
