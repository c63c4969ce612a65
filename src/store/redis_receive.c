/* SPDX-License-Identifier: Apache-2.0 */
/*
 * redis_receive.c - bytes from a lane's connection to their places.
 *
 * A value goes from the socket into its place: only the bytes that came together with a reply's
 * header are copied, and with the rest the next header is read in the same call.
 *
 * Bound: a step receives at most RECEIVE_BYTES: little enough that the bytes are still in the
 * core's second-level cache when the caller decodes them.
 */
#include <errno.h>
#include <string.h>
#include <sys/uio.h>

#include "base/tally.h"
#include "store/redis.h"

#define RECEIVE_BYTES (256 * KIB)
#define WAKE_BYTES    (128 * KIB) /* of a value: what is worth waking up for */
#define VALUE_HEAD    64          /* read for a value's header: little is copied then */

/* Use up what stands in head. 0, or why the lane must be dropped. */
static int take_head(struct redis_store *redis, struct lane *lane, uint64_t now_ns)
{
	while (lane->head_at < lane->head_bytes) {
		struct resp_item item = {0};
		size_t used;
		int got = resp_read(&lane->reader, lane->head + lane->head_at,
				    lane->head_bytes - lane->head_at, &used, &item);
		int err;

		if (got < 0)
			return got;
		lane->head_at += (uint32_t)used;
		if (!got)
			break;
		err = lane_take_item(redis, lane, &item, now_ns);
		if (err || lane->state == LANE_CLOSED)
			return err;
	}
	lane->head_at = lane->head_bytes = 0;
	return 0;
}

/* Does the next reply bring a part of a value? Then little is read with its header. */
static bool lane_awaits_value(struct lane *lane)
{
	uint8_t kind = lane->count ? lane_request_at(lane, 0)->kind : REQUEST_HELLO;

	return kind == STORE_OP_GET || kind == REQUEST_PIECE;
}

/* One recvmsg: the value's next bytes to their place, then what follows it to head. Returns
 * bytes, 0 at the end of the connection, -errno; *ret_all: there were no more. */
static ssize_t receive(struct redis_store *redis, struct lane *lane, bool *ret_all)
{
	uint64_t left = resp_payload_left(&lane->reader);
	uint8_t *place = lane_value_place(lane);
	bool value_next = lane_awaits_value(lane);
	struct iovec pieces[2];
	struct msghdr message = {.msg_iov = pieces};
	ssize_t n;
	uint64_t direct, asked;

	if (left) {
		pieces[0].iov_base = place ? place : redis->scratch;
		pieces[0].iov_len = u64_min(left, place ? RECEIVE_BYTES : sizeof(redis->scratch));
		message.msg_iovlen = pieces[0].iov_len == left ? 2 : 1;
		pieces[1].iov_base = lane->head;
		pieces[1].iov_len = VALUE_HEAD;
	} else {
		pieces[0].iov_base = lane->head;
		pieces[0].iov_len = value_next ? VALUE_HEAD : sizeof(lane->head);
		message.msg_iovlen = 1;
	}
	asked = pieces[0].iov_len + (message.msg_iovlen == 2 ? VALUE_HEAD : 0);
	tally_add(TALLY_CALL_RECEIVE, 1);
	n = recvmsg(lane->fd, &message, MSG_DONTWAIT);
	if (n <= 0)
		return n < 0 ? -errno : 0;
	tally_add(TALLY_BYTES_RECEIVED, (uint64_t)n);
	direct = left ? u64_min((uint64_t)n, pieces[0].iov_len) : 0;
	if (direct) {
		int err = lane_take_value(redis, lane, place ? NULL : redis->scratch, direct);

		if (err)
			return err;
		resp_payload_taken(&lane->reader, direct);
	}
	lane->head_bytes = (uint32_t)((uint64_t)n - direct);
	*ret_all = (uint64_t)n < asked;
	return n;
}

/* Inside a long value a few packets are not worth waking up for, and the caller may sleep. */
static void set_wake(struct lane *lane)
{
	int bytes = resp_payload_left(&lane->reader) >= WAKE_BYTES ? (int)WAKE_BYTES : 1;

	if (bytes == lane->wake_bytes)
		return;
	lane->wake_bytes = bytes;
	tally_add(TALLY_CALL_SOCKET, 1);
	(void)setsockopt(lane->fd, SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof(bytes));
}

void lane_receive(struct redis_store *redis, struct lane *lane, uint64_t now_ns)
{
	/* A short read says that there was no more, and saves the call that would say so again.
	 * When a lane was lost, its end may stand behind the last bytes of this one too. */
	bool look = now_ns < redis->lost_ns + REDIS_GRACE_NS;
	uint64_t moved = 0;
	bool all = false;

	while (moved < RECEIVE_BYTES && (!all || look)) {
		ssize_t n = receive(redis, lane, &all);
		int err;

		if (n == -EAGAIN)
			lane->heard_ns = now_ns;
		if (n == -EAGAIN || n == -EINTR)
			break;
		if (n <= 0) {
			lane_drop(redis, lane, -ENOTCONN,
				  n ? strerror((int)-n) : "closed by the server", now_ns);
			return;
		}
		moved += (uint64_t)n;
		lane->progress_ns = now_ns;
		err = take_head(redis, lane, now_ns);
		if (err && lane->state != LANE_CLOSED)
			lane_drop(redis, lane, err, strerror(-err), now_ns);
		if (lane->state == LANE_CLOSED)
			return;
	}
	set_wake(lane);
	redis->more |= moved >= RECEIVE_BYTES;
}
