/* SPDX-License-Identifier: Apache-2.0 */
/*
 * session.h - the daemon's end of one connection: messages in, plane calls, messages out.
 *
 * A session never blocks: it reads what is there, queues what it says in a bounded buffer and sends
 * what the socket takes. It ends for one reason (a malformed message, a client that does not read,
 * a dead process, a shutdown): its jobs are made quiescent first, then CLOSE is sent, then the
 * socket closes. Other sessions never notice.
 *
 * The owner (the daemon's control loop) watches the descriptors and hands in the time. The bytes
 * come by a stream: of this machine, which carries descriptors for memfd regions, or of another
 * over TLS, whose handshake counts as part of greeting.
 */
#ifndef SSV_SESSION_H
#define SSV_SESSION_H

#include <sys/types.h>

#include "base/message.h"
#include "plane/plane.h"
#include "stream/stream.h"

#define SESSION_GREETING_NS   (5 * 1000000000ull) /* for HELLO to come */
#define SESSION_LEAVING_NS    (2 * 1000000000ull) /* for a client to read CLOSE */
#define SESSION_UNREGISTERING 64                  /* UNREGISTER messages not yet answered */
#define SESSION_IN_BYTES      (MESSAGE_REQUEST_BYTES_MAX + 64 * KIB)
#define SESSION_OUT_BYTES     (MESSAGE_STAT_BYTES_MAX + 256 * KIB)

enum session_state {
	SESSION_GREETING = 1, /* waits for HELLO; the plane does not know it */
	SESSION_OPEN = 2,
	SESSION_ENDING = 3,  /* the plane makes its jobs quiescent; nothing is read any more */
	SESSION_LEAVING = 4, /* CLOSE is on its way */
	SESSION_DONE = 5,    /* destroy it */
};

/* What all sessions of a daemon share; outlives them. Control thread only. */
struct session_world {
	struct plane *plane;
	/* The whole daemon's state as JSON text; its length, or a negative errno. reset: count
	 * anew afterwards. */
	int (*stat)(void *context, char *json, size_t room, int reset, uint64_t now_ns);
	void *context;
	struct ssv_tensor *tensors; /* [SSV_TENSORS_MAX], scratch */
	char *json;                 /* [MESSAGE_STAT_BYTES_MAX], scratch */
	const char *daemon_version;
	uint64_t malformed, unread; /* sessions ended for these reasons */
};

struct session;

/**
 * Begin a session on a stream; peer_pid and pidfd (0 and -1: of another machine, or unknown) are
 * the client's process.
 *
 * Ownership: stream and pidfd become the session's, also on failure.
 * Errors: -ENOMEM.
 */
SSV_MUST_CHECK int session_create(struct session_world *world, struct stream *stream, int pidfd,
				  pid_t peer_pid, uint64_t now_ns, struct session **ret_session);
void session_destroy(struct session *session); /* takes NULL; DONE, or the plane is gone */

/* The socket is readable, or nobody is at its other end (hung_up): read and deal with a bounded
 * amount. */
void session_receive(struct session *session, int hung_up, uint64_t now_ns);
/* Send what the socket takes of what is queued. Call after events were handed in. */
void session_flush(struct session *session, uint64_t now_ns);
/* Deadlines of greeting and leaving. */
void session_tick(struct session *session, uint64_t now_ns);
/* An event of this session's from plane_poll(). */
void session_event(struct session *session, const struct plane_event *event, uint64_t now_ns);

/* Begin the end; the reason travels in CLOSE. Repeated calls change nothing. */
void session_end(struct session *session, int status, const char *reason, uint64_t now_ns);
/* The client's process is dead: nobody reads CLOSE. */
void session_peer_died(struct session *session, uint64_t now_ns);

/* Its place is needed, and it has not said HELLO: it ends without a word. */
void session_turn_away(struct session *session, const char *reason, uint64_t now_ns);

enum session_state session_state(const struct session *session);
uint64_t session_plane_id(const struct session *session); /* valid from OPEN until DONE */
int session_socket(const struct session *session);
int session_is_remote(const struct session *session);
int session_pidfd(const struct session *session);
/* poll(2) events to watch the socket for; 0: take it out of the set. */
short session_wants(const struct session *session);
uint64_t session_deadline_ns(const struct session *session); /* TIME_NEVER: none */

/* Append this session's state to a JSON array (struct cJSON *). */
void session_stat(const struct session *session, void *json);

#endif
