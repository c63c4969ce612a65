/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stage.c - the worker's side of engines and stations (stage.h): what is handed to them, and what
 * becomes of it when it is back.
 *
 * An engine is not believed: its output is checked, and an entry that it failed at is inflated by
 * the decoder, which also decides whether it is the chunk that is damaged. So a broken engine costs
 * time and is counted, and nothing else.
 *
 * No lane waits for another in a circle. A lane whose region needs staging memory has taken that
 * before it takes slots to inflate into, and takes those for the tensors that it stages alone; a
 * lane that holds slots can therefore always decode its next entry and give one back.
 */
#include "plane/stage.h"

#include <errno.h>

#include "base/log.h"
#include "plane/internal.h"

#define DONE_BATCH 16u

static uint64_t stage_message(uint32_t lane, uint32_t segment)
{
	return (uint64_t)lane << 32 | segment;
}

static struct station *stations_of(const struct worker *worker, enum plane_station kind,
				   uint32_t *ret_count)
{
	const struct plane *plane = worker->plane;
	uint32_t first = 0;

	for (uint32_t k = 0; k < (uint32_t)kind; k++)
		first += plane->config.stations[k];
	*ret_count = plane->stations ? plane->config.stations[kind] : 0;
	return plane->stations + first;
}

/* Give a number to a station; which one is the turn's. */
static void stage_send(struct worker *worker, enum plane_station kind, uint64_t message)
{
	uint32_t count;
	struct station *stations = stations_of(worker, kind, &count);
	struct station *station = &stations[worker->stage_turn[kind]++ % count];

	/* The ring has room for everything that a worker's lanes can have out. */
	ssv_assert(ring_push(&station->in[worker->index], message));
	wake_signal(&station->wake);
}

int stage_is_on(const struct worker *worker)
{
	return worker->inflate || worker->plane->stations;
}

void stage_begin(const struct worker *worker, struct lane *lane)
{
	lane->ahead.worker = (uint16_t)worker->index;
	lane->ahead.next = lane->ahead.checked = 0;
	lane->ahead.out = 0;
	lane->ahead.work.out = 0;
	for (uint32_t i = 0; i < SEGMENTS_AHEAD; i++)
		lane->ahead.segments[i].state = SEGMENT_NONE;
}

/* ---- to the engine -------------------------------------------------------------------------- */

/* One past the last entry that may be looked at now. */
static uint32_t ahead_limit(const struct worker *worker, const struct lane *lane)
{
	const struct region *region = worker->tasks[lane->task].region;
	const uint32_t parts = region->layout->parts_count;
	uint32_t limit =
	    (uint32_t)u64_min(lane->entry + SEGMENTS_AHEAD, lane->container.header.segments_count);

	if (!region->ops->stage_bytes(region, 0, 1))
		return limit;
	for (uint32_t i = lane->entry; i < limit; i++) {
		struct container_entry entry;

		container_entry(&lane->container, i, &entry);
		if (!lane->jobs_open || (uint32_t)entry.layer * parts + entry.part >=
					    lane->jobs[0].tensor + lane->jobs_open)
			return i;
	}
	return limit;
}

static int segment_submit(struct worker *worker, struct segment *segment)
{
	struct inflate_job *job = &segment->job;

	if (!worker->inflate) {
		stage_send(worker, PLANE_STATION_INFLATE,
			   stage_message(segment->lane, segment->index));
		return 1;
	}
	return worker->inflate->ops->submit(worker->inflate, &job, 1) == 1;
}

/* 1: it is out; 0: there is no room now. */
static int segment_begin(struct worker *worker, struct lane *lane, uint32_t entry,
			 const struct segment_stream *stream)
{
	struct segment *segment = &lane->ahead.segments[entry % SEGMENTS_AHEAD];

	if (slots_acquire(&worker->inflated, stream->out_bytes, &segment->run))
		return 0;
	segment->lane = (uint8_t)lane->index;
	segment->worker = (uint16_t)worker->index;
	segment->index = entry % SEGMENTS_AHEAD;
	segment->job = (struct inflate_job){.in = stream->in,
					    .in_bytes = stream->in_bytes,
					    .out = slots_data(&worker->inflated, &segment->run),
					    .out_bytes = stream->out_bytes,
					    .owner = segment};
	segment->begun_ns = worker->latest_ns;
	segment->subject = task_subject(&worker->tasks[lane->task], lane->index);
	segment->subject.detail = (uint16_t)entry;
	segment->subject.value = stream->out_bytes;
	if (!segment_submit(worker, segment)) {
		slots_release(&worker->inflated, &segment->run);
		return 0;
	}
	segment->state = SEGMENT_OUT;
	lane->ahead.out++;
	worker->segments_out++;
	return 1;
}

/* Is this entry for the engine, with the limits that it has? */
static int segment_is_for_engine(const struct worker *worker, const struct lane *lane,
				 uint32_t entry, struct segment_stream *ret_stream)
{
	const struct plane *plane = worker->plane;

	return segment_stream(&lane->container, entry, ret_stream) && ret_stream->in_bytes &&
	       ret_stream->in_bytes <= plane->inflate_caps.in_bytes_max &&
	       ret_stream->out_bytes <= plane->inflate_caps.out_bytes_max &&
	       ret_stream->out_bytes <= slots_total_bytes(&worker->inflated);
}

int stage_ahead(struct worker *worker, struct lane *lane)
{
	const uint32_t limit = ahead_limit(worker, lane);
	struct segment_stream stream;
	struct container_entry entry;

	for (; lane->ahead.next < limit; lane->ahead.next++) {
		container_entry(&lane->container, lane->ahead.next, &entry);
		if (container_entry_end(&entry) > lane_received(lane))
			return 0;
		if (!segment_is_for_engine(worker, lane, lane->ahead.next, &stream)) {
			lane->ahead.segments[lane->ahead.next % SEGMENTS_AHEAD].state =
			    SEGMENT_INLINE;
			continue;
		}
		/* Before its bytes reach an engine, and while they are in the cache. */
		worker->work_stage = STAGE_INFLATE;
		worker->work = task_subject(&worker->tasks[lane->task], lane->index);
		worker->work.detail = (uint16_t)lane->ahead.next;
		worker->work.value = stream.out_bytes;
		if (lane->ahead.checked <= lane->ahead.next &&
		    container_segment_check(&lane->container, lane->ahead.next)) {
			fetch_fault(worker, lane, CONTAINER_FAULT_SEGMENT_CRC);
			return 1;
		}
		lane->ahead.checked = lane->ahead.next + 1;
		if (!segment_begin(worker, lane, lane->ahead.next, &stream)) {
			worker->work_stage = STAGE_NONE;
			return 0;
		}
		lane->ahead.next++;
		return 1;
	}
	return 0;
}

/* A segment is back from the engine, by whichever way. */
static void segment_back(struct worker *worker, struct segment *segment)
{
	struct lane *lane = &worker->lanes[segment->lane];

	ssv_assert(segment->state == SEGMENT_OUT);
	segment->state = SEGMENT_BACK;
	lane->ahead.out--;
	worker->segments_out--;
	counter_add(&worker->counters[COUNTER_INFLATES], 1);
	if (!segment->job.status)
		tally_add(TALLY_BYTES_INFLATED, segment->job.out_bytes);
	path_stage(&worker->path, STAGE_INFLATING, segment->begun_ns, worker->latest_ns,
		   &segment->subject);
	fetch_quiesce(worker, lane);
}

/* ---- decoding ------------------------------------------------------------------------------- */

int stage_is_ready(const struct worker *worker, const struct lane *lane)
{
	const struct segment *segment = &lane->ahead.segments[lane->entry % SEGMENTS_AHEAD];

	if (!stage_is_on(worker))
		return 1;
	return lane->entry < lane->ahead.next && segment->state != SEGMENT_OUT;
}

void decode_work_run(const struct container *container, struct decode_work *work, void *scratch)
{
	work->again = 0;
	if (work->pairs) {
		if (segment_decode_inflated(container, work->entry, work->pairs, work->targets,
					    scratch, &work->fault) == 0)
			return;
		work->again = 1;
	}
	(void)!segment_decode(container, work->entry, work->targets, scratch, &work->fault);
}

void stage_decode(struct worker *worker, struct lane *lane)
{
	const struct segment *segment = &lane->ahead.segments[lane->entry % SEGMENTS_AHEAD];
	struct decode_work *work = &lane->ahead.work;

	work->entry = lane->entry;
	work->pairs = NULL;
	if (stage_is_on(worker) && segment->state == SEGMENT_BACK && !segment->job.status)
		work->pairs = segment->job.out;
	if (!worker->plane->stations) {
		decode_work_run(&lane->container, work, worker->decode_scratch);
		work->again |=
		    stage_is_on(worker) && segment->state == SEGMENT_BACK && segment->job.status;
		return;
	}
	work->out = 1;
	work->subject = worker->work;
	worker->work_stage = STAGE_NONE; /* another thread's */
	stage_send(worker, PLANE_STATION_DEQUANTISE, stage_message(lane->index, 0));
}

void stage_decoded(struct worker *worker, struct lane *lane, uint32_t entry)
{
	struct segment *segment = &lane->ahead.segments[entry % SEGMENTS_AHEAD];

	if (!stage_is_on(worker))
		return;
	if (segment->state == SEGMENT_BACK && !lane->ahead.work.fault &&
	    (segment->job.status || lane->ahead.work.again)) {
		if (!counter_read(&worker->counters[COUNTER_INFLATES_AGAIN]))
			log_warn("inflate engine failed at a chunk that is well: entry=%u "
				 "status=%d; decoded without it, counted from now on",
				 entry, segment->job.status);
		counter_add(&worker->counters[COUNTER_INFLATES_AGAIN], 1);
	}
	if (segment->state == SEGMENT_BACK)
		slots_release(&worker->inflated, &segment->run);
	segment->state = SEGMENT_NONE;
}

void stage_end(struct worker *worker, struct lane *lane)
{
	ssv_assert(!lane->ahead.out && !lane->ahead.work.out);
	for (uint32_t i = 0; i < SEGMENTS_AHEAD; i++) {
		struct segment *segment = &lane->ahead.segments[i];

		if (segment->state == SEGMENT_BACK)
			slots_release(&worker->inflated, &segment->run);
		segment->state = SEGMENT_NONE;
	}
}

int stage_deliver(struct worker *worker, struct lane *lane)
{
	/* What the decoder wrote in place needs no other thread. */
	if (!worker->plane->stations || !lane->stage.slots_count)
		return 0;
	stage_send(worker, PLANE_STATION_DELIVER, stage_message(lane->index, 0));
	return 1;
}

/* ---- back ----------------------------------------------------------------------------------- */

static int engine_poll(struct worker *worker)
{
	struct inflate_job *done[DONE_BATCH];
	struct path_subject subject = {0};
	const uint64_t begun_ns = worker_now(worker);
	uint32_t n = worker->inflate->ops->poll(worker->inflate, done, DONE_BATCH);

	if (!n)
		return 0;
	for (uint32_t i = 0; i < n; i++)
		subject.value += done[i]->out_bytes;
	path_stage(&worker->path, STAGE_INFLATE, begun_ns, worker_now(worker), &subject);
	worker->work_ns = worker->latest_ns;
	for (uint32_t i = 0; i < n; i++)
		segment_back(worker, done[i]->owner);
	return 1;
}

static void station_answer(struct worker *worker, const struct station *station, uint64_t message)
{
	struct lane *lane = &worker->lanes[message >> 32];

	switch (station->kind) {
	case PLANE_STATION_INFLATE:
		segment_back(worker, &lane->ahead.segments[(uint32_t)message]);
		break;
	case PLANE_STATION_DEQUANTISE:
		lane->ahead.work.out = 0;
		segment_decoded(worker, lane);
		break;
	default:
		/* Its last job ends the group. */
		for (uint32_t k = 0, n = lane->jobs_open; k < n; k++)
			fetch_delivered(worker, lane, &lane->jobs[k]);
		break;
	}
}

int stage_poll(struct worker *worker)
{
	const struct plane *plane = worker->plane;
	uint64_t message;
	int did = 0;

	if (worker->inflate && worker->segments_out)
		did = engine_poll(worker);
	for (uint32_t i = 0; i < plane->stations_count; i++) {
		struct station *station = &plane->stations[i];

		while (ring_pop(&station->out[worker->index], &message)) {
			station_answer(worker, station, message);
			did = 1;
		}
	}
	return did;
}

int stage_is_busy(const struct worker *worker)
{
	return worker->inflate && worker->segments_out;
}
