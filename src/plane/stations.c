/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stations.c - the threads of PLANE_STAGES (stage.h): an inflate engine, dequantisers, and one that
 * delivers. Each takes numbers from the workers' rings in turn, does its work and gives them back.
 *
 * A station's step does a bounded amount of work and never waits: a full ring cannot be, because a
 * worker has no more out than its rings hold.
 */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "plane/internal.h"
#include "plane/stage.h"

#define DONE_BATCH  16u
#define HELD_NONE   UINT64_MAX
#define TRACE_SLOTS 4096u

/* ---- creation ------------------------------------------------------------------------------- */

/* Four entries of the largest tensors, and no less than a few of small ones. */
uint64_t inflated_pool_bytes(const struct plane_config *config)
{
	const uint64_t pairs = align_up(config->channels_max, 64) / 2 * SSV_CHUNK_TOKENS;
	const uint64_t entry = u64_min(pairs * ENTRY_TENSORS_MAX, INFLATED_BYTES_MAX);

	if (!config->inflate && config->pipeline == PLANE_ONE_PASS)
		return 0;
	return align_up(u64_max(u64_max(4 * pairs, 2 * entry), MIB), INFLATED_SLOT_BYTES);
}

static int rings_carve(struct arena *arena, struct ring *rings, uint32_t count, uint32_t items)
{
	for (uint32_t i = 0; i < count; i++) {
		uint64_t *memory = arena_carve(arena, items * sizeof(uint64_t), CACHE_LINE_BYTES);

		if (!memory)
			return -ENOSPC;
		ring_init(&rings[i], memory, items);
	}
	return 0;
}

static int station_carve(struct plane *plane, struct station *station)
{
	const struct plane_config *config = &plane->config;
	const uint32_t workers = config->workers_count;
	const uint64_t scratch = codec_scratch_bytes(config->channels_max);
	struct arena *arena = &plane->arena;
	struct trace_slot *slots = NULL;
	uint32_t items = 2 * SEGMENTS_AHEAD;
	int err;

	while (items < config->lanes * SEGMENTS_AHEAD)
		items *= 2;
	station->in = arena_carve(arena, workers * sizeof(struct ring), CACHE_LINE_BYTES);
	station->out = arena_carve(arena, workers * sizeof(struct ring), CACHE_LINE_BYTES);
	station->held = arena_carve(arena, workers * sizeof(uint64_t), CACHE_LINE_BYTES);
	if (!station->in || !station->out || !station->held)
		return -ENOSPC;
	memset(station->held, 0xff, workers * sizeof(uint64_t));
	err = rings_carve(arena, station->in, workers, items);
	if (!err)
		err = rings_carve(arena, station->out, workers, items);
	if (!err && !config->trace_off) {
		slots = arena_carve(arena, TRACE_SLOTS * sizeof(*slots), CACHE_LINE_BYTES);
		err = slots ? 0 : -ENOSPC;
	}
	trace_init(&station->path.trace, slots, slots ? TRACE_SLOTS : 0);
	if (!err && station->kind == PLANE_STATION_DEQUANTISE) {
		station->scratch = arena_carve(arena, scratch, CACHE_LINE_BYTES);
		err = station->scratch ? 0 : -ENOSPC;
	}
	return err;
}

static int station_open(struct plane *plane, struct station *station, char *error)
{
	const struct plane_config *config = &plane->config;
	int err = station_carve(plane, station);

	if (err)
		return plane_refuse(error, err, "arena of %llu bytes is too small for %u stations",
				    (unsigned long long)plane->arena.bytes, plane->stations_count);
	station->ways.queue.worker = config->workers_count + station->index;
	if (station->kind == PLANE_STATION_DEQUANTISE) {
		err =
		    codec_scratch_init(station->scratch, codec_scratch_bytes(config->channels_max),
				       config->channels_max);
		if (err)
			station->scratch = NULL;
	}
	if (!err && station->kind == PLANE_STATION_INFLATE)
		err = plane_inflate_open(plane, config->inflate ? config->inflate : "cpu",
					 config->stations[PLANE_STATION_INFLATE], station->index,
					 &station->inflate, error);
	if (!err)
		err = wake_init(&station->wake);
	return err;
}

int stations_create(struct plane *plane, char *error)
{
	const struct plane_config *config = &plane->config;
	uint32_t n = 0;
	int err = 0;

	if (config->pipeline == PLANE_ONE_PASS)
		return 0;
	for (uint32_t kind = 0; kind < PLANE_STATIONS; kind++)
		plane->stations_count += config->stations[kind];
	plane->stations = arena_carve(&plane->arena, plane->stations_count * sizeof(struct station),
				      CACHE_LINE_BYTES);
	if (!plane->stations)
		return plane_refuse(error, -ENOSPC, "arena of %llu bytes is too small",
				    (unsigned long long)plane->arena.bytes);
	for (uint32_t kind = 0; kind < PLANE_STATIONS; kind++) {
		for (uint32_t i = 0; !err && i < config->stations[kind]; i++) {
			struct station *station = &plane->stations[n++];

			station->plane = plane;
			station->kind = (enum plane_station)kind;
			station->index = i;
			err = station_open(plane, station, error);
		}
	}
	if (err && !error[0])
		plane_refuse(error, err, "stations: starting failed (%d)", err);
	return err;
}

void stations_destroy(struct plane *plane)
{
	for (uint32_t i = 0; plane->stations && i < plane->stations_count; i++) {
		struct station *station = &plane->stations[i];

		inflate_close(station->inflate);
		codec_scratch_fini(station->scratch);
		if (station->wake.fd > 0)
			wake_fini(&station->wake);
	}
}

/* ---- the three stages ----------------------------------------------------------------------- */

static uint64_t station_now(struct station *station)
{
	if (station->plane->config.clock_ns)
		station->latest_ns = station->plane->config.clock_ns();
	return station->latest_ns;
}

static void station_return(struct station *station, uint32_t worker, uint64_t message)
{
	counter_add(&station->items, 1); /* before anybody can know of it */
	ssv_assert(ring_push(&station->out[worker], message));
	wake_signal(&station->plane->workers[worker].wake);
}

/* The next number of a worker: one that was taken before, or from its ring. */
static int station_take(struct station *station, uint32_t worker, uint64_t *ret_message)
{
	if (station->held[worker] == HELD_NONE)
		return ring_pop(&station->in[worker], ret_message);
	*ret_message = station->held[worker];
	station->held[worker] = HELD_NONE;
	return 1;
}

static struct lane *lane_of(const struct station *station, uint32_t worker, uint64_t message)
{
	return &station->plane->workers[worker].lanes[message >> 32];
}

static int inflate_take(struct station *station, uint32_t worker)
{
	const struct inflate_ops *ops = station->inflate->ops;
	uint64_t message;
	int did = 0;

	while (station_take(station, worker, &message)) {
		struct segment *segment =
		    &lane_of(station, worker, message)->ahead.segments[(uint32_t)message];
		struct inflate_job *job = &segment->job;

		if (ops->submit(station->inflate, &job, 1) != 1) {
			station->held[worker] = message; /* the engine is full: later */
			return did;
		}
		station->out_count++;
		did = 1;
	}
	return did;
}

static int inflate_step(struct station *station)
{
	const uint32_t workers = station->plane->config.workers_count;
	const uint64_t begun_ns = station_now(station);
	struct inflate_job *done[DONE_BATCH];
	struct path_subject subject = {0};
	uint32_t n = 0;
	int did = 0;

	for (uint32_t i = 0; i < workers; i++)
		did |= inflate_take(station, (station->turn + i) % workers);
	station->turn = (station->turn + 1) % workers;
	if (station->out_count)
		n = station->inflate->ops->poll(station->inflate, done, DONE_BATCH);
	if (n) {
		subject = ((struct segment *)done[0]->owner)->subject;
		path_stage(&station->path, STAGE_INFLATE, begun_ns, station_now(station), &subject);
	}
	for (uint32_t i = 0; i < n; i++) {
		const struct segment *segment = done[i]->owner;

		station->out_count--;
		station_return(station, segment->worker,
			       (uint64_t)segment->lane << 32 | segment->index);
	}
	return did || n;
}

static int dequantise_step(struct station *station)
{
	const uint32_t workers = station->plane->config.workers_count;

	for (uint32_t i = 0; i < workers; i++) {
		const uint32_t worker = (station->turn + i) % workers;
		const uint64_t begun_ns = station_now(station);
		struct lane *lane;
		uint64_t message;

		if (!station_take(station, worker, &message))
			continue;
		lane = lane_of(station, worker, message);
		decode_work_run(&lane->container, &lane->ahead.work, station->scratch);
		path_stage(&station->path, STAGE_DECODE, begun_ns, station_now(station),
			   &lane->ahead.work.subject);
		station_return(station, worker, message);
		station->turn = (worker + 1) % workers;
		return 1;
	}
	return 0;
}

static int deliver_take(struct station *station, uint32_t worker)
{
	uint64_t message;
	struct lane *lane;

	if (!ring_pop(&station->in[worker], &message))
		return 0;
	lane = lane_of(station, worker, message);
	lane->ahead.delivering = lane->jobs_open;
	for (uint32_t k = 0, n = lane->jobs_open; k < n; k++)
		ways_submit(&station->ways, &lane->jobs[k]);
	return 1;
}

static int deliver_step(struct station *station)
{
	const uint32_t workers = station->plane->config.workers_count;
	const uint64_t begun_ns = station_now(station);
	struct deliver_job *done[DONE_BATCH];
	struct path_subject subject = {0};
	uint32_t at = 0, n, all = 0;
	int did = 0;

	for (uint32_t i = 0; i < workers; i++)
		did |= deliver_take(station, i);
	while ((n = ways_poll(&station->ways, &at, done, DONE_BATCH)) > 0) {
		all += n;
		for (uint32_t i = 0; i < n; i++) {
			struct lane *lane = done[i]->owner;

			subject = lane->ahead.work.subject;
			if (--lane->ahead.delivering == 0)
				station_return(station, lane->ahead.worker,
					       (uint64_t)lane->index << 32);
		}
	}
	if (did || all)
		path_stage(&station->path, STAGE_DELIVER, begun_ns, station_now(station), &subject);
	return did || all;
}

/* ---- the step ------------------------------------------------------------------------------- */

int station_step(struct station *station, uint64_t now_ns, uint64_t *ret_wake_ns)
{
	enum ways_out out;
	int did, is_busy;

	tally_use(&station->path.tally);
	wake_begin(&station->wake);
	(void)path_epoch_begins(&station->path);
	station->latest_ns = station->ways.queue.now_ns = now_ns;
	switch (station->kind) {
	case PLANE_STATION_INFLATE:
		did = inflate_step(station);
		break;
	case PLANE_STATION_DEQUANTISE:
		did = dequantise_step(station);
		break;
	default:
		did = deliver_step(station);
		break;
	}
	counter_add(&station->steps, 1);
	counter_add(&station->idle_steps, !did);
	out = ways_are_out(&station->ways);
	*ret_wake_ns = out == WAYS_SLEEP ? now_ns + DELIVER_LOOK_NS : TIME_NEVER;
	is_busy = did || station->out_count || out == WAYS_LOOK;
	return is_busy || !wake_may_sleep(&station->wake);
}
