/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_redis_pieces.c - values that are asked for in pieces, from a real server: one GET still sees
 * one value, whatever happens to the key between the pieces, and nothing is left behind.
 */
#include "harness.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "store/redis.h"

#define VALUE_BYTES (2 * MIB)
#define BEGUN       (64 * KIB)

static struct harness_redis *redis;
static struct store *store;
static uint8_t *data;
static struct store_op get;

static int setup(void **state)
{
	char uri[128];

	(void)state;
	redis = harness_redis_start(NULL);
	if (!redis)
		return -1;
	(void)snprintf(uri, sizeof(uri), "redis://127.0.0.1:%u?lanes=1&range=4K", redis->port);
	store = harness_open(uri);
	data = calloc(1, VALUE_BYTES);
	assert_int_equal(harness_put(store, 1, VALUE_BYTES), 0);
	assert_int_equal(harness_put(store, 2, VALUE_BYTES), 0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	store_close(store);
	store = NULL;
	free(data);
	harness_redis_stop(redis);
	return 0;
}

static void key_command(const char *name, const char *rest)
{
	struct ssv_key key = harness_key(1);
	char line[256], answer[64];
	size_t at = (size_t)snprintf(line, sizeof(line), "%s ssv:", name), i;

	for (i = 0; i < sizeof(key.bytes); i++)
		at += (size_t)snprintf(line + at, sizeof(line) - at, "%02x", key.bytes[i]);
	(void)snprintf(line + at, sizeof(line) - at, " %s", rest);
	harness_redis_command(redis, line, answer, sizeof(answer));
	assert_int_equal(answer[0], ':');
}

/* Begin to read value 1, and come back with a part of it. */
static void begin(uint64_t capacity)
{
	struct store_op *op = &get, *done;

	get = (struct store_op){.kind = STORE_OP_GET,
				.key = harness_key(1),
				.data = data,
				.capacity = capacity,
				.deadline_ns = clock_now_ns() + HARNESS_PATIENCE};
	assert_int_equal(store->ops->submit(store, &op, 1, clock_now_ns()), 1);
	while (get.received < BEGUN)
		assert_int_equal(store->ops->poll(store, &done, 1, clock_now_ns()), 0);
	assert_true(get.received < VALUE_BYTES / 2);
	assert_true(harness_is_filled(data, get.received, 1));
}

/* Whatever was watched or asked for is done with: the next GETs are whole, on the same lane. */
static void assert_serves(uint64_t value)
{
	int i;

	for (i = 0; i < 3; i++)
		assert_int_equal(harness_get(store, value, VALUE_BYTES), 0);
	assert_int_equal(harness_stats(store).reconnects, 0);
}

static void a_piece_that_was_read_and_changed_spoils_the_value(void **state)
{
	(void)state;
	begin(VALUE_BYTES);
	key_command("SETRANGE", "100 ????");
	harness_poll(store, 1);
	assert_true(get.status == -EIO || get.status == -ENOTCONN);
	assert_true(harness_is_filled(data, BEGUN, 1)); /* below the watermark nothing changed */
	assert_int_equal(harness_get(store, 2, VALUE_BYTES), 0);
}

static void a_piece_that_is_still_to_come_may_change(void **state)
{
	(void)state;
	begin(VALUE_BYTES);
	key_command("SETRANGE", "2097148 ????");
	harness_poll(store, 1);
	assert_int_equal(get.status, 0);
	assert_int_equal(get.received, VALUE_BYTES);
	assert_true(harness_is_filled(data, VALUE_BYTES - 4, 1));
	assert_memory_equal(data + VALUE_BYTES - 4, "????", 4);
	assert_serves(2);
}

static void a_value_that_goes_is_a_miss(void **state)
{
	(void)state;
	begin(VALUE_BYTES);
	key_command("UNLINK", "");
	harness_poll(store, 1);
	assert_int_equal(get.status, -ENOENT);
	assert_int_equal(harness_get(store, 1, VALUE_BYTES), -ENOENT);
	assert_serves(2);
}

static void a_value_that_grows_is_another_one(void **state)
{
	(void)state;
	begin(VALUE_BYTES);
	key_command("APPEND", "more");
	harness_poll(store, 1);
	assert_true(get.status == -EIO);
	assert_serves(2);
}

static void cancelled_pieces_leave_the_lane_as_it_was(void **state)
{
	int i;

	(void)state;
	for (i = 0; i < 5; i++) {
		begin(VALUE_BYTES);
		get.deadline_ns = 0;
		harness_poll(store, 1);
		assert_int_equal(get.status, -ETIMEDOUT);
		memset(data, 0xee, VALUE_BYTES);
		assert_int_equal(harness_get(store, 1, VALUE_BYTES), 0);
		assert_int_equal(data[get.received], 0xee); /* nothing writes it any more */
	}
	/* What the cancelled ones had watched may change now. */
	begin(VALUE_BYTES);
	get.deadline_ns = 0;
	harness_poll(store, 1);
	key_command("SETRANGE", "100 ????");
	assert_serves(2);
}

static void too_small_a_buffer_is_told_with_the_length(void **state)
{
	(void)state;
	get = (struct store_op){
	    .kind = STORE_OP_GET, .key = harness_key(1), .data = data, .capacity = VALUE_BYTES - 1};
	assert_int_equal(harness_run(store, &get), -EMSGSIZE);
	assert_int_equal(get.value_bytes, VALUE_BYTES);
	assert_serves(1);
}

static void a_lost_lane_costs_no_value(void **state)
{
	char answer[64];

	(void)state;
	begin(VALUE_BYTES);
	harness_redis_command(redis, "CLIENT KILL TYPE normal SKIPME yes", answer, sizeof(answer));
	harness_poll(store, 1);
	assert_int_equal(get.status, 0);
	assert_true(harness_is_filled(data, VALUE_BYTES, 1));
}

static void short_values_fit_long_buffers(void **state)
{
	uint64_t bytes;

	(void)state;
	for (bytes = 1; bytes < 20000; bytes = bytes * 3 + 1) {
		assert_int_equal(harness_put(store, 3, bytes), 0);
		get = (struct store_op){.kind = STORE_OP_GET,
					.key = harness_key(3),
					.data = data,
					.capacity = VALUE_BYTES};
		assert_int_equal(harness_run(store, &get), 0);
		assert_int_equal(get.received, bytes);
		assert_true(harness_is_filled(data, bytes, 3));
	}
	assert_serves(1);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
	    TEST(a_piece_that_was_read_and_changed_spoils_the_value),
	    TEST(a_piece_that_is_still_to_come_may_change),
	    TEST(a_value_that_goes_is_a_miss),
	    TEST(a_value_that_grows_is_another_one),
	    TEST(cancelled_pieces_leave_the_lane_as_it_was),
	    TEST(too_small_a_buffer_is_told_with_the_length),
	    TEST(a_lost_lane_costs_no_value),
	    TEST(short_values_fit_long_buffers),
	};

	redis = harness_redis_start(NULL);
	if (!redis)
		return SKIP;
	harness_redis_stop(redis);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
