/* SPDX-License-Identifier: Apache-2.0 */
/*
 * file.c - the embedded store: one file a value in a folder that several daemons may share.
 *
 * A poll does a bounded amount: some EXISTS and DELETE, one slice of a GET, one slice of a PUT (now
 * and then only, while GETs run: write-back never delays a fetch), one step of eviction. GETs are
 * served in the order of submission; the next few are opened ahead and go on while the first waits
 * for the disk.
 */
#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "store/backends.h"
#include "store/file.h"
#include "store/uri.h"

#define QUICK_MAX      16u /* EXISTS and DELETE a poll */
#define SHARE          8u  /* while GETs run, one poll in so many moves PUT and eviction on */
#define TOUCH_AGE_S    60  /* a use is noted at most once a minute */
#define RETRY_NS       (100 * NS_PER_US)
#define EVICT_EVERY_NS NS_PER_MS /* between steps of a sweep that nobody waits for */

enum file_option {
	OPTION_BYTES,
	OPTION_SYNC,
	OPTION_SLICE,
	OPTIONS_COUNT,
};

static const struct uri_option options[OPTIONS_COUNT] = {
    [OPTION_BYTES] = {.name = "bytes",
		      .kind = URI_BYTES,
		      .fallback = 10 * GIB,
		      .min = MIB,
		      .max = 1024 * 1024 * GIB,
		      .zero_means = "no limit",
		      .help = "values kept at most; the least recently used goes first"},
    [OPTION_SYNC] = {.name = "sync",
		     .kind = URI_WORD,
		     .words = "none|data|full",
		     .help = "what is flushed before a put is done: nothing, the value, the "
			     "value and its folder"},
    [OPTION_SLICE] = {.name = "slice",
		      .kind = URI_BYTES,
		      .fallback = MIB,
		      .min = 64 * KIB,
		      .max = 64 * MIB,
		      .help = "bytes read or written a poll"},
};

static struct file_store *file_of(const struct store *store)
{
	return (struct file_store *)(uintptr_t)store;
}

/* ---- open and close ------------------------------------------------------------------------- */

static int file_check(const struct uri *uri, char *error)
{
	if (uri->host && uri->host[0])
		return uri_error(error, -EINVAL,
				 "store file: host \"%.64s\": expected none, as in file:/path or "
				 "file:///path",
				 uri->host);
	return folder_path_check(uri->path, error);
}

static int file_open(const struct store_config *config, struct store **ret_store, char *error)
{
	struct uri_value values[OPTIONS_COUNT];
	struct file_store *file;
	struct uri uri;
	int err;

	err = uri_parse(config->uri, &uri, error);
	if (!err)
		err = uri_read_options(&uri, options, OPTIONS_COUNT, values, error);
	if (err)
		return err;
	file = calloc(1, sizeof(*file));
	if (!file)
		return uri_error(error, -ENOMEM, "store file: out of memory");
	err = folder_open(uri.path, config->seed, &file->folder, error);
	if (err)
		goto free_file;
	err = evict_init(&file->evict, &file->folder, values[OPTION_BYTES].number);
	if (err)
		goto close_folder;
	file->store.ops = &store_file;
	file->value_bytes_max = config->value_bytes_max;
	file->ops_max = config->ops_max;
	file->slice = values[OPTION_SLICE].number;
	file->sync = (uint8_t)values[OPTION_SYNC].number;
	file->nowait = true;
	file->connected = true;
	file->write.fd = -1;
	file->wall_s = (int64_t)time(NULL);
	*ret_store = &file->store;
	return 0;

close_folder:
	folder_close(&file->folder);
	(void)uri_error(error, err, "store file: out of memory");
free_file:
	free(file);
	return err;
}

static void file_close(struct store *store)
{
	struct file_store *file = file_of(store);
	uint32_t i;

	for (i = 0; i < file->reads_count; i++)
		(void)close(file->reads[i].fd);
	file_abort_write(file);
	evict_fini(&file->evict);
	folder_close(&file->folder);
	free(file);
}

/* ---- operations ----------------------------------------------------------------------------- */

void file_finish(struct file_store *file, struct store_op *op, int status)
{
	op->status = status;
	op_count(&file->stats, op);
	op_queue_push(&file->done, op);
}

static uint32_t file_submit(struct store *store, struct store_op *const *ops, uint32_t n,
			    uint64_t now_ns)
{
	struct file_store *file = file_of(store);
	uint32_t i;

	(void)now_ns;
	for (i = 0; i < n && file->held < file->ops_max; i++) {
		struct store_op *op = ops[i];
		int err = op_check(op, file->value_bytes_max);

		op_begin(op);
		file->held++;
		file->next_ns = 0;
		if (err)
			file_finish(file, op, err);
		else if (op->kind == STORE_OP_GET)
			op_queue_push(&file->gets, op);
		else if (op->kind == STORE_OP_PUT)
			op_queue_push(&file->puts, op);
		else
			op_queue_push(&file->quick, op);
	}
	return i;
}

static int64_t wall_now_s(const struct file_store *file, uint64_t now_ns)
{
	return file->wall_s + (int64_t)((now_ns - file->first_ns) / NS_PER_S);
}

void file_note_use(struct file_store *file, const struct folder_entry *entry, uint64_t now_ns)
{
	if (wall_now_s(file, now_ns) - entry->used_s > TOUCH_AGE_S)
		folder_touch(&file->folder, &entry->key);
}

static void step_quick(struct file_store *file, uint64_t now_ns)
{
	uint32_t n;

	for (n = 0; n < QUICK_MAX && file->quick.first; n++) {
		struct store_op *op = op_queue_pop(&file->quick);
		struct folder_entry entry;
		int err = folder_find(&file->folder, &op->key, &entry);

		if (op->kind == STORE_OP_EXISTS) {
			if (!err) {
				op->value_bytes = entry.bytes;
				/* Looked up means soon fetched: keep it. */
				file_note_use(file, &entry, now_ns);
			}
		} else {
			uint64_t bytes = err ? 0 : entry.bytes;

			err = folder_remove(&file->folder, &op->key);
			if (!err)
				evict_free(&file->evict, bytes);
		}
		file_finish(file, op, err);
	}
}

/* ---- poll ----------------------------------------------------------------------------------- */

static void expire_queue(struct file_store *file, struct op_queue *queue, uint64_t now_ns)
{
	struct store_op *previous = NULL;
	struct store_op *op = queue->first;

	while (op) {
		struct store_op *next = op->next;

		if (op->deadline_ns <= now_ns)
			file_finish(file, op_queue_remove(queue, previous), -ETIMEDOUT);
		else
			previous = op;
		op = next;
	}
}

static void expire(struct file_store *file, uint64_t now_ns)
{
	uint32_t i = file->reads_count;

	while (i-- > 0) {
		if (file->reads[i].op->deadline_ns <= now_ns)
			file_end_read(file, i, -ETIMEDOUT);
	}
	if (file->write.op && file->write.op->deadline_ns <= now_ns) {
		struct store_op *op = file->write.op;

		file_abort_write(file);
		file_finish(file, op, -ETIMEDOUT);
	}
	expire_queue(file, &file->quick, now_ns);
	expire_queue(file, &file->gets, now_ns);
	expire_queue(file, &file->puts, now_ns);
}

static void plan_next(struct file_store *file, bool moved, uint64_t now_ns)
{
	bool waits = file->reads_count || file->write.op; /* for a disk, or for room */

	if (moved || file->done.first || file->quick.first ||
	    (file->gets.first && file->reads_count < FILE_READS_MAX) ||
	    (file->puts.first && !file->write.op))
		file->next_ns = 0;
	else if (file->evict.wanted)
		file->next_ns = 0;
	else if (waits)
		file->next_ns = now_ns + RETRY_NS;
	else if (evict_pending(&file->evict, now_ns))
		file->next_ns = now_ns + EVICT_EVERY_NS;
	else
		file->next_ns = file->evict.sweep_ns;
}

static uint32_t file_poll(struct store *store, struct store_op **done, uint32_t max,
			  uint64_t now_ns)
{
	struct file_store *file = file_of(store);
	bool turn = file->polls++ % SHARE == 0;
	bool moved;
	uint32_t n;

	if (!file->first_ns)
		file->first_ns = now_ns;
	expire(file, now_ns);
	step_quick(file, now_ns);
	file_open_reads(file, now_ns);
	moved = file_step_read(file, now_ns);
	if (!moved || turn) {
		moved |= file_step_write(file);
		if (evict_pending(&file->evict, now_ns))
			evict_step(&file->evict, now_ns, wall_now_s(file, now_ns));
	}
	n = op_queue_take(&file->done, done, max);
	file->held -= n;
	plan_next(file, moved, now_ns);
	return n;
}

static uint64_t file_next_ns(const struct store *store)
{
	return file_of(store)->next_ns;
}

static uint32_t file_pollfds(const struct store *store, void *pollfds, uint32_t max)
{
	(void)store;
	(void)pollfds;
	(void)max;
	return 0;
}

static void file_stats(const struct store *store, struct store_stats *ret_stats)
{
	const struct file_store *file = file_of(store);

	*ret_stats = file->stats;
	ret_stats->connected = file->connected;
	ret_stats->evictions = file->evict.evictions;
	ret_stats->bytes_used = evict_used(&file->evict);
	ret_stats->bytes_limit = file->evict.limit_configured;
}

static int file_list(struct store *store,
		     int (*visit)(void *context, const struct ssv_key *key, uint64_t bytes),
		     void *context)
{
	const struct file_store *file = file_of(store);
	struct folder_entry entries[FOLDER_BATCH];
	struct folder_walk walk;
	bool end = false;
	int stop = 0;
	uint32_t n, i;

	folder_walk_init(&walk);
	while (!end && !stop) {
		n = folder_walk_step(&file->folder, &walk, entries, &end);
		for (i = 0; i < n && !stop; i++)
			stop = visit(context, &entries[i].key, entries[i].bytes);
	}
	folder_walk_fini(&walk);
	return 0;
}

const struct store_ops store_file = {
    .scheme = "file",
    .caps = STORE_CAP_PERSISTENT | STORE_CAP_SHARED | STORE_CAP_LIST,
    .options = options,
    .options_count = OPTIONS_COUNT,
    .check = file_check,
    .open = file_open,
    .close = file_close,
    .submit = file_submit,
    .poll = file_poll,
    .next_ns = file_next_ns,
    .pollfds = file_pollfds,
    .stats = file_stats,
    .list = file_list,
};
