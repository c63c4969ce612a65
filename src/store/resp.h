/* SPDX-License-Identifier: Apache-2.0 */
/*
 * resp.h - reading and writing RESP2 and RESP3, the Redis protocol. Pure: no socket, no memory.
 *
 * The reader is fed bytes in pieces of any size and gives items. Its answers do not depend on where
 * the pieces were cut. A bulk string is announced by RESP_BULK with its length; its bytes follow as
 * RESP_PAYLOAD, or the caller receives them somewhere else and says so with resp_payload_taken():
 * that is how a value goes from the socket to its place without a copy.
 *
 * Source: https://redis.io/docs/latest/develop/reference/protocol-spec/
 */
#ifndef SSV_STORE_RESP_H
#define SSV_STORE_RESP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/base.h"

#define RESP_DEPTH_MAX    8u
#define RESP_ELEMENTS_MAX (1u << 19) /* announced by aggregates, a reply; none is kept */
#define RESP_LINE_MAX     65536u     /* bytes of a line */
#define RESP_TEXT_MAX     160u       /* kept of a line, with its end */

enum resp_type {
	RESP_TEXT = 1,    /* +OK */
	RESP_ERROR = 2,   /* -ERR ... ; text without the '-' */
	RESP_INTEGER = 3, /* :5 */
	RESP_NULL = 4,    /* $-1, *-1, _ */
	RESP_OTHER = 5,   /* double, boolean, big number; text */
	RESP_AGGREGATE =
	    6,         /* array, set, map (twice its pairs), push, attribute: number elements */
	RESP_BULK = 7, /* number bytes follow */
	RESP_BULK_ERROR = 8, /* the same, its payload is an error's text */
	RESP_PAYLOAD = 9,    /* text[0..text_bytes) of the bulk string */
	RESP_PAYLOAD_END = 10,
};

struct resp_item {
	uint8_t type;    /* enum resp_type */
	bool ends_reply; /* the reply is complete with this item */
	bool aside;      /* belongs to a push or an attribute: no part of a command's reply */
	uint8_t depth;   /* aggregates around it */
	int64_t number;
	const char *text; /* lent until the next call; ends with '\0' unless it is a payload */
	uint32_t text_bytes;
};

struct resp_frame {
	uint64_t left;
	bool attribute; /* stands before an element and is none itself */
};

/* Embedded; resp_init() starts it anew. */
struct resp_reader {
	uint64_t bulk_max, payload_left, elements;
	uint32_t line_bytes; /* seen of the current line */
	uint8_t state, depth;
	bool push;     /* the reply being read is a push */
	bool carriage; /* the last byte was a carriage return */
	char line[RESP_TEXT_MAX];
	struct resp_frame frames[RESP_DEPTH_MAX];
};

/* A longer bulk string than bulk_max is refused. */
void resp_init(struct resp_reader *reader, uint64_t bulk_max);

/* Take bytes up to the next item; *ret_used says how many. 1: *ret_item is set; 0: all were used
 * and there is none yet; -EPROTO: not RESP, or beyond a limit. The reader is then spent. */
SSV_MUST_CHECK int resp_read(struct resp_reader *reader, const char *data, size_t bytes,
			     size_t *ret_used, struct resp_item *ret_item);

/* Bytes of the current bulk string that are still to come. */
uint64_t resp_payload_left(const struct resp_reader *reader);
/* The caller received that many of them itself. */
void resp_payload_taken(struct resp_reader *reader, uint64_t bytes);

/* Commands: arrays of bulk strings in the caller's buffer. */
struct resp_writer {
	char *text;
	size_t bytes, bytes_max;
	bool overflow;
};

void resp_write_array(struct resp_writer *writer, uint32_t count);
void resp_write_bulk(struct resp_writer *writer, const void *data, size_t bytes);
void resp_write_text(struct resp_writer *writer, const char *text);
void resp_write_number(struct resp_writer *writer, uint64_t number);
/* The header of a bulk string whose bytes and "\r\n" the caller sends itself. */
void resp_write_bulk_header(struct resp_writer *writer, uint64_t bytes);

#endif
