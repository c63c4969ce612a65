/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda.h - the "cuda" way's own structures: GPUs in use, and one worker's copies on one of them.
 *
 * A GPU is opened with the first region on it and closed with the last: its primary context, the
 * arena registered as pinned memory, and two lanes a worker (in and out), each a stream of its own
 * with a ring of events. A lane belongs to one worker; nothing of it is shared, so nothing is
 * locked. The daemon launches no kernel: a lane holds copies and events alone.
 */
#ifndef SSV_DELIVER_CUDA_H
#define SSV_DELIVER_CUDA_H

#include <stdatomic.h>

#include "base/clock.h"
#include "deliver/cuda_driver.h"
#include "deliver/deliver.h"

#define CUDA_GPUS_MAX 16
#define CUDA_FLIGHTS  64u  /* groups of jobs in flight a lane */
#define CUDA_BATCH    512u /* copies a call */

/* Bytes in flight a lane: three times what 50 GB/s move in the 100 us between two looks. More
 * would only lengthen the wait of the engine's own copies behind ours. */
#define CUDA_FLIGHT_BYTES (16 * MIB)

/* Shorter copies are turned into kernels by the driver, which the engine's decoding would feel:
 * measured on an H100, 16 KiB cost 30 % of a decode step, 32 KiB nothing. */
#define CUDA_RUN_BYTES_MIN (32 * KIB)
/* Neighbouring tensors are joined until a copy has this length: 64 KiB move at 49 GB/s, 32 at 36.
 */
#define CUDA_RUN_BYTES_GOAL (64 * KIB)

/* Copies that are not done by then never will be. */
#define CUDA_HANG_NS (10 * NS_PER_S)

struct cuda_gpu;

/* Jobs whose copies end with one event. */
struct cuda_flight {
	struct deliver_queue jobs;
	uint64_t bytes;
	uint64_t begun_ns;
	cuda_event event;
};

struct cuda_lane {
	struct cuda_gpu *gpu;
	const struct cuda_driver *driver;
	cuda_context context;
	cuda_stream stream;
	struct cuda_flight flights[CUDA_FLIGHTS]; /* ring; the stream ends them in order */
	uint32_t head, count;
	uint64_t bytes;               /* in flight */
	struct deliver_queue group;   /* submitted members of a group whose last is to come */
	struct deliver_queue waiting; /* whole groups that are not begun */
	struct cuda_lane *next;       /* of the worker's lanes with jobs out */
	uint8_t listed;
	uint8_t broken; /* a call failed: everything comes back with -EIO */
	uint32_t batch_count;
	cuda_pointer to[CUDA_BATCH], from[CUDA_BATCH];
	size_t bytes_of[CUDA_BATCH];
};

struct cuda_gpu {
	const struct cuda_driver *driver;
	struct cuda_uuid uuid;
	cuda_device device;
	cuda_context context;
	struct deliver_host host;
	uint32_t regions_count;
	struct cuda_lane *lanes; /* [workers_count][2]: in, out */
	uint32_t lanes_count;
	_Atomic uint8_t hangs;
};

/* A worker has seen that copies never end. Release, pairs with cuda_gpu_hangs(). */
static inline void cuda_gpu_set_hanging(struct cuda_gpu *gpu)
{
	atomic_store_explicit(&gpu->hangs, 1, memory_order_release);
}

/* Calls that wait for such a GPU would never return. Acquire, pairs with cuda_gpu_set_hanging(). */
static inline int cuda_gpu_hangs(const struct cuda_gpu *gpu)
{
	return atomic_load_explicit(&gpu->hangs, memory_order_acquire);
}

/* What the way keeps of a region. */
struct cuda_region {
	struct cuda_gpu *gpu;
	cuda_pointer mapped; /* what was opened or reserved */
	uint64_t mapped_bytes;
	cuda_pointer start; /* of the region */
	uint8_t by_fd;
	uint32_t run_bytes; /* the shortest copy */
	/* By tensor; of groups, at the first: what one block's copy is. */
	uint8_t *join;          /* tensors of the group that begins here; 0: not the first of one */
	uint64_t *group_bytes;  /* 0: travels alone, run by run */
	uint64_t *group_offset; /* from the region's start, in block 0 */
};

/* cuda_gpu.c, control thread. One line in error (SSV_ERROR_TEXT_MAX bytes). */
SSV_MUST_CHECK int cuda_gpu_get(const uint8_t uuid[16], const struct deliver_host *host,
				struct cuda_gpu **ret_gpu, char *error);
void cuda_gpu_put(struct cuda_gpu *gpu);

/* cuda_region.c, control thread. */
int cuda_attach(struct region *region, const struct ssv_region *offer,
		const struct deliver_owner *owner, const struct deliver_host *host, char *error);
void cuda_detach(struct region *region);

#endif
