/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lane_path.c - what a chunk's way through its lane costs: its waits, its segments, its bytes. Only
 * counted and traced here; the way itself is fetch.c's.
 */
#include "chunk/shape.h"
#include "plane/internal.h"

/* The chunk's whole way through the lane. */
void lane_price(struct worker *worker, const struct lane *lane)
{
	struct path_subject subject = task_subject(&worker->tasks[lane->task], lane->index);

	subject.detail = (uint16_t)-lane->status;
	path_stage(&worker->path, STAGE_CHUNK, lane->begun_ns, worker_now(worker), &subject);
}

/* The task waited for a lane, and then perhaps for slots. */
void lane_price_waits(struct worker *worker, struct lane *lane)
{
	const struct task *task = &worker->tasks[lane->task];
	const struct path_subject subject = task_subject(task, lane->index);
	const uint64_t now_ns = worker->latest_ns; /* not before this lane's last chunk ended */
	const uint64_t slots_ns = task->slots_ns ? task->slots_ns : now_ns;

	path_stage(&worker->path, STAGE_WAIT_LANE, task->queued_ns, slots_ns, &subject);
	path_stage(&worker->path, STAGE_WAIT_SLOTS, slots_ns, now_ns, &subject);
	lane->begun_ns = now_ns;
	lane->arrivals.count = 0;
}

void fetch_watch(struct worker *worker, uint64_t now_ns)
{
	const uint32_t lanes = worker->plane->config.lanes;

	for (uint32_t i = 0; i < lanes && worker->lanes_busy; i++) {
		struct lane *lane = &worker->lanes[i];

		if (lane->state == LANE_FETCH)
			arrivals_note(&lane->arrivals, lane_received(lane), now_ns);
	}
}

/* What the decoder writes for an entry's tensors, once they are whole. */
void lane_count_decoded(const struct worker *worker, struct lane *lane)
{
	const struct task *task = &worker->tasks[lane->task];
	const struct layout *layout = task->region->layout;
	uint64_t bytes = 0;

	for (uint32_t k = 0; k < lane->jobs_open; k++)
		bytes +=
		    shape_tensor_bytes(&layout->shape, lane->jobs[k].tensor % layout->parts_count) /
		    SSV_CHUNK_TOKENS * layout->block_tokens * task->blocks_count;
	tally_add(TALLY_BYTES_DECODED, bytes);
	if (lane->stage.slots_count)
		tally_add(TALLY_BYTES_STAGED, bytes);
}

void lane_decode_begins(struct worker *worker, struct lane *lane,
			const struct container_entry *entry)
{
	const uint64_t end = container_entry_end(entry);
	const uint64_t came_ns = arrivals_take(&lane->arrivals, end, worker->work_ns);

	worker->work_stage = STAGE_DECODE;
	worker->work = task_subject(&worker->tasks[lane->task], lane->index);
	worker->work.detail = (uint16_t)lane->entry;
	worker->work.value = end - entry->offset;
	path_stage(&worker->path, STAGE_WAIT_DECODE, came_ns, worker->work_ns, &worker->work);
}
