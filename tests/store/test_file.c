/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_file.c - a file: store and its folder: what others may find there, remove from it or put
 * into it, full and read-only disks, writers killed at any point.
 */
#include "harness.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char *folder;
static struct store *store;

static struct store *open_at(const char *path, const char *options)
{
	char uri[512];

	(void)snprintf(uri, sizeof(uri), "file:%s%s", path, options);
	return harness_open(uri);
}

static int setup(void **state)
{
	(void)state;
	folder = harness_folder();
	store = open_at(folder, "");
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	store_close(store);
	harness_remove_folder(folder);
	return 0;
}

static void value_path(uint64_t n, char path[256])
{
	struct ssv_key key = harness_key(n);
	size_t i;

	path += sprintf(path, "%s/%02x/", folder, key.bytes[0]);
	for (i = 0; i < sizeof(key.bytes); i++)
		path += sprintf(path, "%02x", key.bytes[i]);
}

static uint32_t count_temps(void)
{
	char path[256];
	const struct dirent *entry;
	uint32_t n = 0;
	DIR *dir;

	(void)snprintf(path, sizeof(path), "%s/tmp", folder);
	dir = opendir(path);
	assert_non_null(dir);
	while ((entry = readdir(dir)))
		n += entry->d_name[0] != '.';
	(void)closedir(dir);
	return n;
}

static void modes_are_private(void **state)
{
	char path[256];
	struct stat st;
	mode_t old = umask(0);

	(void)state;
	assert_int_equal(harness_put(store, 1, 100), 0);
	(void)umask(old);
	value_path(1, path);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	*strrchr(path, '/') = '\0';
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0700);
}

static void folders_are_made_and_checked(void **state)
{
	char path[256], uri[300], error[SSV_ERROR_TEXT_MAX];
	struct store_config config = {.uri = uri, .value_bytes_max = 1, .ops_max = 1};
	struct store *other;

	(void)state;
	(void)snprintf(path, sizeof(path), "%s/a/b/c", folder);
	other = open_at(path, "");
	store_close(other);
	assert_int_equal(chmod(path, 0777), 0);
	(void)snprintf(uri, sizeof(uri), "file:%s", path);
	assert_int_equal(store_open(&config, &other, error), -EACCES);
	assert_non_null(strstr(error, "0777"));
	(void)snprintf(path, sizeof(path), "%s/file", folder);
	(void)close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
	(void)snprintf(uri, sizeof(uri), "file:%s", path);
	assert_int_equal(store_open(&config, &other, error), -EINVAL);
}

static void what_is_no_value_is_a_miss(void **state)
{
	char path[256], target[256];

	(void)state;
	assert_int_equal(harness_put(store, 1, 100), 0);
	value_path(1, target);
	assert_int_equal(harness_put(store, 2, 100), 0);
	value_path(2, path);

	assert_int_equal(unlink(path), 0);
	assert_int_equal(symlink(target, path), 0); /* never followed */
	assert_int_equal(harness_get(store, 2, 100), -ENOENT);
	assert_int_equal(harness_exists(store, 2, NULL), -ENOENT);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(mkfifo(path, 0600), 0); /* never waited for */
	assert_int_equal(harness_get(store, 2, 100), -ENOENT);
	assert_int_equal(harness_exists(store, 2, NULL), -ENOENT);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(mkdir(path, 0700), 0);
	assert_int_equal(harness_get(store, 2, 100), -ENOENT);
	assert_int_equal(rmdir(path), 0);
	(void)close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600)); /* empty */
	assert_int_equal(harness_get(store, 2, 100), -ENOENT);
	assert_int_equal(harness_exists(store, 2, NULL), -ENOENT);
	/* A put heals it. */
	assert_int_equal(harness_put(store, 2, 100), 0);
	assert_int_equal(harness_get(store, 2, 100), 0);
}

static void cut_value_is_an_error_not_a_hang(void **state)
{
	struct store_op op = {.kind = STORE_OP_GET, .key = harness_key(1), .capacity = 8 * MIB};
	struct store_op *pointer = &op, *done = NULL;
	char path[256];

	(void)state;
	assert_int_equal(harness_put(store, 1, 8 * MIB), 0);
	op.data = malloc(8 * MIB);
	op.deadline_ns = clock_now_ns() + HARNESS_PATIENCE;
	assert_int_equal(store->ops->submit(store, &pointer, 1, clock_now_ns()), 1);
	while (op.received == 0)
		assert_int_equal(store->ops->poll(store, &done, 1, clock_now_ns()), 0);
	value_path(1, path);
	assert_int_equal(truncate(path, 100), 0);
	harness_poll(store, 1);
	assert_int_equal(op.status, -EIO);
	free(op.data);
}

static void too_long_value_is_a_lie(void **state)
{
	struct store_config config = {.value_bytes_max = 50, .ops_max = 2};
	struct store_op op = {.kind = STORE_OP_GET, .key = harness_key(1), .capacity = 50};
	struct store *other;
	uint8_t data[50];
	char uri[300];

	(void)state;
	assert_int_equal(harness_put(store, 1, 100), 0);
	(void)snprintf(uri, sizeof(uri), "file:%s", folder);
	config.uri = uri;
	other = harness_open_with(&config);
	op.data = data;
	assert_int_equal(harness_run(other, &op), -EPROTO);
	store_close(other);
}

static void removed_folder_heals(void **state)
{
	struct store *other = open_at(folder, "");
	char *copy = strdup(folder);

	(void)state;
	assert_int_equal(harness_put(store, 1, 5000), 0);
	harness_remove_folder(copy);
	assert_int_equal(harness_get(store, 1, 5000), -ENOENT);
	assert_int_equal(harness_exists(store, 1, NULL), -ENOENT);
	assert_int_equal(harness_delete(store, 1), 0);
	assert_int_equal(harness_put(store, 1, 5000), 0);
	assert_int_equal(harness_get(store, 1, 5000), 0);
	/* The other handle finds the new folder when it puts. */
	assert_int_equal(harness_put(other, 2, 5000), 0);
	assert_int_equal(harness_get(store, 2, 5000), 0);
	store_close(other);
}

/* Polls in virtual time until the store rests; *now_ns is moved on. */
static void poll_to_rest(struct store *s, uint64_t *now_ns)
{
	struct store_op *done;
	int i;

	for (i = 0; i < 100000; i++) {
		assert_int_equal(s->ops->poll(s, &done, 1, *now_ns), 0);
		if (s->ops->next_ns(s) > *now_ns + NS_PER_S)
			return;
		*now_ns = u64_max(*now_ns, s->ops->next_ns(s));
	}
	fail_msg("never rests");
}

static void old_leftovers_are_removed(void **state)
{
	static const char *const names[] = {"tmp/put-1-2-3", "tmp/put-old", "tmp/other", "notes"};
	const struct timespec old[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
	struct store *other;
	uint64_t now_ns = 1;
	char path[256];
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_COUNT(names); i++) {
		(void)snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
		(void)close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
		if (i)
			assert_int_equal(utimensat(AT_FDCWD, path, old, 0), 0);
	}
	other = open_at(folder, "");
	poll_to_rest(other, &now_ns);
	/* The young one may be somebody's put in flight; foreign names are not ours to remove. */
	assert_int_equal(count_temps(), 2);
	/* Eleven minutes later it is old. */
	now_ns += 660 * NS_PER_S;
	poll_to_rest(other, &now_ns);
	assert_int_equal(count_temps(), 1);
	(void)snprintf(path, sizeof(path), "%s/notes", folder);
	assert_int_equal(access(path, F_OK), 0);
	store_close(other);
}

/* ---- writers killed ------------------------------------------------------------------------- */

#define TORTURE_KEYS 24u

static uint64_t torture_bytes(uint64_t n)
{
	return 1 + n * n * 9973;
}

static void write_for_ever(uint64_t seed)
{
	struct store *mine = open_at(folder, "?slice=64K");

	for (;;) {
		uint64_t n = harness_random(&seed) % TORTURE_KEYS;

		if (harness_put(mine, n, torture_bytes(n)))
			_exit(1);
	}
}

static void killed_writer_leaves_whole_values(void **state)
{
	uint64_t random = harness_seed(31);
	uint64_t n, found = 0;
	int round, status;

	(void)state;
	for (round = 0; round < 25; round++) {
		pid_t child = fork();

		assert_true(child >= 0);
		if (child == 0)
			write_for_ever((uint64_t)round);
		(void)usleep((useconds_t)(harness_random(&random) % 25000));
		(void)kill(child, SIGKILL);
		assert_int_equal(waitpid(child, &status, 0), child);
		assert_true(WIFSIGNALED(status));
		for (n = 0; n < TORTURE_KEYS; n++) {
			status = harness_get(store, n, torture_bytes(n));
			assert_true(status == 0 || status == -ENOENT);
			found += status == 0;
		}
	}
	assert_true(found > 0);
}

/* ---- disks that are full or read-only ------------------------------------------------------- */

/* Runs check in a child, where limits and mounts may be changed. Exit status SKIP: not possible. */
static void run_in_child(int (*check)(void))
{
	pid_t child;
	int status;

	(void)fflush(NULL);
	child = fork();
	assert_true(child >= 0);
	if (child == 0)
		_exit(check());
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == SKIP) {
		printf("skipped: mounting is not permitted here\n");
		skip();
	}
	assert_int_equal(WEXITSTATUS(status), 0);
}

static int check_file_limit(void)
{
	const struct rlimit limit = {.rlim_cur = MIB, .rlim_max = MIB};

	(void)signal(SIGXFSZ, SIG_IGN);
	if (setrlimit(RLIMIT_FSIZE, &limit))
		return 1;
	if (harness_put(store, 1, 3 * MIB) != -ENOSPC || count_temps() != 0)
		return 2;
	if (harness_get(store, 1, 3 * MIB) != -ENOENT)
		return 3;
	return harness_put(store, 2, 1000) == 0 && harness_get(store, 2, 1000) == 0 ? 0 : 4;
}

static void too_large_file_is_no_space(void **state)
{
	(void)state;
	run_in_child(check_file_limit);
}

/* A mount namespace of the child's own with a small disk at a sub-folder. */
static int mount_small_disk(char path[256])
{
	(void)snprintf(path, 256, "%s/disk", folder);
	if (mkdir(path, 0700) || unshare(CLONE_NEWNS) ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("tmpfs", path, "tmpfs", 0, "size=3m,mode=0700"))
		return SKIP;
	return 0;
}

static int check_full_disk(void)
{
	char path[256];
	struct store *mine;

	if (mount_small_disk(path))
		return SKIP;
	mine = open_at(path, "");
	if (harness_put(mine, 1, 2 * MIB))
		return 1;
	if (harness_put(mine, 2, 2 * MIB) != -ENOSPC || harness_get(mine, 2, 2 * MIB) != -ENOENT)
		return 2;
	/* The oldest makes room, although the limit is far away. */
	if (harness_put(mine, 3, 2 * MIB) || harness_get(mine, 3, 2 * MIB))
		return 3;
	if (harness_get(mine, 1, 2 * MIB) != -ENOENT)
		return 4;
	/* Without a limit nothing is evicted. */
	store_close(mine);
	mine = open_at(path, "?bytes=0");
	if (harness_put(mine, 4, 2 * MIB) != -ENOSPC || harness_put(mine, 4, 2 * MIB) != -ENOSPC)
		return 5;
	return harness_get(mine, 3, 2 * MIB) ? 6 : 0;
}

static void full_disk_evicts_within_a_limit(void **state)
{
	(void)state;
	run_in_child(check_full_disk);
}

static int check_read_only(void)
{
	char path[256];
	struct store *mine;

	if (mount_small_disk(path))
		return SKIP;
	mine = open_at(path, "?bytes=1M");
	if (harness_put(mine, 1, MIB / 2))
		return 1;
	if (mount(NULL, path, NULL, MS_REMOUNT | MS_RDONLY, "size=3m,mode=0700"))
		return SKIP;
	if (harness_put(mine, 2, 1000) != -EROFS || harness_stats(mine).connected)
		return 2;
	if (harness_get(mine, 1, MIB / 2) || harness_delete(mine, 1) != -EROFS)
		return 3;
	/* No room, and nothing can be evicted: an answer, not a wait until the deadline. */
	if (harness_put(mine, 3, 900 * KIB) != -EROFS)
		return 4;
	store_close(mine);
	mine = open_at(path, "");
	return harness_get(mine, 1, MIB / 2) ? 5 : 0;
}

static void read_only_folder_still_reads(void **state)
{
	(void)state;
	run_in_child(check_read_only);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(modes_are_private, setup, teardown),
	    cmocka_unit_test_setup_teardown(folders_are_made_and_checked, setup, teardown),
	    cmocka_unit_test_setup_teardown(what_is_no_value_is_a_miss, setup, teardown),
	    cmocka_unit_test_setup_teardown(cut_value_is_an_error_not_a_hang, setup, teardown),
	    cmocka_unit_test_setup_teardown(too_long_value_is_a_lie, setup, teardown),
	    cmocka_unit_test_setup_teardown(removed_folder_heals, setup, teardown),
	    cmocka_unit_test_setup_teardown(old_leftovers_are_removed, setup, teardown),
	    cmocka_unit_test_setup_teardown(killed_writer_leaves_whole_values, setup, teardown),
	    cmocka_unit_test_setup_teardown(too_large_file_is_no_space, setup, teardown),
	    cmocka_unit_test_setup_teardown(full_disk_evicts_within_a_limit, setup, teardown),
	    cmocka_unit_test_setup_teardown(read_only_folder_still_reads, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
