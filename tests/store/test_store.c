/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_store.c - the conformance suite: what every store keeps, whatever its URI.
 *
 * Usage: test_store URI. FOLDER in it becomes a temporary folder, PORT that of a Redis of its own.
 */
#include "harness_cluster.h"

#include <errno.h>
#include <string.h>

static const char *uri;
static struct store *store;

static int setup(void **state)
{
	(void)state;
	store = harness_open(uri);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	store_close(store);
	store = NULL;
	return 0;
}

static void what_was_put_is_got(void **state)
{
	static const uint64_t sizes[] = {1, 2, 4095, 65536, MIB + 3, 20 * MIB};
	uint64_t bytes;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_COUNT(sizes); i++) {
		assert_int_equal(harness_put(store, i, sizes[i]), 0);
		assert_int_equal(harness_exists(store, i, &bytes), 0);
		assert_int_equal(bytes, sizes[i]);
		assert_int_equal(harness_get(store, i, sizes[i]), 0);
	}
	for (i = 0; i < ARRAY_COUNT(sizes); i++)
		assert_int_equal(harness_delete(store, i), 0);
}

static void missing_is_enoent(void **state)
{
	uint64_t bytes = 1;

	(void)state;
	assert_int_equal(harness_get(store, 1000, 16), -ENOENT);
	assert_int_equal(harness_exists(store, 1000, &bytes), -ENOENT);
	assert_int_equal(bytes, 0);
	assert_int_equal(harness_delete(store, 1000), 0);
}

static void deleted_is_gone(void **state)
{
	(void)state;
	assert_int_equal(harness_put(store, 1, 100), 0);
	assert_int_equal(harness_delete(store, 1), 0);
	assert_int_equal(harness_get(store, 1, 100), -ENOENT);
	assert_int_equal(harness_exists(store, 1, NULL), -ENOENT);
}

static void put_replaces(void **state)
{
	struct store_op op = {.kind = STORE_OP_PUT, .key = harness_key(2), .value_bytes = 5};
	uint8_t data[8] = "first";

	(void)state;
	op.data = data;
	assert_int_equal(harness_run(store, &op), 0);
	memcpy(data, "2nd", 3);
	op.value_bytes = 3;
	assert_int_equal(harness_run(store, &op), 0);
	memset(data, 0, sizeof(data));
	op.kind = STORE_OP_GET;
	op.capacity = sizeof(data);
	assert_int_equal(harness_run(store, &op), 0);
	assert_int_equal(op.value_bytes, 3);
	assert_memory_equal(data, "2nd\0\0\0\0", 8);
	assert_int_equal(harness_delete(store, 2), 0);
}

static void capacity_too_small_is_told(void **state)
{
	struct store_op op = {.kind = STORE_OP_GET, .key = harness_key(3), .capacity = 99};
	uint8_t data[101];

	(void)state;
	assert_int_equal(harness_put(store, 3, 100), 0);
	memset(data, 0xee, sizeof(data));
	op.data = data;
	assert_int_equal(harness_run(store, &op), -EMSGSIZE);
	assert_int_equal(op.value_bytes, 100);
	assert_int_equal(data[99], 0xee);
	/* The handle goes on as if nothing had been. */
	assert_int_equal(harness_get(store, 3, 100), 0);
	assert_int_equal(harness_delete(store, 3), 0);
}

static void wrong_sizes_are_refused(void **state)
{
	struct store_op op = {.kind = STORE_OP_PUT, .key = harness_key(4)};
	uint8_t data[1] = {0};

	(void)state;
	op.data = data;
	assert_int_equal(harness_run(store, &op), -EINVAL);
	op.value_bytes = HARNESS_VALUE_MAX + 1; /* refused before it is read */
	assert_int_equal(harness_run(store, &op), -EMSGSIZE);
	op.kind = 9;
	assert_int_equal(harness_run(store, &op), -EINVAL);
	assert_int_equal(harness_exists(store, 4, NULL), -ENOENT);
}

static void full_queue_refuses_and_loses_nothing(void **state)
{
	static struct store_op ops[200];
	struct store_op *pointers[200];
	uint32_t accepted, i;

	(void)state;
	memset(ops, 0, sizeof(ops));
	for (i = 0; i < ARRAY_COUNT(ops); i++) {
		ops[i].kind = STORE_OP_EXISTS;
		ops[i].key = harness_key(5000 + i);
		ops[i].deadline_ns = clock_now_ns() + HARNESS_PATIENCE;
		pointers[i] = &ops[i];
	}
	accepted = store->ops->submit(store, pointers, ARRAY_COUNT(ops), clock_now_ns());
	assert_int_equal(accepted, HARNESS_OPS_MAX);
	assert_int_equal(store->ops->submit(store, pointers + accepted, 1, clock_now_ns()), 0);
	harness_poll(store, accepted);
	for (i = 0; i < accepted; i++)
		assert_int_equal(ops[i].status, -ENOENT);
	harness_run_all(store, ops, ARRAY_COUNT(ops));
}

static void many_values_keep_apart(void **state)
{
	static struct store_op ops[96];
	static uint8_t data[96][3001];
	uint64_t random = harness_seed(11);
	uint32_t i;

	(void)state;
	memset(ops, 0, sizeof(ops));
	for (i = 0; i < ARRAY_COUNT(ops); i++) {
		ops[i].kind = STORE_OP_PUT;
		ops[i].key = harness_key(100 + i);
		ops[i].data = data[i];
		ops[i].value_bytes = 1 + harness_random(&random) % 3000;
		harness_fill(data[i], ops[i].value_bytes, i);
	}
	harness_run_all(store, ops, ARRAY_COUNT(ops));
	for (i = 0; i < ARRAY_COUNT(ops); i++) {
		assert_int_equal(ops[i].status, 0);
		memset(data[i], 0, sizeof(data[i]));
		ops[i].kind = STORE_OP_GET;
		ops[i].capacity = 3000;
	}
	harness_run_all(store, ops, ARRAY_COUNT(ops));
	for (i = 0; i < ARRAY_COUNT(ops); i++) {
		assert_int_equal(ops[i].status, 0);
		assert_true(harness_is_filled(data[i], ops[i].value_bytes, i));
		assert_int_equal(data[i][3000], 0);
		ops[i].kind = STORE_OP_DELETE;
	}
	harness_run_all(store, ops, ARRAY_COUNT(ops));
	for (i = 0; i < ARRAY_COUNT(ops); i++)
		assert_int_equal(ops[i].status, 0);
}

static void watermark_only_rises_over_final_bytes(void **state)
{
	const uint64_t bytes = 20 * MIB;
	struct store_op op = {.kind = STORE_OP_GET, .key = harness_key(6), .capacity = bytes};
	struct store_op *pointer = &op, *done;
	uint64_t seen = 0;
	uint8_t *copy = malloc(bytes);

	(void)state;
	assert_int_equal(harness_put(store, 6, bytes), 0);
	op.data = malloc(bytes);
	op.deadline_ns = clock_now_ns() + HARNESS_PATIENCE;
	assert_non_null(op.data);
	assert_non_null(copy);
	assert_int_equal(store->ops->submit(store, &pointer, 1, clock_now_ns()), 1);
	while (!store->ops->poll(store, &done, 1, clock_now_ns())) {
		assert_true(op.received >= seen);
		assert_true(op.received <= op.value_bytes);
		assert_true(op.value_bytes == 0 || op.value_bytes == bytes);
		memcpy(copy + seen, op.data + seen, op.received - seen);
		seen = op.received;
	}
	assert_int_equal(op.status, 0);
	assert_int_equal(op.received, bytes);
	assert_memory_equal(copy, op.data, seen);
	assert_true(harness_is_filled(op.data, bytes, 6));
	free(op.data);
	free(copy);
	assert_int_equal(harness_delete(store, 6), 0);
}

static void passed_deadline_ends_every_kind(void **state)
{
	static const uint8_t kinds[] = {STORE_OP_GET, STORE_OP_PUT, STORE_OP_EXISTS,
					STORE_OP_DELETE};
	struct store_op op, *pointer = &op;
	uint8_t data[64] = {0};
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_COUNT(kinds); i++) {
		op = (struct store_op){.kind = kinds[i], .key = harness_key(7), .data = data};
		op.capacity = op.value_bytes = sizeof(data);
		op.deadline_ns = 1;
		assert_int_equal(store->ops->submit(store, &pointer, 1, clock_now_ns()), 1);
		harness_poll(store, 1);
		assert_int_equal(op.status, -ETIMEDOUT);
	}
	assert_true(harness_stats(store).timeouts >= ARRAY_COUNT(kinds));
}

static void cancel_returns_the_buffer_for_good(void **state)
{
	const uint64_t bytes = 10 * MIB;
	uint64_t random = harness_seed(12);
	int round;

	(void)state;
	assert_int_equal(harness_put(store, 8, bytes), 0);
	assert_int_equal(harness_put(store, 9, 777), 0);
	for (round = 0; round < 12; round++) {
		struct store_op op = {.kind = STORE_OP_GET, .key = harness_key(8)};
		struct store_op *pointer = &op, *done;
		uint64_t polls = harness_random(&random) % 12;
		uint8_t *copy;

		op.data = calloc(1, bytes);
		op.capacity = bytes;
		op.deadline_ns = clock_now_ns() + HARNESS_PATIENCE;
		assert_int_equal(store->ops->submit(store, &pointer, 1, clock_now_ns()), 1);
		for (done = NULL; polls && !done; polls--)
			store->ops->poll(store, &done, 1, clock_now_ns());
		op.deadline_ns = 0;
		if (!done)
			harness_poll(store, 1);
		assert_true(op.status == 0 || op.status == -ETIMEDOUT);
		copy = malloc(bytes);
		memcpy(copy, op.data, bytes);
		/* Whatever happens on the handle now, the buffer stays as it is. */
		assert_int_equal(harness_get(store, 9, 777), 0);
		assert_memory_equal(copy, op.data, bytes);
		free(copy);
		free(op.data);
	}
	assert_int_equal(harness_get(store, 8, bytes), 0);
	assert_int_equal(harness_delete(store, 8), 0);
	assert_int_equal(harness_delete(store, 9), 0);
}

static void cancelled_put_leaves_all_or_nothing(void **state)
{
	const uint64_t bytes = 4 * MIB;
	struct store_op op, *pointer = &op, *done;
	uint8_t *data = malloc(bytes);
	int polls;

	(void)state;
	harness_fill(data, bytes, 10);
	for (polls = 0; polls < 12; polls++) {
		int i, status;

		assert_int_equal(harness_delete(store, 10), 0);
		op = (struct store_op){.kind = STORE_OP_PUT,
				       .key = harness_key(10),
				       .data = data,
				       .value_bytes = bytes,
				       .deadline_ns = clock_now_ns() + HARNESS_PATIENCE};
		assert_int_equal(store->ops->submit(store, &pointer, 1, clock_now_ns()), 1);
		for (i = 0, done = NULL; i < polls && !done; i++)
			store->ops->poll(store, &done, 1, clock_now_ns());
		op.deadline_ns = 0;
		if (!done)
			harness_poll(store, 1);
		/* The buffer is ours again: nothing of what it holds now may arrive. */
		memset(data, 0xaa, bytes);
		(void)harness_exists(store, 11, NULL);
		status = harness_get(store, 10, bytes);
		assert_true(status == 0 || status == -ENOENT);
		harness_fill(data, bytes, 10);
		if (op.status == 0)
			assert_int_equal(status, 0);
	}
	assert_int_equal(harness_delete(store, 10), 0);
	free(data);
}

static void two_handles_share(void **state)
{
	struct store *other;
	uint64_t bytes;

	(void)state;
	if (!(store->ops->caps & STORE_CAP_SHARED))
		skip();
	other = harness_open(uri);
	assert_int_equal(harness_put(store, 20, 5000), 0);
	assert_int_equal(harness_exists(other, 20, &bytes), 0);
	assert_int_equal(bytes, 5000);
	assert_int_equal(harness_get(other, 20, 5000), 0);
	assert_int_equal(harness_delete(other, 20), 0);
	assert_int_equal(harness_get(store, 20, 5000), -ENOENT);
	store_close(other);
}

/* Puts, gets and deletes of a few keys at random against a model; every answer is one that the
 * order of completion allows, because a key has one operation in flight at a time. */
static void random_operations_match_a_model(void **state)
{
	uint64_t random = harness_seed(13);
	uint64_t model[8] = {0};
	int step;

	(void)state;
	for (step = 0; step < 400; step++) {
		uint64_t n = harness_random(&random) % ARRAY_COUNT(model);
		uint64_t bytes = 0;

		switch (harness_random(&random) % 4) {
		case 0:
			model[n] = 1 + harness_random(&random) % 20000;
			assert_int_equal(harness_put(store, 30 + n, model[n]), 0);
			break;
		case 1:
			assert_int_equal(harness_delete(store, 30 + n), 0);
			model[n] = 0;
			break;
		case 2:
			assert_int_equal(harness_exists(store, 30 + n, &bytes),
					 model[n] ? 0 : -ENOENT);
			assert_int_equal(bytes, model[n]);
			break;
		default:
			assert_int_equal(harness_get(store, 30 + n, model[n] ? model[n] : 1),
					 model[n] ? 0 : -ENOENT);
			break;
		}
	}
	for (step = 0; step < 8; step++)
		assert_int_equal(harness_delete(store, 30 + (uint64_t)step), 0);
}

static int count_key(void *context, const struct ssv_key *key, uint64_t bytes)
{
	uint64_t *seen = context;
	uint64_t n;

	for (n = 0; n < 10; n++) {
		struct ssv_key expected = harness_key(50 + n);

		if (!memcmp(key, &expected, sizeof(expected)) && bytes == 10 + n)
			*seen |= (uint64_t)1 << n;
	}
	return 0;
}

static int stop_at_once(void *context, const struct ssv_key *key, uint64_t bytes)
{
	(void)key;
	(void)bytes;
	++*(uint64_t *)context;
	return 1;
}

static void list_shows_every_key(void **state)
{
	uint64_t n, seen = 0;

	(void)state;
	if (!(store->ops->caps & STORE_CAP_LIST)) {
		assert_int_equal(store->ops->list(store, count_key, &seen), -ENOTSUP);
		return;
	}
	for (n = 0; n < 10; n++)
		assert_int_equal(harness_put(store, 50 + n, 10 + n), 0);
	assert_int_equal(store->ops->list(store, count_key, &seen), 0);
	assert_int_equal(seen, 0x3ff);
	seen = 0;
	assert_int_equal(store->ops->list(store, stop_at_once, &seen), 0);
	assert_int_equal(seen, 1);
	for (n = 0; n < 10; n++)
		assert_int_equal(harness_delete(store, 50 + n), 0);
}

static void counters_count(void **state)
{
	struct store_stats before = harness_stats(store), after;

	(void)state;
	assert_int_equal(harness_put(store, 60, 1234), 0);
	assert_int_equal(harness_get(store, 60, 1234), 0);
	assert_int_equal(harness_get(store, 61, 1), -ENOENT);
	assert_int_equal(harness_exists(store, 60, NULL), 0);
	assert_int_equal(harness_delete(store, 60), 0);
	after = harness_stats(store);
	assert_int_equal(after.puts - before.puts, 1);
	assert_int_equal(after.gets - before.gets, 2);
	assert_int_equal(after.hits - before.hits, 1);
	assert_int_equal(after.exists - before.exists, 1);
	assert_int_equal(after.deletes - before.deletes, 1);
	assert_int_equal(after.bytes_in - before.bytes_in, 1234);
	assert_int_equal(after.bytes_out - before.bytes_out, 1234);
	assert_int_equal(after.errors, before.errors);
	assert_true(after.connected >= 1);
}

static void idle_handle_asks_for_nothing_at_once(void **state)
{
	uint64_t now_ns = clock_now_ns();
	struct store_op *done;
	int i;

	(void)state;
	for (i = 0; i < 100000; i++) {
		assert_int_equal(store->ops->poll(store, &done, 1, now_ns), 0);
		if (store->ops->next_ns(store) > now_ns + NS_PER_S)
			return;
		now_ns = u64_max(now_ns, store->ops->next_ns(store));
	}
	fail_msg("the store never comes to rest");
}

static void close_with_operations_in_flight(void **state)
{
	static uint8_t data[MIB];
	struct store_op ops[4] = {{.kind = STORE_OP_PUT},
				  {.kind = STORE_OP_GET},
				  {.kind = STORE_OP_EXISTS},
				  {.kind = STORE_OP_GET}};
	struct store *other = harness_open(uri);
	struct store_op *done;
	int i;

	(void)state;
	for (i = 0; i < 4; i++) {
		struct store_op *op = &ops[i];

		op->key = harness_key(70);
		op->data = data;
		op->capacity = op->value_bytes = sizeof(data);
		op->deadline_ns = clock_now_ns() + HARNESS_PATIENCE;
		assert_int_equal(other->ops->submit(other, &op, 1, clock_now_ns()), 1);
	}
	other->ops->poll(other, &done, 1, clock_now_ns());
	store_close(other);
	assert_int_equal(harness_delete(store, 70), 0);
}

static int run_null(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(missing_is_enoent),
	    cmocka_unit_test(wrong_sizes_are_refused),
	    cmocka_unit_test(full_queue_refuses_and_loses_nothing),
	    cmocka_unit_test(idle_handle_asks_for_nothing_at_once),
	    cmocka_unit_test(close_with_operations_in_flight),
	};

	return cmocka_run_group_tests_name(uri, tests, setup, teardown);
}

static int run_all(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(what_was_put_is_got),
	    cmocka_unit_test(missing_is_enoent),
	    cmocka_unit_test(deleted_is_gone),
	    cmocka_unit_test(put_replaces),
	    cmocka_unit_test(capacity_too_small_is_told),
	    cmocka_unit_test(wrong_sizes_are_refused),
	    cmocka_unit_test(full_queue_refuses_and_loses_nothing),
	    cmocka_unit_test(many_values_keep_apart),
	    cmocka_unit_test(watermark_only_rises_over_final_bytes),
	    cmocka_unit_test(passed_deadline_ends_every_kind),
	    cmocka_unit_test(cancel_returns_the_buffer_for_good),
	    cmocka_unit_test(cancelled_put_leaves_all_or_nothing),
	    cmocka_unit_test(two_handles_share),
	    cmocka_unit_test(random_operations_match_a_model),
	    cmocka_unit_test(list_shows_every_key),
	    cmocka_unit_test(counters_count),
	    cmocka_unit_test(idle_handle_asks_for_nothing_at_once),
	    cmocka_unit_test(close_with_operations_in_flight),
	};

	return cmocka_run_group_tests_name(uri, tests, setup, teardown);
}

/* Replace a word of the URI. */
static void substitute(char *text, size_t text_bytes, const char *word, const char *by)
{
	char copy[STORE_URI_MAX];
	const char *place = strstr(text, word);

	if (!place)
		return;
	(void)snprintf(copy, sizeof(copy), "%s", text);
	(void)snprintf(text, text_bytes, "%.*s%s%s", (int)(place - text), copy, by,
		       copy + (place - text) + strlen(word));
}

int main(int argc, char **argv)
{
	struct harness_cluster *cluster = NULL;
	struct harness_redis *redis = NULL;
	static char text[STORE_URI_MAX];
	char port[16];
	char *folder;
	int failed;

	(void)snprintf(text, sizeof(text), "%s", argc > 1 ? argv[1] : "memory:test");
	uri = text;
	if (strstr(uri, "redis+cluster")) {
		cluster = harness_cluster_start(3, 0, true);
		if (!cluster)
			return SKIP;
		(void)snprintf(port, sizeof(port), "%u", cluster->nodes[1]->port);
		substitute(text, sizeof(text), "PORT", port);
	} else if (strstr(uri, "redis")) {
		redis = harness_redis_start(NULL);
		if (!redis)
			return SKIP;
		(void)snprintf(port, sizeof(port), "%u", redis->port);
		substitute(text, sizeof(text), "FOLDER", redis->folder);
		substitute(text, sizeof(text), "PORT", port);
	}
	folder = harness_folder();
	substitute(text, sizeof(text), "FOLDER", folder);
	failed = strstr(uri, "null:") ? run_null() : run_all();
	harness_remove_folder(folder);
	harness_cluster_stop(cluster);
	harness_redis_stop(redis);
	return failed;
}
