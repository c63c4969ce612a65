/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker_memory.c - what a worker is made of: its share of the arena, its wake-up, its store
 * handle.
 *
 * Control path: everything is taken here, at start, and given back at the end. What does not fit is
 * refused with the numbers.
 */
#include <errno.h>

#include "plane/internal.h"

#define TRACE_SLOTS_MIN 1024u
#define TRACE_SLOTS_MAX 65536u

static uint32_t power_of_two(uint32_t n)
{
	uint32_t power = 1;

	while (power < n)
		power *= 2;
	return power;
}

static int pool_create(struct arena *arena, struct slots *slots, uint64_t slot_bytes,
		       uint32_t count)
{
	struct slot_state *states = arena_carve(arena, sizeof(*states) * count, CACHE_LINE_BYTES);
	uint8_t *memory = arena_carve(arena, slot_bytes * count, 4 * KIB);

	if (!states || !memory)
		return -ENOSPC;
	slots_init(slots, memory, states, slot_bytes, count);
	return 0;
}

/* Rings, tables and scratch, whose sizes follow from the configuration. */
static int worker_carve_tables(struct plane *plane, struct worker *worker)
{
	const struct plane_config *config = &plane->config;
	/* A slot may have three messages unread: a CANCEL that came too late for its last task, the
	 * next TASK and its CANCEL; back come at most CAPTURED and DONE. Besides RECALLs: one, and
	 * one for each report that was made before the first was read. */
	const uint32_t ring = power_of_two(5 * plane->tasks_count + 1);
	const uint64_t scratch = codec_scratch_bytes(config->channels_max);
	struct arena *arena = &plane->arena;
	uint64_t *inbox = arena_carve(arena, ring * sizeof(uint64_t), CACHE_LINE_BYTES);
	uint64_t *outbox = arena_carve(arena, ring * sizeof(uint64_t), CACHE_LINE_BYTES);

	worker->tasks = arena_carve(arena, plane->tasks_count * sizeof(struct task), 64);
	worker->lanes = arena_carve(arena, config->lanes * sizeof(struct lane), 64);
	worker->captures = arena_carve(arena, config->captures_max * sizeof(struct capture), 64);
	worker->held = arena_carve(arena, plane->tasks_count * sizeof(uint32_t), 64);
	worker->queue = arena_carve(arena, plane->tasks_count * sizeof(uint32_t), 64);
	worker->seen = arena_carve(arena, config->regions_max * sizeof(struct value_seen), 64);
	worker->decode_scratch = arena_carve(arena, scratch, 64);
	worker->encode_scratch = arena_carve(arena, scratch, 64);
	if (!inbox || !outbox || !worker->tasks || !worker->lanes || !worker->captures ||
	    !worker->held || !worker->queue || !worker->seen || !worker->decode_scratch ||
	    !worker->encode_scratch)
		return -ENOSPC;
	ring_init(&worker->inbox, inbox, ring);
	ring_init(&worker->outbox, outbox, ring);
	for (uint32_t i = 0; i < config->lanes; i++) {
		struct lane *lane = &worker->lanes[i];

		lane->index = i;
		lane->tokens =
		    arena_carve(arena, sizeof(uint8_t *) * JOBS_MAX * SSV_CHUNK_TOKENS, 64);
		if (!lane->tokens)
			return -ENOSPC;
	}
	for (uint32_t i = 0; i < config->captures_max; i++) {
		struct capture *capture = &worker->captures[i];

		capture->index = i;
		capture->task = plane->task_first[TASK_STORE] + i;
		capture->tokens =
		    arena_carve(arena, sizeof(uint8_t *) * JOBS_MAX * SSV_CHUNK_TOKENS, 64);
		if (!capture->tokens)
			return -ENOSPC;
	}
	return 0;
}

/* What is left of this worker's share becomes slots: half for values that come in, a quarter each
 * for captured chunks and for values that go out. */
static int worker_carve_slots(struct plane *plane, struct worker *worker, uint64_t end)
{
	const uint64_t slot = WIRE_SLOT_BYTES + sizeof(struct slot_state);
	struct arena *arena = &plane->arena;
	uint64_t left, count;
	int err;

	err = pool_create(arena, &worker->stage, STAGE_SLOT_BYTES,
			  (uint32_t)(plane->stage_bytes / STAGE_SLOT_BYTES));
	if (!err && plane->inflated_bytes)
		err = pool_create(arena, &worker->inflated, INFLATED_SLOT_BYTES,
				  (uint32_t)(plane->inflated_bytes / INFLATED_SLOT_BYTES));
	if (err)
		return err;
	left = end > arena->used + 64 * KIB ? end - arena->used - 64 * KIB : 0;
	count = left / slot;
	if (count < 4)
		return -ENOSPC;
	err = pool_create(arena, &worker->wire, WIRE_SLOT_BYTES, (uint32_t)(count / 2));
	if (!err)
		err = pool_create(arena, &worker->capture, WIRE_SLOT_BYTES, (uint32_t)(count / 4));
	if (!err)
		err = pool_create(arena, &worker->put, WIRE_SLOT_BYTES,
				  (uint32_t)(count - count / 2 - count / 4));
	return err;
}

/* A 128th of the share, within limits: some seconds of events, or what a small arena can spare. */
static int worker_carve_trace(struct plane *plane, struct worker *worker, uint64_t share)
{
	const uint64_t slot = sizeof(struct trace_slot);
	uint64_t count = TRACE_SLOTS_MIN;
	struct trace_slot *slots;

	trace_init(&worker->path.trace, NULL, 0);
	if (plane->config.trace_off)
		return 0;
	while (count < TRACE_SLOTS_MAX && 2 * count * slot <= share / 128)
		count *= 2;
	slots = arena_carve(&plane->arena, count * slot, CACHE_LINE_BYTES);
	if (!slots)
		return -ENOSPC;
	trace_init(&worker->path.trace, slots, count);
	return 0;
}

static int worker_carve(struct plane *plane, struct worker *worker, char *error)
{
	const uint32_t workers = plane->config.workers_count - worker->index;
	const uint64_t start = plane->arena.used;
	const uint64_t share = arena_left(&plane->arena) / workers;
	int err;

	err = worker_carve_tables(plane, worker);
	if (!err)
		err = worker_carve_trace(plane, worker, share);
	if (!err)
		err = worker_carve_slots(plane, worker, start + share);
	if (err)
		return plane_refuse(
		    error, -ENOSPC,
		    "arena of %llu bytes is too small: each of %u workers has %llu, and needs "
		    "about %llu for tables, scratch (channels_max %u) and staging, and 4 MiB or "
		    "more for slots",
		    (unsigned long long)plane->arena.bytes, plane->config.workers_count,
		    (unsigned long long)share,
		    (unsigned long long)(2 * codec_scratch_bytes(plane->config.channels_max) +
					 plane->stage_bytes + plane->inflated_bytes + MIB),
		    plane->config.channels_max);
	plane->wire_bytes = slots_total_bytes(&worker->wire);
	plane->capture_bytes = slots_total_bytes(&worker->capture);
	plane->put_bytes = slots_total_bytes(&worker->put);
	return 0;
}

static int worker_open_store(struct plane *plane, struct worker *worker, char *error)
{
	const struct plane_config *config = &plane->config;
	const struct store_config store = {
	    .uri = config->store_uri,
	    .seed = config->seed + worker->index,
	    .value_bytes_max = slots_total_bytes(&worker->wire) - CONTAINER_SLACK_BYTES,
	    .ops_max = config->lanes + config->captures_max + LOOKUP_TASKS * LOOKUP_BATCH,
	};

	if (config->open_store)
		return config->open_store(config->open_store_context, worker->index, &store,
					  &worker->store, error);
	return store_open(&store, &worker->store, error);
}

/* An engine of a worker or a station; what it can do is the same for all of them. */
int plane_inflate_open(struct plane *plane, const char *name, uint32_t handles, uint32_t index,
		       struct inflate **ret_inflate, char *error)
{
	const struct inflate_config inflate = {
	    .name = name,
	    .seed = plane->config.seed + index,
	    .depth = INFLATE_DEPTH,
	    .handles = handles,
	    .memory = plane->arena.base,
	    .memory_bytes = plane->arena.bytes,
	};
	int err = inflate_open(&inflate, ret_inflate, error);

	if (!err)
		(*ret_inflate)->ops->caps(*ret_inflate, &plane->inflate_caps);
	return err;
}

int worker_create(struct plane *plane, uint32_t index, char *error)
{
	const uint64_t scratch = codec_scratch_bytes(plane->config.channels_max);
	struct worker *worker = &plane->workers[index];
	int err;

	worker->plane = plane;
	worker->index = index;
	worker->ways.queue.worker = index;
	worker->encoding = NO_INDEX;
	worker->work_stage = STAGE_NONE;
	err = worker_carve(plane, worker, error);
	if (!err)
		err =
		    codec_scratch_init(worker->decode_scratch, scratch, plane->config.channels_max);
	if (!err)
		err =
		    codec_scratch_init(worker->encode_scratch, scratch, plane->config.channels_max);
	if (!err)
		err = wake_init(&worker->wake);
	if (!err)
		err = worker_open_store(plane, worker, error);
	if (!err && plane->config.inflate && !plane->stations)
		err = plane_inflate_open(plane, plane->config.inflate, plane->config.workers_count,
					 index, &worker->inflate, error);
	if (err && !error[0])
		plane_refuse(error, err, "worker %u: starting failed (%d)", index, err);
	return err;
}

void worker_destroy(struct worker *worker)
{
	inflate_close(worker->inflate);
	store_close(worker->store);
	worker->store = NULL;
	if (worker->wake.fd > 0)
		wake_fini(&worker->wake);
	codec_scratch_fini(worker->encode_scratch);
	codec_scratch_fini(worker->decode_scratch);
}
