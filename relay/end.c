/* SPDX-License-Identifier: Apache-2.0 */
/* end.c - buffers around a stream. */
#include "end.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

int end_open(struct end *end, size_t in_room, size_t out_room)
{
	*end = (struct end){.in_room = in_room, .out_room = out_room};
	end->in = malloc(in_room);
	end->out = malloc(out_room);
	if (end->in && end->out)
		return 0;
	end_close(end);
	return -ENOMEM;
}

void end_close(struct end *end)
{
	for (uint32_t i = 0; i < end->fds.count; i++)
		close(end->fds.fds[i]);
	stream_destroy(end->stream);
	free(end->in);
	free(end->out);
	*end = (struct end){.ended = 1};
}

static int fds_keep(struct end *end, const struct stream_fds *fds)
{
	int err = fds->overflow ? -EPROTO : 0;

	for (uint32_t i = 0; i < fds->count; i++) {
		if (end->fds.count < STREAM_FDS) {
			end->fds.fds[end->fds.count++] = fds->fds[i];
		} else {
			close(fds->fds[i]);
			err = -EPROTO;
		}
	}
	return err;
}

int end_receive(struct end *end, char *why)
{
	while (end->in_bytes < end->in_room) {
		struct stream_fds fds;
		ssize_t n = stream_receive(end->stream, end->in + end->in_bytes,
					   end->in_room - end->in_bytes, &fds);

		if (n == -EAGAIN)
			return 0;
		if (fds_keep(end, &fds)) {
			snprintf(why, SSV_ERROR_TEXT_MAX, "more descriptors than messages");
			return -EPROTO;
		}
		if (n <= 0) {
			end->ended = 1;
			snprintf(why, SSV_ERROR_TEXT_MAX, "%s",
				 stream_fault(end->stream)[0] ? stream_fault(end->stream)
				 : n == 0                     ? "it closed the connection"
							      : strerror((int)-n));
			return n == 0 ? -ECONNRESET : (int)n;
		}
		end->in_bytes += (size_t)n;
		if (!stream_holds(end->stream))
			return 0; /* more is announced by the descriptor */
	}
	return 0;
}

void end_flush(struct end *end)
{
	size_t sent = 0;

	while (sent < end->out_bytes && end->stream && !end->ended) {
		ssize_t n = stream_send(end->stream, end->out + sent, end->out_bytes - sent);

		if (n == -EAGAIN)
			break;
		if (n <= 0)
			end->ended = 1;
		else
			sent += (size_t)n;
	}
	if (end->stream && !end->ended && stream_flush(end->stream))
		end->ended = 1;
	end->out_bytes -= sent;
	if (sent) /* nothing was ever queued: there is no buffer */
		memmove(end->out, end->out + sent, end->out_bytes);
}

size_t end_room(const struct end *end)
{
	return end->out_room - end->out_bytes;
}

uint8_t *end_reserve(struct end *end)
{
	return end->out + end->out_bytes;
}

void end_queue(struct end *end, size_t bytes)
{
	end->out_bytes += bytes;
}

void end_forward(struct end *end, const struct message *message)
{
	ssv_assert(message->bytes <= end_room(end));
	memcpy(end_reserve(end), message->body - MESSAGE_HEADER_BYTES, message->bytes);
	end_queue(end, message->bytes);
}

short end_wants(const struct end *end)
{
	if (!end->stream || end->ended)
		return 0;
	/* A handshake that is under way says itself what it has to send. */
	return (short)(POLLHUP | (end->paused || end->in_bytes == end->in_room ? 0 : POLLIN) |
		       (stream_wants_out(end->stream) ||
				(end->out_bytes && stream_is_greeted(end->stream))
			    ? POLLOUT
			    : 0));
}
