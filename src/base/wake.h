/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wake.h - an eventfd that is written only when the other side may be asleep.
 *
 * One word says AWAKE, ASLEEP or SIGNALLED. Both sides change it with an exchange, and exchanges
 * of one word have one order: either the sleeper's comes first, then the waker sees ASLEEP and
 * writes the descriptor; or the waker's comes first, then the sleeper sees SIGNALLED and stays up.
 *
 *	sleeper: wake_begin, look at its queues and work, wake_may_sleep, poll(fd)
 *	waker:   push to a queue, wake_signal
 */
#ifndef SSV_WAKE_H
#define SSV_WAKE_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/base.h"

enum wake_state {
	WAKE_AWAKE = 0,
	WAKE_ASLEEP = 1,
	WAKE_SIGNALLED = 2,
};

struct wake {
	_Alignas(CACHE_LINE_BYTES) _Atomic uint32_t state;
	int fd;         /* eventfd; readable after a signal to a sleeper */
	uint8_t asleep; /* the sleeper's own note that it said so */
	uint64_t owed;  /* signals whose writes to fd were not yet seen */
};

/* Errors: as eventfd(2). */
SSV_MUST_CHECK int wake_init(struct wake *wake);
void wake_fini(struct wake *wake);

/* The waker, after it has pushed what there is to see. */
void wake_signal(struct wake *wake);

/* The sleeper, before it looks at its queues: empties the descriptor if it had slept. */
void wake_begin(struct wake *wake);

/* The sleeper, after it found nothing to do: 1 when it may sleep on the descriptor, 0 when
 * something was pushed meanwhile. */
SSV_MUST_CHECK int wake_may_sleep(struct wake *wake);

#endif
