/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_threads.c - handles of one store in several threads, as the daemon's workers have them.
 *
 * A value's bytes follow from its key and size, and its size from who put it, so whatever a GET
 * brings must be one whole value. Meant for the thread sanitizer too.
 */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#define THREADS   4
#define KEYS      32u
#define STEPS     300
#define VALUE_MAX 40000u

struct worker {
	pthread_t thread;
	const char *uri;
	uint64_t seed;
	uint64_t hits, wrong;
};

static int run_op(struct store *store, struct store_op *op)
{
	struct store_op *done;

	op->deadline_ns = clock_now_ns() + HARNESS_PATIENCE;
	if (store->ops->submit(store, &op, 1, clock_now_ns()) != 1)
		return -EAGAIN;
	while (!store->ops->poll(store, &done, 1, clock_now_ns()))
		;
	return op->status;
}

static void *work(void *context)
{
	struct worker *worker = context;
	const struct store_config config = {
	    .uri = worker->uri, .value_bytes_max = VALUE_MAX, .ops_max = 4};
	char error[SSV_ERROR_TEXT_MAX];
	struct store *store;
	uint8_t *data = malloc(VALUE_MAX);
	int step;

	if (store_open(&config, &store, error)) {
		worker->wrong = 1000;
		free(data);
		return NULL;
	}
	for (step = 0; step < STEPS; step++) {
		uint64_t random = harness_random(&worker->seed);
		uint64_t n = random % KEYS;
		struct store_op op = {.key = harness_key(n), .data = data, .capacity = VALUE_MAX};
		int status;

		op.kind = (uint8_t)(STORE_OP_GET + (random >> 8) % 4);
		if (op.kind == STORE_OP_DELETE && (random >> 16) % 4)
			op.kind = STORE_OP_PUT;
		op.value_bytes = 1 + (random >> 20) % VALUE_MAX;
		if (op.kind == STORE_OP_PUT)
			harness_fill(data, op.value_bytes, n);
		status = run_op(store, &op);
		worker->wrong += status != 0 && status != -ENOENT;
		if (op.kind == STORE_OP_GET && !status) {
			worker->hits++;
			worker->wrong += !harness_is_filled(data, op.value_bytes, n);
		}
	}
	store_close(store);
	free(data);
	return NULL;
}

static void run_workers(const char *uri, uint64_t seed)
{
	struct worker workers[THREADS];
	struct store *keeper = harness_open(uri); /* memory: lives as long as a handle does */
	uint64_t hits = 0;
	int i;

	for (i = 0; i < THREADS; i++) {
		workers[i] = (struct worker){.uri = uri, .seed = seed + (uint64_t)i};
		assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
	}
	for (i = 0; i < THREADS; i++) {
		assert_int_equal(pthread_join(workers[i].thread, NULL), 0);
		assert_int_equal(workers[i].wrong, 0);
		hits += workers[i].hits;
	}
	assert_true(hits > 0);
	store_close(keeper);
}

static void memory_is_shared(void **state)
{
	(void)state;
	run_workers("memory:threads", harness_seed(41));
	run_workers("memory:small?bytes=300K", harness_seed(42));
}

static void file_is_shared(void **state)
{
	char *folder = harness_folder();
	char uri[300];

	(void)state;
	(void)snprintf(uri, sizeof(uri), "file:%s?bytes=1M", folder);
	run_workers(uri, harness_seed(43));
	(void)snprintf(uri, sizeof(uri), "fault+file:%s?bytes=0", folder);
	run_workers(uri, harness_seed(44));
	harness_remove_folder(folder);
}

static void redis_is_shared(void **state)
{
	struct harness_redis *redis = harness_redis_start(NULL);
	char uri[128];

	(void)state;
	if (!redis)
		skip();
	(void)snprintf(uri, sizeof(uri), "redis://127.0.0.1:%u?lanes=1", redis->port);
	run_workers(uri, harness_seed(45));
	harness_redis_stop(redis);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(memory_is_shared),
	    cmocka_unit_test(file_is_shared),
	    cmocka_unit_test(redis_is_shared),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
