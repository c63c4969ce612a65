/* SPDX-License-Identifier: Apache-2.0 */
/* harness.c - see harness.h. */
#include "harness.h"

#include <errno.h>
#include <ftw.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"

struct store *harness_open_with(const struct store_config *config)
{
	char error[SSV_ERROR_TEXT_MAX];
	struct store *store = NULL;
	int err = store_open(config, &store, error);

	if (err)
		fail_msg("store_open(%s): %d: %s", config->uri, err, error);
	return store;
}

struct store *harness_open(const char *uri)
{
	const struct store_config config = {
	    .uri = uri,
	    .seed = 1,
	    .value_bytes_max = HARNESS_VALUE_MAX,
	    .ops_max = HARNESS_OPS_MAX,
	};

	return harness_open_with(&config);
}

uint64_t harness_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

uint64_t harness_seed(uint64_t fallback)
{
	const char *text = getenv("SSV_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : fallback;

	printf("seed: SSV_SEED=%llu\n", (unsigned long long)seed);
	return seed;
}

struct ssv_key harness_key(uint64_t n)
{
	struct ssv_key key;
	uint64_t state = n;
	size_t i;

	for (i = 0; i < sizeof(key.bytes); i += 8)
		store_le64(key.bytes + i, harness_random(&state));
	return key;
}

void harness_fill(uint8_t *data, uint64_t bytes, uint64_t n)
{
	uint64_t i;

	for (i = 0; i < bytes; i++)
		data[i] = (uint8_t)((i * 2654435761u >> 11) ^ (i >> 20) ^ (n * 131));
}

bool harness_is_filled(const uint8_t *data, uint64_t bytes, uint64_t n)
{
	uint64_t i;

	for (i = 0; i < bytes; i++) {
		if (data[i] != (uint8_t)((i * 2654435761u >> 11) ^ (i >> 20) ^ (n * 131)))
			return false;
	}
	return true;
}

/* Sleep as a worker would: until a descriptor is ready or the store has something to do. */
static void wait_for(struct store *store)
{
	struct pollfd fds[64];
	uint64_t now_ns = clock_now_ns();
	uint64_t next_ns = store->ops->next_ns(store);
	uint32_t n = store->ops->pollfds(store, fds, ARRAY_COUNT(fds));
	int timeout_ms = 10;

	if (next_ns <= now_ns)
		return;
	if (next_ns - now_ns < 10 * NS_PER_MS)
		timeout_ms = (int)((next_ns - now_ns) / NS_PER_MS);
	(void)poll(fds, n, timeout_ms);
}

void harness_poll(struct store *store, uint32_t count)
{
	struct store_op *done[HARNESS_OPS_MAX];
	uint64_t end_ns = clock_now_ns() + 2 * HARNESS_PATIENCE;

	while (count) {
		uint32_t n = store->ops->poll(store, done, HARNESS_OPS_MAX, clock_now_ns());

		assert_true(n <= count);
		count -= n;
		if (!n)
			wait_for(store);
		assert_true(clock_now_ns() < end_ns);
	}
}

int harness_run(struct store *store, struct store_op *op)
{
	struct store_op *ops[1] = {op};

	if (!op->deadline_ns)
		op->deadline_ns = clock_now_ns() + HARNESS_PATIENCE;
	assert_int_equal(store->ops->submit(store, ops, 1, clock_now_ns()), 1);
	harness_poll(store, 1);
	return op->status;
}

void harness_run_all(struct store *store, struct store_op *ops, uint32_t n)
{
	struct store_op *done[HARNESS_OPS_MAX];
	uint64_t end_ns = clock_now_ns() + 2 * HARNESS_PATIENCE;
	uint32_t submitted = 0, finished = 0, i;

	for (i = 0; i < n; i++)
		ops[i].owner = NULL;
	while (finished < n) {
		uint32_t count;

		while (submitted < n) {
			struct store_op *op = &ops[submitted];

			if (!op->deadline_ns)
				op->deadline_ns = clock_now_ns() + HARNESS_PATIENCE;
			if (!store->ops->submit(store, &op, 1, clock_now_ns()))
				break;
			submitted++;
		}
		assert_true(submitted - finished <= HARNESS_OPS_MAX);
		count = store->ops->poll(store, done, HARNESS_OPS_MAX, clock_now_ns());
		for (i = 0; i < count; i++) {
			assert_null(done[i]->owner); /* handed back once */
			done[i]->owner = done;
		}
		finished += count;
		if (!count)
			wait_for(store);
		assert_true(clock_now_ns() < end_ns);
	}
}

int harness_put(struct store *store, uint64_t n, uint64_t bytes)
{
	struct store_op op = {.kind = STORE_OP_PUT, .key = harness_key(n), .value_bytes = bytes};
	int status;

	op.data = malloc(bytes ? bytes : 1);
	assert_non_null(op.data);
	harness_fill(op.data, bytes, n);
	status = harness_run(store, &op);
	free(op.data);
	return status;
}

int harness_get(struct store *store, uint64_t n, uint64_t bytes)
{
	struct store_op op = {.kind = STORE_OP_GET, .key = harness_key(n), .capacity = bytes};
	int status;

	op.data = calloc(1, bytes ? bytes : 1);
	assert_non_null(op.data);
	status = harness_run(store, &op);
	if (!status) {
		assert_int_equal(op.value_bytes, bytes);
		assert_int_equal(op.received, bytes);
		status = harness_is_filled(op.data, bytes, n) ? 0 : -EBADMSG;
	}
	free(op.data);
	return status;
}

int harness_exists(struct store *store, uint64_t n, uint64_t *ret_bytes)
{
	struct store_op op = {.kind = STORE_OP_EXISTS, .key = harness_key(n)};
	int status = harness_run(store, &op);

	if (ret_bytes)
		*ret_bytes = op.value_bytes;
	return status;
}

int harness_delete(struct store *store, uint64_t n)
{
	struct store_op op = {.kind = STORE_OP_DELETE, .key = harness_key(n)};

	return harness_run(store, &op);
}

struct store_stats harness_stats(const struct store *store)
{
	struct store_stats stats = {0};

	store->ops->stats(store, &stats);
	return stats;
}

char *harness_folder(void)
{
	char *path = strdup("/tmp/ssv-test-XXXXXX");

	assert_non_null(path);
	assert_non_null(mkdtemp(path));
	return path;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

void harness_remove_folder(char *path)
{
	(void)nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
	free(path);
}
