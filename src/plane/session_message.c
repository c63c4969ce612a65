/* SPDX-License-Identifier: Apache-2.0 */
/*
 * session_message.c - what a client's messages mean: each becomes a call of the plane and an
 * answer. Mistakes of form end the session (-EPROTO); mistakes of content are answered.
 */
#include <cjson/cJSON.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "plane/session_inside.h"

#define PROTO(error, ...) (snprintf(error, SSV_ERROR_TEXT_MAX, __VA_ARGS__), -EPROTO)

static void refuse(struct session *session, uint64_t id, int status, const char *text,
		   uint64_t now_ns)
{
	size_t room;
	uint8_t *out = session_reserve(session, &room);

	session_queue(session,
		      message_encode_text(out, room, MESSAGE_REFUSED, id, status, text,
					  strnlen(text, SSV_ERROR_TEXT_MAX - 1)),
		      now_ns);
}

static void welcome(struct session *session, uint64_t id, uint64_t now_ns)
{
	struct message_welcome answer = {
	    .version = MESSAGE_VERSION_MAX < session->hello.version_max
			   ? MESSAGE_VERSION_MAX
			   : session->hello.version_max,
	    .pid = (uint32_t)getpid(),
	    .requests_max = SSV_REQUESTS_MAX,
	    .keys_max = SSV_KEYS_MAX,
	    .blocks_max = SSV_BLOCKS_MAX,
	    .stat_bytes_max = MESSAGE_STAT_BYTES_MAX,
	};
	size_t room;
	uint8_t *out = session_reserve(session, &room);

	snprintf(answer.daemon_version, sizeof(answer.daemon_version), "%s",
		 session->world->daemon_version);
	session_queue(session, message_encode_welcome(out, room, id, &answer), now_ns);
}

static int take_hello(struct session *session, const struct message *message, uint64_t now_ns,
		      char *error)
{
	struct message_hello *hello = &session->hello;
	char text[SSV_ERROR_TEXT_MAX] = "";
	int err = message_decode_hello(message, hello, error);

	if (err)
		return err;
	if (hello->version_min > MESSAGE_VERSION_MAX || hello->version_max < MESSAGE_VERSION_MIN) {
		snprintf(text, sizeof(text),
			 "protocol version %u to %u offered, this daemon (%s) speaks %d to %d",
			 hello->version_min, hello->version_max, session->world->daemon_version,
			 MESSAGE_VERSION_MIN, MESSAGE_VERSION_MAX);
		err = -EPROTO;
	} else if (!message_engine_id_is_good(hello->engine_id) || !hello->ranks_count ||
		   hello->ranks_count > SSV_RANKS_MAX || hello->rank >= hello->ranks_count) {
		snprintf(text, sizeof(text),
			 "rank %u of %u: expected an engine id of printable ASCII, and a rank "
			 "below 1 to %d",
			 hello->rank, hello->ranks_count, SSV_RANKS_MAX);
		err = -EINVAL;
	} else {
		err = plane_session_add(session->world->plane, hello->engine_id, hello->rank,
					hello->ranks_count, session->pid, &session->plane_id, text);
	}
	if (err) {
		refuse(session, message->id, err, text, now_ns);
		session_end(session, err, text, now_ns);
		return 0;
	}
	session->state = SESSION_OPEN;
	session->deadline_ns = UINT64_MAX;
	log_info("session begins engine=%s rank=%u ranks=%u pid=%d peer=\"%s\"", hello->engine_id,
		 hello->rank, hello->ranks_count, (int)session->pid, stream_peer(session->stream));
	welcome(session, message->id, now_ns);
	return 0;
}

/* ---- regions -------------------------------------------------------------------------------- */

static int fd_take(struct session *session)
{
	int fd = session->fds[0];

	session->fds_count--;
	memmove(session->fds, session->fds + 1, session->fds_count * sizeof(fd));
	return fd;
}

/* A kind of memory in a log line. */
static const char *memory_text(uint32_t memory)
{
	if (memory_is_gpu(memory))
		return "gpu";
	if (memory_is_remote(memory))
		return memory == SSV_MEMORY_TCP ? "tcp" : "rdma";
	return memory == SSV_MEMORY_MEMFD ? "memfd" : "address";
}

/* Descriptors and addresses mean something on this machine alone, the kinds of a relay something
 * beyond it alone. */
static int kind_check(const struct session *session, uint32_t memory, char *text)
{
	if (session->remote == memory_is_remote(memory))
		return 0;
	snprintf(text, SSV_ERROR_TEXT_MAX,
		 session->remote
		     ? "memory of kind %u is of another machine: a session over TLS "
		       "registers memory behind a relay (5 or 6)"
		     : "memory of kind %u is a relay's to offer, over TLS; an engine of "
		       "this machine registers kinds 1 to 4",
		 memory);
	return -EPERM;
}

static int take_register(struct session *session, const struct message *message, uint64_t now_ns,
			 char *error)
{
	char text[SSV_ERROR_TEXT_MAX] = "";
	struct ssv_region region;
	struct ssv_layout layout;
	struct blob offered, answer = {0};
	uint32_t region_id;
	size_t room;
	uint8_t *out;
	int err = message_decode_register(message, &region, &layout, session->world->tensors,
					  &offered, error);

	if (err)
		return err;
	if (memory_has_fd(region.memory)) {
		if (!session->fds_count)
			return PROTO(error, "REGISTER of memory by descriptor without it");
		region.fd = fd_take(session);
	}
	err = kind_check(session, region.memory, text);
	if (!err)
		err = plane_region_add(session->world->plane, session->plane_id, &region, &layout,
				       &offered, &answer, &region_id, text);
	if (region.fd >= 0)
		close(region.fd);
	if (err) {
		log_warn("region refused engine=%s pid=%d status=%d reason=\"%s\"",
			 session->hello.engine_id, (int)session->pid, err, text);
		refuse(session, message->id, err, text, now_ns);
		return 0;
	}
	session->regions++;
	log_info("region registered engine=%s rank=%u region=%u bytes=%llu blocks=%u tensors=%u "
		 "memory=%s",
		 session->hello.engine_id, session->hello.rank, region_id,
		 (unsigned long long)region.bytes, layout.blocks_count, layout.tensors_count,
		 memory_text(region.memory));
	out = session_reserve(session, &room);
	session_queue(session,
		      message_encode_registered(out, room, message->id, region_id,
						answer.bytes ? &answer : NULL),
		      now_ns);
	return 0;
}

static int take_unregister(struct session *session, const struct message *message, uint64_t now_ns,
			   char *error)
{
	uint32_t region;
	int err = message_decode_region(message, &region, error);

	if (err)
		return err;
	if (session->unregistering_count == SESSION_UNREGISTERING)
		return PROTO(error, "more than %d UNREGISTER at once", SESSION_UNREGISTERING);
	err = plane_region_remove(session->world->plane, session->plane_id, region);
	if (err) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "region %u: %s", region, strerror(-err));
		refuse(session, message->id, err, error, now_ns);
		return 0;
	}
	session->unregistering[session->unregistering_count++] =
	    (struct unregistering){.region = region, .id = message->id};
	return 0;
}

/* ---- requests and stat ---------------------------------------------------------------------- */

static int take_request(struct session *session, const struct message *message, uint64_t now_ns,
			char *error)
{
	char text[SSV_ERROR_TEXT_MAX] = "";
	struct ssv_request request;
	int err = message_decode_request(message, &request, error);
	struct plane_event refused;

	if (err)
		return err;
	if (session->requests == SSV_REQUESTS_MAX)
		return PROTO(error, "more than %d requests in flight", SSV_REQUESTS_MAX);
	session->requests++;
	session->accepted++;
	err = plane_submit(session->world->plane, session->plane_id, &request, now_ns, text);
	if (!err)
		return 0;
	/* The library accepted it already: a refusal is its one completion. */
	session->refused++;
	log_debug("request refused engine=%s op=%u status=%d reason=\"%s\"",
		  session->hello.engine_id, request.op, err, text);
	refused = (struct plane_event){
	    .kind = PLANE_EVENT_COMPLETION,
	    .completion = {.user_data = request.user_data, .op = request.op, .status = err},
	};
	session_event(session, &refused, now_ns);
	return 0;
}

static int take_stat(struct session *session, const struct message *message, uint64_t now_ns,
		     char *error)
{
	struct session_world *world = session->world;
	size_t room;
	uint8_t *out;
	int n, err = message_decode_stat(message, error);

	if (err)
		return err;
	n = world->stat(world->context, world->json, MESSAGE_STAT_BYTES_MAX,
			message->type == MESSAGE_RESET, now_ns);
	out = session_reserve(session, &room);
	session_queue(session,
		      message_encode_text(out, room, MESSAGE_STATUS, message->id, n < 0 ? n : 0,
					  world->json, n < 0 ? 0 : (size_t)n),
		      now_ns);
	return 0;
}

static int take_trace(struct session *session, const struct message *message, uint64_t now_ns,
		      char *error)
{
	static struct trace_event events[MESSAGE_EVENTS_MAX]; /* scratch of the control thread */
	struct message_events head = {.now_ns = now_ns};
	uint64_t from;
	size_t room;
	uint8_t *out;
	int err = message_decode_trace(message, &head.track, &from, error);

	if (err)
		return err;
	plane_trace(session->world->plane, from, &head, events, MESSAGE_EVENTS_MAX);
	out = session_reserve(session, &room);
	session_queue(session, message_encode_events(out, room, message->id, &head, events),
		      now_ns);
	return 0;
}

int session_take(struct session *session, const struct message *message, uint64_t now_ns,
		 char *error)
{
	if ((session->state == SESSION_GREETING) != (message->type == MESSAGE_HELLO))
		return PROTO(error, "%s where %s was expected", message_name(message->type),
			     session->state == SESSION_GREETING ? "HELLO" : "no further HELLO");
	switch (message->type) {
	case MESSAGE_HELLO:
		return take_hello(session, message, now_ns, error);
	case MESSAGE_REGISTER:
		return take_register(session, message, now_ns, error);
	case MESSAGE_UNREGISTER:
		return take_unregister(session, message, now_ns, error);
	case MESSAGE_REQUEST:
		return take_request(session, message, now_ns, error);
	case MESSAGE_TRACE:
		return take_trace(session, message, now_ns, error);
	default: /* STAT, RESET: message_find() lets no other type of a client's through */
		return take_stat(session, message, now_ns, error);
	}
}

void session_stat(const struct session *session, void *json)
{
	cJSON *object = cJSON_CreateObject();

	cJSON_AddStringToObject(object, "engine", session->hello.engine_id);
	cJSON_AddNumberToObject(object, "rank", session->hello.rank);
	cJSON_AddNumberToObject(object, "ranks", session->hello.ranks_count);
	cJSON_AddNumberToObject(object, "pid", session->pid);
	if (session->remote)
		cJSON_AddStringToObject(object, "peer", stream_peer(session->stream));
	cJSON_AddNumberToObject(object, "requests_in_flight", session->requests);
	cJSON_AddNumberToObject(object, "regions", session->regions);
	cJSON_AddNumberToObject(object, "requests", (double)session->accepted);
	cJSON_AddNumberToObject(object, "requests_refused", (double)session->refused);
	cJSON_AddNumberToObject(object, "completions", (double)session->completions);
	cJSON_AddNumberToObject(object, "bytes_unread", (double)session->out_bytes);
	cJSON_AddItemToArray(json, object);
}
