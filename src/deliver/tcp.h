/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp.h - the "tcp" way's own structures: one connection of a worker to a region's relay.
 *
 * A lane belongs to one worker from its first job on; nothing of it is shared, so nothing is
 * locked. Frames leave in the order of the jobs and are answered in that order.
 */
#ifndef SSV_DELIVER_TCP_H
#define SSV_DELIVER_TCP_H

#include <sys/socket.h>

#include "deliver/deliver.h"
#include "deliver/tcp_frame.h"

#define TCP_FLIGHTS      64u
#define TCP_FLIGHT_BYTES (8 * MIB) /* sent and not answered, a lane */

/* A frame that was begun and is not answered. */
struct tcp_flight {
	struct deliver_job *job;
	uint64_t sequence, bytes;
	uint8_t *stage; /* READ: where its bytes go */
	uint8_t last;   /* of its job */
};

struct tcp_lane {
	struct region *region;
	struct tcp_lane *next; /* of the worker's lanes with jobs out */
	int fd;                /* -1: not connected */
	uint8_t listed, begun, broken;
	uint16_t worker;
	uint64_t epoch;
	uint64_t sequence;    /* of the frame begun last */
	uint64_t progress_ns; /* when anything moved last */

	/* Sending: the job that is being cut into frames, the frame that is on its way out. */
	struct deliver_queue waiting;
	struct deliver_job *cutting; /* NULL: none */
	uint32_t block, run;         /* next of it */
	uint8_t *stage;              /* its bytes, next frame's first */
	uint8_t *payload;
	uint64_t payload_left;
	uint32_t head_bytes, head_sent;
	uint8_t head[TCP_HEAD_BYTES_MAX];

	struct tcp_flight flights[TCP_FLIGHTS]; /* ring */
	uint32_t first, count, reads;
	uint64_t bytes; /* in flight */

	/* Receiving: an answer's head, then perhaps the bytes of a READ. */
	struct tcp_answer answer;
	uint32_t answer_bytes;
	uint8_t *data;
	uint64_t data_left;
};

/* What the way keeps of a region. */
struct tcp_region {
	struct sockaddr_storage address; /* the relay's data port */
	socklen_t address_bytes;
	uint32_t lanes_count;
	struct tcp_lane lanes[]; /* by worker */
};

/* tcp_lane.c. Finished jobs go to done, as they end. */
void tcp_lane_work(struct tcp_lane *lane, struct deliver_queue *done);
/* 1 while it has jobs. */
int tcp_lane_is_busy(const struct tcp_lane *lane);
/* 1 while bytes wait for the socket to take them. */
int tcp_lane_wants_out(const struct tcp_lane *lane);

#endif
