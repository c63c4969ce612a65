/* SPDX-License-Identifier: Apache-2.0 */
/*
 * arena.h - one mapping of memory, carved into aligned pieces at start, given back as a whole.
 *
 * Everything the data path touches lies in it, so its size is known, can be pinned, and does not
 * change. Pieces are zeroed. Nothing is ever given back singly.
 */
#ifndef SSV_ARENA_H
#define SSV_ARENA_H

#include "base/base.h"

struct arena {
	uint8_t *base;
	uint64_t bytes, used;
	uint8_t pinned;      /* mlock succeeded */
	uint8_t reserved;    /* it lies in huge pages that the machine had set aside */
	uint64_t huge_bytes; /* of it in huge pages of either kind, at start */
};

/* Map the memory, all pages of it. pin: try mlock; reserve: try the huge pages that were set aside
 * (vm.nr_hugepages). A refusal leaves pinned or reserved at 0; transparent huge pages are asked for
 * then. Errors: -ENOMEM, -EINVAL. */
SSV_MUST_CHECK int arena_create(struct arena *arena, uint64_t bytes, int pin, int reserve);
void arena_destroy(struct arena *arena); /* takes one that was never created, zeroed */

/* The next piece, aligned to a power of two up to 2 MiB; NULL when it does not fit. */
SSV_MUST_CHECK void *arena_carve(struct arena *arena, uint64_t bytes, uint64_t alignment);

static inline uint64_t arena_left(const struct arena *arena)
{
	return arena->bytes - arena->used;
}

#endif
