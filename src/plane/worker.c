/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker.c - one worker: memory, messages, its store handle, and the order of work in a step.
 *
 * A step takes what came in (messages, finished store operations), keeps the lanes full, and then
 * does one unit of work: a segment of a fetch if one is ready, else a slice of a capture. So no
 * capture delays a fetch by more than one unit, and the caller's clock prices each unit.
 */
#include <errno.h>
#include <poll.h>

#include "base/clock.h"
#include "plane/internal.h"

#define DONE_BATCH      16u
#define TRACE_SLOTS_MIN 1024u
#define TRACE_SLOTS_MAX 65536u

/* ---- memory --------------------------------------------------------------------------------- */

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
	 * next TASK and its CANCEL; back come at most CAPTURED and DONE. */
	const uint32_t ring = power_of_two(3 * plane->tasks_count);
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
					 plane->stage_bytes + MIB),
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

int worker_create(struct plane *plane, uint32_t index, char *error)
{
	const uint64_t scratch = codec_scratch_bytes(plane->config.channels_max);
	struct worker *worker = &plane->workers[index];
	int err;

	worker->plane = plane;
	worker->index = index;
	worker->delivered.worker = index;
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
	if (err && !error[0])
		plane_refuse(error, err, "worker %u: starting failed (%d)", index, err);
	return err;
}

void worker_destroy(struct worker *worker)
{
	store_close(worker->store);
	worker->store = NULL;
	if (worker->wake.fd > 0)
		wake_fini(&worker->wake);
	codec_scratch_fini(worker->encode_scratch);
	codec_scratch_fini(worker->decode_scratch);
}

/* ---- store operations ----------------------------------------------------------------------- */

uint64_t worker_now(struct worker *worker)
{
	if (worker->plane->config.clock_ns)
		worker->latest_ns = worker->plane->config.clock_ns();
	return worker->latest_ns;
}

struct path_subject task_subject(const struct task *task, uint32_t place)
{
	return (struct path_subject){.request = task->request,
				     .piece = task->piece,
				     .place = (uint8_t)place,
				     .value = task->value_bytes};
}

static void worker_op_submit(struct worker *worker, struct worker_op *op, uint64_t now_ns)
{
	struct store_op *store_op = &op->op;

	if (worker->store->ops->submit(worker->store, &store_op, 1, now_ns) == 1) {
		op->state = OP_HELD;
		worker->ops_waiting--;
	}
}

void worker_op_begin(struct worker *worker, struct worker_op *op, uint64_t now_ns)
{
	ssv_assert(op->state == OP_IDLE);
	op->op.owner = op;
	op->op.received = 0;
	op->op.status = 0;
	if (op->op.kind != STORE_OP_PUT)
		op->op.value_bytes = 0;
	op->state = OP_WAITING;
	op->begun_ns = worker->latest_ns;
	worker->ops_waiting++;
	worker_op_submit(worker, op, now_ns);
}

void worker_op_cancel(struct worker_op *op)
{
	op->op.deadline_ns = 0;
}

static void worker_op_price(struct worker *worker, const struct worker_op *op)
{
	static const uint8_t stages[] = {[STORE_OP_GET] = STAGE_GET,
					 [STORE_OP_PUT] = STAGE_PUT,
					 [STORE_OP_EXISTS] = STAGE_EXISTS,
					 [STORE_OP_DELETE] = STAGE_NONE};
	struct path_subject subject = {0};

	if (stages[op->op.kind] == STAGE_NONE)
		return;
	if (op->holder == HOLDER_LANE)
		subject = task_subject(&worker->tasks[worker->lanes[op->index].task], op->index);
	else if (op->holder == HOLDER_CAPTURE)
		subject = task_subject(&worker->tasks[worker->captures[op->index].task], op->index);
	subject.value = op->op.value_bytes;
	path_stage(&worker->path, stages[op->op.kind], op->begun_ns, worker->latest_ns, &subject);
}

static void worker_op_end(struct worker *worker, struct worker_op *op, uint64_t now_ns)
{
	op->state = OP_IDLE;
	worker_op_price(worker, op);
	switch (op->holder) {
	case HOLDER_LANE:
		fetch_op_done(worker, &worker->lanes[op->index], now_ns);
		break;
	case HOLDER_CAPTURE:
		capture_op_done(worker, &worker->captures[op->index], now_ns);
		break;
	default:
		lookup_op_done(worker, &worker->lookups[op->index]);
		break;
	}
}

/* An operation that the store had no room for: offer it again, or give it up at its deadline. */
static void worker_op_retry(struct worker *worker, struct worker_op *op, uint64_t now_ns)
{
	if (op->state != OP_WAITING)
		return;
	if (op->op.deadline_ns > now_ns) {
		worker_op_submit(worker, op, now_ns);
		return;
	}
	worker->ops_waiting--;
	op->op.status = -ETIMEDOUT;
	worker_op_end(worker, op, now_ns);
}

static void worker_retry_ops(struct worker *worker, uint64_t now_ns)
{
	const struct plane_config *config = &worker->plane->config;

	for (uint32_t i = 0; i < config->lanes && worker->ops_waiting; i++)
		worker_op_retry(worker, &worker->lanes[i].op, now_ns);
	for (uint32_t i = 0; i < LOOKUP_TASKS && worker->ops_waiting; i++) {
		for (uint32_t k = 0; k < LOOKUP_BATCH && worker->ops_waiting; k++)
			worker_op_retry(worker, &worker->lookups[i].ops[k], now_ns);
	}
	for (uint32_t i = 0; i < config->captures_max && worker->ops_waiting; i++)
		worker_op_retry(worker, &worker->captures[i].op, now_ns);
}

static int worker_poll_store(struct worker *worker, uint64_t now_ns)
{
	const struct tally *tally = &worker->path.tally;
	const uint64_t before = tally_received(tally);
	struct path_subject subject = {0};
	struct store_op *done[DONE_BATCH];
	uint32_t n = worker->store->ops->poll(worker->store, done, DONE_BATCH, now_ns);

	subject.value = tally_received(tally) - before;
	if (subject.value) {
		path_stage(&worker->path, STAGE_RECEIVE, now_ns, worker_now(worker), &subject);
		fetch_watch(worker, worker->latest_ns);
	}
	for (uint32_t i = 0; i < n; i++) {
		struct worker_op *op = done[i]->owner;

		ssv_assert(op->state == OP_HELD);
		worker_op_end(worker, op, now_ns);
	}
	return n > 0;
}

/* ---- messages ------------------------------------------------------------------------------- */

void worker_report(struct worker *worker, uint32_t task, enum message_kind kind)
{
	uint64_t message = message_pack(kind, task, worker->held[task]);

	if (kind == MESSAGE_DONE)
		worker->held[task] = 0;
	/* The ring has room for all messages of all tasks. */
	ssv_assert(ring_push(&worker->outbox, message));
	worker->reported = 1;
}

static void worker_begin_task(struct worker *worker, uint32_t task, uint64_t now_ns)
{
	switch (worker->tasks[task].kind) {
	case TASK_FETCH:
		fetch_begin(worker, task);
		break;
	case TASK_STORE:
		capture_begin(worker, task, now_ns);
		break;
	default:
		lookup_begin(worker, task, now_ns);
		break;
	}
}

static void worker_cancel_task(struct worker *worker, uint32_t task)
{
	switch (worker->tasks[task].kind) {
	case TASK_FETCH:
		fetch_cancel(worker, task);
		break;
	case TASK_STORE:
		capture_cancel(worker, task);
		break;
	default:
		lookup_cancel(worker, task);
		break;
	}
}

static int worker_take_messages(struct worker *worker, uint64_t now_ns)
{
	uint64_t message;
	int did = 0;

	while (ring_pop(&worker->inbox, &message)) {
		uint32_t task = message_index(message);

		did = 1;
		if (message_kind(message) == MESSAGE_TASK) {
			worker->held[task] = message_generation(message);
			worker_begin_task(worker, task, now_ns);
		} else if (worker->held[task] == message_generation(message)) {
			worker_cancel_task(worker, task);
		}
	}
	return did;
}

/* ---- the step ------------------------------------------------------------------------------- */

/* Ways share the worker's queue: a job may come back from another way's poll. */
static void worker_job_back(struct worker *worker, const struct deliver_job *job)
{
	uint32_t k = 0;

	while (worker->ways_out[k] == 0 || worker->ways[k] != job->region->ops)
		k++;
	worker->ways_out[k]--;
}

/* Submit a job that was opened; its way is polled until it comes back. */
void worker_submit_job(struct worker *worker, struct deliver_job *job)
{
	const struct deliver_ops *way = job->region->ops;
	uint32_t k = 0, free_way = WAYS_MAX;

	while (k < WAYS_MAX && (worker->ways_out[k] == 0 || worker->ways[k] != way)) {
		if (worker->ways_out[k] == 0)
			free_way = k;
		k++;
	}
	if (k == WAYS_MAX)
		k = free_way;
	ssv_assert(k < WAYS_MAX);
	worker->ways[k] = way;
	worker->ways_out[k]++;
	way->submit(&worker->delivered, job);
}

int worker_poll_delivered(struct worker *worker)
{
	struct deliver_job *done[DONE_BATCH];
	int did = 0;

	for (uint32_t k = 0; k < WAYS_MAX; k++) {
		uint32_t n = 0;

		if (worker->ways_out[k])
			n = worker->ways[k]->poll(&worker->delivered, done, DONE_BATCH);
		for (uint32_t i = 0; i < n; i++) {
			worker_job_back(worker, done[i]);
			if (done[i]->direction == DELIVER_IN)
				fetch_delivered(worker, done[i]->owner, done[i]);
			else
				capture_delivered(worker, done[i]->owner, done[i]);
		}
		did |= n > 0;
	}
	return did;
}

static int worker_has_jobs_out(const struct worker *worker)
{
	uint32_t jobs = 0;

	for (uint32_t k = 0; k < WAYS_MAX; k++)
		jobs += worker->ways_out[k];
	return jobs > 0;
}

/* The unit of work of the last step is over: it returned 1, so this is the very next moment. */
static void worker_price(struct worker *worker, uint64_t end_ns)
{
	if (worker->work_stage != STAGE_NONE)
		path_stage(&worker->path, worker->work_stage, worker->work_ns, end_ns,
			   &worker->work);
	worker->work_stage = STAGE_NONE;
}

static void pool_show(struct worker *worker, const struct slots *slots, enum worker_counter free,
		      enum worker_counter high)
{
	counter_set(&worker->counters[free], slots->free_count);
	counter_set(&worker->counters[high], slots->slots_count - slots->free_low);
}

static void worker_show(struct worker *worker, uint64_t now_ns, int did)
{
	struct counter *counters = worker->counters;

	counter_add(&counters[COUNTER_STEPS], 1);
	if (!did)
		counter_add(&counters[COUNTER_IDLE_STEPS], 1);
	if (!did && counter_read(&counters[COUNTER_STEPS]) > 1)
		return; /* nothing has changed */
	pool_show(worker, &worker->wire, COUNTER_WIRE_SLOTS_FREE, COUNTER_WIRE_SLOTS_HIGH);
	pool_show(worker, &worker->capture, COUNTER_CAPTURE_SLOTS_FREE, COUNTER_CAPTURE_SLOTS_HIGH);
	pool_show(worker, &worker->put, COUNTER_PUT_SLOTS_FREE, COUNTER_PUT_SLOTS_HIGH);
	pool_show(worker, &worker->stage, COUNTER_STAGE_SLOTS_FREE, COUNTER_STAGE_SLOTS_HIGH);
	counter_set(&counters[COUNTER_LANES_BUSY], worker->lanes_busy);
	counter_set(&counters[COUNTER_CAPTURES_BUSY], worker->captures_busy);
	if (worker->plane->config.allocations)
		counter_set(&counters[COUNTER_ALLOCATIONS], worker->plane->config.allocations());
	path_gauges(&worker->path, now_ns,
		    (uint64_t)(worker->queue_count & 0xffff) << 0 |
			(uint64_t)(worker->lanes_busy & 0xffff) << 16 |
			(uint64_t)((worker->wire.slots_count - worker->wire.free_count) & 0xffff)
			    << 32 |
			(uint64_t)(worker->captures_busy & 0xffff) << 48);
}

/* The store's own counters may be read by this thread alone, so they are copied for control. */
static void worker_show_store(struct worker *worker)
{
	struct counter *c = worker->store_counters;
	struct store_stats stats = {0};

	worker->store->ops->stats(worker->store, &stats);
#define STORE_COUNTER_SET(field) counter_set(&c[STORE_COUNTER_##field], stats.field);
	STORE_COUNTERS(STORE_COUNTER_SET)
#undef STORE_COUNTER_SET
}

/* The fullest of each pool is what it holds now. */
static void worker_restart(struct worker *worker)
{
	worker->wire.free_low = worker->wire.free_count;
	worker->capture.free_low = worker->capture.free_count;
	worker->put.free_low = worker->put.free_count;
	worker->stage.free_low = worker->stage.free_count;
}

int plane_worker_step(struct plane *plane, uint32_t index, uint64_t now_ns, uint64_t *ret_wake_ns)
{
	struct worker *worker = &plane->workers[index];
	uint64_t next_ns;
	int did, restarts;

	tally_use(&worker->path.tally);
	wake_begin(&worker->wake);
	worker_price(worker, now_ns);
	restarts = path_epoch_begins(&worker->path);
	if (restarts)
		worker_restart(worker);
	worker->step_ns = worker->latest_ns = now_ns;

	did = worker_take_messages(worker, now_ns);
	did |= worker_poll_store(worker, now_ns);
	did |= worker_poll_delivered(worker);
	if (worker->ops_waiting)
		worker_retry_ops(worker, now_ns);
	did |= fetch_fill_lanes(worker, now_ns);
	worker->work_ns = worker->latest_ns;
	if (fetch_unit(worker) || capture_unit(worker, now_ns))
		did = 1;
	did |= worker_poll_delivered(worker);

	if (worker->reported) {
		worker->reported = 0;
		wake_signal(&plane->wake);
	}
	worker_show(worker, now_ns, did || restarts);
	next_ns = worker->store->ops->next_ns(worker->store);
	if (worker->ops_waiting)
		next_ns = u64_min(next_ns, now_ns + NS_PER_MS);
	*ret_wake_ns = next_ns;
	if (did || next_ns <= now_ns || worker_has_jobs_out(worker))
		return 1;
	worker_show_store(worker);
	return !wake_may_sleep(&worker->wake);
}

uint32_t plane_worker_pollfds(struct plane *plane, uint32_t index, void *pollfds, uint32_t max)
{
	struct worker *worker = &plane->workers[index];
	struct pollfd *fds = pollfds;

	if (max == 0)
		return 0;
	fds[0] = (struct pollfd){.fd = worker->wake.fd, .events = POLLIN};
	return 1 + worker->store->ops->pollfds(worker->store, fds + 1, max - 1);
}
