/* SPDX-License-Identifier: Apache-2.0 */
/*
 * connection.h - the relay's end of one data connection: frames in, straight into the granted
 * memory; answers out.
 *
 * Nothing that the peer says is believed: each run is checked against the grant before a byte of
 * it is received. All of it runs on the receiver's thread; nothing blocks.
 */
#ifndef SSV_RELAY_CONNECTION_H
#define SSV_RELAY_CONNECTION_H

#include <stdatomic.h>
#include <sys/uio.h>

#include "base/base.h"
#include "deliver/tcp_frame.h"
#include "way.h"

struct grant {
	uint64_t epoch;
	uint8_t token[TCP_TOKEN_BYTES];
	uint8_t *map;
	uint64_t bytes;
	_Atomic int state;    /* enum grant_state */
	uint32_t connections; /* the receiver's thread alone */
	struct grant *next;
};

/* A READ that waits for its DATA. */
struct connection_read {
	uint64_t sequence, bytes;
	uint32_t runs_count;
	struct iovec runs[TCP_RUNS_MAX];
};

struct connection {
	int fd;
	struct grant *grant;  /* NULL: HELLO has not come */
	uint64_t deadline_ns; /* for HELLO */
	uint64_t host;        /* whence it came (stream/crowd.h) */
	uint64_t sequence;    /* of the frame begun last */
	uint64_t written;     /* last WRITE that is whole */
	uint64_t answered;    /* what the peer knows */
	uint64_t unanswered_bytes;

	/* The head of a frame as far as it has come; then its runs, as far as they are left. */
	uint8_t head[TCP_HEAD_BYTES_MAX];
	uint32_t head_bytes, ahead;
	struct iovec runs[TCP_RUNS_MAX + 1]; /* one more for the next head */
	uint32_t run, runs_count;
	uint64_t left;

	struct connection_read reads[TCP_READS_MAX]; /* ring */
	uint32_t reads_first, reads_count;
	struct tcp_answer answer;
	uint32_t answer_left; /* of it to be sent */
	uint32_t data_run;    /* of the first READ; */
	uint64_t data_left;   /* 0: none is being sent */
	int wants_out;
};

/* Finds the grant of a HELLO; NULL: no such epoch and token. */
struct grant *receiver_find(void *receiver, uint64_t epoch, const uint8_t *token);

/* What is there is received and answered. 0; 1: the peer closed; -EPROTO, -ECONNRESET ... with one
 * line in why (64 bytes). *ret_bytes: payload moved. */
SSV_MUST_CHECK int connection_work(struct connection *connection, void *receiver,
				   uint64_t *ret_bytes, char *why);

#endif
