/* SPDX-License-Identifier: Apache-2.0 */
/*
 * file_get.c - GETs of a file: store.
 *
 * A slice that is not in the page cache is asked for with posix_fadvise(2) and tried again soon
 * with RWF_NOWAIT; it is read with waiting only if it has not come after PATIENCE_NS. Meanwhile the
 * GETs behind it go on. File systems without RWF_NOWAIT get plain bounded reads.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/tally.h"
#include "store/file.h"

#define ADVISE_BYTES (4 * MIB)
#define PATIENCE_NS  (2 * NS_PER_MS)

void file_end_read(struct file_store *file, uint32_t index, int status)
{
	struct store_op *op = file->reads[index].op;

	tally_add(TALLY_CALL_FILE, 1);
	(void)close(file->reads[index].fd);
	file->reads_count--;
	memmove(&file->reads[index], &file->reads[index + 1],
		(file->reads_count - index) * sizeof(file->reads[0]));
	file_finish(file, op, status);
}

/* Ask the kernel to have the next bytes ready. */
static void read_advise(struct file_read *read)
{
	uint64_t end = u64_min(read->op->received + ADVISE_BYTES, read->op->value_bytes);

	if (end <= read->advised)
		return;
	tally_add(TALLY_CALL_FILE, 1);
	(void)posix_fadvise(read->fd, (off_t)read->advised, (off_t)(end - read->advised),
			    POSIX_FADV_WILLNEED);
	read->advised = end;
}

void file_open_reads(struct file_store *file, uint64_t now_ns)
{
	while (file->reads_count < FILE_READS_MAX && file->gets.first) {
		struct file_read *read = &file->reads[file->reads_count];
		struct store_op *op = op_queue_pop(&file->gets);
		struct folder_entry entry;
		int err = folder_open_value(&file->folder, &op->key, &read->fd, &entry);

		if (err) {
			file_finish(file, op, err);
			continue;
		}
		err = op_set_length(op, entry.bytes, file->value_bytes_max);
		if (err) {
			(void)close(read->fd);
			file_finish(file, op, err);
			continue;
		}
		file_note_use(file, &entry, now_ns);
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

	tally_add(TALLY_CALL_READ, 1);
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

bool file_step_read(struct file_store *file, uint64_t now_ns)
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
			file_end_read(file, i, n ? (int)n : -EIO);
			return true;
		}
		read->waiting_ns = 0;
		op->received += (uint64_t)n;
		tally_add(TALLY_BYTES_RECEIVED, (uint64_t)n);
		file->stats.bytes_in += (uint64_t)n;
		if (op->received == op->value_bytes)
			file_end_read(file, i, 0);
		return true;
	}
	return false;
}
