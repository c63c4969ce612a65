/* SPDX-License-Identifier: Apache-2.0 */
/*
 * evict.h - keeping a folder below its byte limit, a little at a time.
 *
 * Several handles and daemons share a folder, so nobody knows exactly what is in it. Each handle
 * estimates: the sum of its last sweep (a walk over all values, a batch a step) plus what it put
 * since. A sweep also collects the values that were unused longest; they are removed one a step
 * while the estimate is above the limit. All handles choose the same victims, and one that is gone
 * already counts as freed, so they do not evict more than needed together.
 *
 * Bound: a sweep starts at the latest after limit/64 was put by this handle, so n handles together
 * overshoot by at most n/64 of the limit.
 */
#ifndef SSV_STORE_EVICT_H
#define SSV_STORE_EVICT_H

#include "store/folder.h"

#define EVICT_VICTIMS_MAX 512u

enum evict_state {
	EVICT_IDLE = 0,
	EVICT_CLEANING = 1, /* old temporary files */
	EVICT_SWEEPING = 2,
};

struct evict {
	struct folder *folder;
	uint64_t limit; /* 0: none; then only temporary files are cleaned */
	uint64_t used;  /* estimate */
	uint64_t put_since_sweep;
	uint64_t wanted; /* a put waits for that many bytes */
	uint64_t evictions;
	uint64_t sweep_ns; /* when the next sweep is due at the latest */
	int last_error;    /* why a victim could not be removed, or 0 */
	bool known;        /* a sweep has ended */
	uint8_t state;     /* enum evict_state */
	uint64_t sum;      /* of the running sweep */
	uint32_t victims_count, victims_next;
	struct folder_walk walk;
	struct folder_entry victims[EVICT_VICTIMS_MAX]; /* a heap while sweeping, then sorted */
};

void evict_init(struct evict *evict, struct folder *folder, uint64_t limit);
void evict_fini(struct evict *evict);

/* May a value of that size be put now? If not, evict_step() makes room.
 * 0, -EAGAIN, -ENOSPC longer than the limit, or what keeps victims from being removed. */
SSV_MUST_CHECK int evict_admit(struct evict *evict, uint64_t bytes);
/* A value was put that replaced replaced_bytes (0: none). */
void evict_added(struct evict *evict, const struct ssv_key *key, uint64_t bytes,
		 uint64_t replaced_bytes);
void evict_removed(struct evict *evict, uint64_t bytes);

/* Is there something to do besides waiting for the next sweep? */
bool evict_pending(const struct evict *evict, uint64_t now_ns);
/* One batch of a sweep, or one removal. wall_s: seconds since the epoch. */
void evict_step(struct evict *evict, uint64_t now_ns, int64_t wall_s);

#endif
