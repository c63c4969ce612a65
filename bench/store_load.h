/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store_load.h - what the two programs that load a store by hand share: keys of numbers, waiting as
 * a worker does, and the processor's time. It measures nothing itself.
 */
#ifndef SSV_BENCH_STORE_LOAD_H
#define SSV_BENCH_STORE_LOAD_H

#include <poll.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "store/store.h"

/* Number n's key: all bits mixed, as a hash would. */
static inline struct ssv_key key_of(uint64_t n)
{
	struct ssv_key key;
	uint64_t z = n;

	for (size_t i = 0; i < sizeof(key.bytes); i += 8) {
		z = (z + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
		z ^= z >> 29;
		store_le64(key.bytes + i, z);
	}
	return key;
}

/* Sleep until the store has something to do, 100 ms at most. */
static inline void wait_for(struct store *store)
{
	struct pollfd fds[128];
	uint64_t next_ns = store->ops->next_ns(store), now_ns = clock_now_ns();
	uint64_t wait_ns = next_ns > now_ns ? next_ns - now_ns : 0;
	struct timespec timeout = {.tv_nsec = (long)u64_min(wait_ns, 100 * NS_PER_MS)};

	if (wait_ns)
		(void)ppoll(fds, store->ops->pollfds(store, fds, ARRAY_COUNT(fds)), &timeout, NULL);
}

#endif
