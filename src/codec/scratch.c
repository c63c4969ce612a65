/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scratch.c - lays the caller's scratch memory out, and opens what the back ends keep in it.
 */
#include "codec/scratch.h"

#include <errno.h>
#include <string.h>

#include "codec/codec.h"
#include "codec/lossless.h"
#include "codec/strips.h"

#define ELEMENT_BYTES_MAX 4u
#define TILE_ELEMENTS     (SSV_CHUNK_TOKENS * LANES)

static uint64_t groups_of(uint32_t channels)
{
	return (channels + LANES - 1) / LANES;
}

static uint64_t pairs_bytes(uint64_t groups)
{
	uint64_t tensor = groups * SSV_CHUNK_TOKENS * LANES / 2;

	return u64_min(tensor * ENTRY_TENSORS_MAX, PAIRS_BYTES_MAX);
}

static uint64_t arena_bytes(void)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; lossless_at(i); i++)
		bytes += align_up(lossless_at(i)->arena_bytes(), CACHE_LINE_BYTES);
	return bytes;
}

/* Take every buffer from the arena; with a NULL base only its size is counted. */
static void lay_out(struct codec_scratch *s, struct arena *arena, uint32_t channels_max)
{
	uint64_t groups = groups_of(channels_max);
	uint64_t elements = groups * TILE_ELEMENTS;

	s->channels_max = channels_max;
	s->groups_max = (uint32_t)groups;
	s->pairs_bytes = (uint32_t)pairs_bytes(groups);
	s->exceptions_bytes = elements / 2;
	s->classes = arena_take(arena, elements);
	s->pairs = arena_take(arena, s->pairs_bytes + CACHE_LINE_BYTES);
	s->packed = arena_take(arena, elements / 2);
	s->strips = arena_take(arena, sizeof(*s->strips));
	s->strip_classes = arena_take(arena, R16_STREAMS_MAX * STRIP_TOKENS_MAX * LANES);
	s->tile = arena_take(arena, STRIP_TOKENS_MAX * LANES * ELEMENT_BYTES_MAX);
	s->patches = arena_take(arena, R16_STREAMS_MAX * (PATCHES_MAX + 1) * sizeof(*s->patches));
	s->held = arena_take(arena, SSV_CHUNK_TOKENS * R16_STREAMS_MAX / 2 * FUSED_ROW_BYTES);
	s->exception_first = arena_take(arena, (groups + 1) * sizeof(*s->exception_first));
	s->raw_offset = arena_take(arena, (groups + 1) * sizeof(*s->raw_offset));
	s->token_run = arena_take(arena, SSV_CHUNK_TOKENS * sizeof(*s->token_run));
	s->integers = arena_take(arena, TILE_ELEMENTS * sizeof(*s->integers));
	s->symbols = arena_take(arena, TILE_ELEMENTS * sizeof(*s->symbols));
	s->targets = arena_take(arena, TILE_ELEMENTS * sizeof(*s->targets));
	s->exceptions = arena_take(arena, s->exceptions_bytes);
	s->position = arena_take(arena, channels_max * sizeof(*s->position));
	s->rows = arena_take(arena, SSV_CHUNK_TOKENS * sizeof(*s->rows));
	s->row_offset = arena_take(arena, channels_max * sizeof(*s->row_offset));
	s->streams = arena_take(arena, elements + R16_STREAMS_MAX * STREAM_EXTRA_BYTES);
	s->outside = arena_take(arena, SSV_CHUNK_TOKENS * sizeof(*s->outside));
	s->sum = arena_take(arena, channels_max * sizeof(*s->sum));
	s->square = arena_take(arena, channels_max * sizeof(*s->square));
	s->count = arena_take(arena, channels_max * sizeof(*s->count));
	s->power = arena_take(arena, channels_max * sizeof(*s->power));
	s->mean = arena_take(arena, channels_max * sizeof(*s->mean));
	s->peak = arena_take(arena, channels_max * sizeof(*s->peak));
	s->spread = arena_take(arena, channels_max * sizeof(*s->spread));
	s->steps = arena_take(arena, channels_max * sizeof(*s->steps));
	s->factor = arena_take(arena, channels_max);
	s->raw_bits = arena_take(arena, groups);
	s->frequency = arena_take(arena, groups * META_CLASSES);
	s->exponent = arena_take(arena, groups * META_CLASSES);
	s->offset = arena_take(arena, channels_max * sizeof(*s->offset));
	s->delta = arena_take(arena, channels_max);
}

uint64_t codec_scratch_bytes(uint32_t channels_max)
{
	struct arena arena = {.bytes_count = UINT64_MAX};
	struct codec_scratch s;

	(void)arena_take(&arena, sizeof(s));
	lay_out(&s, &arena, channels_max);
	return align_up(arena.used, CACHE_LINE_BYTES) + arena_bytes();
}

int codec_scratch_init(void *memory, uint64_t bytes, uint32_t channels_max)
{
	struct codec_scratch *s = memory;
	struct arena arena = {.bytes = memory, .bytes_count = bytes};
	uint32_t opened = 0;
	int err = 0;

	if (!channels_max || channels_max > SSV_CHANNELS_MAX ||
	    (uintptr_t)memory % CACHE_LINE_BYTES)
		return -EINVAL;
	if (bytes < codec_scratch_bytes(channels_max))
		return -E2BIG;
	memset(s, 0, sizeof(*s));
	(void)arena_take(&arena, sizeof(*s));
	lay_out(s, &arena, channels_max);
	s->arena = arena;
	while (!err && lossless_at(opened)) {
		err = lossless_at(opened)->init(s);
		opened += !err;
	}
	if (!err)
		return 0;
	while (opened--)
		lossless_at(opened)->fini(s);
	s->channels_max = 0; /* nothing is left for codec_scratch_fini() */
	return err;
}

void codec_scratch_fini(void *memory)
{
	struct codec_scratch *s = memory;

	if (!s || !s->channels_max)
		return;
	for (uint32_t i = 0; lossless_at(i); i++)
		lossless_at(i)->fini(s);
	s->channels_max = 0;
}
