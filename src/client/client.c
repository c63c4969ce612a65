/* SPDX-License-Identifier: Apache-2.0 */
/*
 * client.c - a session's beginning and end, and what it is in between.
 *
 * Connecting proves three things before the handle is given out: the peer's uid (nobody else can
 * pose as the daemon), a pidfd of it (its death will be provable) and a common protocol version.
 */
#include "client/client.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"

#define CONNECT_MS_DEFAULT 1000

#define TEXT(value)    TEXT_OF(value)
#define TEXT_OF(value) #value

int client_check(const struct ssv *ssv)
{
	return ssv->owner == getpid() ? 0 : -ENOTCONN;
}

SSV_API const char *ssv_version(void)
{
	return TEXT(SSV_VERSION_MAJOR) "." TEXT(SSV_VERSION_MINOR) "." TEXT(SSV_VERSION_PATCH);
}

SSV_API int ssv_default_socket(char *path, size_t path_bytes)
{
	const char *folder = getenv("XDG_RUNTIME_DIR");
	int n;

	if (!path || !path_bytes)
		return -EINVAL;
	if (!folder || folder[0] != '/')
		folder = "/tmp";
	n = snprintf(path, path_bytes, "%s/shadowserve-%u-v%d.sock", folder, (unsigned)geteuid(),
		     MESSAGE_VERSION_MAX);
	if (n < 0 || (size_t)n >= path_bytes ||
	    (size_t)n >= sizeof(((struct sockaddr_un *)0)->sun_path))
		return -E2BIG;
	return 0;
}

/* ---- connecting ----------------------------------------------------------------------------- */

static int socket_path(const struct ssv_options *options, struct sockaddr_un *address, char *error)
{
	const char *path = options->socket_path;

	if (!path)
		path = getenv("SHADOWSERVE_SOCKET");
	address->sun_family = AF_UNIX;
	if (!path || !path[0]) {
		if (ssv_default_socket(address->sun_path, sizeof(address->sun_path)) == 0)
			return 0;
		path = "the default socket";
	} else if (strlen(path) < sizeof(address->sun_path)) {
		strcpy(address->sun_path, path);
		return 0;
	}
	snprintf(error, SSV_ERROR_TEXT_MAX, "socket path \"%.100s\" is longer than %zu bytes", path,
		 sizeof(address->sun_path) - 1);
	return -EINVAL;
}

static int connect_failed(int code, const char *path, uint32_t timeout_ms, char *error)
{
	switch (code) {
	case ENOENT:
	case ECONNREFUSED:
		snprintf(error, SSV_ERROR_TEXT_MAX,
			 "no daemon listens at %s: start shadowserved, or set SHADOWSERVE_SOCKET",
			 path);
		return -ENOTCONN;
	case EAGAIN:
		snprintf(error, SSV_ERROR_TEXT_MAX, "the daemon at %s did not accept within %u ms",
			 path, timeout_ms);
		return -ETIMEDOUT;
	case EPERM:
		code = EACCES;
		/* fallthrough */
	default:
		snprintf(error, SSV_ERROR_TEXT_MAX, "cannot connect to %s: %s", path,
			 strerror(code));
		return code == EACCES ? -EACCES : code == ENOMEM ? -ENOMEM : -ENOTCONN;
	}
}

static int socket_connect(const struct ssv_options *options, uint32_t timeout_ms, int *ret_socket,
			  char *error)
{
	const struct timeval wait = {.tv_sec = timeout_ms / 1000,
				     .tv_usec = (suseconds_t)(timeout_ms % 1000) * 1000};
	struct sockaddr_un address = {0};
	int err = socket_path(options, &address, error);
	int fd;

	if (err)
		return err;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return connect_failed(errno, address.sun_path, timeout_ms, error);
	/* Bounds connect() when the daemon's queue of connections is full. */
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait)) < 0 ||
	    connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		err = connect_failed(errno, address.sun_path, timeout_ms, error);
		close(fd);
		return err;
	}
	*ret_socket = fd;
	return 0;
}

static int greet(struct ssv *ssv, const struct ssv_options *options, uint64_t deadline_ns,
		 char *error)
{
	struct message_hello hello = {
	    .version_min = MESSAGE_VERSION_MIN,
	    .version_max = MESSAGE_VERSION_MAX,
	    .rank = options->rank,
	    .ranks_count = options->ranks_count ? options->ranks_count : 1,
	};
	int err;

	if (options->engine_id)
		strcpy(hello.engine_id, options->engine_id);
	else
		snprintf(hello.engine_id, sizeof(hello.engine_id), "pid-%d", (int)ssv->owner);
	ssv->answer = (struct answer){.id = ++ssv->last_id, .type = MESSAGE_WELCOME};
	link_queue(ssv,
		   message_encode_hello(link_reserve(ssv), link_room(ssv), ssv->answer.id, &hello));
	link_flush(ssv);
	err = link_await(ssv, deadline_ns, 0);
	if (err == -ETIMEDOUT) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "the daemon (pid %d) did not answer in time",
			 (int)ssv->daemon);
		return err;
	}
	if (ssv->answer.status) { /* REFUSED, or CLOSE */
		err = ssv->answer.status;
		snprintf(error, SSV_ERROR_TEXT_MAX, "%s",
			 ssv->answer.text[0] ? ssv->answer.text : ssv->reason);
	} else if (ssv->state != LINK_OPEN) {
		err = ssv->fault ? ssv->fault : -ENOTCONN;
		snprintf(error, SSV_ERROR_TEXT_MAX, "%s", ssv->reason);
	}
	ssv->answer = (struct answer){0};
	return err;
}

static int options_check(const struct ssv_options *options, char *error)
{
	uint32_t ranks;

	if (!options || options->struct_size < sizeof(*options)) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "options: struct_size %u, expected %zu",
			 options ? options->struct_size : 0, sizeof(*options));
		return -EINVAL;
	}
	if (options->flags || options->reserved) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "options: flags 0x%x and reserved must be 0",
			 options->flags);
		return -EINVAL;
	}
	if (options->engine_id && !message_engine_id_is_good(options->engine_id)) {
		snprintf(error, SSV_ERROR_TEXT_MAX,
			 "options: engine_id has 1 to %d bytes of printable ASCII",
			 SSV_ENGINE_ID_MAX - 1);
		return -EINVAL;
	}
	ranks = options->ranks_count ? options->ranks_count : 1;
	if (ranks > SSV_RANKS_MAX || options->rank >= ranks) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "options: rank %u of %u, at most %d ranks",
			 options->rank, ranks, SSV_RANKS_MAX);
		return -EINVAL;
	}
	return 0;
}

static int session_connect(const struct ssv_options *options, struct ssv **ret_ssv, char *error)
{
	uint32_t timeout_ms = CONNECT_MS_DEFAULT;
	uint64_t deadline_ns;
	struct ssv *ssv;
	int socket = -1;
	int err;

	err = options_check(options, error);
	if (err)
		return err;
	if (options->connect_timeout_ms)
		timeout_ms = options->connect_timeout_ms;
	deadline_ns = clock_now_ns() + (uint64_t)timeout_ms * NS_PER_MS;
	ssv = calloc(1, sizeof(*ssv));
	if (!ssv)
		return -ENOMEM;
	ssv->owner = getpid();
	ssv->socket = ssv->pidfd = ssv->epoll = ssv->wakeup = -1;
	flights_init(&ssv->flights);
	err = socket_connect(options, timeout_ms, &socket, error);
	if (err)
		goto free_ssv;
	err = link_open(ssv, socket, error);
	if (err) {
		close(socket);
		goto free_ssv;
	}
	err = greet(ssv, options, deadline_ns, error);
	if (err)
		goto close_link;
	*ret_ssv = ssv;
	return 0;

close_link:
	link_close(ssv);
free_ssv:
	free(ssv);
	return err;
}

SSV_API int ssv_connect(const struct ssv_options *options, struct ssv **ret_ssv, char *error)
{
	char unwanted[SSV_ERROR_TEXT_MAX];
	int err;

	if (!ret_ssv)
		return -EINVAL;
	if (!error)
		error = unwanted;
	error[0] = 0;
	err = session_connect(options, ret_ssv, error);
	if (err && !error[0])
		snprintf(error, SSV_ERROR_TEXT_MAX, "%s", strerror(-err));
	return err;
}

SSV_API void ssv_close(struct ssv *ssv)
{
	if (!ssv)
		return;
	link_close(ssv);
	free(ssv);
}

/* ---- what it is ----------------------------------------------------------------------------- */

SSV_API int ssv_fd(const struct ssv *ssv)
{
	if (!ssv)
		return -EINVAL;
	return client_check(ssv) ? -ENOTCONN : ssv->epoll;
}

SSV_API int ssv_daemon_pidfd(const struct ssv *ssv)
{
	if (!ssv)
		return -EINVAL;
	return client_check(ssv) ? -ENOTCONN : ssv->pidfd;
}

SSV_API int ssv_is_open(const struct ssv *ssv)
{
	return ssv && client_check(ssv) == 0 && ssv->state == LINK_OPEN;
}

SSV_API const char *ssv_close_reason(const struct ssv *ssv)
{
	if (!ssv)
		return "";
	if (client_check(ssv))
		return "this handle belongs to the parent process";
	return ssv->state == LINK_OPEN ? "" : ssv->reason;
}
