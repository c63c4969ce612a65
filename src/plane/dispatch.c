/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dispatch.c - hands pieces of jobs to workers, and takes their reports back.
 *
 * Fair between sessions: each turn takes one piece of the next session that has one, of its oldest
 * job. Kinds do not wait for one another: each has its own task slots at a worker. What a worker
 * cannot begin yet waits here, where it can still be given to another one. The few chunks that wait
 * at a worker, so that its lanes are never without, are asked back when another one has idle lanes.
 */
#include <errno.h>

#include "plane/internal.h"

static void desk_push(struct plane *plane, uint32_t worker, enum message_kind kind, uint32_t task)
{
	struct worker *w = &plane->workers[worker];

	/* The ring has room for all messages of all tasks. */
	ssv_assert(ring_push(&w->inbox, message_pack(kind, task, w->tasks[task].generation)));
	plane->desks[worker].pushed = 1;
}

/* The worker with the fewest tasks of a kind and a free slot, or NO_INDEX. */
static uint32_t dispatch_worker(const struct plane *plane, uint32_t kind)
{
	uint32_t best = NO_INDEX, busy = plane->task_count[kind];

	for (uint32_t i = 0; i < plane->config.workers_count; i++) {
		if (plane->desks[i].busy[kind] < busy) {
			busy = plane->desks[i].busy[kind];
			best = i;
		}
	}
	return best;
}

/* The next session after the last one served that has a job ready; there is one. */
static struct session *dispatch_session(struct plane *plane, uint32_t kind)
{
	for (;;) {
		struct session *session;

		plane->turn[kind] = (plane->turn[kind] + 1) % plane->config.sessions_max;
		session = &plane->sessions[plane->turn[kind]];
		if (session->used && !list_is_empty(&session->ready[kind]))
			return session;
	}
}

/* How long the piece waited for a worker. */
static void dispatch_price(struct plane *plane, const struct job *job, const struct task *task,
			   uint32_t worker)
{
	const struct path_subject subject = task_subject(task, worker);

	if (job->op == SSV_OP_FETCH)
		times_add(&plane->stages[CONTROL_STAGE_WAIT_WORKER], plane->now_ns - job->begun_ns);
	path_event(&plane->trace, TRACE_HAND, plane->now_ns, plane->now_ns, &subject);
}

static void dispatch_piece(struct plane *plane, struct job *job, uint32_t piece, uint32_t kind,
			   uint32_t worker)
{
	struct worker_desk *desk = &plane->desks[worker];
	uint32_t index = plane->task_first[kind];
	struct task *task;

	while (desk->slots[index].used)
		index++;
	ssv_assert(index < plane->task_first[kind] + plane->task_count[kind]);
	task = &plane->workers[worker].tasks[index];
	desk->slots[index] = (struct task_slot){
	    .job = job->number, .job_generation = job->generation, .piece = piece, .used = 1};
	desk->busy[kind]++;
	job_fill_task(plane, job, piece, task);
	desk->slots[index].key = *task->keys;
	dispatch_price(plane, job, task, worker);
	job->out++;
	task->generation++;
	desk_push(plane, worker, MESSAGE_TASK, index);
}

static void dispatch_next(struct plane *plane, struct job *job, uint32_t kind, uint32_t worker)
{
	dispatch_piece(plane, job, job->next_piece++, kind, worker);
	if (!job_has_piece(job))
		job_unready(plane, job);
}

/* Nothing is left to hand out and lanes are idle somewhere: what waits at another worker, behind
 * lanes that may be slow, can be begun there. One question a worker at a time. */
static int dispatch_recall(struct plane *plane)
{
	uint32_t most = plane->config.lanes, full = NO_INDEX;
	int idle = 0;

	for (uint32_t i = 0; i < plane->config.workers_count; i++) {
		uint32_t busy = plane->desks[i].busy[TASK_FETCH];

		idle |= busy < plane->config.lanes;
		if (busy <= most || plane->desks[i].recalled)
			continue;
		most = busy;
		full = i;
	}
	if (!idle || full == NO_INDEX)
		return 0;
	ssv_assert(ring_push(&plane->workers[full].inbox, message_pack(MESSAGE_RECALL, 0, 0)));
	plane->desks[full].pushed = plane->desks[full].recalled = 1;
	return 1;
}

int dispatch_pieces(struct plane *plane)
{
	int did = 0;

	for (uint32_t kind = 0; kind < TASK_KINDS; kind++) {
		while (plane->ready_count[kind]) {
			uint32_t worker = dispatch_worker(plane, kind);
			struct session *session;

			if (worker == NO_INDEX)
				break;
			session = dispatch_session(plane, kind);
			dispatch_next(plane,
				      link_holder(session->ready[kind].next, struct job, ready),
				      kind, worker);
			did = 1;
		}
	}
	return did | dispatch_recall(plane);
}

void dispatch_cancel(struct plane *plane, const struct job *job, uint32_t from_piece)
{
	if (job->out == 0)
		return;
	for (uint32_t i = 0; i < plane->config.workers_count; i++) {
		for (uint32_t k = 0; k < plane->tasks_count; k++) {
			struct task_slot *slot = &plane->desks[i].slots[k];

			if (!slot->used || slot->captured || slot->cancelled ||
			    slot->job != job->number || slot->piece < from_piece)
				continue;
			slot->cancelled = 1;
			desk_push(plane, i, MESSAGE_CANCEL, k);
		}
	}
}

/* A piece that the worker gave back unbegun: to another one, unless nobody waits for it. */
static void dispatch_again(struct plane *plane, struct job *job, uint32_t piece, struct task *task)
{
	if (job->stopped || piece >= job->bound) {
		task->status = -ECANCELED;
		job_piece_done(plane, job, piece, task);
		return;
	}
	/* There is one: the slot that it comes from is free again. */
	dispatch_piece(plane, job, piece, TASK_FETCH, dispatch_worker(plane, TASK_FETCH));
}

static void dispatch_report(struct plane *plane, uint32_t worker, uint64_t message)
{
	struct worker_desk *desk = &plane->desks[worker];
	struct task_slot *slot = &desk->slots[message_index(message)];
	struct task *task = &plane->workers[worker].tasks[message_index(message)];
	struct job *job = &plane->jobs[slot->job];

	ssv_assert(slot->used && task->generation == message_generation(message));
	ssv_assert(job->generation == slot->job_generation && job->state != JOB_FREE);
	if (message_kind(message) == MESSAGE_CAPTURED) {
		ssv_assert(!slot->captured);
		slot->captured = 1;
		job->out--;
		job->putting++;
		job_piece_done(plane, job, slot->piece, task);
	} else {
		if (slot->captured) {
			job->putting--;
			if (task->stored)
				refused_forget(plane, &slot->key);
		} else {
			job->out--;
			if (!task->returned)
				job_piece_done(plane, job, slot->piece, task);
		}
		slot->used = 0;
		task->generation++;
		desk->busy[task->kind]--;
		if (task->returned)
			dispatch_again(plane, job, slot->piece, task);
	}
	job_settle(plane, job);
}

int dispatch_reports(struct plane *plane)
{
	uint64_t message;
	int did = 0;

	for (uint32_t i = 0; i < plane->config.workers_count; i++) {
		while (ring_pop(&plane->workers[i].outbox, &message)) {
			plane->desks[i].recalled = 0;
			dispatch_report(plane, i, message);
			did = 1;
		}
	}
	return did;
}

void dispatch_wake(struct plane *plane)
{
	for (uint32_t i = 0; i < plane->config.workers_count; i++) {
		if (!plane->desks[i].pushed)
			continue;
		plane->desks[i].pushed = 0;
		wake_signal(&plane->workers[i].wake);
	}
}
