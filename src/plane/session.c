/* SPDX-License-Identifier: Apache-2.0 */
/*
 * session.c - bytes and messages of one connection; what the messages mean is session_message.c.
 *
 * Invariant: the last SESSION_CLOSE_BYTES of the out-buffer are kept for CLOSE, so that a client
 * which did not read for a while still learns, after the messages that fitted, why it was closed.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/tally.h"
#include "plane/session_inside.h"

/* ---- creating and destroying ---------------------------------------------------------------- */

int session_create(struct session_world *world, struct stream *stream, int pidfd, pid_t peer_pid,
		   uint64_t now_ns, struct session **ret_session)
{
	struct session *session = calloc(1, sizeof(*session));

	if (!session)
		goto close_fds;
	session->in = malloc(SESSION_IN_BYTES);
	session->out = malloc(SESSION_OUT_BYTES);
	if (!session->in || !session->out)
		goto free_session;
	session->world = world;
	session->stream = stream;
	session->remote = stream_is_remote(stream);
	session->pidfd = pidfd;
	session->pid = peer_pid;
	session->state = SESSION_GREETING;
	session->deadline_ns = now_ns + SESSION_GREETING_NS;
	session->growing = NOT_GROWING;
	*ret_session = session;
	return 0;

free_session:
	free(session->in);
	free(session->out);
	free(session);
close_fds:
	stream_destroy(stream);
	if (pidfd >= 0)
		close(pidfd);
	return -ENOMEM;
}

void session_destroy(struct session *session)
{
	if (!session)
		return;
	for (uint32_t i = 0; i < session->fds_count; i++)
		close(session->fds[i]);
	stream_destroy(session->stream);
	if (session->pidfd >= 0)
		close(session->pidfd);
	free(session->in);
	free(session->out);
	free(session);
}

/* ---- ending --------------------------------------------------------------------------------- */

/* Quiescent: say why, and go when it has been read or the time for that is over. */
static void session_leave(struct session *session, uint64_t now_ns)
{
	size_t n = strlen(session->reason);

	if (session->peer_gone) {
		session->state = SESSION_DONE;
		return;
	}
	session->growing = NOT_GROWING;
	session->out_bytes += message_encode_text(
	    session->out + session->out_bytes, SESSION_OUT_BYTES - session->out_bytes,
	    MESSAGE_CLOSE, 0, session->status, session->reason, n);
	session->state = SESSION_LEAVING;
	session->deadline_ns = now_ns + SESSION_LEAVING_NS;
	session_flush(session, now_ns);
}

void session_end(struct session *session, int status, const char *reason, uint64_t now_ns)
{
	int was_open = session->state == SESSION_OPEN;

	if (session->state > SESSION_OPEN)
		return;
	session->status = status;
	snprintf(session->reason, sizeof(session->reason), "%s", reason);
	session->state = SESSION_ENDING;
	session->deadline_ns = TIME_NEVER;
	log_info("session ends engine=%s rank=%u pid=%d peer=\"%s\" status=%d reason=\"%s\"",
		 session->hello.engine_id, session->hello.rank, (int)session->pid,
		 stream_peer(session->stream), status, reason);
	if (was_open)
		plane_session_end(session->world->plane, session->plane_id);
	else
		session_leave(session, now_ns);
}

void session_peer_died(struct session *session, uint64_t now_ns)
{
	session->peer_gone = 1;
	if (session->state == SESSION_LEAVING)
		session->state = SESSION_DONE;
	session_end(session, -ENOTCONN, "the client's process died", now_ns);
}

void session_turn_away(struct session *session, const char *reason, uint64_t now_ns)
{
	session->peer_gone = 1; /* nothing is said to it, so nothing is waited for */
	session_end(session, -EBUSY, reason, now_ns);
}

void session_tick(struct session *session, uint64_t now_ns)
{
	if (now_ns < session->deadline_ns)
		return;
	if (session->state == SESSION_GREETING)
		session_end(session, -ETIMEDOUT, "no HELLO within 5 s", now_ns);
	else if (session->state == SESSION_LEAVING)
		session->state = SESSION_DONE;
}

/* ---- sending -------------------------------------------------------------------------------- */

uint8_t *session_reserve(struct session *session, size_t *ret_room)
{
	*ret_room = SESSION_OUT_BYTES - SESSION_CLOSE_BYTES - session->out_bytes;
	return session->out + session->out_bytes;
}

void session_queue(struct session *session, size_t bytes, uint64_t now_ns)
{
	char reason[SSV_ERROR_TEXT_MAX];

	session->growing = NOT_GROWING;
	session->out_bytes += bytes;
	if (bytes || session->overflowed)
		return;
	session->overflowed = 1;
	session->world->unread++;
	snprintf(reason, sizeof(reason), "the client does not read: %zu bytes wait for it",
		 session->out_bytes);
	session_end(session, -ENOBUFS, reason, now_ns);
}

void session_flush(struct session *session, uint64_t now_ns)
{
	size_t sent = 0;

	session->growing = NOT_GROWING;
	while (sent < session->out_bytes && !session->peer_gone) {
		ssize_t n;

		tally_add(TALLY_CALL_SEND, 1);
		n = stream_send(session->stream, session->out + sent, session->out_bytes - sent);
		if (n > 0)
			sent += (size_t)n;
		else if (n == -EAGAIN)
			break;
		else
			session->peer_gone = 1;
	}
	if (!session->peer_gone && stream_flush(session->stream))
		session->peer_gone = 1;
	session->out_bytes -= sent;
	memmove(session->out, session->out + sent, session->out_bytes);
	if (session->peer_gone)
		session_end(session, -ENOTCONN, "the client closed the session", now_ns);
	if (session->state == SESSION_LEAVING &&
	    ((!session->out_bytes && !stream_wants_out(session->stream)) || session->peer_gone))
		session->state = SESSION_DONE;
}

/* ---- receiving ------------------------------------------------------------------------------ */

/* Keep the descriptors that came along; those beyond STREAM_FDS are closed. 0 or -EPROTO. */
static int fds_keep(struct session *session, const struct stream_fds *fds)
{
	int err = fds->overflow ? -EPROTO : 0;

	for (uint32_t i = 0; i < fds->count; i++) {
		if (session->fds_count < STREAM_FDS) {
			session->fds[session->fds_count++] = fds->fds[i];
		} else {
			close(fds->fds[i]);
			err = -EPROTO;
		}
	}
	return err;
}

static void malformed(struct session *session, const char *error, uint64_t now_ns)
{
	session->world->malformed++;
	log_warn("malformed message engine=%s pid=%d error=\"%s\"", session->hello.engine_id,
		 (int)session->pid, error);
	session_end(session, -EPROTO, error, now_ns);
}

static void messages_take(struct session *session, uint64_t now_ns)
{
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct message message;
	size_t start = 0, needed;
	int found = 0;

	while (session->state <= SESSION_OPEN) {
		found = message_find(session->in + start, session->in_bytes - start,
				     MESSAGE_FROM_CLIENT, &message, &needed, error);
		if (found != 1)
			break;
		found = session_take(session, &message, now_ns, error);
		if (found < 0)
			break;
		start += message.bytes;
	}
	memmove(session->in, session->in + start, session->in_bytes - start);
	session->in_bytes -= start;
	if (found < 0)
		malformed(session, error, now_ns);
}

/* The reason when receiving failed. */
static const char *end_reason(const struct session *session, ssize_t n)
{
	if (n == -EPROTO && stream_fault(session->stream)[0])
		return stream_fault(session->stream);
	return n == -ETIMEDOUT ? "the connection to the client was lost"
			       : "the client closed the session";
}

static void session_read(struct session *session, uint64_t now_ns)
{
	struct stream_fds fds;
	ssize_t n;

	tally_add(TALLY_CALL_RECEIVE, 1);
	n = stream_receive(session->stream, session->in + session->in_bytes,
			   SESSION_IN_BYTES - session->in_bytes, &fds);
	if (n == -EAGAIN)
		return;
	if (n > 0)
		session->in_bytes += (size_t)n;
	if (fds_keep(session, &fds)) {
		malformed(session, "more descriptors than messages that carry one", now_ns);
	} else if (n <= 0) {
		session->peer_gone = 1;
		session_end(session, -ENOTCONN, end_reason(session, n), now_ns);
	} else {
		messages_take(session, now_ns);
	}
}

void session_receive(struct session *session, int hung_up, uint64_t now_ns)
{
	if (session->state > SESSION_OPEN) {
		/* What it sent before it could know is not the end: it is still to be told. */
		session->peer_gone |= hung_up;
		if (session->peer_gone && session->state == SESSION_LEAVING)
			session->state = SESSION_DONE;
		return;
	}
	/* What TLS keeps inside is less than a record: it fits behind any message's beginning. */
	do {
		session_read(session, now_ns);
	} while (session->state <= SESSION_OPEN && stream_holds(session->stream));
	session_flush(session, now_ns);
}

/* ---- what the plane says -------------------------------------------------------------------- */

static void completion_queue(struct session *session, const struct ssv_completion *completion,
			     uint64_t now_ns)
{
	size_t room, bytes = 0;
	uint8_t *out;

	session->requests--;
	session->completions++;
	if (session->overflowed || session->peer_gone || session->severed)
		return;
	if (session->growing != NOT_GROWING) {
		out = session->out + session->growing;
		bytes = message_completions_append(
		    out, SESSION_OUT_BYTES - SESSION_CLOSE_BYTES - session->growing, completion);
		if (bytes) {
			session->out_bytes = session->growing + bytes;
			return;
		}
	}
	out = session_reserve(session, &room);
	if (message_completions_begin(out, room))
		bytes = message_completions_append(out, room, completion);
	session_queue(session, bytes, now_ns);
	if (bytes)
		session->growing = session->out_bytes - bytes;
}

static void region_removed(struct session *session, uint32_t region, uint64_t now_ns)
{
	size_t room;
	uint8_t *out;

	for (uint32_t i = 0; i < session->unregistering_count; i++) {
		struct unregistering *entry = &session->unregistering[i];

		if (entry->region != region)
			continue;
		out = session_reserve(session, &room);
		session_queue(
		    session,
		    message_encode_region(out, room, MESSAGE_UNREGISTERED, entry->id, region),
		    now_ns);
		*entry = session->unregistering[--session->unregistering_count];
		session->regions--;
		return;
	}
}

void session_event(struct session *session, const struct plane_event *event, uint64_t now_ns)
{
	switch (event->kind) {
	case PLANE_EVENT_COMPLETION:
		if (event->severed && !session->severed) {
			session->severed = 1;
			session_end(session, -EIO,
				    "the data connection to the region's memory was lost", now_ns);
		}
		completion_queue(session, &event->completion, now_ns);
		break;
	case PLANE_EVENT_REGION_REMOVED:
		region_removed(session, event->region, now_ns);
		break;
	case PLANE_EVENT_SESSION_ENDED:
		session_leave(session, now_ns);
		break;
	}
}

/* ---- what it is ----------------------------------------------------------------------------- */

enum session_state session_state(const struct session *session)
{
	return session->state;
}

uint64_t session_plane_id(const struct session *session)
{
	return session->plane_id;
}

int session_socket(const struct session *session)
{
	return stream_fd(session->stream);
}

int session_is_remote(const struct session *session)
{
	return session->remote;
}

int session_pidfd(const struct session *session)
{
	return session->pidfd;
}

short session_wants(const struct session *session)
{
	if (session->peer_gone || session->state == SESSION_DONE)
		return 0;
	/* POLLHUP comes unasked; asking for it keeps the value from being 0. */
	return (short)(POLLHUP | (session->state <= SESSION_OPEN ? POLLIN : 0) |
		       (stream_wants_out(session->stream) ||
				(session->out_bytes && stream_is_greeted(session->stream))
			    ? POLLOUT
			    : 0));
}

uint64_t session_deadline_ns(const struct session *session)
{
	return session->deadline_ns;
}
