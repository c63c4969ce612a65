/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_failures.c - what a request gets when something goes wrong: one test a kind of failure, over
 * a simulated store that is told how to fail.
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

/* A plane over a simulated store that holds three chunks, and a region whose blocks are painted. */
struct setting {
	struct sim_world world;
	struct rig rig;
	struct test_region region;
	struct ssv_key keys[8];
	uint32_t blocks[64];
	struct ssv_request request; /* FETCH of the three chunks */
};

static void setting_make(struct setting *s, const struct plane_config *changed)
{
	struct plane_config config = changed ? *changed : rig_config("sim:");

	log_set_level(LOG_LEVEL_ERROR);
	memset(s, 0, sizeof(*s));
	s->world.random = 99;
	config.open_store = sim_store_open;
	config.open_store_context = &s->world;
	rig_create(&s->rig, &config);
	region_create(&s->rig, &s->region, PACKING_HND, &small, 0);
	for (uint32_t i = 0; i < 8; i++)
		s->keys[i] = chunk_key(i);
	for (uint32_t i = 0; i < 64; i++)
		s->blocks[i] = (i * 5 + 1) % 64;
	for (uint32_t i = 0; i < 3; i++)
		region_fill(&s->region, i, 0, s->blocks + 8 * i, 8);
	assert_int_equal(rig_store(&s->rig, &s->region, s->keys, 3, s->blocks, 0)->tokens, 768);
	rig_flush(&s->rig, s->region.session);
	region_paint(&s->region);
	s->request = (struct ssv_request){
	    .op = SSV_OP_FETCH,
	    .region = s->region.region,
	    .keys = s->keys,
	    .keys_count = 3,
	    .blocks = s->blocks,
	    .blocks_count = 24,
	};
}

static void setting_end(struct setting *s)
{
	region_destroy(&s->region);
	rig_destroy(&s->rig);
	sim_world_clear(&s->world);
}

static const struct ssv_completion *fetch(struct setting *s)
{
	return rig_request(&s->rig, s->region.session, &s->request);
}

static void submit(struct setting *s, const struct ssv_request *request, uint64_t user_data)
{
	struct ssv_request copy = *request;
	char error[SSV_ERROR_TEXT_MAX];

	copy.user_data = user_data;
	if (plane_submit(s->rig.plane, s->region.session, &copy, s->rig.now_ns, error))
		fail_msg("plane_submit: %s", error);
}

static void every_store_failure_is_a_short_prefix_and_no_byte(void **state)
{
	static const struct {
		enum sim_fault fault;
		int status;
		uint32_t heals;
	} cases[] = {
	    {SIM_STALL, -ETIMEDOUT, 0}, {SIM_ERROR, -EIO, 0},   {SIM_TRUNCATE, -EBADMSG, 1},
	    {SIM_LONGER, -EBADMSG, 1},  {SIM_MISS, -ENOENT, 0},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
		const struct ssv_completion *completion;
		struct setting s;

		setting_make(&s, NULL);
		s.world.forced[STORE_OP_GET] = cases[i].fault;
		completion = fetch(&s);
		if (completion->status != cases[i].status || completion->tokens)
			fail_msg("fault %d: status %d, %u tokens", (int)cases[i].fault,
				 completion->status, completion->tokens);
		assert_true(completion->elapsed_us <= 2100 * 1000);
		assert_int_equal(rig_stat(&s.rig, "counters.heals") > 0, cases[i].heals);
		setting_end(&s);
	}
}

static void flipped_bit_is_found_deleted_and_healed_by_the_next_store(void **state)
{
	const struct ssv_completion *completion;
	struct setting s;

	(void)state;
	setting_make(&s, NULL);
	s.world.forced[STORE_OP_GET] = SIM_FLIP;
	s.request.keys_count = 1;
	s.request.blocks_count = 8;
	completion = fetch(&s);
	assert_int_equal(completion->status, -EBADMSG);
	assert_int_equal(completion->tokens, 0);
	s.world.forced[STORE_OP_GET] = SIM_FINE;
	for (uint32_t i = 0; i < 100; i++) {
		s.rig.now_ns += NS_PER_MS;
		rig_step(&s.rig);
	}
	assert_false(sim_world_has(&s.world, &s.keys[0]));
	region_fill(&s.region, 0, 0, s.blocks, 8);
	assert_int_equal(rig_store(&s.rig, &s.region, s.keys, 1, s.blocks, 0)->tokens, 256);
	rig_flush(&s.rig, s.region.session);
	region_paint(&s.region);
	assert_int_equal(fetch(&s)->tokens, 256);
	assert_int_equal(region_wrong(&s.region, 0, 0, s.blocks, 8), 0);
	setting_end(&s);
}

static void deadline_ends_a_fetch_that_is_waiting_in_a_queue_too(void **state)
{
	struct plane_config config = rig_config("sim:");
	const struct ssv_completion *completion;
	struct setting s;

	(void)state;
	config.lanes = 1;
	setting_make(&s, &config);
	s.world.slow_ns = 40 * NS_PER_MS;
	s.request.deadline_ms = 60;
	completion = fetch(&s);
	assert_int_equal(completion->status, -ETIMEDOUT);
	assert_int_equal(completion->tokens, 256); /* one lane, one chunk in time */
	assert_true(completion->elapsed_us >= 60000 && completion->elapsed_us < 80000);
	assert_int_equal(region_wrong(&s.region, 0, 0, s.blocks, 8), 0);
	setting_end(&s);
}

static void cancel_completes_after_its_target_and_nothing_is_written_then(void **state)
{
	const struct ssv_request cancel = {.op = SSV_OP_CANCEL, .target = 501};
	const struct ssv_completion *completion;
	struct setting s;

	(void)state;
	setting_make(&s, NULL);
	s.world.slow_ns = 50 * NS_PER_MS;
	submit(&s, &s.request, 501);
	for (uint32_t i = 0; i < 20; i++) {
		s.rig.now_ns += NS_PER_MS;
		rig_step(&s.rig);
	}
	submit(&s, &cancel, 502);
	completion = &rig_wait(&s.rig, PLANE_EVENT_COMPLETION, 100)->completion;
	assert_int_equal(completion->user_data, 501);
	assert_int_equal(completion->status, -ECANCELED);
	region_paint(&s.region); /* the promise: ours again */
	completion = &rig_wait(&s.rig, PLANE_EVENT_COMPLETION, 100)->completion;
	assert_int_equal(completion->user_data, 502);
	assert_int_equal(completion->status, 0);
	for (uint32_t i = 0; i < 200; i++) {
		s.rig.now_ns += NS_PER_MS;
		rig_step(&s.rig);
	}
	assert_int_equal(region_painted_over(&s.region, NULL, 0), 0);
	/* Nothing to cancel any more. */
	submit(&s, &cancel, 503);
	assert_int_equal(rig_wait(&s.rig, PLANE_EVENT_COMPLETION, 10)->completion.status, -ENOENT);
	setting_end(&s);
}

static void region_is_detached_only_after_its_fetch_is_quiescent(void **state)
{
	struct setting s;

	(void)state;
	setting_make(&s, NULL);
	s.world.slow_ns = 50 * NS_PER_MS;
	submit(&s, &s.request, 601);
	for (uint32_t i = 0; i < 10; i++)
		rig_step(&s.rig);
	assert_int_equal(plane_region_remove(s.rig.plane, s.region.session, s.region.region), 0);
	assert_int_equal(plane_region_remove(s.rig.plane, s.region.session, s.region.region),
			 -ENOENT);
	assert_int_equal(rig_wait(&s.rig, PLANE_EVENT_COMPLETION, 200)->completion.status,
			 -ECANCELED);
	assert_int_equal(rig_wait(&s.rig, PLANE_EVENT_REGION_REMOVED, 200)->region,
			 s.region.region);
	assert_int_equal(
	    plane_submit(s.rig.plane, s.region.session, &s.request, s.rig.now_ns, NULL), -ENOENT);
	setting_end(&s);
}

static void session_ends_after_its_requests_and_captured_chunks_are_still_put(void **state)
{
	struct ssv_request store;
	struct setting s;

	(void)state;
	setting_make(&s, NULL);
	region_fill(&s.region, 5, 0, s.blocks, 8);
	store = s.request;
	store.op = SSV_OP_STORE;
	store.keys = &s.keys[5];
	store.keys_count = 1;
	store.blocks_count = 8;
	store.position = 5 * 256;
	submit(&s, &store, 701);
	assert_int_equal(rig_wait(&s.rig, PLANE_EVENT_COMPLETION, 200)->completion.tokens, 256);
	s.world.slow_ns = 50 * NS_PER_MS;
	submit(&s, &s.request, 702);
	plane_session_end(s.rig.plane, s.region.session);
	assert_int_equal(rig_wait(&s.rig, PLANE_EVENT_COMPLETION, 200)->completion.user_data, 702);
	rig_wait(&s.rig, PLANE_EVENT_SESSION_ENDED, 200);
	while (!plane_drain(s.rig.plane, s.rig.now_ns)) {
		s.rig.now_ns += NS_PER_MS;
		rig_step(&s.rig);
	}
	assert_true(sim_world_has(&s.world, &s.keys[5]));
	setting_end(&s);
}

static void step_worker(struct setting *s, uint32_t worker)
{
	uint64_t wake_ns;

	(void)!plane_step(s->rig.plane, s->rig.now_ns);
	(void)!plane_worker_step(s->rig.plane, worker, s->rig.now_ns, &wake_ns);
	(void)!plane_step(s->rig.plane, s->rig.now_ns);
	s->rig.now_ns += 10 * NS_PER_US;
}

/* Step control and one worker alone until a completion comes; the test's own time limit ends it. */
static uint64_t completion_of_worker(struct setting *s, uint32_t worker)
{
	struct plane_event event;

	for (uint32_t i = 0; i < 10000; i++) {
		step_worker(s, worker);
		if (plane_poll(s->rig.plane, &event, 1) == 1) {
			assert_int_equal(event.kind, PLANE_EVENT_COMPLETION);
			return event.completion.user_data;
		}
	}
	fail_msg("worker %u completed nothing", worker);
	return 0;
}

/* The last completion of a session is a CANCEL's, and behind the CANCEL in the session's list is a
 * STORE that is captured and not yet put: both leave the list at once. */
static void session_ends_with_a_cancel_before_a_captured_store(void **state)
{
	const struct ssv_request cancel = {.op = SSV_OP_CANCEL, .target = 711};
	struct plane_config config = rig_config("sim:");
	struct ssv_request store;
	struct setting s;

	(void)state;
	config.workers_count = 2;
	config.arena_bytes *= 2;
	setting_make(&s, &config);
	store = s.request;
	store.op = SSV_OP_STORE;
	store.keys = &s.keys[5];
	store.keys_count = 1;
	store.blocks_count = 8;
	s.request.keys_count = 1;
	s.request.blocks_count = 8;
	/* Keeps a capture slot of worker 0 busy, so that the second STORE goes to worker 1. */
	s.world.forced[STORE_OP_PUT] = SIM_STALL;
	submit(&s, &store, 710);
	assert_int_equal(completion_of_worker(&s, 0), 710);
	submit(&s, &s.request, 711);
	(void)!plane_step(s.rig.plane, s.rig.now_ns); /* at worker 0, which is not stepped */
	submit(&s, &cancel, 712);
	store.keys = &s.keys[6];
	submit(&s, &store, 713);
	assert_int_equal(completion_of_worker(&s, 1), 713);
	plane_session_end(s.rig.plane, s.region.session);
	assert_int_equal(completion_of_worker(&s, 0), 711);
	assert_int_equal(rig_wait(&s.rig, PLANE_EVENT_COMPLETION, 100)->completion.user_data, 712);
	rig_wait(&s.rig, PLANE_EVENT_SESSION_ENDED, 100);
	setting_end(&s);
}

static void store_that_finds_no_room_until_its_deadline_is_dropped(void **state)
{
	struct plane_config config = rig_config("sim:");
	const struct ssv_completion *completion;
	struct setting s;

	(void)state;
	config.captures_max = 1;
	setting_make(&s, &config);
	s.world.forced[STORE_OP_PUT] = SIM_STALL;
	for (uint32_t i = 3; i < 6; i++)
		region_fill(&s.region, i, 0, s.blocks + 8 * (i - 3), 8);
	s.request.op = SSV_OP_STORE;
	s.request.keys = &s.keys[3];
	s.request.position = 3 * 256;
	s.request.deadline_ms = 50;
	completion = fetch(&s);
	assert_int_equal(completion->status, -EAGAIN);
	assert_int_equal(completion->tokens, 256); /* the first one was captured */
	assert_true(rig_stat(&s.rig, "counters.store_dropped") == 1);
	/* Its PUT fails at the store's deadline; FLUSH has waited for that. */
	rig_flush(&s.rig, s.region.session);
	assert_true(rig_stat(&s.rig, "counters.put_errors") == 1);
	setting_end(&s);
}

static void silent_store_gives_the_blocks_of_a_store_back_soon(void **state)
{
	const struct ssv_completion *completion;
	struct setting s;

	(void)state;
	setting_make(&s, NULL);
	s.world.forced[STORE_OP_EXISTS] = SIM_STALL;
	completion = rig_store(&s.rig, &s.region, s.keys, 3, s.blocks, 0);
	assert_int_equal(completion->status, -ETIMEDOUT);
	assert_int_equal(completion->tokens, 0);
	assert_true(completion->elapsed_us < 1100 * 1000); /* the lookup's second, not five */
	setting_end(&s);
}

/* An estimate that one stall could spoil for good would keep engines from ever fetching again. */
static void estimate_survives_a_stall_and_is_forgotten_with_time(void **state)
{
	const struct ssv_completion *completion;
	uint32_t estimate_us;
	struct setting s;

	(void)state;
	setting_make(&s, NULL);
	assert_int_equal(rig_lookup(&s.rig, s.region.session, s.keys, 3)->estimate_us, 0);
	assert_int_equal(fetch(&s)->tokens, 768);
	estimate_us = rig_lookup(&s.rig, s.region.session, s.keys, 3)->estimate_us;
	assert_true(estimate_us > 0);
	assert_true(rig_lookup(&s.rig, s.region.session, s.keys, 1)->estimate_us < estimate_us);
	s.world.forced[STORE_OP_GET] = SIM_STALL;
	assert_int_equal(fetch(&s)->status, -ETIMEDOUT);
	completion = rig_lookup(&s.rig, s.region.session, s.keys, 3);
	assert_int_equal(completion->tokens, 768);
	assert_int_equal(completion->estimate_us, estimate_us);
	s.rig.now_ns += 31 * NS_PER_S;
	assert_int_equal(rig_lookup(&s.rig, s.region.session, s.keys, 3)->estimate_us, 0);
	setting_end(&s);
}

static void flush_gives_up_at_its_deadline(void **state)
{
	const struct ssv_request flush = {.op = SSV_OP_FLUSH, .deadline_ms = 30};
	struct setting s;

	(void)state;
	setting_make(&s, NULL);
	s.world.forced[STORE_OP_PUT] = SIM_STALL;
	region_fill(&s.region, 3, 0, s.blocks, 8);
	assert_int_equal(rig_store(&s.rig, &s.region, &s.keys[3], 1, s.blocks, 768)->tokens, 256);
	assert_int_equal(rig_request(&s.rig, s.region.session, &flush)->status, -ETIMEDOUT);
	setting_end(&s);
}

static void draining_plane_fetches_but_captures_nothing_new(void **state)
{
	struct setting s;

	(void)state;
	setting_make(&s, NULL);
	assert_int_equal(plane_drain(s.rig.plane, s.rig.now_ns), 1);
	assert_int_equal(fetch(&s)->tokens, 768);
	assert_int_equal(rig_store(&s.rig, &s.region, s.keys, 3, s.blocks, 0)->status, -EAGAIN);
	setting_end(&s);
}

static void full_plane_refuses_and_recovers(void **state)
{
	struct plane_config config = rig_config("sim:");
	const struct ssv_request lookup = {.op = SSV_OP_LOOKUP, .keys_count = 1};
	struct ssv_request r = lookup;
	uint32_t accepted = 0;
	struct setting s;

	(void)state;
	config.jobs_max = 4;
	setting_make(&s, &config);
	r.keys = s.keys;
	for (r.user_data = 1; r.user_data <= 6; r.user_data++)
		accepted +=
		    plane_submit(s.rig.plane, s.region.session, &r, s.rig.now_ns, NULL) == 0;
	assert_int_equal(accepted, 4);
	for (uint32_t i = 0; i < 4; i++)
		assert_int_equal(rig_wait(&s.rig, PLANE_EVENT_COMPLETION, 100)->completion.tokens,
				 256);
	assert_int_equal(plane_submit(s.rig.plane, s.region.session, &r, s.rig.now_ns, NULL), 0);
	rig_wait(&s.rig, PLANE_EVENT_COMPLETION, 100);
	setting_end(&s);
}

/* One engine asks for much, then another for little: the second is not behind all of the first. */
static void sessions_take_turns(void **state)
{
	struct plane_config config = rig_config("sim:");
	struct test_region other;
	struct ssv_request big, little;
	uint32_t order = 0;
	struct setting s;

	(void)state;
	config.lanes = 1;
	setting_make(&s, &config);
	region_create(&s.rig, &other, PACKING_NHD, &small, rig_session(&s.rig, "other", 0, 1));
	s.world.slow_ns = 3 * NS_PER_MS;
	big = s.request;
	for (uint64_t i = 0; i < 8; i++) /* 24 chunks */
		submit(&s, &big, 800 + i);
	little = s.request;
	little.region = other.region;
	little.user_data = 900;
	assert_int_equal(plane_submit(s.rig.plane, other.session, &little, s.rig.now_ns, NULL), 0);
	for (uint32_t i = 0; i < 9; i++) {
		const struct ssv_completion *c =
		    &rig_wait(&s.rig, PLANE_EVENT_COMPLETION, 1000)->completion;

		assert_int_equal(c->tokens, 768);
		if (c->user_data == 900)
			order = i;
	}
	assert_true(order <= 3);
	region_destroy(&other);
	setting_end(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(every_store_failure_is_a_short_prefix_and_no_byte),
	    cmocka_unit_test(flipped_bit_is_found_deleted_and_healed_by_the_next_store),
	    cmocka_unit_test(deadline_ends_a_fetch_that_is_waiting_in_a_queue_too),
	    cmocka_unit_test(cancel_completes_after_its_target_and_nothing_is_written_then),
	    cmocka_unit_test(region_is_detached_only_after_its_fetch_is_quiescent),
	    cmocka_unit_test(session_ends_after_its_requests_and_captured_chunks_are_still_put),
	    cmocka_unit_test(session_ends_with_a_cancel_before_a_captured_store),
	    cmocka_unit_test(store_that_finds_no_room_until_its_deadline_is_dropped),
	    cmocka_unit_test(silent_store_gives_the_blocks_of_a_store_back_soon),
	    cmocka_unit_test(estimate_survives_a_stall_and_is_forgotten_with_time),
	    cmocka_unit_test(flush_gives_up_at_its_deadline),
	    cmocka_unit_test(draining_plane_fetches_but_captures_nothing_new),
	    cmocka_unit_test(full_plane_refuses_and_recovers),
	    cmocka_unit_test(sessions_take_turns),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
