/* SPDX-License-Identifier: Apache-2.0 */
/* test_container.c - what the builder writes opens, for every shape, and holds what was put in. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "sample.h"

/* Open, walk all entries and their meta, check all segments. */
static void expect_sound(const struct sample *sample)
{
	struct container_expect expect = sample_expect(sample);
	enum container_fault fault = CONTAINER_FAULT_MAGIC;
	struct container container;

	assert_int_equal(
	    container_open(&container, sample->bytes, sample->value_bytes, &expect, &fault), 0);
	assert_int_equal(fault, CONTAINER_FAULT_NONE);
	for (uint32_t i = 0; i < container.header.segments_count; i++) {
		struct container_entry entry;

		container_entry(&container, i, &entry);
		assert_int_equal(entry.offset % 64, 0);
		assert_int_equal(container_segment_check(&container, i), CONTAINER_FAULT_NONE);
		for (uint32_t t = 0; t < entry.tensors_count; t++) {
			struct tensor_meta meta;

			container_tensor_meta(&container, &entry, t, &meta);
			assert_true(meta.channels_count > 0 && meta.heads_count > 0);
			assert_int_equal(meta.groups_count, (meta.channels_count + 63) / 64);
		}
	}
}

static void expect_round_trip(const struct sample_options *options)
{
	struct sample sample;

	sample_build(options, &sample);
	expect_sound(&sample);
	sample_free(&sample);
}

static void every_shape_round_trips(void **state)
{
	static const uint16_t dims[] = {64, 80, 96, 128, 256};
	static const uint16_t heads[] = {1, 2, 3, 8, 32, 64};
	static const uint16_t tokens[] = {1, 16, 255, 256};
	static const uint8_t codecs[] = {WIRE_CODEC_STORED, WIRE_CODEC_DEFLATE, WIRE_CODEC_R16,
					 WIRE_CODEC_ZSTD};

	(void)state;
	for (uint32_t i = 0; i < 5 * 6 * 4 * 4; i++) {
		struct sample_options options = {
		    .tier = SSV_TIER_STANDARD,
		    .codec = codecs[i % 4],
		    .streams = 1,
		    .flags = i % 3 ? TENSOR_OFFSET_I8 | TENSOR_DELTA : TENSOR_OFFSET_I16,
		    .seed = i,
		};
		uint32_t dim = dims[i / 4 % 5], count = heads[i / 20 % 6];

		if (dim * count > SSV_CHANNELS_MAX)
			continue;
		options.shape = sample_shape(1, count, dim, tokens[i / 120 % 4]);
		if (options.shape.tokens < 16)
			options.codec = WIRE_CODEC_STORED;
		expect_round_trip(&options);
	}
}

static void the_widest_shape_round_trips(void **state)
{
	struct sample_options options = {
	    .shape = sample_shape(1, 64, 128, 256),
	    .tier = SSV_TIER_HIGH,
	    .codec = WIRE_CODEC_R16,
	    .streams = 4,
	    .flags = TENSOR_OFFSET_I16 | TENSOR_DELTA | TENSOR_FACTOR | TENSOR_ORDER,
	    .exceptions = 17,
	    .verbatim_tokens = 4,
	    .seed = 5,
	};

	(void)state;
	expect_round_trip(&options);
	options.groups_each = 1;
	options.streams = 1;
	expect_round_trip(&options);
	options.groups_each = 5;
	expect_round_trip(&options);
}

static void every_dtype_and_tier_round_trips(void **state)
{
	(void)state;
	for (uint8_t dtype = SSV_DTYPE_BF16; dtype <= SSV_DTYPE_E5M2; dtype++) {
		for (uint8_t tier = SSV_TIER_LOSSLESS; tier <= SSV_TIER_TINY; tier++) {
			struct sample_options options = {
			    .shape = sample_shape(2, 3, 80, 64),
			    .tier = tier,
			    .codec = WIRE_CODEC_R16,
			    .streams = 2,
			    .flags = TENSOR_ORDER,
			    .seed = dtype * 16u + tier,
			};

			options.shape.dtype = dtype;
			if (dtype_bytes(dtype) == 1 && tier != SSV_TIER_LOSSLESS)
				options.codec = WIRE_CODEC_STORED;
			expect_round_trip(&options);
		}
	}
}

static void latent_part_and_ranks_round_trip(void **state)
{
	struct sample_options options = {
	    .shape = sample_shape(3, 1, 576, 256),
	    .tier = SSV_TIER_COMPACT,
	    .codec = WIRE_CODEC_R16,
	    .streams = 4,
	    .seed = 3,
	};

	(void)state;
	options.shape.parts_count = 1;
	options.shape.parts[0].role = SSV_ROLE_LATENT;
	memset(&options.shape.parts[1], 0, sizeof(options.shape.parts[1]));
	expect_round_trip(&options);
	options.shape = sample_shape(4, 2, 96, 256);
	options.streams = 2;
	options.shape.layer0 = 8;
	options.shape.layers_total = 36;
	options.shape.ranks_count = 8;
	options.shape.rank = 7;
	options.shape.parts[0].head0 = options.shape.parts[1].head0 = 14;
	expect_round_trip(&options);
}

static void neighbouring_tensors_share_an_entry(void **state)
{
	struct sample_options options = {
	    .shape = sample_shape(5, 8, 64, 256),
	    .tier = SSV_TIER_STANDARD,
	    .codec = WIRE_CODEC_DEFLATE,
	    .flags = TENSOR_OFFSET_I8,
	    .tensors_each = 8,
	    .seed = 8,
	};

	(void)state;
	expect_round_trip(&options);
	options.tensors_each = 3;
	options.tier = SSV_TIER_LOSSLESS;
	options.flags = 0;
	expect_round_trip(&options);
}

/* Groups cut heads of 80 channels; both sides carry the step of the head between them. */
static void an_entry_covers_the_heads_its_groups_touch(void **state)
{
	const struct chunk_shape shape = sample_shape(1, 4, 80, 256);
	struct container_entry entry = {.tensors_count = 1, .groups_count = 2};
	struct tensor_extent x;

	(void)state;
	entry_extent(&shape, &entry, 0, &x);
	assert_int_equal(x.channels_count, 128);
	assert_int_equal(x.head0, 0);
	assert_int_equal(x.heads_count, 2);
	entry.group0 = 2;
	entry.part = 1;
	entry_extent(&shape, &entry, 0, &x);
	assert_int_equal(x.part, 1);
	assert_int_equal(x.channel0, 128);
	assert_int_equal(x.head0, 1);
	assert_int_equal(x.heads_count, 3);
	entry.group0 = 4;
	entry.groups_count = 1;
	entry_extent(&shape, &entry, 0, &x);
	assert_int_equal(x.channels_count, 64);
	assert_int_equal(x.head0, 3);
	assert_int_equal(x.heads_count, 1);
}

static void a_container_opens_as_it_arrives(void **state)
{
	struct sample_options options = {
	    .shape = sample_shape(2, 2, 64, 32),
	    .tier = SSV_TIER_STANDARD,
	    .codec = WIRE_CODEC_R16,
	    .streams = 1,
	    .flags = TENSOR_OFFSET_I8,
	    .seed = 11,
	};
	struct container_expect expect;
	struct container container;
	enum container_fault fault;
	struct sample sample;
	uint64_t front;

	(void)state;
	sample_build(&options, &sample);
	expect = sample_expect(&sample);
	front = sample.header.meta_offset + sample.header.meta_bytes;
	for (uint64_t received = 0; received <= sample.value_bytes; received++) {
		/* Exactly what has arrived, so that a sanitizer sees reads beyond it. */
		uint8_t *arrived = malloc(received ? received : 1);
		int want = received < front ? -EAGAIN : 0;

		assert_non_null(arrived);
		memcpy(arrived, sample.bytes, received);
		assert_int_equal(container_open(&container, arrived, received, &expect, &fault),
				 want);
		assert_int_equal(fault, CONTAINER_FAULT_NONE);
		free(arrived);
	}
	sample_free(&sample);
}

static void builder_refuses_what_a_reader_would(void **state)
{
	const struct container_header header = {.tier = SSV_TIER_STANDARD,
						.shape = sample_shape(1, 2, 64, 16)};
	uint64_t capacity = shape_container_bytes_max(&header.shape) + CONTAINER_SLACK_BYTES;
	struct container_entry entry = {.tensors_count = 1,
					.groups_count = 2,
					.streams_count = 1,
					.wire_bytes = 2 * 64 * 16 * 2};
	const float error[SSV_PARTS_MAX] = {0};
	struct container_header wrong = header;
	struct builder builder;
	uint8_t *bytes = malloc(capacity);
	uint64_t value_bytes;

	(void)state;
	assert_non_null(bytes);
	assert_int_equal(builder_begin(&builder, &header, bytes, capacity - 1), -E2BIG);
	wrong.tier = 0;
	assert_int_equal(builder_begin(&builder, &wrong, bytes, capacity), -EINVAL);
	wrong = header;
	wrong.verbatim_tokens = 17;
	assert_int_equal(builder_begin(&builder, &wrong, bytes, capacity), -EINVAL);
	assert_int_equal(builder_begin(&builder, &header, bytes, capacity), 0);
	entry.part = 1;
	assert_int_equal(builder_append(&builder, &entry), -EINVAL); /* not the next */
	entry.part = 0;
	assert_int_equal(builder_append(&builder, &entry), 0);
	assert_int_equal(builder_append(&builder, &entry), -EINVAL); /* twice */
	assert_int_equal(builder_finish(&builder, error, &value_bytes), -EINVAL);
	entry.part = 1;
	assert_int_equal(builder_append(&builder, &entry), 0);
	assert_int_equal(builder_append(&builder, &entry), -EINVAL); /* one too many */
	assert_int_equal(builder_finish(&builder, error, &value_bytes), 0);
	assert_int_equal(value_bytes, 256 + 2 * 48 + 32 + 2 * 4096);
	free(bytes);
}

/* Append an entry of whole tensors with plain meta: r = 0, so there are no raw planes. */
static int append_plain(const struct chunk_shape *shape, uint8_t codec, uint32_t streams,
			uint32_t tensors, uint32_t class_bytes)
{
	const struct container_header header = {.tier = SSV_TIER_STANDARD, .shape = *shape};
	uint64_t capacity = shape_container_bytes_max(shape) + CONTAINER_SLACK_BYTES, room;
	uint32_t groups = part_groups(&shape->parts[0]);
	struct container_entry entry = {.codec = codec,
					.streams_count = (uint8_t)streams,
					.tensors_count = (uint8_t)tensors,
					.groups_count = (uint16_t)groups,
					.class_bytes = class_bytes,
					.wire_bytes = class_bytes};
	uint8_t *bytes = calloc(1, capacity), *meta, *begin;
	struct builder builder;
	int err;

	assert_non_null(bytes);
	assert_int_equal(builder_begin(&builder, &header, bytes, capacity), 0);
	meta = begin = builder_meta(&builder, &room);
	for (uint32_t t = 0; t < tensors; t++) {
		*meta++ = 0;
		for (uint32_t h = 0; h < shape->parts[0].heads; h++, meta += 2)
			store_le16(meta, 0x3c00);
		memset(meta, 0, groups);
		meta += groups;
		memset(meta, 16, 16 * groups);
		meta += 16 * groups;
	}
	entry.meta_bytes =
	    (uint32_t)(meta - (bytes + entry.meta_offset)) - (uint32_t)builder.meta_begin;
	err = builder_append(&builder, &entry);
	free(bytes);
	return err;
}

static void lengths_have_bounds(void **state)
{
	const struct chunk_shape one = sample_shape(1, 1, 64, 32),
				 wide = sample_shape(2, 64, 128, 256);
	uint32_t stored = 64 * 32 * 2;

	(void)state;
	assert_int_equal(append_plain(&one, WIRE_CODEC_R16, 1, 1, 132), 0);
	assert_int_equal(append_plain(&one, WIRE_CODEC_R16, 1, 1, 131), -EINVAL);
	assert_int_equal(append_plain(&one, WIRE_CODEC_R16, 2, 1, 264), -EINVAL); /* one group */
	assert_int_equal(append_plain(&one, WIRE_CODEC_R16, 1, 1, stored), 0);
	assert_int_equal(append_plain(&one, WIRE_CODEC_R16, 1, 1, stored + 1), -EINVAL);
	assert_int_equal(append_plain(&one, WIRE_CODEC_ZSTD, 1, 1, 1), 0);
	assert_int_equal(append_plain(&one, WIRE_CODEC_ZSTD, 1, 1, 0), -EINVAL);
	assert_int_equal(append_plain(&one, 200, 1, 1, 1), 0); /* a codec to come */
	/* 2 MiB inflated at most: two tensors of 8192 channels x 256 tokens in pairs */
	assert_int_equal(append_plain(&wide, WIRE_CODEC_DEFLATE, 1, 2, 100), 0);
	assert_int_equal(append_plain(&wide, WIRE_CODEC_DEFLATE, 1, 3, 100), -EINVAL);
}

static void faults_have_texts(void **state)
{
	(void)state;
	assert_string_equal(container_fault_text(CONTAINER_FAULT_KEY), "stored under another key");
	assert_string_equal(container_fault_text((enum container_fault)999), "unknown fault");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(every_shape_round_trips),
	    cmocka_unit_test(the_widest_shape_round_trips),
	    cmocka_unit_test(every_dtype_and_tier_round_trips),
	    cmocka_unit_test(latent_part_and_ranks_round_trip),
	    cmocka_unit_test(neighbouring_tensors_share_an_entry),
	    cmocka_unit_test(an_entry_covers_the_heads_its_groups_touch),
	    cmocka_unit_test(a_container_opens_as_it_arrives),
	    cmocka_unit_test(builder_refuses_what_a_reader_would),
	    cmocka_unit_test(lengths_have_bounds),
	    cmocka_unit_test(faults_have_texts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
