/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rdma.h - the "rdma" way's own structures: the device in use, and one worker's lane into one
 * region of an engine's host.
 *
 * The device is opened with the first region and closed with the last; the arena is registered with
 * it once. A region has a lane for each worker: a reliable queue pair and its completion queue,
 * which belong to that worker alone, so nothing is locked and a region's end touches no other's.
 */
#ifndef SSV_DELIVER_RDMA_H
#define SSV_DELIVER_RDMA_H

#include "deliver/deliver.h"
#include "deliver/rdma_port.h"

#define RDMA_BATCH       64u  /* work requests a post: one doorbell */
#define RDMA_DEPTH       512u /* work requests out a lane */
#define RDMA_FLIGHTS     32u  /* posts out a lane */
#define RDMA_CQES        16u  /* completions a look */
#define RDMA_INLINE      128u /* bytes that travel inside the work request, where the device can */
#define RDMA_SINK_BYTES  64u  /* a cache line a lane */
#define RDMA_CONFIRM_MAX 8u   /* bytes read back behind the writes of a post */

/* Bytes in flight a lane: what 20 GB/s move in the 200 us between two looks. More would only fill
 * the switches' queues. */
#define RDMA_FLIGHT_BYTES (4 * MIB)
/* Neighbouring runs are joined up to this length. */
#define RDMA_RUN_BYTES_MAX (1 * MIB)
/* Looks at a broken lane's completions before its queue pair is destroyed, which ends them too. */
#define RDMA_STALL_NS    5000000000ull /* a device that says nothing for so long is given up */
#define RDMA_DRAIN_LOOKS 100000u

/* Work requests of one post; its last one reports. */
struct rdma_flight {
	uint64_t end;              /* the number of its last work request, plus 1 */
	uint64_t bytes;            /* it carries */
	struct deliver_queue jobs; /* that end with it */
};

struct rdma_lane {
	struct region *region;
	struct ibv_qp *qp; /* NULL: destroyed, the lane is broken */
	struct ibv_cq *cq;
	uint32_t psn; /* our first packet's */
	uint32_t depth;
	uint32_t inline_bytes;
	uint32_t looks;       /* since it broke */
	uint64_t sink;        /* where the confirming READ puts its bytes */
	uint32_t sink_key;    /* lkey */
	uint32_t arena_key;   /* lkey */
	uint32_t rkey;        /* the region's */
	uint64_t address;     /* the region's start for this key */
	uint64_t posted;      /* work requests so far */
	uint64_t ended;       /* of these: ended, in order */
	uint64_t progress_ns; /* when a request ended last, or nothing was out */
	uint64_t bytes;       /* in flight */
	uint32_t head, count; /* of flights */
	int status;           /* 0, or why the lane is broken: what its jobs end with */
	uint8_t listed;
	struct rdma_lane *next;                   /* of the worker's lanes with jobs out */
	struct deliver_queue waiting;             /* not posted, or the first in part: */
	uint32_t block, run;                      /* where it goes on */
	uint64_t stage_offset;                    /* and in its staging memory */
	struct rdma_flight flights[RDMA_FLIGHTS]; /* ring */
	uint32_t batch_count;
	struct ibv_send_wr wrs[RDMA_BATCH];
	struct ibv_sge sges[RDMA_BATCH];
};

struct rdma_device {
	struct rdma_port port;
	struct deliver_host host;
	struct ibv_mr *arena;
	uint32_t regions_count;
};

/* What the way keeps of a region. */
struct rdma_region {
	struct rdma_device *device;
	struct ibv_mr *sink;
	uint8_t *sinks;          /* [workers_count][RDMA_SINK_BYTES] */
	struct rdma_lane *lanes; /* [workers_count] */
	uint32_t lanes_count;    /* that are set up */
};

/* rdma_region.c, control thread. */
int rdma_attach(struct region *region, const struct ssv_region *offer,
		const struct deliver_owner *owner, const struct deliver_host *host, char *error);
void rdma_detach(struct region *region);

#endif
