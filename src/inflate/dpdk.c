/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dpdk.c - inflate engines behind DPDK's compressdev: BlueField (mlx5), and the ISA-L and zlib
 * drivers, which run on the caller's core and stand in for it.
 *
 * A job is one stateless operation. An mbuf holds 65,535 bytes at most, so a record is a chain of
 * external buffers over one contiguous range: drivers that walk chains see a chain, those that
 * look at the first address and the whole length see one buffer. Operations and chains belong to
 * the handle for good; a job only points them at its memory.
 *
 * "Success" of a driver is not believed: produced must be what was promised, and consumed what was
 * given. And the ISA-L driver never returns from a chain that ends before its stream does; behind
 * such a chain therefore lie zeros, enough of them that any stream ends, fails or fills its output:
 * every symbol of the code 00..0 makes output or ends the block, and a block header of zeros is an
 * invalid stored block. What a stored block lacks becomes zeros; the caller's checksum tells.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <rte_comp.h>
#include <rte_compressdev.h>
#include <rte_errno.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>

#include "inflate/dpdk_device.h"
#include "inflate/dpdk_limits.h"
#include "inflate/engines.h"

#define DEVICE_DEFAULT "compress_isal"
#define BURST          16u
#define CODE_BITS_MAX  15u /* of a symbol of Deflate */

/* Segments of `bytes`. */
#define SEGMENTS(bytes) (((bytes) + DPDK_SEGMENT_BYTES - 1) / DPDK_SEGMENT_BYTES)
#define RECORD_SEGMENTS SEGMENTS(DPDK_RECORD_BYTES_MAX)
/* Zeros that any stream of a record's output reads at most: its symbols, and one stored block. */
#define PAD_BYTES(out_bytes) ((out_bytes) / 8 * CODE_BITS_MAX + 2 * DPDK_SEGMENT_BYTES)
#define PAD_SEGMENTS         SEGMENTS(PAD_BYTES(DPDK_RECORD_BYTES_MAX))

static uint8_t zeros[DPDK_SEGMENT_BYTES];

/* An operation, its chains, and the job that it works for. */
struct slot {
	struct rte_comp_op *op;
	struct rte_mbuf *source[RECORD_SEGMENTS + PAD_SEGMENTS];
	struct rte_mbuf *target[RECORD_SEGMENTS];
	struct inflate_job *job;
	uint32_t source_bytes; /* with the zeros */
};

struct dpdk {
	struct inflate inflate;
	struct dpdk_queue queue;
	struct inflate_caps caps;
	struct inflate_stats stats;
	struct job_queue refused; /* never reached the device */
	struct rte_mbuf_ext_shared_info shared;
	struct rte_mempool *mbufs, *ops;
	void *xform;
	uint32_t free_count;
	uint16_t *free; /* slots that hold no job, a stack */
	struct slot slots[];
};

static struct dpdk *dpdk_of(const struct inflate *inflate)
{
	return (struct dpdk *)(uintptr_t)inflate;
}

/* ---- open and close ------------------------------------------------------------------------- */

static void memory_is_ours(void *address, void *context)
{
	(void)address;
	(void)context;
}

static int chain_allocate(struct dpdk *dpdk, struct rte_mbuf **chain, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		chain[i] = rte_mbuf_raw_alloc(dpdk->mbufs);
		if (!chain[i])
			return -ENOMEM;
		rte_pktmbuf_reset(chain[i]);
	}
	return 0;
}

static int slots_create(struct dpdk *dpdk)
{
	const uint32_t pad = dpdk->queue.pads_source ? PAD_SEGMENTS : 0;
	int err = 0;

	for (uint32_t i = 0; !err && i < dpdk->caps.depth; i++) {
		struct slot *slot = &dpdk->slots[i];

		slot->op = rte_comp_op_alloc(dpdk->ops);
		if (!slot->op)
			return -ENOMEM;
		err = chain_allocate(dpdk, slot->source, RECORD_SEGMENTS + pad);
		if (!err)
			err = chain_allocate(dpdk, slot->target, RECORD_SEGMENTS);
		dpdk->free[dpdk->free_count++] = (uint16_t)i;
	}
	return err;
}

static int pools_create(struct dpdk *dpdk)
{
	const uint32_t chains = dpdk->caps.depth * (2 * RECORD_SEGMENTS + PAD_SEGMENTS);
	char name[RTE_MEMPOOL_NAMESIZE];

	snprintf(name, sizeof(name), "ssv-mbuf-%u-%u", dpdk->queue.device_id, dpdk->queue.queue);
	dpdk->mbufs = rte_pktmbuf_pool_create(name, chains, 0, 0, 0, SOCKET_ID_ANY);
	snprintf(name, sizeof(name), "ssv-op-%u-%u", dpdk->queue.device_id, dpdk->queue.queue);
	dpdk->ops = rte_comp_op_pool_create(name, dpdk->caps.depth, 0, 0, SOCKET_ID_ANY);
	return dpdk->mbufs && dpdk->ops ? 0 : -ENOMEM;
}

static int xform_create(struct dpdk *dpdk)
{
	const struct rte_comp_xform xform = {
	    .type = RTE_COMP_DECOMPRESS,
	    .decompress = {.algo = RTE_COMP_ALGO_DEFLATE,
			   .chksum = RTE_COMP_CHECKSUM_NONE,
			   .window_size = DPDK_WINDOW_BITS,
			   .hash_algo = RTE_COMP_HASH_ALGO_NONE},
	};

	/* One a handle: with zlib's driver it is the stream's state. */
	return rte_compressdev_private_xform_create(dpdk->queue.device_id, &xform, &dpdk->xform)
		   ? -EIO
		   : 0;
}

static void dpdk_close(struct inflate *inflate)
{
	struct dpdk *dpdk = dpdk_of(inflate);

	if (dpdk->xform)
		(void)rte_compressdev_private_xform_free(dpdk->queue.device_id, dpdk->xform);
	rte_mempool_free(dpdk->ops); /* with everything that was taken from it */
	rte_mempool_free(dpdk->mbufs);
	dpdk_queue_close(&dpdk->queue);
	free(dpdk->free);
	free(dpdk);
}

static int dpdk_open(const struct inflate_config *config, const char *rest,
		     struct inflate **ret_inflate, char *error)
{
	const char *device = rest[0] == ':' ? rest + 1 : DEVICE_DEFAULT;
	struct dpdk_queue queue;
	struct dpdk *dpdk;
	int err;

	if ((rest[0] && rest[0] != ':') || !device[0])
		return inflate_refuse(error, -EINVAL,
				      "inflate engine dpdk: \"%.100s\": expected dpdk or "
				      "dpdk:DEVICE",
				      rest);
	err = dpdk_queue_open(config, device, &queue, error);
	if (err)
		return err;
	dpdk = calloc(1, sizeof(*dpdk) + queue.depth * sizeof(dpdk->slots[0]));
	if (!dpdk) {
		dpdk_queue_close(&queue);
		return inflate_refuse(error, -ENOMEM, "inflate engine dpdk: out of memory");
	}
	dpdk->inflate.ops = &inflate_dpdk;
	dpdk->queue = queue;
	dpdk->caps = (struct inflate_caps){.flags = (queue.is_beside ? INFLATE_CAP_BESIDE : 0u) |
						    (queue.is_lenient ? INFLATE_CAP_LENIENT : 0u),
					   .depth = queue.depth,
					   .in_bytes_max = queue.record_bytes_max,
					   .out_bytes_max = queue.record_bytes_max,
					   .device = queue.driver};
	dpdk->shared.free_cb = memory_is_ours;
	rte_mbuf_ext_refcnt_set(&dpdk->shared, 1);
	dpdk->free = calloc(queue.depth, sizeof(*dpdk->free));
	err = dpdk->free ? pools_create(dpdk) : -ENOMEM;
	if (!err)
		err = slots_create(dpdk);
	if (!err)
		err = xform_create(dpdk);
	if (err) {
		dpdk_close(&dpdk->inflate);
		return inflate_refuse(error, err, "DPDK: %s: setting up %u operations: %s", device,
				      queue.depth, strerror(-err));
	}
	*ret_inflate = &dpdk->inflate;
	return 0;
}

/* ---- chains --------------------------------------------------------------------------------- */

static void segment_point(struct dpdk *dpdk, struct rte_mbuf *m, const uint8_t *bytes,
			  uint32_t count)
{
	void *address = (void *)(uintptr_t)bytes;

	/* The environment runs with virtual addresses on the bus (--iova-mode=va). */
	rte_pktmbuf_attach_extbuf(m, address, (rte_iova_t)(uintptr_t)address, (uint16_t)count,
				  &dpdk->shared);
	m->data_off = 0;
	m->data_len = (uint16_t)count;
	m->next = NULL;
}

/* Point a chain's segments from `used` on at bytes; returns how many are used then. is_repeated:
 * each at the same DPDK_SEGMENT_BYTES. */
static uint32_t chain_point(struct dpdk *dpdk, struct rte_mbuf **chain, uint32_t used,
			    const uint8_t *bytes, uint32_t count, int is_repeated)
{
	while (count) {
		const uint32_t piece = (uint32_t)u64_min(count, DPDK_SEGMENT_BYTES);

		segment_point(dpdk, chain[used], bytes, piece);
		if (used)
			chain[used - 1]->next = chain[used];
		used++;
		count -= piece;
		if (!is_repeated)
			bytes += piece;
	}
	return used;
}

static void chain_close(struct rte_mbuf *first, uint32_t used, uint32_t bytes)
{
	first->nb_segs = (uint16_t)used;
	first->pkt_len = bytes;
}

static struct rte_comp_op *slot_fill(struct dpdk *dpdk, struct slot *slot, struct inflate_job *job)
{
	struct rte_comp_op *op = slot->op;
	const uint32_t pad = dpdk->queue.pads_source ? PAD_BYTES(job->out_bytes) : 0;
	uint32_t used;

	slot->job = job;
	slot->source_bytes = job->in_bytes + pad;
	used = chain_point(dpdk, slot->source, 0, job->in, job->in_bytes, 0);
	used = chain_point(dpdk, slot->source, used, zeros, pad, 1);
	chain_close(slot->source[0], used, slot->source_bytes);
	used = chain_point(dpdk, slot->target, 0, job->out, job->out_bytes, 0);
	chain_close(slot->target[0], used, job->out_bytes);

	op->op_type = RTE_COMP_OP_STATELESS;
	op->private_xform = dpdk->xform;
	op->m_src = slot->source[0];
	op->m_dst = slot->target[0];
	op->src.offset = op->dst.offset = 0;
	op->src.length = slot->source_bytes;
	op->flush_flag = RTE_COMP_FLUSH_FINAL;
	op->input_chksum = 0;
	op->consumed = op->produced = 0;
	op->status = RTE_COMP_OP_STATUS_NOT_PROCESSED;
	job->mark = (uint32_t)(slot - dpdk->slots);
	return op;
}

/* ---- data path ------------------------------------------------------------------------------ */

static struct slot *slot_of(struct dpdk *dpdk, const struct rte_comp_op *op)
{
	for (uint32_t i = 0; i < dpdk->caps.depth; i++)
		if (dpdk->slots[i].op == op)
			return &dpdk->slots[i];
	return NULL;
}

static void slot_release(struct dpdk *dpdk, struct slot *slot)
{
	slot->job = NULL;
	dpdk->free[dpdk->free_count++] = (uint16_t)(slot - dpdk->slots);
}

static uint32_t dpdk_submit(struct inflate *inflate, struct inflate_job *const *jobs, uint32_t n)
{
	struct dpdk *dpdk = dpdk_of(inflate);
	uint32_t i;

	for (i = 0; i < n && dpdk->free_count; i++) {
		struct slot *slot;
		struct rte_comp_op *op;

		jobs[i]->status = job_check(jobs[i], &dpdk->caps);
		if (jobs[i]->status) {
			job_queue_push(&dpdk->refused, jobs[i]);
			continue;
		}
		slot = &dpdk->slots[dpdk->free[--dpdk->free_count]];
		op = slot_fill(dpdk, slot, jobs[i]);
		if (rte_compressdev_enqueue_burst(dpdk->queue.device_id, dpdk->queue.queue, &op,
						  1) != 1) {
			slot_release(dpdk, slot);
			break;
		}
	}
	return i;
}

/* A driver's word for its status, as far as the caller acts on it. */
static int op_errno(const struct rte_comp_op *op)
{
	switch (op->status) {
	case RTE_COMP_OP_STATUS_SUCCESS:
		return 0;
	case RTE_COMP_OP_STATUS_NOT_PROCESSED:
	case RTE_COMP_OP_STATUS_INVALID_ARGS:
	case RTE_COMP_OP_STATUS_INVALID_STATE:
		return -EIO;
	default:
		return -EBADMSG;
	}
}

static int job_status(const struct slot *slot)
{
	const struct rte_comp_op *op = slot->op;
	int err = op_errno(op);

	if (err)
		return err;
	return op->produced == slot->job->out_bytes && op->consumed == slot->job->in_bytes
		   ? 0
		   : -EBADMSG;
}

static uint32_t dpdk_poll(struct inflate *inflate, struct inflate_job **done, uint32_t max)
{
	struct dpdk *dpdk = dpdk_of(inflate);
	struct rte_comp_op *ops[BURST];
	uint32_t n = 0, count;

	while (n < max && dpdk->refused.count) {
		done[n] = job_queue_take(&dpdk->refused);
		job_count(&dpdk->stats, done[n++]);
	}
	count = (uint32_t)u64_min(max - n, BURST);
	if (!count || dpdk->free_count == dpdk->caps.depth)
		return n;
	count = rte_compressdev_dequeue_burst(dpdk->queue.device_id, dpdk->queue.queue, ops,
					      (uint16_t)count);
	for (uint32_t i = 0; i < count; i++) {
		struct slot *slot = slot_of(dpdk, ops[i]);

		ssv_assert(slot && slot->job);
		slot->job->status = job_status(slot);
		job_count(&dpdk->stats, slot->job);
		done[n++] = slot->job;
		slot_release(dpdk, slot);
	}
	return n;
}

static void dpdk_caps(const struct inflate *inflate, struct inflate_caps *ret_caps)
{
	*ret_caps = dpdk_of(inflate)->caps;
}

static void dpdk_stats(const struct inflate *inflate, struct inflate_stats *ret_stats)
{
	*ret_stats = dpdk_of(inflate)->stats;
}

const struct inflate_ops inflate_dpdk = {
    .name = "dpdk",
    .open = dpdk_open,
    .close = dpdk_close,
    .submit = dpdk_submit,
    .poll = dpdk_poll,
    .caps = dpdk_caps,
    .stats = dpdk_stats,
};
