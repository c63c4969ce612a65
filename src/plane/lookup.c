/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lookup.c - asks the store about some keys of one rank at once, and counts the leading ones that
 * are there. No more tasks of a job are handed out behind its first miss.
 */
#include <errno.h>

#include "plane/internal.h"

static struct lookup *lookup_of(struct worker *worker, uint32_t task)
{
	return &worker->lookups[task - worker->plane->task_first[TASK_LOOKUP]];
}

void lookup_begin(struct worker *worker, uint32_t task_index, uint64_t now_ns)
{
	const struct task *task = &worker->tasks[task_index];
	struct lookup *lookup = lookup_of(worker, task_index);

	ssv_assert(!lookup->busy && task->keys_count > 0 && task->keys_count <= LOOKUP_BATCH);
	counter_add(&worker->counters[COUNTER_LOOKUP_KEYS], task->keys_count);
	lookup->busy = 1;
	lookup->task = task_index;
	lookup->ops_out = task->keys_count;
	for (uint32_t i = 0; i < task->keys_count; i++) {
		struct worker_op *op = &lookup->ops[i];

		op->holder = HOLDER_LOOKUP;
		op->index = (uint32_t)(lookup - worker->lookups);
		op->op = (struct store_op){.kind = STORE_OP_EXISTS,
					   .key = task->keys[i],
					   .deadline_ns = task->deadline_ns};
		worker_op_begin(worker, op, now_ns);
	}
}

void lookup_cancel(struct worker *worker, uint32_t task_index)
{
	struct lookup *lookup = lookup_of(worker, task_index);

	for (uint32_t i = 0; i < worker->tasks[task_index].keys_count; i++) {
		if (lookup->ops[i].state != OP_IDLE)
			worker_op_cancel(&lookup->ops[i]);
	}
}

static int lookup_status(int status)
{
	return status == -ENOENT || status == -ETIMEDOUT ? status : -EIO;
}

void lookup_op_done(struct worker *worker, struct lookup *lookup)
{
	struct task *task = &worker->tasks[lookup->task];
	uint32_t i = 0;

	if (--lookup->ops_out)
		return;
	task->value_bytes = 0;
	while (i < task->keys_count && lookup->ops[i].op.status == 0)
		task->value_bytes += lookup->ops[i++].op.value_bytes;
	task->found = i;
	task->status = i < task->keys_count ? lookup_status(lookup->ops[i].op.status) : 0;
	if (task->status && task->status != -ENOENT)
		counter_add(&worker->counters[COUNTER_LOOKUP_ERRORS], 1);
	lookup->busy = 0;
	worker_report(worker, lookup->task, MESSAGE_DONE);
}
