/* SPDX-License-Identifier: Apache-2.0 */
/*
 * file.h - what the files of the file: store share. No other file includes it.
 *
 *	file.c      URI, queues, EXISTS and DELETE, deadlines, what a poll does
 *	file_get.c  reading values, without waiting for the disk
 *	file_put.c  writing values
 *	folder.c    the system calls on the folder
 *	evict.c     the byte limit
 *
 * An operation stands in one of the queues, in reads[], in write or in done.
 */
#ifndef SSV_STORE_FILE_H
#define SSV_STORE_FILE_H

#include <stdbool.h>

#include "store/evict.h"
#include "store/folder.h"
#include "store/queue.h"
#include "store/store.h"

#define FILE_READS_MAX 4u /* GETs opened at once */

enum file_sync {
	FILE_SYNC_NONE = 0,
	FILE_SYNC_DATA = 1,
	FILE_SYNC_FULL = 2,
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
	struct file_read reads[FILE_READS_MAX]; /* in order of submission */
	uint32_t reads_count;
	struct file_write write;

	int64_t wall_s; /* seconds since the epoch at open; moved on by now_ns */
	uint64_t first_ns;
	uint64_t polls;
	uint64_t next_ns; /* computed by poll */
	struct store_stats stats;
};

/* ---- file.c --------------------------------------------------------------------------------- */

void file_finish(struct file_store *file, struct store_op *op, int status);
/* Note that a value is used now, if that was not noted lately. */
void file_note_use(struct file_store *file, const struct folder_entry *entry, uint64_t now_ns);

/* ---- file_get.c ----------------------------------------------------------------------------- */

/* Open waiting GETs until FILE_READS_MAX are. */
void file_open_reads(struct file_store *file, uint64_t now_ns);
/* Move one GET on by a slice: the first whose bytes are in memory. Returns true if one was. */
bool file_step_read(struct file_store *file, uint64_t now_ns);
/* GET number index is over. */
void file_end_read(struct file_store *file, uint32_t index, int status);

/* ---- file_put.c ----------------------------------------------------------------------------- */

/* Move the first PUT on by a slice. Returns false if there is none, or it waits for room. */
bool file_step_write(struct file_store *file);
/* Forget the PUT that is being written, and what is written of it. */
void file_abort_write(struct file_store *file);

#endif
