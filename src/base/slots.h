/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slots.h - a pool of equal slots; a value takes a run of adjacent ones.
 *
 * A run is named by number and generation, never by pointer: a run that was released and is used
 * again is caught by assertion. One thread owns a pool. FREE -> HELD -> FREE; a run may be cut
 * short while it is held.
 *
 * First fit from the front, so that long runs stay possible at the back; the pool is small (some
 * hundreds of slots) and runs are skipped whole, so a search is short.
 */
#ifndef SSV_SLOTS_H
#define SSV_SLOTS_H

#include "base/base.h"

struct slot_state {
	uint32_t generation;
	uint32_t run; /* first slot of a held run: its length; inside a run: SLOT_INSIDE; 0: free */
};

struct slots {
	uint8_t *memory;
	struct slot_state *states;
	uint64_t slot_bytes;
	uint32_t slots_count, free_count;
	uint32_t free_low;   /* the fewest that were free */
	uint32_t runs_count; /* runs held now */
};

/* A held run; slots_count 0: none. */
struct slot_run {
	uint32_t first, slots_count, generation;
};

/* memory[slot_bytes * count] and states[count], zeroed, are the pool's from now on. */
void slots_init(struct slots *slots, uint8_t *memory, struct slot_state *states,
		uint64_t slot_bytes, uint32_t count);

/* A run of at least `bytes`. Errors: -EAGAIN none is free now; -E2BIG the pool is too small. */
SSV_MUST_CHECK int slots_acquire(struct slots *slots, uint64_t bytes, struct slot_run *ret_run);

/* Give a run back and forget it; takes an empty run. */
void slots_release(struct slots *slots, struct slot_run *run);

/* Keep only what `bytes` need, the front. */
void slots_shrink(struct slots *slots, struct slot_run *run, uint64_t bytes);

uint8_t *slots_data(const struct slots *slots, const struct slot_run *run);

static inline uint64_t slots_run_bytes(const struct slots *slots, const struct slot_run *run)
{
	return slots->slot_bytes * run->slots_count;
}

static inline uint64_t slots_total_bytes(const struct slots *slots)
{
	return slots->slot_bytes * slots->slots_count;
}

#endif
