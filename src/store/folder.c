/* SPDX-License-Identifier: Apache-2.0 */
/*
 * folder.c - system calls on the folder of a file: store, all relative to its descriptor.
 *
 * A shard folder is created when the first value needs it, so that a folder that somebody emptied
 * or removed heals itself. Directories are read with getdents64(2) into a fixed buffer: opendir(3)
 * would allocate on the data path.
 */
#include "store/folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/tally.h"
#include "store/uri.h"

#define VALUE_NAME_MAX 72 /* "ab/" + 64 hex digits */
#define KEY_HEX        64
#define SHARDS_A_STEP  16u

static const char hex[] = "0123456789abcdef";

int folder_error(int error_number)
{
	switch (error_number) {
	case ENOENT:
		return -ENOENT;
	case ENOSPC:
	case EDQUOT:
	case EFBIG:
		return -ENOSPC;
	case EACCES:
	case EPERM:
		return -EACCES;
	case EROFS:
		return -EROFS;
	default:
		return -EIO;
	}
}

static void value_name(const struct ssv_key *key, char name[VALUE_NAME_MAX])
{
	char *to = name;
	size_t i;

	*to++ = hex[key->bytes[0] >> 4];
	*to++ = hex[key->bytes[0] & 15];
	*to++ = '/';
	for (i = 0; i < sizeof(key->bytes); i++) {
		*to++ = hex[key->bytes[i] >> 4];
		*to++ = hex[key->bytes[i] & 15];
	}
	*to = '\0';
}

static bool read_name(const char *name, uint32_t shard, struct ssv_key *key)
{
	size_t i;

	if (strlen(name) != KEY_HEX)
		return false;
	for (i = 0; i < sizeof(key->bytes); i++) {
		const char *high = memchr(hex, name[2 * i], 16);
		const char *low = memchr(hex, name[2 * i + 1], 16);

		if (!high || !low)
			return false;
		key->bytes[i] = (uint8_t)((high - hex) * 16 + (low - hex));
	}
	return key->bytes[0] == shard;
}

/* ---- opening -------------------------------------------------------------------------------- */

/* mkdir -p, mode 0700. Returns 0 or -errno. */
static int make_folders(const char *path)
{
	char part[STORE_URI_MAX];
	size_t bytes = strlen(path);
	size_t i;

	for (i = 1; i <= bytes; i++) {
		if (path[i] != '/' && path[i] != '\0')
			continue;
		memcpy(part, path, i);
		part[i] = '\0';
		/* An existing parent may refuse mkdir with EROFS or EACCES too: open() decides. */
		if (mkdir(part, 0700) && errno != EEXIST && i == bytes)
			return -errno;
	}
	return 0;
}

static int open_root(const char *path, int *ret_fd)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int err;

	if (fd < 0 && errno == ENOENT) {
		err = make_folders(path);
		if (err)
			return err;
		fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
	if (fd < 0)
		return -errno;
	if (mkdirat(fd, "tmp", 0700) && errno != EEXIST) {
		err = -errno;
		(void)close(fd);
		return err;
	}
	*ret_fd = fd;
	return 0;
}

int folder_path_check(const char *path, char *error)
{
	if (path[0] != '/' || strlen(path) >= sizeof(((struct folder *)NULL)->path))
		return uri_error(error, -EINVAL,
				 "store file: path \"%.64s\": expected an absolute path, such as "
				 "file:/var/cache/kv",
				 path);
	return 0;
}

int folder_open(const char *path, uint64_t seed, struct folder *folder, char *error)
{
	struct stat st;
	int err;

	memset(folder, 0, sizeof(*folder));
	folder->fd = -1;
	err = folder_path_check(path, error);
	if (err)
		return err;
	(void)snprintf(folder->path, sizeof(folder->path), "%s", path);
	folder->pid = (uint32_t)getpid();
	/* Handles of one process may have been given the same seed. */
	folder->seed = (uint32_t)(seed ^ (seed >> 32) ^ ((uintptr_t)folder >> 4));
	err = open_root(path, &folder->fd);
	if (err)
		return uri_error(error, err == -ENOTDIR ? -EINVAL : folder_error(-err),
				 "store file: path \"%.96s\": %s; expected a folder that can be "
				 "written",
				 path, strerror(-err));
	if (fstat(folder->fd, &st) || (st.st_mode & S_IWOTH)) {
		folder_close(folder);
		return uri_error(error, -EACCES,
				 "store file: path \"%.96s\": mode %04o lets everybody write; "
				 "expected 0700",
				 path, (unsigned int)(st.st_mode & 07777));
	}
	return 0;
}

void folder_close(struct folder *folder)
{
	if (folder->fd >= 0)
		(void)close(folder->fd);
	folder->fd = -1;
}

int folder_heal(struct folder *folder)
{
	struct stat st;
	int fd = -1;

	tally_add(TALLY_CALL_FILE, 1);
	if (!fstat(folder->fd, &st) && st.st_nlink > 0)
		return 0;
	if (open_root(folder->path, &fd))
		return -ENOTCONN;
	(void)close(folder->fd);
	folder->fd = fd;
	return 0;
}

/* ---- values --------------------------------------------------------------------------------- */

static int read_entry(const struct stat *st, const struct ssv_key *key,
		      struct folder_entry *ret_entry)
{
	if (!S_ISREG(st->st_mode) || st->st_size <= 0)
		return -ENOENT;
	ret_entry->key = *key;
	ret_entry->bytes = (uint64_t)st->st_size;
	ret_entry->used_s = (int64_t)st->st_mtim.tv_sec;
	return 0;
}

int folder_open_value(const struct folder *folder, const struct ssv_key *key, int *ret_fd,
		      struct folder_entry *ret_entry)
{
	char name[VALUE_NAME_MAX];
	struct stat st;
	int fd, err;

	value_name(key, name);
	tally_add(TALLY_CALL_FILE, 2);
	/* O_NONBLOCK: a FIFO of that name must not hold the worker. */
	fd = openat(folder->fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0) /* ELOOP: a link; ENOTDIR, ENXIO: no value either */
		return errno == ELOOP || errno == ENOTDIR || errno == ENXIO ? -ENOENT
									    : folder_error(errno);
	if (fstat(fd, &st)) {
		err = folder_error(errno);
		(void)close(fd);
		return err;
	}
	err = read_entry(&st, key, ret_entry);
	if (err) {
		(void)close(fd);
		return err;
	}
	*ret_fd = fd;
	return 0;
}

int folder_find(const struct folder *folder, const struct ssv_key *key,
		struct folder_entry *ret_entry)
{
	char name[VALUE_NAME_MAX];
	struct stat st;

	value_name(key, name);
	tally_add(TALLY_CALL_FILE, 1);
	if (fstatat(folder->fd, name, &st, AT_SYMLINK_NOFOLLOW))
		return errno == ENOTDIR ? -ENOENT : folder_error(errno);
	return read_entry(&st, key, ret_entry);
}

void folder_touch(const struct folder *folder, const struct ssv_key *key)
{
	/* The modification time is the time of last use: values never change, and unlike the
	 * access time it is kept on noatime mounts and left alone by back-ups. */
	const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_NOW}};
	char name[VALUE_NAME_MAX];

	value_name(key, name);
	tally_add(TALLY_CALL_FILE, 1);
	(void)utimensat(folder->fd, name, times, AT_SYMLINK_NOFOLLOW);
}

int folder_remove(const struct folder *folder, const struct ssv_key *key)
{
	char name[VALUE_NAME_MAX];

	value_name(key, name);
	tally_add(TALLY_CALL_FILE, 1);
	if (unlinkat(folder->fd, name, 0) && errno != ENOENT && errno != ENOTDIR)
		return folder_error(errno);
	return 0;
}

/* ---- writing -------------------------------------------------------------------------------- */

int folder_create_temp(struct folder *folder, char name[FOLDER_TEMP_NAME_MAX], int *ret_fd)
{
	int attempt, fd;

	/* Another container may have the same pid and seed: O_EXCL tells, the next number helps. */
	for (attempt = 0; attempt < 8; attempt++) {
		(void)snprintf(name, FOLDER_TEMP_NAME_MAX, "tmp/put-%u-%08x-%llu", folder->pid,
			       folder->seed, (unsigned long long)folder->temps_count++);
		tally_add(TALLY_CALL_FILE, 1);
		fd = openat(folder->fd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
			    0600);
		if (fd >= 0) {
			*ret_fd = fd;
			return 0;
		}
		if (errno == EEXIST)
			continue;
		if (errno != ENOENT)
			return folder_error(errno);
		if (mkdirat(folder->fd, "tmp", 0700) && errno == ENOENT && folder_heal(folder))
			return -ENOTCONN;
	}
	return -EIO;
}

void folder_remove_temp(const struct folder *folder, const char *name)
{
	(void)unlinkat(folder->fd, name, 0);
}

static int sync_shard(const struct folder *folder, const char *shard)
{
	int fd = openat(folder->fd, shard, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	int err = 0;

	if (fd < 0)
		return folder_error(errno);
	if (fsync(fd))
		err = folder_error(errno);
	(void)close(fd);
	return err;
}

int folder_publish(const struct folder *folder, const char *name, const struct ssv_key *key,
		   bool sync)
{
	char to[VALUE_NAME_MAX], shard[3];

	value_name(key, to);
	memcpy(shard, to, 2);
	shard[2] = '\0';
	tally_add(TALLY_CALL_FILE, sync ? 4 : 1);
	if (renameat(folder->fd, name, folder->fd, to)) {
		if (errno != ENOENT)
			return folder_error(errno);
		if (mkdirat(folder->fd, shard, 0700) && errno != EEXIST)
			return errno == ENOENT ? -ENOTCONN : folder_error(errno);
		if (sync && fsync(folder->fd))
			return folder_error(errno);
		if (renameat(folder->fd, name, folder->fd, to))
			return errno == ENOENT ? -ENOTCONN : folder_error(errno);
	}
	return sync ? sync_shard(folder, shard) : 0;
}

/* ---- walking -------------------------------------------------------------------------------- */

void folder_walk_init(struct folder_walk *walk)
{
	walk->fd = -1;
	walk->shard = 0;
	walk->bytes = 0;
	walk->offset = 0;
}

void folder_walk_fini(struct folder_walk *walk)
{
	if (walk->fd >= 0)
		(void)close(walk->fd);
	walk->fd = -1;
}

/* The next directory entry's name; the buffer is not used up. */
static const char *next_name(struct folder_walk *walk)
{
	const struct dirent64 *entry;

	entry = (const struct dirent64 *)(const void *)(walk->buffer + walk->offset);
	walk->offset += entry->d_reclen;
	return entry->d_name;
}

/* Fill the buffer from the open folder; false: it is at its end, and closed. */
static bool refill(struct folder_walk *walk)
{
	ssize_t n = getdents64(walk->fd, walk->buffer, sizeof(walk->buffer));

	walk->offset = 0;
	walk->bytes = n > 0 ? (uint32_t)n : 0;
	if (n > 0)
		return true;
	folder_walk_fini(walk);
	return false;
}

static int open_folder(const struct folder *folder, const char *name)
{
	return openat(folder->fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* Open the next shard that is there, looking at SHARDS_A_STEP at most. */
static bool open_shard(const struct folder *folder, struct folder_walk *walk)
{
	uint32_t looked;

	for (looked = 0; looked < SHARDS_A_STEP && walk->shard < FOLDER_SHARDS; looked++) {
		char shard[3] = {hex[walk->shard >> 4], hex[walk->shard & 15], '\0'};

		walk->fd = open_folder(folder, shard);
		if (walk->fd >= 0)
			return true;
		walk->shard++;
	}
	return false;
}

uint32_t folder_walk_step(const struct folder *folder, struct folder_walk *walk,
			  struct folder_entry entries[FOLDER_BATCH], bool *ret_end)
{
	uint32_t looked, n = 0;

	*ret_end = walk->fd < 0 && walk->shard >= FOLDER_SHARDS;
	if (*ret_end || (walk->fd < 0 && !open_shard(folder, walk)))
		return 0;
	for (looked = 0; looked < FOLDER_BATCH; looked++) {
		const char *name;
		struct ssv_key key;
		struct stat st;

		if (walk->offset >= walk->bytes && !refill(walk)) {
			walk->shard++;
			break;
		}
		name = next_name(walk);
		if (!read_name(name, walk->shard, &key) ||
		    fstatat(walk->fd, name, &st, AT_SYMLINK_NOFOLLOW))
			continue;
		if (!read_entry(&st, &key, &entries[n]))
			n++;
	}
	return n;
}

bool folder_clean_step(const struct folder *folder, struct folder_walk *walk, int64_t before_s)
{
	uint32_t looked;

	if (walk->fd < 0)
		walk->fd = open_folder(folder, "tmp");
	if (walk->fd < 0)
		return true;
	for (looked = 0; looked < FOLDER_BATCH; looked++) {
		const char *name;
		struct stat st;

		if (walk->offset >= walk->bytes && !refill(walk))
			return true;
		name = next_name(walk);
		if (strncmp(name, "put-", 4) || fstatat(walk->fd, name, &st, AT_SYMLINK_NOFOLLOW))
			continue;
		if (S_ISREG(st.st_mode) && st.st_mtim.tv_sec < before_s)
			(void)unlinkat(walk->fd, name, 0);
	}
	return false;
}
