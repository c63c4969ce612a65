/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_cluster_lies.c - a redis+cluster: store against a node that lies about the cluster: maps of
 * garbage, redirections in circles and to nowhere, refusals without end.
 *
 * No lie costs a deadline, and after each the peer turns honest and the store must serve again.
 */
#include "harness_peer.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "store/cluster_map.h"

static struct store *store;
static char honest_map[256], redirections[8][128];
static struct peer_script honest = {
    .hello = "+PONG\r\n", .answer = "$5\r\nabcde\r\n", .map = honest_map};

static void open_store(const char *options)
{
	char uri[256];

	(void)snprintf(uri, sizeof(uri),
		       "redis+cluster://127.0.0.1:%u?protocol=2&lanes=1&nodes=4&"
		       "connect-timeout-ms=100&backoff-max-ms=20%s",
		       peer_port(), options);
	store = harness_open(uri);
}

static int setup(void **state)
{
	(void)state;
	(void)snprintf(
	    honest_map, sizeof(honest_map),
	    "*1\r\n*3\r\n:0\r\n:16383\r\n*4\r\n$9\r\n127.0.0.1\r\n:%u\r\n$2\r\nid\r\n*0\r\n",
	    peer_port());
	peer_tell(&honest);
	open_store("&timeout-ms=100&refresh-ms=100");
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	store_close(store);
	store = NULL;
	return 0;
}

static uint32_t slot_of(uint64_t n)
{
	struct ssv_key key = harness_key(n);

	return cluster_slot(cluster_crc16(0, "ssv:", 4), &key);
}

static uint8_t data[64];

static int get(void)
{
	struct store_op op = {
	    .kind = STORE_OP_GET, .key = harness_key(1), .data = data, .capacity = sizeof(data)};
	uint64_t start_ns = clock_now_ns();
	int status = harness_run(store, &op);

	assert_true(clock_now_ns() - start_ns < HARNESS_PATIENCE);
	return status;
}

static void assert_recovers(void)
{
	int i;

	peer_tell(&honest);
	for (i = 0; i < 4000 && get(); i++)
		(void)usleep(2000);
	assert_int_equal(get(), 0);
	assert_memory_equal(data, "abcde", 5);
}

static void maps_of_garbage_change_nothing(void **state)
{
	static const char *const maps[] = {
	    "-ERR unknown command 'CLUSTER'\r\n",
	    "+OK\r\n",
	    "$5\r\nhello\r\n",
	    "*0\r\n",
	    "*1\r\n*3\r\n:0\r\n:16384\r\n*2\r\n$9\r\n127.0.0.1\r\n:1\r\n",
	    "*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:0\r\n",
	    "*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:65536\r\n",
	    "*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$8\r\nno.where\r\n:7\r\n",
	    "*2\r\n*3\r\n:0\r\n:9\r\n*2\r\n$0\r\n\r\n:7\r\n*3\r\n:9\r\n:9\r\n*2\r\n$0\r\n\r\n:"
	    "7\r\n",
	    "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
	};
	size_t i, k;

	(void)state;
	for (i = 0; i < ARRAY_COUNT(maps); i++) {
		struct peer_script script = honest;
		uint64_t refreshes = 0;

		script.map = maps[i];
		script.bytewise = i % 2;
		peer_tell(&script);
		for (k = 0; k < 300 && refreshes < 3; k++) { /* keep on through a few refreshes */
			char text[SSV_ERROR_TEXT_MAX];

			assert_true(get() == 0 || get() == -ENOTCONN || get() == -EPROTO);
			refreshes += store->ops->describe(store, text, sizeof(text));
			(void)usleep(2000);
		}
		assert_true(refreshes > 0);
		assert_recovers();
	}
}

/* A map can be right in form and still name nodes that are not there. */
static void nodes_that_do_not_exist_miss(void **state)
{
	static char text[4096];
	size_t at = 0;
	uint32_t i;
	struct peer_script script = honest;

	(void)state;
	at += (size_t)snprintf(text, sizeof(text), "*40\r\n");
	for (i = 0; i < 40; i++)
		at += (size_t)snprintf(text + at, sizeof(text) - at,
				       "*3\r\n:%u\r\n:%u\r\n*2\r\n$9\r\n127.0.0.1\r\n:%u\r\n",
				       i * 409, i * 409 + (i == 39 ? 432 : 408), 1 + i);
	script.map = text;
	peer_tell(&script);
	store_close(store);
	open_store("&timeout-ms=100&refresh-ms=100");
	for (i = 0; i < 50; i++)
		assert_int_equal(get(), -ENOTCONN);
	assert_true(harness_stats(store).nodes <= 4);
	assert_recovers();
}

static void redirections_in_circles_end(void **state)
{
	size_t i;
	int k;

	(void)state;
	(void)snprintf(redirections[0], 128, "-MOVED %u 127.0.0.1:%u\r\n", slot_of(1), peer_port());
	(void)snprintf(redirections[1], 128, "-ASK %u 127.0.0.1:%u\r\n", slot_of(1), peer_port());
	(void)snprintf(redirections[2], 128, "-MOVED %u :%u\r\n", slot_of(1), peer_port());
	(void)snprintf(redirections[3], 128, "-MOVED %u 127.0.0.1:%u\r\n", slot_of(1),
		       harness_port(NULL));
	(void)snprintf(redirections[4], 128, "-MOVED %u no.where:7\r\n", slot_of(1));
	(void)snprintf(redirections[5], 128, "-MOVED 16384 127.0.0.1:%u\r\n", peer_port());
	(void)snprintf(redirections[6], 128, "-MOVED %u 127.0.0.1:%u\r\n", slot_of(1) ^ 1,
		       peer_port());
	(void)snprintf(redirections[7], 128, "-ASK %u 127.0.0.1:99999\r\n", slot_of(1));
	for (i = 0; i < ARRAY_COUNT(redirections); i++) {
		struct peer_script script = honest;

		script.answer = redirections[i];
		peer_tell(&script);
		for (k = 0; k < 20; k++)
			assert_int_equal(get(), i < 5 ? -ENOTCONN : -EPROTO);
		assert_recovers();
	}
}

static void refusals_without_end_are_not_waited_for(void **state)
{
	static const char *const refusals[] = {
	    "-CLUSTERDOWN The cluster is down\r\n",
	    "-LOADING Redis is loading the dataset in memory\r\n",
	    "-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
	    "-READONLY You can't write against a read only replica.\r\n",
	};
	size_t i;
	int k;

	(void)state;
	for (i = 0; i < ARRAY_COUNT(refusals); i++) {
		struct peer_script script = honest;

		script.answer = refusals[i];
		peer_tell(&script);
		for (k = 0; k < 200; k++)
			assert_int_equal(get(), -ENOTCONN);
		assert_recovers();
	}
}

/* One refusal, then the value: the operation does not see it. */
static void short_refusals_are_waited_for(void **state)
{
	struct peer_script script = honest;

	(void)state;
	script.answer = "-CLUSTERDOWN Hash slot not served\r\n";
	script.again = honest.answer;
	script.map = NULL; /* so that a question for the map does not count as the first command */
	store_close(store);
	peer_tell(&honest);
	open_store("&timeout-ms=100&refresh-ms=60000");
	assert_int_equal(get(), 0);
	peer_tell(&script);
	assert_int_equal(get(), 0);
	assert_memory_equal(data, "abcde", 5);
}

static void deadlines_hold_while_pausing(void **state)
{
	struct peer_script script = honest;
	struct store_op op = {
	    .kind = STORE_OP_GET, .key = harness_key(1), .data = data, .capacity = sizeof(data)};
	int i;

	(void)state;
	script.answer = "-LOADING\r\n";
	assert_int_equal(get(), 0);
	peer_tell(&script);
	op.deadline_ns = clock_now_ns() + 20 * NS_PER_MS;
	assert_int_equal(harness_run(store, &op), -ETIMEDOUT);
	for (i = 0; i < 3; i++) { /* cancelled */
		op.deadline_ns = 1;
		assert_int_equal(harness_run(store, &op), -ETIMEDOUT);
	}
	assert_recovers();
}

/* No answer to CLUSTER SLOTS: the lane goes, the values are served by the others. */
static void silence_about_the_map_is_survived(void **state)
{
	struct peer_script script = honest;
	int i, served = 0;

	(void)state;
	script.map = ""; /* nothing is said */
	peer_tell(&script);
	for (i = 0; i < 200; i++) {
		served += get() == 0;
		(void)usleep(2000);
	}
	assert_true(served > 100);
	assert_recovers();
}

static void random_answers_end_in_time(void **state)
{
	static const char *const pieces[] = {
	    "-MOVED 5 127.0.0.1:1\r\n",
	    "-ASK 5 :1\r\n",
	    "-MOVED\r\n",
	    "-ASK \r\n",
	    "-CLUSTERDOWN\r\n",
	    "-TRYAGAIN\r\n",
	    "+OK\r\n",
	    "$-1\r\n",
	    "*3\r\n",
	    "*2\r\n",
	    ":0\r\n",
	    ":16383\r\n",
	    "$9\r\n127.0.0.1\r\n",
	    "$5\r\nabcde\r\n",
	    "%1\r\n",
	    "$",
	    "\r\n",
	    ">2\r\n$2\r\nhi\r\n",
	};
	uint64_t random = harness_seed(53);
	static char answers[200][512], maps[200][512];
	uint32_t round, i;

	(void)state;
	store_close(store);
	open_store("&timeout-ms=10&refresh-ms=100");
	for (round = 0; round < ARRAY_COUNT(answers); round++) {
		struct peer_script script = honest;
		uint64_t n = 1 + harness_random(&random) % 4;

		while (n--)
			strcat(answers[round],
			       pieces[harness_random(&random) % ARRAY_COUNT(pieces)]);
		for (n = 1 + harness_random(&random) % 12; n--;)
			strcat(maps[round], pieces[harness_random(&random) % ARRAY_COUNT(pieces)]);
		if (harness_random(&random) % 4)
			script.answer = answers[round];
		script.map = maps[round];
		script.bytewise = harness_random(&random) % 4 == 0;
		peer_tell(&script);
		for (i = 0; i < 3; i++) {
			int status = get();

			if (status && status != -ENOENT && status != -EPROTO &&
			    status != -ENOTCONN && status != -EIO)
				fail_msg("%d: \"%s\" \"%s\"", status, answers[round], maps[round]);
		}
	}
	assert_recovers();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(maps_of_garbage_change_nothing, setup, teardown),
	    cmocka_unit_test_setup_teardown(nodes_that_do_not_exist_miss, setup, teardown),
	    cmocka_unit_test_setup_teardown(redirections_in_circles_end, setup, teardown),
	    cmocka_unit_test_setup_teardown(refusals_without_end_are_not_waited_for, setup,
					    teardown),
	    cmocka_unit_test_setup_teardown(short_refusals_are_waited_for, setup, teardown),
	    cmocka_unit_test_setup_teardown(deadlines_hold_while_pausing, setup, teardown),
	    cmocka_unit_test_setup_teardown(silence_about_the_map_is_survived, setup, teardown),
	    cmocka_unit_test_setup_teardown(random_answers_end_in_time, setup, teardown),
	};
	int failed;

	peer_start();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	peer_stop();
	return failed;
}
