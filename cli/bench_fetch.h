/* SPDX-License-Identifier: Apache-2.0 */
/* bench_fetch.h - the two ways of `bench fetch` and what both report. */
#ifndef SSV_CLI_BENCH_FETCH_H
#define SSV_CLI_BENCH_FETCH_H

#include "store_io.h"

struct fetch_result {
	uint64_t chunks, misses, damaged, passed_over;
	uint64_t wire_bytes, kv_bytes, elapsed_ns;
	uint64_t decode_ns;   /* direct only */
	uint64_t *latency_ns; /* [chunks], owned, free() */
};

/* Through the daemon at socket (NULL: the usual one). Returns 0, or the exit code of an error that
 * was printed. */
int bench_daemon(struct store_io *store, const char *socket, uint64_t chunks_max, uint64_t lanes,
		 uint64_t timeout_ms, struct fetch_result *ret_result);

#endif
