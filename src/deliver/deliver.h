/* SPDX-License-Identifier: Apache-2.0 */
/*
 * deliver.h - how bytes reach a region and leave it: the contract of every delivery way.
 *
 * A way is chosen by the region's memory kind, whole: mapped shared memory is written directly by
 * the decoder; a foreign address range is staged and moved by cross-memory attach; copy engines
 * and RDMA take the same jobs asynchronously. So the contract is two-phase: a tensor's blocks are
 * opened (say where the decoder writes), then submitted, then polled until done.
 *
 * Threads: attach and detach on the control thread; the data path on the worker that owns the job
 * and the queue. Nothing on the data path allocates.
 */
#ifndef SSV_DELIVER_H
#define SSV_DELIVER_H

#include <stdatomic.h>
#include <sys/types.h>

#include "base/base.h"
#include "base/blob.h"
#include "deliver/layout.h"
#include "shadowserve.h"

struct deliver_ops;
struct pollfd;

/* A way with jobs out is polled so often though its descriptors are silent: deadlines. */
#define DELIVER_LOOK_NS (100 * 1000000ull)

/* The daemon's side of every copy: staging memory lies in this range. */
struct deliver_host {
	void *memory;
	uint64_t bytes;
	uint32_t workers_count; /* their queues are numbered from 0 */
	const char *rdma;       /* device[:port[:gid index]]; NULL: the first that is active */
};

/* Who offers a region. A relay offers for an engine of another machine: it has no pid here, but
 * says in a blob where the memory is and may be answered by one. */
struct deliver_owner {
	pid_t pid;                  /* 0: on another machine */
	const struct blob *offered; /* TCP, RDMA; else NULL */
	struct blob *answer;        /* TCP, RDMA: filled by attach; bytes 0: nothing to say */
};

/* A registered region; attached on the control thread, then only read. */
struct region {
	const struct deliver_ops *ops;
	struct layout *layout; /* owned */
	uint8_t *map;          /* MEMFD: the mapping; else NULL */
	uint64_t address;      /* ADDRESS: in the owner's address space */
	uint64_t bytes;
	pid_t pid; /* owner */
	int pidfd; /* owner, -1: none */
	void *way; /* what the way keeps of it, or NULL */
	/* Bytes of a job that was handed back may still be under way to the owner: no completion
	 * of this region's can promise anything any more, and its session must end. */
	_Atomic uint8_t severed;
};

/* A worker says so before it hands such a job back. Release, pairs with region_is_severed(). */
static inline void region_sever(struct region *region)
{
	atomic_store_explicit(&region->severed, 1, memory_order_release);
}

/* Acquire, pairs with region_sever(). */
static inline int region_is_severed(const struct region *region)
{
	return atomic_load_explicit(&region->severed, memory_order_acquire);
}

/* Tensors that may travel as one, at most (struct deliver_ops, join). */
#define DELIVER_JOIN_MAX 8u

enum deliver_direction {
	DELIVER_IN = 1,  /* into the region: fetch */
	DELIVER_OUT = 2, /* out of the region: capture */
};

/* One tensor of some blocks on its way; the caller's memory until poll hands it back. */
struct deliver_job {
	const struct region *region;
	uint32_t tensor;        /* index in the layout's tensors */
	uint8_t direction;      /* enum deliver_direction */
	uint8_t joined;         /* tensors of its group; 0 or 1: travels alone */
	uint8_t joint;          /* its index in the group */
	const uint32_t *blocks; /* [blocks_count], borrowed until handed back */
	uint32_t blocks_count;
	uint8_t *stage;               /* stage_bytes() of staging memory, or NULL when that is 0;
				       * a group's jobs have the same, as long as all of theirs */
	uint8_t **token;              /* [blocks_count * block_tokens]: filled by open */
	const struct layout_map *map; /* set by open: element (t, c) lies at
				       * token[t] + map->channel[c] */
	int status;                   /* out: 0, -EFAULT, -ESRCH, -EPERM, -EIO; -EBUSY: failed, and
				       * its staging memory must never be used again */
	uint64_t submitted_ns;        /* by the clock of the worker's queue */
	void *owner;
	struct deliver_job *next;
};

/* Ways with lanes of their own; a worker's queue serves all of them. */
enum deliver_lanes {
	DELIVER_LANES_CUDA,
	DELIVER_LANES_TCP,
	DELIVER_LANES_RDMA,
	DELIVER_LANES_KINDS,
};

/* Jobs of one worker that are done and not yet polled. Zeroed: empty, of worker 0. */
struct deliver_queue {
	struct deliver_job *first, *last;
	uint32_t worker;
	/* Of each asynchronous way: its lanes with jobs out. */
	void *lanes[DELIVER_LANES_KINDS];
	uint64_t now_ns; /* told by the worker before it calls a way */
};

struct deliver_ops {
	const char *name; /* "memory", "cma" ...: shown by stat */
	uint8_t memory;   /* enum ssv_memory it serves */

	/* Control path. attach maps or checks the memory; owner is who offers it. On failure one
	 * line in error (SSV_ERROR_TEXT_MAX bytes). */
	int (*attach)(struct region *region, const struct ssv_region *offer,
		      const struct deliver_owner *owner, const struct deliver_host *host,
		      char *error);
	void (*detach)(struct region *region);

	/* Staging bytes that a job on n blocks of this region needs. */
	uint64_t (*stage_bytes)(const struct region *region, uint32_t tensor,
				uint32_t blocks_count);

	/* Tensors from `tensor` on that should travel as one group; NULL: each alone. A group's
	 * jobs have the same blocks and direction and are submitted one after another, in order. */
	uint32_t (*join)(const struct region *region, uint32_t tensor);

	/* Fill job->token and job->map. IN: the places are to be written, then submitted. OUT:
	 * valid to read only after the job was submitted and handed back. */
	void (*open)(struct deliver_job *job);

	/* Take a job; it is handed back by poll exactly once, with its status. */
	void (*submit)(struct deliver_queue *queue, struct deliver_job *job);

	/* Hand back up to max finished jobs of this queue; returns how many. */
	uint32_t (*poll)(struct deliver_queue *queue, struct deliver_job **done, uint32_t max);

	/* Descriptors to sleep on while jobs of this way are out (poll is called every
	 * DELIVER_LOOK_NS all the same), as struct pollfd; NULL: the worker stays awake. */
	uint32_t (*pollfds)(const struct deliver_queue *queue, struct pollfd *fds, uint32_t max);
};

/* The way for a memory kind, or NULL. */
const struct deliver_ops *deliver_way(uint8_t memory);

/**
 * Attach a region: copy and check its layout, then its memory. host may be NULL where no way
 * needs it. Memory of another machine needs owner->offered and owner->answer.
 * Errors: -EINVAL, -ERANGE, -EPERM, -ENOTSUP, -ENOMEM with the numbers in error.
 */
SSV_MUST_CHECK int region_attach(const struct ssv_region *offer, const struct ssv_layout *layout,
				 const struct deliver_owner *owner, const struct deliver_host *host,
				 struct region **ret_region, char *error);
void region_detach(struct region *region); /* takes NULL; frees it */

/* Tensors of the group that begins at `tensor`: 1 where the way joins nothing. */
static inline uint32_t deliver_join(const struct region *region, uint32_t tensor)
{
	uint32_t n = region->ops->join ? region->ops->join(region, tensor) : 1;

	return n ? n : 1;
}

/* Staging bytes for jobs of the tensors first .. first + count - 1. */
uint64_t deliver_stage_bytes(const struct region *region, uint32_t first, uint32_t count,
			     uint32_t blocks_count);

/**
 * Open jobs[count] like `like`, for its tensor and those that follow it: as one group if `joined`,
 * else each alone. like->stage and like->token begin the memory of all; each job's tokens lie
 * SSV_CHUNK_TOKENS after the last one's.
 */
void deliver_open(struct deliver_job *jobs, uint32_t count, const struct deliver_job *like,
		  int joined);

/* Fill a job's token and map for its place in staging memory: struct deliver_ops, open, of ways
 * that move tensors alone and in packed form. */
void deliver_open_packed(struct deliver_job *job);

/* Append a finished job to its queue, and take the finished ones: for ways that end at once. */
void deliver_queue_push(struct deliver_queue *queue, struct deliver_job *job);
uint32_t deliver_queue_poll(struct deliver_queue *queue, struct deliver_job **done, uint32_t max);

/**
 * Copy the tokens of a job that was opened into canonical order, [tokens][channels].
 * tokens_count: from the job's first token on.
 */
void deliver_gather(const struct deliver_job *job, uint32_t tokens_count, uint8_t *canonical);

#endif
