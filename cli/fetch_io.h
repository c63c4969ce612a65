/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fetch_io.h - chunks fetched through a daemon into a region of this process.
 *
 * The region is a sealed memfd of blocks of FETCH_BLOCK_TOKENS tokens, tensor by tensor, each block
 * [token][head][dim]: what an engine with shared memory registers. A fetch is one chunk or several
 * that follow one another.
 */
#ifndef SSV_CLI_FETCH_IO_H
#define SSV_CLI_FETCH_IO_H

#include "chunk/shape.h"
#include "shadowserve.h"

#define FETCH_BLOCK_TOKENS 16u
#define FETCH_CHUNK_BLOCKS (SSV_CHUNK_TOKENS / FETCH_BLOCK_TOKENS)

struct fetch_io {
	struct ssv *ssv;
	struct chunk_shape shape;
	uint8_t *memory;
	uint64_t memory_bytes;
	uint32_t region_id, blocks_count;
};

/* Connect and register blocks_count blocks for chunks of this shape (256 tokens) and model. Returns
 * 0, or the exit code of an error that was printed under the command's name. */
int fetch_io_open(struct fetch_io *io, const char *command, const char *socket,
		  const struct chunk_shape *shape, const uint8_t model[8], uint32_t blocks_count);
void fetch_io_close(struct fetch_io *io);

/* Ask for the chunks at keys, the first of which begins at `position`, into FETCH_CHUNK_BLOCKS
 * blocks each. Returns 0 or a negative errno. */
int fetch_io_submit(struct fetch_io *io, const struct ssv_key *keys, uint32_t keys_count,
		    uint32_t position, const uint32_t *blocks, uint64_t user_data,
		    uint32_t deadline_ms);

/* Store the chunk in these blocks; then wait until the store has taken all of them. */
int fetch_io_store(struct fetch_io *io, const struct ssv_key *key, uint32_t position,
		   const uint32_t *blocks, uint64_t user_data, uint8_t tier, uint8_t codec);
int fetch_io_flush(struct fetch_io *io, uint64_t user_data, uint32_t deadline_ms);

/* Wait for one completion, through interruptions (a stopped process goes on where it was). Returns
 * 0, -ETIMEDOUT or what ssv_poll() says. */
int fetch_io_wait(struct ssv *ssv, struct ssv_completion *ret_completion, uint64_t timeout_ms);

/* A token's elements of one tensor (layer x parts + part) in a block. */
uint8_t *fetch_io_token(const struct fetch_io *io, uint32_t tensor, uint32_t block, uint32_t token);

#endif
