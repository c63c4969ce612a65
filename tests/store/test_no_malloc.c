/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_no_malloc.c - after the first use, operations of file:, redis:, redis+cluster: and fault+
 * allocate nothing, evictions, sweeps and reconnections included.
 *
 * This program's own malloc family counts while `counting` is set, and hands on to the C library.
 */
#include "harness_cluster.h"

#include <errno.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HAS_OWN_MALLOC 0 /* the sanitizer's is in its place */
#else
#define HAS_OWN_MALLOC 1
#endif

#define VALUE_BYTES (300 * KIB)

static int counting;
static uint64_t calls;

#if HAS_OWN_MALLOC
extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t bytes);
extern void *__libc_realloc(void *old, size_t bytes);
extern void __libc_free(void *memory);
void *malloc(size_t bytes);
void *calloc(size_t count, size_t bytes);
void *realloc(void *old, size_t bytes);
void free(void *memory);

void *malloc(size_t bytes)
{
	calls += (uint64_t)counting;
	return __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes)
{
	calls += (uint64_t)counting;
	return __libc_calloc(count, bytes);
}

void *realloc(void *old, size_t bytes)
{
	calls += (uint64_t)counting;
	return __libc_realloc(old, bytes);
}

void free(void *memory)
{
	calls += (uint64_t)(counting && memory);
	__libc_free(memory);
}
#endif

static uint8_t data[VALUE_BYTES];

static int run(struct store *store, uint8_t kind, uint64_t n)
{
	struct store_op op = {
	    .kind = kind,
	    .key = harness_key(n),
	    .data = data,
	    .capacity = VALUE_BYTES,
	    .value_bytes = VALUE_BYTES,
	};

	return harness_run(store, &op);
}

static void use(struct store *store, uint64_t from, uint64_t to)
{
	uint64_t n;

	for (n = from; n < to; n++) {
		assert_int_equal(run(store, STORE_OP_PUT, n), 0);
		assert_int_equal(run(store, STORE_OP_EXISTS, n), 0);
		assert_int_equal(run(store, STORE_OP_GET, n), 0);
		(void)run(store, STORE_OP_GET, n / 2);
		assert_int_equal(run(store, STORE_OP_DELETE, n + 100000), 0);
	}
}

static void file_allocates_nothing(void **state)
{
	char *folder = harness_folder();
	struct store *store;
	char uri[300];

	(void)state;
	(void)snprintf(uri, sizeof(uri), "fault+file:%s?bytes=8M&slice=64K", folder);
	store = harness_open(uri);
	use(store, 0, 2);
	counting = 1;
	use(store, 2, 100);
	counting = 0;
	assert_int_equal(calls, 0);
	assert_true(harness_stats(store).evictions > 50);
	store_close(store);
	harness_remove_folder(folder);
}

static void redis_allocates_nothing(void **state)
{
	struct harness_redis *redis = harness_redis_start(NULL);
	struct store *store;
	char uri[128], answer[64];
	int i;

	(void)state;
	if (!redis)
		skip();
	(void)snprintf(uri, sizeof(uri), "redis://127.0.0.1:%u?lanes=2&ttl=100&backoff-max-ms=10",
		       redis->port);
	store = harness_open(uri);
	use(store, 0, 2);
	counting = 1;
	use(store, 2, 50);
	harness_redis_command(redis, "CLIENT KILL TYPE normal", answer, sizeof(answer));
	for (i = 0; i < 1000 && run(store, STORE_OP_GET, 1); i++)
		;
	use(store, 50, 60);
	counting = 0;
	assert_int_equal(calls, 0);
	assert_true(harness_stats(store).reconnects > 0);
	store_close(store);
	harness_redis_stop(redis);
}

static void cluster_allocates_nothing(void **state)
{
	struct harness_cluster *cluster = harness_cluster_start(3, 0, true);
	struct store *store;
	char uri[128], answer[64];
	uint32_t i;

	(void)state;
	if (!cluster)
		skip();
	harness_cluster_uri(cluster, "?lanes=2&backoff-max-ms=10&refresh-ms=100", uri, sizeof(uri));
	store = harness_open(uri);
	use(store, 0, 6);
	counting = 1;
	use(store, 6, 50);
	for (i = 0; i < cluster->count; i++)
		harness_redis_command(cluster->nodes[i], "CLIENT KILL TYPE normal", answer,
				      sizeof(answer));
	for (i = 0; i < 5000 && (run(store, STORE_OP_GET, 1) || run(store, STORE_OP_GET, 2) ||
				 run(store, STORE_OP_GET, 3) || run(store, STORE_OP_GET, 4));
	     i++)
		;
	use(store, 50, 60);
	counting = 0;
	assert_int_equal(calls, 0);
	assert_true(harness_stats(store).reconnects > 0);
	store_close(store);
	harness_cluster_stop(cluster);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(file_allocates_nothing),
	    cmocka_unit_test(redis_allocates_nothing),
	    cmocka_unit_test(cluster_allocates_nothing),
	};

	if (!HAS_OWN_MALLOC) {
		printf("skipped: the sanitizer's malloc cannot be counted\n");
		return SKIP;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
