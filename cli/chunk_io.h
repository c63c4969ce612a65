/* SPDX-License-Identifier: Apache-2.0 */
/*
 * chunk_io.h - whole chunks for commands: from a file or a store, decoded to canonical order.
 *
 * The same container_open() and segment_decode() as the data plane; only the destination differs.
 */
#ifndef SSV_CLI_CHUNK_IO_H
#define SSV_CLI_CHUNK_IO_H

#include "codec/codec.h"

struct chunk_io {
	void *scratch; /* codec_scratch_init() */
	/* Rows of the tensors of one entry. */
	uint8_t *tokens[ENTRY_TENSORS_MAX][SSV_CHUNK_TOKENS];
	uint32_t channels[SSV_CHANNELS_MAX];
	uint8_t *elements; /* of the last decode, [layer][part][token][channel] */
	uint64_t elements_capacity;
};

void chunk_io_init(struct chunk_io *io);
void chunk_io_fini(struct chunk_io *io);

/* Verify and decode every segment into io->elements. 0, or -EBADMSG or -ENOTSUP with its reason. */
int chunk_io_decode(struct chunk_io *io, const struct container *container,
		    enum container_fault *ret_fault);

/* Open as found under key (NULL: any key); shape, model, position and tier may be any. */
int chunk_io_open(struct container *container, const uint8_t *bytes, uint64_t bytes_count,
		  const struct ssv_key *key, enum container_fault *ret_fault);

/* A file's bytes with the container's slack behind; *ret_bytes is owned, free(). */
int chunk_io_read_file(const char *path, uint8_t **ret_bytes, uint64_t *ret_count);

#endif
