/* SPDX-License-Identifier: Apache-2.0 */
/* bench_fetch.h - the ways of `bench fetch`, and what all of them report. */
#ifndef SSV_CLI_BENCH_FETCH_H
#define SSV_CLI_BENCH_FETCH_H

#include "store_io.h"

struct fetch_result {
	uint64_t requests, chunks, misses, damaged, passed_over;
	uint64_t wire_bytes, kv_bytes, elapsed_ns;
	uint64_t decode_ns;   /* direct only */
	uint64_t *latency_ns; /* [requests], owned, free() */
};

struct daemon_options {
	const char *socket; /* NULL: the usual one */
	uint64_t count;     /* chunks */
	uint32_t lanes;     /* requests in flight */
	uint32_t batch;     /* chunks a request */
	uint32_t timeout_ms;
	uint8_t tier, codec; /* of made-up chunks; 0: the daemon's default */
	uint32_t made_up;    /* how many of them: a multiple of batch */
	uint16_t layers;     /* of them */
};

/* Through a daemon, into memory of this process: what `store` holds, or with NULL made-up chunks
 * that the daemon stores first. Returns 0, or the exit code of an error that was printed. */
int bench_daemon(const struct daemon_options *options, struct store_io *store,
		 struct fetch_result *ret_result);

#endif
