/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_redis_lies.c - a redis: store against a peer that says anything but what Redis would.
 *
 * After each lie the peer turns honest and the store must serve again.
 */
#include "harness_peer.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static const struct peer_script honest = {.hello = "+PONG\r\n", .answer = "$5\r\nabcde\r\n"};

static struct store *store;

static void open_store(const char *options)
{
	char uri[256];

	(void)snprintf(uri, sizeof(uri),
		       "redis://127.0.0.1:%u?connect=later&protocol=2&lanes=1&"
		       "connect-timeout-ms=100&backoff-max-ms=20%s",
		       peer_port(), options);
	store = harness_open(uri);
}

static int setup(void **state)
{
	(void)state;
	peer_tell(&honest);
	open_store("&timeout-ms=100");
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	store_close(store);
	store = NULL;
	return 0;
}

static uint8_t data[64];

static int run_kind(uint8_t kind, uint64_t *ret_bytes)
{
	struct store_op op = {.kind = kind, .key = harness_key(1), .data = data};
	int status;

	memset(data, 0xee, sizeof(data));
	op.capacity = sizeof(data) - 1;
	op.value_bytes = 3;
	status = harness_run(store, &op);
	assert_int_equal(data[sizeof(data) - 1], 0xee);
	assert_true(op.received <= sizeof(data) - 1);
	if (ret_bytes)
		*ret_bytes = kind == STORE_OP_GET ? op.received : op.value_bytes;
	return status;
}

/* With an honest peer the store serves again, after a few refusals at most. */
static void assert_recovers(void)
{
	int i;

	peer_tell(&honest);
	for (i = 0; i < 2000; i++) {
		int status = run_kind(STORE_OP_GET, NULL);

		if (!status) {
			assert_memory_equal(data, "abcde", 5);
			return;
		}
		(void)usleep(2000);
	}
	fail_msg("the store does not recover");
}

static void lies_about_values_are_errors(void **state)
{
	static const struct {
		const char *answer;
		int status;
	} cases[] = {
	    {"$5\r\nabcde\r\n", 0},
	    {"$-1\r\n", -ENOENT},
	    {"_\r\n", -ENOENT},
	    {"$0\r\n\r\n", -ENOENT},
	    {">2\r\n+invalidate\r\n+k\r\n$5\r\nabcde\r\n", 0},
	    {">2\r\n$80\r\n"
	     "01234567890123456789012345678901234567890123456789012345678901234567890123456789"
	     "\r\n+k\r\n$5\r\nabcde\r\n",
	     0},
	    {"|1\r\n+ttl\r\n:1\r\n$5\r\nabcde\r\n", 0},
	    {"$64\r\n0123456789012345678901234567890123456789012345678901234567890123\r\n",
	     -EMSGSIZE},
	    {"$-5\r\n", -EPROTO},
	    {"$99999999999\r\n", -EPROTO},
	    {"$18446744073709551617\r\n", -EPROTO},
	    {":5\r\n", -EPROTO},
	    {"+OK\r\n", -EPROTO},
	    {"*1\r\n$1\r\na\r\n", -EPROTO},
	    {"hello world\r\n", -EPROTO},
	    {"$5\r\nabcdeXX", -EPROTO},
	    {"!3\r\nERR\r\n", -EPROTO},
	    {"-ERR what\r\n", -EIO},
	    {"-NOAUTH Authentication required.\r\n", -EACCES},
	    {"-NOPERM no\r\n", -EACCES},
	    {"-LOADING Redis is loading\r\n", -ENOTCONN},
	    {"-OOM command not allowed\r\n", -ENOSPC},
	    {"-MOVED 3999 127.0.0.1:6381\r\n", -ENOTSUP},
	    {"-WRONGTYPE Operation\r\n", -EPROTO},
	};
	size_t i;

	(void)state;
	for (i = 0; i < 2 * ARRAY_COUNT(cases); i++) {
		const struct peer_script script = {
		    .hello = "+PONG\r\n", .answer = cases[i / 2].answer, .bytewise = i % 2};
		int status;

		peer_tell(&script);
		status = run_kind(STORE_OP_GET, NULL);
		if (status != cases[i / 2].status)
			fail_msg("\"%s\": %d", cases[i / 2].answer, status);
		assert_recovers();
	}
}

static void lies_about_the_rest_are_errors(void **state)
{
	static const struct {
		uint8_t kind;
		const char *answer;
		int status;
	} cases[] = {
	    {STORE_OP_PUT, "+OK\r\n", 0},
	    {STORE_OP_PUT, "-OOM command not allowed when used memory > 'maxmemory'.\r\n", -ENOSPC},
	    {STORE_OP_PUT, "-READONLY You can't write against a read only replica.\r\n", -EROFS},
	    {STORE_OP_PUT, ":1\r\n", -EPROTO},
	    {STORE_OP_PUT, "$-1\r\n", -EPROTO},
	    {STORE_OP_PUT, "+FINE\r\n", -EPROTO},
	    {STORE_OP_EXISTS, ":7\r\n", 0},
	    {STORE_OP_EXISTS, ":0\r\n", -ENOENT},
	    {STORE_OP_EXISTS, ":-1\r\n", -EPROTO},
	    {STORE_OP_EXISTS, ":99999999999\r\n", -EPROTO},
	    {STORE_OP_EXISTS, "$1\r\n7\r\n", -EPROTO},
	    {STORE_OP_DELETE, ":1\r\n", 0},
	    {STORE_OP_DELETE, ":0\r\n", 0},
	    {STORE_OP_DELETE, "+OK\r\n", -EPROTO},
	};
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_COUNT(cases); i++) {
		const struct peer_script script = {.hello = "+PONG\r\n", .answer = cases[i].answer};
		uint64_t bytes;
		int status;

		peer_tell(&script);
		status = run_kind(cases[i].kind, &bytes);
		if (status != cases[i].status)
			fail_msg("%u \"%s\": %d", cases[i].kind, cases[i].answer, status);
		if (cases[i].kind == STORE_OP_EXISTS)
			assert_int_equal(bytes, status ? 0 : 7);
		assert_recovers();
	}
}

static void silence_ends_in_time(void **state)
{
	static const struct peer_script scripts[] = {
	    {.hello = NULL},
	    {.hello = "+PONG\r\n", .answer = NULL},
	    {.hello = "+PONG\r\n", .answer = "$5\r\nab"},
	    {.hello = "+PONG\r\n", .answer = "$5\r\nab", .close = true},
	    {.hello = "+PONG\r\n", .answer = "", .close = true},
	    {.hello = "-WRONGPASS invalid username-password pair\r\n"},
	    {.hello = "rubbish\r\n"},
	    {.hello = "$-7\r\n"},
	};
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_COUNT(scripts); i++) {
		uint64_t received;

		store_close(store);
		peer_tell(&scripts[i]);
		open_store("&timeout-ms=100");
		assert_int_equal(run_kind(STORE_OP_GET, &received), -ENOTCONN);
		assert_true(received <= 2);
		assert_recovers();
		assert_true(harness_stats(store).connected > 0);
	}
}

static void second_attempt_must_bring_the_same_bytes(void **state)
{
	static const struct {
		const char *again;
		int status;
	} cases[] = {
	    {"$5\r\nabcde\r\n", 0},         {"$5\r\nabxyz\r\n", 0}, /* the same as far as it had
								       come */
	    {"$5\r\nxbcde\r\n", -ENOTCONN}, {"$6\r\nabcdef\r\n", -EIO}, {"$-1\r\n", -ENOENT},
	};
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_COUNT(cases); i++) {
		const struct peer_script script = {.hello = "+PONG\r\n",
						   .answer = "$5\r\nab",
						   .again = cases[i].again,
						   .close = true,
						   .bytewise = i % 2};

		assert_recovers();
		peer_tell(&script);
		assert_int_equal(run_kind(STORE_OP_GET, NULL), cases[i].status);
		assert_memory_equal(data, "ab", 2); /* below the watermark nothing changed */
		if (cases[i].status == 0)
			assert_memory_equal(data, cases[i].again + 4, 5);
		assert_recovers();
	}
}

static void answers_to_nothing_end_the_lane(void **state)
{
	const struct peer_script script = {.hello = "+PONG\r\n",
					   .answer = "$5\r\nabcde\r\n$5\r\nabcde\r\n"};
	uint64_t before;

	(void)state;
	assert_recovers();
	before = harness_stats(store).reconnects;
	peer_tell(&script);
	assert_int_equal(run_kind(STORE_OP_GET, NULL), 0);
	assert_recovers();
	assert_recovers();
	/* The surplus is never taken for another's answer. */
	assert_int_equal(run_kind(STORE_OP_GET, NULL), 0);
	while (harness_stats(store).reconnects == before)
		assert_recovers();
}

/* Answers put together from pieces of the grammar: every operation ends, with a status of the
 * contract, and nothing is written outside its buffer (run_kind checks the byte behind it). */
static void random_answers_end_in_time(void **state)
{
	static const char *const pieces[] = {
	    "$5\r\n",
	    "$5\r\nabcde\r\n",
	    "abcde",
	    "\r\n",
	    ":1\r\n",
	    "+OK\r\n",
	    "-ERR x\r\n",
	    "*2\r\n",
	    "%1\r\n",
	    ">1\r\n",
	    "|1\r\n",
	    "_\r\n",
	    "$-1\r\n",
	    "$62\r\n",
	    "$70\r\n",
	    "0123456789012345678901234567890123456789",
	    "$",
	    "-",
	    ":",
	    "7",
	    "\r",
	    "*-1\r\n",
	    "!3\r\nERR\r\n",
	    "=7\r\ntxt:abc\r\n",
	    "$0\r\n",
	    "\n",
	};
	uint64_t random = harness_seed(51);
	static char answers[300][1024]; /* the peer may still be reading an earlier one */
	uint32_t round;

	(void)state;
	store_close(store);
	open_store("&timeout-ms=10");
	for (round = 0; round < ARRAY_COUNT(answers); round++) {
		char *answer = answers[round];
		struct peer_script script = {.hello = "+PONG\r\n", .answer = answer};
		uint64_t n = 1 + harness_random(&random) % 8;
		uint8_t kind = (uint8_t)(STORE_OP_GET + (harness_random(&random) % 6) % 4);

		while (n--)
			strcat(answer, pieces[harness_random(&random) % ARRAY_COUNT(pieces)]);
		script.bytewise = harness_random(&random) % 4 == 0;
		script.close = harness_random(&random) % 2;
		peer_tell(&script);
		switch (run_kind(kind, NULL)) {
		case 0:
		case -ENOENT:
		case -EMSGSIZE:
		case -EPROTO:
		case -ENOTCONN:
		case -EIO:
			break;
		default:
			fail_msg("kind %u \"%s\"", kind, answer);
		}
	}
	assert_recovers();
}

static void open_tells_the_servers_words(void **state)
{
	static const struct peer_script refusing = {
	    .hello = "-WRONGPASS invalid username-password pair\r\n"};
	static const struct peer_script silent = {.hello = NULL};
	struct store_config config = {.value_bytes_max = 1, .ops_max = 1};
	char error[SSV_ERROR_TEXT_MAX], uri[256];
	struct store *other;

	(void)state;
	(void)snprintf(uri, sizeof(uri), "redis://me:hunter2@127.0.0.1:%u?connect-timeout-ms=50",
		       peer_port());
	config.uri = uri;
	peer_tell(&refusing);
	assert_int_equal(store_open(&config, &other, error), -EACCES);
	assert_non_null(strstr(error, "WRONGPASS invalid"));
	assert_null(strstr(error, "hunter2"));
	peer_tell(&silent);
	assert_int_equal(store_open(&config, &other, error), -ETIMEDOUT);
	assert_null(strstr(error, "hunter2"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(lies_about_values_are_errors, setup, teardown),
	    cmocka_unit_test_setup_teardown(lies_about_the_rest_are_errors, setup, teardown),
	    cmocka_unit_test_setup_teardown(silence_ends_in_time, setup, teardown),
	    cmocka_unit_test_setup_teardown(second_attempt_must_bring_the_same_bytes, setup,
					    teardown),
	    cmocka_unit_test_setup_teardown(answers_to_nothing_end_the_lane, setup, teardown),
	    cmocka_unit_test_setup_teardown(random_answers_end_in_time, setup, teardown),
	    cmocka_unit_test_setup_teardown(open_tells_the_servers_words, setup, teardown),
	};
	int failed;

	peer_start();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	peer_stop();
	return failed;
}
