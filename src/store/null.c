/* SPDX-License-Identifier: Apache-2.0 */
/*
 * null.c - the store that holds nothing: PUT is swallowed, GET and EXISTS miss, all at once.
 *
 * It measures the pipeline alone. It never touches data[].
 */
#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "store/backends.h"
#include "store/queue.h"
#include "store/uri.h"

struct null_store {
	struct store store;
	struct op_queue done;
	uint64_t value_bytes_max;
	uint32_t ops_max;
	struct store_stats stats;
};

static struct null_store *null_of(const struct store *store)
{
	return (struct null_store *)(uintptr_t)store;
}

static int null_open(const struct store_config *config, struct store **ret_store, char *error)
{
	struct null_store *null = calloc(1, sizeof(*null));

	if (!null)
		return uri_error(error, -ENOMEM, "store null: out of memory");
	null->store.ops = &store_null;
	null->value_bytes_max = config->value_bytes_max;
	null->ops_max = config->ops_max;
	null->stats.connected = 1;
	*ret_store = &null->store;
	return 0;
}

static void null_close(struct store *store)
{
	free(null_of(store));
}

static uint32_t null_submit(struct store *store, struct store_op *const *ops, uint32_t n,
			    uint64_t now_ns)
{
	struct null_store *null = null_of(store);
	uint32_t i;

	(void)now_ns;
	for (i = 0; i < n && null->done.count < null->ops_max; i++) {
		struct store_op *op = ops[i];

		op_begin(op);
		op->status = op_check(op, null->value_bytes_max);
		if (!op->status && (op->kind == STORE_OP_GET || op->kind == STORE_OP_EXISTS))
			op->status = -ENOENT;
		if (!op->status && op->kind == STORE_OP_PUT)
			null->stats.bytes_out += op->value_bytes;
		op_count(&null->stats, op);
		op_queue_push(&null->done, op);
	}
	return i;
}

static uint32_t null_poll(struct store *store, struct store_op **done, uint32_t max,
			  uint64_t now_ns)
{
	(void)now_ns;
	return op_queue_take(&null_of(store)->done, done, max);
}

static uint64_t null_next_ns(const struct store *store)
{
	return null_of(store)->done.count ? 0 : TIME_NEVER;
}

static uint32_t null_pollfds(const struct store *store, void *pollfds, uint32_t max)
{
	(void)store;
	(void)pollfds;
	(void)max;
	return 0;
}

static void null_stats(const struct store *store, struct store_stats *ret_stats)
{
	*ret_stats = null_of(store)->stats;
}

static int null_list(struct store *store,
		     int (*visit)(void *context, const struct ssv_key *key, uint64_t bytes),
		     void *context)
{
	(void)store;
	(void)visit;
	(void)context;
	return 0;
}

const struct store_ops store_null = {
    .scheme = "null",
    .caps = STORE_CAP_SHARED | STORE_CAP_LIST,
    .options = NULL,
    .options_count = 0,
    .open = null_open,
    .close = null_close,
    .submit = null_submit,
    .poll = null_poll,
    .next_ns = null_next_ns,
    .pollfds = null_pollfds,
    .stats = null_stats,
    .list = null_list,
};
