/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_golden.c - the builder writes the very bytes of the golden files, and the reader reads them.
 *
 * The files come from make_golden.py, which reads docs/container.md and none of the C code. Usage:
 * test_golden FOLDER.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "sample.h"

static const char *golden_folder;

struct golden {
	const char *name;
	uint8_t dtype, tier, codec, flags, streams, verbatim, exceptions, parts_count;
	uint16_t tokens, layers;
	uint32_t groups_each, tensors_each;
	struct chunk_part parts[2];
};

static const struct golden goldens[] = {
    {"stored",
     SSV_DTYPE_E5M2,
     SSV_TIER_LOSSLESS,
     WIRE_CODEC_STORED,
     0,
     1,
     0,
     0,
     1,
     5,
     2,
     1000,
     1,
     {{SSV_ROLE_LATENT, 0, 1, 96}}},
    {"r16",
     SSV_DTYPE_BF16,
     SSV_TIER_STANDARD,
     WIRE_CODEC_R16,
     TENSOR_OFFSET_I16 | TENSOR_DELTA | TENSOR_FACTOR | TENSOR_ORDER,
     2,
     4,
     2,
     2,
     16,
     1,
     2,
     1,
     {{SSV_ROLE_K, 2, 3, 80}, {SSV_ROLE_V, 2, 3, 80}}},
    {"deflate",
     SSV_DTYPE_BF16,
     SSV_TIER_LOSSLESS,
     WIRE_CODEC_DEFLATE,
     0,
     1,
     0,
     0,
     2,
     16,
     2,
     1000,
     4,
     {{SSV_ROLE_K, 0, 2, 64}, {SSV_ROLE_V, 0, 2, 64}}},
    {"high",
     SSV_DTYPE_FP16,
     SSV_TIER_HIGH,
     WIRE_CODEC_R16,
     TENSOR_OFFSET_I8,
     1,
     0,
     1,
     2,
     8,
     1,
     1000,
     1,
     {{SSV_ROLE_K, 0, 4, 64}, {SSV_ROLE_V, 0, 2, 96}}},
};

static uint8_t *read_golden(const char *name, uint64_t *ret_bytes)
{
	char path[1024];
	uint8_t *bytes;
	FILE *file;
	long end;

	snprintf(path, sizeof(path), "%s/%s.skvc", golden_folder, name);
	file = fopen(path, "rb");
	assert_non_null(file);
	assert_int_equal(fseek(file, 0, SEEK_END), 0);
	end = ftell(file);
	assert_true(end > 0);
	rewind(file);
	bytes = calloc(1, (size_t)end + CONTAINER_SLACK_BYTES);
	assert_non_null(bytes);
	assert_int_equal(fread(bytes, 1, (size_t)end, file), (size_t)end);
	fclose(file);
	*ret_bytes = (uint64_t)end;
	return bytes;
}

static struct container_header golden_header(const struct golden *g)
{
	struct container_header header = {
	    .first_token = 768,
	    .verbatim_tokens = g->verbatim,
	    .tier = g->tier,
	    .shape = {.dtype = g->dtype,
		      .parts_count = g->parts_count,
		      .tokens = g->tokens,
		      .layer0 = 3,
		      .layers_count = g->layers,
		      .layers_total = 40,
		      .rank = 1,
		      .ranks_count = 2},
	};

	memcpy(header.shape.parts, g->parts, sizeof(g->parts));
	for (uint8_t i = 0; i < 32; i++)
		header.key.bytes[i] = i;
	for (uint8_t i = 0; i < 8; i++) {
		header.model[i] = (uint8_t)(100 + i);
		header.profile[i] = (uint8_t)(200 + i);
	}
	return header;
}

/* Meta of one tensor by the formulas of make_golden.py. */
static uint8_t *write_meta(const struct golden *g, uint32_t t, const struct tensor_extent *x,
			   uint8_t *next, uint64_t *raw_bytes)
{
	int lossless = g->tier == SSV_TIER_LOSSLESS;
	uint32_t count = x->channels_count;

	*next++ = g->flags;
	for (uint32_t h = 0; !lossless && h < x->heads_count; h++, next += 2)
		store_le16(next, (uint16_t)(0x2c00 + 16 * h + t));
	for (uint32_t i = 0; i < x->groups_count; i++) {
		uint32_t bits = lossless ? dtype_raw_bits(g->dtype) : (i + t) % 4;

		if (!lossless)
			*next++ = (uint8_t)bits;
		*raw_bytes += (u64_min(64, count - 64 * i) * bits + 7) / 8 * g->tokens;
	}
	for (uint32_t i = 0; i < x->groups_count; i++, next += 16) {
		memset(next, 16, 16);
		next[0] = (uint8_t)(16 + i + t);
		next[15] = (uint8_t)(16 - i - t);
	}
	for (uint32_t i = 0; lossless && i < 16 * x->groups_count; i++)
		*next++ = (uint8_t)(100 + i % 16 + i / 16);
	for (uint32_t c = 0; g->flags & TENSOR_OFFSET_I8 && c < count; c++)
		*next++ = (uint8_t)(c * 3 + t);
	for (uint32_t c = 0; g->flags & TENSOR_OFFSET_I16 && c < count; c++, next += 2)
		store_le16(next, (uint16_t)(c * 3 - 100));
	if (g->flags & TENSOR_DELTA) {
		memset(next, 0, (count + 7) / 8);
		for (uint32_t c = 0; c < count; c += 3)
			next[c / 8] |= (uint8_t)(1 << c % 8);
		next += (count + 7) / 8;
	}
	for (uint32_t c = 0; g->flags & TENSOR_FACTOR && c < count; c++)
		*next++ = (uint8_t)(120 + c % 16);
	for (uint32_t p = 0; g->flags & TENSOR_ORDER && p < count; p++, next += 2)
		store_le16(next, (uint16_t)(count - 1 - p));
	return next;
}

static void append(const struct golden *g, struct builder *builder, struct container_entry *entry,
		   uint32_t index)
{
	const struct chunk_shape *shape = &builder->header.shape;
	uint64_t stored = entry_stored_bytes(shape, entry), room, raw_bytes = 0;
	uint8_t *meta = builder_meta(builder, &room), *next = meta, *wire;

	entry->codec = g->codec;
	entry->streams_count = g->codec == WIRE_CODEC_R16 ? g->streams : 1;
	entry->wire_bytes = (uint32_t)stored;
	for (uint32_t t = 0; g->codec != WIRE_CODEC_STORED && t < entry->tensors_count; t++) {
		struct tensor_extent x;

		entry_extent(shape, entry, t, &x);
		next = write_meta(g, x.layer * g->parts_count + x.part, &x, next, &raw_bytes);
	}
	if (g->codec != WIRE_CODEC_STORED) {
		entry->meta_bytes = (uint32_t)(next - meta);
		entry->raw_bytes = (uint32_t)raw_bytes;
		entry->class_bytes = g->codec == WIRE_CODEC_R16 ? 132u * g->streams + 40 : 50;
		entry->class_crc = g->codec == WIRE_CODEC_R16 ? 0 : 0x01020304 + index;
		entry->exceptions_count = g->exceptions;
		entry->wire_bytes = (uint32_t)(entry->class_bytes + raw_bytes +
					       g->exceptions * (3 + dtype_bytes(g->dtype)) +
					       stored / g->tokens * g->verbatim);
	}
	wire = builder_wire(builder, &room);
	for (uint32_t i = 0; i < entry->wire_bytes; i++)
		wire[i] = (uint8_t)(i * 7 + index * 31 + (i >> 8));
	assert_int_equal(builder_append(builder, entry), 0);
}

static uint64_t build(const struct golden *g, uint8_t *bytes, uint64_t capacity)
{
	const float error[SSV_PARTS_MAX] = {1 / 128.0f, 2 / 128.0f, 3, 4};
	struct container_header header = golden_header(g);
	uint32_t tensors = shape_tensors(&header.shape), index = 0;
	struct builder builder;
	uint64_t value_bytes;

	assert_int_equal(builder_begin(&builder, &header, bytes, capacity), 0);
	for (uint32_t t = 0; t < tensors; t += g->tensors_each) {
		uint32_t part = t % g->parts_count;
		uint32_t groups = part_groups(&g->parts[part]);

		for (uint32_t g0 = 0; g0 < groups; g0 += g->groups_each) {
			struct container_entry entry = {
			    .layer = (uint16_t)(t / g->parts_count),
			    .part = (uint8_t)part,
			    .group0 = (uint16_t)g0,
			    .groups_count = (uint16_t)u64_min(g->groups_each, groups - g0),
			    .tensors_count = (uint8_t)g->tensors_each,
			};

			append(g, &builder, &entry, index++);
		}
	}
	assert_int_equal(builder_finish(&builder, error, &value_bytes), 0);
	return value_bytes;
}

static void builder_writes_the_golden_bytes(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < ARRAY_COUNT(goldens); i++) {
		struct container_header header = golden_header(&goldens[i]);
		uint64_t capacity =
		    shape_container_bytes_max(&header.shape) + CONTAINER_SLACK_BYTES;
		uint64_t golden_bytes, value_bytes;
		uint8_t *golden = read_golden(goldens[i].name, &golden_bytes);
		uint8_t *bytes = malloc(capacity);

		assert_non_null(bytes);
		memset(bytes, 0xa5, capacity); /* what is not written shows */
		value_bytes = build(&goldens[i], bytes, capacity);
		print_message("%s\n", goldens[i].name);
		assert_int_equal(value_bytes, golden_bytes);
		assert_memory_equal(bytes, golden, golden_bytes);
		free(bytes);
		free(golden);
	}
}

static void reader_reads_the_golden_files(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < ARRAY_COUNT(goldens); i++) {
		struct container_header header = golden_header(&goldens[i]);
		struct container_expect expect = {.key = header.key,
						  .shape = &header.shape,
						  .model = header.model,
						  .first_token = 768};
		enum container_fault fault;
		struct container container;
		uint8_t *golden = read_golden(goldens[i].name, &expect.value_bytes);

		assert_int_equal(
		    container_open(&container, golden, expect.value_bytes, &expect, &fault), 0);
		assert_memory_equal(container.header.profile, header.profile, 8);
		assert_int_equal(container.header.verbatim_tokens, goldens[i].verbatim);
		assert_true(container.header.error[0] == 1 / 128.0f);
		for (uint32_t s = 0; s < container.header.segments_count; s++)
			assert_int_equal(container_segment_check(&container, s),
					 CONTAINER_FAULT_NONE);
		free(golden);
	}
}

/* One tensor's meta, field by field, through the pointers a decoder uses. */
static void meta_pointers_meet_the_fields(void **state)
{
	struct container_expect expect = {.any_key = 1, .first_token = -1};
	struct container_entry entry;
	struct tensor_meta meta;
	struct container container;
	enum container_fault fault;
	uint8_t *golden = read_golden("r16", &expect.value_bytes);

	(void)state;
	assert_int_equal(container_open(&container, golden, expect.value_bytes, &expect, &fault),
			 0);
	container_entry(&container, 3, &entry); /* V, groups 2 and 3: channels 128..239 */
	assert_int_equal(entry.part, 1);
	assert_int_equal(entry.group0, 2);
	container_tensor_meta(&container, &entry, 0, &meta);
	assert_int_equal(meta.channels_count, 112);
	assert_int_equal(meta.heads_count, 2);
	assert_int_equal(load_le16(meta.steps + 2), 0x2c00 + 16 + 1);
	assert_int_equal(meta.raw_bits[1], 2);
	assert_int_equal(meta.frequency[16], 16 + 1 + 1);
	assert_int_equal((int16_t)load_le16(meta.offsets + 2 * 10), -70);
	assert_int_equal(meta.delta[0], 0x49);
	assert_int_equal(meta.factor[17], 121);
	assert_int_equal(load_le16(meta.order + 2), 110);
	assert_null(meta.exponent);
	free(golden);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(builder_writes_the_golden_bytes),
	    cmocka_unit_test(reader_reads_the_golden_files),
	    cmocka_unit_test(meta_pointers_meet_the_fields),
	};

	golden_folder = argc > 1 ? argv[1] : "tests/chunk/golden";
	return cmocka_run_group_tests(tests, NULL, NULL);
}
