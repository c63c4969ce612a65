/* SPDX-License-Identifier: Apache-2.0 */
/*
 * capture.c - a chunk's way out: ask the store, copy the source pages into capture slots in
 * canonical order, tell the engine that its blocks are free, then encode tensor by tensor in
 * between fetch work, then PUT.
 *
 * The region and the job's keys are read only until CAPTURED is reported; what comes later needs
 * only what the capture itself holds. A chunk that finds no slots until its deadline is dropped.
 */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "plane/internal.h"

static struct task *capture_task(struct worker *worker, const struct capture *capture)
{
	return &worker->tasks[capture->task];
}

static void count(struct worker *worker, enum worker_counter counter)
{
	counter_add(&worker->counters[counter], 1);
}

/* The slot is control's again. */
static void capture_free(struct worker *worker, struct capture *capture)
{
	const struct path_subject subject =
	    task_subject(capture_task(worker, capture), capture->index);

	path_event(&worker->path.trace, TRACE_STORE, capture->begun_ns, worker_now(worker),
		   &subject);
	slots_release(&worker->stage, &capture->stage);
	slots_release(&worker->capture, &capture->kv);
	slots_release(&worker->put, &capture->wire);
	capture->state = CAPTURE_IDLE;
	worker->captures_busy--;
	worker_report(worker, capture->task, MESSAGE_DONE);
}

/* End before it was captured. */
static void capture_end(struct worker *worker, struct capture *capture, int status)
{
	capture_task(worker, capture)->status = status;
	if (status == 0)
		count(worker, COUNTER_STORES_PRESENT);
	else if (status == -ECANCELED)
		count(worker, COUNTER_STORES_DROPPED);
	else
		count(worker, COUNTER_STORES_FAILED);
	capture_free(worker, capture);
}

static void capture_waits(struct worker *worker, struct capture *capture, enum capture_state state)
{
	capture->state = (uint8_t)state;
	capture->waits_ns = worker_now(worker);
}

static void capture_waited(struct worker *worker, const struct capture *capture, enum stage stage)
{
	const struct path_subject subject =
	    task_subject(capture_task(worker, capture), capture->index);

	path_stage(&worker->path, stage, capture->waits_ns, worker_now(worker), &subject);
}

void capture_begin(struct worker *worker, uint32_t task_index, uint64_t now_ns)
{
	const struct task *task = &worker->tasks[task_index];
	struct capture *capture =
	    &worker->captures[task_index - worker->plane->task_first[TASK_STORE]];
	const uint64_t ask_ns = worker->plane->config.lookup_deadline_ms * NS_PER_MS;

	ssv_assert(capture->state == CAPTURE_IDLE && capture->task == task_index);
	count(worker, COUNTER_STORES);
	worker->captures_busy++;
	capture->cancelled = capture->jobs_out = 0;
	capture->tier = task->tier;
	capture->codec = task->codec;
	capture->profile = task->profile;
	capture->tensor = 0;
	capture->kv_offset = 0;
	capture->number = worker->captures_number++;
	capture->begun_ns = now_ns;
	capture->shape = task->region->layout->shape;
	/* The last chunk of a sequence may be a short one. */
	capture->shape.tokens = (uint16_t)(task->blocks_count * task->region->layout->block_tokens);
	capture->identity.key = *task->keys;
	capture->identity.first_token = task->position;
	memcpy(capture->identity.model, task->region->layout->model,
	       sizeof(capture->identity.model));
	capture->op.holder = HOLDER_CAPTURE;
	capture->op.index = capture->index;
	if (task->overwrite) {
		capture_waits(worker, capture, CAPTURE_WAIT);
		return;
	}
	capture->state = CAPTURE_ASK;
	/* A store that does not answer must not hold the engine's blocks for long. */
	capture->op.op = (struct store_op){
	    .kind = STORE_OP_EXISTS,
	    .key = *task->keys,
	    .deadline_ns = u64_min(task->deadline_ns, now_ns + ask_ns),
	};
	worker_op_begin(worker, &capture->op, now_ns);
}

/* Cancelled before it was captured: end as soon as nothing is out. */
static void capture_quit(struct worker *worker, struct capture *capture)
{
	if (capture->cancelled && capture->op.state == OP_IDLE && !capture->jobs_out)
		capture_end(worker, capture, -ECANCELED);
}

void capture_cancel(struct worker *worker, uint32_t task_index)
{
	struct capture *capture =
	    &worker->captures[task_index - worker->plane->task_first[TASK_STORE]];

	if (capture->state == CAPTURE_IDLE || capture->state >= CAPTURE_READY)
		return;
	capture->cancelled = 1;
	if (capture->op.state != OP_IDLE)
		worker_op_cancel(&capture->op);
	capture_quit(worker, capture);
}

static void capture_put_done(struct worker *worker, struct capture *capture)
{
	const struct store_op *op = &capture->op.op;
	char hex[PLANE_KEY_TEXT];

	if (op->status == 0) {
		count(worker, COUNTER_PUTS);
		capture_task(worker, capture)->stored = 1;
		counter_add(&worker->counters[COUNTER_PUT_WIRE_BYTES], op->value_bytes);
		counter_add(&worker->counters[COUNTER_PUT_KV_BYTES],
			    shape_kv_bytes(&capture->shape));
	} else {
		count(worker, COUNTER_PUT_ERRORS);
		plane_key_text(&capture->identity.key, hex);
		log_warn("put failed key=%s status=%d bytes=%llu", hex, op->status,
			 (unsigned long long)op->value_bytes);
	}
	capture_free(worker, capture);
}

void capture_op_done(struct worker *worker, struct capture *capture, uint64_t now_ns)
{
	const int status = capture->op.op.status;

	(void)now_ns;
	if (capture->state == CAPTURE_PUT) {
		capture_put_done(worker, capture);
		return;
	}
	ssv_assert(capture->state == CAPTURE_ASK);
	if (status == 0)
		capture_end(worker, capture, 0);
	else if (capture->cancelled)
		capture_end(worker, capture, -ECANCELED);
	else if (status == -ENOENT)
		capture_waits(worker, capture, CAPTURE_WAIT);
	else
		capture_end(worker, capture, status == -ETIMEDOUT ? status : -EIO);
}

/* ---- copying -------------------------------------------------------------------------------- */

/* The oldest capture in a state, or NULL. */
static struct capture *capture_oldest(struct worker *worker, enum capture_state state)
{
	struct capture *oldest = NULL;

	for (uint32_t i = 0; i < worker->plane->config.captures_max; i++) {
		struct capture *capture = &worker->captures[i];

		if (capture->state == state && (!oldest || capture->number < oldest->number))
			oldest = capture;
	}
	return oldest;
}

static uint64_t tensor_bytes(const struct capture *capture)
{
	return shape_tensor_bytes(&capture->shape, capture->tensor % capture->shape.parts_count);
}

/* Begin reading the next tensor's blocks, and those of the tensors that travel with it. Returns 0
 * when no staging memory is free now. */
static int copy_tensors(struct worker *worker, struct capture *capture)
{
	const struct task *task = capture_task(worker, capture);
	const struct region *region = task->region;
	const uint32_t n = deliver_join(region, capture->tensor);
	const uint64_t stage_bytes =
	    deliver_stage_bytes(region, capture->tensor, n, task->blocks_count);
	struct deliver_job like = {
	    .region = region,
	    .tensor = capture->tensor,
	    .direction = DELIVER_OUT,
	    .blocks = task->blocks,
	    .blocks_count = task->blocks_count,
	    .token = capture->tokens,
	    .owner = capture,
	};

	if (stage_bytes) {
		int err = slots_acquire(&worker->stage, stage_bytes, &capture->stage);

		if (err == -EAGAIN)
			return 0;
		ssv_assert(err == 0); /* registration made sure of it */
		like.stage = slots_data(&worker->stage, &capture->stage);
	}
	deliver_open(capture->jobs, n, &like, n > 1);
	capture->failed = 0;
	capture->jobs_open = capture->jobs_out = (uint8_t)n;
	for (uint32_t k = 0; k < n; k++)
		ways_submit(&worker->ways, &capture->jobs[k]);
	return 1;
}

void capture_delivered(struct worker *worker, struct capture *capture,
		       const struct deliver_job *job)
{
	const struct path_subject subject =
	    task_subject(capture_task(worker, capture), capture->index);
	uint8_t *kv = slots_data(&worker->capture, &capture->kv);

	capture->failed |= job->status != 0;
	worker_staged_job_back(worker, job, &capture->stage, &subject);
	if (--capture->jobs_out)
		return;
	if (capture->cancelled || capture->failed) {
		capture_end(worker, capture, capture->cancelled ? -ECANCELED : -EIO);
		return;
	}
	for (uint32_t k = 0; k < capture->jobs_open; k++) {
		deliver_gather(&capture->jobs[k], capture->shape.tokens, kv + capture->kv_offset);
		capture->kv_offset += tensor_bytes(capture);
		capture->tensor++;
	}
	slots_release(&worker->stage, &capture->stage);
	if (capture->tensor < shape_tensors(&capture->shape))
		return;
	/* The promise of a STORE completion: from here on the source is not read any more. */
	capture_waits(worker, capture, CAPTURE_READY);
	count(worker, COUNTER_STORES_CAPTURED);
	capture_task(worker, capture)->status = 0;
	worker_report(worker, capture->task, MESSAGE_CAPTURED);
}

static int copy_unit(struct worker *worker)
{
	struct capture *capture = capture_oldest(worker, CAPTURE_COPY);
	uint64_t bytes = 0;

	if (!capture) {
		capture = capture_oldest(worker, CAPTURE_WAIT);
		if (!capture ||
		    slots_acquire(&worker->capture, shape_kv_bytes(&capture->shape), &capture->kv))
			return 0;
		capture_waited(worker, capture, STAGE_WAIT_CAPTURE);
		capture->state = CAPTURE_COPY;
	}
	if (capture->jobs_out)
		return 0;
	worker->work_stage = STAGE_CAPTURE;
	worker->work = task_subject(capture_task(worker, capture), capture->index);
	while (capture->state == CAPTURE_COPY && !capture->jobs_out && bytes < CAPTURE_SLICE) {
		if (!copy_tensors(worker, capture))
			break;
		bytes += capture->jobs_open * tensor_bytes(capture);
		(void)worker_poll_delivered(worker);
	}
	return bytes > 0;
}

/* ---- encoding ------------------------------------------------------------------------------- */

static void encode_fail(struct worker *worker, struct capture *capture, int err)
{
	char hex[PLANE_KEY_TEXT];

	plane_key_text(&capture->identity.key, hex);
	log_warn("encoding failed key=%s status=%d tensor=%u", hex, err, capture->tensor);
	count(worker, COUNTER_PUT_ERRORS);
	worker->encoding = NO_INDEX;
	capture_free(worker, capture);
}

/* Take the oldest captured chunk into the encoder. Returns 0 when there is none, or no room. */
static int encode_begin(struct worker *worker)
{
	struct capture *capture = capture_oldest(worker, CAPTURE_READY);
	uint64_t bytes;
	int err;

	if (!capture)
		return 0;
	bytes = shape_container_bytes_max(&capture->shape) + CONTAINER_SLACK_BYTES;
	if (slots_acquire(&worker->put, bytes, &capture->wire))
		return 0;
	const struct encode_options options = {
	    .tier = capture->tier,
	    .codec = capture->codec,
	    .trellis = worker->plane->config.trellis && capture->codec == SSV_CODEC_R16,
	    .profile = capture->profile,
	    .verbatim_tokens =
		capture->identity.first_token ? 0 : worker->plane->config.verbatim_tokens,
	};
	capture_waited(worker, capture, STAGE_WAIT_ENCODE);
	capture->state = CAPTURE_ENCODE;
	capture->tensor = 0;
	capture->kv_offset = 0;
	worker->encoding = capture->index;
	err = encoder_begin(&worker->encoder, &capture->identity, &capture->shape, &options,
			    slots_data(&worker->put, &capture->wire),
			    slots_run_bytes(&worker->put, &capture->wire), worker->encode_scratch);
	if (err)
		encode_fail(worker, capture, err);
	return 1;
}

static void encode_end(struct worker *worker, struct capture *capture, uint64_t now_ns)
{
	const uint64_t deadline_ns = worker->plane->config.store_deadline_ms * NS_PER_MS;
	uint64_t bytes = 0;
	int err = encoder_finish(&worker->encoder, &bytes);

	if (err) {
		encode_fail(worker, capture, err);
		return;
	}
	worker->encoding = NO_INDEX;
	counter_add(&worker->counters[COUNTER_FINER_TENSORS], worker->encoder.finer_tensors);
	slots_release(&worker->capture, &capture->kv);
	slots_shrink(&worker->put, &capture->wire, bytes + CONTAINER_SLACK_BYTES);
	capture->state = CAPTURE_PUT;
	capture->op.op = (struct store_op){.kind = STORE_OP_PUT,
					   .key = capture->identity.key,
					   .data = slots_data(&worker->put, &capture->wire),
					   .value_bytes = bytes,
					   .deadline_ns = now_ns + deadline_ns};
	worker_op_begin(worker, &capture->op, now_ns);
}

static int encode_unit(struct worker *worker, uint64_t now_ns)
{
	struct capture *capture;
	const uint8_t *kv;
	int err;

	if (worker->encoding == NO_INDEX)
		return encode_begin(worker);
	capture = &worker->captures[worker->encoding];
	worker->work_stage = STAGE_ENCODE;
	worker->work = task_subject(capture_task(worker, capture), capture->index);
	worker->work.detail = (uint16_t)capture->tensor;
	kv = slots_data(&worker->capture, &capture->kv);
	err = encoder_tensor(&worker->encoder, kv + capture->kv_offset);
	if (err) {
		encode_fail(worker, capture, err);
		return 1;
	}
	capture->kv_offset += tensor_bytes(capture);
	capture->tensor++;
	if (capture->tensor == shape_tensors(&capture->shape))
		encode_end(worker, capture, now_ns);
	return 1;
}

int capture_unit(struct worker *worker, uint64_t now_ns)
{
	if (!worker->captures_busy)
		return 0;
	/* Copying first: it frees the engine's blocks. */
	return copy_unit(worker) || encode_unit(worker, now_ns);
}
