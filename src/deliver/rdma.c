/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rdma.c - the "rdma" way: blocks are decoded into staging memory in packed form and moved by the
 * network card, RDMA WRITE into the memory of another host, RDMA READ out of it. No thread of that
 * host takes part.
 *
 * Work requests are linked and posted as one batch, one doorbell; only the last one of a batch
 * reports. Runs that lie side by side on both ends (blocks that follow one another) become one
 * request; short ones travel inside it.
 *
 * Ordering. The acknowledgement of a WRITE says that the other card has the bytes, not that memory
 * has. So a batch that writes ends with a READ of the last bytes it wrote: a card answers a lane's
 * requests in order, and no read overtakes the writes before it on the way to memory. When the READ
 * has come back the bytes are there, whatever path the completion then takes.
 *
 * Failure. A lane's first error ends it: the queue pair goes to the error state, everything that is
 * out comes back flushed, and only when all of it has come back are the jobs handed back, because a
 * job that was handed back must not touch memory any more. A device that ends no request for
 * RDMA_STALL_NS has failed too. If it says nothing for RDMA_DRAIN_LOOKS looks after a failure the
 * queue pair is destroyed, which ends them by force. A broken lane stays
 * broken, and its region is severed: what was under way when it broke may still reach the owner's
 * card, so nothing but the owner's own revocation can promise that it does not.
 */
#include "deliver/rdma.h"

#include <errno.h>
#include <string.h>

#include "base/tally.h"

extern const struct deliver_ops deliver_rdma;

static struct rdma_lane *job_lane(const struct deliver_queue *queue, const struct deliver_job *job)
{
	const struct rdma_region *way = job->region->way;

	ssv_assert(queue->worker < way->lanes_count);
	return &way->lanes[queue->worker];
}

static uint64_t rdma_stage_bytes(const struct region *region, uint32_t tensor,
				 uint32_t blocks_count)
{
	return (uint64_t)layout_tensor_part(region->layout, tensor)->packed.block_bytes *
	       blocks_count;
}

/* ---- batches -------------------------------------------------------------------------------- */

static void batch_add(struct rdma_lane *lane, enum ibv_wr_opcode opcode, uint64_t remote,
		      uint64_t local, uint32_t key, uint32_t bytes)
{
	const uint32_t i = lane->batch_count++;
	struct ibv_send_wr *wr = &lane->wrs[i];

	lane->sges[i] = (struct ibv_sge){.addr = local, .length = bytes, .lkey = key};
	wr->wr_id = lane->posted + i + 1;
	wr->next = NULL;
	wr->sg_list = &lane->sges[i];
	wr->num_sge = 1;
	wr->opcode = opcode;
	wr->send_flags =
	    opcode == IBV_WR_RDMA_WRITE && bytes <= lane->inline_bytes ? IBV_SEND_INLINE : 0;
	wr->wr.rdma.remote_addr = remote;
	wr->wr.rdma.rkey = lane->rkey;
	if (i)
		lane->wrs[i - 1].next = wr;
}

/* Make the last request longer by a run that follows it on both ends; 1: done. */
static int batch_extend(struct rdma_lane *lane, enum ibv_wr_opcode opcode, uint64_t remote,
			uint64_t local, uint32_t bytes)
{
	struct ibv_send_wr *wr;
	struct ibv_sge *sge;

	if (!lane->batch_count)
		return 0;
	wr = &lane->wrs[lane->batch_count - 1];
	sge = wr->sg_list;
	if (wr->opcode != opcode || wr->wr.rdma.remote_addr + sge->length != remote ||
	    sge->addr + sge->length != local || sge->length + bytes > RDMA_RUN_BYTES_MAX)
		return 0;
	sge->length += bytes;
	if (sge->length > lane->inline_bytes)
		wr->send_flags = 0;
	return 1;
}

/* Requests of the first waiting job from where it stands; 1: all of it is in the batch. */
static int batch_fill(struct rdma_lane *lane, struct rdma_flight *flight, uint32_t room)
{
	const struct deliver_job *job = lane->waiting.first;
	const struct layout *layout = job->region->layout;
	const struct layout_part *part = layout_tensor_part(layout, job->tensor);
	const enum ibv_wr_opcode opcode =
	    job->direction == DELIVER_IN ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_READ;

	for (; lane->block < job->blocks_count; lane->block++, lane->run = 0) {
		const uint64_t block =
		    lane->address +
		    layout_block_offset(layout, job->tensor, job->blocks[lane->block]);

		for (; lane->run < part->runs_count; lane->run++) {
			const struct layout_run *run = &part->runs[lane->run];
			const uint64_t local = (uintptr_t)job->stage + lane->stage_offset;

			if (lane->bytes && lane->bytes + run->bytes > RDMA_FLIGHT_BYTES)
				return 0;
			if (!batch_extend(lane, opcode, block + run->offset, local, run->bytes)) {
				if (lane->batch_count == room)
					return 0;
				batch_add(lane, opcode, block + run->offset, local, lane->arena_key,
					  run->bytes);
			}
			lane->stage_offset += run->bytes;
			lane->bytes += run->bytes;
			flight->bytes += run->bytes;
		}
	}
	lane->block = 0;
	lane->run = 0;
	lane->stage_offset = 0;
	return 1;
}

/* The READ behind a batch's writes; the last write's last bytes stand for all of them. */
static void batch_confirm(struct rdma_lane *lane)
{
	uint32_t i = lane->batch_count;

	while (i && lane->wrs[i - 1].opcode != IBV_WR_RDMA_WRITE)
		i--;
	if (i) {
		const struct ibv_send_wr *wr = &lane->wrs[i - 1];
		const uint32_t all = wr->sg_list->length;
		const uint32_t bytes = (uint32_t)u64_min(all, RDMA_CONFIRM_MAX);

		batch_add(lane, IBV_WR_RDMA_READ, wr->wr.rdma.remote_addr + all - bytes, lane->sink,
			  lane->sink_key, bytes);
	}
	lane->wrs[lane->batch_count - 1].send_flags |= IBV_SEND_SIGNALED;
}

static void lane_break(struct rdma_lane *lane, int status)
{
	if (lane->status)
		return;
	lane->status = status;
	lane->looks = 0;
	region_sever(lane->region);
	/* If even this fails, the looks run out and the queue pair is destroyed. */
	(void)rdma_pair_stop(lane->qp);
}

static void batch_post(struct rdma_lane *lane, struct rdma_flight *flight)
{
	struct ibv_send_wr *bad = NULL;
	uint32_t posted = lane->batch_count;
	int err = ibv_post_send(lane->qp, lane->wrs, &bad);

	if (err)
		posted = bad ? (uint32_t)(bad - lane->wrs) : 0;
	lane->posted += posted;
	lane->batch_count = 0;
	flight->end = lane->posted;
	if (err)
		lane_break(lane, -EIO);
}

/* Post one batch of what waits; 0 when there is no room, or nothing waits. */
static int flight_begin(struct rdma_lane *lane)
{
	struct rdma_flight *flight = &lane->flights[(lane->head + lane->count) % RDMA_FLIGHTS];
	const uint64_t free_depth = lane->depth - (lane->posted - lane->ended);
	struct deliver_job *job;
	uint32_t room;

	/* One request is kept for the READ that confirms. */
	if (!lane->waiting.first || lane->count == RDMA_FLIGHTS || free_depth < 2)
		return 0;
	room = (uint32_t)u64_min(free_depth, RDMA_BATCH) - 1;
	memset(flight, 0, sizeof(*flight));
	while (lane->waiting.first && batch_fill(lane, flight, room)) {
		(void)deliver_queue_poll(&lane->waiting, &job, 1);
		deliver_queue_push(&flight->jobs, job);
	}
	if (!lane->batch_count && !flight->jobs.first)
		return 0; /* the cap of bytes */
	lane->count++;
	if (!lane->batch_count) { /* jobs without blocks */
		flight->end = lane->posted;
		return 1;
	}
	batch_confirm(lane);
	batch_post(lane, flight);
	return 1;
}

static void lane_begin(struct rdma_lane *lane)
{
	while (!lane->status && flight_begin(lane))
		continue;
}

/* ---- completions ---------------------------------------------------------------------------- */

static int status_of(enum ibv_wc_status status)
{
	switch (status) {
	case IBV_WC_SUCCESS:
		return 0;
	case IBV_WC_REM_ACCESS_ERR: /* the memory is not the owner's to offer any more */
	case IBV_WC_REM_INV_REQ_ERR:
		return -EFAULT;
	case IBV_WC_RETRY_EXC_ERR: /* the owner's end is gone, or the link */
	case IBV_WC_RNR_RETRY_EXC_ERR:
	case IBV_WC_REM_ABORT_ERR:
		return -ESRCH;
	default:
		return -EIO;
	}
}

static void lane_look(struct rdma_lane *lane, uint64_t now_ns)
{
	const uint64_t before = lane->ended;
	struct ibv_wc wcs[RDMA_CQES];
	int n;

	do {
		n = lane->cq ? ibv_poll_cq(lane->cq, RDMA_CQES, wcs) : 0;
		for (int i = 0; i < n; i++) {
			/* A lane's requests end in order: this one's end is that of all before. */
			lane->ended = u64_max(lane->ended, wcs[i].wr_id);
			if (wcs[i].status != IBV_WC_SUCCESS)
				lane_break(lane, status_of(wcs[i].status));
		}
	} while (n == (int)RDMA_CQES);
	if (n < 0)
		lane_break(lane, -EIO);
	if (lane->ended != before || lane->ended == lane->posted)
		lane->progress_ns = now_ns;
	else if (now_ns > lane->progress_ns + RDMA_STALL_NS)
		lane_break(lane, -ESRCH);
}

static void jobs_back(struct deliver_queue *jobs, int status, struct deliver_queue *done)
{
	struct deliver_job *job;

	while (deliver_queue_poll(jobs, &job, 1)) {
		job->status = status;
		if (!status)
			tally_add(TALLY_BYTES_MOVED,
				  rdma_stage_bytes(job->region, job->tensor, job->blocks_count));
		deliver_queue_push(done, job);
	}
}

/* Hand back the flights that have ended whole. */
static void lane_end(struct rdma_lane *lane, struct deliver_queue *done)
{
	while (!lane->status && lane->count) {
		struct rdma_flight *flight = &lane->flights[lane->head];

		if (flight->end > lane->ended)
			return;
		lane->bytes -= flight->bytes;
		lane->head = (lane->head + 1) % RDMA_FLIGHTS;
		lane->count--;
		jobs_back(&flight->jobs, 0, done);
	}
}

/* Hand everything of a broken lane back, once nothing of it is out any more. */
static void lane_drain(struct rdma_lane *lane, struct deliver_queue *done)
{
	if (lane->ended != lane->posted) {
		if (++lane->looks < RDMA_DRAIN_LOOKS)
			return;
		rdma_pair_destroy(lane->cq, lane->qp);
		lane->cq = NULL;
		lane->qp = NULL;
		lane->ended = lane->posted;
	}
	for (; lane->count; lane->count--) {
		jobs_back(&lane->flights[lane->head].jobs, lane->status, done);
		lane->head = (lane->head + 1) % RDMA_FLIGHTS;
	}
	jobs_back(&lane->waiting, lane->status, done);
	lane->bytes = 0;
	lane->block = 0;
	lane->run = 0;
	lane->stage_offset = 0;
}

/* ---- submit and poll ------------------------------------------------------------------------ */

static void rdma_submit(struct deliver_queue *queue, struct deliver_job *job)
{
	struct rdma_lane *lane = job_lane(queue, job);

	job->status = lane->status;
	if (lane->status && !lane->listed) {
		deliver_queue_push(queue, job);
		return;
	}
	if (!lane->listed) {
		lane->listed = 1;
		lane->progress_ns = queue->now_ns;
		lane->next = queue->lanes[DELIVER_LANES_RDMA];
		queue->lanes[DELIVER_LANES_RDMA] = lane;
	}
	deliver_queue_push(&lane->waiting, job);
	lane_begin(lane);
}

static uint32_t rdma_poll(struct deliver_queue *queue, struct deliver_job **done, uint32_t max)
{
	struct rdma_lane **at = (struct rdma_lane **)&queue->lanes[DELIVER_LANES_RDMA];

	while (*at) {
		struct rdma_lane *lane = *at;

		lane_look(lane, queue->now_ns);
		lane_end(lane, queue);
		lane_begin(lane);
		if (lane->status)
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

const struct deliver_ops deliver_rdma = {
    .name = "rdma",
    .memory = SSV_MEMORY_RDMA,
    .attach = rdma_attach,
    .detach = rdma_detach,
    .stage_bytes = rdma_stage_bytes,
    .open = deliver_open_packed,
    .submit = rdma_submit,
    .poll = rdma_poll,
};
