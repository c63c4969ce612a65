/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_fairness.c - who waits for whom, in virtual time: sessions take turns, a chunk that does not
 * come holds up nobody else, and a slow worker's chunks go to one with idle lanes.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "rig.h"
#include "sim_store.h"

#define CHUNKS      8u
#define PER_CHUNK   4u
#define DEADLINE_MS 400u

static const struct test_shape shape = {SSV_DTYPE_BF16, 2, 1, 16, 64, CHUNKS *PER_CHUNK};

static struct {
	struct sim_world world;
	struct rig rig;
	struct test_region regions[2]; /* of two sessions */
	struct ssv_key keys[CHUNKS];
	uint32_t blocks[CHUNKS * PER_CHUNK];
	uint64_t begun_ns;
	uint64_t ended_ns[2]; /* after the begin; of the fetch of each session */
	struct ssv_completion completions[2];
} s;

static void begin(uint32_t workers, uint32_t lanes)
{
	struct plane_config config = rig_config("sim:");

	memset(&s, 0, sizeof(s));
	s.world.random = 77;
	s.world.slow_worker = UINT32_MAX;
	config.workers_count = workers;
	config.lanes = lanes;
	config.channels_max = 64;
	config.arena_bytes = workers * 16 * MIB;
	config.fetch_deadline_ms = DEADLINE_MS;
	config.open_store = sim_store_open;
	config.open_store_context = &s.world;
	rig_create(&s.rig, &config);
	for (uint32_t i = 0; i < 2; i++)
		region_create(&s.rig, &s.regions[i], PACKING_NHD, &shape, 0);
	for (uint32_t i = 0; i < CHUNKS * PER_CHUNK; i++)
		s.blocks[i] = i;
	for (uint32_t i = 0; i < CHUNKS; i++) {
		s.keys[i] = chunk_key(i);
		region_fill(&s.regions[0], i, 0, s.blocks + i * PER_CHUNK, PER_CHUNK);
	}
	assert_int_equal(rig_store(&s.rig, &s.regions[0], s.keys, CHUNKS, s.blocks, 0)->status, 0);
	rig_flush(&s.rig, s.regions[0].session);
	memset(s.world.gets, 0, sizeof(s.world.gets));
	s.begun_ns = s.rig.now_ns;
}

static void end(void)
{
	for (uint32_t i = 0; i < 2; i++)
		region_destroy(&s.regions[i]);
	rig_destroy(&s.rig);
	sim_world_clear(&s.world);
}

static void submit(uint32_t session, uint32_t chunk, uint32_t count)
{
	const struct ssv_request request = {.op = SSV_OP_FETCH,
					    .region = s.regions[session].region,
					    .user_data = session,
					    .keys = s.keys + chunk,
					    .keys_count = count,
					    .blocks = s.blocks + chunk * PER_CHUNK,
					    .blocks_count = count * PER_CHUNK,
					    .position = chunk * SSV_CHUNK_TOKENS};

	assert_int_equal(
	    plane_submit(s.rig.plane, s.regions[session].session, &request, s.rig.now_ns, NULL), 0);
}

static void wait_for(uint32_t fetches)
{
	while (fetches--) {
		const struct plane_event *event =
		    rig_wait(&s.rig, PLANE_EVENT_COMPLETION, 2 * DEADLINE_MS);
		uint32_t session = (uint32_t)event->completion.user_data;

		s.ended_ns[session] = s.rig.now_ns - s.begun_ns;
		s.completions[session] = event->completion;
	}
}

static void assert_whole(uint32_t session, uint32_t chunk, uint32_t count)
{
	assert_int_equal(s.completions[session].status, 0);
	for (uint32_t i = chunk; i < chunk + count; i++)
		assert_int_equal(
		    region_wrong(&s.regions[session], i, 0, s.blocks + i * PER_CHUNK, PER_CHUNK),
		    0);
}

static void a_chunk_that_does_not_come_holds_up_nobody_else(void **state)
{
	(void)state;
	begin(1, 2);
	s.world.stalled = s.keys[0];
	submit(0, 0, 1);
	submit(1, 1, CHUNKS - 1);
	wait_for(2);
	assert_int_equal(s.completions[0].status, -ETIMEDOUT);
	assert_whole(1, 1, CHUNKS - 1);
	assert_true(s.ended_ns[1] < DEADLINE_MS * NS_PER_MS / 2);
	end();
}

static void a_short_request_does_not_wait_for_a_long_one(void **state)
{
	(void)state;
	begin(1, 1);
	s.world.slow_ns = 20 * NS_PER_MS;
	submit(0, 0, CHUNKS);
	submit(1, 0, 1);
	wait_for(2);
	assert_whole(0, 0, CHUNKS);
	assert_whole(1, 0, 1);
	assert_true(s.ended_ns[1] < s.ended_ns[0] / 2);
	end();
}

static void a_slow_worker_gives_back_what_it_has_not_begun(void **state)
{
	(void)state;
	begin(2, 1);
	s.world.slow_worker = 0;
	s.world.slow_worker_ns = 100 * NS_PER_MS;
	submit(0, 0, CHUNKS);
	wait_for(1);
	assert_whole(0, 0, CHUNKS);
	/* It begins one chunk a tenth of a second; the other worker had all that waited for it. */
	assert_int_equal(s.world.gets[1], 1);
	assert_int_equal(s.world.gets[0], CHUNKS - 1);
	assert_true(s.ended_ns[0] < 200 * NS_PER_MS);
	assert_true(rig_stat(&s.rig, "counters.fetch_returns") > 0);
	/* What was given back is one chunk, whoever has it; as many were stored before. */
	assert_int_equal(rig_stat(&s.rig, "path.chunks"), 2 * CHUNKS);
	end();
}

static void a_stuck_worker_costs_the_chunks_that_it_began(void **state)
{
	(void)state;
	begin(2, 1);
	s.world.slow_worker = 1;
	s.world.slow_worker_ns = NS_PER_S;
	submit(0, 0, CHUNKS);
	submit(1, 0, CHUNKS);
	wait_for(2);
	/* One of the two met it; the other has all of its chunks long before the deadline. */
	assert_true((s.completions[0].status == 0) != (s.completions[1].status == 0));
	assert_int_equal(s.world.gets[1], 1);
	for (uint32_t i = 0; i < 2; i++) {
		if (s.completions[i].status)
			continue;
		assert_whole(i, 0, CHUNKS);
		assert_true(s.ended_ns[i] < DEADLINE_MS * NS_PER_MS / 2);
	}
	end();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_chunk_that_does_not_come_holds_up_nobody_else),
	    cmocka_unit_test(a_short_request_does_not_wait_for_a_long_one),
	    cmocka_unit_test(a_slow_worker_gives_back_what_it_has_not_begun),
	    cmocka_unit_test(a_stuck_worker_costs_the_chunks_that_it_began),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
