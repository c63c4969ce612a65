/* SPDX-License-Identifier: Apache-2.0 */
/*
 * streams.h - raw Deflate streams of known content, made by zlib in the ways that it has, for the
 * tests and the measurement of inflate engines.
 */
#ifndef SSV_TEST_STREAMS_H
#define SSV_TEST_STREAMS_H

#include <stdint.h>

enum stream_kind {
	STREAM_HUFFMAN, /* as the codec writes them: Huffman codes alone */
	STREAM_MATCHES,
	STREAM_FIXED,
	STREAM_STORED,
	STREAM_KINDS
};

struct stream {
	uint8_t *in;  /* with room for INFLATE_IN_SLACK behind in_bytes */
	uint8_t *out; /* what it inflates to */
	uint32_t in_bytes, out_bytes;
};

uint64_t streams_random(uint64_t *state);

/* Content like class pairs of quantised KV: two small normal numbers a byte. */
void stream_make(struct stream *stream, enum stream_kind kind, uint32_t out_bytes, uint64_t seed);
void stream_free(struct stream *stream);

#endif
