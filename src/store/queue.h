/* SPDX-License-Identifier: Apache-2.0 */
/*
 * queue.h - a list of operations through store_op.next, first in first out.
 *
 * An operation stands in one queue at a time. One thread; no allocation, no limit of its own (the
 * store's ops_max bounds it).
 */
#ifndef SSV_STORE_QUEUE_H
#define SSV_STORE_QUEUE_H

#include <errno.h>

#include "store/store.h"

struct op_queue {
	struct store_op *first, *last;
	uint32_t count;
};

static inline void op_queue_push(struct op_queue *queue, struct store_op *op)
{
	op->next = NULL;
	if (queue->last)
		queue->last->next = op;
	else
		queue->first = op;
	queue->last = op;
	queue->count++;
}

/* Take out the operation behind previous (NULL: the first). */
static inline struct store_op *op_queue_remove(struct op_queue *queue, struct store_op *previous)
{
	struct store_op *op = previous ? previous->next : queue->first;

	if (!op)
		return NULL;
	if (previous)
		previous->next = op->next;
	else
		queue->first = op->next;
	if (queue->last == op)
		queue->last = previous;
	op->next = NULL;
	queue->count--;
	return op;
}

static inline struct store_op *op_queue_pop(struct op_queue *queue)
{
	return op_queue_remove(queue, NULL);
}

/* Move what is past its deadline to expired; returns the earliest deadline of the rest. */
static inline uint64_t op_queue_expire(struct op_queue *queue, struct op_queue *expired,
				       uint64_t now_ns)
{
	struct store_op *previous = NULL;
	struct store_op *op = queue->first;
	uint64_t earliest = UINT64_MAX;

	while (op) {
		struct store_op *next = op->next;

		if (op->deadline_ns <= now_ns) {
			op_queue_push(expired, op_queue_remove(queue, previous));
		} else {
			earliest = u64_min(earliest, op->deadline_ns);
			previous = op;
		}
		op = next;
	}
	return earliest;
}

/* Hand finished operations over; returns how many. */
static inline uint32_t op_queue_take(struct op_queue *queue, struct store_op **done, uint32_t max)
{
	uint32_t n = 0;

	while (n < max && queue->first)
		done[n++] = op_queue_pop(queue);
	return n;
}

/* Reset what a submitted operation reports; the PUT's size is input. */
static inline void op_begin(struct store_op *op)
{
	op->status = 0;
	op->mark = 0;
	op->received = 0;
	if (op->kind != STORE_OP_PUT)
		op->value_bytes = 0;
}

/* What can be refused without asking anybody: 0, -EINVAL, -EMSGSIZE. */
static inline int op_check(const struct store_op *op, uint64_t value_bytes_max)
{
	if (op->kind < STORE_OP_GET || op->kind > STORE_OP_DELETE)
		return -EINVAL;
	if (op->kind != STORE_OP_PUT)
		return 0;
	if (op->value_bytes == 0)
		return -EINVAL;
	return op->value_bytes > value_bytes_max ? -EMSGSIZE : 0;
}

/* A GET learns how long its value is: 0, -EMSGSIZE (told in value_bytes), -EPROTO (a lie). */
static inline int op_set_length(struct store_op *op, uint64_t value_bytes, uint64_t value_bytes_max)
{
	if (value_bytes > value_bytes_max)
		return -EPROTO;
	op->value_bytes = value_bytes;
	return value_bytes > op->capacity ? -EMSGSIZE : 0;
}

/* Count one finished operation. */
static inline void op_count(struct store_stats *stats, const struct store_op *op)
{
	switch (op->kind) {
	case STORE_OP_GET:
		stats->gets++;
		stats->hits += op->status == 0;
		break;
	case STORE_OP_PUT:
		stats->puts++;
		break;
	case STORE_OP_EXISTS:
		stats->exists++;
		break;
	default:
		stats->deletes++;
		break;
	}
	if (op->status == -ETIMEDOUT)
		stats->timeouts++;
	else if (op->status && op->status != -ENOENT)
		stats->errors++;
}

#endif
