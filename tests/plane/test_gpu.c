/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_gpu.c - chunks into and out of GPU memory (a stand-in driver with delays): bit-exact between
 * host and GPU regions, with tensors joined or not, by every back end; a GPU that is lost ends its
 * requests with -EIO and nothing else.
 */
#include <dlfcn.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "../deliver/standin_cuda.h"
#include "rig.h"

static const uint32_t blocks[16] = {3, 9, 1, 14, 5, 12, 7, 0, 2, 15, 4, 11, 6, 13, 8, 10};
static struct standin *standin;

static const struct {
	struct test_shape shape;
	enum packing packing;
} cells[] = {
    {{SSV_DTYPE_BF16, 4, 4, 64, 16, 16}, PACKING_OUTERMOST},  /* 8 tensors of 8 KiB joined */
    {{SSV_DTYPE_BF16, 3, 6, 96, 16, 16}, PACKING_OUTERMOST},  /* 4 of 18 KiB, then 2: 36 KiB */
    {{SSV_DTYPE_BF16, 2, 8, 128, 32, 16}, PACKING_OUTERMOST}, /* 64 KiB: each alone */
    {{SSV_DTYPE_BF16, 2, 8, 128, 16, 16}, PACKING_NHD},       /* 32 KiB, no neighbours */
    {{SSV_DTYPE_BF16, 3, 8, 128, 16, 16}, PACKING_BLNHC},     /* K and V by turns: 64 KiB a layer */
    {{SSV_DTYPE_BF16, 4, 2, 64, 32, 16}, PACKING_BLNHC},      /* 4 layers of 16 KiB */
    {{SSV_DTYPE_FP32, 1, 4, 64, 64, 16}, PACKING_HND},        /* K and V side by side */
};

static struct plane_config gpu_config(const char *uri)
{
	struct plane_config config = rig_config(uri);

	config.arena_bytes = 64 * MIB;
	config.channels_max = 2048;
	/* Time goes on by the step, and a worker steps fast while the driver takes its time. */
	config.fetch_deadline_ms = config.store_deadline_ms = 25000;
	return config;
}

static void store_one(struct rig *rig, const struct test_region *region, uint32_t chunk,
		      uint8_t codec)
{
	const struct ssv_key key = chunk_key(chunk);
	const uint32_t count = SSV_CHUNK_TOKENS / region->shape.block_tokens;
	const struct ssv_request request = {.op = SSV_OP_STORE,
					    .tier = SSV_TIER_LOSSLESS,
					    .codec = codec,
					    .region = region->region,
					    .keys = &key,
					    .keys_count = 1,
					    .blocks = blocks,
					    .blocks_count = count};

	region_fill(region, chunk, 0, blocks, count);
	assert_int_equal(rig_request(rig, region->session, &request)->tokens, 256);
	rig_flush(rig, region->session);
}

static void fetch_one(struct rig *rig, const struct test_region *region, uint32_t chunk)
{
	const struct ssv_key key = chunk_key(chunk);
	const uint32_t count = SSV_CHUNK_TOKENS / region->shape.block_tokens;

	region_paint(region);
	assert_int_equal(rig_fetch(rig, region, &key, 1, blocks, count, 0, 0)->tokens, 256);
	assert_int_equal(region_painted_over(region, blocks, count), 0);
	assert_int_equal(region_wrong(region, chunk, 0, blocks, count), 0);
}

static void host_and_gpu_read_one_another(void **state)
{
	static const uint8_t codecs[] = {SSV_CODEC_R16, SSV_CODEC_DEFLATE, SSV_CODEC_STORED};
	struct plane_config config = gpu_config("memory:gpu-1");
	struct rig rig;

	(void)state;
	rig_create(&rig, &config);
	standin->delay_us_max = 20;
	for (uint32_t i = 0; i < ARRAY_COUNT(cells) * ARRAY_COUNT(codecs); i++) {
		const uint32_t cell = i / ARRAY_COUNT(codecs);
		struct test_region host, gpu;

		region_create(&rig, &host, PACKING_NHD, &cells[cell].shape, 0);
		region_create_gpu(&rig, &gpu, cells[cell].packing, &cells[cell].shape,
				  host.session);
		standin->shortest_copy = 0;
		store_one(&rig, &host, 2 * i, codecs[i % ARRAY_COUNT(codecs)]);
		fetch_one(&rig, &gpu, 2 * i);
		store_one(&rig, &gpu, 2 * i + 1, codecs[i % ARRAY_COUNT(codecs)]);
		fetch_one(&rig, &host, 2 * i + 1);
		assert_true(standin->shortest_copy >= 32 * KIB);
		plane_session_end(rig.plane, host.session);
		rig_wait(&rig, PLANE_EVENT_SESSION_ENDED, 1000);
		assert_int_equal(standin->mappings, 0);
		region_destroy(&host);
		region_destroy(&gpu);
	}
	rig_destroy(&rig);
	assert_int_equal(standin->registrations + standin->streams + standin->contexts, 0);
}

/* Part of a chunk: the blocks before the ones asked for stay as they are. */
static void part_of_a_chunk_is_fetched(void **state)
{
	struct plane_config config = gpu_config("memory:gpu-2");
	const struct ssv_key key = chunk_key(7);
	struct test_region gpu;
	struct rig rig;

	(void)state;
	rig_create(&rig, &config);
	region_create_gpu(&rig, &gpu, cells[0].packing, &cells[0].shape, 0);
	store_one(&rig, &gpu, 7, SSV_CODEC_R16);
	region_paint(&gpu);
	assert_int_equal(rig_fetch(&rig, &gpu, &key, 1, blocks + 5, 11, 80, 0)->tokens, 176);
	assert_int_equal(region_painted_over(&gpu, blocks + 5, 11), 0);
	assert_int_equal(region_wrong(&gpu, 7, 80, blocks + 5, 11), 0);
	region_destroy(&gpu);
	rig_destroy(&rig);
}

static void a_lost_gpu_ends_requests_alone(void **state)
{
	struct plane_config config = gpu_config("memory:gpu-3");
	const struct ssv_key key = chunk_key(9);
	const struct ssv_completion *completion;
	struct test_region host, gpu;
	struct rig rig;

	(void)state;
	rig_create(&rig, &config);
	region_create(&rig, &host, PACKING_NHD, &cells[0].shape, 0);
	region_create_gpu(&rig, &gpu, cells[0].packing, &cells[0].shape, host.session);
	store_one(&rig, &host, 9, SSV_CODEC_R16);
	standin->lose_context = 1;
	for (int i = 0; i < 3; i++) {
		completion = rig_fetch(&rig, &gpu, &key, 1, blocks, 16, 0, 0);
		assert_int_equal(completion->status, -EIO);
		assert_int_equal(completion->tokens, 0);
	}
	fetch_one(&rig, &host, 9);
	assert_int_equal(plane_region_remove(rig.plane, gpu.session, gpu.region), 0);
	rig_wait(&rig, PLANE_EVENT_REGION_REMOVED, 1000);
	region_destroy(&gpu);
	/* The context was given up with its last region: a new one works. */
	region_create_gpu(&rig, &gpu, cells[0].packing, &cells[0].shape, host.session);
	fetch_one(&rig, &gpu, 9);
	region_destroy(&gpu);
	region_destroy(&host);
	rig_destroy(&rig);
}

static int setup(void **state)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW);
	void *address = library ? dlsym(library, "standin_get") : NULL;
	standin_get_function get;

	(void)state;
	if (!address) {
		print_message("libcuda.so.1 is not the stand-in: run through meson test\n");
		return -1;
	}
	memcpy(&get, &address, sizeof(address));
	standin = get();
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(host_and_gpu_read_one_another),
	    cmocka_unit_test(part_of_a_chunk_is_fetched),
	    cmocka_unit_test(a_lost_gpu_ends_requests_alone),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
