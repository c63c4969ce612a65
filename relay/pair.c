/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pair.c - messages between an engine and the card, and the ways in which that ends.
 *
 * The card is believed about requests, because it has proven who it is, but about nothing that
 * could touch this process: its messages are decoded before they pass.
 *
 * While the card owes an answer and says nothing, it is asked for an empty trace, so that a card
 * that was stopped is noticed as well as one that died; a pair that waits for nothing asks nothing.
 */
#include "pair.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "stream/address.h"

#define GREETING_NS (5 * NS_PER_S)
#define LEAVING_NS  (2 * NS_PER_S)
#define PING_ID     UINT64_MAX
/* Kept free towards the engine: CLOSE, and an answer to each message that is dealt with. */
#define ROOM_LEAST (2 * (MESSAGE_HEADER_BYTES + sizeof(struct wire_text) + SSV_ERROR_TEXT_MAX))

#define ENGINE_IN_BYTES (MESSAGE_REQUEST_BYTES_MAX + 64 * KIB)
#define ENGINE_OUT      (MESSAGE_STAT_BYTES_MAX + 256 * KIB)
#define CARD_IN_BYTES   (MESSAGE_STAT_BYTES_MAX + 64 * KIB)
#define CARD_OUT        (2 * MESSAGE_REQUEST_BYTES_MAX)

#define PROTO(error, ...) (snprintf(error, SSV_ERROR_TEXT_MAX, __VA_ARGS__), -EPROTO)

int pair_create(struct pair_world *world, int fd, int pidfd, pid_t pid, uint64_t now_ns,
		struct pair **ret_pair)
{
	struct pair *pair = calloc(1, sizeof(*pair));
	struct stream *stream;
	int err = stream_plain(fd, &stream);

	if (err) {
		free(pair);
		goto close_pidfd;
	}
	err = pair ? end_open(&pair->engine, ENGINE_IN_BYTES, ENGINE_OUT) : -ENOMEM;
	if (err) {
		stream_destroy(stream);
		free(pair);
		goto close_pidfd;
	}
	pair->engine.stream = stream;
	pair->card.ended = 1;
	pair->world = world;
	pair->pidfd = pidfd;
	pair->pid = pid;
	pair->state = PAIR_GREETING;
	pair->deadline_ns = now_ns + GREETING_NS;
	*ret_pair = pair;
	return 0;

close_pidfd:
	if (pidfd >= 0)
		close(pidfd);
	return err;
}

void pair_destroy(struct pair *pair)
{
	if (!pair)
		return;
	end_close(&pair->engine);
	end_close(&pair->card);
	if (pair->pidfd >= 0)
		close(pair->pidfd);
	free(pair);
}

/* ---- the end -------------------------------------------------------------------------------- */

void pair_end(struct pair *pair, int status, const char *reason, uint64_t now_ns)
{
	(void)now_ns;
	if (pair->state >= PAIR_REVOKING)
		return;
	pair->state = PAIR_REVOKING;
	pair->deadline_ns = TIME_NEVER;
	pair->status = status;
	snprintf(pair->reason, sizeof(pair->reason), "%s", reason);
	log_info("session ends engine=%s pid=%d status=%d reason=\"%s\" from_engine=%llu "
		 "from_card=%llu asked=%llu",
		 pair->engine_id, (int)pair->pid, status, reason,
		 (unsigned long long)pair->from_engine, (unsigned long long)pair->from_card,
		 (unsigned long long)pair->asked);
	end_close(&pair->card);
	pair->engine.paused = 1;
	pair_regions_revoke(pair);
}

void pair_engine_died(struct pair *pair, uint64_t now_ns)
{
	pair->engine.ended = 1;
	pair_end(pair, -ENOTCONN, "the engine's process died", now_ns);
}

static void card_lost(struct pair *pair, const char *why, uint64_t now_ns)
{
	char reason[2 * SSV_ERROR_TEXT_MAX];

	snprintf(reason, sizeof(reason), "the card at %.80s: %s", pair->world->card_text, why);
	if (pair->state == PAIR_CALLING)
		end_queue(&pair->engine,
			  message_encode_text(end_reserve(&pair->engine), end_room(&pair->engine),
					      MESSAGE_REFUSED, pair->hello_id, -ENOTCONN, reason,
					      strnlen(reason, SSV_ERROR_TEXT_MAX - 1)));
	pair_end(pair, -ENOTCONN, reason, now_ns);
}

/* Everything is taken back: say why, and go when it has been read or the time for that is over. */
static void pair_leave(struct pair *pair, uint64_t now_ns)
{
	pair->state = PAIR_LEAVING;
	pair->deadline_ns = now_ns + LEAVING_NS;
	end_queue(&pair->engine,
		  message_encode_text(end_reserve(&pair->engine), end_room(&pair->engine),
				      MESSAGE_CLOSE, 0, pair->status, pair->reason,
				      strnlen(pair->reason, SSV_ERROR_TEXT_MAX - 1)));
}

/* ---- from the engine ------------------------------------------------------------------------ */

static int hello_take(struct pair *pair, const struct message *message, uint64_t now_ns,
		      char *error)
{
	struct message_hello hello;
	int fd, err = message_decode_hello(message, &hello, error);

	if (err)
		return err;
	if (!message_engine_id_is_good(hello.engine_id))
		return PROTO(error, "an engine id that is not printable ASCII");
	strcpy(pair->engine_id, hello.engine_id);
	pair->hello_id = message->id;
	pair->state = PAIR_CALLING;
	pair->deadline_ns = now_ns + pair->world->call_ns;
	err = end_open(&pair->card, CARD_IN_BYTES, CARD_OUT);
	if (!err) {
		fd = address_connect(&pair->world->card);
		err = fd < 0 ? fd : stream_secure(pair->world->tls, fd, &pair->card.stream);
		if (fd >= 0)
			connection_tune(fd, (uint32_t)(pair->world->card_ns / NS_PER_MS));
	}
	if (err) {
		card_lost(pair, strerror(-err), now_ns);
		return 0;
	}
	end_forward(&pair->card, message);
	return 0;
}

static int engine_take(struct pair *pair, const struct message *message, uint64_t now_ns,
		       char *error)
{
	if ((pair->state == PAIR_GREETING) != (message->type == MESSAGE_HELLO))
		return PROTO(error, "%s where %s was expected", message_name(message->type),
			     pair->state == PAIR_GREETING ? "HELLO" : "no further HELLO");
	if (message->type == MESSAGE_HELLO)
		return hello_take(pair, message, now_ns, error);
	if (!pair->waiting) {
		pair->heard_ns = now_ns;
		pair->asked_ns = 0;
	}
	if (message->type == MESSAGE_REGISTER)
		return pair_register(pair, message, error);
	if (message->id == PING_ID && message->type == MESSAGE_TRACE)
		return PROTO(error, "TRACE of id %llu, which is the relay's own",
			     (unsigned long long)PING_ID);
	end_forward(&pair->card, message);
	pair->waiting++;
	return 0;
}

/* May the engine's next message be taken? It must have room where it leads to. */
static int engine_may_go_on(const struct pair *pair)
{
	if (pair->state == PAIR_GREETING)
		return 1;
	return pair->state == PAIR_OPEN && end_room(&pair->engine) >= ROOM_LEAST &&
	       end_room(&pair->card) >= MESSAGE_REQUEST_BYTES_MAX + 64;
}

static void engine_messages(struct pair *pair, uint64_t now_ns)
{
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct end *end = &pair->engine;
	struct message message;
	size_t start = 0, needed;
	int found = 0;

	while (pair->state <= PAIR_OPEN && engine_may_go_on(pair)) {
		found = message_find(end->in + start, end->in_bytes - start, MESSAGE_FROM_CLIENT,
				     &message, &needed, error);
		if (found != 1)
			break;
		pair->from_engine++;
		found = engine_take(pair, &message, now_ns, error);
		if (found < 0)
			break;
		start += message.bytes;
	}
	memmove(end->in, end->in + start, end->in_bytes - start);
	end->in_bytes -= start;
	end->paused = !engine_may_go_on(pair);
	if (found < 0) {
		log_warn("malformed message engine=%s pid=%d error=\"%s\"", pair->engine_id,
			 (int)pair->pid, error);
		pair_end(pair, -EPROTO, error, now_ns);
	}
}

void pair_engine_ready(struct pair *pair, int hung_up, uint64_t now_ns)
{
	char why[SSV_ERROR_TEXT_MAX];
	int err;

	if (pair->state > PAIR_OPEN) {
		/* A request that came meanwhile is not read: CLOSE will answer it. */
		pair->engine.ended |= hung_up;
		return;
	}
	err = end_receive(&pair->engine, why);
	engine_messages(pair, now_ns);
	if (err == -EPROTO)
		pair_end(pair, err, why, now_ns);
	else if (err)
		pair_end(pair, -ENOTCONN, "the engine closed the session", now_ns);
}

/* ---- from the card -------------------------------------------------------------------------- */

static int welcome_take(struct pair *pair, const struct message *message, char *error)
{
	struct message_welcome welcome;
	int err = message_decode_welcome(message, &welcome, error);

	if (err)
		return err;
	if (pair->state != PAIR_CALLING || message->id != pair->hello_id)
		return PROTO(error, "WELCOME that answers nothing");
	if (welcome.version < MESSAGE_VERSION_MIN || welcome.version > MESSAGE_VERSION_MAX)
		return PROTO(error, "protocol version %u", welcome.version);
	pair->state = PAIR_OPEN;
	pair->deadline_ns = TIME_NEVER;
	welcome.pid = (uint32_t)getpid(); /* whose death proves that nothing writes any more */
	log_info("session begins engine=%s pid=%d card=\"%s\"", pair->engine_id, (int)pair->pid,
		 stream_peer(pair->card.stream));
	end_queue(&pair->engine,
		  message_encode_welcome(end_reserve(&pair->engine), end_room(&pair->engine),
					 message->id, &welcome));
	return 0;
}

static int completions_take(struct pair *pair, const struct message *message, char *error)
{
	uint32_t count;
	int err = message_decode_completions(message, &count, error);

	if (err)
		return err;
	if (count > pair->waiting)
		return PROTO(error, "%u completions, %u requests wait", count, pair->waiting);
	pair->waiting -= count;
	end_forward(&pair->engine, message);
	return 0;
}

static int text_take(struct pair *pair, const struct message *message, uint64_t now_ns, char *error)
{
	char reason[SSV_ERROR_TEXT_MAX];
	struct message_text text;
	int err = message_decode_text(message, &text, error);

	if (err)
		return err;
	if (message->type == MESSAGE_CLOSE) {
		snprintf(reason, sizeof(reason), "%.*s",
			 (int)u64_min(text.text_bytes, sizeof(reason) - 1), text.text);
		pair_end(pair, text.status, reason, now_ns);
		return 0;
	}
	if (message->type == MESSAGE_REFUSED && pair_refused(pair, message))
		return 0;
	end_forward(&pair->engine, message);
	return 0;
}

static int card_take(struct pair *pair, const struct message *message, uint64_t now_ns, char *error)
{
	struct message_events events;

	if (pair->state == PAIR_CALLING && message->type != MESSAGE_WELCOME &&
	    message->type != MESSAGE_REFUSED && message->type != MESSAGE_CLOSE)
		return PROTO(error, "%s where WELCOME was expected", message_name(message->type));
	if (message->type == MESSAGE_COMPLETION)
		return completions_take(pair, message, error);
	if (message->type == MESSAGE_EVENTS && message->id == PING_ID)
		return message_decode_events(message, &events, error);
	if (message->type != MESSAGE_CLOSE && message->type != MESSAGE_WELCOME &&
	    pair->state == PAIR_OPEN && pair->waiting-- == 0) {
		pair->waiting = 0;
		return PROTO(error, "%s that answers nothing", message_name(message->type));
	}
	switch (message->type) {
	case MESSAGE_WELCOME:
		return welcome_take(pair, message, error);
	case MESSAGE_REGISTERED:
		return pair_registered(pair, message, error);
	case MESSAGE_UNREGISTERED:
		return pair_unregistered(pair, message, error);
	case MESSAGE_EVENTS:
		end_forward(&pair->engine, message);
		return 0;
	default:
		return text_take(pair, message, now_ns, error);
	}
}

static void card_messages(struct pair *pair, uint64_t now_ns)
{
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct end *end = &pair->card;
	struct message message;
	size_t start = 0, needed;
	int found = 0;

	while (pair->state == PAIR_CALLING || pair->state == PAIR_OPEN) {
		found = message_find(end->in + start, end->in_bytes - start, MESSAGE_FROM_DAEMON,
				     &message, &needed, error);
		if (found == 1 && end_room(&pair->engine) < message.bytes + ROOM_LEAST) {
			snprintf(error, sizeof(error),
				 "the client does not read: %zu bytes wait for it",
				 pair->engine.out_bytes);
			pair_end(pair, -ENOBUFS, error, now_ns);
			break;
		}
		if (found == 1)
			found = card_take(pair, &message, now_ns, error);
		else if (found == 0)
			break;
		pair->from_card++;
		if (found < 0)
			break;
		start += message.bytes;
	}
	if (pair->state > PAIR_OPEN)
		return; /* the buffer is gone */
	memmove(end->in, end->in + start, end->in_bytes - start);
	end->in_bytes -= start;
	if (found < 0)
		card_lost(pair, error, now_ns);
}

void pair_card_ready(struct pair *pair, uint64_t now_ns)
{
	char why[SSV_ERROR_TEXT_MAX];
	int err = 0;

	while (!err && (pair->state == PAIR_CALLING || pair->state == PAIR_OPEN)) {
		err = end_receive(&pair->card, why);
		if (pair->card.in_bytes) {
			pair->heard_ns = now_ns;
			pair->asked_ns = 0;
		}
		card_messages(pair, now_ns);
		/* An incomplete message leaves room for what TLS still keeps inside. */
		if (pair->state > PAIR_OPEN || !stream_holds(pair->card.stream))
			break;
	}
	if (err && pair->state <= PAIR_OPEN)
		card_lost(pair, why, now_ns);
}

/* ---- time ----------------------------------------------------------------------------------- */

static int is_watched(const struct pair *pair)
{
	return pair->state == PAIR_OPEN && pair->waiting;
}

/* A third of the card's time is over in silence: ask; all of it: it is lost. */
static void card_watch(struct pair *pair, uint64_t now_ns)
{
	const uint64_t limit_ns = pair->world->card_ns;

	if (!is_watched(pair) || now_ns < pair->heard_ns + limit_ns / 3)
		return;
	if (now_ns >= pair->heard_ns + limit_ns) {
		card_lost(pair, "no word from it while requests wait", now_ns);
	} else if (!pair->asked_ns && end_room(&pair->card) >= 64) {
		pair->asked_ns = now_ns;
		pair->asked++;
		end_queue(&pair->card,
			  message_encode_trace(end_reserve(&pair->card), end_room(&pair->card),
					       PING_ID, UINT32_MAX, 0));
	}
}

static void deadline_check(struct pair *pair, uint64_t now_ns)
{
	if (now_ns < pair->deadline_ns)
		return;
	if (pair->state == PAIR_GREETING)
		pair_end(pair, -ETIMEDOUT, "no HELLO within 5 s", now_ns);
	else if (pair->state == PAIR_CALLING)
		card_lost(pair, "it did not answer in time", now_ns);
	else if (pair->state == PAIR_LEAVING)
		pair->state = PAIR_DONE;
}

void pair_settle(struct pair *pair, uint64_t now_ns)
{
	int left = pair_regions_settle(pair);

	if (left < 0)
		pair_end(pair, -EIO, "the card broke the rules of its data connection", now_ns);
	deadline_check(pair, now_ns);
	card_watch(pair, now_ns);
	if (pair->state <= PAIR_OPEN) {
		/* What waited for room may have it now. */
		if (pair->engine.paused && engine_may_go_on(pair))
			engine_messages(pair, now_ns);
	}
	if (pair->state == PAIR_REVOKING && pair_regions_settle(pair) == 0)
		pair_leave(pair, now_ns);
	end_flush(&pair->engine);
	end_flush(&pair->card);
	if (pair->card.ended && (pair->state == PAIR_CALLING || pair->state == PAIR_OPEN))
		pair_card_ready(pair, now_ns); /* it says why, or that it is gone */
	if (pair->card.ended && (pair->state == PAIR_CALLING || pair->state == PAIR_OPEN))
		card_lost(pair, "the connection broke", now_ns);
	if (pair->engine.ended)
		pair_end(pair, -ENOTCONN, "the engine closed the session", now_ns);
	if (pair->state == PAIR_LEAVING && (pair->engine.ended || !pair->engine.out_bytes))
		pair->state = PAIR_DONE;
}

uint64_t pair_next_ns(const struct pair *pair)
{
	uint64_t next_ns = pair->deadline_ns;

	if (pair->state == PAIR_REVOKING)
		return TIME_NEVER; /* the way wakes us */
	if (is_watched(pair))
		next_ns =
		    u64_min(next_ns, pair->heard_ns + (pair->asked_ns ? pair->world->card_ns
								      : pair->world->card_ns / 3));
	return next_ns;
}
