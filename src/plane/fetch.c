/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fetch.c - a chunk's way in: GET into wire slots, open as soon as the front has arrived, decode
 * each segment once the watermark has passed it, deliver.
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

/* Nothing of a lane touches memory any more: give it back, report, heal the store if need be. */
static void lane_quiesce(struct worker *worker, struct lane *lane, uint64_t now_ns)
{
	struct ssv_key key;

	if (!lane->over || lane->op.state != OP_IDLE || lane->jobs_out)
		return;
	key = *lane_task(worker, lane)->keys;
	slots_release(&worker->stage, &lane->stage);
	slots_release(&worker->wire, &lane->wire);
	lane_price(worker, lane);
	report(worker, lane->task, lane->status);
	lane->state = LANE_IDLE;
	worker->lanes_busy--;
	if (!lane->heal)
		return;
	/* A bad chunk would answer "stored" for ever: delete it, so that the next STORE heals it.
	 */
	count(worker, COUNTER_HEALS);
	lane->state = LANE_DELETE;
	worker->lanes_busy++;
	lane->op.op = (struct store_op){
	    .kind = STORE_OP_DELETE, .key = key, .deadline_ns = now_ns + DELETE_DEADLINE_NS};
	worker_op_begin(worker, &lane->op, now_ns);
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

/* The lane's status is decided. What is out is asked back; lane_quiesce() follows. */
static void lane_end(struct worker *worker, struct lane *lane, int status)
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
static void lane_fault(struct worker *worker, struct lane *lane, enum container_fault fault)
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
	lane_end(worker, lane, fault == CONTAINER_FAULT_TIER ? -ENOENT : -EBADMSG);
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
		lane_fault(worker, lane, CONTAINER_FAULT_LENGTH);
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
		lane_end(worker, lane, fetch_status(op->status));
	}
	if (lane->state == LANE_FETCH)
		lane_quiesce(worker, lane, now_ns);
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
		lane_fault(worker, lane, fault);
	} else if (lane->op.state == OP_IDLE) {
		lane_fault(worker, lane, CONTAINER_FAULT_TRUNCATED);
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
	for (uint32_t k = 0; k < lane->jobs_open; k++)
		worker_submit_job(worker, &lane->jobs[k]);
}

/* Is this the last entry of its tensor? One of several tensors holds them whole. */
static int entry_ends_tensor(const struct layout *layout, const struct container_entry *entry)
{
	return entry->tensors_count > 1 || (uint32_t)entry->group0 + entry->groups_count ==
					       part_groups(&layout->parts[entry->part].shape);
}

static int lane_decode(struct worker *worker, struct lane *lane,
		       const struct container_entry *entry)
{
	const struct layout *layout = lane_task(worker, lane)->region->layout;
	struct decode_target targets[ENTRY_TENSORS_MAX];
	enum container_fault fault = CONTAINER_FAULT_NONE;

	/* A tensor may be split over entries, and several may travel together: jobs stay open until
	 * the last entry of the last one. */
	if (!lane->jobs_open && !lane_open_jobs(worker, lane, entry))
		return 0;
	for (uint32_t k = 0; k < entry->tensors_count; k++) {
		const struct layout_map *map = lane->jobs[lane->jobs_decoded + k].map;

		targets[k] = (struct decode_target){
		    .token = lane->tokens + (lane->jobs_decoded + k) * SSV_CHUNK_TOKENS,
		    .channel = map->channel,
		    .run_channels = map->run_channels,
		    .token_stride = map->token_stride,
		};
	}
	lane_decode_begins(worker, lane, entry);
	if (segment_decode(&lane->container, lane->entry, targets, worker->decode_scratch,
			   &fault)) {
		lane_fault(worker, lane, fault);
		return 1;
	}
	lane->entry++;
	if (!entry_ends_tensor(layout, entry))
		return 1;
	lane->jobs_decoded = (uint8_t)(lane->jobs_decoded + entry->tensors_count);
	if (lane->jobs_decoded < lane->jobs_open)
		return 1;
	lane_count_decoded(worker, lane);
	if (lane->stage.slots_count)
		lane->jobs_ready = 1; /* moved in a unit of its own */
	else
		lane_submit_jobs(worker, lane);
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

	if (lane->state != LANE_FETCH || lane->over || lane->jobs_out ||
	    !lane_may_decode(worker, lane))
		return 0;
	if (!lane->opened)
		return lane_open(worker, lane);
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
			lane_quiesce(worker, lane, worker->step_ns);
			return 1;
		}
		worker->lane_turn = (worker->lane_turn + 1) % lanes;
	}
	return 0;
}

void fetch_delivered(struct worker *worker, struct lane *lane, const struct deliver_job *job)
{
	ssv_assert(lane->jobs_out > 0);
	lane->jobs_out--;
	if (job->status)
		lane_end(worker, lane, -EIO);
	if (lane->jobs_out == 0) {
		lane->jobs_open = 0;
		slots_release(&worker->stage, &lane->stage);
		if (lane->entry == lane->container.header.segments_count)
			lane_end(worker, lane, 0);
	}
	lane_quiesce(worker, lane, worker->step_ns);
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
		lane_end(worker, lane, -ECANCELED);
		lane_quiesce(worker, lane, worker->step_ns);
		return;
	}
}
