/* SPDX-License-Identifier: Apache-2.0 */
/*
 * link.c - the bytes between the library and the daemon, and the proof of the daemon's death.
 *
 * Nothing here blocks except epoll_wait(), and that only for the time it is given. The epoll
 * descriptor is what the caller sleeps on: it holds the socket, the daemon's pidfd and an eventfd
 * that is set while completions wait in memory.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "client/client.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

#define IN_BYTES_FIRST (64 * KIB)

enum watch { WATCH_SOCKET = 1, WATCH_DEATH = 2, WATCH_WAKEUP = 3 };

/* ---- opening and closing -------------------------------------------------------------------- */

static int watch(struct ssv *ssv, int op, int fd, enum watch what, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.u32 = what};

	return epoll_ctl(ssv->epoll, op, fd, &event) < 0 ? -errno : 0;
}

static int daemon_pidfd(int socket, pid_t *ret_pid, char *error)
{
	struct ucred peer;
	socklen_t bytes = sizeof(peer);
	int fd = -1;

	if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) < 0)
		return -errno;
	if (peer.uid != geteuid() && peer.uid != 0) {
		snprintf(error, SSV_ERROR_TEXT_MAX,
			 "the daemon's socket belongs to uid %u, expected %u or 0", peer.uid,
			 geteuid());
		return -EACCES;
	}
	*ret_pid = peer.pid;
	bytes = sizeof(fd);
	if (getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &fd, &bytes) < 0)
		fd = pidfd_open(peer.pid, 0);
	if (fd < 0) {
		int err = -errno;

		snprintf(error, SSV_ERROR_TEXT_MAX, "no pidfd of the daemon (pid %d): %s",
			 (int)peer.pid, strerror(-err));
		return err == -ESRCH ? -ENOTCONN : -ENOTSUP;
	}
	return fd;
}

static int link_watch_all(struct ssv *ssv)
{
	int err;

	ssv->epoll = epoll_create1(EPOLL_CLOEXEC);
	ssv->wakeup = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ssv->epoll < 0 || ssv->wakeup < 0)
		return -errno;
	err = watch(ssv, EPOLL_CTL_ADD, ssv->socket, WATCH_SOCKET, EPOLLIN);
	if (!err)
		err = watch(ssv, EPOLL_CTL_ADD, ssv->pidfd, WATCH_DEATH, EPOLLIN);
	if (!err)
		err = watch(ssv, EPOLL_CTL_ADD, ssv->wakeup, WATCH_WAKEUP, EPOLLIN);
	return err;
}

int link_open(struct ssv *ssv, int socket, char *error)
{
	int err;

	ssv->pidfd = daemon_pidfd(socket, &ssv->daemon, error);
	if (ssv->pidfd < 0) {
		err = ssv->pidfd;
		goto fail;
	}
	ssv->in = malloc(IN_BYTES_FIRST);
	ssv->out = malloc(CLIENT_OUT_BYTES);
	ssv->in_room = IN_BYTES_FIRST;
	if (!ssv->in || !ssv->out) {
		err = -ENOMEM;
		goto fail;
	}
	ssv->socket = socket;
	err = link_watch_all(ssv);
	if (err) {
		ssv->socket = -1; /* still the caller's */
		goto fail;
	}
	ssv->state = LINK_OPEN;
	return 0;

fail:
	link_close(ssv);
	return err;
}

static void fd_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void link_close(struct ssv *ssv)
{
	if (ssv->socket >= 0 && client_check(ssv) == 0)
		shutdown(ssv->socket, SHUT_RDWR);
	fd_close(&ssv->socket);
	fd_close(&ssv->pidfd);
	fd_close(&ssv->epoll);
	fd_close(&ssv->wakeup);
	free(ssv->in);
	free(ssv->out);
	ssv->in = NULL;
	ssv->out = NULL;
}

/* ---- the session's end ---------------------------------------------------------------------- */

static void socket_drop(struct ssv *ssv)
{
	ssv->out_start = 0;
	ssv->out_end = 0;
	if (ssv->socket < 0)
		return;
	/* By name: a fork's child may hold the same socket open, and closing alone would then
	 * neither take it out of the epoll set nor tell the daemon. */
	epoll_ctl(ssv->epoll, EPOLL_CTL_DEL, ssv->socket, NULL);
	shutdown(ssv->socket, SHUT_RDWR);
	fd_close(&ssv->socket);
}

static void link_end(struct ssv *ssv, const char *reason)
{
	if (ssv->state == LINK_ENDED)
		return;
	/* A peer that broke the protocol and then died is known for the former. */
	if (ssv->state == LINK_OPEN || ssv->fault == -ENOTCONN)
		snprintf(ssv->reason, sizeof(ssv->reason), "%s", reason);
	ssv->state = LINK_ENDED;
	socket_drop(ssv);
	flights_end(&ssv->flights, -ENOTCONN);
}

static void link_end_dead(struct ssv *ssv)
{
	char reason[64];

	snprintf(reason, sizeof(reason), "the daemon (pid %d) died", (int)ssv->daemon);
	link_end(ssv, reason);
}

static int daemon_is_dead(const struct ssv *ssv)
{
	struct pollfd death = {.fd = ssv->pidfd, .events = POLLIN};

	return poll(&death, 1, 0) == 1;
}

void link_break(struct ssv *ssv, int fault, const char *reason)
{
	if (ssv->state != LINK_OPEN)
		return;
	ssv->fault = fault;
	snprintf(ssv->reason, sizeof(ssv->reason), "%s", reason);
	ssv->state = LINK_BROKEN;
	socket_drop(ssv);
	if (daemon_is_dead(ssv))
		link_end_dead(ssv);
}

/* ---- sending -------------------------------------------------------------------------------- */

size_t link_room(const struct ssv *ssv)
{
	return CLIENT_OUT_BYTES - (ssv->out_end - ssv->out_start);
}

uint8_t *link_reserve(struct ssv *ssv)
{
	if (ssv->out_start) {
		memmove(ssv->out, ssv->out + ssv->out_start, ssv->out_end - ssv->out_start);
		ssv->out_end -= ssv->out_start;
		ssv->out_start = 0;
	}
	return ssv->out + ssv->out_end;
}

void link_queue(struct ssv *ssv, size_t bytes)
{
	ssv->out_end += bytes;
}

void link_flush(struct ssv *ssv)
{
	int pending;

	while (ssv->state == LINK_OPEN && ssv->out_start < ssv->out_end) {
		ssize_t n = send(ssv->socket, ssv->out + ssv->out_start,
				 ssv->out_end - ssv->out_start, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0)
			return; /* the receiving side reads what is left, then finds the end */
		ssv->out_start += (size_t)n;
	}
	if (ssv->state != LINK_OPEN)
		return;
	pending = ssv->out_start < ssv->out_end;
	if (!pending) {
		ssv->out_start = 0;
		ssv->out_end = 0;
	}
	if (pending != ssv->watching_out && watch(ssv, EPOLL_CTL_MOD, ssv->socket, WATCH_SOCKET,
						  EPOLLIN | (pending ? EPOLLOUT : 0)) == 0)
		ssv->watching_out = pending;
}

static ssize_t send_with_fd(int socket, const uint8_t *bytes, size_t count, int fd)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec part = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = count};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control.bytes,
				 .msg_controllen = sizeof(control.bytes)};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(header), &fd, sizeof(fd));
	return sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static int remaining_ms(uint64_t deadline_ns)
{
	uint64_t now = clock_now_ns();

	if (now >= deadline_ns)
		return 0;
	return (int)u64_min((deadline_ns - now + NS_PER_MS - 1) / NS_PER_MS, INT32_MAX);
}

int link_send_fd(struct ssv *ssv, const uint8_t *bytes, size_t count, int fd, uint64_t deadline_ns)
{
	ssize_t n = -1;

	while (ssv->state == LINK_OPEN) {
		int wait_ms = remaining_ms(deadline_ns);

		link_flush(ssv);
		if (ssv->state != LINK_OPEN)
			break;
		if (!ssv->watching_out) {
			n = send_with_fd(ssv->socket, bytes, count, fd);
			if (n > 0)
				break;
			if (errno == EBADF)
				return -EINVAL;
			if (errno != EAGAIN && errno != EINTR)
				link_break(ssv, -ENOTCONN,
					   "the daemon's end of the socket is gone");
		}
		if (wait_ms == 0)
			return -ETIMEDOUT;
		/* Full: short naps, for EPOLLOUT is watched only for queued bytes. */
		if (link_wait(ssv, ssv->watching_out ? wait_ms : 1) == -EINTR)
			continue;
	}
	if (n <= 0)
		return -ENOTCONN;
	memcpy(link_reserve(ssv), bytes + n, count - (size_t)n);
	link_queue(ssv, count - (size_t)n);
	link_flush(ssv);
	return 0;
}

/* ---- receiving ------------------------------------------------------------------------------ */

static int take_completions(struct ssv *ssv, const struct message *message, char *error)
{
	struct ssv_completion completion;
	uint32_t count;
	int err = message_decode_completions(message, &count, error);

	for (uint32_t i = 0; !err && i < count; i++) {
		message_completion_at(message, i, &completion);
		err = flights_complete(&ssv->flights, &completion);
		if (err)
			snprintf(error, SSV_ERROR_TEXT_MAX,
				 "a completion for request %llu, which is not in flight",
				 (unsigned long long)completion.user_data);
	}
	return err;
}

static void text_copy(char *out, size_t out_bytes, const struct message_text *text)
{
	size_t n = u64_min(text->text_bytes, out_bytes - 1);

	memcpy(out, text->text, n);
	out[n] = 0;
}

static int take_text(struct ssv *ssv, const struct message *message, char *error)
{
	struct answer *answer = &ssv->answer;
	struct message_text text;
	int err = message_decode_text(message, &text, error);

	if (err)
		return err;
	if (message->type == MESSAGE_CLOSE) {
		char reason[SSV_ERROR_TEXT_MAX];

		text_copy(reason, sizeof(reason), &text);
		answer->status = text.status;
		link_end(ssv, reason);
		return 0;
	}
	if (message->type == MESSAGE_REFUSED)
		client_region_left(ssv, message->id); /* an unregistering of what is not there */
	if (message->id != answer->id)
		return 0;
	answer->came = 1;
	answer->status = text.status;
	if (message->type == MESSAGE_STATUS && answer->json) {
		answer->json_length = (int)text.text_bytes;
		if (text.text_bytes >= answer->json_bytes)
			answer->json_length = -E2BIG;
		text_copy(answer->json, answer->json_bytes, &text);
	} else {
		text_copy(answer->text, sizeof(answer->text), &text);
	}
	return 0;
}

static int take_welcome(struct ssv *ssv, const struct message *message, char *error)
{
	struct message_welcome welcome;
	int err = message_decode_welcome(message, &welcome, error);

	if (err || message->id != ssv->answer.id)
		return err;
	ssv->answer.came = 1;
	if (welcome.version < MESSAGE_VERSION_MIN || welcome.version > MESSAGE_VERSION_MAX) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "the daemon chose protocol version %u",
			 welcome.version);
		return -EPROTO;
	}
	return 0;
}

static int take_region(struct ssv *ssv, const struct message *message, char *error)
{
	uint32_t region;
	int err = message_decode_region(message, &region, error);

	if (err)
		return err;
	if (message->type == MESSAGE_UNREGISTERED)
		client_region_left(ssv, message->id);
	if (message->id == ssv->answer.id) {
		ssv->answer.came = 1;
		ssv->answer.region = region;
	} else if (message->type == MESSAGE_REGISTERED) {
		client_region_disown(ssv, region);
	}
	return 0;
}

static int take_message(struct ssv *ssv, const struct message *message, char *error)
{
	/* What a caller waits for may only be answered by what answers it. */
	if (message->id == ssv->answer.id && ssv->answer.id && message->type != ssv->answer.type &&
	    message->type != MESSAGE_REFUSED && message->type != MESSAGE_CLOSE &&
	    message->type != MESSAGE_COMPLETION) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "%s where %s was expected",
			 message_name(message->type), message_name(ssv->answer.type));
		return -EPROTO;
	}
	switch (message->type) {
	case MESSAGE_COMPLETION:
		return take_completions(ssv, message, error);
	case MESSAGE_WELCOME:
		return take_welcome(ssv, message, error);
	case MESSAGE_REGISTERED:
	case MESSAGE_UNREGISTERED:
		return take_region(ssv, message, error);
	case MESSAGE_EVENTS:
		snprintf(error, SSV_ERROR_TEXT_MAX, "EVENTS that nobody asked for");
		return -EPROTO;
	default:
		return take_text(ssv, message, error);
	}
}

/* Deal with the whole messages in the buffer; *ret_needed: bytes of the first that is not whole. */
static int take_messages(struct ssv *ssv, size_t *ret_needed, char *error)
{
	struct message message;
	size_t start = 0;
	int found;

	while ((found = message_find(ssv->in + start, ssv->in_bytes - start, MESSAGE_FROM_DAEMON,
				     &message, ret_needed, error)) == 1) {
		int err = take_message(ssv, &message, error);

		if (err)
			return err;
		start += message.bytes;
		if (ssv->state != LINK_OPEN)
			return 0;
	}
	memmove(ssv->in, ssv->in + start, ssv->in_bytes - start);
	ssv->in_bytes -= start;
	return found;
}

static int in_grow(struct ssv *ssv, size_t needed)
{
	uint8_t *in;

	if (needed <= ssv->in_room)
		return 0;
	in = realloc(ssv->in, needed);
	if (!in)
		return -ENOMEM;
	ssv->in = in;
	ssv->in_room = needed;
	return 0;
}

static void link_receive(struct ssv *ssv)
{
	char error[SSV_ERROR_TEXT_MAX];
	size_t needed;

	while (ssv->state == LINK_OPEN) {
		ssize_t n = recv(ssv->socket, ssv->in + ssv->in_bytes, ssv->in_room - ssv->in_bytes,
				 MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			link_break(ssv, -ENOTCONN, "the daemon's end of the socket is gone");
			return;
		}
		ssv->in_bytes += (size_t)n;
		if (take_messages(ssv, &needed, error) < 0)
			link_break(ssv, -EPROTO, error);
		else if (in_grow(ssv, needed) < 0)
			link_break(ssv, -ENOMEM, "out of memory for a message");
	}
}

/* ---- waiting -------------------------------------------------------------------------------- */

int link_wait(struct ssv *ssv, int timeout_ms)
{
	struct epoll_event events[4];
	int n = epoll_wait(ssv->epoll, events, ARRAY_COUNT(events), timeout_ms);
	int died = 0;

	if (n < 0)
		return -errno;
	for (int i = 0; i < n; i++) {
		if (events[i].data.u32 == WATCH_DEATH)
			died = 1;
		if (events[i].data.u32 != WATCH_SOCKET)
			continue;
		if (events[i].events & EPOLLOUT)
			link_flush(ssv);
		if (events[i].events & ~(uint32_t)EPOLLOUT)
			link_receive(ssv);
	}
	if (died) {
		link_receive(ssv); /* what it said before */
		link_end_dead(ssv);
	}
	return 0;
}

int link_await(struct ssv *ssv, uint64_t deadline_ns, int through_break)
{
	for (;;) {
		int wait_ms = remaining_ms(deadline_ns);

		if (ssv->answer.came)
			return 0;
		if (ssv->state == LINK_ENDED || (ssv->state == LINK_BROKEN && !through_break))
			return -ENOTCONN;
		if (link_wait(ssv, wait_ms) == -EINTR)
			continue;
		if (wait_ms == 0 && !ssv->answer.came && ssv->state != LINK_ENDED)
			return -ETIMEDOUT;
	}
}

int link_is_over(const struct ssv *ssv)
{
	return ssv->state == LINK_ENDED || (ssv->state == LINK_BROKEN && !ssv->flights.count);
}

void link_signal(struct ssv *ssv)
{
	int wanted = ssv->flights.done_count > 0 || link_is_over(ssv);
	uint64_t one = 1;

	if (wanted == ssv->wakeup_set)
		return;
	/* Neither can fail: a counter of 0 or 1, read only when it is set. */
	if (wanted && write(ssv->wakeup, &one, sizeof(one)) < 0)
		return;
	if (!wanted && read(ssv->wakeup, &one, sizeof(one)) < 0)
		return;
	ssv->wakeup_set = wanted;
}
