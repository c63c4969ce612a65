/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda.c - the "cuda" way: blocks are decoded into pinned staging memory in packed form and moved
 * by the GPU's copy engines, in batches on a stream of the worker's own; captures come the other
 * way.
 *
 * Ordering, in. A job is handed back when the event behind its copies has been reached, seen by
 * this process. The copies have then been performed in the GPU's memory, not only issued, and the
 * completion leaves the daemon after that; the engine enqueues kernels that read the blocks only
 * after it has taken the completion. So no kernel of the engine can run before the bytes are there,
 * without any event being shared between the processes.
 * Ordering, out. Nothing here knows what the engine's streams still write: a STORE must be
 * submitted only when the kernels that write its blocks have ended (the connector waits for an
 * event that it recorded behind them). The copies are then ordered behind those writes by the
 * message itself.
 *
 * Failure. An error of a copy or an event is nearly always the context's end (CUDA calls it
 * sticky). The lane is then broken for good: its jobs come back with -EIO, but only once the stream
 * says that nothing of it is still to run (an ended context says so at once), because a job that
 * was handed back must not touch memory any more. Later jobs fail at once.
 * A GPU that answers "not ready" for CUDA_HANG_NS gives no such proof, ever. Its jobs come back
 * with -EBUSY then, their regions are severed (no completion promises anything), their staging
 * memory is never used again, and the GPU is refused until the daemon's end.
 */
#include <errno.h>
#include <stdint.h>

#include "base/log.h"
#include "base/tally.h"
#include "deliver/cuda.h"

extern const struct deliver_ops deliver_cuda_ipc, deliver_cuda_fd;

static struct cuda_lane *job_lane(const struct deliver_queue *queue, const struct deliver_job *job)
{
	const struct cuda_region *way = job->region->way;

	ssv_assert(queue->worker < way->gpu->host.workers_count);
	return &way->gpu->lanes[2 * queue->worker + (job->direction == DELIVER_OUT)];
}

static uint64_t cuda_stage_bytes(const struct region *region, uint32_t tensor,
				 uint32_t blocks_count)
{
	return (uint64_t)layout_tensor_part(region->layout, tensor)->packed.block_bytes *
	       blocks_count;
}

static uint32_t cuda_join(const struct region *region, uint32_t tensor)
{
	const struct cuda_region *way = region->way;

	return way->join[tensor];
}

static uint64_t job_bytes(const struct deliver_job *job)
{
	return cuda_stage_bytes(job->region, job->tensor, job->blocks_count);
}

static void cuda_open(struct deliver_job *job)
{
	const struct layout *layout = job->region->layout;
	const struct layout_part *part = layout_tensor_part(layout, job->tensor);
	const struct cuda_region *way = job->region->way;
	const uint32_t first = job->tensor - job->joint;
	const struct layout_map *map = &part->packed;
	uint64_t stride = map->block_bytes, offset = 0;
	uint8_t **token = job->token;

	if (job->joined > 1) {
		map = &part->place;
		stride = way->group_bytes[first];
		offset = layout->tensors[job->tensor].offset - way->group_offset[first];
	}
	job->map = map;
	for (uint32_t i = 0; i < job->blocks_count; i++) {
		uint8_t *block = job->stage + offset + stride * i;

		for (uint32_t t = 0; t < layout->block_tokens; t++)
			*token++ = block + map->token[t];
	}
}

/* ---- copies --------------------------------------------------------------------------------- */

/* The driver of before 12.8 takes copies one by one. */
static cuda_result copy_each(const struct cuda_lane *lane, enum deliver_direction direction)
{
	cuda_result result = CUDA_SUCCESS;

	for (uint32_t i = 0; i < lane->batch_count && !result; i++) {
		if (direction == DELIVER_IN)
			result = lane->driver->copy_in(lane->to[i],
						       (const void *)(uintptr_t)lane->from[i],
						       lane->bytes_of[i], lane->stream);
		else
			result =
			    lane->driver->copy_out((void *)(uintptr_t)lane->to[i], lane->from[i],
						   lane->bytes_of[i], lane->stream);
	}
	return result;
}

static cuda_result copy_flush(struct cuda_lane *lane, enum deliver_direction direction)
{
	struct cuda_copy_attributes attributes = {.source_order = CUDA_SOURCE_ORDER_STREAM,
						  .flags = CUDA_COPY_OVERLAP_COMPUTE};
	size_t first = 0, failed = 0;
	cuda_result result;

	if (lane->batch_count == 0)
		return CUDA_SUCCESS;
	if (lane->driver->copy_batch)
		result = lane->driver->copy_batch(lane->to, lane->from, lane->bytes_of,
						  lane->batch_count, &attributes, &first, 1,
						  &failed, lane->stream);
	else
		result = copy_each(lane, direction);
	lane->batch_count = 0;
	return result;
}

static cuda_result copy_add(struct cuda_lane *lane, enum deliver_direction direction,
			    cuda_pointer gpu, const uint8_t *host, uint64_t bytes)
{
	const uint32_t i = lane->batch_count++;

	lane->to[i] = direction == DELIVER_IN ? gpu : (uintptr_t)host;
	lane->from[i] = direction == DELIVER_IN ? (uintptr_t)host : gpu;
	lane->bytes_of[i] = bytes;
	return lane->batch_count < CUDA_BATCH ? CUDA_SUCCESS : copy_flush(lane, direction);
}

/* One block of a tensor that travels alone: its runs. */
static cuda_result copy_runs(struct cuda_lane *lane, const struct deliver_job *job,
			     cuda_pointer block, const uint8_t *stage)
{
	const struct layout_part *part = layout_tensor_part(job->region->layout, job->tensor);
	cuda_result result = CUDA_SUCCESS;

	for (uint32_t k = 0; k < part->runs_count && !result; k++) {
		result = copy_add(lane, job->direction, block + part->runs[k].offset, stage,
				  part->runs[k].bytes);
		stage += part->runs[k].bytes;
	}
	return result;
}

/* All blocks of a job, or of the group whose first job this is. */
static cuda_result copy_job(struct cuda_lane *lane, const struct deliver_job *job)
{
	const struct layout *layout = job->region->layout;
	const struct ssv_tensor *tensor = &layout->tensors[job->tensor];
	const struct cuda_region *way = job->region->way;
	const uint64_t group_bytes = way->group_bytes[job->tensor];
	const uint8_t *stage = job->stage;
	cuda_result result = CUDA_SUCCESS;

	for (uint32_t i = 0; i < job->blocks_count && !result; i++) {
		cuda_pointer block = way->start + tensor->block_stride * job->blocks[i];

		if (job->joined > 1) {
			result =
			    copy_add(lane, job->direction, block + way->group_offset[job->tensor],
				     stage, group_bytes);
			stage += group_bytes;
			continue;
		}
		result = copy_runs(lane, job, block + tensor->offset, stage);
		stage += layout_tensor_part(layout, job->tensor)->packed.block_bytes;
	}
	return result ? result : copy_flush(lane, job->direction);
}

/* ---- flights -------------------------------------------------------------------------------- */

static void fail_jobs(struct deliver_queue *jobs, struct deliver_queue *done, int status)
{
	struct deliver_job *job;

	while (deliver_queue_poll(jobs, &job, 1)) {
		if (status == -EBUSY)
			region_sever((struct region *)(uintptr_t)job->region);
		job->status = status;
		deliver_queue_push(done, job);
	}
}

static int is_overdue(const struct cuda_lane *lane, uint64_t now_ns)
{
	return lane->count && now_ns - lane->flights[lane->head].begun_ns > CUDA_HANG_NS;
}

/* Hand everything of a broken lane back, once its stream is at rest or will never be. */
static void lane_drain(struct cuda_lane *lane, struct deliver_queue *done)
{
	int status = -EIO;

	if (lane->count && lane->driver->stream_query(lane->stream) == CUDA_NOT_READY) {
		if (!is_overdue(lane, done->now_ns))
			return;
		status = -EBUSY;
		if (!cuda_gpu_hangs(lane->gpu))
			log_error(
			    "a GPU does not end its copies, and is not used any more: restart");
		cuda_gpu_set_hanging(lane->gpu);
	}
	for (; lane->count; lane->count--) {
		fail_jobs(&lane->flights[lane->head].jobs, done, status);
		lane->head = (lane->head + 1) % CUDA_FLIGHTS;
	}
	lane->batch_count = 0;
	lane->bytes = 0;
	fail_jobs(&lane->waiting, done, -EIO);
}

/* Begin the oldest waiting group; its first job stands for all its blocks. */
static int flight_begin(struct cuda_lane *lane, uint64_t now_ns)
{
	struct cuda_flight *flight = &lane->flights[(lane->head + lane->count) % CUDA_FLIGHTS];
	struct deliver_job *job = lane->waiting.first;
	uint32_t members = job->joined > 1 ? job->joined : 1;
	cuda_result result = copy_job(lane, job);

	flight->bytes = 0;
	flight->begun_ns = now_ns;
	while (members--) {
		(void)deliver_queue_poll(&lane->waiting, &job, 1);
		flight->bytes += job_bytes(job);
		deliver_queue_push(&flight->jobs, job);
	}
	lane->count++;
	lane->bytes += flight->bytes;
	if (!result)
		result = lane->driver->event_record(flight->event, lane->stream);
	return result == CUDA_SUCCESS;
}

static void lane_begin(struct cuda_lane *lane, uint64_t now_ns)
{
	if (!lane->waiting.first || lane->broken)
		return;
	lane->broken = lane->driver->context_set(lane->context) != CUDA_SUCCESS;
	while (!lane->broken && lane->waiting.first && lane->count < CUDA_FLIGHTS &&
	       (lane->count == 0 || lane->bytes < CUDA_FLIGHT_BYTES))
		lane->broken = !flight_begin(lane, now_ns);
}

/* Hand back the flights whose event was reached. */
static void lane_end(struct cuda_lane *lane, struct deliver_queue *done)
{
	while (lane->count && !lane->broken) {
		struct cuda_flight *flight = &lane->flights[lane->head];
		cuda_result result = lane->driver->event_query(flight->event);
		struct deliver_job *job;

		if (result == CUDA_NOT_READY) {
			lane->broken = (uint8_t)is_overdue(lane, done->now_ns);
			return;
		}
		if (result != CUDA_SUCCESS) {
			lane->broken = 1;
			return;
		}
		while (deliver_queue_poll(&flight->jobs, &job, 1)) {
			job->status = 0;
			tally_add(TALLY_BYTES_MOVED, job_bytes(job));
			deliver_queue_push(done, job);
		}
		lane->bytes -= flight->bytes;
		lane->head = (lane->head + 1) % CUDA_FLIGHTS;
		lane->count--;
	}
}

/* ---- submit and poll ------------------------------------------------------------------------ */

static void cuda_submit(struct deliver_queue *queue, struct deliver_job *job)
{
	struct cuda_lane *lane = job_lane(queue, job);
	struct deliver_job *member;

	job->status = 0;
	if (lane->broken && !lane->listed) {
		job->status = -EIO;
		deliver_queue_push(queue, job);
		return;
	}
	if (!lane->listed) {
		lane->listed = 1;
		lane->next = queue->lanes[DELIVER_LANES_CUDA];
		queue->lanes[DELIVER_LANES_CUDA] = lane;
	}
	deliver_queue_push(&lane->group, job);
	if (job->joined > 1 && job->joint + 1u < job->joined)
		return;
	while (deliver_queue_poll(&lane->group, &member, 1))
		deliver_queue_push(&lane->waiting, member);
	lane_begin(lane, queue->now_ns);
}

static uint32_t cuda_poll(struct deliver_queue *queue, struct deliver_job **done, uint32_t max)
{
	struct cuda_lane **at = (struct cuda_lane **)&queue->lanes[DELIVER_LANES_CUDA];

	while (*at) {
		struct cuda_lane *lane = *at;

		lane_end(lane, queue);
		lane_begin(lane, queue->now_ns);
		if (lane->broken)
			lane_drain(lane, queue);
		if (lane->count || lane->waiting.first) {
			at = &lane->next;
			continue;
		}
		lane->listed = 0;
		*at = lane->next;
	}
	return deliver_queue_poll(queue, done, max);
}

#define CUDA_WAY(kind, text)                                                                \
	{                                                                                   \
		.name = text, .memory = kind, .attach = cuda_attach, .detach = cuda_detach, \
		.stage_bytes = cuda_stage_bytes, .join = cuda_join, .open = cuda_open,      \
		.submit = cuda_submit, .poll = cuda_poll,                                   \
	}

const struct deliver_ops deliver_cuda_ipc = CUDA_WAY(SSV_MEMORY_GPU_IPC, "cuda-ipc");
const struct deliver_ops deliver_cuda_fd = CUDA_WAY(SSV_MEMORY_GPU_FD, "cuda-fd");
