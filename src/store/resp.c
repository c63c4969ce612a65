/* SPDX-License-Identifier: Apache-2.0 */
/*
 * resp.c - the incremental RESP reader and the command writer.
 *
 * The reader is a state machine over single lines and payloads; what is nested is a small stack of
 * counts, so depth and memory are bounded whatever a peer sends. Streamed types ("$?") are refused.
 */
#include "store/resp.h"

#include <errno.h>
#include <string.h>

enum resp_state {
	STATE_LINE = 0,
	STATE_PAYLOAD = 1,
	STATE_PAYLOAD_CR = 2,
	STATE_PAYLOAD_LF = 3,
};

void resp_init(struct resp_reader *reader, uint64_t bulk_max)
{
	memset(reader, 0, sizeof(*reader));
	reader->bulk_max = bulk_max;
}

/* One element is complete: close every aggregate that ends with it. */
static bool element_ends_reply(struct resp_reader *reader)
{
	while (reader->depth) {
		struct resp_frame *frame = &reader->frames[reader->depth - 1];

		if (--frame->left)
			return false;
		reader->depth--;
		if (frame->attribute)
			return false; /* what it describes follows */
	}
	return true;
}

static bool is_aside(const struct resp_reader *reader)
{
	uint32_t i;

	for (i = 0; i < reader->depth; i++) {
		if (reader->frames[i].attribute)
			return true;
	}
	return reader->push;
}

static int read_number(const char *text, int64_t *ret_number)
{
	bool negative = *text == '-';
	uint64_t number = 0;

	text += *text == '-' || *text == '+';
	if (!*text)
		return -EPROTO;
	for (; *text; text++) {
		if (*text < '0' || *text > '9' || __builtin_mul_overflow(number, 10, &number) ||
		    __builtin_add_overflow(number, (uint64_t)(*text - '0'), &number))
			return -EPROTO;
	}
	if (number > INT64_MAX)
		return -EPROTO;
	*ret_number = negative ? -(int64_t)number : (int64_t)number;
	return 0;
}

static int begin_aggregate(struct resp_reader *reader, struct resp_item *item, char mark)
{
	uint64_t count;

	if (item->number < 0) {
		if (mark != '*' || item->number != -1)
			return -EPROTO;
		item->type = RESP_NULL;
		item->ends_reply = element_ends_reply(reader);
		return 0;
	}
	if (mark == '>' && reader->depth)
		return -EPROTO;
	if (item->number > RESP_ELEMENTS_MAX)
		return -EPROTO;
	count = (uint64_t)item->number * (mark == '%' || mark == '|' ? 2 : 1);
	reader->elements += count;
	if (reader->elements > RESP_ELEMENTS_MAX)
		return -EPROTO;
	item->type = RESP_AGGREGATE;
	item->number = (int64_t)count;
	if (mark == '>') {
		reader->push = true;
		item->aside = true;
	}
	if (count == 0) {
		item->ends_reply = mark != '|' && element_ends_reply(reader);
		return 0;
	}
	if (reader->depth == RESP_DEPTH_MAX)
		return -EPROTO;
	reader->frames[reader->depth++] = (struct resp_frame){count, mark == '|'};
	return 0;
}

static int begin_bulk(struct resp_reader *reader, struct resp_item *item, char mark)
{
	if (item->number == -1 && mark == '$') {
		item->type = RESP_NULL;
		item->ends_reply = element_ends_reply(reader);
		return 0;
	}
	if (item->number < 0 || (uint64_t)item->number > reader->bulk_max)
		return -EPROTO;
	item->type = mark == '!' ? RESP_BULK_ERROR : RESP_BULK;
	reader->payload_left = (uint64_t)item->number;
	reader->state = reader->payload_left ? STATE_PAYLOAD : STATE_PAYLOAD_CR;
	return 0;
}

static int read_scalar(struct resp_reader *reader, struct resp_item *item, char mark)
{
	switch (mark) {
	case '+':
		item->type = RESP_TEXT;
		break;
	case '-':
		item->type = RESP_ERROR;
		break;
	case ':':
		item->type = RESP_INTEGER;
		break;
	case '_':
		item->type = RESP_NULL;
		if (item->text_bytes)
			return -EPROTO;
		break;
	default:
		item->type = RESP_OTHER;
		break;
	}
	item->ends_reply = element_ends_reply(reader);
	return 0;
}

/* A complete line stands in reader->line, its first RESP_TEXT_MAX - 1 bytes at least. */
static int read_line(struct resp_reader *reader, struct resp_item *item)
{
	char mark = reader->line[0];
	bool whole = reader->line_bytes < RESP_TEXT_MAX;
	uint32_t kept = whole ? reader->line_bytes : RESP_TEXT_MAX - 1;

	if (reader->line_bytes == 0 || !strchr("+-:_,#($=!*%~>|", mark))
		return -EPROTO;
	if (reader->depth == 0 && reader->elements == 0)
		reader->push = false;
	reader->line[kept] = '\0';
	*item = (struct resp_item){
	    .depth = reader->depth,
	    .aside = mark == '|' || is_aside(reader),
	    .text = reader->line + 1,
	    .text_bytes = kept - 1,
	};
	reader->line_bytes = 0;
	if (strchr(":$=!*%~>|", mark)) {
		if (!whole || strlen(item->text) != item->text_bytes ||
		    read_number(item->text, &item->number))
			return -EPROTO;
	}
	if (strchr("*%~>|", mark))
		return begin_aggregate(reader, item, mark);
	if (strchr("$=!", mark))
		return begin_bulk(reader, item, mark);
	return read_scalar(reader, item, mark);
}

/* Take bytes of a line. 1: it is complete; 0: all were used; -EPROTO. */
static int take_line(struct resp_reader *reader, const char *data, size_t bytes, size_t *ret_used)
{
	size_t i;

	for (i = 0; i < bytes; i++) {
		char c = data[i];

		if (reader->carriage) {
			if (c != '\n')
				return -EPROTO;
			reader->carriage = false;
			*ret_used = i + 1;
			return 1;
		}
		if (c == '\n' || reader->line_bytes == RESP_LINE_MAX)
			return -EPROTO;
		if (c == '\r') {
			reader->carriage = true;
			continue;
		}
		if (reader->line_bytes < RESP_TEXT_MAX - 1)
			reader->line[reader->line_bytes] = c;
		reader->line_bytes++;
	}
	*ret_used = bytes;
	return 0;
}

static int take_payload(struct resp_reader *reader, const char *data, size_t bytes,
			size_t *ret_used, struct resp_item *item)
{
	*item = (struct resp_item){.depth = reader->depth, .aside = is_aside(reader)};
	if (reader->state == STATE_PAYLOAD) {
		item->type = RESP_PAYLOAD;
		item->text = data;
		item->text_bytes =
		    (uint32_t)u64_min(u64_min(bytes, reader->payload_left), 1u << 30);
		*ret_used = item->text_bytes;
		resp_payload_taken(reader, item->text_bytes);
		return 1;
	}
	*ret_used = 1;
	if (reader->state == STATE_PAYLOAD_CR) {
		if (data[0] != '\r')
			return -EPROTO;
		reader->state = STATE_PAYLOAD_LF;
		return 0;
	}
	if (data[0] != '\n')
		return -EPROTO;
	reader->state = STATE_LINE;
	item->type = RESP_PAYLOAD_END;
	item->ends_reply = element_ends_reply(reader);
	return 1;
}

int resp_read(struct resp_reader *reader, const char *data, size_t bytes, size_t *ret_used,
	      struct resp_item *ret_item)
{
	size_t used = 0, n = 0;
	int got = 0;

	while (used < bytes && !got) {
		n = 0;
		if (reader->state == STATE_LINE) {
			got = take_line(reader, data + used, bytes - used, &n);
			if (got > 0 && read_line(reader, ret_item))
				got = -EPROTO;
		} else {
			got = take_payload(reader, data + used, bytes - used, &n, ret_item);
		}
		used += n;
	}
	if (got > 0 && ret_item->ends_reply)
		reader->elements = 0;
	*ret_used = used;
	return got;
}

uint64_t resp_payload_left(const struct resp_reader *reader)
{
	return reader->state == STATE_PAYLOAD ? reader->payload_left : 0;
}

void resp_payload_taken(struct resp_reader *reader, uint64_t bytes)
{
	ssv_assert(reader->state == STATE_PAYLOAD && bytes <= reader->payload_left);
	reader->payload_left -= bytes;
	if (reader->payload_left == 0)
		reader->state = STATE_PAYLOAD_CR;
}

/* ---- writing -------------------------------------------------------------------------------- */

static void write_raw(struct resp_writer *writer, const void *data, size_t bytes)
{
	if (writer->overflow || bytes > writer->bytes_max - writer->bytes) {
		writer->overflow = true;
		return;
	}
	memcpy(writer->text + writer->bytes, data, bytes);
	writer->bytes += bytes;
}

/* Digits at the end of text; returns where they begin. */
static char *digits(char *end, uint64_t number)
{
	do {
		*--end = (char)('0' + number % 10);
		number /= 10;
	} while (number);
	return end;
}

static void write_header(struct resp_writer *writer, char mark, uint64_t number)
{
	char text[24], *at = text + sizeof(text);

	*--at = '\n';
	*--at = '\r';
	at = digits(at, number);
	*--at = mark;
	write_raw(writer, at, (size_t)(text + sizeof(text) - at));
}

void resp_write_number(struct resp_writer *writer, uint64_t number)
{
	char text[24], *at = digits(text + sizeof(text), number);

	resp_write_bulk(writer, at, (size_t)(text + sizeof(text) - at));
}

void resp_write_array(struct resp_writer *writer, uint32_t count)
{
	write_header(writer, '*', count);
}

void resp_write_bulk_header(struct resp_writer *writer, uint64_t bytes)
{
	write_header(writer, '$', bytes);
}

void resp_write_bulk(struct resp_writer *writer, const void *data, size_t bytes)
{
	write_header(writer, '$', bytes);
	write_raw(writer, data, bytes);
	write_raw(writer, "\r\n", 2);
}

void resp_write_text(struct resp_writer *writer, const char *text)
{
	resp_write_bulk(writer, text, strlen(text));
}
