/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fetch.c - a chunk's way in: GET into wire slots, and its end. What is done with the bytes is
 * segment.c's.
 *
 * A lane is one chunk. Its status is decided once (`over`); the task is reported only when the
 * store has handed the operation back and no delivery is out: from then on nothing of this lane
 * touches the slots or the region. Tokens of blocks that were not asked for have no address.
 */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "plane/internal.h"

static struct task *lane_task(struct worker *worker, const struct lane *lane)
{
	return &worker->tasks[lane->task];
}

static void count(struct worker *worker, enum worker_counter counter)
{
	counter_add(&worker->counters[counter], 1);
}

/* ---- the queue of tasks --------------------------------------------------------------------- */

static uint32_t *queue_at(struct worker *worker, uint32_t i)
{
	return &worker->queue[(worker->queue_head + i) % worker->plane->tasks_count];
}

void fetch_begin(struct worker *worker, uint32_t task)
{
	count(worker, COUNTER_FETCHES);
	worker->tasks[task].queued_ns = worker->step_ns;
	worker->tasks[task].slots_ns = 0;
	*queue_at(worker, worker->queue_count++) = task;
}

static void report(struct worker *worker, uint32_t task, int status)
{
	worker->tasks[task].status = status;
	worker_report(worker, task, MESSAGE_DONE);
}

/* ---- ending --------------------------------------------------------------------------------- */

/* Nothing of a lane touches its slots any more: give them back, and heal the store if need be. */
static void lane_release(struct worker *worker, struct lane *lane)
{
	stage_end(worker, lane);
	slots_release(&worker->stage, &lane->stage);
	slots_release(&worker->wire, &lane->wire);
	lane->state = LANE_IDLE;
	worker->lanes_busy--;
	if (!lane->heal)
		return;
	/* A bad chunk would answer "stored" for ever: delete it, so that the next STORE heals it.
	 */
	count(worker, COUNTER_HEALS);
	lane->state = LANE_DELETE;
	worker->lanes_busy++;
	lane->op.op = (struct store_op){.kind = STORE_OP_DELETE,
					.key = lane->key,
					.deadline_ns = worker->step_ns + DELETE_DEADLINE_NS};
	worker_op_begin(worker, &lane->op, worker->step_ns);
}

/* Report a lane that is over as soon as nothing of it can touch the region. Its slots may be in use
 * for longer: an inflate engine that hangs holds up no request. */
void fetch_quiesce(struct worker *worker, struct lane *lane)
{
	if (lane->state == LANE_FETCH) {
		if (!lane->over || lane->op.state != OP_IDLE || lane->jobs_out ||
		    lane->ahead.work.out)
			return;
		lane->key = *lane_task(worker, lane)->keys;
		lane_price(worker, lane);
		report(worker, lane->task, lane->status);
		lane->state = LANE_DRAIN;
	}
	if (lane->state == LANE_DRAIN && !lane->ahead.out)
		lane_release(worker, lane);
}

static void lane_count(struct worker *worker, const struct lane *lane, int status)
{
	const struct task *task = lane_task(worker, lane);
	const struct layout *layout = task->region->layout;

	switch (status) {
	case 0:
		count(worker, COUNTER_FETCH_HITS);
		counter_add(&worker->counters[COUNTER_FETCH_WIRE_BYTES], task->value_bytes);
		counter_add(&worker->counters[COUNTER_FETCH_KV_BYTES],
			    shape_kv_bytes(&layout->shape) / SSV_CHUNK_TOKENS *
				layout->block_tokens * task->blocks_count);
		break;
	case -ENOENT:
		count(worker, COUNTER_FETCH_MISSES);
		break;
	case -EBADMSG:
		count(worker, COUNTER_FETCH_FAULTS);
		break;
	case -ETIMEDOUT:
		count(worker, COUNTER_FETCH_TIMEOUTS);
		break;
	case -ECANCELED:
		count(worker, COUNTER_FETCH_CANCELS);
		break;
	default:
		count(worker, COUNTER_FETCH_ERRORS);
		break;
	}
}

/* The lane's status is decided. What is out is asked back; fetch_quiesce() follows. */
void fetch_end(struct worker *worker, struct lane *lane, int status)
{
	if (lane->over)
		return;
	lane->over = 1;
	lane->status = status;
	lane_count(worker, lane, status);
	if (status && lane->op.state != OP_IDLE)
		worker_op_cancel(&lane->op);
}

/* May the chunk be right for others? Another one asks for another position, shape, model or tier;
 * a newer program reads newer formats. One of an older format is of no use to anybody. */
static int fault_is_relative(const struct lane *lane, enum container_fault fault)
{
	switch (fault) {
	case CONTAINER_FAULT_VERSION:
		return lane->container.header.major > CONTAINER_MAJOR;
	case CONTAINER_FAULT_MUST_FLAG:
	case CONTAINER_FAULT_CODEC:
	case CONTAINER_FAULT_MODEL:
	case CONTAINER_FAULT_SHAPE:
	case CONTAINER_FAULT_POSITION:
	case CONTAINER_FAULT_TIER:
		return 1;
	default:
		return 0;
	}
}

/* The chunk failed a check. Log it once, by key; delete it unless it may be right for others. */
void fetch_fault(struct worker *worker, struct lane *lane, enum container_fault fault)
{
	char hex[PLANE_KEY_TEXT];

	plane_key_text(lane_task(worker, lane)->keys, hex);
	log_warn("chunk refused key=%s fault=\"%s\"", hex, container_fault_text(fault));
	if ((uint32_t)fault < FAULTS_COUNT)
		counter_add(&worker->faults[fault], 1);
	lane->heal = !fault_is_relative(lane, fault);
	if (!lane->heal && !lane->over) {
		lane_task(worker, lane)->kept_fault = (uint8_t)fault;
		lane_task(worker, lane)->kept_tier = lane->container.header.tier;
	}
	fetch_end(worker, lane, fault == CONTAINER_FAULT_TIER ? -ENOENT : -EBADMSG);
}

/* ---- GET ------------------------------------------------------------------------------------ */

static uint64_t container_bound(const struct task *task)
{
	return shape_container_bytes_max(&task->region->layout->shape);
}

/* Bytes of slots for the next GET: the largest value of this region and some more, or the bound. */
static uint64_t get_capacity(struct worker *worker, const struct task *task)
{
	struct value_seen *seen = &worker->seen[task->region_index];
	uint64_t bound = container_bound(task);

	if (seen->generation != task->region_generation) {
		seen->generation = task->region_generation;
		seen->bytes = 0;
	}
	return seen->bytes ? u64_min(bound, seen->bytes + seen->bytes / 8) : bound;
}

static void lane_get(struct worker *worker, struct lane *lane, uint64_t now_ns)
{
	const struct task *task = lane_task(worker, lane);

	lane->op.op = (struct store_op){
	    .kind = STORE_OP_GET,
	    .key = *task->keys,
	    .data = slots_data(&worker->wire, &lane->wire),
	    .capacity = slots_run_bytes(&worker->wire, &lane->wire) - CONTAINER_SLACK_BYTES,
	    .deadline_ns = task->deadline_ns,
	};
	lane->tried_bytes = UINT64_MAX;
	worker_op_begin(worker, &lane->op, now_ns);
}

/* Begin the oldest waiting task on an idle lane. 0: no slots now. */
static int lane_begin(struct worker *worker, struct lane *lane, uint64_t now_ns)
{
	const uint32_t task = *queue_at(worker, 0);
	const uint64_t bytes = get_capacity(worker, &worker->tasks[task]) + CONTAINER_SLACK_BYTES;
	int err = slots_acquire(&worker->wire, bytes, &lane->wire);

	if (err == -EAGAIN) {
		if (!worker->tasks[task].slots_ns)
			worker->tasks[task].slots_ns = now_ns;
		return 0;
	}
	ssv_assert(err == 0); /* registration made sure that the pool is large enough */
	worker->queue_head = (worker->queue_head + 1) % worker->plane->tasks_count;
	worker->queue_count--;
	worker->lanes_busy++;
	lane->state = LANE_FETCH;
	lane->task = task;
	lane->status = 0;
	lane->opened = lane->retried = lane->over = lane->heal = 0;
	lane->jobs_open = lane->jobs_ready = lane->jobs_out = 0;
	stage_begin(worker, lane);
	lane->entry = 0;
	lane->op.holder = HOLDER_LANE;
	lane->op.index = lane->index;
	lane_price_waits(worker, lane);
	lane_get(worker, lane, now_ns);
	return 1;
}

/* PLANE_OVERLAP_NONE: either the lanes receive, or what all of them have received is decoded. */
static void take_turns(struct worker *worker)
{
	const uint32_t lanes = worker->plane->config.lanes;

	worker->decoding = worker->lanes_busy > 0;
	for (uint32_t i = 0; i < lanes; i++) {
		const struct lane *lane = &worker->lanes[i];

		if (lane->state == LANE_FETCH && lane->op.state != OP_IDLE)
			worker->decoding = 0;
	}
}

int fetch_fill_lanes(struct worker *worker, uint64_t now_ns)
{
	const uint32_t lanes = worker->plane->config.lanes;
	int did = 0;

	if (worker->decoding && worker->lanes_busy)
		return 0;
	for (uint32_t i = 0; i < lanes && worker->queue_count && worker->lanes_busy < lanes; i++) {
		if (worker->lanes[i].state != LANE_IDLE)
			continue;
		if (!lane_begin(worker, &worker->lanes[i], now_ns))
			break;
		did = 1;
	}
	if (worker->plane->config.overlap == PLANE_OVERLAP_NONE)
		take_turns(worker);
	return did;
}

/* The value is longer than the slots: take a longer run once, if the size can be true. */
static void lane_retry(struct worker *worker, struct lane *lane, uint64_t now_ns)
{
	const uint64_t bound = container_bound(lane_task(worker, lane));
	uint64_t bytes = lane->op.op.value_bytes ? lane->op.op.value_bytes : bound;

	if (lane->retried || bytes > bound) {
		fetch_fault(worker, lane, CONTAINER_FAULT_LENGTH);
		return;
	}
	lane->retried = 1;
	count(worker, COUNTER_FETCH_RETRIES);
	slots_release(&worker->wire, &lane->wire);
	if (slots_acquire(&worker->wire, bytes + CONTAINER_SLACK_BYTES, &lane->wire) == 0) {
		lane_get(worker, lane, now_ns);
		return;
	}
	/* No room now: back to the front of the queue; the size is remembered. */
	worker->seen[lane_task(worker, lane)->region_index].bytes = bytes;
	worker->queue_head =
	    (worker->queue_head + worker->plane->tasks_count - 1) % worker->plane->tasks_count;
	worker->queue_count++;
	*queue_at(worker, 0) = lane->task;
	lane->state = LANE_IDLE;
	worker->lanes_busy--;
}

/* What a store's status means to the request. */
static int fetch_status(int status)
{
	return status == -ENOENT || status == -ETIMEDOUT ? status : -EIO;
}

void fetch_op_done(struct worker *worker, struct lane *lane, uint64_t now_ns)
{
	const struct store_op *op = &lane->op.op;

	if (lane->state == LANE_DELETE) {
		lane->state = LANE_IDLE;
		worker->lanes_busy--;
		return;
	}
	if (op->status == 0) {
		struct value_seen *seen = &worker->seen[lane_task(worker, lane)->region_index];

		seen->bytes = u64_max(seen->bytes, op->value_bytes);
		lane->tried_bytes = UINT64_MAX;
	} else if (op->status == -EMSGSIZE && !lane->over) {
		lane_retry(worker, lane, now_ns);
	} else {
		fetch_end(worker, lane, fetch_status(op->status));
	}
	if (lane->state == LANE_FETCH)
		fetch_quiesce(worker, lane);
}

/* ---- cancel --------------------------------------------------------------------------------- */

static int queue_remove(struct worker *worker, uint32_t task)
{
	for (uint32_t i = 0; i < worker->queue_count; i++) {
		if (*queue_at(worker, i) != task)
			continue;
		for (uint32_t k = i + 1; k < worker->queue_count; k++)
			*queue_at(worker, k - 1) = *queue_at(worker, k);
		worker->queue_count--;
		return 1;
	}
	return 0;
}

/* The chunk that would be begun last. */
void fetch_return(struct worker *worker)
{
	uint32_t task;

	if (!worker->queue_count)
		return;
	task = *queue_at(worker, --worker->queue_count);
	count(worker, COUNTER_FETCH_RETURNS);
	worker->tasks[task].returned = 1;
	report(worker, task, 0);
}

void fetch_cancel(struct worker *worker, uint32_t task)
{
	if (queue_remove(worker, task)) {
		count(worker, COUNTER_FETCH_CANCELS);
		report(worker, task, -ECANCELED);
		return;
	}
	for (uint32_t i = 0; i < worker->plane->config.lanes; i++) {
		struct lane *lane = &worker->lanes[i];

		if (lane->state != LANE_FETCH || lane->task != task)
			continue;
		fetch_end(worker, lane, -ECANCELED);
		fetch_quiesce(worker, lane);
		return;
	}
}
