/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lossless.c - the one place that names the back ends, and the names of codecs.
 */
#include "codec/lossless.h"

#include <string.h>

#include "codec/codec.h"

static const struct lossless_ops *const backends[] = {
    &lossless_stored,
    &lossless_deflate,
    &lossless_r16,
    &lossless_zstd,
};

const struct lossless_ops *lossless_at(uint32_t index)
{
	return index < ARRAY_COUNT(backends) ? backends[index] : NULL;
}

const struct lossless_ops *lossless_find(uint8_t codec)
{
	for (uint32_t i = 0; i < ARRAY_COUNT(backends); i++)
		if (backends[i]->codec == codec)
			return backends[i];
	return NULL;
}

const struct lossless_ops *lossless_of_wire(uint8_t wire_codec)
{
	if (wire_codec == WIRE_CODEC_TRELLIS)
		return &lossless_r16;
	return lossless_find((uint8_t)(wire_codec + 1));
}

uint64_t lossless_no_arena(void)
{
	return 0;
}

int lossless_no_init(struct codec_scratch *scratch)
{
	(void)scratch;
	return 0;
}

void lossless_no_fini(struct codec_scratch *scratch)
{
	(void)scratch;
}

void *arena_take(struct arena *arena, uint64_t bytes)
{
	uint64_t at = align_up(arena->used, CACHE_LINE_BYTES);

	if (bytes > arena->bytes_count || at > arena->bytes_count - bytes)
		return NULL;
	arena->used = at + bytes;
	return arena->bytes ? arena->bytes + at : NULL;
}

const char *codec_name(uint8_t codec)
{
	const struct lossless_ops *ops = lossless_find(codec);

	return ops ? ops->name : NULL;
}

const char *wire_codec_name(uint8_t wire_codec)
{
	if (wire_codec == WIRE_CODEC_TRELLIS)
		return "trellis"; /* of r16, and no back end to choose */
	return codec_name((uint8_t)(wire_codec + 1));
}

uint8_t codec_parse(const char *name)
{
	for (uint32_t i = 0; i < ARRAY_COUNT(backends); i++)
		if (!strcmp(backends[i]->name, name))
			return backends[i]->codec;
	return SSV_CODEC_DEFAULT;
}
