/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker_hang.c - preloaded into the daemon: a worker that goes to sleep says so on stderr and
 * never wakes again, as one would that hangs in a file system.
 */
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

EXPORT int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *wait,
		 const sigset_t *mask);
EXPORT int __ppoll_chk(struct pollfd *fds, nfds_t count, const struct timespec *wait,
		       const sigset_t *mask, size_t room);

/* Of the daemon's threads only workers call it. */
int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *wait, const sigset_t *mask)
{
	(void)fds;
	(void)count;
	(void)wait;
	(void)mask;
	(void)!write(STDERR_FILENO, "worker asleep\n", 14);
	for (;;)
		pause();
}

int __ppoll_chk(struct pollfd *fds, nfds_t count, const struct timespec *wait, const sigset_t *mask,
		size_t room)
{
	(void)room;
	return ppoll(fds, count, wait, mask);
}
