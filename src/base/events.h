/* SPDX-License-Identifier: Apache-2.0 */
/*
 * events.h - how the control threads of daemon and relay wait on their epoll descriptor: to the
 * nanosecond where the kernel can (Linux 5.11 and newer), else to the millisecond, rounded up.
 */
#ifndef SSV_EVENTS_H
#define SSV_EVENTS_H

#include <errno.h>
#include <limits.h>
#include <sys/epoll.h>

#include "base/base.h"
#include "base/clock.h"

/* As epoll_wait(), until until_ns of clock_now_ns(); TIME_NEVER: no limit. */
static inline int events_wait(int epoll, struct epoll_event *events, int max, uint64_t now_ns,
			      uint64_t until_ns)
{
	const uint64_t wait_ns = until_ns > now_ns ? until_ns - now_ns : 0;
	const struct timespec wait = {.tv_sec = (time_t)(wait_ns / NS_PER_S),
				      .tv_nsec = (long)(wait_ns % NS_PER_S)};
	const int has_limit = until_ns != TIME_NEVER;
	const uint64_t wait_ms = wait_ns / NS_PER_MS + (wait_ns % NS_PER_MS != 0);
	int n = epoll_pwait2(epoll, events, max, has_limit ? &wait : NULL, NULL);

	if (n >= 0 || errno != ENOSYS)
		return n;
	/* An older kernel, or an emulator. */
	return epoll_wait(epoll, events, max, has_limit ? (int)u64_min(wait_ms, INT_MAX) : -1);
}

#endif
