/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_prefault.c - pages that exist become mapped, those that come later too, none is allocated,
 * and it ends at any moment.
 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "deliver/prefault.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#define PAGE    4096u
#define BYTES   (9ull * MIB)
#define FIRST   (5ull * MIB) /* no multiple of a step */
#define LIMIT_S 30

static uint8_t *map_shared(int *ret_fd)
{
	int fd = memfd_create("prefault", MFD_CLOEXEC);
	uint8_t *map;

	assert_true(fd >= 0 && ftruncate(fd, BYTES) == 0);
	map = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(map != MAP_FAILED);
	*ret_fd = fd;
	return map;
}

/* As another process does it: written, not through the mapping. */
static void allocate(int fd, uint64_t from, uint64_t to)
{
	static const uint8_t zeros[PAGE];

	for (; from < to; from += PAGE)
		assert_int_equal(pwrite(fd, zeros, PAGE, (off_t)from), PAGE);
}

/* Pages of this process's mapping that are in its page table. */
static uint64_t mapped(const uint8_t *map)
{
	static uint64_t entries[BYTES / PAGE];
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t count = 0;

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, entries, sizeof(entries), (off_t)((uintptr_t)map / PAGE * 8)),
			 sizeof(entries));
	close(fd);
	for (uint32_t i = 0; i < BYTES / PAGE; i++)
		count += entries[i] >> 63;
	return count * PAGE;
}

static uint64_t allocated(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

/* Asked of the system, not of our code: an emulator may take the advice and do nothing. */
static int system_populates(void)
{
	int fd, populates;
	uint8_t *map = map_shared(&fd);

	allocate(fd, 0, PAGE);
	populates = !madvise(map, PAGE, MADV_POPULATE_WRITE) && mapped(map) == PAGE;
	munmap(map, BYTES);
	close(fd);
	return populates;
}

static void wait_mapped(const uint8_t *map, uint64_t bytes)
{
	const struct timespec pause = {.tv_nsec = 2000000};

	for (uint32_t i = 0; i < LIMIT_S * 500 && mapped(map) != bytes; i++)
		nanosleep(&pause, NULL);
	assert_int_equal(mapped(map), bytes);
}

static void what_exists_is_mapped_and_nothing_is_allocated(void **state)
{
	struct prefault *prefault;
	uint8_t *map;
	int fd;

	(void)state;
	if (!system_populates()) {
		print_message("skip: MADV_POPULATE_WRITE does nothing on this system\n");
		skip();
	}
	map = map_shared(&fd);
	allocate(fd, 0, FIRST);
	prefault = prefault_begin(map, BYTES, fd);
	assert_non_null(prefault);
	wait_mapped(map, FIRST);
	assert_int_equal(allocated(fd), FIRST);
	allocate(fd, FIRST, BYTES);
	wait_mapped(map, BYTES);
	prefault_end(prefault);
	munmap(map, BYTES);
	close(fd);
}

static void it_ends_at_any_moment(void **state)
{
	const struct timespec pause = {.tv_nsec = 500000};

	(void)state;
	for (uint32_t i = 0; i < 20; i++) {
		struct prefault *prefault;
		uint8_t *map;
		int fd;

		map = map_shared(&fd);
		allocate(fd, 0, i % 2 ? BYTES : PAGE);
		prefault = prefault_begin(map, BYTES, fd);
		close(fd); /* it holds one of its own */
		assert_non_null(prefault);
		for (uint32_t k = 0; k < i; k++)
			nanosleep(&pause, NULL);
		prefault_end(prefault);
		munmap(map, BYTES);
	}
	prefault_end(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(what_exists_is_mapped_and_nothing_is_allocated),
	    cmocka_unit_test(it_ends_at_any_moment),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
