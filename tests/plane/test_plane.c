/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_plane.c - lookup, store and fetch through a real store, codec and shared memory: what a
 * request gets when all is well, and what it gets when it is wrong.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "rig.h"

static const struct test_shape small = {SSV_DTYPE_BF16, 2, 2, 32, 32, 64};

/* Keys and shuffled blocks of `chunks` chunks, filled with their reference KV. */
struct sequence {
	struct ssv_key keys[8];
	uint32_t blocks[64];
	uint32_t chunks;
};

static void sequence_make(struct sequence *sequence, const struct test_region *region,
			  uint32_t chunks)
{
	const uint32_t per_chunk = SSV_CHUNK_TOKENS / region->shape.block_tokens;

	sequence->chunks = chunks;
	for (uint32_t i = 0; i < chunks * per_chunk; i++)
		sequence->blocks[i] = (i * 7 + 3) % region->shape.blocks_count;
	for (uint32_t i = 0; i < chunks; i++) {
		sequence->keys[i] = chunk_key(i);
		region_fill(region, i, 0, sequence->blocks + i * per_chunk, per_chunk);
	}
}

static void stored_prefix_is_found_and_comes_back_bit_exact(void **state)
{
	struct plane_config config = rig_config("memory:plane-1");
	const struct ssv_completion *completion;
	struct test_region region;
	struct sequence s;
	struct rig rig;

	(void)state;
	rig_create(&rig, &config);
	region_create(&rig, &region, PACKING_HND, &small, 0);
	sequence_make(&s, &region, 3);
	completion = rig_lookup(&rig, region.session, s.keys, 3);
	assert_int_equal(completion->status, 0);
	assert_int_equal(completion->tokens, 0);
	completion = rig_store(&rig, &region, s.keys, 3, s.blocks, 0);
	assert_int_equal(completion->status, 0);
	assert_int_equal(completion->tokens, 768);
	rig_flush(&rig, region.session);
	s.keys[3] = chunk_key(99);
	assert_int_equal(rig_lookup(&rig, region.session, s.keys, 4)->tokens, 768);
	region_paint(&region);
	completion = rig_fetch(&rig, &region, s.keys, 3, s.blocks, 24, 0, 0);
	assert_int_equal(completion->status, 0);
	assert_int_equal(completion->tokens, 768);
	assert_int_equal(completion->kv_bytes, 768 * 2 * 2 * 2 * 32 * 2);
	assert_true(completion->wire_bytes > 0 && completion->wire_bytes < completion->kv_bytes);
	for (uint32_t i = 0; i < 3; i++)
		assert_int_equal(region_wrong(&region, i, 0, s.blocks + 8 * i, 8), 0);
	assert_int_equal(region_painted_over(&region, s.blocks, 24), 0);
	assert_true(rig_lookup(&rig, region.session, s.keys, 3)->estimate_us > 0);
	region_destroy(&region);
	rig_destroy(&rig);
}

static void fetch_begins_and_ends_inside_chunks(void **state)
{
	struct plane_config config = rig_config("memory:plane-2");
	const struct ssv_completion *completion;
	struct test_region region;
	struct sequence s;
	struct rig rig;

	(void)state;
	rig_create(&rig, &config);
	region_create(&rig, &region, PACKING_NHD, &small, 0);
	sequence_make(&s, &region, 3);
	assert_int_equal(rig_store(&rig, &region, s.keys, 3, s.blocks, 512)->tokens, 768);
	rig_flush(&rig, region.session);
	region_paint(&region);
	/* From block 3 of the first chunk to block 2 of the third: 5 + 8 + 2 blocks. */
	completion = rig_fetch(&rig, &region, s.keys, 3, s.blocks + 3, 15, 96, 512);
	assert_int_equal(completion->status, 0);
	assert_int_equal(completion->tokens, 15 * 32);
	assert_int_equal(region_wrong(&region, 0, 96, s.blocks + 3, 5), 0);
	assert_int_equal(region_wrong(&region, 1, 0, s.blocks + 8, 8), 0);
	assert_int_equal(region_wrong(&region, 2, 0, s.blocks + 16, 2), 0);
	assert_int_equal(region_painted_over(&region, s.blocks + 3, 15), 0);
	/* One block in the middle of one chunk. */
	region_paint(&region);
	completion = rig_fetch(&rig, &region, s.keys + 1, 1, s.blocks + 12, 1, 128, 768);
	assert_int_equal(completion->tokens, 32);
	assert_int_equal(region_wrong(&region, 1, 128, s.blocks + 12, 1), 0);
	assert_int_equal(region_painted_over(&region, s.blocks + 12, 1), 0);
	region_destroy(&region);
	rig_destroy(&rig);
}

static void miss_in_the_middle_shortens_the_prefix(void **state)
{
	struct plane_config config = rig_config("memory:plane-3");
	const struct ssv_completion *completion;
	struct test_region region;
	struct sequence s;
	struct rig rig;

	(void)state;
	rig_create(&rig, &config);
	region_create(&rig, &region, PACKING_VEC, &small, 0);
	sequence_make(&s, &region, 4);
	assert_int_equal(rig_store(&rig, &region, s.keys, 4, s.blocks, 0)->tokens, 1024);
	rig_flush(&rig, region.session);
	s.keys[2] = chunk_key(50);
	completion = rig_fetch(&rig, &region, s.keys, 4, s.blocks, 32, 0, 0);
	assert_int_equal(completion->status, -ENOENT);
	assert_int_equal(completion->tokens, 512);
	/* From the middle of the first chunk. */
	completion = rig_fetch(&rig, &region, s.keys, 4, s.blocks + 4, 28, 128, 0);
	assert_int_equal(completion->tokens, 384);
	region_destroy(&region);
	rig_destroy(&rig);
}

static void chunk_at_another_position_is_refused_and_replaced(void **state)
{
	struct plane_config config = rig_config("memory:plane-4");
	const struct ssv_completion *completion;
	struct test_region region;
	struct sequence s;
	struct rig rig;

	(void)state;
	rig_create(&rig, &config);
	region_create(&rig, &region, PACKING_OUTERMOST, &small, 0);
	sequence_make(&s, &region, 1);
	assert_int_equal(rig_store(&rig, &region, s.keys, 1, s.blocks, 256)->tokens, 256);
	rig_flush(&rig, region.session);
	region_paint(&region);
	completion = rig_fetch(&rig, &region, s.keys, 1, s.blocks, 8, 0, 0);
	assert_int_equal(completion->status, -EBADMSG);
	assert_int_equal(completion->tokens, 0);
	assert_int_equal(region_painted_over(&region, NULL, 0), 0);
	assert_int_equal(rig_lookup(&rig, region.session, s.keys, 1)->tokens, 0);
	/* The next STORE replaces it. */
	sequence_make(&s, &region, 1);
	assert_int_equal(rig_store(&rig, &region, s.keys, 1, s.blocks, 0)->tokens, 256);
	rig_flush(&rig, region.session);
	assert_int_equal(rig_fetch(&rig, &region, s.keys, 1, s.blocks, 8, 0, 0)->tokens, 256);
	region_destroy(&region);
	rig_destroy(&rig);
}

static void coarser_chunk_than_the_minimum_tier_is_a_miss_and_is_kept(void **state)
{
	struct plane_config config = rig_config("memory:plane-5");
	struct ssv_request request = {.op = SSV_OP_STORE};
	struct test_region region;
	struct sequence s;
	struct rig rig;

	(void)state;
	rig_create(&rig, &config);
	region_create(&rig, &region, PACKING_NHD, &small, 0);
	sequence_make(&s, &region, 1);
	request.region = region.region;
	request.keys = s.keys;
	request.keys_count = 1;
	request.blocks = s.blocks;
	request.blocks_count = 8;
	request.tier = SSV_TIER_STANDARD;
	assert_int_equal(rig_request(&rig, region.session, &request)->tokens, 256);
	rig_flush(&rig, region.session);
	request.op = SSV_OP_FETCH;
	request.tier = 0;
	request.min_tier = SSV_TIER_HIGH;
	assert_int_equal(rig_request(&rig, region.session, &request)->status, -ENOENT);
	request.min_tier = 0;
	assert_int_equal(rig_request(&rig, region.session, &request)->tokens, 256);
	region_destroy(&region);
	rig_destroy(&rig);
}

static void stored_again_is_captured_at_once_and_put_once(void **state)
{
	struct plane_config config = rig_config("memory:plane-6");
	struct test_region region;
	struct sequence s;
	struct rig rig;

	(void)state;
	rig_create(&rig, &config);
	region_create(&rig, &region, PACKING_NHD, &small, 0);
	sequence_make(&s, &region, 2);
	assert_int_equal(rig_store(&rig, &region, s.keys, 2, s.blocks, 0)->tokens, 512);
	rig_flush(&rig, region.session);
	assert_int_equal(rig_store(&rig, &region, s.keys, 2, s.blocks, 0)->tokens, 512);
	rig_flush(&rig, region.session);
	assert_true(rig_stat(&rig, "counters.puts") == 2);
	assert_true(rig_stat(&rig, "counters.stores_present") == 2);
	region_destroy(&region);
	rig_destroy(&rig);
}

static void lookup_takes_the_minimum_over_ranks_and_waits_for_all(void **state)
{
	struct plane_config config = rig_config("memory:plane-7");
	struct ssv_request request = {.op = SSV_OP_LOOKUP, .ranks_count = 2, .keys_count = 6};
	struct test_region region[2];
	struct ssv_key keys[6];
	struct sequence s;
	uint64_t session;
	struct rig rig;

	(void)state;
	rig_create(&rig, &config);
	session = rig_session(&rig, "tp2", 0, 2);
	region[0].made.layout.rank = 0;
	for (uint32_t rank = 0; rank < 2; rank++) {
		char error[SSV_ERROR_TEXT_MAX];
		struct test_region *r = &region[rank];
		struct ssv_region offer = {.memory = SSV_MEMORY_MEMFD};

		region_create(&rig, r, PACKING_NHD, &small, 0);
		if (rank)
			r->session = rig_session(&rig, "tp2", 1, 2);
		else
			r->session = session;
		r->made.layout.rank = (uint16_t)rank;
		r->made.layout.ranks_count = 2;
		if (rank == 0) {
			sequence_make(&s, r, 3);
			memcpy(keys, s.keys, 3 * sizeof(keys[0]));
			for (uint32_t i = 0; i < 3; i++)
				keys[3 + i] = chunk_key(30 + i);
		}
		request.keys = keys;
		offer.fd = r->fd;
		offer.bytes = r->made.bytes;
		/* The rank's region is not there yet: nothing counts. */
		assert_int_equal(rig_request(&rig, session, &request)->tokens, 0);
		assert_int_equal(plane_region_add(rig.plane, r->session, &offer, &r->made.layout,
						  NULL, NULL, &r->region, error),
				 0);
		assert_int_equal(
		    rig_store(&rig, r, keys + 3 * rank, rank ? 2 : 3, s.blocks, 0)->status, 0);
		rig_flush(&rig, r->session);
	}
	assert_int_equal(rig_request(&rig, session, &request)->tokens, 512);
	region_destroy(&region[0]);
	region_destroy(&region[1]);
	rig_destroy(&rig);
}

/* The first chunk teaches a small size; the next ones are longer than the slots taken for them. */
static void longer_value_than_expected_is_fetched_at_the_second_try(void **state)
{
	static const struct test_shape large = {SSV_DTYPE_BF16, 8, 4, 64, 32, 40};
	struct plane_config config = rig_config("memory:plane-11");
	struct ssv_request request = {.op = SSV_OP_STORE, .keys_count = 1, .blocks_count = 8};
	const struct ssv_completion *completion;
	struct test_region region;
	struct sequence s;
	struct rig rig;

	(void)state;
	config.arena_bytes = 24 * MIB;
	rig_create(&rig, &config);
	region_create(&rig, &region, PACKING_HND, &large, 0);
	sequence_make(&s, &region, 5);
	request.region = region.region;
	for (uint32_t i = 0; i < 5; i++) {
		request.keys = &s.keys[i];
		request.blocks = &s.blocks[8 * i];
		request.position = i * 256;
		request.tier = i ? SSV_TIER_LOSSLESS : SSV_TIER_TINY;
		request.codec = i ? SSV_CODEC_STORED : SSV_CODEC_R16;
		assert_int_equal(rig_request(&rig, region.session, &request)->tokens, 256);
		rig_flush(&rig, region.session);
	}
	region_paint(&region);
	assert_int_equal(rig_fetch(&rig, &region, s.keys, 1, s.blocks, 8, 0, 0)->tokens, 256);
	completion = rig_fetch(&rig, &region, s.keys + 1, 4, s.blocks + 8, 32, 0, 256);
	assert_int_equal(completion->status, 0);
	assert_int_equal(completion->tokens, 1024);
	for (uint32_t i = 1; i < 5; i++)
		assert_int_equal(region_wrong(&region, i, 0, s.blocks + 8 * i, 8), 0);
	assert_true(rig_stat(&rig, "counters.fetch_retries") >= 1);
	assert_true(rig_stat(&rig, "counters.heals") == 0);
	assert_true(rig_stat(&rig, "workers.0.wire_slots_free") ==
		    rig_stat(&rig, "workers.0.wire_slots"));
	region_destroy(&region);
	rig_destroy(&rig);
}

static void bad_requests_are_refused_with_the_number(void **state)
{
	struct plane_config config = rig_config("memory:plane-8");
	struct test_region region;
	struct ssv_key key = chunk_key(0);
	uint32_t blocks[9] = {0, 1, 2, 3, 4, 5, 6, 7, 64};
	char error[SSV_ERROR_TEXT_MAX];
	struct rig rig;

	(void)state;
	rig_create(&rig, &config);
	region_create(&rig, &region, PACKING_NHD, &small, 0);
	const struct ssv_request good = {
	    .op = SSV_OP_FETCH,
	    .region = region.region,
	    .user_data = 1,
	    .keys = &key,
	    .keys_count = 1,
	    .blocks = blocks,
	    .blocks_count = 8,
	};
	const struct {
		struct ssv_request request;
		int code;
		const char *says;
	} cases[] = {
	    {{.op = 9, .keys = &key, .keys_count = 1}, -EINVAL, "operation 9"},
	    {{.op = SSV_OP_LOOKUP}, -EINVAL, "no keys"},
	    {{.op = SSV_OP_LOOKUP, .keys = &key, .keys_count = 1, .ranks_count = 2},
	     -EINVAL,
	     "1 keys for 2 ranks"},
	    {{.op = SSV_OP_LOOKUP, .keys = &key, .keys_count = 4097}, -E2BIG, "4097 keys"},
	    {{.op = SSV_OP_FETCH,
	      .region = 77,
	      .keys = &key,
	      .keys_count = 1,
	      .blocks = blocks,
	      .blocks_count = 8},
	     -ENOENT,
	     "region 77"},
	    {{.op = SSV_OP_FETCH,
	      .region = region.region,
	      .keys = &key,
	      .keys_count = 1,
	      .blocks = blocks,
	      .blocks_count = 9},
	     -EINVAL,
	     "9 blocks"},
	    {{.op = SSV_OP_FETCH,
	      .region = region.region,
	      .keys = &key,
	      .keys_count = 1,
	      .blocks = blocks,
	      .blocks_count = 4,
	      .first_token = 33},
	     -EINVAL,
	     "first_token 33"},
	    {{.op = SSV_OP_FETCH,
	      .region = region.region,
	      .keys = &key,
	      .keys_count = 1,
	      .blocks = blocks + 8,
	      .blocks_count = 1},
	     -EINVAL,
	     "block 64 is not below 64"},
	    {{.op = SSV_OP_STORE,
	      .region = region.region,
	      .keys = &key,
	      .keys_count = 1,
	      .blocks = blocks,
	      .blocks_count = 9},
	     -EINVAL,
	     "9 blocks"},
	};

	for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
		assert_int_equal(
		    plane_submit(rig.plane, region.session, &cases[i].request, rig.now_ns, error),
		    cases[i].code);
		if (!strstr(error, cases[i].says))
			fail_msg("case %zu says \"%s\"", i, error);
	}
	assert_int_equal(plane_submit(rig.plane, region.session, &good, rig.now_ns, error), 0);
	assert_int_equal(plane_submit(rig.plane, region.session, &good, rig.now_ns, error),
			 -EINVAL);
	assert_int_equal(plane_submit(rig.plane, region.session + 1, &good, rig.now_ns, error),
			 -ENOTCONN);
	rig_wait(&rig, PLANE_EVENT_COMPLETION, 1000);
	region_destroy(&region);
	rig_destroy(&rig);
}

/* Every field of a request comes from outside: refused or completed, never anything else. */
static void random_requests_are_refused_or_completed(void **state)
{
	struct plane_config config = rig_config("memory:plane-12");
	static struct ssv_key keys[64];
	static uint32_t blocks[256];
	uint64_t seed = test_seed(3), accepted = 0, completed = 0;
	struct test_region region;
	struct plane_event event;
	struct rig rig;

	(void)state;
	rig_create(&rig, &config);
	region_create(&rig, &region, PACKING_NHD, &small, 0);
	for (uint32_t i = 0; i < 20000; i++) {
		const uint32_t edges[] = {0, 1, 2, 8, 32, 255, 256, 4096, 65536, UINT32_MAX};
		uint32_t number[8];
		struct ssv_request r;

		for (uint32_t k = 0; k < 8; k++) {
			number[k] = (uint32_t)next_random(&seed) % 40;
			if (next_random(&seed) % 4 == 0)
				number[k] = edges[next_random(&seed) % ARRAY_COUNT(edges)];
		}
		for (uint32_t k = 0; k < 8; k++)
			blocks[next_random(&seed) % 256] = number[k] % 65;
		r = (struct ssv_request){
		    .op = (uint8_t)(number[0] % 7),
		    .tier = (uint8_t)(number[1] % 8),
		    .codec = (uint8_t)(number[2] % 9),
		    .min_tier = (uint8_t)(number[2] % 8),
		    .region = next_random(&seed) % 8 ? region.region : number[3],
		    .user_data = i,
		    .target = i - number[7],
		    .keys = next_random(&seed) % 16 ? keys : NULL,
		    .blocks = next_random(&seed) % 16 ? blocks : NULL,
		    /* As the session does: counts never pass what the message held. */
		    .keys_count = number[3] <= 64 || number[3] > SSV_KEYS_MAX ? number[3] : 1,
		    .blocks_count = number[4] <= 256 || number[4] > SSV_BLOCKS_MAX ? number[4] : 8,
		    .ranks_count = number[5],
		    .first_token = number[6] % 300,
		    .position = number[7],
		    .deadline_ms = number[5] % 50,
		};
		if (next_random(&seed) % 2) { /* often nearly right */
			r.op = 1 + i % 3;
			r.tier = r.codec = 0;
			r.keys = keys;
			r.keys_count = 1 + number[3] % 3;
			r.ranks_count = 0;
			r.blocks = blocks;
			r.blocks_count = r.op == SSV_OP_LOOKUP ? 0 : r.keys_count * 8;
			r.first_token = 0;
		}
		accepted += plane_submit(rig.plane, region.session, &r, rig.now_ns, NULL) == 0;
		rig_step(&rig);
		rig.now_ns += NS_PER_MS / 4;
		while (plane_poll(rig.plane, &event, 1))
			completed++;
	}
	for (uint32_t i = 0; i < 100000 && completed < accepted; i++) {
		rig_step(&rig);
		rig.now_ns += NS_PER_MS;
		while (plane_poll(rig.plane, &event, 1))
			completed++;
	}
	assert_int_equal(completed, accepted);
	print_message("%llu of 20000 accepted\n", (unsigned long long)accepted);
	assert_true(accepted > 1000 && accepted < 19000);
	region_destroy(&region);
	rig_destroy(&rig);
}

static void region_that_does_not_fit_is_refused_with_the_numbers(void **state)
{
	struct plane_config config = rig_config("memory:plane-9");
	const struct test_shape large = {SSV_DTYPE_FP32, 16, 4, 128, 32, 8};
	const struct test_shape wide = {SSV_DTYPE_BF16, 1, 8, 128, 32, 8};
	struct ssv_region offer = {.memory = SSV_MEMORY_MEMFD};
	char error[SSV_ERROR_TEXT_MAX];
	struct test_region region;
	struct test_layout made;
	uint32_t number;
	struct rig rig;

	(void)state;
	rig_create(&rig, &config);
	region_create(&rig, &region, PACKING_NHD, &small, 0);
	offer.fd = region.fd;
	offer.bytes = region.made.bytes;
	make_layout(PACKING_NHD, &large, &made);
	assert_int_equal(plane_region_add(rig.plane, region.session, &offer, &made.layout, NULL,
					  NULL, &number, error),
			 -ERANGE);
	assert_int_equal(ftruncate(region.fd, (off_t)made.bytes), 0);
	offer.bytes = made.bytes;
	assert_int_equal(plane_region_add(rig.plane, region.session, &offer, &made.layout, NULL,
					  NULL, &number, error),
			 -ENOSPC);
	assert_non_null(strstr(error, "16777216 to be captured"));
	make_layout(PACKING_NHD, &wide, &made);
	assert_int_equal(plane_region_add(rig.plane, region.session, &offer, &made.layout, NULL,
					  NULL, &number, error),
			 -ENOSPC);
	assert_non_null(strstr(error, "1024 channels"));
	region_destroy(&region);
	rig_destroy(&rig);
}

static void arena_that_is_too_small_is_refused_with_the_numbers(void **state)
{
	struct plane_config config = rig_config("memory:plane-10");
	char error[SSV_ERROR_TEXT_MAX];
	struct plane *plane;

	(void)state;
	config.arena_bytes = 4 * MIB;
	assert_int_equal(plane_create(&config, &plane, error), -ENOSPC);
	assert_non_null(strstr(error, "4194304"));
	config = rig_config("nowhere:x");
	assert_int_not_equal(plane_create(&config, &plane, error), 0);
	config = rig_config("memory:x");
	config.lanes = 0;
	assert_int_equal(plane_create(&config, &plane, error), -EINVAL);
	assert_non_null(strstr(error, "lanes is 0, expected 1.."));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(stored_prefix_is_found_and_comes_back_bit_exact),
	    cmocka_unit_test(fetch_begins_and_ends_inside_chunks),
	    cmocka_unit_test(miss_in_the_middle_shortens_the_prefix),
	    cmocka_unit_test(chunk_at_another_position_is_refused_and_replaced),
	    cmocka_unit_test(coarser_chunk_than_the_minimum_tier_is_a_miss_and_is_kept),
	    cmocka_unit_test(stored_again_is_captured_at_once_and_put_once),
	    cmocka_unit_test(lookup_takes_the_minimum_over_ranks_and_waits_for_all),
	    cmocka_unit_test(longer_value_than_expected_is_fetched_at_the_second_try),
	    cmocka_unit_test(bad_requests_are_refused_with_the_number),
	    cmocka_unit_test(random_requests_are_refused_or_completed),
	    cmocka_unit_test(region_that_does_not_fit_is_refused_with_the_numbers),
	    cmocka_unit_test(arena_that_is_too_small_is_refused_with_the_numbers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
