/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ring.h - a bounded queue of 64-bit messages between one producer and one consumer thread.
 *
 * The indices run freely and wrap at 2^32; items[index & mask]. Each side owns one index and keeps
 * a copy of the other's, so that it reads the other's cache line only when the copy says full or
 * empty. All ordering is in the four named functions below; there are no stand-alone fences,
 * because ThreadSanitizer does not see them.
 *
 *	producer: ring_push		consumer: ring_pop
 *
 * The memory of the items is the caller's. A full ring refuses and changes nothing.
 */
#ifndef SSV_RING_H
#define SSV_RING_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/base.h"

struct ring {
	/* The producer's line. */
	_Alignas(CACHE_LINE_BYTES) _Atomic uint32_t tail;
	uint32_t head_copy;
	/* The consumer's line. */
	_Alignas(CACHE_LINE_BYTES) _Atomic uint32_t head;
	uint32_t tail_copy;
	/* Written once. */
	_Alignas(CACHE_LINE_BYTES) uint64_t *items;
	uint32_t mask;
};

/* Pairs with ring_head_acquire(): the slot was read before the producer may overwrite it. */
static inline void ring_head_release(struct ring *ring, uint32_t head)
{
	atomic_store_explicit(&ring->head, head, memory_order_release);
}

/* Pairs with ring_head_release(). */
static inline uint32_t ring_head_acquire(struct ring *ring)
{
	return atomic_load_explicit(&ring->head, memory_order_acquire);
}

/* Pairs with ring_tail_acquire(): the item, and all that it names, were written before it. */
static inline void ring_tail_release(struct ring *ring, uint32_t tail)
{
	atomic_store_explicit(&ring->tail, tail, memory_order_release);
}

/* Pairs with ring_tail_release(). */
static inline uint32_t ring_tail_acquire(struct ring *ring)
{
	return atomic_load_explicit(&ring->tail, memory_order_acquire);
}

/* items[count] are the ring's from now on; count is a power of two. */
static inline void ring_init(struct ring *ring, uint64_t *items, uint32_t count)
{
	ssv_assert(count > 0 && (count & (count - 1)) == 0);
	atomic_init(&ring->tail, 0);
	atomic_init(&ring->head, 0);
	ring->head_copy = 0;
	ring->tail_copy = 0;
	ring->items = items;
	ring->mask = count - 1;
}

/* The producer: 1 when the item was taken, 0 when the ring is full. */
SSV_MUST_CHECK static inline int ring_push(struct ring *ring, uint64_t item)
{
	/* Own index: nobody else writes it, so relaxed. */
	uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);

	if (tail - ring->head_copy > ring->mask) {
		ring->head_copy = ring_head_acquire(ring);
		if (tail - ring->head_copy > ring->mask)
			return 0;
	}
	ring->items[tail & ring->mask] = item;
	ring_tail_release(ring, tail + 1);
	return 1;
}

/* The consumer: 1 and the oldest item, or 0 when the ring is empty. */
SSV_MUST_CHECK static inline int ring_pop(struct ring *ring, uint64_t *ret_item)
{
	/* Own index: nobody else writes it, so relaxed. */
	uint32_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);

	if (head == ring->tail_copy) {
		ring->tail_copy = ring_tail_acquire(ring);
		if (head == ring->tail_copy)
			return 0;
	}
	*ret_item = ring->items[head & ring->mask];
	ring_head_release(ring, head + 1);
	return 1;
}

#endif
