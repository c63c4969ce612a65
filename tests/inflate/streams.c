/* SPDX-License-Identifier: Apache-2.0 */
/* streams.c - see streams.h. */
#include "streams.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/base.h"
#include "inflate/inflate.h"

uint64_t streams_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

/* About 2.8 bits, as classes of the standard tier. */
static uint8_t symbol(uint64_t *state)
{
	return (uint8_t)__builtin_popcountll(streams_random(state) & 0xfff);
}

void stream_make(struct stream *stream, enum stream_kind kind, uint32_t out_bytes, uint64_t seed)
{
	static const int strategies[] = {Z_HUFFMAN_ONLY, Z_DEFAULT_STRATEGY, Z_FIXED,
					 Z_DEFAULT_STRATEGY};
	z_stream z = {0};
	uLong bound;

	stream->out_bytes = out_bytes;
	stream->out = malloc(out_bytes);
	ssv_assert(stream->out);
	for (uint32_t i = 0; i < out_bytes; i++)
		stream->out[i] = (uint8_t)(symbol(&seed) | symbol(&seed) << 4);
	ssv_assert(deflateInit2(&z, kind == STREAM_STORED ? 0 : 6, Z_DEFLATED, -15, 9,
				strategies[kind]) == Z_OK);
	bound = deflateBound(&z, out_bytes) + 64;
	stream->in = calloc(1, bound + INFLATE_IN_SLACK);
	ssv_assert(stream->in);
	z.next_in = stream->out;
	z.avail_in = out_bytes;
	z.next_out = stream->in;
	z.avail_out = (uInt)bound;
	ssv_assert(deflate(&z, Z_FINISH) == Z_STREAM_END);
	stream->in_bytes = (uint32_t)z.total_out;
	deflateEnd(&z);
}

void stream_free(struct stream *stream)
{
	free(stream->in);
	free(stream->out);
}
