/* SPDX-License-Identifier: Apache-2.0 */
/* events.c - waiting on epoll, signals as a descriptor. */
#include "base/events.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <sys/signalfd.h>

#include "base/clock.h"

static void signals_of_operator(sigset_t *signals)
{
	sigemptyset(signals);
	sigaddset(signals, SIGTERM);
	sigaddset(signals, SIGINT);
	sigaddset(signals, SIGHUP);
}

void signals_block(void)
{
	sigset_t signals;

	signals_of_operator(&signals);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	signal(SIGPIPE, SIG_IGN);
}

int signals_open(void)
{
	sigset_t signals;
	int fd;

	signals_of_operator(&signals);
	fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

int events_wait(int epoll, struct epoll_event *events, int max, uint64_t now_ns, uint64_t until_ns)
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
