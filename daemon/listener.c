/* SPDX-License-Identifier: Apache-2.0 */
/*
 * listener.c - lock, stale sockets, binding, accepting.
 */
#include "listener.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "shadowserve.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

#define BACKLOG 512

#define FAIL(error, code, ...) (snprintf(error, SSV_ERROR_TEXT_MAX * 2, __VA_ARGS__), code)

static void address_of(const char *path, struct sockaddr_un *address)
{
	memset(address, 0, sizeof(*address));
	address->sun_family = AF_UNIX;
	snprintf(address->sun_path, sizeof(address->sun_path), "%s", path);
}

int listener_probe(const char *path, pid_t *ret_pid)
{
	struct sockaddr_un address;
	struct ucred peer;
	socklen_t bytes = sizeof(peer);
	int fd, err = 0;

	*ret_pid = 0;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	address_of(path, &address);
	/* EAGAIN: its queue is full, so somebody listens. */
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 && errno != EAGAIN)
		err = -errno;
	else if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0)
		*ret_pid = peer.pid;
	close(fd);
	return err;
}

/* ---- the lock ------------------------------------------------------------------------------- */

static pid_t lock_owner(int fd)
{
	char text[32] = "";
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);

	return n > 0 ? (pid_t)strtol(text, NULL, 10) : 0;
}

static int lock_take(struct listener *listener, pid_t *ret_owner, char *error)
{
	char path[sizeof(listener->path) + 8], text[32];
	int n;

	snprintf(path, sizeof(path), "%s.pid", listener->path);
	listener->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (listener->lock < 0)
		return FAIL(error, -errno, "lock file %s: %s", path, strerror(errno));
	if (flock(listener->lock, LOCK_EX | LOCK_NB) < 0) {
		if (errno != EWOULDBLOCK)
			return FAIL(error, -errno, "lock file %s: %s", path, strerror(errno));
		*ret_owner = lock_owner(listener->lock);
		return FAIL(error, -EADDRINUSE, "another daemon (pid %d) serves %s",
			    (int)*ret_owner, listener->path);
	}
	n = snprintf(text, sizeof(text), "%d\n", (int)getpid());
	if (ftruncate(listener->lock, 0) < 0 || pwrite(listener->lock, text, (size_t)n, 0) != n)
		return FAIL(error, -errno, "lock file %s: %s", path, strerror(errno));
	return 0;
}

/* Under the lock: what lies at the path is a live daemon's, a stale socket, or not ours. */
static int path_clear(struct listener *listener, pid_t *ret_owner, char *error)
{
	struct stat status;

	if (lstat(listener->path, &status) < 0)
		return errno == ENOENT
			   ? 0
			   : FAIL(error, -errno, "socket %s: %s", listener->path, strerror(errno));
	if (!S_ISSOCK(status.st_mode))
		return FAIL(error, -EINVAL, "socket %s: a file that is no socket is in the way",
			    listener->path);
	if (listener_probe(listener->path, ret_owner) == 0)
		return FAIL(error, -EADDRINUSE, "another daemon (pid %d) serves %s",
			    (int)*ret_owner, listener->path);
	if (unlink(listener->path) < 0)
		return FAIL(error, -errno, "stale socket %s: %s", listener->path, strerror(errno));
	log_info("stale socket removed socket=%s", listener->path);
	return 0;
}

int listener_listen(struct listener *listener, char *error)
{
	struct sockaddr_un address;
	mode_t mask;
	int err;

	listener->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (listener->fd < 0)
		return FAIL(error, -errno, "socket: %s", strerror(errno));
	address_of(listener->path, &address);
	mask = umask(0177); /* born 0600: never open to others, not even for a moment */
	err = bind(listener->fd, (struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
	umask(mask);
	if (err)
		return FAIL(error, err, "socket %s: %s", listener->path, strerror(-err));
	listener->bound = 1;
	listener->spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (listen(listener->fd, BACKLOG) < 0)
		return FAIL(error, -errno, "socket %s: %s", listener->path, strerror(errno));
	return 0;
}

int listener_open(struct listener *listener, const char *path, pid_t *ret_owner, char *error)
{
	int err;

	*listener = (struct listener){.lock = -1, .fd = -1, .spare = -1};
	*ret_owner = 0;
	if (strlen(path) >= sizeof(listener->path))
		return FAIL(error, -EINVAL, "socket \"%.200s\": longer than %zu bytes", path,
			    sizeof(listener->path) - 1);
	strcpy(listener->path, path);
	err = lock_take(listener, ret_owner, error);
	if (!err)
		err = path_clear(listener, ret_owner, error);
	if (err)
		listener_close(listener);
	return err;
}

void listener_stop(struct listener *listener)
{
	if (listener->bound)
		unlink(listener->path);
	if (listener->fd >= 0)
		close(listener->fd);
	if (listener->spare >= 0)
		close(listener->spare);
	listener->bound = 0;
	listener->fd = -1;
	listener->spare = -1;
}

void listener_close(struct listener *listener)
{
	listener_stop(listener);
	if (listener->lock >= 0)
		close(listener->lock);
	listener->lock = -1;
}

/* ---- connections ---------------------------------------------------------------------------- */

void listener_shed(struct listener *listener, int fd)
{
	int peer;

	if (listener->spare >= 0)
		close(listener->spare);
	peer = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
	if (peer >= 0)
		close(peer);
	listener->spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

int listener_accept(struct listener *listener, pid_t *ret_pid, int *ret_pidfd)
{
	struct ucred peer;
	socklen_t bytes = sizeof(peer);
	int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return -errno;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) < 0 ||
	    (peer.uid != geteuid() && peer.uid != 0)) {
		log_warn("connection refused uid=%u pid=%d expected_uid=%u", peer.uid,
			 (int)peer.pid, geteuid());
		close(fd);
		return -EACCES;
	}
	*ret_pid = peer.pid;
	bytes = sizeof(*ret_pidfd);
	if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, ret_pidfd, &bytes) < 0)
		*ret_pidfd = pidfd_open(peer.pid, 0);
	/* Without one (the process is gone, or an old kernel) the socket's end must do. */
	if (*ret_pidfd < 0)
		*ret_pidfd = -1;
	return fd;
}
