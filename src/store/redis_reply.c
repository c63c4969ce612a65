/* SPDX-License-Identifier: Apache-2.0 */
/*
 * redis_reply.c - what the items of a reply do to the request at the front of a lane.
 *
 * Nothing a server says is trusted: a reply of another kind, a length beyond value_bytes_max or a
 * reply to nothing ends the lane. Error texts are mapped in one table and logged once a second.
 */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/tally.h"
#include "store/redis.h"

int redis_error(const char *text)
{
	static const struct {
		const char *word;
		int err;
	} words[] = {
	    {"NOAUTH", -EACCES},       {"WRONGPASS", -EACCES},  {"NOPERM", -EACCES},
	    {"OOM", -ENOSPC},          {"LOADING", -ENOTCONN},  {"BUSY", -ENOTCONN},
	    {"MASTERDOWN", -ENOTCONN}, {"TRYAGAIN", -ENOTCONN}, {"CLUSTERDOWN", -ENOTCONN},
	    {"READONLY", -EROFS},      {"MOVED", -ENOTSUP},     {"ASK", -ENOTSUP},
	    {"NOPROTO", -ENOTSUP},     {"MISCONF", -EIO},       {"WRONGTYPE", -EPROTO},
	};
	size_t bytes = strcspn(text, " ");
	size_t i;

	for (i = 0; i < ARRAY_COUNT(words); i++) {
		if (strlen(words[i].word) == bytes && !memcmp(words[i].word, text, bytes))
			return words[i].err;
	}
	return -EIO;
}

void lane_answer(struct redis_store *redis, struct lane *lane, int status)
{
	struct store_op *op = lane_request_at(lane, 0)->op;

	if (op) {
		(void)lane_forget(redis, lane, op);
		redis_finish(redis, op, status);
	}
	lane_pop(lane);
}

static int answer(struct redis_store *redis, struct lane *lane, int status)
{
	lane_answer(redis, lane, status);
	return 0;
}

static int take_error(struct redis_store *redis, struct lane *lane, const char *text,
		      uint64_t now_ns)
{
	int err = redis_error(text);
	struct store_op *op = lane_request_at(lane, 0)->op;

	if (op && redis->hooks && redis->hooks->refused(redis, op, text)) {
		(void)lane_forget(redis, lane, op);
		lane_pop(lane);
		return 0;
	}
	if ((op || lane->state == LANE_HELLO) && redis_may_log(redis, now_ns))
		log_warn("redis refused server=%s answer=\"%s\"", redis->name, text);
	if (lane->state == LANE_HELLO) {
		lane_drop(redis, lane, err, "log-in refused", now_ns);
		return 0;
	}
	(void)answer(redis, lane, err);
	if (!strncmp(text, "NOAUTH", 6)) /* the account was changed: log in again */
		lane_drop(redis, lane, err, "not logged in any more", now_ns);
	return 0;
}

static int take_hello(struct redis_store *redis, struct lane *lane, const struct resp_item *item,
		      uint64_t now_ns)
{
	if (!item->ends_reply || --lane_request_at(lane, 0)->replies)
		return 0;
	redis->stats.reconnects += lane->was_up;
	lane->was_up = true;
	lane->tried = 0;
	lane->refused = false;
	lane->state = LANE_UP;
	lane->up_ns = now_ns;
	lane_pop(lane);
	return 0;
}

/* ---- values --------------------------------------------------------------------------------- */

static int take_length(struct redis_store *redis, struct lane *lane, uint64_t bytes,
		       uint64_t now_ns)
{
	struct lane_request *request = lane_request_at(lane, 0);
	struct store_op *op = request->op;
	int err = 0;

	lane->in_value = true;
	lane->value_at = 0;
	if (op) {
		/* On a second attempt it must still be the value that was begun. */
		if (request->same && bytes != op->value_bytes)
			err = -EIO;
		else if (bytes == 0)
			err = -ENOENT; /* as STRLEN has it */
		else
			err = op_set_length(op, bytes, redis->value_bytes_max);
	}
	if (err) {
		(void)lane_forget(redis, lane, op);
		redis_finish(redis, op, err);
	}
	if (!request->op && bytes > LANE_DRAIN_MAX)
		lane_drop(redis, lane, 0, NULL, now_ns);
	return 0;
}

uint8_t *lane_value_place(struct lane *lane)
{
	const struct lane_request *request;

	if (!lane->in_value)
		return NULL;
	request = lane_request_at(lane, 0);
	if (!request->op || lane->value_at < request->same)
		return NULL;
	return request->op->data + lane->value_at;
}

int lane_take_value(struct redis_store *redis, struct lane *lane, const uint8_t *data,
		    uint64_t bytes)
{
	const struct lane_request *request;
	struct store_op *op;
	uint64_t known;

	if (lane->in_map)
		redis->hooks->map_item(redis, &(struct resp_item){.type = RESP_PAYLOAD,
								  .text = (const char *)data,
								  .text_bytes = (uint32_t)bytes});
	if (!lane->in_value)
		return 0; /* of a push, or of the log-in's answer */
	request = lane_request_at(lane, 0);
	op = request->op;
	redis->stats.bytes_in += bytes;
	if (!op) {
		lane->value_at += bytes;
		return 0;
	}
	/* What was below the watermark before must not change: compare instead of writing. */
	known = lane->value_at < request->same ? u64_min(bytes, request->same - lane->value_at) : 0;
	if (known && memcmp(op->data + lane->value_at, data, known))
		return -EIO;
	if (data && bytes > known) {
		tally_add(TALLY_BYTES_HEADER, bytes - known);
		memcpy(op->data + lane->value_at + known, data + known, bytes - known);
	}
	lane->value_at += bytes;
	if (lane->value_at > op->received)
		op->received = lane->value_at;
	return 0;
}

static int take_get(struct redis_store *redis, struct lane *lane, const struct resp_item *item,
		    uint64_t now_ns)
{
	switch (item->type) {
	case RESP_NULL:
		return answer(redis, lane, -ENOENT);
	case RESP_BULK:
		return take_length(redis, lane, (uint64_t)item->number, now_ns);
	case RESP_PAYLOAD:
		return lane_take_value(redis, lane, (const uint8_t *)item->text, item->text_bytes);
	case RESP_PAYLOAD_END:
		lane->in_value = false;
		return answer(redis, lane, 0);
	default:
		return -EPROTO;
	}
}

/* ---- a cluster's map ------------------------------------------------------------------------ */

static int take_map(struct redis_store *redis, struct lane *lane, const struct resp_item *item)
{
	lane->in_map = item->type == RESP_BULK || item->type == RESP_PAYLOAD;
	redis->hooks->map_item(redis, item);
	if (item->ends_reply)
		lane_pop(lane);
	return 0;
}

/* ---- the rest ------------------------------------------------------------------------------- */

static int take_put(struct redis_store *redis, struct lane *lane, const struct resp_item *item)
{
	if (item->type != RESP_TEXT || strcmp(item->text, "OK"))
		return -EPROTO;
	redis->stats.bytes_out += lane_request_at(lane, 0)->data_bytes;
	return answer(redis, lane, 0);
}

static int take_number(struct redis_store *redis, struct lane *lane, const struct resp_item *item)
{
	const struct lane_request *request = lane_request_at(lane, 0);

	if (item->type != RESP_INTEGER || item->number < 0)
		return -EPROTO;
	if (request->kind == STORE_OP_DELETE)
		return answer(redis, lane, 0);
	if ((uint64_t)item->number > redis->value_bytes_max)
		return answer(redis, lane, -EPROTO);
	if (item->number == 0)
		return answer(redis, lane, -ENOENT);
	if (request->op)
		request->op->value_bytes = (uint64_t)item->number;
	return answer(redis, lane, 0);
}

/* To ASKING, which may come while a PUT is still being sent, or to MULTI. */
static bool is_answer_before(struct lane *lane)
{
	const struct lane_request *request = lane_request_at(lane, 0);

	return lane->count && request->kind != REQUEST_HELLO && request->replies > 1 &&
	       request->sent;
}

int lane_take_item(struct redis_store *redis, struct lane *lane, const struct resp_item *item,
		   uint64_t now_ns)
{
	struct lane_request *request = lane_request_at(lane, 0);

	if (item->aside)
		return 0;
	if (is_answer_before(lane)) {
		request->replies -= item->ends_reply;
		return 0;
	}
	if (!lane->sent_count) /* an answer to nothing that was asked */
		return -EPROTO;
	if (request->kind == REQUEST_MAP)
		return take_map(redis, lane, item);
	if (item->type == RESP_ERROR && item->depth == 0)
		return take_error(redis, lane, item->text, now_ns);
	switch (request->kind) {
	case REQUEST_HELLO:
		return take_hello(redis, lane, item, now_ns);
	case STORE_OP_GET:
		return take_get(redis, lane, item, now_ns);
	case REQUEST_WATCH:
	case REQUEST_LENGTH:
	case REQUEST_PIECE:
	case REQUEST_UNCHANGED:
		return range_take(redis, lane, item);
	case STORE_OP_PUT:
		return take_put(redis, lane, item);
	default:
		return take_number(redis, lane, item);
	}
}
