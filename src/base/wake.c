/* SPDX-License-Identifier: Apache-2.0 */
/* wake.c - see wake.h for the protocol; the descriptor is non-blocking and close-on-exec. */
#include "base/wake.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/tally.h"

/* Pairs with itself on the other side: acquire sees what was pushed before the other's exchange,
 * release shows what this side pushed. */
static uint32_t wake_exchange(struct wake *wake, uint32_t state)
{
	return atomic_exchange_explicit(&wake->state, state, memory_order_acq_rel);
}

int wake_init(struct wake *wake)
{
	wake->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (wake->fd < 0)
		return -errno;
	atomic_init(&wake->state, WAKE_AWAKE);
	wake->asleep = 0;
	wake->owed = 0;
	return 0;
}

void wake_fini(struct wake *wake)
{
	if (wake->fd >= 0)
		close(wake->fd);
	wake->fd = -1;
}

void wake_signal(struct wake *wake)
{
	const uint64_t one = 1;
	ssize_t n;

	if (wake_exchange(wake, WAKE_SIGNALLED) != WAKE_ASLEEP)
		return;
	/* Fails only when the count is at its limit; the descriptor is readable then too. */
	tally_add(TALLY_CALL_EVENT, 1);
	n = write(wake->fd, &one, sizeof(one));
	(void)n;
}

void wake_begin(struct wake *wake)
{
	uint32_t before = wake_exchange(wake, WAKE_AWAKE);
	uint64_t count;

	/* Written only if this side was asleep; perhaps a moment after the word changed. */
	if (wake->asleep && before == WAKE_SIGNALLED)
		wake->owed++;
	wake->asleep = 0;
	if (!wake->owed)
		return;
	tally_add(TALLY_CALL_EVENT, 1);
	if (read(wake->fd, &count, sizeof(count)) == sizeof(count))
		wake->owed -= u64_min(count, wake->owed);
}

int wake_may_sleep(struct wake *wake)
{
	if (wake_exchange(wake, WAKE_ASLEEP) == WAKE_SIGNALLED) {
		wake_exchange(wake, WAKE_AWAKE);
		return 0;
	}
	wake->asleep = 1;
	return 1;
}
