/* SPDX-License-Identifier: Apache-2.0 */
/*
 * events.h - what the control threads of daemon and relay wait for: their epoll descriptor, to the
 * nanosecond where the kernel can (Linux 5.11 and newer), else to the millisecond, rounded up; and
 * an operator's signals (SIGTERM, SIGINT, SIGHUP), as a descriptor in it.
 */
#ifndef SSV_EVENTS_H
#define SSV_EVENTS_H

#include <stdint.h>
#include <sys/epoll.h>

#include "base/base.h"

/*
 * No thread is interrupted by the operator's signals any more, nor by SIGPIPE. Before other threads
 * are started: they inherit it.
 */
void signals_block(void);

/* The blocked signals as a signalfd that does not block; or a negative errno. */
SSV_MUST_CHECK int signals_open(void);

/* As epoll_wait(), until until_ns of clock_now_ns(); TIME_NEVER: no limit. */
int events_wait(int epoll, struct epoll_event *events, int max, uint64_t now_ns, uint64_t until_ns);

#endif
