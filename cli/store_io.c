/* SPDX-License-Identifier: Apache-2.0 */
/* store_io.c - a store's operations, one by one. */
#include "store_io.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "chunk/container.h"
#include "cli.h"
#include "store/uri.h"
#include "store/wait.h"

#define OPS_MAX         16u
#define VALUE_BYTES_MAX (UINT32_MAX - (uint64_t)1)

static int open_store(struct store_io *io, const char *command, const char *uri,
		      uint32_t timeout_ms)
{
	struct store_config config = {.uri = uri,
				      .seed = clock_now_ns(),
				      .value_bytes_max = VALUE_BYTES_MAX,
				      .ops_max = OPS_MAX};
	char error[SSV_ERROR_TEXT_MAX] = "";
	int err;

	memset(io, 0, sizeof(*io));
	io->timeout_ms = timeout_ms;
	err = store_open(&config, &io->store, error);
	if (err == -EINVAL || err == -ENOTSUP)
		return cli_fail(EXIT_USAGE, "%s: %s", command, error);
	if (err)
		return cli_fail(EXIT_UNREACHABLE, "%s: %s", command,
				error[0] ? error : strerror(-err));
	return 0;
}

const char *store_io_uri(const char *uri)
{
	static char standard[STORE_URI_MAX];
	const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");

	if (!uri)
		uri = getenv("SHADOWSERVE_STORE");
	if (uri && uri[0])
		return uri;
	if (cache && cache[0] == '/')
		snprintf(standard, sizeof(standard), "file:%s/shadowserve/chunks", cache);
	else
		snprintf(standard, sizeof(standard), "file:%s/.cache/shadowserve/chunks",
			 home ? home : "");
	return access(standard + strlen("file:"), F_OK) ? NULL : standard;
}

static int which_store(const char *command)
{
	return cli_fail(EXIT_USAGE,
			"%s: which store? give --store URI or set SHADOWSERVE_STORE, for example "
			"file:/var/cache/kv or redis://127.0.0.1:6379",
			command);
}

int store_io_create(struct store_io *io, const char *command, const char *uri, uint32_t timeout_ms)
{
	return uri ? open_store(io, command, uri, timeout_ms) : which_store(command);
}

int store_io_open(struct store_io *io, const char *command, const char *uri, uint32_t timeout_ms)
{
	char error[SSV_ERROR_TEXT_MAX];
	struct uri parsed;

	uri = store_io_uri(uri);
	if (!uri)
		return which_store(command);
	if (!uri_parse(uri, &parsed, error) && !strcmp(parsed.scheme, "file") &&
	    access(parsed.path, F_OK))
		return cli_fail(EXIT_UNREACHABLE, "%s: there is no store at %s: %s", command,
				parsed.path, strerror(errno));
	return open_store(io, command, uri, timeout_ms);
}

void store_io_close(struct store_io *io)
{
	store_close(io->store);
	free(io->value);
	memset(io, 0, sizeof(*io));
}

static int run(struct store_io *io, struct store_op *op)
{
	return store_wait(io->store, op, io->timeout_ms);
}

int store_io_exists(struct store_io *io, const struct ssv_key *key, uint64_t *ret_bytes)
{
	struct store_op op = {.kind = STORE_OP_EXISTS, .key = *key};
	int err = run(io, &op);

	*ret_bytes = op.value_bytes;
	return err;
}

int store_io_get(struct store_io *io, const struct ssv_key *key)
{
	struct store_op op = {.kind = STORE_OP_GET, .key = *key};
	uint64_t bytes;
	int err = store_io_exists(io, key, &bytes);

	if (err)
		return err;
	if (bytes + CONTAINER_SLACK_BYTES > io->value_capacity) {
		free(io->value);
		io->value_capacity = bytes + CONTAINER_SLACK_BYTES;
		io->value = cli_alloc(io->value_capacity);
	}
	op.data = io->value;
	op.capacity = io->value_capacity - CONTAINER_SLACK_BYTES;
	err = run(io, &op);
	io->value_bytes = err ? 0 : op.value_bytes;
	return err;
}

int store_io_put(struct store_io *io, const struct ssv_key *key, const uint8_t *bytes,
		 uint64_t count)
{
	struct store_op op = {
	    .kind = STORE_OP_PUT, .key = *key, .data = (uint8_t *)bytes, .value_bytes = count};

	return run(io, &op);
}

int store_io_delete(struct store_io *io, const struct ssv_key *key)
{
	struct store_op op = {.kind = STORE_OP_DELETE, .key = *key};

	return run(io, &op);
}

struct key_list {
	struct ssv_key *keys;
	uint64_t count, capacity;
};

static int append_key(void *context, const struct ssv_key *key, uint64_t bytes)
{
	struct key_list *list = context;

	(void)bytes;
	if (list->count == list->capacity) {
		uint64_t capacity = list->capacity ? 2 * list->capacity : 1024;
		struct ssv_key *keys = realloc(list->keys, capacity * sizeof(*keys));

		if (!keys)
			return -ENOMEM;
		list->keys = keys;
		list->capacity = capacity;
	}
	list->keys[list->count++] = *key;
	return 0;
}

static int compare_keys(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct ssv_key));
}

/* In one order, whatever the store's; a listing may also name a key twice. */
static uint64_t sort_keys(struct ssv_key *keys, uint64_t count)
{
	uint64_t kept = 0;

	if (count)
		qsort(keys, count, sizeof(*keys), compare_keys);
	for (uint64_t i = 0; i < count; i++) {
		if (!kept || compare_keys(&keys[i], &keys[kept - 1]))
			keys[kept++] = keys[i];
	}
	return kept;
}

int store_io_list(struct store_io *io, struct ssv_key **ret_keys, uint64_t *ret_count)
{
	struct key_list list = {0};
	int err;

	if (!io->store->ops->list)
		return -ENOTSUP;
	err = io->store->ops->list(io->store, append_key, &list);
	if (err) {
		free(list.keys);
		return err;
	}
	*ret_keys = list.keys;
	*ret_count = sort_keys(list.keys, list.count);
	return 0;
}
