/* SPDX-License-Identifier: Apache-2.0 */
/*
 * end.h - one end of a relayed session: a stream with a buffer of received bytes and one of bytes
 * to be sent, both bounded. A message is taken only when whatever it leads to has room; until then
 * it stays where it is and nothing more is received.
 */
#ifndef SSV_RELAY_END_H
#define SSV_RELAY_END_H

#include "base/message.h"
#include "stream/stream.h"

struct end {
	struct stream *stream; /* NULL: closed, or not open yet */
	uint8_t *in, *out;     /* aligned to 8 */
	size_t in_room, in_bytes, out_room, out_bytes;
	struct stream_fds fds; /* received and not used */
	int ended;             /* nothing can be sent or received any more */
	int paused;            /* a message waits for room elsewhere */
	short watched;         /* poll events in the epoll set; 0: not in it */
};

/* Errors: -ENOMEM. The stream is set by the caller when there is one. */
SSV_MUST_CHECK int end_open(struct end *end, size_t in_room, size_t out_room);
void end_close(struct end *end); /* also one that is closed or zeroed */

/* Receive what is there. 0, or how it ended, with one line in why (SSV_ERROR_TEXT_MAX). */
SSV_MUST_CHECK int end_receive(struct end *end, char *why);
/* Send what the stream takes. */
void end_flush(struct end *end);

size_t end_room(const struct end *end);
uint8_t *end_reserve(struct end *end);
void end_queue(struct end *end, size_t bytes); /* written behind end_reserve() */
/* A whole message as it came; it must fit. */
void end_forward(struct end *end, const struct message *message);

short end_wants(const struct end *end); /* poll(2) events; 0: none */

#endif
