/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_redis.c - a redis: store with a real server: accounts, expiry, and a server that is full,
 * stopped, killed and started again.
 */
#include "harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "store/redis.h"

static struct harness_redis *redis;
static struct store *store;

static void open_store(const char *user, const char *rest)
{
	char uri[512];

	(void)snprintf(uri, sizeof(uri), "redis://%s127.0.0.1:%u%s", user, redis->port, rest);
	store = harness_open(uri);
}

static int open_error(const char *user, const char *rest, char *error)
{
	char uri[512];
	struct store_config config = {.uri = uri, .value_bytes_max = MIB, .ops_max = 4};
	struct store *other;

	(void)snprintf(uri, sizeof(uri), "redis://%s127.0.0.1:%u%s", user, redis->port, rest);
	return store_open(&config, &other, error);
}

static int setup(void **state)
{
	(void)state;
	redis = harness_redis_start(NULL);
	return redis ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	store_close(store);
	store = NULL;
	harness_redis_stop(redis);
	redis = NULL;
	return 0;
}

static void command(const char *line, char *answer, size_t answer_bytes)
{
	harness_redis_command(redis, line, answer, answer_bytes);
}

static void key_name(uint64_t n, const char *prefix, char *text)
{
	struct ssv_key key = harness_key(n);
	size_t i;

	text += sprintf(text, "%s", prefix);
	for (i = 0; i < sizeof(key.bytes); i++)
		text += sprintf(text, "%02x", key.bytes[i]);
}

/* Put until it works: the store reconnects with pauses. */
static void assert_recovers(void)
{
	int i;

	for (i = 0; i < 4000 && harness_put(store, 999, 10); i++)
		(void)usleep(2000);
	assert_int_equal(harness_get(store, 999, 10), 0);
}

static void accounts_and_passwords(void **state)
{
	char error[SSV_ERROR_TEXT_MAX], answer[128], options[256], path[128];
	int fd;

	(void)state;
	command("ACL SETUSER kv on >s3cret/x ~ssv:* +get +getrange +watch +multi +exec +set "
		"+strlen +unlink +select +scan",
		answer, sizeof(answer));
	assert_string_equal(answer, "+OK");
	command("CONFIG SET requirepass topsecret", answer, sizeof(answer));
	assert_string_equal(answer, "+OK");

	assert_int_equal(open_error("", "", error), -EACCES);
	assert_non_null(strstr(error, "NOAUTH"));
	assert_int_equal(open_error("kv:wrong@", "", error), -EACCES);
	assert_non_null(strstr(error, "WRONGPASS"));
	assert_null(strstr(error, "wrong@"));
	assert_int_equal(open_error("kv:wrong@", "?protocol=2", error), -EACCES);

	open_store("kv:s3cret%2Fx@", "/0");
	assert_int_equal(harness_put(store, 1, 1000), 0);
	assert_int_equal(harness_get(store, 1, 1000), 0);
	assert_int_equal(harness_exists(store, 1, NULL), 0);
	store_close(store);
	open_store("kv:s3cret%2Fx@", "/1?protocol=2&prefix=other:");
	assert_int_equal(harness_put(store, 1, 1000), -EACCES); /* ~ssv:* alone */
	store_close(store);
	open_store("topsecret@", "");
	assert_int_equal(harness_get(store, 1, 1000), 0);
	assert_int_equal(harness_delete(store, 1), 0);
	store_close(store);

	(void)snprintf(path, sizeof(path), "%s/password", redis->folder);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(write(fd, "s3cret/x\n", 9), 9);
	(void)close(fd);
	(void)snprintf(options, sizeof(options), "?password-file=%s", path);
	open_store("kv@", options);
	assert_int_equal(harness_get(store, 1, 1000), -ENOENT);
	store_close(store);
	store = NULL;
	(void)snprintf(options, sizeof(options), "?password-file=%s.none", path);
	assert_int_equal(open_error("kv:@", options, error), -EACCES);
	assert_non_null(strstr(error, "No such file"));
}

static void databases_are_apart(void **state)
{
	struct store *other;

	(void)state;
	open_store("", "/3");
	other = store;
	assert_int_equal(harness_put(store, 1, 100), 0);
	open_store("", "/4");
	assert_int_equal(harness_get(store, 1, 100), -ENOENT);
	store_close(store);
	open_store("", "?db=3&protocol=2");
	assert_int_equal(harness_get(store, 1, 100), 0);
	store_close(other);
}

static void values_expire(void **state)
{
	char line[160], answer[64], name[100];

	(void)state;
	open_store("", "?ttl=500&prefix=kv/");
	assert_int_equal(harness_put(store, 1, 100), 0);
	key_name(1, "kv/", name);
	(void)snprintf(line, sizeof(line), "TTL %s", name);
	command(line, answer, sizeof(answer));
	assert_in_range(atoi(answer + 1), 400, 500);
	store_close(store);
	open_store("", "?prefix=kv/");
	assert_int_equal(harness_put(store, 1, 100), 0);
	command(line, answer, sizeof(answer));
	assert_string_equal(answer, ":-1");
}

static void other_types_are_refused(void **state)
{
	char line[160], answer[64], name[100];

	(void)state;
	open_store("", "");
	key_name(1, "ssv:", name);
	(void)snprintf(line, sizeof(line), "LPUSH %s x", name);
	command(line, answer, sizeof(answer));
	assert_string_equal(answer, ":1");
	assert_int_equal(harness_get(store, 1, 100), -EPROTO);
	assert_int_equal(harness_exists(store, 1, NULL), -EPROTO);
	assert_int_equal(harness_put(store, 1, 100), 0);
	assert_int_equal(harness_get(store, 1, 100), 0);
}

static void full_server_refuses_puts_only(void **state)
{
	char answer[64];
	uint64_t n;

	(void)state;
	open_store("", "");
	assert_int_equal(harness_put(store, 0, MIB), 0);
	command("CONFIG SET maxmemory 8mb", answer, sizeof(answer));
	assert_string_equal(answer, "+OK");
	for (n = 1; n < 20 && harness_put(store, n, MIB) == 0;)
		n++;
	assert_in_range(n, 2, 10);
	assert_int_equal(harness_put(store, 50, MIB), -ENOSPC);
	assert_int_equal(harness_get(store, 0, MIB), 0);
	assert_int_equal(harness_get(store, 50, MIB), -ENOENT);
	assert_int_equal(harness_stats(store).reconnects, 0);
}

static void many_look_ups_are_pipelined(void **state)
{
	static struct store_op ops[2000];
	size_t i;

	(void)state;
	open_store("", "");
	for (i = 0; i < 10; i++)
		assert_int_equal(harness_put(store, i * 100, 1 + i), 0);
	memset(ops, 0, sizeof(ops));
	for (i = 0; i < ARRAY_COUNT(ops); i++) {
		ops[i].kind = STORE_OP_EXISTS;
		ops[i].key = harness_key(i);
	}
	harness_run_all(store, ops, ARRAY_COUNT(ops));
	for (i = 0; i < ARRAY_COUNT(ops); i++) {
		bool there = i % 100 == 0 && i < 1000;

		assert_int_equal(ops[i].status, there ? 0 : -ENOENT);
		assert_int_equal(ops[i].value_bytes, there ? 1 + i / 100 : 0);
	}
}

#define VALUES      12u
#define VALUE_BYTES (3 * MIB)

static struct store_op gets[VALUES];
static uint8_t *buffers[VALUES];

static void put_values(void)
{
	uint64_t n;

	for (n = 0; n < VALUES; n++)
		assert_int_equal(harness_put(store, n, VALUE_BYTES), 0);
}

static void submit_gets(uint64_t patience_ns)
{
	uint64_t n;

	memset(gets, 0, sizeof(gets));
	for (n = 0; n < VALUES; n++) {
		struct store_op *op = &gets[n];

		buffers[n] = malloc(VALUE_BYTES);
		op->kind = STORE_OP_GET;
		op->key = harness_key(n);
		op->data = buffers[n];
		op->capacity = VALUE_BYTES;
		op->deadline_ns = clock_now_ns() + patience_ns;
		assert_int_equal(store->ops->submit(store, &op, 1, clock_now_ns()), 1);
	}
}

/* Poll until some bytes are here, or the first operation is. Returns how many are handed back. */
static uint32_t poll_until_some_bytes(void)
{
	struct store_op *done[VALUES];
	uint32_t finished = 0;

	while (!finished && gets[0].received == 0)
		finished += store->ops->poll(store, done, VALUES, clock_now_ns());
	return finished;
}

static void free_gets(void)
{
	uint64_t n;

	for (n = 0; n < VALUES; n++)
		free(buffers[n]);
}

static void lost_connections_are_retried_once(void **state)
{
	char answer[64];
	uint64_t n;
	uint32_t finished;

	(void)state;
	open_store("", "?lanes=2&backoff-max-ms=20");
	put_values();
	submit_gets(HARNESS_PATIENCE);
	finished = poll_until_some_bytes();
	command("CLIENT KILL TYPE normal SKIPME yes", answer, sizeof(answer));
	assert_int_equal(answer[0], ':');
	harness_poll(store, VALUES - finished);
	for (n = 0; n < VALUES; n++) {
		assert_int_equal(gets[n].status, 0);
		assert_true(harness_is_filled(buffers[n], VALUE_BYTES, n));
	}
	free_gets();
	assert_true(harness_stats(store).reconnects > 0);
}

static void killed_server_ends_gets_and_comes_back(void **state)
{
	uint32_t finished;
	uint64_t n;

	(void)state;
	open_store("", "?lanes=2&backoff-max-ms=50");
	put_values();
	submit_gets(HARNESS_PATIENCE);
	finished = poll_until_some_bytes();
	harness_redis_kill(redis);
	harness_poll(store, VALUES - finished);
	for (n = 0; n < VALUES; n++) {
		assert_true(gets[n].status == 0 || gets[n].status == -ENOTCONN);
		if (!gets[n].status)
			assert_true(harness_is_filled(buffers[n], VALUE_BYTES, n));
	}
	free_gets();
	/* While it is gone, nothing waits for a deadline. */
	for (n = 0; n < 20; n++)
		assert_int_equal(harness_get(store, n, 10), -ENOTCONN);
	assert_int_equal(harness_stats(store).connected, 0);
	harness_redis_restart(redis, NULL);
	assert_recovers();
	assert_int_equal(harness_get(store, 0, VALUE_BYTES), -ENOENT);
	assert_true(harness_stats(store).reconnects > 0);
}

static void stopped_server_ends_gets_in_time(void **state)
{
	uint32_t finished;
	uint64_t n;

	(void)state;
	open_store("", "?lanes=2&timeout-ms=100&connect-timeout-ms=100&backoff-max-ms=50");
	put_values();
	submit_gets(600 * NS_PER_MS);
	finished = poll_until_some_bytes();
	(void)kill(redis->pid, SIGSTOP);
	harness_poll(store, VALUES - finished);
	for (n = 0; n < VALUES; n++)
		assert_true(gets[n].status == 0 || gets[n].status == -ENOTCONN ||
			    gets[n].status == -ETIMEDOUT);
	free_gets();
	(void)kill(redis->pid, SIGCONT);
	assert_recovers();
	for (n = 0; n < VALUES; n++)
		assert_int_equal(harness_get(store, n, VALUE_BYTES), 0);
}

static void absent_server_is_told_or_waited_for(void **state)
{
	char error[SSV_ERROR_TEXT_MAX];

	(void)state;
	harness_redis_kill(redis);
	assert_int_equal(open_error("", "", error), -ENOTCONN);
	assert_non_null(strstr(error, "Connection refused"));
	open_store("", "?connect=later&backoff-max-ms=20");
	assert_int_equal(harness_get(store, 1, 10), -ENOTCONN);
	harness_redis_restart(redis, NULL);
	assert_recovers();
}

static void answer_that_is_here_is_no_time_out(void **state)
{
	struct store_op op = {.kind = STORE_OP_GET, .key = harness_key(1), .capacity = 1000};
	struct store_op *pointer = &op, *done = NULL;
	uint64_t now_ns;
	uint8_t data[1000];
	struct pollfd fds[8];
	nfds_t n;
	int i;

	(void)state;
	open_store("", "?lanes=1");
	assert_int_equal(harness_put(store, 1, 1000), 0);
	while (harness_stats(store).connected < 3)
		(void)store->ops->poll(store, &done, 1, clock_now_ns());
	op.data = data;
	op.deadline_ns = TIME_NEVER;
	now_ns = clock_now_ns();
	assert_int_equal(store->ops->submit(store, &pointer, 1, now_ns), 1);
	assert_int_equal(store->ops->poll(store, &done, 1, now_ns), 0);
	n = store->ops->pollfds(store, fds, ARRAY_COUNT(fds));
	assert_int_equal(poll(fds, n, 10000), 1);
	/* The worker was busy for a minute. */
	for (i = 0; i < 3 && !done; i++)
		(void)store->ops->poll(store, &done, 1, now_ns + 60 * NS_PER_S);
	assert_ptr_equal(done, &op);
	assert_int_equal(op.status, 0);
	assert_int_equal(harness_stats(store).reconnects, 0);
}

static void every_address_of_a_name_is_tried(void **state)
{
	struct redis_store *inside;
	struct sockaddr_in *dead;

	(void)state;
	open_store("", "?connect=later&lanes=1");
	inside = (struct redis_store *)(void *)store;
	inside->addresses[2] = inside->addresses[0];
	inside->addresses[1] = inside->addresses[0];
	inside->addresses_count = 3;
	dead = (struct sockaddr_in *)(void *)&inside->addresses[0].address;
	dead->sin_port = htons((uint16_t)harness_port(NULL));
	inside->addresses[1] = inside->addresses[0];
	assert_int_equal(harness_put(store, 1, 1000), 0);
	assert_int_equal(harness_get(store, 1, 1000), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(accounts_and_passwords, setup, teardown),
	    cmocka_unit_test_setup_teardown(databases_are_apart, setup, teardown),
	    cmocka_unit_test_setup_teardown(values_expire, setup, teardown),
	    cmocka_unit_test_setup_teardown(other_types_are_refused, setup, teardown),
	    cmocka_unit_test_setup_teardown(full_server_refuses_puts_only, setup, teardown),
	    cmocka_unit_test_setup_teardown(many_look_ups_are_pipelined, setup, teardown),
	    cmocka_unit_test_setup_teardown(lost_connections_are_retried_once, setup, teardown),
	    cmocka_unit_test_setup_teardown(killed_server_ends_gets_and_comes_back, setup,
					    teardown),
	    cmocka_unit_test_setup_teardown(stopped_server_ends_gets_in_time, setup, teardown),
	    cmocka_unit_test_setup_teardown(answer_that_is_here_is_no_time_out, setup, teardown),
	    cmocka_unit_test_setup_teardown(every_address_of_a_name_is_tried, setup, teardown),
	    cmocka_unit_test_setup_teardown(absent_server_is_told_or_waited_for, setup, teardown),
	};

	redis = harness_redis_start(NULL);
	if (!redis)
		return SKIP;
	harness_redis_stop(redis);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
