/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_steady.c - after codec_scratch_init() nothing allocates: encoding, decoding and transcoding
 * with every tier and back end, counted by an interposed malloc.
 *
 * Sanitizers interpose malloc themselves; under them the count is not taken.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "codec/lossless.h"
#include "codec/transcode.h"
#include "fixture.h"

static uint64_t allocations;

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *memory, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

__attribute__((visibility("default"))) void *malloc(size_t bytes)
{
	allocations++;
	return __libc_malloc(bytes);
}

__attribute__((visibility("default"))) void *calloc(size_t count, size_t bytes)
{
	allocations++;
	return __libc_calloc(count, bytes);
}

__attribute__((visibility("default"))) void *realloc(void *memory, size_t bytes)
{
	allocations++;
	return __libc_realloc(memory, bytes);
}

__attribute__((visibility("default"))) void *aligned_alloc(size_t alignment, size_t bytes)
{
	allocations++;
	return __libc_memalign(alignment, bytes);
}
#define COUNTED 1
#else
#define COUNTED 0
#endif

struct buffers {
	uint8_t *value, *other, *elements, *out;
	uint64_t capacity;
};

static int encode(const struct chunk_shape *shape, uint8_t tier, uint8_t codec, void *scratch,
		  const struct buffers *b, uint64_t *ret_bytes)
{
	struct chunk_identity identity = {.first_token = 0};
	struct encode_options options = {.tier = tier, .codec = codec, .verbatim_tokens = 4};
	const uint8_t *elements = b->elements;
	struct encoder encoder;
	int err =
	    encoder_begin(&encoder, &identity, shape, &options, b->value, b->capacity, scratch);

	for (uint32_t t = 0; !err && t < shape_tensors(shape); t++) {
		err = encoder_tensor(&encoder, elements);
		elements += shape_tensor_bytes(shape, t % shape->parts_count);
	}
	return err ? err : encoder_finish(&encoder, ret_bytes);
}

static int decode(const struct container *container, void *scratch, const struct buffers *b)
{
	static uint32_t channel[SSV_CHANNELS_MAX];
	uint8_t *token[SSV_CHUNK_TOKENS];
	struct decode_target target = {.token = token, .channel = channel, .run_channels = 1};
	enum container_fault fault;
	int err = 0;

	for (uint32_t c = 0; c < 160; c++)
		channel[c] = c * 2;
	for (uint32_t t = 0; t < SSV_CHUNK_TOKENS; t++)
		token[t] = b->out + t * 320;
	for (uint32_t i = 0; !err && i < container->header.segments_count; i++)
		err = segment_decode(container, i, &target, scratch, &fault);
	return err;
}

static void round_trip(const struct chunk_shape *shape, uint8_t tier, uint8_t codec, void *scratch,
		       const struct buffers *b)
{
	struct container_expect expect = {.first_token = -1, .any_key = 1};
	struct container container;
	enum container_fault fault;
	uint64_t bytes = 0, before = allocations;
	int err = encode(shape, tier, codec, scratch, b, &bytes);

	expect.value_bytes = bytes;
	if (!err)
		err = container_open(&container, b->value, bytes, &expect, &fault);
	if (!err)
		err = decode(&container, scratch, b);
	for (uint32_t i = 0; !err && lossless_at(i); i++)
		err = chunk_transcode(&container, lossless_at(i)->codec, b->other, b->capacity,
				      scratch, &bytes, &fault);
	before = allocations - before;
	assert_int_equal(err, 0);
	assert_int_equal(before, 0);
}

static void nothing_allocates(void **state)
{
	struct chunk_shape shape = test_shape(SSV_DTYPE_BF16, 2, 80, 256);
	struct test_codec *codec = *state;
	struct buffers b = {.capacity = shape_container_bytes_max(&shape) + CONTAINER_SLACK_BYTES};

	assert_true(!COUNTED || allocations > 0);
	b.value = calloc(1, b.capacity);
	b.other = calloc(1, b.capacity);
	b.out = calloc(1, shape_kv_bytes(&shape));
	b.elements = test_elements(&shape, CONTENT_KV, test_seed());
	for (uint8_t tier = SSV_TIER_LOSSLESS; tier <= SSV_TIER_TINY; tier++)
		for (uint32_t i = 0; lossless_at(i); i++)
			round_trip(&shape, tier, lossless_at(i)->codec, codec->scratch, &b);
	free(b.value);
	free(b.other);
	free(b.out);
	free(b.elements);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(nothing_allocates),
	};

	return cmocka_run_group_tests(tests, test_scratch_open, test_scratch_close);
}
