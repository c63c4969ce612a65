/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_no_malloc.c - after warm-up, a thousand stores and fetches through a file: store allocate
 * and free nothing in control and worker steps, and the process does not grow.
 *
 * This program's own malloc family counts while `counting` is set, and hands on to the C library.
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "inflate/inflate.h"
#include "rig.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HAS_OWN_MALLOC 0 /* the sanitizer's is in its place */
#else
#define HAS_OWN_MALLOC 1
#endif

#define ROUNDS 1000u

static int counting;
static uint64_t calls;

#if HAS_OWN_MALLOC
extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t bytes);
extern void *__libc_realloc(void *old, size_t bytes);
extern void *__libc_memalign(size_t alignment, size_t bytes);
extern void __libc_free(void *memory);
void *malloc(size_t bytes);
void *calloc(size_t count, size_t bytes);
void *realloc(void *old, size_t bytes);
void *aligned_alloc(size_t alignment, size_t bytes);
int posix_memalign(void **ret, size_t alignment, size_t bytes);
void free(void *memory);

void *malloc(size_t bytes)
{
	calls += (uint64_t)counting;
	return __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes)
{
	calls += (uint64_t)counting;
	return __libc_calloc(count, bytes);
}

void *realloc(void *old, size_t bytes)
{
	calls += (uint64_t)counting;
	return __libc_realloc(old, bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes)
{
	calls += (uint64_t)counting;
	return __libc_memalign(alignment, bytes);
}

int posix_memalign(void **ret, size_t alignment, size_t bytes)
{
	calls += (uint64_t)counting;
	*ret = __libc_memalign(alignment, bytes);
	return *ret ? 0 : ENOMEM;
}

void free(void *memory)
{
	calls += (uint64_t)(counting && memory);
	__libc_free(memory);
}
#endif

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

static uint64_t resident_bytes(void)
{
	unsigned long long size = 0, resident = 0;
	FILE *file = fopen("/proc/self/statm", "r");

	assert_non_null(file);
	assert_int_equal(fscanf(file, "%llu %llu", &size, &resident), 2);
	fclose(file);
	return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Store two chunks under new keys, flush, look them up and fetch them: counted. */
static void round_trip(struct rig *rig, const struct test_region *region, uint32_t round)
{
	const uint32_t blocks[8] = {0, 5, 2, 7, 4, 1, 6, 3};
	struct ssv_key keys[2] = {chunk_key(2 * round), chunk_key(2 * round + 1)};

	counting = 1;
	assert_int_equal(rig_store(rig, region, keys, 2, blocks, 0)->tokens, 512);
	rig_flush(rig, region->session);
	assert_int_equal(rig_lookup(rig, region->session, keys, 2)->tokens, 512);
	assert_int_equal(rig_fetch(rig, region, keys, 2, blocks, 8, 0, 0)->tokens, 512);
	counting = 0;
}

static void check_rounds(struct plane_config *config, uint32_t rounds)
{
	static const struct test_shape shape = {SSV_DTYPE_BF16, 1, 2, 16, 64, 8};
	const uint32_t blocks[8] = {0, 5, 2, 7, 4, 1, 6, 3};
	char folder[] = "/tmp/shadowserve-no-malloc-XXXXXX", uri[128];
	struct test_region region;
	uint64_t before, after;
	struct rig rig;

	assert_non_null(mkdtemp(folder));
	snprintf(uri, sizeof(uri), "file:%s", folder);
	config->store_uri = uri;
	rig_create(&rig, config);
	region_create(&rig, &region, PACKING_NHD, &shape, 0);
	region_fill(&region, 0, 0, blocks, 4);
	region_fill(&region, 1, 0, blocks + 4, 4);
	for (uint32_t i = 0; i < 20; i++)
		round_trip(&rig, &region, i);
	calls = 0;
	before = resident_bytes();
	for (uint32_t i = 20; i < 20 + rounds; i++)
		round_trip(&rig, &region, i);
	after = resident_bytes();
	print_message("%llu allocations; resident %llu KiB before, %llu KiB after\n",
		      (unsigned long long)calls, (unsigned long long)before / 1024,
		      (unsigned long long)after / 1024);
	if (HAS_OWN_MALLOC) {
		assert_int_equal(calls, 0);
		assert_true(after <= before + before / 20);
	}
	if (config->inflate)
		assert_true(rig_stat(&rig, "counters.inflates") >= 2.0 * rounds);
	region_destroy(&region);
	rig_destroy(&rig);
	nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static void thousand_stores_and_fetches_allocate_nothing(void **state)
{
	struct plane_config config = rig_config("");

	(void)state;
	check_rounds(&config, ROUNDS);
}

static void engines_and_stages_allocate_nothing(void **state)
{
	static const char *const engines[] = {"cpu", "dpdk:compress_isal", "dpdk:compress_zlib"};

	(void)state;
	for (uint32_t i = 0; i < 2 * ARRAY_COUNT(engines); i++) {
		const struct inflate_config probe = {
		    .name = engines[i / 2], .depth = 1, .handles = 1};
		struct plane_config config = rig_config("");
		char error[SSV_ERROR_TEXT_MAX] = "";
		struct inflate *inflate;

		if (inflate_open(&probe, &inflate, error)) {
			print_message("without %s: %s\n", engines[i / 2], error);
			continue;
		}
		inflate_close(inflate);
		config.codec = SSV_CODEC_DEFLATE;
		config.inflate = engines[i / 2];
		config.pipeline = i % 2 ? PLANE_STAGES : PLANE_ONE_PASS;
		config.arena_bytes += 16 * MIB;
		for (uint32_t k = 0; k < PLANE_STATIONS; k++)
			config.stations[k] = 1;
		check_rounds(&config, ROUNDS / 10);
	}
}

/* The counter itself must be able to fail. */
static void counter_sees_an_allocation(void **state)
{
	void *volatile memory;

	(void)state;
	calls = 0;
	counting = 1;
	memory = malloc(10);
	free(memory);
	counting = 0;
	if (HAS_OWN_MALLOC)
		assert_int_equal(calls, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(counter_sees_an_allocation),
	    cmocka_unit_test(thousand_stores_and_fetches_allocate_nothing),
	    cmocka_unit_test(engines_and_stages_allocate_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
