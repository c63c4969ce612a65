/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_frame.h - the bytes of a data connection between the card and a relay (docs/remote.md).
 *
 * The card connects, one connection a region and worker, and says HELLO with the token that the
 * relay offered inside the TLS session. Then it sends frames: WRITE (runs, then their bytes) and
 * READ (runs). The relay answers in order: ACK says that every frame up to its number has been
 * written, DATA answers one READ and stands for an ACK of all frames before it. Little endian; the
 * payload is neither encrypted nor checksummed beyond TCP.
 */
#ifndef SSV_TCP_FRAME_H
#define SSV_TCP_FRAME_H

#include <assert.h>
#include <endian.h>

#include "base/base.h"

#define TCP_MAGIC           "ssv-dt\r\n"
#define TCP_VERSION         1
#define TCP_TOKEN_BYTES     32
#define TCP_RUNS_MAX        256u          /* of a frame */
#define TCP_FRAME_BYTES_MAX (16u << 20)   /* payload of a frame */
#define TCP_READS_MAX       8u            /* READs that wait for their DATA, a connection */
#define TCP_STALL_NS        5000000000ull /* without any progress, a side gives up */

enum tcp_kind {
	TCP_WRITE = 1,
	TCP_READ = 2,
	TCP_ACK = 3,
	TCP_DATA = 4,
};

struct tcp_offer { /* the blob of REGISTER */
	uint8_t magic[8];
	uint16_t version;
	uint16_t family; /* 4 or 6 */
	uint16_t port;
	uint16_t reserved;
	uint8_t address[16];
	uint64_t epoch; /* of this grant; never used again */
	uint8_t token[TCP_TOKEN_BYTES];
};

struct tcp_hello {
	uint8_t magic[8];
	uint16_t version, worker;
	uint32_t reserved;
	uint64_t epoch;
	uint8_t token[TCP_TOKEN_BYTES];
};

struct tcp_frame { /* then runs; WRITE: then bytes */
	uint32_t kind;
	uint32_t runs_count;
	uint64_t epoch;
	uint64_t sequence; /* 1, 2, 3 ... of a connection */
	uint64_t bytes;    /* of all runs */
};

struct tcp_run {
	uint64_t offset; /* from the region's start */
	uint32_t bytes;
	uint32_t reserved;
};

struct tcp_answer { /* DATA: then bytes */
	uint32_t kind;
	uint32_t reserved;
	uint64_t sequence;
	uint64_t bytes;
};

static_assert(sizeof(struct tcp_offer) == 72, "wire format");
static_assert(sizeof(struct tcp_hello) == 56, "wire format");
static_assert(sizeof(struct tcp_frame) == 32, "wire format");
static_assert(sizeof(struct tcp_run) == 16, "wire format");
static_assert(sizeof(struct tcp_answer) == 24, "wire format");

#define TCP_HEAD_BYTES_MAX (sizeof(struct tcp_frame) + TCP_RUNS_MAX * sizeof(struct tcp_run))

#endif
