/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_trellis.c - trellis-coded tensors: the search against all paths, every dtype, shape and tier
 * there and back within a bound, the same bytes at every SIMD level, the must flag, transcoding,
 * damage. That symbols decode as the format says is test_craft.c's.
 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/crc.h"
#include "chunk/fields.h"
#include "codec/float.h"
#include "codec/transcode.h"
#include "codec/trellis.h"
#include "craft.h"

static const struct {
	uint32_t heads, dim, tokens;
} shapes[] = {
    {1, 64, 1}, {1, 64, 256}, {2, 64, 255}, {3, 80, 31}, {1, 96, 17},  {2, 128, 33},
    {1, 1, 9},  {8, 128, 16}, {3, 7, 50},   {1, 130, 2}, {4, 64, 256}, {16, 256, 19},
};

/* ---- the search ----------------------------------------------------------------------------- */

#define SEARCH_TOKENS 9u

struct search {
	float values[SSV_CHUNK_TOKENS][LANES], inverse[LANES];
	int16_t base[LANES], delta[LANES];
	int32_t targets[SSV_CHUNK_TOKENS][LANES];
	int16_t symbols[SSV_CHUNK_TOKENS][LANES], integers[SSV_CHUNK_TOKENS][LANES];
	struct trellis_job job;
};

static void search_run(struct search *s, const struct kernels *kernels, uint32_t tokens)
{
	s->job.view = (struct group_view){.elements = (const uint8_t *)s->values,
					  .row_bytes = sizeof(s->values[0]),
					  .tokens = tokens,
					  .lanes = LANES,
					  .dtype = SSV_DTYPE_FP32};
	s->job.inverse = s->inverse;
	s->job.base = s->base;
	s->job.delta = s->delta;
	s->job.targets = s->targets[0];
	s->job.symbols = s->symbols[0];
	s->job.integers = s->integers[0];
	kernels->trellis(&s->job);
}

static int32_t cost_of(int32_t error)
{
	int32_t size = (abs(error) + 2) / 4;

	return abs(error) > 256 ? 127 * 127 : size * size;
}

/* The least cost of any path whose symbols are neighbours of the values, by trying all of them. */
static int32_t least_cost(const struct search *s, uint32_t lane, uint32_t token, uint8_t state)
{
	int32_t least = INT32_MAX, value;

	if (token == SEARCH_TOKENS)
		return 0;
	value = (int32_t)floorf(s->values[token][lane] * FRACTIONS + .5f);
	for (int32_t k = -20; k < 20; k++) {
		uint8_t next = state;
		int32_t error = value - FRACTIONS * trellis_level(k, &next), cost;

		if (abs(error) > 2 * FRACTIONS)
			continue;
		cost = cost_of(error) + least_cost(s, lane, token + 1, next);
		least = cost < least ? cost : least;
	}
	return least;
}

static void the_search_finds_the_nearest_path(void **state)
{
	static struct search s;
	struct random random = {test_seed()};

	(void)state;
	for (uint32_t round = 0; round < 3; round++) {
		memset(&s, 0, sizeof(s));
		s.job.raw_bits = round;
		for (uint32_t i = 0; i < LANES; i++)
			s.inverse[i] = 1;
		for (uint32_t i = 0; i < SEARCH_TOKENS * LANES; i++)
			s.values[i / LANES][i % LANES] =
			    rintf(random_normal(&random) * 3 * FRACTIONS) / FRACTIONS;
		search_run(&s, &kernels_scalar, SEARCH_TOKENS);
		for (uint32_t i = 0; i < LANES; i++) {
			int32_t cost = 0, least = least_cost(&s, i, 0, 0);
			uint8_t at = 0;

			for (uint32_t t = 0; t < SEARCH_TOKENS; t++) {
				int32_t level = trellis_level(s.symbols[t][i], &at);
				float value = s.values[t][i];

				cost += cost_of((int32_t)floorf(value * FRACTIONS + .5f) -
						level * FRACTIONS);
				assert_int_equal(s.integers[t][i], level);
			}
			assert_int_equal(cost, least);
		}
	}
}

/* Values of every kind, in and out of reach, with differences and feedback. */
static void random_search(struct search *s, struct random *random)
{
	float spread = powf(2, (float)random_below(random, 14) - 4), drift = 0;

	memset(s, 0, sizeof(*s));
	s->job.raw_bits = random_below(random, RAW_BITS_MAX + 1);
	s->job.is_shaped = (uint8_t)random_below(random, 2);
	for (uint32_t i = 0; i < LANES; i++) {
		s->inverse[i] = random_below(random, 9) ? .75f : 8;
		s->base[i] = (int16_t)(random_below(random, 2) * (random_below(random, 400) - 200));
		s->delta[i] = (int16_t)-random_below(random, 2);
		for (uint32_t t = 0; t < SSV_CHUNK_TOKENS; t++) {
			drift = drift * .9f + random_normal(random) * spread;
			s->values[t][i] = drift + s->base[i];
			if (!random_below(random, 300))
				s->values[t][i] = random_below(random, 2) ? 1e9f : NAN;
			if (!random_below(random, 100))
				s->values[t][i] *= 30;
		}
	}
}

static void every_level_finds_the_same_path(void **state)
{
	static struct search a, b;
	struct random random = {test_seed()};
	const struct kernels *level;

	(void)state;
	for (uint32_t round = 0; round < 60; round++) {
		uint32_t tokens = 1 + random_below(&random, SSV_CHUNK_TOKENS);

		random_search(&a, &random);
		b = a;
		search_run(&a, &kernels_scalar, tokens);
		for (uint32_t k = 0; (level = kernels_at(k)); k++) {
			search_run(&b, level, tokens);
			assert_memory_equal(a.symbols, b.symbols, tokens * sizeof(a.symbols[0]));
			assert_memory_equal(a.integers, b.integers, tokens * sizeof(a.integers[0]));
		}
	}
}

/* ---- there and back ------------------------------------------------------------------------- */

static uint32_t coded_entries[5]; /* by dtype: a test of stored entries alone proves little */

/* A symbol's neighbours are two steps away at most, and feedback is 3/8 of that for V; the rest as
 * test_conformance.c has it. */
static void assert_within_steps(const struct container *container, uint32_t index,
				const uint8_t *in, const uint8_t *out)
{
	static const float rounding[] = {0x1p-8f, 0x1p-11f, 0x1p-23f, 0x1p-4f, 0x1p-3f};
	static const float least[] = {0, 0x1p-24f, 0, 0x1p-9f, 0x1p-16f};
	const struct chunk_shape *shape = &container->header.shape;
	struct container_entry entry;
	struct tensor_meta meta;
	uint32_t channels, dim, bytes = dtype_bytes(shape->dtype);
	float steps;

	container_entry(container, index, &entry);
	container_tensor_meta(container, &entry, 0, &meta);
	channels = part_channels(&shape->parts[entry.part]);
	dim = shape->parts[entry.part].dim;
	assert_true(entry.codec == WIRE_CODEC_TRELLIS || entry.codec == WIRE_CODEC_STORED);
	coded_entries[shape->dtype] += entry.codec == WIRE_CODEC_TRELLIS;
	steps = shape->parts[entry.part].role == SSV_ROLE_V ? 2.75f : 2;
	for (uint32_t i = 0; i < channels * shape->tokens; i++) {
		float x = element_value(shape->dtype, in, i);
		float y = element_value(shape->dtype, out, i), step, limit;

		if (i / channels < container->header.verbatim_tokens || !meta.steps ||
		    !f32_is_finite(x)) {
			assert_memory_equal(in + i * bytes, out + i * bytes, bytes);
			continue;
		}
		step = f32_from_fp16(load_le16(meta.steps + 2 * (i % channels / dim)));
		limit = step * (steps + .501f / FRACTIONS) + fabsf(x) * 0x1p-15f +
			fabsf(x) * rounding[shape->dtype] + 2 * step * rounding[shape->dtype] +
			least[shape->dtype];
		if (!(fabsf(x - y) <= limit))
			fail_msg("element %u: %g became %g, step %g", i, (double)x, (double)y,
				 (double)step);
	}
}

static void check_round_trip(struct test_codec *codec, const struct chunk_shape *shape,
			     const struct encode_options *options, uint32_t content, uint64_t seed)
{
	uint8_t *in = test_elements(shape, content, seed);
	uint8_t *out = calloc(1, shape_kv_bytes(shape)), *at = out;
	struct test_chunk chunk = test_encode(codec, shape, options, in);
	struct container container;
	enum container_fault fault;

	test_open(&chunk, &container);
	assert_int_equal(test_decode(codec, &container, out, &fault), 0);
	for (uint32_t e = 0; e < container.header.segments_count; e++) {
		assert_within_steps(&container, e, in + (at - out), at);
		at += shape_tensor_bytes(shape, e % 2);
	}
	free(chunk.bytes);
	free(out);
	free(in);
}

static void elements_stay_within_their_steps(void **state)
{
	uint64_t seed = test_seed();

	memset(coded_entries, 0, sizeof(coded_entries));
	for (uint32_t i = 0; i < ARRAY_COUNT(shapes) * 5 * 4; i++) {
		uint32_t k = i / 5 % ARRAY_COUNT(shapes);
		struct chunk_shape shape =
		    test_shape((uint8_t)(i % 5), shapes[k].heads, shapes[k].dim, shapes[k].tokens);
		struct encode_options options = {.tier = (uint8_t)(SSV_TIER_HIGH + i % 4),
						 .codec = SSV_CODEC_R16,
						 .trellis = 1,
						 .verbatim_tokens = (uint8_t)(i % 3 * 2)};

		check_round_trip(*state, &shape, &options, i / 3 % CONTENTS_COUNT, seed + i);
	}
	for (uint32_t d = 0; d < 5; d++)
		assert_true(coded_entries[d] > 40);
}

/* One level's container and elements are every other's. */
static void every_level_gives_the_same_bytes(void **state)
{
	struct chunk_shape shape = test_shape(SSV_DTYPE_BF16, 3, 64, 256);
	struct encode_options options = {.codec = SSV_CODEC_R16, .trellis = 1};
	uint8_t *in = test_elements(&shape, CONTENT_KV, test_seed());
	uint8_t *out[2] = {calloc(1, shape_kv_bytes(&shape)), calloc(1, shape_kv_bytes(&shape))};
	const struct kernels *level;
	enum container_fault fault;

	for (options.tier = SSV_TIER_HIGH; options.tier <= SSV_TIER_TINY; options.tier++) {
		struct test_chunk first, other;
		struct container container;

		kernels_use(&kernels_scalar);
		first = test_encode(*state, &shape, &options, in);
		test_open(&first, &container);
		assert_int_equal(test_decode(*state, &container, out[0], &fault), 0);
		for (uint32_t k = 0; (level = kernels_at(k)); k++) {
			kernels_use(level);
			other = test_encode(*state, &shape, &options, in);
			assert_int_equal(first.bytes_count, other.bytes_count);
			assert_memory_equal(first.bytes, other.bytes, first.bytes_count);
			assert_int_equal(test_decode(*state, &container, out[1], &fault), 0);
			assert_memory_equal(out[0], out[1], shape_kv_bytes(&shape));
			free(other.bytes);
		}
		free(first.bytes);
	}
	kernels_use(NULL);
	free(out[0]);
	free(out[1]);
	free(in);
}

/* What it is for: fewer bytes, at an error that is hardly larger. */
static void it_takes_fewer_bytes(void **state)
{
	struct chunk_shape shape = test_shape(SSV_DTYPE_BF16, 4, 64, 256);
	struct encode_options options = {.codec = SSV_CODEC_R16};
	uint8_t *in = test_elements(&shape, CONTENT_KV, test_seed());

	for (options.tier = SSV_TIER_HIGH; options.tier <= SSV_TIER_COMPACT; options.tier++) {
		struct container with, without;
		struct test_chunk chunk[2];

		for (uint32_t k = 0; k < 2; k++) {
			options.trellis = (uint8_t)k;
			chunk[k] = test_encode(*state, &shape, &options, in);
			test_open(&chunk[k], k ? &with : &without);
		}
		assert_true((double)chunk[1].bytes_count < .99 * (double)chunk[0].bytes_count);
		for (uint32_t p = 0; p < 2; p++)
			assert_true(with.header.error[p] < 1.15f * without.header.error[p]);
		free(chunk[0].bytes);
		free(chunk[1].bytes);
	}
	free(in);
}

/* ---- the container -------------------------------------------------------------------------- */

static struct test_chunk sample(struct test_codec *codec, uint8_t tier, uint8_t trellis)
{
	struct chunk_shape shape = test_shape(SSV_DTYPE_BF16, 2, 96, 64);
	struct encode_options options = {.tier = tier,
					 .codec = SSV_CODEC_R16,
					 .trellis = trellis,
					 .verbatim_tokens = 2,
					 .error_max = {1e9f, 1e9f}};
	uint8_t *in = test_elements(&shape, CONTENT_SPECIAL, 11);
	struct test_chunk chunk = test_encode(codec, &shape, &options, in);

	free(in);
	return chunk;
}

static int open_changed(const struct test_chunk *chunk, enum container_fault *ret_fault)
{
	struct container_expect expect = {
	    .value_bytes = chunk->bytes_count, .first_token = -1, .any_key = 1};
	struct container container;

	return container_open(&container, chunk->bytes, chunk->bytes_count, &expect, ret_fault);
}

static void set_must_flags(struct test_chunk *chunk, uint32_t flags)
{
	store_le32(chunk->bytes + 16, flags);
	store_le32(chunk->bytes + 252, crc32c(0, chunk->bytes, 252));
}

static void the_must_flag_says_so(void **state)
{
	struct test_chunk with = sample(*state, SSV_TIER_STANDARD, 1);
	struct test_chunk without = sample(*state, SSV_TIER_STANDARD, 0);
	struct test_chunk lossless = sample(*state, SSV_TIER_LOSSLESS, 1);
	enum container_fault fault;

	assert_int_equal(load_le32(with.bytes + 16), CONTAINER_MUST_TRELLIS);
	assert_int_equal(load_le32(without.bytes + 16), 0);
	assert_int_equal(load_le32(lossless.bytes + 16), 0);
	/* entries that the flag does not announce, a flag without entries, other flags */
	set_must_flags(&with, 0);
	assert_int_equal(open_changed(&with, &fault), -ENOTSUP);
	assert_int_equal(fault, CONTAINER_FAULT_CODEC);
	set_must_flags(&without, CONTAINER_MUST_TRELLIS);
	assert_int_equal(open_changed(&without, &fault), -EBADMSG);
	assert_int_equal(fault, CONTAINER_FAULT_TABLE);
	set_must_flags(&with, CONTAINER_MUST_TRELLIS | 1);
	assert_int_equal(open_changed(&with, &fault), -ENOTSUP);
	assert_int_equal(fault, CONTAINER_FAULT_MUST_FLAG);
	/* exponents have no trellis */
	lossless.bytes[256 + 23] = WIRE_CODEC_TRELLIS;
	set_must_flags(&lossless, CONTAINER_MUST_TRELLIS);
	craft_reseal(&lossless, 0);
	assert_int_equal(open_changed(&lossless, &fault), -EBADMSG);
	assert_int_equal(fault, CONTAINER_FAULT_TABLE);
	assert_string_equal(wire_codec_name(WIRE_CODEC_TRELLIS), "trellis");
	assert_null(codec_name(WIRE_CODEC_TRELLIS + 1));
	assert_int_equal(codec_parse("trellis"), SSV_CODEC_DEFAULT);
	free(with.bytes);
	free(without.bytes);
	free(lossless.bytes);
}

static void no_other_back_end_takes_it(void **state)
{
	struct test_codec *codec = *state;
	struct chunk_shape shape = test_shape(SSV_DTYPE_BF16, 1, 64, 16);
	uint64_t capacity = shape_container_bytes_max(&shape) + CONTAINER_SLACK_BYTES;
	const struct chunk_identity identity = {.first_token = 0};
	uint8_t *out = malloc(capacity);
	struct encoder encoder;

	assert_non_null(out);
	for (uint32_t b = 0; lossless_at(b); b++) {
		struct encode_options options = {
		    .tier = SSV_TIER_STANDARD, .codec = lossless_at(b)->codec, .trellis = 1};
		int err = encoder_begin(&encoder, &identity, &shape, &options, out, capacity,
					codec->scratch);

		assert_int_equal(err, options.codec == SSV_CODEC_R16 ? 0 : -EINVAL);
	}
	free(out);
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
	assert_non_null(out.bytes);
	assert_int_equal(chunk_transcode(&container, to, out.bytes, capacity, codec->scratch,
					 &out.bytes_count, &fault),
			 0);
	return out;
}

/* Back ends that code classes leave it as it is; stored has its elements. At each level alike. */
static void transcoding_keeps_it_or_stores_it(void **state)
{
	struct test_chunk chunk = sample(*state, SSV_TIER_COMPACT, 1), other;
	uint8_t out[2][4 * 2 * 96 * 64 * 2];
	struct container container;
	const struct kernels *level;
	enum container_fault fault;

	test_open(&chunk, &container);
	assert_true(shape_kv_bytes(&container.header.shape) <= sizeof(out[0]));
	assert_int_equal(test_decode(*state, &container, out[0], &fault), 0);
	for (uint32_t k = 0; (level = kernels_at(k)); k++) {
		kernels_use(level);
		for (uint32_t b = 0; lossless_at(b); b++) {
			other = transcode(*state, &chunk, lossless_at(b)->codec);
			if (lossless_at(b)->has_classes) {
				assert_int_equal(other.bytes_count, chunk.bytes_count);
				assert_memory_equal(other.bytes, chunk.bytes, chunk.bytes_count);
			}
			test_open(&other, &container);
			assert_int_equal(container.header.must_flags,
					 lossless_at(b)->has_classes ? CONTAINER_MUST_TRELLIS : 0);
			assert_int_equal(test_decode(*state, &container, out[1], &fault), 0);
			assert_memory_equal(out[0], out[1],
					    shape_kv_bytes(&container.header.shape));
			free(other.bytes);
		}
	}
	kernels_use(NULL);
	free(chunk.bytes);
}

static int decode_changed(struct test_codec *codec, const struct test_chunk *chunk)
{
	enum container_fault fault;
	struct container container;
	uint8_t *out;
	int err = open_changed(chunk, &fault);

	if (err)
		return err;
	test_open(chunk, &container);
	out = calloc(1, shape_kv_bytes(&container.header.shape));
	err = test_decode(codec, &container, out, &fault);
	free(out);
	return err;
}

/* Under checksums that are right: refused or decoded, and nothing outside the targets is written
 * (guard bytes; ASan sees the rest). */
static void any_byte_may_change(void **state)
{
	struct random random = {test_seed()};
	uint32_t refused = 0, accepted = 0;

	for (uint32_t i = 0; i < 500; i++) {
		struct test_chunk chunk = sample(*state, SSV_TIER_STANDARD, 1);
		uint32_t edits = 1 + random_below(&random, 4);
		struct container container;
		struct container_entry entry;
		int err;

		test_open(&chunk, &container);
		container_entry(&container, 0, &entry);
		for (uint32_t k = 0; k < edits; k++) {
			uint64_t from = random_below(&random, 3) ? entry.offset : 256;
			uint64_t to = entry.offset + entry.wire_bytes;

			chunk.bytes[from + random_below(&random, (uint32_t)(to - from))] ^=
			    (uint8_t)(1 + random_below(&random, 255));
		}
		craft_reseal(&chunk, 0);
		err = decode_changed(*state, &chunk);
		assert_true(!err || err == -EBADMSG || err == -ENOTSUP);
		refused += err != 0;
		accepted += !err;
		free(chunk.bytes);
	}
	assert_true(refused > 50 && accepted > 50);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(the_search_finds_the_nearest_path),
	    cmocka_unit_test(every_level_finds_the_same_path),
	    cmocka_unit_test(elements_stay_within_their_steps),
	    cmocka_unit_test(every_level_gives_the_same_bytes),
	    cmocka_unit_test(it_takes_fewer_bytes),
	    cmocka_unit_test(the_must_flag_says_so),
	    cmocka_unit_test(no_other_back_end_takes_it),
	    cmocka_unit_test(transcoding_keeps_it_or_stores_it),
	    cmocka_unit_test(any_byte_may_change),
	};

	return cmocka_run_group_tests(tests, test_scratch_open, test_scratch_close);
}
