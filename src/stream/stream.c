/* SPDX-License-Identifier: Apache-2.0 */
/* stream.c - plain streams, and the choice between them and TLS. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "stream/inside.h"

int stream_plain(int fd, struct stream **ret_stream)
{
	struct stream *stream = calloc(1, sizeof(*stream));

	if (!stream) {
		close(fd);
		return -ENOMEM;
	}
	stream->fd = fd;
	stream->greeted = 1;
	*ret_stream = stream;
	return 0;
}

void stream_destroy(struct stream *stream)
{
	if (!stream)
		return;
	SSL_free(stream->ssl); /* its BIOs with it */
	close(stream->fd);
	free(stream);
}

/* Keep the descriptors that came along; those beyond STREAM_FDS are closed. */
static void fds_take(struct stream_fds *fds, struct msghdr *message)
{
	fds->overflow = (message->msg_flags & MSG_CTRUNC) != 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		int fd;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < n; i++) {
			memcpy(&fd, CMSG_DATA(c) + i * sizeof(fd), sizeof(fd));
			if (fds->count < STREAM_FDS) {
				fds->fds[fds->count++] = fd;
			} else {
				close(fd);
				fds->overflow = 1;
			}
		}
	}
}

static ssize_t plain_receive(struct stream *stream, void *bytes, size_t room,
			     struct stream_fds *fds)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int) * STREAM_FDS)];
		struct cmsghdr align;
	} control;
	struct iovec part = {.iov_base = bytes, .iov_len = room};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = fds ? control.bytes : NULL,
				 .msg_controllen = fds ? sizeof(control.bytes) : 0};
	ssize_t n = recvmsg(stream->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (n < 0)
		return errno == EINTR ? -EAGAIN : -errno;
	if (fds)
		fds_take(fds, &message);
	return n;
}

ssize_t stream_receive(struct stream *stream, void *bytes, size_t room, struct stream_fds *fds)
{
	if (fds)
		*fds = (struct stream_fds){0};
	return stream->tls ? secure_receive(stream, bytes, room)
			   : plain_receive(stream, bytes, room, fds);
}

ssize_t stream_send(struct stream *stream, const void *bytes, size_t count)
{
	ssize_t n;

	if (stream->tls)
		return secure_send(stream, bytes, count);
	n = send(stream->fd, bytes, count, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n < 0)
		return errno == EINTR ? -EAGAIN : -errno;
	return n;
}

int stream_flush(struct stream *stream)
{
	return stream->tls ? secure_flush(stream) : 0;
}

int stream_fd(const struct stream *stream)
{
	return stream->fd;
}

int stream_is_remote(const struct stream *stream)
{
	return stream->tls != NULL;
}

int stream_is_greeted(const struct stream *stream)
{
	return stream->greeted;
}

int stream_wants_out(const struct stream *stream)
{
	return stream->tls && BIO_ctrl_pending(stream->out) > 0;
}

int stream_holds(const struct stream *stream)
{
	return stream->holds;
}

const char *stream_peer(const struct stream *stream)
{
	return stream->peer;
}

const char *stream_fault(const struct stream *stream)
{
	return stream->fault;
}
