/* SPDX-License-Identifier: Apache-2.0 */
/*
 * file_put.c - PUTs of a file: store, one at a time.
 *
 * Room is reserved, the value written to a temporary file a slice a step, flushed as configured and
 * given its name by rename(2). Whatever goes wrong before leaves nothing but that temporary file,
 * which is removed.
 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/tally.h"
#include "store/file.h"

void file_abort_write(struct file_store *file)
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
	tally_add(TALLY_CALL_FILE, file->sync != FILE_SYNC_NONE ? 2 : 1);
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
	ssize_t n;

	tally_add(TALLY_CALL_WRITE, file->sync != FILE_SYNC_NONE ? 2 : 1);
	n = pwrite(put->fd, op->data + put->written, bytes, (off_t)put->written);

	if (n < 0 && errno == EINTR)
		return -EAGAIN;
	if (n < 0) {
		int err = folder_error(errno);

		if (errno == ENOSPC || errno == EDQUOT)
			evict_disk_full(&file->evict, op->value_bytes);
		return err;
	}
	if (file->sync != FILE_SYNC_NONE) /* begin now, so that the flush at the end is short */
		(void)sync_file_range(put->fd, (off_t)put->written, n, SYNC_FILE_RANGE_WRITE);
	put->written += (uint64_t)n;
	tally_add(TALLY_BYTES_SENT, (uint64_t)n);
	file->stats.bytes_out += (uint64_t)n;
	return put->written < op->value_bytes ? -EAGAIN : 0;
}

bool file_step_write(struct file_store *file)
{
	struct file_write *write = &file->write;
	struct store_op *op;
	int err = 0;

	if (!write->op)
		write->op = op_queue_pop(&file->puts);
	op = write->op;
	if (!op)
		return false;
	if (write->fd < 0) {
		err = write_begin(file);
		if (err == -EAGAIN)
			return false;
	}
	if (!err)
		err = write_slice(file);
	if (err == -EAGAIN)
		return true;
	if (!err)
		err = write_end(file);
	if (err == -ENOENT)
		err = -ENOTCONN; /* the folder is gone */
	file->connected = err == 0 || err == -ENOSPC;
	file_abort_write(file);
	file_finish(file, op, err);
	return true;
}
