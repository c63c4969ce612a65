/* SPDX-License-Identifier: Apache-2.0 */
/*
 * folder.h - the folder of a file: store: names of keys, temporary files, publishing, walking.
 *
 *	ROOT/ab/abcdef...  a value; the name is the key in hex, the folder its first byte
 *	ROOT/tmp/put-...   a value being written; never read
 *
 * Invariant: a name in a shard folder always holds a complete value, because it gets there by
 * rename(2) alone. Every call is one or two system calls; errors are mapped to the contract's.
 * Nothing else in ROOT is ever looked at or removed.
 */
#ifndef SSV_STORE_FOLDER_H
#define SSV_STORE_FOLDER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/base.h"
#include "shadowserve.h"
#include "store/store.h"

#define FOLDER_TEMP_NAME_MAX 64 /* "tmp/put-PID-SEED-NUMBER" */
#define FOLDER_SHARDS        256u
#define FOLDER_BATCH         32u /* entries a walk step looks at, at most */

struct folder {
	char path[STORE_URI_MAX];
	int fd;
	uint32_t pid, seed;
	uint64_t temps_count; /* makes temporary names unique in this handle */
};

/* What is known of a stored value. used_s: when it was last used, seconds since the epoch. */
struct folder_entry {
	struct ssv_key key;
	uint64_t bytes;
	int64_t used_s;
};

/* -EINVAL with one line, unless it is absolute and short enough. */
SSV_MUST_CHECK int folder_path_check(const char *path, char *error);

/* Create what is missing (mode 0700) and open. -EINVAL, -EACCES, -EROFS ... with one line. */
SSV_MUST_CHECK int folder_open(const char *path, uint64_t seed, struct folder *folder, char *error);
void folder_close(struct folder *folder);

/* If somebody removed the folder, create and open it again. 0 or -ENOTCONN. */
SSV_MUST_CHECK int folder_heal(struct folder *folder);

/* Open a value for reading. -ENOENT: none (a name that is no regular file, or empty, is none). */
SSV_MUST_CHECK int folder_open_value(const struct folder *folder, const struct ssv_key *key,
				     int *ret_fd, struct folder_entry *ret_entry);
SSV_MUST_CHECK int folder_find(const struct folder *folder, const struct ssv_key *key,
			       struct folder_entry *ret_entry);
/* Note that a value is used now. Best effort. */
void folder_touch(const struct folder *folder, const struct ssv_key *key);
/* 0 whether or not it was there. */
SSV_MUST_CHECK int folder_remove(const struct folder *folder, const struct ssv_key *key);

/* A new empty temporary file. */
SSV_MUST_CHECK int folder_create_temp(struct folder *folder, char name[FOLDER_TEMP_NAME_MAX],
				      int *ret_fd);
void folder_remove_temp(const struct folder *folder, const char *name);
/* Give a complete temporary file its key's name; sync: the shard folder too. */
SSV_MUST_CHECK int folder_publish(const struct folder *folder, const char *name,
				  const struct ssv_key *key, bool sync);

/* A walk over all values, a batch a step, while others add and remove. */
struct folder_walk {
	int fd; /* the shard that is open, or -1 */
	uint32_t shard;
	uint32_t bytes, offset; /* of what getdents64 gave */
	_Alignas(16) char buffer[4096];
};

void folder_walk_init(struct folder_walk *walk);
void folder_walk_fini(struct folder_walk *walk);
/* The next entries; 0 entries with *ret_end false is normal. Returns how many. */
uint32_t folder_walk_step(const struct folder *folder, struct folder_walk *walk,
			  struct folder_entry entries[FOLDER_BATCH], bool *ret_end);
/* The same over temporary files: removes those last written before before_s. */
bool folder_clean_step(const struct folder *folder, struct folder_walk *walk, int64_t before_s);

/* The contract's word for an errno of the file system (positive in, negative out). */
int folder_error(int error_number);

#endif
