/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_layout.c - decoding writes each wanted element to token[t] + channel[c] and nothing else,
 * whatever the layout: rows, runs of a head, transposed blocks, AMX tiles, scattered channels; with
 * every table of kernels that this machine runs.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "codec/kernels.h"
#include "craft.h"

#define BLOCK_TOKENS  16u /* of wanted and other tokens */
#define LAYOUTS_COUNT 5u
#define FILL          0xcc
#define GUARD         128u

/* A layout: where element (t, c) of a tensor lies in a region of `bytes`. */
struct layout {
	uint64_t bytes;
	uint64_t token[SSV_CHUNK_TOKENS];
	uint32_t channel[SSV_CHANNELS_MAX];
	uint32_t run_channels, token_stride;
};

/* [block][channel][token in block]: what vLLM's CPU kernels use for K. */
static void layout_transposed(struct layout *l, uint32_t tokens, uint32_t channels, uint32_t e,
			      uint32_t block)
{
	for (uint32_t t = 0; t < tokens; t++)
		l->token[t] = (uint64_t)(t / block) * channels * block * e + t % block * e;
	for (uint32_t c = 0; c < channels; c++)
		l->channel[c] = c * block * e;
	l->run_channels = 1;
	l->token_stride = e;
}

/* [block][16 tokens][pair of channels][token][2]: K of AMX tiles, for even channels. */
static void layout_tiles(struct layout *l, uint32_t tokens, uint32_t channels, uint32_t e)
{
	for (uint32_t t = 0; t < tokens; t++)
		l->token[t] = ((uint64_t)(t / 16) * (channels + 1) / 2 * 16 + t % 16) * 2 * e;
	for (uint32_t c = 0; c < channels; c++)
		l->channel[c] = (c / 2 * 32 + c % 2) * e;
	l->run_channels = channels % 2 ? 1 : 2;
	l->token_stride = 0;
}

/* [token][channel], whole cache lines where a row is some. */
static void layout_rows(struct layout *l, uint32_t tokens, uint32_t channels, uint32_t e)
{
	for (uint32_t t = 0; t < tokens; t++)
		l->token[t] = (uint64_t)t * channels * e;
	for (uint32_t c = 0; c < channels; c++)
		l->channel[c] = c * e;
	l->run_channels = channels;
	l->token_stride = 0;
}

/* [head][token][dim], blocks in reverse. */
static void layout_heads(struct layout *l, uint32_t tokens, uint32_t channels, uint32_t e,
			 uint32_t dim)
{
	for (uint32_t t = 0; t < tokens; t++)
		l->token[t] = (uint64_t)(tokens - 1 - t) * dim * e;
	for (uint32_t c = 0; c < channels; c++)
		l->channel[c] = (c / dim * tokens * dim + c % dim) * e;
	l->run_channels = dim;
	l->token_stride = 0;
}

/* Pairs of channels apart from one another, tokens in rows. */
static void layout_pairs(struct layout *l, uint32_t tokens, uint32_t channels, uint32_t e)
{
	for (uint32_t t = 0; t < tokens; t++)
		l->token[t] = (uint64_t)t * (channels + 2) * 2 * e;
	for (uint32_t c = 0; c < channels; c++)
		l->channel[c] = ((channels - 1 - c) / 2 * 4 + c % 2) * e;
	l->run_channels = 1 + (channels % 2 == 0);
	l->token_stride = 0;
}

static void choose_layout(struct layout *l, uint32_t kind, const struct chunk_shape *shape,
			  uint32_t part)
{
	uint32_t channels = part_channels(&shape->parts[part]);
	uint32_t element = dtype_bytes(shape->dtype);

	if (kind % LAYOUTS_COUNT == 0)
		layout_transposed(l, shape->tokens, channels, element, 16u << kind % 4);
	else if (kind % LAYOUTS_COUNT == 1)
		layout_heads(l, shape->tokens, channels, element, shape->parts[part].dim);
	else if (kind % LAYOUTS_COUNT == 2)
		layout_pairs(l, shape->tokens, channels, element);
	else if (kind % LAYOUTS_COUNT == 3)
		layout_tiles(l, shape->tokens, channels, element);
	else
		layout_rows(l, shape->tokens, channels, element);
	l->bytes = 0;
	for (uint32_t t = 0; t < shape->tokens; t++)
		for (uint32_t c = 0; c < channels; c++)
			if (l->token[t] + l->channel[c] + element > l->bytes)
				l->bytes = l->token[t] + l->channel[c] + element;
}

/* Decode entry `index` (one tensor) into the layout, wanted tokens only, and compare all bytes. */
static void check_entry(struct test_codec *codec, const struct container *container, uint32_t index,
			uint32_t kind, const uint8_t *expected, const uint8_t *wanted)
{
	static struct layout l;
	const struct chunk_shape *shape = &container->header.shape;
	uint8_t *token[SSV_CHUNK_TOKENS], *memory, *got, *want;
	struct container_entry entry;
	struct tensor_extent extent;
	enum container_fault fault;
	uint32_t channels, e = dtype_bytes(shape->dtype);

	container_entry(container, index, &entry);
	entry_extent(shape, &entry, 0, &extent);
	channels = part_channels(&shape->parts[entry.part]);
	choose_layout(&l, kind, shape, entry.part);
	/* aligned to a cache line, or not; guards behind */
	memory = aligned_alloc(CACHE_LINE_BYTES, align_up(l.bytes + GUARD, CACHE_LINE_BYTES));
	want = malloc(l.bytes + GUARD);
	got = memory + kind % 3 / 2 * 2 * e;
	memset(want, FILL, l.bytes + GUARD / 2);
	for (uint32_t t = 0; t < shape->tokens; t++) {
		token[t] = wanted[t] ? got + l.token[t] : NULL;
		for (uint32_t c = extent.channel0;
		     wanted[t] && c < extent.channel0 + extent.channels_count; c++)
			memcpy(want + l.token[t] + l.channel[c],
			       expected + ((size_t)t * channels + c) * e, e);
	}
	for (uint32_t level = 0; kernels_at(level); level++) {
		struct decode_target target = {.token = token,
					       .channel = l.channel,
					       .run_channels = l.run_channels,
					       .token_stride = l.token_stride};

		kernels_use(kernels_at(level));
		memset(got, FILL, l.bytes + GUARD / 2);
		assert_int_equal(segment_decode(container, index, &target, codec->scratch, &fault),
				 0);
		if (memcmp(got, want, l.bytes + GUARD / 2))
			print_error("kernels %s, layout %u\n", kernels_get()->name, kind);
		assert_memory_equal(got, want, l.bytes + GUARD / 2);
	}
	kernels_use(NULL);
	free(memory);
	free(want);
}

static void check_chunk(struct test_codec *codec, const struct test_chunk *chunk,
			const uint8_t *expected, struct random *random)
{
	uint8_t wanted[SSV_CHUNK_TOKENS];
	struct container container;

	test_open(chunk, &container);
	for (uint32_t i = 0; i < container.header.segments_count; i++) {
		const struct chunk_shape *shape = &container.header.shape;
		uint32_t style = random_below(random, 4);
		struct container_entry entry;
		uint64_t offset = 0;

		container_entry(&container, i, &entry);
		for (uint32_t t = 0; t < (uint32_t)entry.layer * 2 + entry.part; t++)
			offset += shape_tensor_bytes(shape, t % 2);
		for (uint32_t t = 0; t < SSV_CHUNK_TOKENS; t++) {
			const uint32_t styles[] = {1, 0, t / BLOCK_TOKENS % 2,
						   random_below(random, 2)};

			wanted[t] = (uint8_t)styles[style];
		}
		check_entry(codec, &container, i, random_below(random, 20), expected + offset,
			    wanted);
	}
}

static void every_layout_gets_its_elements(void **state)
{
	struct random random = {test_seed()};
	static const uint32_t dims[] = {64, 80, 96, 128, 40, 128};

	for (uint32_t i = 0; i < 150; i++) {
		struct craft craft = {.shape =
					  test_shape((uint8_t)(i % 5), 2 + random_below(&random, 3),
						     dims[random_below(&random, 6)],
						     64 + random_below(&random, 100)),
				      .codec = SSV_CODEC_R16,
				      .flags = (uint8_t)(random_below(&random, 8) * TENSOR_DELTA),
				      .exceptions = 100,
				      .verbatim_tokens = (uint8_t)(i % 2 * 4),
				      .tensors_an_entry = 1,
				      .groups_an_entry = i % 3,
				      .seed = random_next(&random)};
		struct test_chunk chunk;
		uint8_t *expected;

		chunk = craft_chunk(*state, &craft, &expected);
		check_chunk(*state, &chunk, expected, &random);
		free(chunk.bytes);
		free(expected);
	}
}

static void stored_entries_too(void **state)
{
	struct random random = {test_seed()};

	for (uint32_t i = 0; i < 40; i++) {
		struct chunk_shape shape =
		    test_shape((uint8_t)(i % 5), 1 + i % 3, 40 + i, 1 + random_below(&random, 64));
		struct encode_options options = {.tier = SSV_TIER_LOSSLESS,
						 .codec = SSV_CODEC_STORED};
		uint8_t *in = test_elements(&shape, CONTENT_BITS, i);
		struct test_chunk chunk = test_encode(*state, &shape, &options, in);

		check_chunk(*state, &chunk, in, &random);
		free(chunk.bytes);
		free(in);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(every_layout_gets_its_elements),
	    cmocka_unit_test(stored_entries_too),
	};

	return cmocka_run_group_tests(tests, test_scratch_open, test_scratch_close);
}
