/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_evict.c - the byte limit of a file: store: who goes, who stays, alone and with others.
 *
 * The time of last use is set with utimensat(2), so nothing here waits.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "store/evict.h"

#define LIMIT       (16 * MIB)
#define VALUE_BYTES (512 * KIB)

static char *folder;

static struct store *open_limited(const char *options)
{
	char uri[512];

	(void)snprintf(uri, sizeof(uri), "file:%s?bytes=16M%s", folder, options);
	return harness_open(uri);
}

static int setup(void **state)
{
	(void)state;
	folder = harness_folder();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
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

/* Without using it. */
static bool is_there(uint64_t n)
{
	char path[256];

	value_path(n, path);
	return !access(path, F_OK);
}

/* Value n was last used so many seconds ago. */
static void set_age(uint64_t n, time_t age_s)
{
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = time(NULL) - age_s}};
	char path[256];

	value_path(n, path);
	assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static uint64_t sum;

static int add_file(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)path;
	(void)ftw;
	if (type == FTW_F)
		sum += (uint64_t)st->st_size;
	return 0;
}

static uint64_t folder_bytes(void)
{
	sum = 0;
	(void)nftw(folder, add_file, 16, FTW_PHYS);
	return sum;
}

static void limit_is_kept_at_every_put(void **state)
{
	struct store *store = open_limited("");
	uint64_t n;

	(void)state;
	for (n = 0; n < 100; n++) {
		assert_int_equal(harness_put(store, n, VALUE_BYTES), 0);
		assert_true(folder_bytes() <= LIMIT);
		assert_int_equal(harness_get(store, n, VALUE_BYTES), 0);
	}
	assert_true(harness_stats(store).evictions >= 100 - LIMIT / VALUE_BYTES);
	assert_true(folder_bytes() > LIMIT * 3 / 4);
	assert_int_equal(harness_stats(store).bytes_limit, LIMIT);
	assert_true(harness_stats(store).bytes_used <= LIMIT);
	store_close(store);
}

static void least_recently_used_goes_first(void **state)
{
	struct store *store = open_limited("");
	uint64_t n;

	(void)state;
	for (n = 0; n < 28; n++) {
		assert_int_equal(harness_put(store, n, VALUE_BYTES), 0);
		set_age(n, 10000 - 100 * (time_t)n); /* 0 is the oldest */
	}
	store_close(store);
	store = open_limited("");
	/* A get and a look-up are uses. */
	assert_int_equal(harness_get(store, 0, VALUE_BYTES), 0);
	assert_int_equal(harness_exists(store, 3, NULL), 0);
	for (n = 100; n < 110; n++)
		assert_int_equal(harness_put(store, n, VALUE_BYTES), 0);
	assert_int_equal(harness_exists(store, 0, NULL), 0);
	assert_int_equal(harness_exists(store, 3, NULL), 0);
	assert_int_equal(harness_exists(store, 1, NULL), -ENOENT);
	assert_int_equal(harness_exists(store, 2, NULL), -ENOENT);
	for (n = 20; n < 28; n++)
		assert_int_equal(harness_exists(store, n, NULL), 0);
	store_close(store);
}

static void victim_that_is_used_in_time_stays(void **state)
{
	struct store *store = open_limited("");
	static struct evict evict;
	struct folder opened;
	char error[SSV_ERROR_TEXT_MAX];
	uint64_t n;
	int i;

	(void)state;
	for (n = 0; n < 20; n++) {
		assert_int_equal(harness_put(store, n, VALUE_BYTES), 0);
		set_age(n, 10000 - 100 * (time_t)n);
	}
	store_close(store);
	assert_int_equal(folder_open(folder, 1, &opened, error), 0);
	assert_int_equal(evict_init(&evict, &opened, 9 * MIB), 0);
	for (i = 0; i < 1000 && evict.victims_next == 0; i++)
		evict_step(&evict, 1, time(NULL));
	assert_false(is_there(0));
	set_age(1, 0); /* chosen already */
	for (i = 0; i < 1000 && evict_used(&evict) > 8 * MIB && evict_pending(&evict, 1); i++)
		evict_step(&evict, 1, time(NULL));
	assert_true(is_there(1));
	assert_false(is_there(2));
	assert_true(folder_bytes() <= 9 * MIB);
	evict_fini(&evict);
	folder_close(&opened);
}

static void replacing_is_not_counted_twice(void **state)
{
	struct store *store = open_limited("&slice=64K");
	static uint8_t data[VALUE_BYTES];
	struct store_op put = {.kind = STORE_OP_PUT, .key = harness_key(3)};
	struct store_op *pointer = &put;
	int i;

	put.value_bytes = VALUE_BYTES;
	put.deadline_ns = clock_now_ns() + HARNESS_PATIENCE;

	(void)state;
	assert_int_equal(harness_put(store, 1, VALUE_BYTES), 0);
	for (i = 0; i < 100; i++)
		assert_int_equal(harness_put(store, 2, VALUE_BYTES), 0);
	assert_int_equal(harness_get(store, 1, VALUE_BYTES), 0);
	assert_int_equal(harness_stats(store).evictions, 0);
	assert_int_equal(harness_stats(store).bytes_used, 2 * VALUE_BYTES);
	assert_int_equal(harness_delete(store, 2), 0);
	assert_int_equal(harness_stats(store).bytes_used, VALUE_BYTES);
	/* Nor is a put that was given up. */
	put.data = data;
	assert_int_equal(store->ops->submit(store, &pointer, 1, clock_now_ns()), 1);
	assert_int_equal(store->ops->poll(store, &pointer, 1, clock_now_ns()), 0);
	put.deadline_ns = 0;
	harness_poll(store, 1);
	assert_int_equal(put.status, -ETIMEDOUT);
	assert_int_equal(harness_stats(store).bytes_used, VALUE_BYTES);
	store_close(store);
}

static void too_large_for_the_limit_is_refused(void **state)
{
	struct store *store = open_limited("");

	(void)state;
	assert_int_equal(harness_put(store, 1, VALUE_BYTES), 0);
	assert_int_equal(harness_put(store, 2, LIMIT + 1), -ENOSPC);
	assert_int_equal(harness_get(store, 1, VALUE_BYTES), 0);
	assert_int_equal(harness_put(store, 2, LIMIT), 0); /* everything else has to go */
	assert_int_equal(harness_get(store, 1, VALUE_BYTES), -ENOENT);
	store_close(store);
}

static void smaller_limit_takes_effect_at_open(void **state)
{
	char uri[300];
	struct store *store;
	struct store_op *done;
	uint64_t n, now_ns = 1;
	int i;

	(void)state;
	store = open_limited("");
	for (n = 0; n < 30; n++)
		assert_int_equal(harness_put(store, n, VALUE_BYTES), 0);
	store_close(store);
	(void)snprintf(uri, sizeof(uri), "file:%s?bytes=4M", folder);
	store = harness_open(uri);
	for (i = 0; i < 10000 && store->ops->next_ns(store) < now_ns + NS_PER_S; i++) {
		(void)store->ops->poll(store, &done, 1, now_ns);
		now_ns += NS_PER_MS;
	}
	assert_true(folder_bytes() <= 4 * MIB);
	assert_true(folder_bytes() >= 3 * MIB);
	store_close(store);
}

static void gets_go_on_while_others_evict(void **state)
{
	struct store *store = open_limited("&slice=64K");
	static struct store_op ops[120];
	static uint8_t buffers[120][VALUE_BYTES];
	uint32_t i;

	(void)state;
	memset(ops, 0, sizeof(ops));
	for (i = 0; i < ARRAY_COUNT(ops); i++) {
		ops[i].kind = i % 3 ? STORE_OP_PUT : STORE_OP_GET;
		ops[i].key = harness_key(i % 3 ? i : (i + 2) / 3);
		ops[i].data = buffers[i];
		ops[i].capacity = ops[i].value_bytes = VALUE_BYTES;
		if (i % 3)
			harness_fill(buffers[i], VALUE_BYTES, i);
	}
	harness_run_all(store, ops, ARRAY_COUNT(ops));
	for (i = 0; i < ARRAY_COUNT(ops); i++) {
		if (i % 3)
			assert_int_equal(ops[i].status, 0);
		else
			assert_true(ops[i].status == -ENOENT ||
				    (ops[i].status == 0 &&
				     harness_is_filled(buffers[i], VALUE_BYTES, (i + 2) / 3)));
	}
	assert_true(folder_bytes() <= LIMIT);
	store_close(store);
}

#define WRITERS 3

/* Several processes put into one folder: together they stay near the limit, and what they read is
 * whole. */
static void several_processes_share_a_limit(void **state)
{
	pid_t children[WRITERS];
	struct store_op *done;
	struct store *store;
	uint64_t now_ns = 1;
	int i, status;

	(void)state;
	(void)fflush(NULL);
	for (i = 0; i < WRITERS; i++) {
		children[i] = fork();
		assert_true(children[i] >= 0);
		if (children[i] == 0) {
			uint64_t n;

			store = open_limited("");
			for (n = 0; n < 80; n++) {
				uint64_t id = 1000 * (uint64_t)i + n;
				int got;

				if (harness_put(store, id, VALUE_BYTES / 4))
					_exit(1);
				got = harness_get(store, n, VALUE_BYTES / 4);
				if (got && got != -ENOENT)
					_exit(2);
			}
			_exit(0);
		}
	}
	for (i = 0; i < WRITERS; i++) {
		assert_int_equal(waitpid(children[i], &status, 0), children[i]);
		assert_true(WIFEXITED(status));
		assert_int_equal(WEXITSTATUS(status), 0);
	}
	/* What the others put during a sweep is seen by the next one: approximate while they all
	 * write, and right once there is quiet. */
	assert_true(folder_bytes() <= LIMIT + LIMIT / 2);
	store = open_limited("");
	for (i = 0; i < 10000 && store->ops->next_ns(store) < now_ns + NS_PER_S; i++) {
		(void)store->ops->poll(store, &done, 1, now_ns);
		now_ns += NS_PER_MS;
	}
	assert_true(folder_bytes() <= LIMIT);
	store_close(store);
	assert_true(folder_bytes() >= LIMIT * 3 / 4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(limit_is_kept_at_every_put, setup, teardown),
	    cmocka_unit_test_setup_teardown(least_recently_used_goes_first, setup, teardown),
	    cmocka_unit_test_setup_teardown(victim_that_is_used_in_time_stays, setup, teardown),
	    cmocka_unit_test_setup_teardown(replacing_is_not_counted_twice, setup, teardown),
	    cmocka_unit_test_setup_teardown(too_large_for_the_limit_is_refused, setup, teardown),
	    cmocka_unit_test_setup_teardown(smaller_limit_takes_effect_at_open, setup, teardown),
	    cmocka_unit_test_setup_teardown(gets_go_on_while_others_evict, setup, teardown),
	    cmocka_unit_test_setup_teardown(several_processes_share_a_limit, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
