/* SPDX-License-Identifier: Apache-2.0 */
/* wait.c - submit, poll and sleep in between, until the one operation is back. */
#include "store/wait.h"

#include <errno.h>
#include <poll.h>

#include "base/clock.h"

#define POLLFDS_MAX  16u
#define SLEEP_MS_MAX 20

/* Sleep until the store may have something to do. */
static void wait_store(struct store *store, uint64_t now_ns)
{
	struct pollfd fds[POLLFDS_MAX];
	uint32_t count = store->ops->pollfds(store, fds, POLLFDS_MAX);
	uint64_t next_ns = store->ops->next_ns(store);
	int sleep_ms = SLEEP_MS_MAX;

	if (next_ns <= now_ns)
		return;
	if (next_ns - now_ns < SLEEP_MS_MAX * NS_PER_MS)
		sleep_ms = (int)((next_ns - now_ns) / NS_PER_MS) + 1;
	if (poll(fds, count, count ? sleep_ms : 1) < 0)
		return; /* a signal: the caller polls the store again */
}

int store_wait(struct store *store, struct store_op *op, uint32_t timeout_ms)
{
	struct store_op *done = NULL;
	uint64_t now_ns = clock_now_ns();

	op->deadline_ns = now_ns + timeout_ms * NS_PER_MS;
	while (!store->ops->submit(store, &op, 1, now_ns)) {
		if (now_ns > op->deadline_ns)
			return -ETIMEDOUT;
		(void)store->ops->poll(store, &done, 1, now_ns);
		wait_store(store, now_ns);
		now_ns = clock_now_ns();
	}
	while (!store->ops->poll(store, &done, 1, now_ns)) {
		wait_store(store, now_ns);
		now_ns = clock_now_ns();
	}
	return op->status;
}
