/* SPDX-License-Identifier: Apache-2.0 */
/*
 * listener.h - the daemon's socket and the lock file beside it.
 *
 * Whoever holds the lock (flock on "<socket>.pid") owns the socket's name: it alone may remove a
 * stale socket or make a new one. The lock goes with the process, however that ends. The file,
 * which holds the owner's pid, stays: removing it would let two processes hold locks on two files
 * of one name.
 */
#ifndef SSV_DAEMON_LISTENER_H
#define SSV_DAEMON_LISTENER_H

#include <sys/types.h>
#include <sys/un.h>

#include "base/base.h"

struct listener {
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	int lock;  /* -1: none */
	int fd;    /* -1: closed */
	int spare; /* given up to close a connection when no descriptor is left */
	int bound;
};

/**
 * Take the lock and clear a stale socket away; error has SSV_ERROR_TEXT_MAX * 2 bytes.
 *
 * Errors: -EADDRINUSE another daemon serves the socket or holds the lock (*ret_owner: its pid, 0 if
 *         unknown); -EINVAL the path does not fit or is no socket; -EACCES, -ENOENT ... the folder.
 */
SSV_MUST_CHECK int listener_open(struct listener *listener, const char *path, pid_t *ret_owner,
				 char *error);
/* Listen, when everything that a client needs is there. The lock is kept on failure. */
SSV_MUST_CHECK int listener_listen(struct listener *listener, char *error);
/* Accept nobody any more; the name is gone, the lock is kept. */
void listener_stop(struct listener *listener);
void listener_close(struct listener *listener);

/* Next connection: its descriptor, non-blocking; -EAGAIN none; -EACCES refused for its uid. */
SSV_MUST_CHECK int listener_accept(struct listener *listener, pid_t *ret_pid, int *ret_pidfd);

/* Accept and close one connection of `fd`, this listener's or another's, although no descriptor is
 * left: otherwise it would stay in the queue and wake the loop for ever. */
void listener_shed(struct listener *listener, int fd);

/* 0 when somebody accepts connections at path; *ret_pid: who. */
SSV_MUST_CHECK int listener_probe(const char *path, pid_t *ret_pid);

#endif
