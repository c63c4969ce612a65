/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_faults.c - every reason to refuse a container, each reached by the smallest edit, with the
 * checksums before it written again so that the deeper check is what fires.
 */
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
#include "base/crc.h"
#include "sample.h"

/* 2 layers, K and V of 3 heads x 80: 240 channels, 4 groups, the last of 48 lanes. */
#define HEADS    3u
#define GROUPS   4u
#define CHANNELS 240u

/* Where the fields of entry 0's meta lie with the flags of quantised_options(). */
#define META_STEPS     1u
#define META_RAW_BITS  (META_STEPS + 2 * HEADS)
#define META_FREQUENCY (META_RAW_BITS + GROUPS)
#define META_OFFSETS   (META_FREQUENCY + 16 * GROUPS)
#define META_DELTA     (META_OFFSETS + 2 * CHANNELS)
#define META_FACTOR    (META_DELTA + CHANNELS / 8)
#define META_ORDER     (META_FACTOR + CHANNELS)
#define META_BYTES     (META_ORDER + 2 * CHANNELS)

static struct sample_options quantised_options(void)
{
	struct sample_options options = {
	    .shape = sample_shape(2, HEADS, 80, 32),
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

static void expect_fault(const struct sample *sample, const struct container_expect *expect,
			 enum container_fault want, const char *what)
{
	int err;
	enum container_fault fault = sample_verdict(sample->bytes, expect, &err);

	if (fault != want)
		print_error("%s: \"%s\", expected \"%s\"\n", what, container_fault_text(fault),
			    container_fault_text(want));
	assert_int_equal(fault, want);
	if (want == CONTAINER_FAULT_VERSION || want == CONTAINER_FAULT_MUST_FLAG ||
	    want == CONTAINER_FAULT_CODEC)
		assert_int_equal(err, -ENOTSUP);
	else
		assert_int_equal(err, -EBADMSG);
}

enum width { U8 = 1, U16 = 2, U32 = 4, U64 = 8 };

struct edit {
	uint32_t offset;
	enum width width;
	uint64_t value;
	enum container_fault fault;
};

static void apply(uint8_t *bytes, const struct edit *edit)
{
	switch (edit->width) {
	case U8:
		bytes[edit->offset] = (uint8_t)edit->value;
		break;
	case U16:
		store_le16(bytes + edit->offset, (uint16_t)edit->value);
		break;
	case U32:
		store_le32(bytes + edit->offset, (uint32_t)edit->value);
		break;
	case U64:
		store_le64(bytes + edit->offset, edit->value);
		break;
	}
}

/* Each edit alone, checksums written again, must be refused for its reason. */
static void expect_edits(const struct sample_options *options, uint32_t base,
			 const struct edit *edits, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		struct edit edit = edits[i];
		struct container_expect expect;
		struct sample sample;
		char what[64];

		sample_build(options, &sample);
		expect = sample_expect(&sample);
		edit.offset += base;
		apply(sample.bytes, &edit);
		sample_reseal(sample.bytes);
		snprintf(what, sizeof(what), "edit %u (offset %u)", i, edits[i].offset);
		expect_fault(&sample, &expect, edit.fault, what);
		sample_free(&sample);
	}
}

static void header_fields(void **state)
{
	static const struct edit edits[] = {
	    {0, U8, 'X', CONTAINER_FAULT_MAGIC},
	    {3, U8, 0, CONTAINER_FAULT_MAGIC},
	    {4, U16, 2, CONTAINER_FAULT_VERSION},
	    {4, U16, 0, CONTAINER_FAULT_VERSION},
	    {8, U32, 255, CONTAINER_FAULT_HEADER_FIELD},
	    {8, U32, 320, CONTAINER_FAULT_HEADER_FIELD},
	    {16, U32, 1, CONTAINER_FAULT_MUST_FLAG},
	    {16, U32, 1u << 31, CONTAINER_FAULT_MUST_FLAG},
	    {24, U8, 0xee, CONTAINER_FAULT_KEY},
	    {55, U8, 0xee, CONTAINER_FAULT_KEY},
	    {56, U32, 1, CONTAINER_FAULT_MODEL},
	    {72, U32, 513, CONTAINER_FAULT_POSITION},
	    {76, U16, 0, CONTAINER_FAULT_HEADER_FIELD},
	    {76, U16, 257, CONTAINER_FAULT_HEADER_FIELD},
	    {78, U8, 33, CONTAINER_FAULT_HEADER_FIELD},
	    {79, U8, 0, CONTAINER_FAULT_HEADER_FIELD},
	    {79, U8, 6, CONTAINER_FAULT_HEADER_FIELD},
	    {79, U8, SSV_TIER_COMPACT, CONTAINER_FAULT_TIER},
	    {80, U16, 39, CONTAINER_FAULT_HEADER_FIELD},
	    {80, U16, 7, CONTAINER_FAULT_SHAPE},
	    {82, U16, 0, CONTAINER_FAULT_HEADER_FIELD},
	    {84, U16, 41, CONTAINER_FAULT_SHAPE},
	    {86, U16, 1, CONTAINER_FAULT_HEADER_FIELD},
	    {88, U16, 0, CONTAINER_FAULT_HEADER_FIELD},
	    {88, U16, 65, CONTAINER_FAULT_HEADER_FIELD},
	    {88, U16, 2, CONTAINER_FAULT_SHAPE},
	    {90, U8, 5, CONTAINER_FAULT_HEADER_FIELD},
	    {90, U8, SSV_DTYPE_FP16, CONTAINER_FAULT_SHAPE},
	    {91, U8, 0, CONTAINER_FAULT_HEADER_FIELD},
	    {91, U8, 5, CONTAINER_FAULT_HEADER_FIELD},
	    {92, U8, 0, CONTAINER_FAULT_HEADER_FIELD},
	    {92, U8, SSV_ROLE_LATENT, CONTAINER_FAULT_SHAPE},
	    {93, U8, 1, CONTAINER_FAULT_HEADER_FIELD},
	    {94, U16, 1, CONTAINER_FAULT_SHAPE},
	    {96, U16, 0, CONTAINER_FAULT_HEADER_FIELD},
	    {98, U16, 9000, CONTAINER_FAULT_HEADER_FIELD},
	    {108, U8, 1, CONTAINER_FAULT_HEADER_FIELD},  /* an unused part */
	    {122, U16, 1, CONTAINER_FAULT_HEADER_FIELD}, /* the last unused part */
	    {124, U32, 0, CONTAINER_FAULT_HEADER_FIELD},
	    {124, U32, 17, CONTAINER_FAULT_HEADER_FIELD},
	    {144, U64, 1, CONTAINER_FAULT_HEADER_FIELD},
	    {152, U32, 0x7f800000, CONTAINER_FAULT_HEADER_FIELD}, /* infinite error */
	    {152, U32, 0x7fc00000, CONTAINER_FAULT_HEADER_FIELD}, /* NaN */
	    {156, U32, 0xbf800000, CONTAINER_FAULT_HEADER_FIELD}, /* -1 */
	    {160, U32, 0x3f800000, CONTAINER_FAULT_HEADER_FIELD}, /* of an unused part */
	    {168, U32, 1, CONTAINER_FAULT_HEADER_FIELD},          /* seal key */
	    {195, U8, 1, CONTAINER_FAULT_HEADER_FIELD},           /* seal salt's end */
	    {196, U8, 1, CONTAINER_FAULT_HEADER_FIELD},
	    {251, U8, 1, CONTAINER_FAULT_HEADER_FIELD},
	};
	struct sample_options options = quantised_options();

	(void)state;
	expect_edits(&options, 0, edits, ARRAY_COUNT(edits));
}

/* Offsets and lengths that point elsewhere; the table's checksum cannot be written again there. */
static void header_offsets(void **state)
{
	static const struct edit edits[] = {
	    {12, U32, 255, CONTAINER_FAULT_HEADER_FIELD},
	    {128, U32, 252, CONTAINER_FAULT_HEADER_FIELD},
	    {128, U32, 0xffffffff, CONTAINER_FAULT_HEADER_FIELD},
	    {132, U32, 256, CONTAINER_FAULT_HEADER_FIELD},
	    {132, U32, 0xfffffff0, CONTAINER_FAULT_HEADER_FIELD},
	    {136, U32, 0xffffffff, CONTAINER_FAULT_HEADER_FIELD},
	    {136, U32, 0, CONTAINER_FAULT_TABLE_CRC},
	    {140, U32, 0, CONTAINER_FAULT_TABLE_CRC},
	};
	struct sample_options options = quantised_options();

	(void)state;
	for (uint32_t i = 0; i < ARRAY_COUNT(edits); i++) {
		struct container_expect expect;
		struct sample sample;

		sample_build(&options, &sample);
		expect = sample_expect(&sample);
		apply(sample.bytes, &edits[i]);
		store_le32(sample.bytes + 252, crc32c(0, sample.bytes, 252));
		expect_fault(&sample, &expect, edits[i].fault, "offset edit");
		sample_free(&sample);
	}
}

static void table_fields(void **state)
{
	static const struct edit edits[] = {
	    {0, U32, 0, CONTAINER_FAULT_TABLE},
	    {0, U32, 0xffffffff, CONTAINER_FAULT_TABLE},
	    {4, U32, 0, CONTAINER_FAULT_TABLE},
	    {4, U32, 0xffffffff, CONTAINER_FAULT_TABLE},
	    {8, U32, 0, CONTAINER_FAULT_TABLE},
	    {8, U32, 263, CONTAINER_FAULT_TABLE}, /* below two R16 streams' states */
	    {8, U32, 0xffffffff, CONTAINER_FAULT_TABLE},
	    {12, U32, 0xffffffff, CONTAINER_FAULT_TABLE},
	    {16, U32, 4, CONTAINER_FAULT_TABLE},
	    {16, U32, 0xffffffff, CONTAINER_FAULT_TABLE},
	    {20, U16, 1, CONTAINER_FAULT_TABLE},
	    {20, U16, 0xffff, CONTAINER_FAULT_TABLE},
	    {22, U8, 1, CONTAINER_FAULT_TABLE},
	    {22, U8, 2, CONTAINER_FAULT_TABLE},
	    {23, U8, WIRE_CODEC_R16_32, CONTAINER_FAULT_CODEC},
	    {23, U8, WIRE_CODEC_TRELLIS, CONTAINER_FAULT_CODEC},
	    {23, U8, WIRE_CODEC_STORED, CONTAINER_FAULT_TABLE},
	    {23, U8, WIRE_CODEC_DEFLATE, CONTAINER_FAULT_TABLE}, /* with two streams */
	    {24, U16, 1, CONTAINER_FAULT_TABLE},
	    {26, U16, 0, CONTAINER_FAULT_TABLE},
	    {26, U16, GROUPS + 1, CONTAINER_FAULT_TABLE},
	    {26, U16, 0xffff, CONTAINER_FAULT_TABLE},
	    {28, U8, 0, CONTAINER_FAULT_TABLE},
	    {28, U8, 2, CONTAINER_FAULT_TABLE}, /* R16 holds one tensor an entry */
	    {28, U8, 255, CONTAINER_FAULT_TABLE},
	    {29, U8, 0, CONTAINER_FAULT_TABLE},
	    {29, U8, 3, CONTAINER_FAULT_TABLE},
	    {29, U8, 8, CONTAINER_FAULT_TABLE},
	    {30, U16, 1, CONTAINER_FAULT_TABLE},
	    {32, U32, 0, CONTAINER_FAULT_TABLE},
	    {32, U32, 0xffffffff, CONTAINER_FAULT_TABLE},
	    {36, U32, META_BYTES - 1, CONTAINER_FAULT_META},
	    {36, U32, META_BYTES + 1, CONTAINER_FAULT_META},
	    {36, U32, 0, CONTAINER_FAULT_META},
	    {36, U32, 0xffffffff, CONTAINER_FAULT_TABLE},
	    {40, U32, 1, CONTAINER_FAULT_SEGMENT_CRC},
	};
	struct sample_options options = quantised_options();

	(void)state;
	expect_edits(&options, CONTAINER_HEADER_BYTES, edits, ARRAY_COUNT(edits));
}

static void stored_fields(void **state)
{
	static const struct edit edits[] = {
	    {4, U32, 2, CONTAINER_FAULT_TABLE},  {8, U32, 1, CONTAINER_FAULT_TABLE},
	    {12, U32, 1, CONTAINER_FAULT_TABLE}, {16, U32, 1, CONTAINER_FAULT_TABLE},
	    {29, U8, 2, CONTAINER_FAULT_TABLE},  {36, U32, 1, CONTAINER_FAULT_TABLE},
	    {44, U32, 1, CONTAINER_FAULT_TABLE},
	};
	struct sample_options options = quantised_options();

	(void)state;
	options.codec = WIRE_CODEC_STORED;
	expect_edits(&options, CONTAINER_HEADER_BYTES, edits, ARRAY_COUNT(edits));
}

static void joined_tensors(void **state)
{
	static const struct edit edits[] = {
	    {24, U16, 1, CONTAINER_FAULT_TABLE}, /* tensors are whole */
	    {26, U16, 1, CONTAINER_FAULT_TABLE}, {28, U8, 5, CONTAINER_FAULT_TABLE},
	    {28, U8, 1, CONTAINER_FAULT_TABLE},  {28, U8, 9, CONTAINER_FAULT_TABLE},
	    {23, U8, 5, CONTAINER_FAULT_TABLE}, /* zstd holds one tensor an entry */
	};
	struct sample_options options = quantised_options();

	(void)state;
	options.codec = WIRE_CODEC_DEFLATE;
	options.tensors_each = 4;
	expect_edits(&options, CONTAINER_HEADER_BYTES, edits, ARRAY_COUNT(edits));
}

static void missing_tensors(void **state)
{
	struct sample_options options = quantised_options();
	struct container_expect expect;
	struct sample sample;
	uint8_t *bytes;

	(void)state;
	/* The same table with a shape of one layer more. */
	sample_build(&options, &sample);
	expect = sample_expect(&sample);
	bytes = sample.bytes;
	store_le16(bytes + 82, 3);
	store_le64(bytes + 144, load_le64(bytes + 144) / 2 * 3);
	sample_reseal(bytes);
	expect.shape = NULL;
	expect_fault(&sample, &expect, CONTAINER_FAULT_TABLE, "a layer without segments");
	sample_free(&sample);
}

static void meta_fields(void **state)
{
	static const struct edit edits[] = {
	    {0, U8, 0x20, CONTAINER_FAULT_META}, /* unknown flag */
	    {0, U8, 0x3f, CONTAINER_FAULT_META},
	    {0, U8, 0x1f, CONTAINER_FAULT_META}, /* both offset widths */
	    {0, U8, 0, CONTAINER_FAULT_META},
	    {META_STEPS, U16, 0, CONTAINER_FAULT_META},
	    {META_STEPS, U16, 0x7c00, CONTAINER_FAULT_META},
	    {META_STEPS, U16, 0x8001, CONTAINER_FAULT_META},
	    {META_STEPS + 4, U16, 0xffff, CONTAINER_FAULT_META},
	    {META_RAW_BITS, U8, 7, CONTAINER_FAULT_META},
	    {META_RAW_BITS + GROUPS - 1, U8, 255, CONTAINER_FAULT_META},
	    {META_FREQUENCY, U32, 0xffffffff, CONTAINER_FAULT_META},
	    {META_FREQUENCY + 48, U64, 0, CONTAINER_FAULT_META},
	    {META_ORDER, U16, CHANNELS, CONTAINER_FAULT_META},
	    {META_ORDER, U16, 0xffff, CONTAINER_FAULT_META},
	    {META_ORDER, U32, 0, CONTAINER_FAULT_META}, /* channel 0 twice */
	};
	struct sample_options options = quantised_options();
	struct sample sample;

	(void)state;
	sample_build(&options, &sample);
	assert_int_equal(load_le32(sample.bytes + CONTAINER_HEADER_BYTES + 36), META_BYTES);
	expect_edits(&options, sample.header.meta_offset, edits, ARRAY_COUNT(edits));
	sample_free(&sample);
}

static void bytes_of_no_segment(void **state)
{
	struct sample_options options = quantised_options();
	struct container_expect expect;
	struct sample sample;
	uint32_t meta_bytes;

	(void)state;
	sample_build(&options, &sample);
	expect = sample_expect(&sample);
	store_le32(sample.bytes + 12, (uint32_t)sample.value_bytes + 64);
	sample_reseal(sample.bytes);
	expect.value_bytes += 64;
	expect_fault(&sample, &expect, CONTAINER_FAULT_TABLE, "bytes after the last segment");
	sample_free(&sample);

	sample_build(&options, &sample);
	expect = sample_expect(&sample);
	meta_bytes = sample.header.meta_bytes;
	assert_int_not_equal((sample.header.meta_offset + meta_bytes) % 64, 0);
	store_le32(sample.bytes + 136, meta_bytes + 1);
	sample_reseal(sample.bytes);
	expect_fault(&sample, &expect, CONTAINER_FAULT_META, "meta of no entry");
	sample_free(&sample);
}

static void raw_length_follows_raw_bits(void **state)
{
	struct sample_options options = quantised_options();
	struct container_expect expect;
	struct sample sample;
	uint8_t *raw_bits;

	(void)state;
	sample_build(&options, &sample);
	expect = sample_expect(&sample);
	raw_bits = sample.bytes + sample.header.meta_offset + META_RAW_BITS;
	raw_bits[0] = raw_bits[0] == 6 ? 5 : (uint8_t)(raw_bits[0] + 1);
	sample_reseal(sample.bytes);
	expect_fault(&sample, &expect, CONTAINER_FAULT_TABLE, "raw bits changed");
	sample_free(&sample);
}

static void delta_bits_end_in_zeros(void **state)
{
	struct sample_options options = quantised_options();
	struct container_expect expect;
	struct sample sample;
	uint8_t *delta;

	(void)state;
	options.shape.parts[0].heads = options.shape.parts[1].heads = 1;
	options.shape.parts[0].dim = options.shape.parts[1].dim = 100;
	options.flags = TENSOR_DELTA;
	sample_build(&options, &sample);
	expect = sample_expect(&sample);
	delta = sample.bytes + sample.header.meta_offset + 1 + 2 + 2 + 32 + 12;
	*delta |= 0x10;
	sample_reseal(sample.bytes);
	expect_fault(&sample, &expect, CONTAINER_FAULT_META, "a delta bit of no channel");
	sample_free(&sample);
}

static void lossless_meta(void **state)
{
	const uint32_t exponents = 1 + 16 * GROUPS;
	const struct edit edits[] = {
	    {0, U8, TENSOR_OFFSET_I8, CONTAINER_FAULT_META},
	    {0, U8, TENSOR_DELTA, CONTAINER_FAULT_META},
	    {0, U8, TENSOR_FACTOR, CONTAINER_FAULT_META},
	    {1, U64, 0xffffffffffffffff, CONTAINER_FAULT_META},
	    {exponents, U8, 32, CONTAINER_FAULT_META},
	    {exponents + 16 * GROUPS - 1, U8, 255, CONTAINER_FAULT_META},
	};
	struct sample_options options = quantised_options();
	struct sample sample;

	(void)state;
	options.tier = SSV_TIER_LOSSLESS;
	options.shape.dtype = SSV_DTYPE_FP16;
	options.flags = 0;
	options.exceptions = 0;
	sample_build(&options, &sample);
	expect_edits(&options, sample.header.meta_offset, edits, ARRAY_COUNT(edits));
	sample_free(&sample);
}

static void expectations(void **state)
{
	struct sample_options options = quantised_options();
	struct container_expect sound, expect;
	struct chunk_shape other;
	uint8_t model[8] = {0};
	struct sample sample;
	int err;

	(void)state;
	sample_build(&options, &sample);
	sound = sample_expect(&sample);
	other = sample.header.shape;
	other.tokens--;
	expect = sound, expect.key.bytes[31] ^= 1;
	expect_fault(&sample, &expect, CONTAINER_FAULT_KEY, "key");
	expect.any_key = 1;
	assert_int_equal(sample_verdict(sample.bytes, &expect, &err), CONTAINER_FAULT_NONE);
	expect = sound, expect.model = model;
	expect_fault(&sample, &expect, CONTAINER_FAULT_MODEL, "model");
	expect = sound, expect.shape = &other;
	expect_fault(&sample, &expect, CONTAINER_FAULT_SHAPE, "shape");
	expect = sound, expect.first_token = 0;
	expect_fault(&sample, &expect, CONTAINER_FAULT_POSITION, "position");
	expect = sound, expect.min_tier = SSV_TIER_HIGH;
	expect_fault(&sample, &expect, CONTAINER_FAULT_TIER, "tier");
	expect.min_tier = SSV_TIER_TINY;
	assert_int_equal(sample_verdict(sample.bytes, &expect, &err), CONTAINER_FAULT_NONE);
	expect = sound, expect.model = NULL, expect.shape = NULL, expect.first_token = -1;
	expect.min_tier = 0;
	assert_int_equal(sample_verdict(sample.bytes, &expect, &err), CONTAINER_FAULT_NONE);
	sample_free(&sample);
}

static void later_minor_versions_and_may_flags_are_read(void **state)
{
	struct sample_options options = quantised_options();
	struct container_expect expect;
	struct sample sample;
	int err;

	(void)state;
	sample_build(&options, &sample);
	expect = sample_expect(&sample);
	store_le16(sample.bytes + 6, 1);
	store_le32(sample.bytes + 20, 0x80000001);
	sample.bytes[200] = 7; /* a field of minor version 1 */
	sample_reseal(sample.bytes);
	assert_int_equal(sample_verdict(sample.bytes, &expect, &err), CONTAINER_FAULT_NONE);
	sample_free(&sample);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(header_fields),
	    cmocka_unit_test(header_offsets),
	    cmocka_unit_test(table_fields),
	    cmocka_unit_test(stored_fields),
	    cmocka_unit_test(joined_tensors),
	    cmocka_unit_test(missing_tensors),
	    cmocka_unit_test(meta_fields),
	    cmocka_unit_test(bytes_of_no_segment),
	    cmocka_unit_test(raw_length_follows_raw_bits),
	    cmocka_unit_test(delta_bits_end_in_zeros),
	    cmocka_unit_test(lossless_meta),
	    cmocka_unit_test(expectations),
	    cmocka_unit_test(later_minor_versions_and_may_flags_are_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
