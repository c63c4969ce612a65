/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_refused.c - chunks that a fetch refuses: which are deleted, which are kept for others, and
 * that a kept one is neither a hit of every LOOKUP nor in the way of the next STORE.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/log.h"
#include "rig.h"
#include "sim_store.h"

static const struct test_shape small = {SSV_DTYPE_BF16, 2, 1, 32, 32, 64};
static const struct test_shape other = {SSV_DTYPE_BF16, 2, 2, 32, 32, 64};

/* A plane over a simulated store, a region, and one chunk. */
struct setting {
	struct sim_world world;
	struct rig rig;
	struct test_region region;
	struct ssv_key key;
	uint32_t blocks[8];
};

static void setting_make(struct setting *s)
{
	struct plane_config config = rig_config("sim:");

	log_set_level(LOG_LEVEL_ERROR);
	memset(s, 0, sizeof(*s));
	s->world.random = 99;
	config.open_store = sim_store_open;
	config.open_store_context = &s->world;
	rig_create(&s->rig, &config);
	region_create(&s->rig, &s->region, PACKING_HND, &small, 0);
	s->key = chunk_key(0);
	for (uint32_t i = 0; i < 8; i++)
		s->blocks[i] = i;
	region_fill(&s->region, 0, 0, s->blocks, 8);
}

static void setting_end(struct setting *s)
{
	region_destroy(&s->region);
	rig_destroy(&s->rig);
	sim_world_clear(&s->world);
}

static struct ssv_request request(struct setting *s, uint8_t op)
{
	struct ssv_request r = {.op = op, .keys = &s->key, .keys_count = 1};

	if (op == SSV_OP_LOOKUP)
		return r;
	r.region = s->region.region;
	r.blocks = s->blocks;
	r.blocks_count = 8;
	return r;
}

static void store(struct setting *s, uint8_t tier)
{
	struct ssv_request r = request(s, SSV_OP_STORE);

	r.tier = tier;
	assert_int_equal(rig_request(&s->rig, s->region.session, &r)->tokens, 256);
	rig_flush(&s->rig, s->region.session);
}

static int fetch(struct setting *s, uint8_t min_tier, uint32_t position)
{
	struct ssv_request r = request(s, SSV_OP_FETCH);

	r.min_tier = min_tier;
	r.position = position;
	return rig_request(&s->rig, s->region.session, &r)->status;
}

static uint32_t lookup(struct setting *s, uint8_t min_tier)
{
	struct ssv_request r = request(s, SSV_OP_LOOKUP);

	r.min_tier = min_tier;
	return rig_request(&s->rig, s->region.session, &r)->tokens;
}

static void run_for(struct setting *s, uint64_t ms)
{
	while (ms--) {
		s->rig.now_ns += NS_PER_MS;
		rig_step(&s->rig);
	}
}

static void coarse_chunk_is_absent_for_who_wants_finer_until_one_is_stored(void **state)
{
	struct setting s;

	(void)state;
	setting_make(&s);
	store(&s, SSV_TIER_COMPACT);
	assert_int_equal(lookup(&s, SSV_TIER_HIGH), 256); /* nobody knows yet */
	assert_int_equal(fetch(&s, SSV_TIER_HIGH, 0), -ENOENT);
	assert_int_equal(lookup(&s, SSV_TIER_HIGH), 0);
	assert_int_equal(lookup(&s, SSV_TIER_TINY), 256);
	assert_int_equal(lookup(&s, 0), 256);
	assert_int_equal(fetch(&s, 0, 0), 0);
	/* A chunk that would be refused too is not put. */
	store(&s, SSV_TIER_STANDARD);
	assert_true(rig_stat(&s.rig, "counters.puts") == 1);
	assert_int_equal(lookup(&s, SSV_TIER_HIGH), 0);
	store(&s, SSV_TIER_HIGH);
	assert_true(rig_stat(&s.rig, "counters.puts") == 2);
	assert_int_equal(lookup(&s, SSV_TIER_HIGH), 256);
	assert_int_equal(fetch(&s, SSV_TIER_HIGH, 0), 0);
	assert_true(rig_stat(&s.rig, "counters.heals") == 0);
	setting_end(&s);
}

static void chunk_stays_absent_until_its_successor_was_put(void **state)
{
	struct ssv_request r;
	struct setting s;

	(void)state;
	setting_make(&s);
	store(&s, SSV_TIER_COMPACT);
	assert_int_equal(fetch(&s, SSV_TIER_LOSSLESS, 0), -ENOENT);
	s.world.forced[STORE_OP_PUT] = SIM_ERROR;
	store(&s, SSV_TIER_LOSSLESS);
	assert_int_equal(lookup(&s, SSV_TIER_LOSSLESS), 0);
	s.world.forced[STORE_OP_PUT] = SIM_FINE;
	s.world.slow_ns = 20 * NS_PER_MS;
	r = request(&s, SSV_OP_STORE);
	assert_int_equal(rig_request(&s.rig, s.region.session, &r)->tokens, 256);
	s.world.slow_ns = 0;
	assert_int_equal(lookup(&s, SSV_TIER_LOSSLESS), 0);
	rig_flush(&s.rig, s.region.session);
	assert_int_equal(lookup(&s, SSV_TIER_LOSSLESS), 256);
	setting_end(&s);
}

static void chunk_of_another_position_or_shape_is_kept_and_absent_for_minutes(void **state)
{
	struct test_region wide;
	struct setting s;

	(void)state;
	setting_make(&s);
	store(&s, SSV_TIER_LOSSLESS);
	assert_int_equal(fetch(&s, 0, 256), -EBADMSG);
	run_for(&s, 1500);
	assert_true(sim_world_has(&s.world, &s.key));
	assert_int_equal(lookup(&s, 0), 0);
	assert_int_equal(fetch(&s, 0, 0), 0);
	s.rig.now_ns += 6 * 60 * NS_PER_S;
	assert_int_equal(lookup(&s, 0), 256);
	region_create(&s.rig, &wide, PACKING_HND, &other, s.region.session);
	assert_int_equal(rig_fetch(&s.rig, &wide, &s.key, 1, s.blocks, 8, 0, 0)->status, -EBADMSG);
	run_for(&s, 1500);
	assert_true(sim_world_has(&s.world, &s.key));
	assert_int_equal(lookup(&s, 0), 0);
	/* Whoever stores it next replaces it. */
	store(&s, SSV_TIER_LOSSLESS);
	assert_true(rig_stat(&s.rig, "counters.puts") == 2);
	assert_int_equal(lookup(&s, 0), 256);
	assert_true(rig_stat(&s.rig, "counters.heals") == 0);
	region_destroy(&wide);
	setting_end(&s);
}

/* The value's major version, which is checked before its checksum. */
static void set_major(struct setting *s, uint8_t major)
{
	for (uint32_t i = 0; i < SIM_VALUES_MAX; i++) {
		struct sim_value *value = &s->world.values[i];

		if (value->data && memcmp(&value->key, &s->key, sizeof(s->key)) == 0)
			value->data[4] = major;
	}
}

static void older_format_is_deleted_and_newer_is_kept_and_replaced(void **state)
{
	struct setting s;

	(void)state;
	setting_make(&s);
	store(&s, SSV_TIER_LOSSLESS);
	set_major(&s, 0);
	assert_int_equal(fetch(&s, 0, 0), -EBADMSG);
	run_for(&s, 1500);
	assert_false(sim_world_has(&s.world, &s.key));
	assert_true(rig_stat(&s.rig, "counters.heals") == 1);
	store(&s, SSV_TIER_LOSSLESS);
	assert_int_equal(fetch(&s, 0, 0), 0);
	set_major(&s, 2);
	assert_int_equal(fetch(&s, 0, 0), -EBADMSG);
	run_for(&s, 1500);
	assert_true(sim_world_has(&s.world, &s.key));
	assert_int_equal(lookup(&s, 0), 0);
	assert_true(rig_stat(&s.rig, "counters.lookups_cut") == 1);
	store(&s, SSV_TIER_LOSSLESS);
	assert_int_equal(lookup(&s, 0), 256);
	assert_int_equal(fetch(&s, 0, 0), 0);
	assert_true(rig_stat(&s.rig, "counters.heals") == 1);
	setting_end(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(coarse_chunk_is_absent_for_who_wants_finer_until_one_is_stored),
	    cmocka_unit_test(chunk_stays_absent_until_its_successor_was_put),
	    cmocka_unit_test(chunk_of_another_position_or_shape_is_kept_and_absent_for_minutes),
	    cmocka_unit_test(older_format_is_deleted_and_newer_is_kept_and_replaced),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
