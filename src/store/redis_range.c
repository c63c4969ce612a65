/* SPDX-License-Identifier: Apache-2.0 */
/*
 * redis_range.c - a long value is asked for in pieces, a few ahead of what has arrived.
 *
 * A server that is asked for 20 MB at once copies them into a buffer of that size, which it takes
 * from its kernel page by page and gives back again; pieces of a megabyte stay in its cache and its
 * heap, and it sends several times as fast on its one core. Pieces ahead keep the link busy; and
 * the next value's first pieces are asked for before the last of this one's have arrived.
 *
 * One GET sees one value: WATCH stands before the first piece and an empty transaction behind the
 * last, which the server refuses if the key was touched in between. Then, and when a piece is not
 * as long as it must be, the GET is tried once more, like one whose lane was lost.
 */
#include <errno.h>

#include "store/redis.h"

static struct lane_request *ask(struct redis_store *redis, struct lane *lane, uint8_t kind,
				struct resp_writer *writer)
{
	struct lane_request *request = lane_push(lane);

	(void)redis;
	request->kind = kind;
	request->op = lane->asking.op;
	request->again = lane->asking.again;
	request->same = lane->asking.same;
	request->command = request->text;
	*writer = (struct resp_writer){.text = request->text, .bytes_max = sizeof(request->text)};
	return request;
}

static void asked(struct lane_request *request, const struct resp_writer *writer)
{
	ssv_assert(!writer->overflow);
	request->command_bytes = (uint32_t)writer->bytes;
}

static void ask_of_key(struct redis_store *redis, struct lane *lane, uint8_t kind, const char *name)
{
	struct resp_writer writer;
	struct lane_request *request = ask(redis, lane, kind, &writer);

	resp_write_array(&writer, 2);
	resp_write_text(&writer, name);
	redis_write_key(&writer, redis, &request->op->key);
	asked(request, &writer);
}

static void ask_piece(struct redis_store *redis, struct lane *lane, uint64_t at, uint64_t bytes)
{
	struct resp_writer writer;
	struct lane_request *request = ask(redis, lane, REQUEST_PIECE, &writer);

	resp_write_array(&writer, 4);
	resp_write_text(&writer, "GETRANGE");
	redis_write_key(&writer, redis, &request->op->key);
	resp_write_number(&writer, at);
	resp_write_number(&writer, at + bytes - 1);
	asked(request, &writer);
	request->at = at;
	request->bytes = bytes;
	lane->asked += bytes;
}

/* What was watched is let go with it, so it is sent even if nobody waits for the answer. */
static void ask_unchanged(struct redis_store *redis, struct lane *lane)
{
	struct resp_writer writer;
	struct lane_request *request = ask(redis, lane, REQUEST_UNCHANGED, &writer);

	resp_write_array(&writer, 1);
	resp_write_text(&writer, "MULTI");
	resp_write_array(&writer, 1);
	resp_write_text(&writer, "EXEC");
	asked(request, &writer);
	request->replies = 2;
	lane->asking.op = NULL;
}

void range_ask_ahead(struct redis_store *redis, struct lane *lane)
{
	struct lane_asking *asking = &lane->asking;
	const struct store_op *op = asking->op;

	while (op && lane->asked < RANGES_AHEAD * redis->range_bytes) {
		/* Before the length is known: half the buffer at most. Buffers are made for values
		 * that are a little shorter; beyond the end nothing comes. */
		uint64_t end = asking->known ? op->value_bytes : op->capacity / 2;

		if (asking->next >= end)
			break;
		ask_piece(redis, lane, asking->next, redis->range_bytes);
		asking->next += redis->range_bytes;
	}
	if (op && asking->known && asking->next >= op->value_bytes)
		ask_unchanged(redis, lane);
}

bool range_serves(const struct redis_store *redis, const struct store_op *op)
{
	return op->kind == STORE_OP_GET && redis->range_bytes &&
	       op->capacity > redis->range_bytes && !(op->mark & OP_ASKING);
}

void range_begin(struct redis_store *redis, struct lane *lane, struct store_op *op, bool again)
{
	ssv_assert(!lane->asking.op);
	lane->asking = (struct lane_asking){.op = op, .again = again, .same = op->received};
	ask_of_key(redis, lane, REQUEST_WATCH, "WATCH");
	ask_of_key(redis, lane, REQUEST_LENGTH, "STRLEN");
	range_ask_ahead(redis, lane);
}

void range_abandon(struct redis_store *redis, struct lane *lane)
{
	lane->asking.op = NULL;
	ask_unchanged(redis, lane);
}

/* ---- answers -------------------------------------------------------------------------------- */

/* The value is another one by now, or gone. */
static int changed(struct redis_store *redis, struct lane *lane)
{
	const struct lane_request *request = lane_request_at(lane, 0);
	struct store_op *op = request->op;

	if (request->again) {
		(void)lane_forget(redis, lane, op);
		redis_finish(redis, op, -EIO);
		return 0;
	}
	(void)lane_forget(redis, lane, op);
	op_queue_push(&redis->again[redis_role(op)], op);
	return 0;
}

static int take_length(struct redis_store *redis, struct lane *lane, const struct resp_item *item)
{
	const struct lane_request *request = lane_request_at(lane, 0);
	struct store_op *op = request->op;
	int err = 0;

	if (item->type != RESP_INTEGER || item->number < 0)
		return -EPROTO;
	if (!op) {
		lane_pop(lane);
		return 0;
	}
	/* On a second attempt it must still be the value that was begun. */
	if (item->number == 0)
		err = -ENOENT;
	else if (request->same && (uint64_t)item->number != op->value_bytes)
		err = -EIO;
	else
		err = op_set_length(op, (uint64_t)item->number, redis->value_bytes_max);
	lane_pop(lane);
	if (err) {
		(void)lane_forget(redis, lane, op);
		redis_finish(redis, op, err);
		return 0;
	}
	lane->asking.known = true;
	range_ask_ahead(redis, lane);
	return 0;
}

/* The length of a piece: what lies between its begin and the value's end, at most all of it. */
static uint64_t piece_bytes(const struct lane_request *request)
{
	uint64_t end = request->op->value_bytes;

	return request->at < end ? u64_min(request->bytes, end - request->at) : 0;
}

static int take_piece(struct redis_store *redis, struct lane *lane, const struct resp_item *item)
{
	const struct lane_request *request = lane_request_at(lane, 0);

	switch (item->type) {
	case RESP_BULK:
		if ((uint64_t)item->number > request->bytes)
			return -EPROTO;
		lane->in_value = true;
		lane->value_at = request->at;
		if (request->op && (uint64_t)item->number != piece_bytes(request))
			return changed(redis, lane);
		return 0;
	case RESP_PAYLOAD:
		return lane_take_value(redis, lane, (const uint8_t *)item->text, item->text_bytes);
	case RESP_PAYLOAD_END:
		lane->in_value = false;
		lane_pop(lane);
		range_ask_ahead(redis, lane);
		return 0;
	default:
		return -EPROTO;
	}
}

static int take_unchanged(struct redis_store *redis, struct lane *lane,
			  const struct resp_item *item)
{
	struct store_op *op = lane_request_at(lane, 0)->op;

	if (item->type != RESP_NULL && (item->type != RESP_AGGREGATE || item->number))
		return -EPROTO;
	if (op && item->type == RESP_NULL)
		(void)changed(redis, lane);
	else if (op)
		lane_answer(redis, lane, op->received == op->value_bytes ? 0 : -EPROTO);
	if (!op || item->type == RESP_NULL)
		lane_pop(lane);
	return 0;
}

int range_take(struct redis_store *redis, struct lane *lane, const struct resp_item *item)
{
	switch (lane_request_at(lane, 0)->kind) {
	case REQUEST_WATCH:
		if (item->type != RESP_TEXT)
			return -EPROTO;
		lane_pop(lane);
		return 0;
	case REQUEST_LENGTH:
		return take_length(redis, lane, item);
	case REQUEST_PIECE:
		return take_piece(redis, lane, item);
	default:
		return take_unchanged(redis, lane, item);
	}
}
