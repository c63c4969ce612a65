/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fixture.h - chunks for the codec's tests: shapes, seeded elements, one call to encode and one to
 * decode into targets that lie between guard bytes.
 */
#ifndef SSV_TEST_CODEC_FIXTURE_H
#define SSV_TEST_CODEC_FIXTURE_H

#include "codec/codec.h"

/* A seeded stream of numbers; tests take their seed from SSV_SEED and print it. */
struct random {
	uint64_t state;
};

uint64_t test_seed(void);
uint32_t random_next(struct random *random);
uint32_t random_below(struct random *random, uint32_t limit);
float random_normal(struct random *random); /* about N(0, 1) */

/* What the elements of a chunk look like. */
enum content {
	CONTENT_KV,   /* keys with outlier channels and drift, values with uneven tokens */
	CONTENT_BITS, /* every bit pattern: NaN, infinity, subnormals, -0 */
	CONTENT_ZERO,
	CONTENT_CONSTANT, /* one value a channel */
	CONTENT_SPECIAL,  /* KV with a NaN, an infinity, -0 or a subnormal here and there */
	CONTENTS_COUNT,
};

struct chunk_shape test_shape(uint8_t dtype, uint32_t heads, uint32_t dim, uint32_t tokens);

/* Elements of all tensors, [layer][part][token][channel]; free() them. */
uint8_t *test_elements(const struct chunk_shape *shape, enum content content, uint64_t seed);

/* An encoded chunk with its slack; free(bytes). */
struct test_chunk {
	uint8_t *bytes;
	uint64_t bytes_count;
};

struct test_codec {
	void *scratch;
};

void test_codec_open(struct test_codec *codec);
void test_codec_close(struct test_codec *codec);
/* Group fixtures: *state is a struct test_codec. */
int test_scratch_open(void **state);
int test_scratch_close(void **state);

struct test_chunk test_encode(struct test_codec *codec, const struct chunk_shape *shape,
			      const struct encode_options *options, const uint8_t *elements);

/* Open; fails the test when it is refused. */
void test_open(const struct test_chunk *chunk, struct container *ret_container);

/* Decode all entries to canonical order in out (same size as the elements); asserts that guard
 * bytes around every tensor stay. Returns the first error. */
int test_decode(struct test_codec *codec, const struct container *container, uint8_t *out,
		enum container_fault *ret_fault);

/* An element as a float, of any dtype. */
float element_value(uint8_t dtype, const uint8_t *elements, uint64_t index);
void element_store(uint8_t dtype, uint8_t *elements, uint64_t index, float value);

#endif
