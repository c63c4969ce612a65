/* SPDX-License-Identifier: Apache-2.0 */
/*
 * redis_lane.c - one connection of a redis: store.
 *
 * What an operation lent (op->data) is touched only while the operation stands in a request:
 * lane_withdraw() and lane_drop() are the two ways out. Receiving is redis_receive.c's.
 *
 * Bound: a step sends at most STEP_BYTES.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/tally.h"
#include "store/redis.h"

#define STEP_BYTES     MIB
#define SEND_PIECES    16
#define BACKOFF_MIN_NS (10 * NS_PER_MS)
#define STABLE_NS      NS_PER_S /* a lane that was up so long begins with a short backoff again */

void lane_init(struct lane *lane, enum lane_role role)
{
	memset(lane, 0, sizeof(*lane));
	lane->fd = -1;
	lane->role = (uint8_t)role;
}

void lane_fini(struct lane *lane)
{
	if (lane->fd >= 0)
		(void)close(lane->fd);
	lane->fd = -1;
}

/* ---- requests ------------------------------------------------------------------------------- */

struct lane_request *lane_push(struct lane *lane)
{
	struct lane_request *request;

	ssv_assert(lane->count < LANE_REQUESTS_MAX);
	request = lane_request_at(lane, lane->count++);
	memset(request, 0, offsetof(struct lane_request, text));
	request->replies = 1;
	return request;
}

static void pop_first(struct lane *lane)
{
	ssv_assert(lane->count && lane->sent_count);
	lane->asked -= lane_request_at(lane, 0)->bytes;
	lane->first = (lane->first + 1) % LANE_REQUESTS_MAX;
	lane->count--;
	lane->sent_count--;
}

static void pop_withdrawn(struct lane *lane)
{
	while (lane->sent_count && lane_request_at(lane, 0)->withdrawn)
		pop_first(lane);
}

void lane_pop(struct lane *lane)
{
	pop_first(lane);
	pop_withdrawn(lane);
}

void redis_write_key(struct resp_writer *writer, const struct redis_store *redis,
		     const struct ssv_key *key)
{
	static const char hex[] = "0123456789abcdef";
	char text[REDIS_PREFIX_MAX + 2 * sizeof(key->bytes)];
	size_t at = strlen(redis->prefix);
	size_t i;

	memcpy(text, redis->prefix, at);
	for (i = 0; i < sizeof(key->bytes); i++) {
		text[at++] = hex[key->bytes[i] >> 4];
		text[at++] = hex[key->bytes[i] & 15];
	}
	resp_write_bulk(writer, text, at);
}

void lane_add_map(struct lane *lane, uint64_t now_ns)
{
	static const char command[] = "*2\r\n$7\r\nCLUSTER\r\n$5\r\nSLOTS\r\n";
	struct lane_request *request = lane_push(lane);

	if (lane->count == 1)
		lane->progress_ns = now_ns;
	request->kind = REQUEST_MAP;
	request->command = command;
	request->command_bytes = sizeof(command) - 1;
}

void lane_add(struct redis_store *redis, struct lane *lane, struct store_op *op, bool again,
	      uint64_t now_ns)
{
	static const char *const names[] = {
	    [STORE_OP_GET] = "GET",
	    [STORE_OP_PUT] = "SET",
	    [STORE_OP_EXISTS] = "STRLEN",
	    [STORE_OP_DELETE] = "UNLINK",
	};
	bool put = op->kind == STORE_OP_PUT;
	struct lane_request *request;
	struct resp_writer writer;

	if (lane->count == 0)
		lane->progress_ns = now_ns;
	lane->ops++;
	if (range_serves(redis, op)) {
		range_begin(redis, lane, op, again);
		return;
	}
	request = lane_push(lane);
	writer = (struct resp_writer){.text = request->text, .bytes_max = sizeof(request->text)};
	request->op = op;
	request->kind = op->kind;
	request->again = again;
	if (op->mark & OP_ASKING) {
		resp_write_array(&writer, 1);
		resp_write_text(&writer, "ASKING");
		request->replies++;
	}
	resp_write_array(&writer, put ? (redis->trailer_bytes > 2 ? 5 : 3) : 2);
	resp_write_text(&writer, names[op->kind]);
	redis_write_key(&writer, redis, &op->key);
	if (put) {
		resp_write_bulk_header(&writer, op->value_bytes);
		request->data = op->data;
		request->data_bytes = op->value_bytes;
		request->trailer = redis->trailer;
		request->trailer_bytes = redis->trailer_bytes;
	}
	if (op->kind == STORE_OP_GET)
		request->same = op->received;
	ssv_assert(!writer.overflow);
	request->command = request->text;
	request->command_bytes = (uint32_t)writer.bytes;
}

/* ---- dropping ------------------------------------------------------------------------------- */

static uint64_t next_random(struct redis_store *redis)
{
	uint64_t z = redis->random += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

enum lane_role redis_role(const struct store_op *op)
{
	if (op->kind == STORE_OP_GET)
		return LANE_READ;
	return op->kind == STORE_OP_PUT ? LANE_WRITE : LANE_QUICK;
}

static void back_off(struct redis_store *redis, struct lane *lane, uint64_t now_ns)
{
	if (lane->state == LANE_UP && now_ns - lane->up_ns > STABLE_NS)
		lane->backoff_ns = 0;
	lane->backoff_ns = u64_min(redis->backoff_max_ns,
				   lane->backoff_ns ? 2 * lane->backoff_ns : BACKOFF_MIN_NS);
	lane->retry_ns =
	    now_ns + lane->backoff_ns / 2 + next_random(redis) % (lane->backoff_ns / 2 + 1);
}

/* When and where to connect next. A name may have several addresses: only when all of them were
 * tried in a row is the server refused, and a pause made. */
static void plan_retry(struct redis_store *redis, struct lane *lane, uint64_t now_ns)
{
	bool was_up = lane->state == LANE_UP;

	lane->retry_ns = now_ns;
	if (was_up) {
		lane->refused = false;
		redis->lost_ns = now_ns;
	} else {
		lane->address = (uint8_t)((lane->address + 1u) % redis->addresses_count);
		if (++lane->tried < redis->addresses_count)
			return;
		lane->refused = true;
	}
	lane->tried = 0;
	back_off(redis, lane, now_ns);
}

void lane_drop(struct redis_store *redis, struct lane *lane, int err, const char *why,
	       uint64_t now_ns)
{
	uint32_t i;

	if (err) {
		plan_retry(redis, lane, now_ns);
		if (redis_may_log(redis, now_ns))
			log_warn("redis lane lost server=%s reason=\"%s\" retry_ms=%llu",
				 redis->name, why,
				 (unsigned long long)((lane->retry_ns - now_ns) / NS_PER_MS));
	} else {
		lane->retry_ns = now_ns;
		lane->refused = false;
	}
	lane_fini(lane);
	lane->state = LANE_CLOSED;
	lane->asking.op = NULL;
	for (i = 0; i < lane->count; i++) {
		struct lane_request *request = lane_request_at(lane, i);
		struct store_op *op = request->op;

		if (request->kind == REQUEST_MAP)
			redis->hooks->map_item(redis, NULL);
		if (!op)
			continue;
		(void)lane_forget(redis, lane, op);
		if (err == -EPROTO && i == 0)
			redis_finish(redis, op, -EPROTO); /* it was told the lie */
		else if (err && request->again)
			redis_finish(redis, op, -ENOTCONN);
		else if (err || request->again)
			op_queue_push(&redis->again[redis_role(op)], op);
		else
			op_queue_push(&redis->waiting[redis_role(op)], op);
	}
	lane->count = 0;
	lane->sent_count = 0;
	lane->asked = 0;
}

/* A request that was not sent at all need not be: no reply comes. */
static void withdraw_request(struct lane_request *request)
{
	request->withdrawn = true;
	request->command_bytes = request->trailer_bytes = 0;
	request->data_bytes = 0;
}

bool lane_forget(struct redis_store *redis, struct lane *lane, const struct store_op *op)
{
	bool half = false;
	uint32_t i;

	for (i = 0; i < lane->count; i++) {
		struct lane_request *request = lane_request_at(lane, i);
		/* What watches a key and what lets it go belong together. */
		bool watches = request->kind == REQUEST_WATCH || request->kind == REQUEST_UNCHANGED;

		if (request->op != op)
			continue;
		request->op = NULL;
		if (i < lane->sent_count)
			continue;
		if (request->sent == 0 && !watches)
			withdraw_request(request);
		else
			half |= request->data_bytes > 0;
	}
	if (lane->asking.op == op)
		range_abandon(redis, lane);
	lane->ops--;
	return half;
}

void lane_withdraw(struct redis_store *redis, struct lane *lane, struct store_op *op,
		   uint64_t now_ns)
{
	bool half = lane_forget(redis, lane, op);

	/* Half a PUT is out, and its rest is not ours any more; or much of a GET is to come. */
	if (half || (lane->in_value && !lane_request_at(lane, 0)->op &&
		     resp_payload_left(&lane->reader) > LANE_DRAIN_MAX))
		lane_drop(redis, lane, 0, NULL, now_ns);
}

/* ---- connecting ----------------------------------------------------------------------------- */

static void say_hello(struct redis_store *redis, struct lane *lane, uint64_t now_ns)
{
	struct lane_request *request = lane_push(lane);

	request->kind = REQUEST_HELLO;
	request->replies = redis->hello_replies;
	request->command = redis->hello;
	request->command_bytes = redis->hello_bytes;
	lane->state = LANE_HELLO;
	lane->progress_ns = now_ns;
	lane_send(redis, lane, now_ns);
}

static void lane_connect(struct redis_store *redis, struct lane *lane, uint64_t now_ns)
{
	const struct redis_address *to = &redis->addresses[lane->address];
	const int one = 1;

	tally_add(TALLY_CALL_SOCKET, 4); /* with two options and connect */
	lane->fd = socket(to->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (lane->fd < 0) {
		lane_drop(redis, lane, -ENOTCONN, strerror(errno), now_ns);
		return;
	}
	if (to->address.ss_family != AF_UNIX) {
		(void)setsockopt(lane->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		(void)setsockopt(lane->fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	}
	resp_init(&lane->reader, redis->value_bytes_max);
	lane->head_at = lane->head_bytes = 0;
	lane->in_value = lane->in_map = false;
	lane->watched = 0;
	lane->wake_bytes = 1;
	lane->progress_ns = now_ns;
	lane->state = LANE_CONNECTING;
	if (!connect(lane->fd, (const struct sockaddr *)&to->address, to->bytes))
		say_hello(redis, lane, now_ns);
	else if (errno != EINPROGRESS)
		lane_drop(redis, lane, -ENOTCONN, strerror(errno), now_ns);
}

static void finish_connect(struct redis_store *redis, struct lane *lane, uint64_t now_ns)
{
	int err = 0;
	socklen_t bytes = sizeof(err);

	if (getsockopt(lane->fd, SOL_SOCKET, SO_ERROR, &err, &bytes))
		err = errno;
	if (err)
		lane_drop(redis, lane, -ENOTCONN, strerror(err), now_ns);
	else
		say_hello(redis, lane, now_ns);
}

/* When the current step takes too long; TIME_NEVER: nothing is awaited. */
static uint64_t give_up_ns(const struct redis_store *redis, const struct lane *lane)
{
	if (lane->state == LANE_CONNECTING || lane->state == LANE_HELLO)
		return lane->progress_ns + redis->connect_timeout_ns;
	if (lane->state == LANE_UP && lane->count)
		return lane->progress_ns + redis->timeout_ns;
	return TIME_NEVER;
}

uint64_t lane_next_ns(const struct redis_store *redis, const struct lane *lane)
{
	return lane->state == LANE_CLOSED ? lane->retry_ns : give_up_ns(redis, lane);
}

void lane_step_timers(struct redis_store *redis, struct lane *lane, uint64_t now_ns)
{
	/* A slow link may have brought less than what wakes up. */
	if (now_ns >= give_up_ns(redis, lane) && lane->wake_bytes > 1)
		lane_receive(redis, lane, now_ns);
	if (now_ns >= give_up_ns(redis, lane))
		lane_drop(redis, lane, -ETIMEDOUT,
			  lane->state == LANE_UP ? "no answer" : "no connection in time", now_ns);
	if (lane->state == LANE_CLOSED && now_ns >= lane->retry_ns)
		lane_connect(redis, lane, now_ns);
}

/* ---- sending -------------------------------------------------------------------------------- */

static uint64_t request_bytes(const struct lane_request *request)
{
	return request->command_bytes + request->data_bytes + request->trailer_bytes;
}

struct gathered {
	struct iovec pieces[SEND_PIECES];
	size_t count;
	uint64_t room; /* bytes that may still be added */
};

/* Add data[0..bytes) without its first *skip bytes. False: it had to be cut, so it is the last. */
static bool add_piece(struct gathered *out, const void *data, uint64_t bytes, uint64_t *skip)
{
	uint64_t gone = u64_min(*skip, bytes);
	uint64_t n = u64_min(bytes - gone, out->room);

	*skip -= gone;
	if (n) {
		out->pieces[out->count++] = (struct iovec){
		    .iov_base = (uint8_t *)(uintptr_t)data + gone,
		    .iov_len = n,
		};
		out->room -= n;
	}
	return n == bytes - gone;
}

static void gather(struct lane *lane, struct gathered *out)
{
	uint32_t i;

	out->count = 0;
	out->room = STEP_BYTES;
	for (i = lane->sent_count; i < lane->count && out->count + 3 <= SEND_PIECES; i++) {
		const struct lane_request *request = lane_request_at(lane, i);
		uint64_t skip = request->sent;

		if (!add_piece(out, request->command, request->command_bytes, &skip) ||
		    !add_piece(out, request->data, request->data_bytes, &skip) ||
		    !add_piece(out, request->trailer, request->trailer_bytes, &skip))
			return;
	}
}

/* bytes more are out: count the requests that are complete. */
static void note_sent(struct lane *lane, uint64_t bytes)
{
	while (lane->sent_count < lane->count) {
		struct lane_request *request = lane_request_at(lane, lane->sent_count);
		uint64_t n = u64_min(bytes, request_bytes(request) - request->sent);

		request->sent += n;
		bytes -= n;
		if (request->sent < request_bytes(request))
			return;
		lane->sent_count++;
	}
}

void lane_send(struct redis_store *redis, struct lane *lane, uint64_t now_ns)
{
	struct gathered out;
	struct msghdr message = {.msg_iov = out.pieces};
	ssize_t n;

	note_sent(lane, 0); /* withdrawn ones */
	pop_withdrawn(lane);
	if (lane->sent_count == lane->count)
		return;
	gather(lane, &out);
	message.msg_iovlen = out.count;
	tally_add(TALLY_CALL_SEND, 1);
	n = sendmsg(lane->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n < 0) {
		if (errno != EAGAIN && errno != EINTR)
			lane_drop(redis, lane, -ENOTCONN, strerror(errno), now_ns);
		return;
	}
	tally_add(TALLY_BYTES_SENT, (uint64_t)n);
	lane->progress_ns = now_ns;
	note_sent(lane, (uint64_t)n);
	pop_withdrawn(lane);
}

/* ---- events ---------------------------------------------------------------------------------- */

short lane_events(const struct lane *lane)
{
	if (lane->state == LANE_CONNECTING)
		return POLLOUT;
	return (short)(POLLIN | (lane->sent_count < lane->count ? POLLOUT : 0));
}

void lane_step_io(struct redis_store *redis, struct lane *lane, short revents, uint64_t now_ns)
{
	if (!revents || lane->state == LANE_CLOSED)
		return;
	if (lane->state == LANE_CONNECTING) {
		finish_connect(redis, lane, now_ns);
		return;
	}
	if (revents & (POLLIN | POLLHUP | POLLERR))
		lane_receive(redis, lane, now_ns);
	if (lane->state != LANE_CLOSED && (revents & POLLOUT))
		lane_send(redis, lane, now_ns);
}
