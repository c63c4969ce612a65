/* SPDX-License-Identifier: Apache-2.0 */
/* fixture.c - see fixture.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "codec/float.h"
#include "fixture.h"

#define GUARD_BYTES 64u
#define GUARD_VALUE 0xa5

uint64_t test_seed(void)
{
	const char *text = getenv("SSV_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : 20261123;

	print_message("SSV_SEED=%llu\n", (unsigned long long)seed);
	return seed;
}

uint32_t random_next(struct random *random)
{
	uint64_t z = random->state += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return (uint32_t)((z ^ z >> 31) >> 32);
}

uint32_t random_below(struct random *random, uint32_t limit)
{
	return (uint32_t)((uint64_t)random_next(random) * limit >> 32);
}

float random_normal(struct random *random)
{
	float sum = 0;

	for (int i = 0; i < 6; i++)
		sum += (float)(random_next(random) >> 8) * 0x1p-24f - .5f;
	return sum * 1.41421356f;
}

struct chunk_shape test_shape(uint8_t dtype, uint32_t heads, uint32_t dim, uint32_t tokens)
{
	struct chunk_shape shape = {.dtype = dtype,
				    .parts_count = 2,
				    .tokens = (uint16_t)tokens,
				    .layers_count = 2,
				    .layers_total = 2,
				    .ranks_count = 1};

	for (uint32_t p = 0; p < 2; p++) {
		shape.parts[p].role = p ? SSV_ROLE_V : SSV_ROLE_K;
		shape.parts[p].heads = (uint16_t)heads;
		shape.parts[p].dim = (uint16_t)dim;
	}
	return shape;
}

float element_value(uint8_t dtype, const uint8_t *elements, uint64_t index)
{
	switch (dtype) {
	case SSV_DTYPE_BF16:
		return f32_from_bf16(load_le16(elements + 2 * index));
	case SSV_DTYPE_FP16:
		return f32_from_fp16(load_le16(elements + 2 * index));
	case SSV_DTYPE_FP32:
		return f32_of(load_le32(elements + 4 * index));
	case SSV_DTYPE_E4M3:
		return f32_from_e4m3(elements[index]);
	default:
		return f32_from_e5m2(elements[index]);
	}
}

void element_store(uint8_t dtype, uint8_t *elements, uint64_t index, float value)
{
	switch (dtype) {
	case SSV_DTYPE_BF16:
		store_le16(elements + 2 * index, bf16_from_f32(value));
		break;
	case SSV_DTYPE_FP16:
		store_le16(elements + 2 * index, fp16_from_f32(value));
		break;
	case SSV_DTYPE_FP32:
		store_le32(elements + 4 * index, f32_bits(value));
		break;
	case SSV_DTYPE_E4M3:
		elements[index] = e4m3_from_f32(value);
		break;
	default:
		elements[index] = e5m2_from_f32(value);
		break;
	}
}

/* One tensor of keys or values, roughly as models make them. */
static void fill_kv(struct random *random, const struct chunk_shape *shape, uint32_t part,
		    uint8_t *tensor)
{
	uint32_t channels = part_channels(&shape->parts[part]), tokens = shape->tokens;
	int key = shape->parts[part].role != SSV_ROLE_V;

	for (uint32_t c = 0; c < channels; c++) {
		float spread = .3f + (float)random_below(random, 100) * .01f;
		float mean = key ? random_normal(random) * .6f : 0;
		float keep = key ? (float)random_below(random, 95) * .01f : .1f;
		float x = random_normal(random);

		if (key && c % 61 == 7)
			mean *= 12;
		for (uint32_t t = 0; t < tokens; t++) {
			x = keep * x + (1 - keep) * 1.5f * random_normal(random);
			element_store(shape->dtype, tensor, (uint64_t)t * channels + c,
				      mean + spread * x);
		}
	}
}

static void fill_special(struct random *random, const struct chunk_shape *shape, uint64_t count,
			 uint8_t *tensor)
{
	static const uint32_t special[] = {0x7fc00000, 0x7f800000, 0xff800000, 0x80000000,
					   0x00000001, 0x3f800000, 0x7f7fffff, 0xc77fe000};

	for (uint64_t i = 0; i < 1 + count / 100; i++)
		element_store(shape->dtype, tensor, random_below(random, (uint32_t)count),
			      f32_of(special[random_below(random, ARRAY_COUNT(special))]));
}

static void fill(struct random *random, const struct chunk_shape *shape, uint32_t part,
		 enum content content, uint8_t *tensor)
{
	uint64_t bytes = shape_tensor_bytes(shape, part);
	uint64_t count = bytes / dtype_bytes(shape->dtype);
	uint32_t channels = part_channels(&shape->parts[part]);

	switch (content) {
	case CONTENT_KV:
		fill_kv(random, shape, part, tensor);
		break;
	case CONTENT_SPECIAL:
		fill_kv(random, shape, part, tensor);
		fill_special(random, shape, count, tensor);
		break;
	case CONTENT_CONSTANT:
		for (uint64_t i = 0; i < count; i++)
			element_store(shape->dtype, tensor, i, (float)(i % channels % 17) - 3);
		break;
	case CONTENT_BITS:
		for (uint64_t i = 0; i < bytes; i++)
			tensor[i] = (uint8_t)random_next(random);
		break;
	default:
		break;
	}
}

uint8_t *test_elements(const struct chunk_shape *shape, enum content content, uint64_t seed)
{
	struct random random = {seed};
	uint8_t *elements = calloc(1, shape_kv_bytes(shape)), *tensor = elements;

	assert_non_null(elements);
	for (uint32_t i = 0; i < shape_tensors(shape); i++) {
		fill(&random, shape, i % shape->parts_count, content, tensor);
		tensor += shape_tensor_bytes(shape, i % shape->parts_count);
	}
	return elements;
}

void test_codec_open(struct test_codec *codec)
{
	uint64_t bytes = codec_scratch_bytes(SSV_CHANNELS_MAX);

	codec->scratch = aligned_alloc(CACHE_LINE_BYTES, bytes);
	assert_non_null(codec->scratch);
	memset(codec->scratch, 0x5a, bytes);
	assert_int_equal(codec_scratch_init(codec->scratch, bytes, SSV_CHANNELS_MAX), 0);
}

void test_codec_close(struct test_codec *codec)
{
	codec_scratch_fini(codec->scratch);
	free(codec->scratch);
}

int test_scratch_open(void **state)
{
	static struct test_codec codec;

	test_codec_open(&codec);
	*state = &codec;
	return 0;
}

int test_scratch_close(void **state)
{
	test_codec_close(*state);
	return 0;
}

struct test_chunk test_encode(struct test_codec *codec, const struct chunk_shape *shape,
			      const struct encode_options *options, const uint8_t *elements)
{
	uint64_t capacity = shape_container_bytes_max(shape) + CONTAINER_SLACK_BYTES;
	struct chunk_identity identity = {.first_token = 512, .model = {1, 2, 3}};
	struct test_chunk chunk = {.bytes = calloc(1, capacity)};
	struct encoder encoder;

	assert_non_null(chunk.bytes);
	memset(identity.key.bytes, 7, sizeof(identity.key.bytes));
	assert_int_equal(encoder_begin(&encoder, &identity, shape, options, chunk.bytes, capacity,
				       codec->scratch),
			 0);
	for (uint32_t i = 0; i < shape_tensors(shape); i++) {
		assert_int_equal(encoder_tensor(&encoder, elements), 0);
		elements += shape_tensor_bytes(shape, i % shape->parts_count);
	}
	assert_int_equal(encoder_finish(&encoder, &chunk.bytes_count), 0);
	assert_true(chunk.bytes_count <= capacity - CONTAINER_SLACK_BYTES);
	/* exactly value and slack, so that a read past it is found */
	chunk.bytes = realloc(chunk.bytes, chunk.bytes_count + CONTAINER_SLACK_BYTES);
	assert_non_null(chunk.bytes);
	return chunk;
}

void test_open(const struct test_chunk *chunk, struct container *ret_container)
{
	struct container_expect expect = {
	    .value_bytes = chunk->bytes_count, .first_token = -1, .any_key = 1};
	enum container_fault fault;
	int err = container_open(ret_container, chunk->bytes, chunk->bytes_count, &expect, &fault);

	if (err)
		print_error("refused: %s\n", container_fault_text(fault));
	assert_int_equal(err, 0);
}

/* The tensors of one entry, decoded side by side, each between guards. */
static int decode_entry(struct test_codec *codec, const struct container *container, uint32_t index,
			uint8_t *out, enum container_fault *ret_fault)
{
	const struct chunk_shape *shape = &container->header.shape;
	uint32_t element = dtype_bytes(shape->dtype);
	struct decode_target targets[ENTRY_TENSORS_MAX];
	uint8_t *token[ENTRY_TENSORS_MAX][SSV_CHUNK_TOKENS];
	uint8_t *memory[ENTRY_TENSORS_MAX];
	static uint32_t channel[SSV_CHANNELS_MAX];
	struct container_entry entry;
	int err;

	container_entry(container, index, &entry);
	for (uint32_t c = 0; c < SSV_CHANNELS_MAX; c++)
		channel[c] = c * element;
	for (uint32_t t = 0; t < entry.tensors_count; t++) {
		uint32_t tensor = entry.layer * shape->parts_count + entry.part + t;
		uint32_t part = tensor % shape->parts_count;
		uint64_t row = part_channels(&shape->parts[part]) * (uint64_t)element;

		memory[t] = malloc(row * shape->tokens + 2 * (uint64_t)GUARD_BYTES);
		assert_non_null(memory[t]);
		memset(memory[t], GUARD_VALUE, row * shape->tokens + 2 * (uint64_t)GUARD_BYTES);
		memcpy(memory[t] + GUARD_BYTES, out, row * shape->tokens);
		for (uint32_t i = 0; i < shape->tokens; i++)
			token[t][i] = memory[t] + GUARD_BYTES + i * row;
		targets[t] =
		    (struct decode_target){.token = token[t],
					   .channel = channel,
					   .run_channels = part_channels(&shape->parts[part])};
	}
	err = segment_decode(container, index, targets, codec->scratch, ret_fault);
	for (uint32_t t = 0; t < entry.tensors_count; t++) {
		uint32_t tensor = entry.layer * shape->parts_count + entry.part + t;
		uint64_t bytes = shape_tensor_bytes(shape, tensor % shape->parts_count);

		for (uint32_t i = 0; i < GUARD_BYTES; i++) {
			assert_int_equal(memory[t][i], GUARD_VALUE);
			assert_int_equal(memory[t][GUARD_BYTES + bytes + i], GUARD_VALUE);
		}
		memcpy(out, memory[t] + GUARD_BYTES, bytes);
		out += bytes;
		free(memory[t]);
	}
	return err;
}

int test_decode(struct test_codec *codec, const struct container *container, uint8_t *out,
		enum container_fault *ret_fault)
{
	const struct chunk_shape *shape = &container->header.shape;

	for (uint32_t i = 0; i < container->header.segments_count; i++) {
		struct container_entry entry;
		uint64_t offset = 0;
		int err;

		container_entry(container, i, &entry);
		for (uint32_t t = 0; t < (uint32_t)entry.layer * shape->parts_count + entry.part;
		     t++)
			offset += shape_tensor_bytes(shape, t % shape->parts_count);
		err = decode_entry(codec, container, i, out + offset, ret_fault);
		if (err)
			return err;
	}
	return 0;
}
