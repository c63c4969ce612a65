/* SPDX-License-Identifier: Apache-2.0 */
/* test_damage.c - damage of any byte and any length never passes and never reads out of bounds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/crc.h"
#include "sample.h"

static struct sample_options quantised_options(void)
{
	struct sample_options options = {
	    .shape = sample_shape(2, 3, 80, 32),
	    .tier = SSV_TIER_STANDARD,
	    .codec = WIRE_CODEC_R16,
	    .streams = 2,
	    .flags = TENSOR_OFFSET_I16 | TENSOR_DELTA | TENSOR_FACTOR | TENSOR_ORDER,
	    .verbatim_tokens = 4,
	    .exceptions = 3,
	    .seed = 21,
	};

	options.shape.layers_total = 40;
	return options;
}

static void every_length_but_the_right_one_is_refused(void **state)
{
	struct sample_options options = quantised_options();
	struct container_expect expect;
	struct sample sample;
	int err;

	(void)state;
	sample_build(&options, &sample);
	expect = sample_expect(&sample);
	for (uint64_t length = 0; length < sample.value_bytes; length++) {
		uint8_t *bytes = malloc(length + CONTAINER_SLACK_BYTES);

		assert_non_null(bytes);
		memcpy(bytes, sample.bytes, length);
		memset(bytes + length, 0, CONTAINER_SLACK_BYTES);
		expect.value_bytes = length;
		assert_int_equal(sample_verdict(bytes, &expect, &err), CONTAINER_FAULT_TRUNCATED);
		free(bytes);
	}
	for (uint64_t more = 1; more <= CONTAINER_SLACK_BYTES; more++) {
		expect.value_bytes = sample.value_bytes + more;
		assert_int_equal(sample_verdict(sample.bytes, &expect, &err),
				 CONTAINER_FAULT_LENGTH);
	}
	sample_free(&sample);
}

static void every_damaged_byte_is_found(void **state)
{
	uint64_t seed = sample_seed();
	struct sample_options options = quantised_options();
	struct container_expect expect;
	struct sample sample;
	int err;

	(void)state;
	options.flags = TENSOR_OFFSET_I8;
	sample_build(&options, &sample);
	expect = sample_expect(&sample);
	for (uint64_t at = 0; at < sample.value_bytes; at++) {
		uint8_t flip = (uint8_t)(1 + sample_random(&seed) % 255);

		sample.bytes[at] ^= flip;
		assert_int_not_equal(sample_verdict(sample.bytes, &expect, &err),
				     CONTAINER_FAULT_NONE);
		sample.bytes[at] ^= flip;
	}
	for (uint32_t round = 0; round < 2000; round++) {
		uint8_t *copy = malloc(sample.value_bytes + CONTAINER_SLACK_BYTES);
		uint64_t at = sample_random(&seed) % sample.value_bytes;
		uint64_t count = 1 + sample_random(&seed) % 64;

		assert_non_null(copy);
		memcpy(copy, sample.bytes, sample.value_bytes + CONTAINER_SLACK_BYTES);
		for (uint64_t i = at; i < at + count && i < sample.value_bytes; i++)
			copy[i] = (uint8_t)sample_random(&seed);
		if (memcmp(copy, sample.bytes, sample.value_bytes))
			assert_int_not_equal(sample_verdict(copy, &expect, &err),
					     CONTAINER_FAULT_NONE);
		free(copy);
	}
	sample_free(&sample);
}

/* An attacker who writes the checksums again gets verdicts, never a read out of bounds. */
static void resealed_damage_does_no_harm(void **state)
{
	uint64_t seed = sample_seed();
	uint32_t refused = 0, rounds = 20000;

	(void)state;
	for (uint32_t round = 0; round < rounds; round++) {
		struct sample_options options = quantised_options();
		uint32_t edits = 1 + (uint32_t)(sample_random(&seed) % 3);
		struct container_expect expect;
		struct sample sample;
		uint64_t front;
		int err;

		options.shape = sample_shape(1, 2, 80, 32);
		options.codec = round % 3 ? WIRE_CODEC_R16 : WIRE_CODEC_DEFLATE;
		options.tensors_each = round % 3 ? 1 : 2;
		sample_build(&options, &sample);
		front = sample.header.meta_offset + sample.header.meta_bytes;
		expect = sample_expect(&sample);
		expect.shape = NULL;
		for (uint32_t i = 0; i < edits; i++) {
			uint64_t at = 76 + sample_random(&seed) % (front - 76);

			sample.bytes[at] = (uint8_t)sample_random(&seed);
		}
		if (load_le32(sample.bytes + 128) == 256 &&
		    load_le32(sample.bytes + 132) + (uint64_t)load_le32(sample.bytes + 136) ==
			front)
			sample_reseal(sample.bytes);
		else
			store_le32(sample.bytes + 252, crc32c(0, sample.bytes, 252));
		refused += sample_verdict(sample.bytes, &expect, &err) != CONTAINER_FAULT_NONE;
		sample_free(&sample);
	}
	assert_true(refused > rounds / 4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(every_length_but_the_right_one_is_refused),
	    cmocka_unit_test(every_damaged_byte_is_found),
	    cmocka_unit_test(resealed_damage_does_no_harm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
