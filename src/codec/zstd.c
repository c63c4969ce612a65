/* SPDX-License-Identifier: Apache-2.0 */
/*
 * zstd.c - the zstd back end: class pairs as one Zstandard frame (RFC 8878).
 *
 * Parameters are chosen for Huffman-coded literals; matches are looked for as little as the library
 * allows. Both contexts live in scratch memory.
 */
#define ZSTD_STATIC_LINKING_ONLY /* contexts in memory of ours */
#include <zstd.h>

#include <errno.h>

#include "base/crc.h"
#include "codec/strips.h"
#include "codec/symbols.h"

static const ZSTD_compressionParameters parameters = {
    .windowLog = 17,
    .chainLog = 6,
    .hashLog = 8,
    .searchLog = 1,
    .minMatch = 7,
    .targetLength = 64,
    .strategy = ZSTD_fast,
};

static uint64_t encode_bytes(void)
{
	return align_up(ZSTD_estimateCCtxSize_usingCParams(parameters), CACHE_LINE_BYTES);
}

static uint64_t zstd_arena_bytes(void)
{
	return encode_bytes() + ZSTD_estimateDCtxSize() + 2 * CACHE_LINE_BYTES;
}

static int set_parameters(ZSTD_CCtx *encode)
{
	const struct {
		ZSTD_cParameter name;
		int value;
	} settings[] = {
	    {ZSTD_c_windowLog, (int)parameters.windowLog},
	    {ZSTD_c_chainLog, (int)parameters.chainLog},
	    {ZSTD_c_hashLog, (int)parameters.hashLog},
	    {ZSTD_c_searchLog, (int)parameters.searchLog},
	    {ZSTD_c_minMatch, (int)parameters.minMatch},
	    {ZSTD_c_targetLength, (int)parameters.targetLength},
	    {ZSTD_c_strategy, (int)parameters.strategy},
	    {ZSTD_c_literalCompressionMode, ZSTD_ps_enable},
	};

	for (uint32_t i = 0; i < ARRAY_COUNT(settings); i++)
		if (ZSTD_isError(
			ZSTD_CCtx_setParameter(encode, settings[i].name, settings[i].value)))
			return -EINVAL;
	return 0;
}

static int zstd_init(struct codec_scratch *scratch)
{
	uint64_t bytes = encode_bytes();
	void *encode = arena_take(&scratch->arena, bytes);
	void *decode = arena_take(&scratch->arena, ZSTD_estimateDCtxSize());

	if (!encode || !decode)
		return -ENOMEM;
	scratch->zstd_encode = ZSTD_initStaticCCtx(encode, bytes);
	scratch->zstd_decode = ZSTD_initStaticDCtx(decode, ZSTD_estimateDCtxSize());
	if (!scratch->zstd_encode || !scratch->zstd_decode)
		return -ENOMEM;
	return set_parameters(scratch->zstd_encode);
}

static int zstd_encode(struct codec_scratch *scratch, const struct class_plane *plane,
		       const uint8_t *frequency, uint8_t *out, uint64_t room,
		       struct class_result *ret_result)
{
	uint32_t bytes = class_pairs_bytes(plane);
	size_t written;

	(void)frequency;
	class_pairs_pack(plane, scratch->packed);
	written = ZSTD_compress2(scratch->zstd_encode, out, room, scratch->packed, bytes);
	if (ZSTD_isError(written))
		return -E2BIG;
	ret_result->bytes_count = (uint32_t)written;
	ret_result->streams_count = 1;
	ret_result->class_crc = crc32_iso(0, scratch->packed, bytes);
	return 0;
}

static int zstd_decode(struct codec_scratch *scratch, const struct class_source *source,
		       const uint8_t *frequency, struct class_plane *plane)
{
	size_t produced;

	(void)frequency;
	if (source->pairs_bytes > scratch->pairs_bytes)
		return -EBADMSG;
	produced = ZSTD_decompressDCtx(scratch->zstd_decode, scratch->pairs, source->pairs_bytes,
				       source->bytes, source->bytes_count);
	if (ZSTD_isError(produced) || produced != source->pairs_bytes ||
	    crc32_iso(0, scratch->pairs, produced) != source->class_crc)
		return -EBADMSG;
	class_pairs_unpack(plane, scratch->pairs);
	return 0;
}

static int zstd_open_strips(struct codec_scratch *scratch, const struct class_source *source,
			    const uint8_t *frequency, struct class_plane *plane)
{
	strips_open_plane(scratch->strips, plane);
	return zstd_decode(scratch, source, frequency, plane);
}

/* Both contexts are plain memory of the arena. */
const struct lossless_ops lossless_zstd = {
    .name = "zstd",
    .codec = SSV_CODEC_ZSTD,
    .has_classes = 1,
    .tensors_max = 1,
    .encode = zstd_encode,
    .decode = zstd_decode,
    .open_strips = zstd_open_strips,
    .arena_bytes = zstd_arena_bytes,
    .init = zstd_init,
    .fini = lossless_no_fini,
};
