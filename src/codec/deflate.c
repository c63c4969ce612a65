/* SPDX-License-Identifier: Apache-2.0 */
/*
 * deflate.c - the deflate back end: class pairs as one raw Deflate stream (RFC 1951), for hardware
 * that inflates and for readers without r16.
 *
 * Encoded by zlib with Huffman codes alone: matches make class pairs larger, and slower to read.
 * Inflated by libdeflate, whole, into a buffer whose size is known beforehand, so that a stream
 * that would inflate to more is refused without being followed.
 */
#include <errno.h>
#include <libdeflate.h>

#include "base/crc.h"
#include "codec/strips.h"
#include "codec/symbols.h"

#define WINDOW_BITS  15 /* no matches, but zlib slides its hash once a window */
#define MEMORY_LEVEL 9  /* 32 Ki literals a block */

/* zlib's own formula for its buffers, doubled, and its state. */
static uint64_t deflate_arena_bytes(void)
{
	return 2 * ((UINT64_C(1) << (WINDOW_BITS + 2)) + (UINT64_C(1) << (MEMORY_LEVEL + 9))) +
	       64 * KIB;
}

static void *take_items(void *arena, unsigned int items, unsigned int size)
{
	return arena_take(arena, (uint64_t)items * size);
}

static void keep_items(void *arena, void *items)
{
	(void)arena;
	(void)items;
}

static int deflate_init(struct codec_scratch *scratch)
{
	z_stream *z = &scratch->deflate;

	z->zalloc = take_items;
	z->zfree = keep_items;
	z->opaque = &scratch->arena;
	if (deflateInit2(z, 1, Z_DEFLATED, -WINDOW_BITS, MEMORY_LEVEL, Z_HUFFMAN_ONLY) != Z_OK)
		return -ENOMEM;
	scratch->inflate = libdeflate_alloc_decompressor();
	return scratch->inflate ? 0 : -ENOMEM;
}

static void deflate_fini(struct codec_scratch *scratch)
{
	(void)deflateEnd(&scratch->deflate);
	libdeflate_free_decompressor(scratch->inflate);
	scratch->inflate = NULL;
}

static int deflate_encode(struct codec_scratch *scratch, const struct class_plane *plane,
			  const uint8_t *frequency, uint8_t *out, uint64_t room,
			  struct class_result *ret_result)
{
	z_stream *z = &scratch->deflate;
	uint32_t bytes = class_pairs_bytes(plane);

	(void)frequency;
	class_pairs_pack(plane, scratch->packed);
	if (deflateReset(z) != Z_OK)
		return -EINVAL;
	z->next_in = scratch->packed;
	z->avail_in = bytes;
	z->next_out = out;
	z->avail_out = (uInt)u64_min(room, UINT32_MAX);
	if (deflate(z, Z_FINISH) != Z_STREAM_END)
		return -E2BIG;
	ret_result->bytes_count = (uint32_t)(z->next_out - out);
	ret_result->streams_count = 1;
	ret_result->class_crc = crc32_iso(0, scratch->packed, bytes);
	return 0;
}

static int pairs_check(const uint8_t *pairs, const struct class_source *source)
{
	return crc32_iso(0, pairs, source->pairs_bytes) == source->class_crc ? 0 : -EBADMSG;
}

/* Inflate the classes of all the entry's tensors. */
static int inflate_pairs(struct codec_scratch *scratch, const struct class_source *source)
{
	size_t consumed, produced;

	if (source->pairs_bytes > scratch->pairs_bytes)
		return -EBADMSG;
	if (libdeflate_deflate_decompress_ex(scratch->inflate, source->bytes, source->bytes_count,
					     scratch->pairs, source->pairs_bytes, &consumed,
					     &produced) != LIBDEFLATE_SUCCESS)
		return -EBADMSG;
	if (consumed != source->bytes_count || produced != source->pairs_bytes)
		return -EBADMSG;
	return pairs_check(scratch->pairs, source);
}

static int deflate_decode(struct codec_scratch *scratch, const struct class_source *source,
			  const uint8_t *frequency, struct class_plane *plane)
{
	const uint8_t *pairs = source->pairs ? source->pairs : scratch->pairs;
	int err = 0;

	(void)frequency;
	if (!source->pairs_offset)
		err = source->pairs ? pairs_check(pairs, source) : inflate_pairs(scratch, source);
	if (!err)
		class_pairs_unpack(plane, pairs + source->pairs_offset);
	return err;
}

static int deflate_open_strips(struct codec_scratch *scratch, const struct class_source *source,
			       const uint8_t *frequency, struct class_plane *plane)
{
	strips_open_plane(scratch->strips, plane);
	return deflate_decode(scratch, source, frequency, plane);
}

const struct lossless_ops lossless_deflate = {
    .name = "deflate",
    .codec = SSV_CODEC_DEFLATE,
    .has_classes = 1,
    .tensors_max = ENTRY_TENSORS_MAX,
    .encode = deflate_encode,
    .decode = deflate_decode,
    .open_strips = deflate_open_strips,
    .arena_bytes = deflate_arena_bytes,
    .init = deflate_init,
    .fini = deflate_fini,
};
