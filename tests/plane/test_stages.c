/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_stages.c - chunks through inflate engines and stages: the same bytes as through one pass,
 * whatever the engine does; a request is never held up by one that hangs.
 *
 * usage: test_stages [ENGINE]: only with this engine; exit status 77 where it is not there.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "inflate/inflate.h"
#include "rig.h"

#define EXIT_SKIPPED 77

static const char *engine = "cpu";
static const uint32_t blocks[32] = {3,  9,  1,  14, 5,  12, 7,  0,  2,  15, 4,  11, 6,  13, 8,  10,
				    19, 25, 17, 30, 21, 28, 23, 16, 18, 31, 20, 27, 22, 29, 24, 26};
static const struct test_shape shape = {SSV_DTYPE_BF16, 4, 2, 64, 64, 32};

static struct plane_config config_with(const char *uri, const char *inflate,
				       enum plane_pipeline pipeline)
{
	struct plane_config config = rig_config(uri);

	config.arena_bytes = 40 * MIB;
	config.codec = SSV_CODEC_DEFLATE;
	config.inflate = inflate;
	config.pipeline = (uint8_t)pipeline;
	for (uint32_t i = 0; i < PLANE_STATIONS; i++)
		config.stations[i] = 1 + i % 2;
	return config;
}

static void store_four(struct rig *rig, const struct test_region *region, struct ssv_key *keys)
{
	for (uint32_t i = 0; i < 4; i++) {
		keys[i] = chunk_key(i);
		region_fill(region, i, 0, blocks + 4 * i, 4);
	}
	assert_int_equal(rig_store(rig, region, keys, 4, blocks, 0)->tokens, 1024);
	rig_flush(rig, region->session);
}

/* Four chunks come back right, into memory that is written in place and into one that is staged. */
static void check_fetch(const char *uri, const char *inflate, enum plane_pipeline pipeline,
			double again)
{
	struct plane_config config = config_with(uri, inflate, pipeline);
	struct test_region regions[2];
	struct ssv_key keys[4];
	struct rig rig;

	rig_create(&rig, &config);
	region_create(&rig, &regions[0], PACKING_VEC, &shape, 0);
	region_create_address(&rig, &regions[1], PACKING_HND, &shape, 0);
	store_four(&rig, &regions[0], keys);
	for (uint32_t i = 0; i < 2; i++) {
		region_paint(&regions[i]);
		assert_int_equal(rig_fetch(&rig, &regions[i], keys, 4, blocks, 16, 0, 0)->tokens,
				 1024);
		for (uint32_t k = 0; k < 4; k++)
			assert_int_equal(region_wrong(&regions[i], k, 0, blocks + 4 * k, 4), 0);
		assert_int_equal(region_painted_over(&regions[i], blocks, 16), 0);
	}
	/* 4 chunks of 8 segments, twice: all of them through the engine. */
	assert_true(rig_stat(&rig, "counters.inflates") == 64);
	assert_true(rig_stat(&rig, "counters.inflates_again") == again);
	assert_true(rig_stat(&rig, "counters.fetch_faults") == 0);
	assert_true(rig_stat(&rig, "path.stages.inflating.count") == 64);
	assert_true(rig_stat(&rig, "path.stages.decode.count") == 64);
	if (again == 0)
		assert_true(rig_stat(&rig, "path.bytes.inflated") > 64 * 8192);
	for (uint32_t i = 0; i < 2; i++)
		region_destroy(&regions[i]);
	rig_destroy(&rig);
}

static void an_engine_beside_one_pass_gives_the_same_bytes(void **state)
{
	(void)state;
	check_fetch("memory:stages-1", engine, PLANE_ONE_PASS, 0);
}

static void stages_give_the_same_bytes(void **state)
{
	(void)state;
	check_fetch("memory:stages-2", engine, PLANE_STAGES, 0);
	check_fetch("memory:stages-3", NULL, PLANE_STAGES, 0);
}

/* An engine that fails costs time, not chunks: they are neither missed nor deleted. */
static void an_engine_that_fails_costs_no_chunk(void **state)
{
	(void)state;
	check_fetch("memory:stages-4", "fault+cpu?error=100", PLANE_ONE_PASS, 64);
	check_fetch("memory:stages-5", "fault+cpu?flip=100", PLANE_ONE_PASS, 64);
	check_fetch("memory:stages-6", "fault+cpu?short=100", PLANE_STAGES, 64);
	check_fetch("memory:stages-7", "fault+cpu?flip=100&delay=50&full=50", PLANE_STAGES, 64);
	check_fetch("memory:stages-8", "null", PLANE_STAGES, 64);
}

static void other_codecs_go_their_way(void **state)
{
	static const uint8_t codecs[] = {SSV_CODEC_STORED, SSV_CODEC_R16, SSV_CODEC_ZSTD};

	(void)state;
	for (uint32_t i = 0; i < 2 * ARRAY_COUNT(codecs); i++) {
		struct plane_config config = config_with("memory:stages-9", "fault+cpu?stall=100",
							 i % 2 ? PLANE_STAGES : PLANE_ONE_PASS);
		struct test_region region;
		struct ssv_key keys[4];
		struct rig rig;

		config.codec = codecs[i / 2];
		config.overwrite = 1;
		rig_create(&rig, &config);
		region_create(&rig, &region, PACKING_NHD, &shape, 0);
		store_four(&rig, &region, keys);
		region_paint(&region);
		assert_int_equal(rig_fetch(&rig, &region, keys, 4, blocks, 16, 0, 0)->tokens, 1024);
		for (uint32_t k = 0; k < 4; k++)
			assert_int_equal(region_wrong(&region, k, 0, blocks + 4 * k, 4), 0);
		assert_true(rig_stat(&rig, "counters.inflates") == 0);
		region_destroy(&region);
		rig_destroy(&rig);
	}
}

/* An engine that never answers: the request ends at its deadline, its blocks are the engine's
 * again, and only the lanes that it holds are lost. */
static void a_hanging_engine_holds_up_no_request(void **state)
{
	(void)state;
	for (uint32_t pipeline = 0; pipeline < PLANE_PIPELINES; pipeline++) {
		struct plane_config config = config_with("memory:stages-10", "fault+cpu?stall=100",
							 (enum plane_pipeline)pipeline);
		const struct ssv_completion *completion;
		struct test_region region;
		struct ssv_key keys[4];
		struct rig rig;

		config.fetch_deadline_ms = 50;
		rig_create(&rig, &config);
		region_create(&rig, &region, PACKING_NHD, &shape, 0);
		store_four(&rig, &region, keys);
		region_paint(&region);
		completion = rig_fetch(&rig, &region, keys, 4, blocks, 16, 0, 0);
		assert_int_equal(completion->tokens, 0);
		assert_int_equal(completion->status, -ETIMEDOUT);
		for (uint32_t i = 0; i < 1000; i++)
			rig_step(&rig);
		assert_int_equal(region_painted_over(&region, NULL, 0), 0);
		assert_true(rig_stat(&rig, "jobs") == 0);
		region_destroy(&region);
		rig_destroy(&rig);
	}
}

/* The trace has a thread for each station, and what each did. */
static void stations_show_in_state_and_trace(void **state)
{
	struct plane_config config = config_with("memory:stages-11", NULL, PLANE_STAGES);
	static struct trace_event events[512];
	uint32_t kinds[TRACE_KINDS_COUNT] = {0};
	struct test_region region;
	struct ssv_key keys[4];
	struct rig rig;

	(void)state;
	rig_create(&rig, &config);
	region_create(&rig, &region, PACKING_NHD, &shape, 0);
	store_four(&rig, &region, keys);
	rig_fetch(&rig, &region, keys, 4, blocks, 16, 0, 0);
	assert_int_equal(plane_threads(rig.plane), 5);
	for (uint32_t track = 1; track < 5; track++) {
		struct message_events head = {.track = track};

		plane_trace(rig.plane, 0, &head, events, 512);
		assert_int_equal(head.tracks_count, 6);
		for (uint32_t i = 0; i < head.count; i++)
			kinds[trace_kind(&events[i])]++;
	}
	assert_int_equal(kinds[TRACE_INFLATE], 32);
	assert_int_equal(kinds[TRACE_DECODE], 32);
	assert_true(rig_stat(&rig, "pipeline.stations.0.items") == 32);
	assert_true(rig_stat(&rig, "pipeline.stations.1.items") +
			rig_stat(&rig, "pipeline.stations.2.items") ==
		    32);
	region_destroy(&region);
	rig_destroy(&rig);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest all[] = {
	    cmocka_unit_test(an_engine_beside_one_pass_gives_the_same_bytes),
	    cmocka_unit_test(stages_give_the_same_bytes),
	    cmocka_unit_test(an_engine_that_fails_costs_no_chunk),
	    cmocka_unit_test(other_codecs_go_their_way),
	    cmocka_unit_test(a_hanging_engine_holds_up_no_request),
	    cmocka_unit_test(stations_show_in_state_and_trace),
	};
	const struct CMUnitTest of_engine[] = {
	    cmocka_unit_test(an_engine_beside_one_pass_gives_the_same_bytes),
	    cmocka_unit_test(stages_give_the_same_bytes),
	};
	struct inflate_config config = {.depth = 1, .handles = 1};
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct inflate *inflate;
	int err;

	if (argc < 2)
		return cmocka_run_group_tests(all, NULL, NULL);
	engine = config.name = argv[1];
	err = inflate_open(&config, &inflate, error);
	if (err == -ENOTSUP || err == -ENODEV) {
		printf("skip: %s\n", error);
		return EXIT_SKIPPED;
	}
	if (err) {
		fprintf(stderr, "%s\n", error);
		return 1;
	}
	inflate_close(inflate);
	return cmocka_run_group_tests(of_engine, NULL, NULL);
}
