/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker.c - one worker: messages, store operations, and the order of work in a step.
 *
 * A step takes what came in (messages, finished store operations), keeps the lanes full, and then
 * does one unit of work: a segment of a fetch if one is ready, else a slice of a capture. So no
 * capture delays a fetch by more than one unit, and the caller's clock prices each unit. While
 * there are segments to decode the store is looked at every LOOK_NS only.
 */
#include <errno.h>
#include <poll.h>

#include "base/clock.h"
#include "plane/internal.h"

#define DONE_BATCH     16u
#define LOOK_NS        (200 * NS_PER_US) /* at 20 Gbit/s half a megabyte comes meanwhile */
#define STORE_SHOWN_NS (10 * NS_PER_MS)

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
		if (message_kind(message) == MESSAGE_RECALL) {
			fetch_return(worker);
		} else if (message_kind(message) == MESSAGE_TASK) {
			worker->held[task] = message_generation(message);
			worker_begin_task(worker, task, now_ns);
		} else if (worker->held[task] == message_generation(message)) {
			worker_cancel_task(worker, task);
		}
	}
	return did;
}

/* ---- the step ------------------------------------------------------------------------------- */

/* Staged jobs, once a group; subject: the chunk's. A run whose memory is not to be used again is
 * forgotten, its slots stay taken. */
void worker_staged_job_back(struct worker *worker, const struct deliver_job *job,
			    struct slot_run *stage, const struct path_subject *subject)
{
	if (job->status == -EBUSY)
		*stage = (struct slot_run){0};
	if (job->stage && job->joint == 0)
		path_stage(&worker->path, STAGE_MOVE, job->submitted_ns, worker_now(worker),
			   subject);
}

int worker_poll_delivered(struct worker *worker)
{
	struct deliver_job *done[DONE_BATCH];
	uint32_t at = 0, n;
	int did = 0;

	while ((n = ways_poll(&worker->ways, &at, done, DONE_BATCH)) > 0) {
		for (uint32_t i = 0; i < n; i++) {
			if (done[i]->direction == DELIVER_IN)
				fetch_delivered(worker, done[i]->owner, done[i]);
			else
				capture_delivered(worker, done[i]->owner, done[i]);
		}
		did = 1;
	}
	return did;
}

/* The unit of work of the last step is over: it returned 1, so this is the very next moment. */
static void worker_price(struct worker *worker, uint64_t end_ns)
{
	if (worker->work_stage != STAGE_NONE)
		path_stage(&worker->path, worker->work_stage, worker->work_ns, end_ns,
			   &worker->work);
	worker->work_stage = STAGE_NONE;
}

/* One unit of work: of a fetch, else, if it may be, of a capture. */
static int worker_unit(struct worker *worker, uint64_t now_ns, int capture)
{
	worker->decoding_on = (uint8_t)fetch_unit(worker);
	return worker->decoding_on || (capture && capture_unit(worker, now_ns));
}

/* What has arrived is decoded while it is in the cache; what comes meanwhile waits in the kernel,
 * which must not have to hold more of it than its buffers do. */
static int worker_decodes_on(struct worker *worker, uint64_t now_ns)
{
	return worker->decoding_on && now_ns - worker->looked_ns < LOOK_NS &&
	       worker_unit(worker, now_ns, 0);
}

/* Look at the store, then do one unit of work. */
static int worker_look(struct worker *worker, uint64_t now_ns)
{
	int did = worker_poll_store(worker, now_ns);

	worker->looked_ns = now_ns;
	did |= worker_poll_delivered(worker);
	if (worker->ops_waiting)
		worker_retry_ops(worker, now_ns);
	did |= fetch_fill_lanes(worker, now_ns);
	worker->work_ns = worker->latest_ns;
	did |= worker_unit(worker, now_ns, 1);
	return did;
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
	pool_show(worker, &worker->inflated, COUNTER_INFLATED_SLOTS_FREE,
		  COUNTER_INFLATED_SLOTS_HIGH);
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

/* The store's own counters may be read by this thread alone, so they are copied for control: before
 * it sleeps, and now and then while it does not. */
static void worker_show_store(struct worker *worker, int is_busy)
{
	struct counter *c = worker->store_counters;
	struct store_stats stats = {0};

	if (is_busy && worker->step_ns - worker->store_shown_ns < STORE_SHOWN_NS)
		return;
	worker->store_shown_ns = worker->step_ns;
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
	worker->inflated.free_low = worker->inflated.free_count;
}

static int worker_step(struct worker *worker, uint64_t now_ns, uint64_t *ret_wake_ns)
{
	struct plane *plane = worker->plane;
	enum ways_out out;
	uint64_t next_ns;
	int did, restarts, is_busy;

	tally_use(&worker->path.tally);
	wake_begin(&worker->wake);
	worker_price(worker, now_ns);
	restarts = path_epoch_begins(&worker->path);
	if (restarts)
		worker_restart(worker);
	worker->step_ns = worker->latest_ns = now_ns;
	worker->ways.queue.now_ns = now_ns;

	worker->work_ns = now_ns;

	did = worker_take_messages(worker, now_ns);
	if (stage_is_on(worker))
		did |= stage_poll(worker);
	did |= worker_poll_delivered(worker);
	if (worker_decodes_on(worker, now_ns))
		did = 1;
	else
		did |= worker_look(worker, now_ns);
	did |= worker_poll_delivered(worker);

	if (worker->reported) {
		worker->reported = 0;
		wake_signal(&plane->wake);
	}
	worker_show(worker, now_ns, did || restarts);
	next_ns = worker->store->ops->next_ns(worker->store);
	if (worker->ops_waiting)
		next_ns = u64_min(next_ns, now_ns + NS_PER_MS);
	out = ways_are_out(&worker->ways);
	if (out == WAYS_SLEEP)
		next_ns = u64_min(next_ns, now_ns + DELIVER_LOOK_NS);
	*ret_wake_ns = next_ns;
	is_busy = did || next_ns <= now_ns || out == WAYS_LOOK || stage_is_busy(worker);
	worker_show_store(worker, is_busy);
	return is_busy || !wake_may_sleep(&worker->wake);
}

/* ---- workers and stations alike ------------------------------------------------------------- */

int plane_worker_step(struct plane *plane, uint32_t index, uint64_t now_ns, uint64_t *ret_wake_ns)
{
	const uint32_t workers = plane->config.workers_count;

	if (index < workers)
		return worker_step(&plane->workers[index], now_ns, ret_wake_ns);
	return station_step(&plane->stations[index - workers], now_ns, ret_wake_ns);
}

uint32_t plane_worker_pollfds(struct plane *plane, uint32_t index, void *pollfds, uint32_t max)
{
	const uint32_t workers = plane->config.workers_count;
	struct pollfd *fds = pollfds;
	struct worker *worker;
	uint32_t n = 1;

	if (max == 0)
		return 0;
	fds[0] = (struct pollfd){.events = POLLIN};
	if (index >= workers) {
		struct station *station = &plane->stations[index - workers];

		fds[0].fd = station->wake.fd;
		return n + ways_pollfds(&station->ways, fds + n, max - n);
	}
	worker = &plane->workers[index];
	fds[0].fd = worker->wake.fd;
	n += worker->store->ops->pollfds(worker->store, fds + n, max - n);
	return n + ways_pollfds(&worker->ways, fds + n, max - n);
}
