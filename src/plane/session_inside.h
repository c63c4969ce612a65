/* SPDX-License-Identifier: Apache-2.0 */
/*
 * session_inside.h - what session.c and session_message.c share: the session itself.
 */
#ifndef SSV_SESSION_INSIDE_H
#define SSV_SESSION_INSIDE_H

#include "plane/session.h"

#define NOT_GROWING SIZE_MAX
/* CLOSE with the longest reason. */
#define SESSION_CLOSE_BYTES (MESSAGE_HEADER_BYTES + sizeof(struct wire_text) + SSV_ERROR_TEXT_MAX)

struct unregistering {
	uint32_t region;
	uint64_t id; /* of the message that asked */
};

struct session {
	struct session_world *world;
	enum session_state state;
	struct stream *stream;
	int pidfd;
	pid_t pid;
	int remote; /* the client is on another machine */
	uint64_t plane_id;
	uint64_t deadline_ns;
	struct message_hello hello;
	uint8_t *in, *out; /* aligned to 8 */
	size_t in_bytes, out_bytes;
	size_t growing; /* where in out the last COMPLETION begins while it may grow */
	int peer_gone;  /* nobody reads any more */
	int severed;    /* completions cannot be believed any more and are not given */
	int overflowed; /* the client did not read; nothing but CLOSE is queued any more */
	int fds[STREAM_FDS];
	uint32_t fds_count;
	struct unregistering unregistering[SESSION_UNREGISTERING];
	uint32_t unregistering_count;
	uint32_t requests, regions; /* now */
	uint64_t accepted, refused, completions;
	int status;
	char reason[SSV_ERROR_TEXT_MAX];
};

/* Where the next message may be written. Then session_queue() with its bytes; 0 means that it did
 * not fit: the client does not read, and the session ends. */
uint8_t *session_reserve(struct session *session, size_t *ret_room);
void session_queue(struct session *session, size_t bytes, uint64_t now_ns);

/* Deal with one message. 0, or -EPROTO with one line in error. */
SSV_MUST_CHECK int session_take(struct session *session, const struct message *message,
				uint64_t now_ns, char *error);

#endif
