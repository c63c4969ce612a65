/* SPDX-License-Identifier: Apache-2.0 */
/*
 * file.c - the embedded store: one file a value in a folder that several daemons may share.
 *
 * A poll does a bounded amount: some EXISTS and DELETE, one slice of a GET, one slice of a PUT (now
 * and then only, while GETs run: write-back never delays a fetch), one step of eviction. GETs are
 * served in the order of submission; the next few are opened ahead and go on while the first waits
 * for the disk.
 *
 * GET does not wait for a disk: a slice that is not in the page cache is asked for with
 * posix_fadvise and tried again soon with RWF_NOWAIT, and read with waiting only if it has not come
 * after PATIENCE_NS. File systems without RWF_NOWAIT get plain bounded reads.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "store/backends.h"
#include "store/evict.h"
#include "store/folder.h"
#include "store/queue.h"
#include "store/uri.h"

#define READS_MAX      4u  /* GETs opened at once */
#define QUICK_MAX      16u /* EXISTS and DELETE a poll */
#define SHARE          8u  /* while GETs run, one poll in so many moves PUT and eviction on */
#define ADVISE_BYTES   (4 * MIB)
#define TOUCH_AGE_S    60 /* a use is noted at most once a minute */
#define RETRY_NS       (100 * NS_PER_US)
#define PATIENCE_NS    (2 * NS_PER_MS)
#define EVICT_EVERY_NS NS_PER_MS /* between steps of a sweep that nobody waits for */

enum file_sync {
	FILE_SYNC_NONE = 0,
	FILE_SYNC_DATA = 1,
	FILE_SYNC_FULL = 2,
};

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

struct file_read {
	struct store_op *op;
	int fd;
	uint64_t advised;    /* bytes from the start that the kernel was asked to read ahead */
	uint64_t waiting_ns; /* since when a slice is awaited; 0: it is not */
};

struct file_write {
	struct store_op *op; /* NULL: none */
	int fd;              /* -1: not begun */
	uint64_t written;
	uint64_t reserved; /* bytes of the account that no published value stands for */
	char name[FOLDER_TEMP_NAME_MAX];
};

struct file_store {
	struct store store;
	struct folder folder;
	struct evict evict;
	uint64_t value_bytes_max, slice;
	uint32_t ops_max, held; /* operations in the queues, reads and write */
	uint8_t sync;           /* enum file_sync */
	bool nowait;            /* RWF_NOWAIT works here */
	bool connected;

	struct op_queue quick, gets, puts, done;
	struct file_read reads[READS_MAX]; /* in order of submission */
	uint32_t reads_count;
	struct file_write write;

	int64_t wall_s; /* seconds since the epoch at open; moved on by now_ns */
	uint64_t first_ns;
	uint64_t polls;
	uint64_t next_ns; /* computed by poll */
	struct store_stats stats;
};

static struct file_store *file_of(const struct store *store)
{
	return (struct file_store *)(uintptr_t)store;
}

/* ---- open and close ------------------------------------------------------------------------- */

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
	if (uri.host && uri.host[0])
		return uri_error(error, -EINVAL,
				 "store file: host \"%.64s\": expected none, as in file:/path or "
				 "file:///path",
				 uri.host);
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

static void write_abort(struct file_store *file)
{
	if (file->write.fd >= 0) {
		(void)close(file->write.fd);
		folder_remove_temp(&file->folder, file->write.name);
	}
	file->write.fd = -1;
	file->write.op = NULL;
	evict_free(&file->evict, file->write.reserved);
	file->write.reserved = 0;
	file->evict.wanted = 0;
}

static void file_close(struct store *store)
{
	struct file_store *file = file_of(store);
	uint32_t i;

	for (i = 0; i < file->reads_count; i++)
		(void)close(file->reads[i].fd);
	write_abort(file);
	evict_fini(&file->evict);
	folder_close(&file->folder);
	free(file);
}

/* ---- operations ----------------------------------------------------------------------------- */

static void finish(struct file_store *file, struct store_op *op, int status)
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
			finish(file, op, err);
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

static void note_use(struct file_store *file, const struct folder_entry *entry, uint64_t now_ns)
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
				note_use(file, &entry, now_ns);
			}
		} else {
			uint64_t bytes = err ? 0 : entry.bytes;

			err = folder_remove(&file->folder, &op->key);
			if (!err)
				evict_free(&file->evict, bytes);
		}
		finish(file, op, err);
	}
}

/* ---- GET ------------------------------------------------------------------------------------ */

static void read_end(struct file_store *file, uint32_t index, int status)
{
	struct store_op *op = file->reads[index].op;

	(void)close(file->reads[index].fd);
	file->reads_count--;
	memmove(&file->reads[index], &file->reads[index + 1],
		(file->reads_count - index) * sizeof(file->reads[0]));
	finish(file, op, status);
}

/* Ask the kernel to have the next bytes ready. */
static void read_advise(struct file_read *read)
{
	uint64_t end = u64_min(read->op->received + ADVISE_BYTES, read->op->value_bytes);

	if (end <= read->advised)
		return;
	(void)posix_fadvise(read->fd, (off_t)read->advised, (off_t)(end - read->advised),
			    POSIX_FADV_WILLNEED);
	read->advised = end;
}

/* Open waiting GETs until READS_MAX are. */
static void open_reads(struct file_store *file, uint64_t now_ns)
{
	while (file->reads_count < READS_MAX && file->gets.first) {
		struct file_read *read = &file->reads[file->reads_count];
		struct store_op *op = op_queue_pop(&file->gets);
		struct folder_entry entry;
		int err = folder_open_value(&file->folder, &op->key, &read->fd, &entry);

		if (err) {
			finish(file, op, err);
			continue;
		}
		err = op_set_length(op, entry.bytes, file->value_bytes_max);
		if (err) {
			(void)close(read->fd);
			finish(file, op, err);
			continue;
		}
		note_use(file, &entry, now_ns);
		read->op = op;
		read->advised = 0;
		read->waiting_ns = 0;
		if (file->reads_count++)
			read_advise(read);
	}
}

/* Read one slice. Returns bytes, 0 at an early end, -EAGAIN: not in memory yet. */
static ssize_t read_slice(struct file_store *file, struct file_read *read, bool wait)
{
	struct store_op *op = read->op;
	struct iovec piece = {
	    .iov_base = op->data + op->received,
	    .iov_len = u64_min(op->value_bytes - op->received, file->slice),
	};
	ssize_t n;

	if (!wait && file->nowait) {
		n = preadv2(read->fd, &piece, 1, (off_t)op->received, RWF_NOWAIT);
		if (n >= 0 || errno == EAGAIN)
			return n >= 0 ? n : -EAGAIN;
		if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL)
			return folder_error(errno);
		file->nowait = false;
	}
	n = pread(read->fd, piece.iov_base, piece.iov_len, (off_t)op->received);
	if (n < 0)
		return errno == EINTR || errno == EAGAIN ? -EAGAIN : -EIO;
	return n;
}

/* Move one GET on by a slice: the first whose bytes are in memory. Returns 1 if one was. */
static int step_read(struct file_store *file, uint64_t now_ns)
{
	uint32_t i;

	for (i = 0; i < file->reads_count; i++) {
		struct file_read *read = &file->reads[i];
		struct store_op *op = read->op;
		bool wait = read->waiting_ns && now_ns - read->waiting_ns > PATIENCE_NS;
		ssize_t n = read_slice(file, read, wait);

		if (n == -EAGAIN) {
			read_advise(read);
			if (!read->waiting_ns)
				read->waiting_ns = now_ns ? now_ns : 1;
			continue;
		}
		if (n <= 0) { /* 0: somebody cut the file after it was published */
			read_end(file, i, n ? (int)n : -EIO);
			return 1;
		}
		read->waiting_ns = 0;
		op->received += (uint64_t)n;
		file->stats.bytes_in += (uint64_t)n;
		if (op->received == op->value_bytes)
			read_end(file, i, 0);
		return 1;
	}
	return 0;
}

/* ---- PUT ------------------------------------------------------------------------------------ */

static int write_begin(struct file_store *file)
{
	struct file_write *write = &file->write;
	int err = evict_reserve(&file->evict, write->op->value_bytes);

	if (err)
		return err;
	write->reserved = write->op->value_bytes;
	write->written = 0;
	return folder_create_temp(&file->folder, write->name, &write->fd);
}

static int write_end(struct file_store *file)
{
	struct store_op *op = file->write.op;
	struct folder_entry old = {.bytes = 0};
	int fd = file->write.fd;
	int err;

	if (file->sync != FILE_SYNC_NONE && fdatasync(fd))
		return folder_error(errno);
	file->write.fd = -1;
	if (close(fd)) { /* network file systems tell of a full disk here */
		err = folder_error(errno);
		goto remove_temp;
	}
	if (folder_find(&file->folder, &op->key, &old))
		old.bytes = 0;
	err =
	    folder_publish(&file->folder, file->write.name, &op->key, file->sync == FILE_SYNC_FULL);
	if (err)
		goto remove_temp;
	file->write.reserved = old.bytes; /* replaced: free now */
	return 0;

remove_temp:
	folder_remove_temp(&file->folder, file->write.name);
	return err;
}

/* One slice. -EAGAIN: more to come. */
static int write_slice(struct file_store *file)
{
	struct file_write *put = &file->write;
	const struct store_op *op = put->op;
	uint64_t bytes = u64_min(op->value_bytes - put->written, file->slice);
	ssize_t n = pwrite(put->fd, op->data + put->written, bytes, (off_t)put->written);

	if (n < 0)
		return errno == EINTR ? -EAGAIN : folder_error(errno);
	if (file->sync != FILE_SYNC_NONE) /* begin now, so that the flush at the end is short */
		(void)sync_file_range(put->fd, (off_t)put->written, n, SYNC_FILE_RANGE_WRITE);
	put->written += (uint64_t)n;
	file->stats.bytes_out += (uint64_t)n;
	return put->written < op->value_bytes ? -EAGAIN : 0;
}

/* Move the first PUT on. Returns 1 unless it has to wait for room. */
static int step_write(struct file_store *file)
{
	struct file_write *write = &file->write;
	struct store_op *op;
	int err = 0;

	if (!write->op)
		write->op = op_queue_pop(&file->puts);
	op = write->op;
	if (!op)
		return 0;
	if (write->fd < 0) {
		err = write_begin(file);
		if (err == -EAGAIN)
			return 0;
	}
	if (!err)
		err = write_slice(file);
	if (err == -EAGAIN)
		return 1;
	if (!err)
		err = write_end(file);
	if (err == -ENOENT)
		err = -ENOTCONN; /* the folder is gone */
	file->connected = err == 0 || err == -ENOSPC;
	write_abort(file);
	finish(file, op, err);
	return 1;
}

/* ---- poll ----------------------------------------------------------------------------------- */

static void expire_queue(struct file_store *file, struct op_queue *queue, uint64_t now_ns)
{
	struct store_op *previous = NULL;
	struct store_op *op = queue->first;

	while (op) {
		struct store_op *next = op->next;

		if (op->deadline_ns <= now_ns)
			finish(file, op_queue_remove(queue, previous), -ETIMEDOUT);
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
			read_end(file, i, -ETIMEDOUT);
	}
	if (file->write.op && file->write.op->deadline_ns <= now_ns) {
		struct store_op *op = file->write.op;

		write_abort(file);
		finish(file, op, -ETIMEDOUT);
	}
	expire_queue(file, &file->quick, now_ns);
	expire_queue(file, &file->gets, now_ns);
	expire_queue(file, &file->puts, now_ns);
}

static void plan_next(struct file_store *file, bool moved, uint64_t now_ns)
{
	bool waits = file->reads_count || file->write.op; /* for a disk, or for room */

	if (moved || file->done.first || file->quick.first ||
	    (file->gets.first && file->reads_count < READS_MAX) ||
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
	open_reads(file, now_ns);
	moved = step_read(file, now_ns);
	if (!moved || turn) {
		moved |= step_write(file);
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
	ret_stats->bytes_limit = file->evict.limit;
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
    .open = file_open,
    .close = file_close,
    .submit = file_submit,
    .poll = file_poll,
    .next_ns = file_next_ns,
    .pollfds = file_pollfds,
    .stats = file_stats,
    .list = file_list,
};
