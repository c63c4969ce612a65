/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory.c - values in this process's heap: the store of tests, and the reference for the others.
 *
 * All handles of one name share one table; the last close frees it. Handles belong to different
 * threads, so the table has a mutex, held for look-ups and links only, never while value bytes are
 * copied: a value is immutable and counted, so a reader may finish one that was replaced or
 * evicted meanwhile.
 *
 * Two exceptions to the data path's rules, stated here: it takes that mutex, and PUT allocates,
 * because the heap is what it stores into.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/tally.h"
#include "store/backends.h"
#include "store/queue.h"
#include "store/uri.h"

#define BUCKETS_MIN 16384u /* power of two */
#define MOVES_A_PUT 4u     /* buckets moved while the table grows */
#define STEP_BYTES  MIB    /* copied a poll */

/* One stored value. Linked in its bucket's chain and in the order of use while it is in the table;
 * refs counts the table and every reader. */
struct value {
	struct ssv_key key;
	struct value *chain;
	struct value *older, *newer;
	uint32_t refs;
	uint64_t bytes;
	uint8_t data[];
};

/*
 * Chains by hash. A table that grows keeps its smaller half until every bucket of it was moved, a
 * few a PUT, so that no operation waits for a million links: chains below `moved` are empty there.
 */
struct table {
	struct table *next;
	char name[64];
	uint32_t handles; /* guarded by tables_lock */

	pthread_mutex_t lock;              /* guards all below; nothing else is taken under it */
	struct value **buckets, **smaller; /* smaller: NULL unless growing */
	uint64_t buckets_count, moved, values_count;
	struct value *oldest, *newest;
	uint64_t bytes_used, bytes_limit, evictions;
};

/* Guards the list of tables and their handle counts; control path only; taken alone. */
static pthread_mutex_t tables_lock = PTHREAD_MUTEX_INITIALIZER;
static struct table *tables;

struct memory_store {
	struct store store;
	struct table *table;
	struct op_queue waiting, done;
	struct value *reading; /* of the first waiting GET, or NULL */
	uint64_t value_bytes_max;
	uint32_t ops_max;
	struct store_stats stats;
};

enum memory_option {
	OPTION_BYTES,
	OPTIONS_COUNT,
};

static const struct uri_option options[OPTIONS_COUNT] = {
    [OPTION_BYTES] = {.name = "bytes",
		      .kind = URI_BYTES,
		      .fallback = 0,
		      .min = 1,
		      .max = 1024 * 1024 * MIB,
		      .zero_means = "no limit",
		      .help = "values kept at most; the least recently used goes first"},
};

static struct memory_store *memory_of(const struct store *store)
{
	return (struct memory_store *)(uintptr_t)store;
}

/* ---- the table (all under table->lock) ------------------------------------------------------ */

static uint64_t hash_of(const struct ssv_key *key)
{
	uint64_t hash = load_le64(key->bytes) ^ load_le64(key->bytes + 24);

	hash ^= hash >> 32;
	return hash ^ (hash >> 14);
}

static struct value **find_link(struct table *table, const struct ssv_key *key)
{
	uint64_t hash = hash_of(key), before = hash & (table->buckets_count / 2 - 1);
	struct value **link = &table->buckets[hash & (table->buckets_count - 1)];

	if (table->smaller && before >= table->moved)
		link = &table->smaller[before];
	while (*link && memcmp((*link)->key.bytes, key->bytes, sizeof(key->bytes)))
		link = &(*link)->chain;
	return link;
}

/* Twice the buckets, once there are as many values; without memory for them chains grow longer. */
static void table_grow(struct table *table)
{
	struct value **larger;

	if (table->smaller || table->values_count < table->buckets_count)
		return;
	larger = calloc(table->buckets_count * 2, sizeof(struct value *));
	if (!larger)
		return;
	table->smaller = table->buckets;
	table->buckets = larger;
	table->buckets_count *= 2;
	table->moved = 0;
}

static void table_move(struct table *table)
{
	for (uint32_t i = 0; i < MOVES_A_PUT && table->smaller; i++) {
		struct value *value = table->smaller[table->moved++], *next;

		for (; value; value = next) {
			uint64_t bucket = hash_of(&value->key) & (table->buckets_count - 1);

			next = value->chain;
			value->chain = table->buckets[bucket];
			table->buckets[bucket] = value;
		}
		if (table->moved == table->buckets_count / 2) {
			free(table->smaller);
			table->smaller = NULL;
		}
	}
}

static void use_unlink(struct table *table, struct value *value)
{
	*(value->older ? &value->older->newer : &table->oldest) = value->newer;
	*(value->newer ? &value->newer->older : &table->newest) = value->older;
}

static void use_link(struct table *table, struct value *value)
{
	value->newer = NULL;
	value->older = table->newest;
	*(table->newest ? &table->newest->newer : &table->oldest) = value;
	table->newest = value;
}

static void value_release(struct value *value)
{
	if (--value->refs == 0)
		free(value);
}

static void table_remove(struct table *table, struct value **link)
{
	struct value *value = *link;

	*link = value->chain;
	use_unlink(table, value);
	table->bytes_used -= value->bytes;
	table->values_count--;
	value_release(value);
}

static void table_evict(struct table *table)
{
	while (table->bytes_limit && table->bytes_used > table->bytes_limit) {
		table_remove(table, find_link(table, &table->oldest->key));
		table->evictions++;
	}
}

/* ---- tables --------------------------------------------------------------------------------- */

static struct table *table_create(const char *name, uint64_t bytes_limit)
{
	struct table *table = calloc(1, sizeof(*table));

	if (!table)
		return NULL;
	table->buckets_count = BUCKETS_MIN;
	table->buckets = calloc(table->buckets_count, sizeof(struct value *));
	if (!table->buckets) {
		free(table);
		return NULL;
	}
	(void)pthread_mutex_init(&table->lock, NULL);
	(void)snprintf(table->name, sizeof(table->name), "%s", name);
	table->bytes_limit = bytes_limit;
	return table;
}

static int table_acquire(const char *name, const struct uri_value *limit, struct table **ret_table,
			 char *error)
{
	struct table *table;
	int err = 0;

	(void)pthread_mutex_lock(&tables_lock);
	for (table = tables; table && strcmp(table->name, name);)
		table = table->next;
	if (!table) {
		table = table_create(name, limit->number);
		if (!table) {
			err = uri_error(error, -ENOMEM, "store memory: out of memory");
			goto unlock;
		}
		table->next = tables;
		tables = table;
	} else if (limit->text && limit->number != table->bytes_limit) {
		err = uri_error(error, -EINVAL,
				"store memory: option bytes=%s: \"%s\" is open already with "
				"bytes=%llu; expected the same",
				limit->text, name, (unsigned long long)table->bytes_limit);
		goto unlock;
	}
	table->handles++;
	*ret_table = table;
unlock:
	(void)pthread_mutex_unlock(&tables_lock);
	return err;
}

static void table_release(struct table *table)
{
	struct table **link;

	(void)pthread_mutex_lock(&tables_lock);
	if (--table->handles > 0)
		goto unlock;
	for (link = &tables; *link != table;)
		link = &(*link)->next;
	*link = table->next;
	while (table->oldest)
		table_remove(table, find_link(table, &table->oldest->key));
	(void)pthread_mutex_destroy(&table->lock);
	free(table->smaller);
	free(table->buckets);
	free(table);
unlock:
	(void)pthread_mutex_unlock(&tables_lock);
}

/* ---- the store ------------------------------------------------------------------------------ */

static int memory_check(const struct uri *uri, char *error)
{
	const size_t room = sizeof(((struct table *)NULL)->name);

	if (uri->host || strlen(uri->path) >= room)
		return uri_error(error, -EINVAL,
				 "store memory: name \"%.32s\": expected memory:name with at most "
				 "%zu bytes",
				 uri->host ? uri->host : uri->path, room - 1);
	return 0;
}

static int memory_open(const struct store_config *config, struct store **ret_store, char *error)
{
	struct uri_value values[OPTIONS_COUNT];
	struct memory_store *memory;
	struct uri uri;
	int err;

	err = uri_parse(config->uri, &uri, error);
	if (!err)
		err = uri_read_options(&uri, options, OPTIONS_COUNT, values, error);
	if (err)
		return err;
	memory = calloc(1, sizeof(*memory));
	if (!memory)
		return uri_error(error, -ENOMEM, "store memory: out of memory");
	err = table_acquire(uri.path, &values[OPTION_BYTES], &memory->table, error);
	if (err) {
		free(memory);
		return err;
	}
	memory->store.ops = &store_memory;
	memory->value_bytes_max = config->value_bytes_max;
	memory->ops_max = config->ops_max;
	*ret_store = &memory->store;
	return 0;
}

static void stop_reading(struct memory_store *memory)
{
	if (!memory->reading)
		return;
	(void)pthread_mutex_lock(&memory->table->lock);
	value_release(memory->reading);
	(void)pthread_mutex_unlock(&memory->table->lock);
	memory->reading = NULL;
}

static void memory_close(struct store *store)
{
	struct memory_store *memory = memory_of(store);

	stop_reading(memory);
	table_release(memory->table);
	free(memory);
}

static uint32_t memory_submit(struct store *store, struct store_op *const *ops, uint32_t n,
			      uint64_t now_ns)
{
	struct memory_store *memory = memory_of(store);
	uint32_t i;

	(void)now_ns;
	for (i = 0; i < n && memory->waiting.count + memory->done.count < memory->ops_max; i++) {
		op_begin(ops[i]);
		op_queue_push(&memory->waiting, ops[i]);
	}
	return i;
}

static void finish(struct memory_store *memory, struct store_op *previous, int status)
{
	struct store_op *op = op_queue_remove(&memory->waiting, previous);

	op->status = status;
	op_count(&memory->stats, op);
	op_queue_push(&memory->done, op);
}

/* Look a value up and mark it used; with hold it stays alive until value_release. */
static struct value *value_find(struct table *table, const struct ssv_key *key, bool hold,
				uint64_t *ret_bytes)
{
	struct value *value;

	(void)pthread_mutex_lock(&table->lock);
	value = *find_link(table, key);
	if (value) {
		use_unlink(table, value);
		use_link(table, value);
		value->refs += hold;
		*ret_bytes = value->bytes;
	}
	(void)pthread_mutex_unlock(&table->lock);
	return value;
}

static int step_put(struct memory_store *memory, struct store_op *op)
{
	struct table *table = memory->table;
	struct value *value;
	struct value **link;

	if (table->bytes_limit && op->value_bytes > table->bytes_limit)
		return -ENOSPC;
	value = malloc(sizeof(*value) + op->value_bytes);
	if (!value)
		return -ENOSPC;
	value->key = op->key;
	value->bytes = op->value_bytes;
	value->refs = 1;
	memcpy(value->data, op->data, op->value_bytes);

	(void)pthread_mutex_lock(&table->lock);
	link = find_link(table, &op->key);
	if (*link)
		table_remove(table, link);
	table_grow(table);
	table_move(table);
	link = find_link(table, &op->key);
	value->chain = *link;
	*link = value;
	use_link(table, value);
	table->values_count++;
	table->bytes_used += value->bytes;
	table_evict(table);
	(void)pthread_mutex_unlock(&table->lock);
	memory->stats.bytes_out += op->value_bytes;
	return 0;
}

static int step_delete(struct memory_store *memory, struct store_op *op)
{
	struct table *table = memory->table;
	struct value **link;

	(void)pthread_mutex_lock(&table->lock);
	link = find_link(table, &op->key);
	if (*link)
		table_remove(table, link);
	(void)pthread_mutex_unlock(&table->lock);
	return 0;
}

/* Copy one step. -EAGAIN: more to come. */
static int step_get(struct memory_store *memory, struct store_op *op)
{
	uint64_t bytes;
	int err;

	if (!memory->reading) {
		memory->reading = value_find(memory->table, &op->key, true, &bytes);
		if (!memory->reading)
			return -ENOENT;
		err = op_set_length(op, bytes, memory->value_bytes_max);
		if (err)
			return err;
	}
	bytes = u64_min(op->value_bytes - op->received, STEP_BYTES);
	memcpy(op->data + op->received, memory->reading->data + op->received, bytes);
	op->received += bytes;
	memory->stats.bytes_in += bytes;
	tally_add(TALLY_BYTES_STORE, bytes);
	return op->received < op->value_bytes ? -EAGAIN : 0;
}

/* Move the first operation on. Returns 1 when it finished. */
static int step_first(struct memory_store *memory)
{
	struct store_op *op = memory->waiting.first;
	int err = op_check(op, memory->value_bytes_max);

	if (err) {
		finish(memory, NULL, err);
		return 1;
	}
	switch (op->kind) {
	case STORE_OP_GET:
		err = step_get(memory, op);
		if (err == -EAGAIN)
			return 0;
		stop_reading(memory);
		break;
	case STORE_OP_PUT:
		err = step_put(memory, op);
		break;
	case STORE_OP_EXISTS:
		if (!value_find(memory->table, &op->key, false, &op->value_bytes))
			err = -ENOENT;
		break;
	default:
		err = step_delete(memory, op);
		break;
	}
	finish(memory, NULL, err);
	return 1;
}

static void expire(struct memory_store *memory, uint64_t now_ns)
{
	struct store_op *previous = NULL;
	struct store_op *op = memory->waiting.first;

	while (op) {
		struct store_op *next = op->next;

		if (op->deadline_ns > now_ns) {
			previous = op;
		} else {
			if (!previous)
				stop_reading(memory);
			finish(memory, previous, -ETIMEDOUT);
		}
		op = next;
	}
}

static uint32_t memory_poll(struct store *store, struct store_op **done, uint32_t max,
			    uint64_t now_ns)
{
	struct memory_store *memory = memory_of(store);
	uint32_t n;

	expire(memory, now_ns);
	for (n = 0; n < max && memory->waiting.first; n++) {
		if (!step_first(memory))
			break;
	}
	return op_queue_take(&memory->done, done, max);
}

static uint64_t memory_next_ns(const struct store *store)
{
	const struct memory_store *memory = memory_of(store);

	return memory->waiting.count + memory->done.count ? 0 : TIME_NEVER;
}

static uint32_t memory_pollfds(const struct store *store, void *pollfds, uint32_t max)
{
	(void)store;
	(void)pollfds;
	(void)max;
	return 0;
}

static void memory_stats(const struct store *store, struct store_stats *ret_stats)
{
	const struct memory_store *memory = memory_of(store);
	struct table *table = memory->table;

	*ret_stats = memory->stats;
	ret_stats->connected = 1;
	(void)pthread_mutex_lock(&table->lock);
	ret_stats->bytes_used = table->bytes_used;
	ret_stats->bytes_limit = table->bytes_limit;
	ret_stats->evictions = table->evictions;
	(void)pthread_mutex_unlock(&table->lock);
}

/* visit runs under the lock: it must not use a handle of the same name. */
static int memory_list(struct store *store,
		       int (*visit)(void *context, const struct ssv_key *key, uint64_t bytes),
		       void *context)
{
	struct table *table = memory_of(store)->table;
	struct value *value;
	int stop = 0;

	(void)pthread_mutex_lock(&table->lock);
	for (value = table->oldest; value && !stop; value = value->newer)
		stop = visit(context, &value->key, value->bytes);
	(void)pthread_mutex_unlock(&table->lock);
	return 0;
}

const struct store_ops store_memory = {
    .scheme = "memory",
    .caps = STORE_CAP_SHARED | STORE_CAP_LIST,
    .options = options,
    .options_count = OPTIONS_COUNT,
    .check = memory_check,
    .open = memory_open,
    .close = memory_close,
    .submit = memory_submit,
    .poll = memory_poll,
    .next_ns = memory_next_ns,
    .pollfds = memory_pollfds,
    .stats = memory_stats,
    .list = memory_list,
};
