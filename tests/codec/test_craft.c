/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_craft.c - hand-built containers decode to what the format says, for meta that the encoder
 * does not write, and keep their values when they are transcoded.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "codec/transcode.h"
#include "craft.h"

static const struct {
	uint32_t heads, dim, tokens;
} shapes[] = {{1, 64, 64},  {2, 64, 256}, {3, 80, 40},  {2, 96, 130},
	      {4, 128, 33}, {1, 576, 64}, {2, 256, 50}, {5, 40, 100}};

static struct craft random_craft(struct random *random, uint8_t codec)
{
	uint32_t k = random_below(random, ARRAY_COUNT(shapes));
	struct craft craft = {.shape = test_shape((uint8_t)random_below(random, 5), shapes[k].heads,
						  shapes[k].dim, shapes[k].tokens),
			      .codec = codec,
			      .tensors_an_entry = 1,
			      .verbatim_tokens = (uint8_t)(random_below(random, 3) * 2),
			      .seed = random_next(random)};
	static const uint8_t offsets[] = {0, TENSOR_OFFSET_I8, TENSOR_OFFSET_I16};

	craft.flags =
	    (uint8_t)(offsets[random_below(random, 3)] | (random_below(random, 8) * TENSOR_DELTA));
	craft.exceptions = random_below(random, 2) * 200;
	craft.is_trellis = codec == SSV_CODEC_R16 && random_below(random, 2);
	if (!random_below(random, 3))
		craft.groups_an_entry = 1 + random_below(random, 3);
	return craft;
}

static void assert_decodes_to(struct test_codec *codec, const struct test_chunk *chunk,
			      const uint8_t *expected)
{
	struct container container;
	enum container_fault fault;
	uint64_t bytes;
	uint8_t *out;

	test_open(chunk, &container);
	bytes = shape_kv_bytes(&container.header.shape);
	out = calloc(1, bytes);
	assert_int_equal(test_decode(codec, &container, out, &fault), 0);
	assert_memory_equal(out, expected, bytes);
	free(out);
}

static void decodes_as_the_format_says(void **state)
{
	struct random random = {test_seed()};

	for (uint32_t i = 0; i < 400; i++) {
		uint8_t codec = lossless_at(i % 4)->codec, *expected;
		struct craft craft = random_craft(&random, codec);
		struct test_chunk chunk;

		if (!lossless_at(i % 4)->has_classes)
			continue;
		chunk = craft_chunk(*state, &craft, &expected);
		assert_decodes_to(*state, &chunk, expected);
		free(chunk.bytes);
		free(expected);
	}
}

static void several_tensors_share_a_deflate_entry(void **state)
{
	struct random random = {test_seed()};

	for (uint32_t count = 2; count <= ENTRY_TENSORS_MAX; count++) {
		struct craft craft = random_craft(&random, SSV_CODEC_DEFLATE);
		struct test_chunk chunk;
		uint8_t *expected;

		craft.groups_an_entry = 0;
		craft.tensors_an_entry = count;
		craft.exceptions = 300;
		craft.shape.layers_count = craft.shape.layers_total = 5;
		/* parts of different width in one entry */
		craft.shape.parts[1].heads = 1;
		chunk = craft_chunk(*state, &craft, &expected);
		assert_decodes_to(*state, &chunk, expected);
		free(chunk.bytes);
		free(expected);
	}
}

static struct test_chunk transcode(struct test_codec *codec, const struct test_chunk *chunk,
				   uint8_t to)
{
	struct test_chunk out = {0};
	struct container container;
	enum container_fault fault;
	uint64_t capacity;

	test_open(chunk, &container);
	capacity = shape_container_bytes_max(&container.header.shape) + CONTAINER_SLACK_BYTES;
	out.bytes = calloc(1, capacity);
	assert_int_equal(chunk_transcode(&container, to, out.bytes, capacity, codec->scratch,
					 &out.bytes_count, &fault),
			 0);
	out.bytes = realloc(out.bytes, out.bytes_count + CONTAINER_SLACK_BYTES);
	return out;
}

static void transcoding_keeps_crafted_values(void **state)
{
	struct random random = {test_seed()};

	for (uint32_t i = 0; i < 96; i++) {
		uint8_t from = lossless_at(i % 4)->codec, to = lossless_at(i / 4 % 4)->codec;
		struct craft craft = random_craft(&random, from);
		struct test_chunk chunk, other;
		uint8_t *expected;

		if (!lossless_at(i % 4)->has_classes)
			continue;
		if (from == SSV_CODEC_DEFLATE && i % 3 == 0) {
			craft.groups_an_entry = 0;
			craft.tensors_an_entry = 4;
		}
		chunk = craft_chunk(*state, &craft, &expected);
		other = transcode(*state, &chunk, to);
		assert_decodes_to(*state, &other, expected);
		free(chunk.bytes);
		free(other.bytes);
		free(expected);
	}
}

/* From any back end to any other and back: the same bytes, if nothing had to be stored. */
static void transcoding_back_gives_the_same_bytes(void **state)
{
	uint64_t seed = test_seed();

	for (uint32_t i = 0; i < 80; i++) {
		uint32_t from = i % 4, to = i / 4 % 4;
		struct chunk_shape shape = test_shape((uint8_t)(i % 3), 2, 64, 256);
		struct encode_options options = {.tier = (uint8_t)(1 + i / 16 % 5),
						 .codec = lossless_at(from)->codec,
						 .verbatim_tokens = i % 2 ? 4 : 0};
		struct test_chunk chunk, there, back;
		uint8_t *in = test_elements(&shape, CONTENT_KV, seed + i);

		if (options.tier != SSV_TIER_LOSSLESS &&
		    (!lossless_at(from)->has_classes || !lossless_at(to)->has_classes))
			options.tier = SSV_TIER_LOSSLESS;
		chunk = test_encode(*state, &shape, &options, in);
		there = transcode(*state, &chunk, lossless_at(to)->codec);
		back = transcode(*state, &there, lossless_at(from)->codec);
		assert_int_equal(chunk.bytes_count, back.bytes_count);
		assert_memory_equal(chunk.bytes, back.bytes, chunk.bytes_count);
		free(chunk.bytes);
		free(there.bytes);
		free(back.bytes);
		free(in);
	}
}

static void transcoding_refuses_what_it_must(void **state)
{
	struct test_codec *codec = *state;
	struct chunk_shape shape = test_shape(SSV_DTYPE_BF16, 2, 64, 256);
	struct encode_options options = {.tier = SSV_TIER_STANDARD, .codec = SSV_CODEC_R16};
	uint8_t *in = test_elements(&shape, CONTENT_KV, 1), *out = calloc(1, 1 << 20);
	struct test_chunk chunk = test_encode(codec, &shape, &options, in);
	struct container container;
	enum container_fault fault;
	uint64_t bytes;

	test_open(&chunk, &container);
	assert_int_equal(
	    chunk_transcode(&container, 99, out, 1 << 20, codec->scratch, &bytes, &fault), -EINVAL);
	assert_int_equal(
	    chunk_transcode(&container, SSV_CODEC_ZSTD, out, 1000, codec->scratch, &bytes, &fault),
	    -E2BIG);
	chunk.bytes[chunk.bytes_count - 1] ^= 1;
	assert_int_equal(chunk_transcode(&container, SSV_CODEC_ZSTD, out, 1 << 20, codec->scratch,
					 &bytes, &fault),
			 -EBADMSG);
	assert_int_equal(fault, CONTAINER_FAULT_SEGMENT_CRC);
	free(chunk.bytes);
	free(out);
	free(in);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(decodes_as_the_format_says),
	    cmocka_unit_test(several_tensors_share_a_deflate_entry),
	    cmocka_unit_test(transcoding_keeps_crafted_values),
	    cmocka_unit_test(transcoding_back_gives_the_same_bytes),
	    cmocka_unit_test(transcoding_refuses_what_it_must),
	};

	return cmocka_run_group_tests(tests, test_scratch_open, test_scratch_close);
}
