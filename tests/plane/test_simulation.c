/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_simulation.c - the plane that ships, stepped in virtual time by a seed: several engines and
 * workers, a store that misbehaves, memory that is reached late, requests, cancels, regions
 * removed, sessions ended at any moment, control and workers interleaved at random.
 *
 * All the time: no byte outside the blocks of running fetches has changed. At each completion:
 * it is the only one of its request, and the tokens reported in place equal the reference. At the
 * end: everything completed in bounded time, every slot, job and lane is free.
 *
 * SSV_SEED=n replays one seed; SSV_SEEDS=n runs that many.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/log.h"
#include "rig.h"
#include "sim_store.h"
#include "slow_way.h"

#define ENGINES    3u
#define BLOCKS     24u
#define PER_CHUNK  4u
#define CHUNKS     12u
#define REQUESTS   24u
#define STEPS      1500u
#define QUIET_NS   (2 * NS_PER_S) /* virtual time to finish once nothing new comes */
#define CHUNKS_MAX 4u

enum use {
	USE_FREE = 0,
	USE_FETCH = 1, /* may change */
	USE_STORE = 2, /* must not change, and is read */
};

struct engine {
	struct test_region region;
	uint8_t *shadow;   /* what the memory must hold, apart from running fetches */
	uint8_t *block_of; /* [bytes] */
	uint8_t use[BLOCKS];
	uint8_t registered, removing, ending;
	uint32_t memory; /* enum ssv_memory */
};

struct request {
	uint8_t used;
	struct ssv_request request;
	struct ssv_key keys[CHUNKS_MAX];
	uint32_t blocks[CHUNKS_MAX * PER_CHUNK];
	uint32_t engine, chunk;
	uint64_t session;
};

struct sim {
	uint64_t random;
	struct rig rig;
	struct sim_world world;
	struct engine engines[ENGINES];
	struct request requests[REQUESTS];
	uint64_t user_data;
	uint32_t completed, hits, tokens, damaged;
	uint64_t inflates, again;
};

static const struct test_shape shape = {SSV_DTYPE_BF16, 2, 1, 16, 64, BLOCKS};

static uint32_t roll(struct sim *sim, uint32_t below)
{
	return (uint32_t)(next_random(&sim->random) % below);
}

/* ---- engines -------------------------------------------------------------------------------- */

static void engine_register(struct sim *sim, struct engine *engine)
{
	struct ssv_region offer = {
	    .memory = engine->memory, .fd = engine->region.fd, .bytes = engine->region.made.bytes};
	char error[SSV_ERROR_TEXT_MAX] = "";

	if (engine->memory == SSV_MEMORY_ADDRESS)
		offer.address = (uintptr_t)engine->region.memory;
	if (plane_region_add(sim->rig.plane, engine->region.session, &offer,
			     &engine->region.made.layout, NULL, NULL, &engine->region.region,
			     error))
		fail_msg("region: %s", error);
	engine->registered = 1;
	engine->removing = 0;
}

static void engine_create(struct sim *sim, uint32_t index)
{
	struct engine *engine = &sim->engines[index];
	const struct ssv_layout *layout = &engine->region.made.layout;
	const enum packing packing = (enum packing)roll(sim, PACKING_AMX);

	engine->memory = roll(sim, 2) ? SSV_MEMORY_MEMFD : SSV_MEMORY_ADDRESS;
	if (engine->memory == SSV_MEMORY_MEMFD)
		region_create(&sim->rig, &engine->region, packing, &shape, 0);
	else
		engine->memory =
		    region_create_address(&sim->rig, &engine->region, packing, &shape, 0);
	engine->registered = 1;
	engine->shadow = malloc(engine->region.made.bytes);
	engine->block_of = malloc(engine->region.made.bytes);
	assert_true(engine->shadow && engine->block_of);
	memcpy(engine->shadow, engine->region.memory, engine->region.made.bytes);
	for (uint32_t tensor = 0; tensor < layout->tensors_count; tensor++) {
		for (uint32_t i = 0; i < BLOCKS * 64 * 16; i++) {
			uint64_t at =
			    element_place(layout, tensor, i / (64 * 16), i / 16 % 64, 0, i % 16);

			engine->block_of[at] = engine->block_of[at + 1] = (uint8_t)(i / (64 * 16));
		}
	}
}

static void engine_destroy(struct engine *engine)
{
	region_destroy(&engine->region);
	free(engine->shadow);
	free(engine->block_of);
}

/* Nothing but blocks of running fetches may differ from the shadow. */
static void engine_check(const struct engine *engine)
{
	const uint8_t *memory = engine->region.memory;
	const uint64_t bytes = engine->region.made.bytes;

	if (memcmp(memory, engine->shadow, bytes) == 0)
		return;
	for (uint64_t i = 0; i < bytes; i++) {
		if (memory[i] != engine->shadow[i] && engine->use[engine->block_of[i]] != USE_FETCH)
			fail_msg("byte %llu of block %u changed", (unsigned long long)i,
				 engine->block_of[i]);
	}
}

static void mark_blocks(uint8_t marks[BLOCKS], const uint32_t *blocks, uint32_t count)
{
	memset(marks, 0, BLOCKS);
	for (uint32_t i = 0; i < count; i++)
		marks[blocks[i]] = 1;
}

/* The engine takes blocks over as they are now. */
static void engine_adopt(struct engine *engine, const uint32_t *blocks, uint32_t count)
{
	uint8_t marks[BLOCKS];

	mark_blocks(marks, blocks, count);
	for (uint64_t i = 0; i < engine->region.made.bytes; i++) {
		if (marks[engine->block_of[i]])
			engine->shadow[i] = engine->region.memory[i];
	}
}

/* The engine uses its blocks for something else. */
static void engine_scribble(struct sim *sim, struct engine *engine, const uint32_t *blocks,
			    uint32_t count)
{
	uint8_t byte = (uint8_t)roll(sim, 256), marks[BLOCKS];

	mark_blocks(marks, blocks, count);
	for (uint64_t i = 0; i < engine->region.made.bytes; i++) {
		if (marks[engine->block_of[i]])
			engine->region.memory[i] = engine->shadow[i] = byte;
	}
}

static int engine_take_blocks(struct sim *sim, struct engine *engine, uint32_t *blocks,
			      uint32_t count, enum use use)
{
	uint32_t start = roll(sim, BLOCKS), n = 0;

	for (uint32_t i = 0; i < BLOCKS && n < count; i++) {
		uint32_t block = (start + i * 7) % BLOCKS;

		if (engine->use[block] == USE_FREE)
			blocks[n++] = block;
	}
	if (n < count)
		return 0;
	for (uint32_t i = 0; i < n; i++)
		engine->use[blocks[i]] = (uint8_t)use;
	return 1;
}

/* ---- requests ------------------------------------------------------------------------------- */

static struct request *request_find(struct sim *sim, uint64_t user_data)
{
	for (uint32_t i = 0; i < REQUESTS; i++) {
		if (sim->requests[i].used && sim->requests[i].request.user_data == user_data)
			return &sim->requests[i];
	}
	return NULL;
}

static int request_fill(struct sim *sim, struct request *r, uint8_t op)
{
	struct engine *engine = &sim->engines[r->engine];
	uint32_t count = 1 + roll(sim, CHUNKS_MAX), blocks = count * PER_CHUNK;

	r->chunk = roll(sim, CHUNKS - count + 1);
	for (uint32_t i = 0; i < count; i++)
		r->keys[i] = chunk_key(r->chunk + i);
	r->request.keys = r->keys;
	r->request.keys_count = count;
	r->request.deadline_ms = roll(sim, 4) ? 0 : 1 + roll(sim, 10);
	if (op == SSV_OP_LOOKUP)
		return 1;
	r->request.region = engine->region.region;
	r->request.position = r->chunk * SSV_CHUNK_TOKENS;
	if (op == SSV_OP_FETCH) {
		uint32_t skipped = roll(sim, PER_CHUNK), dropped = roll(sim, PER_CHUNK);

		if (skipped + dropped >= blocks)
			dropped = 0;
		r->request.first_token = skipped * 64;
		blocks -= skipped + dropped;
	} else {
		r->request.tier = SSV_TIER_LOSSLESS;
		r->request.codec = (uint8_t)(SSV_CODEC_STORED + roll(sim, 3));
	}
	r->request.blocks = r->blocks;
	r->request.blocks_count = blocks;
	if (!engine_take_blocks(sim, engine, r->blocks, blocks,
				op == SSV_OP_FETCH ? USE_FETCH : USE_STORE))
		return 0;
	if (op == SSV_OP_STORE) {
		for (uint32_t i = 0; i < count; i++)
			region_fill(&engine->region, r->chunk + i, 0, r->blocks + i * PER_CHUNK,
				    PER_CHUNK);
		engine_adopt(engine, r->blocks, blocks);
	}
	return 1;
}

static void request_free_blocks(struct sim *sim, struct request *r)
{
	for (uint32_t i = 0; i < r->request.blocks_count; i++)
		sim->engines[r->engine].use[r->blocks[i]] = USE_FREE;
}

static void act_submit_for(struct sim *sim, uint32_t index, uint8_t op)
{
	struct request *r = NULL;
	struct engine *engine;
	int err;

	for (uint32_t i = 0; i < REQUESTS && !r; i++)
		r = sim->requests[i].used ? NULL : &sim->requests[i];
	if (!r)
		return;
	memset(r, 0, sizeof(*r));
	r->engine = index;
	engine = &sim->engines[r->engine];
	if (engine->ending || !engine->registered || engine->removing)
		return;
	r->session = engine->region.session;
	r->request.op = op;
	r->request.user_data = ++sim->user_data;
	r->request.target = sim->user_data - 1 - roll(sim, 6);
	if (op <= SSV_OP_STORE && !request_fill(sim, r, op))
		return;
	err = plane_submit(sim->rig.plane, r->session, &r->request, sim->rig.now_ns, NULL);
	if (err && err != -EAGAIN)
		fail_msg("submit of operation %u: %d", op, err);
	if (err)
		request_free_blocks(sim, r);
	else
		r->used = 1;
}

static void act_submit(struct sim *sim, uint8_t op)
{
	act_submit_for(sim, roll(sim, ENGINES), op);
}

static void fetch_check(struct sim *sim, struct request *r, const struct ssv_completion *c)
{
	struct engine *engine = &sim->engines[r->engine];
	uint32_t first = r->request.first_token, i = 0;

	for (uint32_t done = 0; done < c->tokens; i++) {
		uint32_t tokens = (uint32_t)u64_min(SSV_CHUNK_TOKENS - first, c->tokens - done);

		if (region_wrong(&engine->region, r->chunk + i, first, r->blocks + done / 64,
				 tokens / 64))
			fail_msg("chunk %u holds wrong bytes", r->chunk + i);
		done += tokens;
		first = 0;
	}
	sim->hits += c->tokens > 0;
	sim->tokens += c->tokens;
}

static void take_completion(struct sim *sim, const struct plane_event *event)
{
	const struct ssv_completion *c = &event->completion;
	struct request *r = request_find(sim, c->user_data);
	struct engine *engine;

	if (!r)
		fail_msg("a completion of no request: %llu", (unsigned long long)c->user_data);
	engine = &sim->engines[r->engine];
	assert_true(r->session == event->session && r->request.op == c->op);
	assert_true(c->tokens % 64 == 0 && c->status <= 0);
	if (c->op == SSV_OP_FETCH || c->op == SSV_OP_STORE) {
		uint32_t asked = r->request.blocks_count * 64;

		assert_true(c->tokens <= asked && (c->status == 0) == (c->tokens == asked));
	}
	if (c->op == SSV_OP_FETCH) {
		fetch_check(sim, r, c);
		engine_adopt(engine, r->blocks, r->request.blocks_count);
	} else if (c->op == SSV_OP_STORE) {
		/* Captured: the engine may write what it likes. */
		engine_scribble(sim, engine, r->blocks, r->request.blocks_count);
	} else if (c->op == SSV_OP_CANCEL && c->status == 0) {
		assert_null(request_find(sim, r->request.target));
	}
	request_free_blocks(sim, r);
	r->used = 0;
	sim->completed++;
}

static void take_events(struct sim *sim)
{
	struct plane_event event;

	while (plane_poll(sim->rig.plane, &event, 1)) {
		struct engine *engine = NULL;

		if (event.kind == PLANE_EVENT_COMPLETION) {
			take_completion(sim, &event);
			continue;
		}
		for (uint32_t i = 0; i < ENGINES; i++) {
			if (sim->engines[i].region.session == event.session)
				engine = &sim->engines[i];
		}
		assert_non_null(engine);
		/* Nothing of it is running any more. */
		for (uint32_t i = 0; i < REQUESTS; i++)
			assert_false(sim->requests[i].used &&
				     sim->requests[i].session == event.session &&
				     (event.kind == PLANE_EVENT_SESSION_ENDED ||
				      sim->requests[i].request.region == event.region));
		if (event.kind == PLANE_EVENT_SESSION_ENDED) {
			engine->ending = 0;
			engine->region.session = rig_session(&sim->rig, "again", 0, 1);
		}
		engine_register(sim, engine);
	}
}

/* ---- the run -------------------------------------------------------------------------------- */

static void step(struct sim *sim)
{
	const uint32_t who = roll(sim, plane_threads(sim->rig.plane) + 1);
	uint64_t wake_ns;

	if (who == 0)
		plane_step(sim->rig.plane, sim->rig.now_ns);
	else
		plane_worker_step(sim->rig.plane, who - 1, sim->rig.now_ns, &wake_ns);
	sim->rig.now_ns += roll(sim, 20) ? roll(sim, 20000) : roll(sim, 2000000);
	take_events(sim);
	engine_check(&sim->engines[roll(sim, ENGINES)]);
}

/* End a session, often behind a CANCEL of a request in flight and a STORE: what ends with the last
 * completion is then more than the one request. */
static void act_end(struct sim *sim, struct engine *engine)
{
	const uint32_t index = (uint32_t)(engine - sim->engines);

	if (engine->registered && roll(sim, 2)) {
		act_submit_for(sim, index, SSV_OP_FETCH);
		act_submit_for(sim, index, SSV_OP_CANCEL);
		for (uint32_t i = roll(sim, 60); i > 0; i--)
			step(sim);
		act_submit_for(sim, index, SSV_OP_CANCEL);
		act_submit_for(sim, index, SSV_OP_STORE);
		for (uint32_t i = roll(sim, 60); i > 0; i--)
			step(sim);
	}
	plane_session_end(sim->rig.plane, engine->region.session);
	engine->ending = 1;
}

static void act(struct sim *sim)
{
	struct engine *engine = &sim->engines[roll(sim, ENGINES)];
	uint32_t what = roll(sim, 100);

	if (what < 40)
		act_submit(sim, SSV_OP_FETCH);
	else if (what < 70)
		act_submit(sim, SSV_OP_STORE);
	else if (what < 82)
		act_submit(sim, SSV_OP_LOOKUP);
	else if (what < 94)
		act_submit(sim, SSV_OP_CANCEL);
	else if (what < 97)
		act_submit(sim, SSV_OP_FLUSH);
	else if (engine->ending || engine->removing)
		return;
	else if (what < 99) {
		assert_int_equal(plane_region_remove(sim->rig.plane, engine->region.session,
						     engine->region.region),
				 0);
		engine->removing = 1;
	} else {
		act_end(sim, engine);
	}
}

static uint32_t running(const struct sim *sim)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < REQUESTS; i++)
		n += sim->requests[i].used;
	for (uint32_t i = 0; i < ENGINES; i++)
		n += sim->engines[i].ending || sim->engines[i].removing;
	return n;
}

/* Every pool is full again. */
static void check_pools(struct sim *sim)
{
	static const char *const pools[] = {"wire", "capture", "put", "stage", "inflated"};
	char path[64], total[64];

	assert_true(rig_stat(&sim->rig, "jobs") == 0);
	assert_true(rig_stat(&sim->rig, "memory.request_slots_free") ==
		    rig_stat(&sim->rig, "memory.request_slots"));
	for (uint32_t i = 0; i < sim->rig.config.workers_count; i++) {
		for (uint32_t k = 0; k < ARRAY_COUNT(pools); k++) {
			snprintf(path, sizeof(path), "workers.%u.%s_slots_free", i, pools[k]);
			snprintf(total, sizeof(total), "workers.%u.%s_slots", i, pools[k]);
			assert_true(rig_stat(&sim->rig, path) == rig_stat(&sim->rig, total));
		}
		snprintf(path, sizeof(path), "workers.%u.lanes_busy", i);
		assert_true(rig_stat(&sim->rig, path) == 0);
		snprintf(path, sizeof(path), "workers.%u.captures_busy", i);
		assert_true(rig_stat(&sim->rig, path) == 0);
	}
}

/* Half of the worlds have chunks for an inflate engine, some of them one that fails, or stages. */
static void config_inflate(struct sim *sim, struct plane_config *config)
{
	static const char *const engines[] = {
	    NULL, "cpu", "fault+cpu?delay=9&full=40",
	    "fault+cpu?delay=5&full=20&error=10&flip=10&short=10"};

	if (roll(sim, 2))
		return;
	config->codec = SSV_CODEC_DEFLATE;
	config->inflate = engines[roll(sim, ARRAY_COUNT(engines))];
	config->pipeline = roll(sim, 2) ? PLANE_STAGES : PLANE_ONE_PASS;
	for (uint32_t i = 0; i < PLANE_STATIONS; i++)
		config->stations[i] = 1 + roll(sim, 2);
	config->arena_bytes += 4 * MIB;
}

static void run_seed(uint64_t seed, struct sim *totals)
{
	static struct sim sim;
	struct plane_config config = rig_config("sim:");
	uint64_t limit_ns;

	memset(&sim, 0, sizeof(sim));
	sim.random = seed;
	sim.world.random = seed ^ 0x5eed;
	sim.world.faults_per_mille = roll(&sim, 3) ? roll(&sim, 200) : 0;
	config.workers_count = 1 + roll(&sim, 3);
	config.lanes = 1 + roll(&sim, 4);
	config.captures_max = 1 + roll(&sim, 3);
	config.channels_max = 64;
	config.arena_bytes = config.workers_count * (12 + roll(&sim, 8)) * MIB;
	config.jobs_max = 4 + roll(&sim, 24);
	config.fetch_deadline_ms = 30;
	config.store_deadline_ms = 60;
	config.lookup_deadline_ms = 20;
	config.overwrite = roll(&sim, 4) == 0;
	config.overlap = (uint8_t)(roll(&sim, 2) ? roll(&sim, PLANE_OVERLAPS) : 0);
	config_inflate(&sim, &config);
	sim.world.slow_worker = roll(&sim, 3); /* perhaps one that does not exist */
	sim.world.slow_worker_ns = roll(&sim, 30) * NS_PER_MS;
	config.open_store = sim_store_open;
	config.open_store_context = &sim.world;
	config.attach_region = slow_attach;
	slow_way_reset(seed, sim.world.faults_per_mille / 8);
	rig_create(&sim.rig, &config);
	for (uint32_t i = 0; i < ENGINES; i++)
		engine_create(&sim, i);

	for (uint32_t i = 0; i < STEPS; i++) {
		if (roll(&sim, 8) == 0)
			act(&sim);
		step(&sim);
	}
	limit_ns = sim.rig.now_ns + QUIET_NS;
	while (running(&sim) || !plane_drain(sim.rig.plane, sim.rig.now_ns)) {
		step(&sim);
		if (sim.rig.now_ns > limit_ns)
			fail_msg("%u requests still running", running(&sim));
	}
	/* Deletes of bad chunks end too, a second later at most. */
	for (limit_ns = sim.rig.now_ns + 2 * NS_PER_S; sim.rig.now_ns < limit_ns;) {
		sim.rig.now_ns += 5 * NS_PER_MS;
		rig_step(&sim.rig);
		step(&sim);
	}
	check_pools(&sim);
	assert_int_equal(slow_way_jobs_out(), 0);
	/* In a world without faults no chunk is refused. */
	if (sim.world.faults_per_mille == 0)
		assert_true(rig_stat(&sim.rig, "counters.fetch_faults") == 0);
	for (uint32_t i = 0; i < ENGINES; i++)
		engine_check(&sim.engines[i]);
	totals->completed += sim.completed;
	totals->hits += sim.hits;
	totals->tokens += sim.tokens;
	totals->damaged += sim.world.damaged;
	totals->world.deleted += sim.world.deleted;
	totals->inflates += (uint64_t)rig_stat(&sim.rig, "counters.inflates");
	totals->again += (uint64_t)rig_stat(&sim.rig, "counters.inflates_again");
	for (uint32_t i = 0; i < ENGINES; i++)
		engine_destroy(&sim.engines[i]);
	rig_destroy(&sim.rig);
	sim_world_clear(&sim.world);
}

static void every_seed_keeps_the_promises(void **state)
{
	const char *one = getenv("SSV_SEED"), *many = getenv("SSV_SEEDS");
	uint64_t first = one ? strtoull(one, NULL, 0) : 1;
	uint64_t count = one ? 1 : many ? strtoull(many, NULL, 0) : 24;
	static struct sim totals;

	(void)state;
	log_set_level(LOG_LEVEL_ERROR);
	for (uint64_t seed = first; seed < first + count; seed++) {
		print_message("SSV_SEED=%llu\r", (unsigned long long)seed);
		run_seed(seed, &totals);
	}
	print_message("%llu seeds: %u requests, %u fetches with hits, %u tokens, %u damaged "
		      "values, %u deleted, %llu segments inflated, %llu once more\n",
		      (unsigned long long)count, totals.completed, totals.hits, totals.tokens,
		      totals.damaged, totals.world.deleted, (unsigned long long)totals.inflates,
		      (unsigned long long)totals.again);
	/* The simulation itself must not be idle. */
	assert_true(one || (totals.hits > 5 * count / 2 && totals.inflates > 100 && totals.again &&
			    totals.world.deleted > count / 4));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(every_seed_keeps_the_promises),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
