/* SPDX-License-Identifier: Apache-2.0 */
/*
 * segment.c - from wire slots to the region: open a chunk as soon as its front has arrived, decode
 * each segment once the watermark has passed it, deliver.
 *
 * A lane's segments are decoded in order. What other threads and engines do for it meanwhile is
 * stage.c's.
 */
#include <errno.h>
#include <string.h>

#include "plane/internal.h"

static struct task *lane_task(struct worker *worker, const struct lane *lane)
{
	return &worker->tasks[lane->task];
}

/* ---- segments ------------------------------------------------------------------------------- */

static int lane_open(struct worker *worker, struct lane *lane)
{
	struct task *task = lane_task(worker, lane);
	const uint64_t received = lane_received(lane);
	const struct layout *layout = task->region->layout;
	const struct container_expect expect = {
	    .key = *task->keys,
	    .value_bytes = lane->op.op.value_bytes,
	    .shape = &layout->shape,
	    .tokens_min = task->first_token + task->blocks_count * layout->block_tokens,
	    .model = layout->model,
	    .first_token = task->position,
	    .min_tier = task->min_tier,
	};
	enum container_fault fault;
	int err;

	if (lane->op.state != OP_IDLE &&
	    (expect.value_bytes == 0 || received < CONTAINER_HEADER_BYTES))
		return 0;
	if (received == lane->tried_bytes)
		return 0;
	lane->tried_bytes = received;
	worker->work_stage = STAGE_OPEN;
	worker->work = task_subject(task, lane->index);
	err = container_open(&lane->container, lane->op.op.data, received, &expect, &fault);
	if (err == 0) {
		lane->opened = 1;
		task->value_bytes = lane->container.header.total_bytes;
	} else if (err != -EAGAIN) {
		fetch_fault(worker, lane, fault);
	} else if (lane->op.state == OP_IDLE) {
		fetch_fault(worker, lane, CONTAINER_FAULT_TRUNCATED);
	}
	return 1;
}

/* Tensors that travel with this entry's first: a group that the way joins, if the entries ahead
 * hold one tensor each; *ret_joined says whether they do. */
static uint32_t lane_tensors(const struct lane *lane, const struct region *region,
			     const struct container_entry *entry, uint32_t tensor, int *ret_joined)
{
	const uint32_t parts = region->layout->parts_count;
	const uint32_t n = deliver_join(region, tensor);

	*ret_joined = 0;
	if (n == 1 || entry->tensors_count > 1)
		return entry->tensors_count;
	for (uint32_t i = lane->entry + 1; i < lane->container.header.segments_count; i++) {
		struct container_entry next;

		container_entry(&lane->container, i, &next);
		if ((uint32_t)next.layer * parts + next.part >= tensor + n)
			break;
		if (next.tensors_count > 1)
			return entry->tensors_count;
	}
	*ret_joined = 1;
	return n;
}

/* Say where the tensors of an entry go, and those that travel with them. Returns 0 when no staging
 * memory is free now. */
static int lane_open_jobs(struct worker *worker, struct lane *lane,
			  const struct container_entry *entry)
{
	const struct task *task = lane_task(worker, lane);
	const struct region *region = task->region;
	const uint32_t tensor = (uint32_t)entry->layer * region->layout->parts_count + entry->part;
	int joined;
	const uint32_t n = lane_tensors(lane, region, entry, tensor, &joined);
	const uint64_t stage_bytes = deliver_stage_bytes(region, tensor, n, task->blocks_count);
	struct deliver_job like = {
	    .region = region,
	    .tensor = tensor,
	    .direction = DELIVER_IN,
	    .blocks = task->blocks,
	    .blocks_count = task->blocks_count,
	    .token = lane->tokens + task->first_token,
	    .owner = lane,
	};

	if (stage_bytes) {
		int err = slots_acquire(&worker->stage, stage_bytes, &lane->stage);

		if (err == -EAGAIN)
			return 0;
		ssv_assert(err == 0); /* registration made sure of it */
		like.stage = slots_data(&worker->stage, &lane->stage);
	}
	memset(lane->tokens, 0, sizeof(*lane->tokens) * n * SSV_CHUNK_TOKENS);
	deliver_open(lane->jobs, n, &like, joined);
	lane->jobs_open = (uint8_t)n;
	lane->jobs_decoded = 0;
	return 1;
}

static void lane_submit_jobs(struct worker *worker, struct lane *lane)
{
	lane->jobs_out = lane->jobs_open;
	lane->jobs_ready = 0;
	if (stage_deliver(worker, lane))
		return;
	for (uint32_t k = 0; k < lane->jobs_open; k++)
		ways_submit(&worker->ways, &lane->jobs[k]);
}

/* Is this the last entry of its tensor? One of several tensors holds them whole. */
static int entry_ends_tensor(const struct layout *layout, const struct container_entry *entry)
{
	return entry->tensors_count > 1 || (uint32_t)entry->group0 + entry->groups_count ==
					       part_groups(&layout->parts[entry->part].shape);
}

/* The lane's next entry was decoded, here or elsewhere. */
void segment_decoded(struct worker *worker, struct lane *lane)
{
	const struct layout *layout = lane_task(worker, lane)->region->layout;
	struct container_entry entry;

	stage_decoded(worker, lane, lane->entry);
	if (!lane->over && lane->ahead.work.fault)
		fetch_fault(worker, lane, lane->ahead.work.fault);
	if (lane->over) {
		fetch_quiesce(worker, lane);
		return;
	}
	container_entry(&lane->container, lane->entry, &entry);
	lane->entry++;
	if (!entry_ends_tensor(layout, &entry))
		return;
	lane->jobs_decoded = (uint8_t)(lane->jobs_decoded + entry.tensors_count);
	if (lane->jobs_decoded < lane->jobs_open)
		return;
	lane_count_decoded(worker, lane);
	if (lane->stage.slots_count)
		lane->jobs_ready = 1; /* moved in a unit of its own */
	else
		lane_submit_jobs(worker, lane);
}

static int lane_decode(struct worker *worker, struct lane *lane,
		       const struct container_entry *entry)
{
	struct decode_target *targets = lane->ahead.work.targets;
	const int opens = !lane->jobs_open;

	/* A tensor may be split over entries, and several may travel together: jobs stay open until
	 * the last entry of the last one. */
	if (opens && !lane_open_jobs(worker, lane, entry))
		return 0;
	if (!stage_is_ready(worker, lane))
		return opens;
	for (uint32_t k = 0; k < entry->tensors_count; k++) {
		const struct layout_map *map = lane->jobs[lane->jobs_decoded + k].map;

		targets[k] = (struct decode_target){
		    .token = lane->tokens + (lane->jobs_decoded + k) * SSV_CHUNK_TOKENS,
		    .channel = map->channel,
		    .run_channels = map->run_channels,
		    .token_stride = map->token_stride,
		    .is_staged = lane->stage.slots_count > 0,
		};
	}
	lane_decode_begins(worker, lane, entry);
	stage_decode(worker, lane);
	if (!lane->ahead.work.out)
		segment_decoded(worker, lane);
	return 1;
}

/* May what the lane has received be decoded now? */
static int lane_may_decode(const struct worker *worker, const struct lane *lane)
{
	switch (worker->plane->config.overlap) {
	case PLANE_OVERLAP_CHUNK:
		return lane->op.state == OP_IDLE;
	case PLANE_OVERLAP_NONE:
		return worker->decoding;
	default:
		return 1;
	}
}

static int lane_unit(struct worker *worker, struct lane *lane)
{
	struct container_entry entry;

	if (lane->state != LANE_FETCH || lane->over || !lane_may_decode(worker, lane))
		return 0;
	if (!lane->opened)
		return lane_open(worker, lane);
	if (stage_is_on(worker) && stage_ahead(worker, lane))
		return 1;
	if (lane->jobs_out || lane->ahead.work.out)
		return 0;
	if (lane->jobs_ready) {
		worker->work_stage = STAGE_DELIVER;
		worker->work = task_subject(lane_task(worker, lane), lane->index);
		lane_submit_jobs(worker, lane);
		return 1;
	}
	container_entry(&lane->container, lane->entry, &entry);
	if (container_entry_end(&entry) > lane_received(lane))
		return 0;
	return lane_decode(worker, lane, &entry);
}

int fetch_unit(struct worker *worker)
{
	const uint32_t lanes = worker->plane->config.lanes;

	for (uint32_t i = 0; i < lanes && worker->lanes_busy; i++) {
		struct lane *lane = &worker->lanes[worker->lane_turn];

		/* The same lane again while it has work: its bytes are in the cache. */
		if (lane_unit(worker, lane)) {
			fetch_quiesce(worker, lane);
			return 1;
		}
		worker->lane_turn = (worker->lane_turn + 1) % lanes;
	}
	return 0;
}

void fetch_delivered(struct worker *worker, struct lane *lane, const struct deliver_job *job)
{
	const struct path_subject subject = task_subject(lane_task(worker, lane), lane->index);

	ssv_assert(lane->jobs_out > 0);
	lane->jobs_out--;
	worker_staged_job_back(worker, job, &lane->stage, &subject);
	if (job->status)
		fetch_end(worker, lane, -EIO);
	if (lane->jobs_out == 0) {
		lane->jobs_open = 0;
		slots_release(&worker->stage, &lane->stage);
		if (lane->entry == lane->container.header.segments_count)
			fetch_end(worker, lane, 0);
	}
	fetch_quiesce(worker, lane);
}
