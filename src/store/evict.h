/* SPDX-License-Identifier: Apache-2.0 */
/*
 * evict.h - keeping a folder below its byte limit, a little at a time.
 *
 * The handles of one process that use the same folder share an account of what is in it, so among
 * them the limit is exact: room is reserved before a value is written. Other daemons put and evict
 * too, so the account is corrected by sweeps: walks over all values, a batch a step. A sweep also
 * collects the values that were unused longest; they are removed one a step while the account is
 * above the limit. All handles choose the same victims, and one that is gone already counts as
 * freed, so they do not evict more than needed together.
 *
 * Bound: a sweep begins after limit/64 was put, and while it runs its handle holds back puts beyond
 * another limit/64. What other daemons put meanwhile may be missed until the next sweep, so several
 * that write at full speed overshoot the limit by about what they put during one sweep.
 */
#ifndef SSV_STORE_EVICT_H
#define SSV_STORE_EVICT_H

#include "store/folder.h"

#define EVICT_VICTIMS_MAX 512u

struct evict_account; /* one a folder and process */

enum evict_state {
	EVICT_IDLE = 0,
	EVICT_CLEANING = 1, /* old temporary files */
	EVICT_SWEEPING = 2,
};

struct evict {
	struct folder *folder;
	struct evict_account *account;
	uint64_t limit;            /* 0: none; then only temporary files are cleaned */
	uint64_t limit_configured; /* limit is less for a while after the disk was full */
	uint64_t wanted;           /* a put waits for that many bytes */
	uint64_t evictions;
	uint64_t sweep_ns; /* when the next sweep is due at the latest */
	int last_error;    /* why a victim could not be removed, or 0 */
	uint8_t state;     /* enum evict_state */
	uint64_t sum;      /* of the running sweep */
	uint64_t used_at_begin;
	uint32_t victims_count, victims_next;
	struct folder_walk walk;
	struct folder_entry victims[EVICT_VICTIMS_MAX]; /* a heap while sweeping, then sorted */
};

/* -ENOMEM. The folder must outlive it. */
SSV_MUST_CHECK int evict_init(struct evict *evict, struct folder *folder, uint64_t limit);
void evict_fini(struct evict *evict);

/* Reserve room for a value. If there is none, evict_step() makes some.
 * 0, -EAGAIN, -ENOSPC longer than the limit, or what keeps victims from being removed. */
SSV_MUST_CHECK int evict_reserve(struct evict *evict, uint64_t bytes);
/* A value is gone, was replaced, or its reservation was not used. */
void evict_free(struct evict *evict, uint64_t bytes);

/* The disk is full below the limit: for ten minutes, keep so much less that bytes more fit. */
void evict_disk_full(struct evict *evict, uint64_t bytes);

/* Bytes in the folder as far as known. */
uint64_t evict_used(const struct evict *evict);
/* Is there something to do besides waiting for the next sweep? */
bool evict_pending(const struct evict *evict, uint64_t now_ns);
/* One batch of a sweep, or one removal. wall_s: seconds since the epoch. */
void evict_step(struct evict *evict, uint64_t now_ns, int64_t wall_s);

#endif
