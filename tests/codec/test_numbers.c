/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_numbers.c - the small exact parts: float formats against a search over all their values,
 * frequencies against their rules, r16 against an encoder and decoder with plain divisions.
 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "codec/float.h"
#include "codec/frequency.h"
#include "codec/kernels.h"
#include "codec/symbols.h"
#include "fixture.h"

/* A small float's value by definition. */
static double small_value(uint32_t bits, uint32_t exponent_bits, uint32_t fraction_bits)
{
	int bias = (1 << (exponent_bits - 1)) - 1;
	int exponent = (int)(bits >> fraction_bits & ((1u << exponent_bits) - 1));
	double fraction = bits & ((1u << fraction_bits) - 1);
	double value =
	    exponent ? ldexp(fraction + (1u << fraction_bits), exponent - bias - (int)fraction_bits)
		     : ldexp(fraction, 1 - bias - (int)fraction_bits);

	return bits >> (exponent_bits + fraction_bits) ? -value : value;
}

static void small_floats_read_exactly(void **state)
{
	(void)state;
	for (uint32_t b = 0; b < 65536; b++)
		if ((b & 0x7c00) != 0x7c00)
			assert_true((double)f32_from_fp16((uint16_t)b) == small_value(b, 5, 10));
	for (uint32_t b = 0; b < 256; b++) {
		if ((b & 0x7f) != 0x7f)
			assert_true((double)f32_from_e4m3((uint8_t)b) == small_value(b, 4, 3));
		if ((b & 0x7c) != 0x7c)
			assert_true((double)f32_from_e5m2((uint8_t)b) == small_value(b, 5, 2));
	}
	assert_true(isnan(f32_from_e4m3(0x7f)) && isnan(f32_from_e4m3(0xff)));
	assert_true(isinf(f32_from_e5m2(0x7c)) && isnan(f32_from_e5m2(0x7d)));
	assert_true(isinf(f32_from_fp16(0xfc00)) && f32_from_fp16(0xfc00) < 0);
}

/* The nearest of values 0..top, ties to even, by search; saturating. */
static uint32_t nearest(double x, uint32_t top, uint32_t exponent_bits, uint32_t fraction_bits)
{
	uint32_t low = 0, high = top;
	double below, above;

	if (x >= small_value(top, exponent_bits, fraction_bits))
		return top;
	while (high - low > 1) {
		uint32_t middle = (low + high) / 2;

		if (small_value(middle, exponent_bits, fraction_bits) <= x)
			low = middle;
		else
			high = middle;
	}
	below = x - small_value(low, exponent_bits, fraction_bits);
	above = small_value(high, exponent_bits, fraction_bits) - x;
	if (below == above)
		return low & 1 ? high : low;
	return below < above ? low : high;
}

static void small_floats_round_to_nearest_even(void **state)
{
	struct random random = {test_seed()};

	(void)state;
	for (uint32_t i = 0; i < 400000; i++) {
		/* magnitudes of every kind, often on a tie */
		uint32_t bits = random_next(&random) & 0x7fffffff;
		float x;

		if (i & 1)
			bits = (bits & 0x0fffffff) | 0x30000000;
		if (i & 2)
			bits &= ~0u << random_below(&random, 23);
		x = f32_of(bits);
		if (!f32_is_finite(x))
			continue;
		assert_int_equal(e4m3_from_f32(x), nearest(x, 0x7e, 4, 3));
		assert_int_equal(e5m2_from_f32(-x), 0x80 | nearest(x, 0x7b, 5, 2));
		if (x < 65520)
			assert_int_equal(fp16_from_f32(x), nearest(x, 0x7bff, 5, 10));
		else
			assert_int_equal(fp16_from_f32(-x), 0xfc00);
	}
}

static void bf16_rounds_half_away(void **state)
{
	(void)state;
	assert_int_equal(bf16_from_f32(f32_of(0x3f808000)), 0x3f81);
	assert_int_equal(bf16_from_f32(f32_of(0x3f818000)), 0x3f82);
	assert_int_equal(bf16_from_f32(f32_of(0xbf807fff)), 0xbf80);
}

static void frequencies_keep_their_rules(void **state)
{
	struct random random = {test_seed()};

	(void)state;
	for (uint32_t i = 0; i < 20000; i++) {
		uint32_t count[16], sum = 0, present = 0;
		uint8_t frequency[16];

		for (uint32_t k = 0; k < 16; k++) {
			count[k] = random_below(&random, 3)
				       ? random_next(&random) >> (11 + random_below(&random, 21))
				       : 0;
			present += count[k] != 0;
		}
		frequency_fit(count, frequency);
		for (uint32_t k = 0; k < 16; k++) {
			sum += frequency[k];
			assert_true(!count[k] || frequency[k]);
			assert_true(count[k] || !frequency[k] || present <= 1);
		}
		assert_int_equal(sum, 256);
	}
}

/* No other table with one unit moved is cheaper. */
static void frequencies_are_the_cheapest_nearby(void **state)
{
	static const uint32_t count[16] = {3,    9,   40,  133, 700, 2100, 4000, 5000,
					   2400, 900, 300, 80,  20,  5,    1,    0};
	uint8_t f[16];

	(void)state;
	frequency_fit(count, f);
	for (uint32_t i = 0; i < 16; i++)
		for (uint32_t k = 0; k < 16; k++) {
			double gain = count[i] * log2((f[i] + 1.) / f[i]);
			double loss = count[k] * log2(f[k] / (f[k] - 1.));

			if (i != k && f[i] && f[k] > 1)
				assert_true(gain <= loss + 1e-3 * (gain + loss));
		}
}

/* r16 as docs/codec.md has it, for one stream of one group. */
static uint32_t plain_r16(const uint8_t *classes, uint32_t tokens, uint32_t lanes,
			  const uint8_t f[16], uint8_t *out)
{
	static uint8_t bytes[1 << 16];
	uint32_t x[64], c[16] = {0}, count = 0;

	for (uint32_t s = 1; s < 16; s++)
		c[s] = c[s - 1] + f[s - 1];
	for (uint32_t lane = 0; lane < 64; lane++)
		x[lane] = 256 + (lane * 37) % 256;
	for (uint32_t i = tokens * 64; i-- > 0;) {
		uint32_t s = classes[i], lane = i % 64;

		if (lane >= lanes)
			continue;
		if (x[lane] / 256 >= f[s]) {
			bytes[count++] = (uint8_t)x[lane];
			x[lane] /= 256;
		}
		x[lane] = x[lane] / f[s] * 256 + x[lane] % f[s] + c[s];
	}
	for (uint32_t lane = 0; lane < 64; lane++) {
		out[lane] = (uint8_t)x[lane];
		out[64 + lane] = (uint8_t)(x[lane] >> 8);
	}
	for (uint32_t i = 0; i < count; i++)
		out[128 + i] = bytes[count - 1 - i];
	return 128 + count;
}

static void r16_is_what_its_definition_says(void **state)
{
	static const uint32_t widths[] = {64, 16, 1, 63, 32};
	static uint8_t classes[256 * 64], ours[1 << 16], plain[1 << 16];
	struct random random = {test_seed()};

	for (uint32_t i = 0; i < 60; i++) {
		struct class_plane plane = {.classes = classes,
					    .groups_count = 1,
					    .tokens = 1 + random_below(&random, 256),
					    .last_lanes = widths[i % 5]};
		uint32_t count[16] = {0}, bytes, skew = random_below(&random, 4);
		struct test_codec *codec = *state;
		struct class_result result;
		uint8_t f[16];

		for (uint32_t k = 0; k < plane.tokens * 64; k++) {
			classes[k] = (uint8_t)random_below(&random, 16);
			for (uint32_t n = 0; n < skew; n++)
				classes[k] &= (uint8_t)random_below(&random, 16);
			count[classes[k]]++;
		}
		frequency_fit(count, f);
		assert_int_equal(
		    lossless_r16.encode(codec->scratch, &plane, f, ours, sizeof(ours), &result), 0);
		bytes = plain_r16(classes, plane.tokens, plane.last_lanes, f, plain);
		assert_int_equal(load_le32(ours), bytes);
		assert_int_equal(result.bytes_count, bytes + 4);
		assert_memory_equal(ours + 4, plain, bytes);
	}
}

/* Too little room is said, and not a byte beyond it is written. */
static void encoders_stay_in_their_room(void **state)
{
	struct test_codec *codec = *state;
	static uint8_t classes[4 * 256 * 64], out[1 << 17];
	struct class_plane plane = {
	    .classes = classes, .groups_count = 4, .tokens = 256, .last_lanes = 64};
	struct random random = {test_seed()};
	uint8_t f[4 * 16];

	memset(f, 16, sizeof(f));
	for (uint32_t i = 0; i < sizeof(classes); i++)
		classes[i] = (uint8_t)random_below(&random, 16);
	for (uint32_t b = 0; lossless_at(b); b++) {
		const struct lossless_ops *ops = lossless_at(b);
		struct class_result result;
		uint64_t full;

		if (!ops->has_classes)
			continue;
		assert_int_equal(ops->encode(codec->scratch, &plane, f, out, sizeof(out), &result),
				 0);
		full = result.bytes_count;
		for (uint64_t room = 0; room < full; room += 1 + room / 7) {
			memset(out, 0x77, sizeof(out));
			assert_int_equal(ops->encode(codec->scratch, &plane, f, out, room, &result),
					 -E2BIG);
			for (uint64_t i = room; i < room + 4096; i++)
				assert_int_equal(out[i], 0x77);
		}
	}
}

/* Class data with a byte more at its end, or with one idle lane's state changed, is refused though
 * every class in it is right. */
static void decoders_use_their_data_up(void **state)
{
	struct test_codec *codec = *state;
	static uint8_t classes[256 * 64], again[256 * 64], out[1 << 16];
	struct class_plane plane = {
	    .classes = classes, .groups_count = 1, .tokens = 256, .last_lanes = 48};
	struct class_plane back = plane;
	struct random random = {test_seed()};
	uint8_t f[16];

	back.classes = again;
	memset(f, 16, sizeof(f));
	for (uint32_t i = 0; i < sizeof(classes); i++)
		classes[i] = (uint8_t)random_below(&random, 16);
	for (uint32_t b = 0; lossless_at(b); b++) {
		const struct lossless_ops *ops = lossless_at(b);
		int is_r16 = ops->codec == SSV_CODEC_R16;
		struct class_source source = {.bytes = out,
					      .pairs_bytes = class_pairs_bytes(&plane)};
		struct class_result result;

		if (!ops->has_classes)
			continue;
		memset(out, 0, sizeof(out));
		assert_int_equal(ops->encode(codec->scratch, &plane, f, out, sizeof(out), &result),
				 0);
		source.bytes_count = result.bytes_count;
		source.streams_count = result.streams_count;
		source.class_crc = result.class_crc;
		assert_int_equal(ops->decode(codec->scratch, &source, f, &back), 0);
		if (is_r16) {
			out[4 + 60] ^= 1; /* lane 60 is idle */
			assert_int_equal(ops->decode(codec->scratch, &source, f, &back), -EBADMSG);
			out[4 + 60] ^= 1;
		}
		for (int more = -1; more <= 1; more += 2) {
			source.bytes_count = result.bytes_count + (uint32_t)more;
			if (is_r16)
				store_le32(out, source.bytes_count - 4);
			assert_int_equal(ops->decode(codec->scratch, &source, f, &back), -EBADMSG);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(small_floats_read_exactly),
	    cmocka_unit_test(small_floats_round_to_nearest_even),
	    cmocka_unit_test(bf16_rounds_half_away),
	    cmocka_unit_test(frequencies_keep_their_rules),
	    cmocka_unit_test(frequencies_are_the_cheapest_nearby),
	    cmocka_unit_test(r16_is_what_its_definition_says),
	    cmocka_unit_test(encoders_stay_in_their_room),
	    cmocka_unit_test(decoders_use_their_data_up),
	};

	return cmocka_run_group_tests(tests, test_scratch_open, test_scratch_close);
}
