/* SPDX-License-Identifier: Apache-2.0 */
/* sample.c - builds sample containers with the builder of the project. */
#include "sample.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/crc.h"

uint64_t sample_random(uint64_t *seed)
{
	uint64_t z = (*seed += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

uint64_t sample_seed(void)
{
	const char *text = getenv("SSV_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : clock_now_ns();

	print_message("SSV_SEED=%llu\n", (unsigned long long)seed);
	return seed;
}

static void random_bytes(uint8_t *bytes, uint64_t count, uint64_t *seed)
{
	for (uint64_t i = 0; i < count; i++)
		bytes[i] = (uint8_t)sample_random(seed);
}

struct chunk_shape sample_shape(uint32_t layers, uint32_t heads, uint32_t dim, uint32_t tokens)
{
	struct chunk_shape shape = {
	    .dtype = SSV_DTYPE_BF16,
	    .parts_count = 2,
	    .tokens = (uint16_t)tokens,
	    .layers_count = (uint16_t)layers,
	    .layers_total = (uint16_t)layers,
	    .ranks_count = 1,
	};

	for (uint32_t p = 0; p < 2; p++) {
		shape.parts[p].role = p ? SSV_ROLE_V : SSV_ROLE_K;
		shape.parts[p].heads = (uint16_t)heads;
		shape.parts[p].dim = (uint16_t)dim;
	}
	return shape;
}

/* 16 frequencies that sum to 256: random cuts of the interval. */
static void write_frequencies(uint8_t *frequency, uint64_t *seed)
{
	uint32_t left = 256;

	memset(frequency, 0, META_CLASSES);
	for (uint32_t i = 0; i + 1 < META_CLASSES; i++) {
		uint32_t f = (uint32_t)(sample_random(seed) % (left < 200 ? left : 200));

		frequency[i] = (uint8_t)f;
		left -= f;
	}
	if (left == 256) { /* one class alone cannot have all 256 */
		frequency[0] = 1;
		left--;
	}
	frequency[META_CLASSES - 1] = (uint8_t)left;
}

static void write_order(uint8_t *order, uint32_t channels, uint64_t *seed)
{
	for (uint32_t i = 0; i < channels; i++)
		store_le16(order + 2 * i, (uint16_t)i);
	for (uint32_t i = channels; i > 1; i--) {
		uint32_t j = (uint32_t)(sample_random(seed) % i);
		uint16_t swap = load_le16(order + 2 * (i - 1));

		store_le16(order + 2 * (i - 1), load_le16(order + 2 * j));
		store_le16(order + 2 * j, swap);
	}
}

/* One tensor's meta by the document's table; returns its length and adds up its raw bytes. */
static uint32_t write_meta(const struct sample_options *o, const struct tensor_extent *x,
			   uint8_t *meta, uint64_t *raw_bytes, uint64_t *seed)
{
	int lossless = o->tier == SSV_TIER_LOSSLESS;
	uint8_t *next = meta;

	*next++ = o->flags;
	for (uint32_t h = 0; !lossless && h < x->heads_count; h++, next += 2)
		store_le16(next, (uint16_t)(1 + sample_random(seed) % 0x7bff));
	for (uint32_t g = 0; g < x->groups_count; g++) {
		uint32_t lanes = x->channels_count - g * 64 < 64 ? x->channels_count - g * 64 : 64;
		uint32_t bits = (uint32_t)(sample_random(seed) % 7);

		if (lossless)
			bits = dtype_raw_bits(o->shape.dtype);
		else
			*next++ = (uint8_t)bits;
		*raw_bytes += (uint64_t)(lanes * bits + 7) / 8 * o->shape.tokens;
	}
	for (uint32_t g = 0; g < x->groups_count; g++, next += 16)
		write_frequencies(next, seed);
	for (uint32_t i = 0; lossless && i < x->groups_count * 16; i++)
		*next++ = (uint8_t)(sample_random(seed) % (dtype_exponent_max(o->shape.dtype) + 1));
	if (o->flags & (TENSOR_OFFSET_I8 | TENSOR_OFFSET_I16)) {
		uint32_t bytes = o->flags & TENSOR_OFFSET_I8 ? 1 : 2;

		random_bytes(next, bytes * x->channels_count, seed);
		next += bytes * x->channels_count;
	}
	if (o->flags & TENSOR_DELTA) {
		random_bytes(next, (x->channels_count + 7) / 8, seed);
		next += (x->channels_count + 7) / 8;
		if (x->channels_count % 8)
			next[-1] &= (uint8_t)((1u << x->channels_count % 8) - 1);
	}
	if (o->flags & TENSOR_FACTOR) {
		random_bytes(next, x->channels_count, seed);
		next += x->channels_count;
	}
	if (o->flags & TENSOR_ORDER) {
		write_order(next, x->channels_count, seed);
		next += 2 * x->channels_count;
	}
	return (uint32_t)(next - meta);
}

static void append_coded(const struct sample_options *o, struct builder *builder,
			 struct container_entry *entry, uint64_t *seed)
{
	uint64_t room, raw_bytes = 0, wire;
	uint64_t stored = entry_stored_bytes(&o->shape, entry);
	uint8_t *meta = builder_meta(builder, &room);

	entry->meta_bytes = 0;
	for (uint32_t t = 0; t < entry->tensors_count; t++) {
		struct tensor_extent extent;

		entry_extent(&o->shape, entry, t, &extent);
		entry->meta_bytes +=
		    write_meta(o, &extent, meta + entry->meta_bytes, &raw_bytes, seed);
	}
	assert_true(entry->meta_bytes <= room);
	entry->raw_bytes = (uint32_t)raw_bytes;
	entry->exceptions_count = o->exceptions;
	entry->class_bytes = 1 + (uint32_t)(sample_random(seed) % 200);
	if (o->codec == WIRE_CODEC_R16)
		entry->class_bytes += 132u * o->streams;
	wire = entry->class_bytes + raw_bytes +
	       (uint64_t)o->exceptions * (3 + dtype_bytes(o->shape.dtype)) +
	       stored / o->shape.tokens * o->verbatim_tokens;
	assert_true(wire <= stored);
	entry->wire_bytes = (uint32_t)wire;
	entry->class_crc = o->codec == WIRE_CODEC_R16 ? 0 : (uint32_t)sample_random(seed);
}

static void append_entry(const struct sample_options *o, struct builder *builder,
			 struct container_entry *entry, uint64_t *seed)
{
	uint64_t room;
	uint8_t *wire;

	entry->codec = o->codec;
	entry->streams_count = o->codec == WIRE_CODEC_R16 ? o->streams : 1;
	if (o->codec == WIRE_CODEC_STORED)
		entry->wire_bytes = (uint32_t)entry_stored_bytes(&o->shape, entry);
	else
		append_coded(o, builder, entry, seed);
	wire = builder_wire(builder, &room);
	assert_true(entry->wire_bytes <= room);
	random_bytes(wire, entry->wire_bytes, seed);
	assert_int_equal(builder_append(builder, entry), 0);
}

static void append_all(const struct sample_options *o, struct builder *builder, uint64_t *seed)
{
	uint32_t tensors = shape_tensors(&o->shape);
	uint32_t each = o->tensors_each ? o->tensors_each : 1;

	for (uint32_t t = 0; t < tensors; t += each) {
		uint32_t part = t % o->shape.parts_count;
		uint32_t groups = part_groups(&o->shape.parts[part]);
		uint32_t step = o->groups_each ? o->groups_each : groups;

		for (uint32_t g = 0; g < groups; g += step) {
			struct container_entry entry = {
			    .layer = (uint16_t)(t / o->shape.parts_count),
			    .part = (uint8_t)part,
			    .group0 = (uint16_t)g,
			    .groups_count = (uint16_t)u64_min(step, groups - g),
			    .tensors_count = (uint8_t)u64_min(each, tensors - t),
			};

			append_entry(o, builder, &entry, seed);
		}
	}
}

void sample_build(const struct sample_options *options, struct sample *ret_sample)
{
	uint64_t capacity = shape_container_bytes_max(&options->shape) + CONTAINER_SLACK_BYTES;
	const float error[SSV_PARTS_MAX] = {0.01f, 0.02f, 0.03f, 0.04f};
	struct container_header header = {
	    .first_token = 512,
	    .verbatim_tokens = options->verbatim_tokens,
	    .tier = options->tier,
	    .shape = options->shape,
	};
	uint64_t seed = options->seed;
	struct builder builder;

	random_bytes(header.key.bytes, sizeof(header.key.bytes), &seed);
	random_bytes(header.model, sizeof(header.model), &seed);
	ret_sample->bytes = malloc(capacity);
	assert_non_null(ret_sample->bytes);
	assert_int_equal(builder_begin(&builder, &header, ret_sample->bytes, capacity), 0);
	append_all(options, &builder, &seed);
	assert_int_equal(builder_finish(&builder, error, &ret_sample->value_bytes), 0);
	assert_true(ret_sample->value_bytes <= capacity - CONTAINER_SLACK_BYTES);
	/* Shrunk, so that a sanitizer sees every read past the slack. */
	ret_sample->bytes =
	    realloc(ret_sample->bytes, ret_sample->value_bytes + CONTAINER_SLACK_BYTES);
	assert_non_null(ret_sample->bytes);
	ret_sample->header = builder.header;
}

void sample_free(struct sample *sample)
{
	free(sample->bytes);
	sample->bytes = NULL;
}

struct container_expect sample_expect(const struct sample *sample)
{
	return (struct container_expect){
	    .key = sample->header.key,
	    .value_bytes = sample->value_bytes,
	    .shape = &sample->header.shape,
	    .model = sample->header.model,
	    .first_token = sample->header.first_token,
	    .min_tier = sample->header.tier,
	};
}

void sample_reseal(uint8_t *bytes)
{
	uint32_t table = load_le32(bytes + 128), meta = load_le32(bytes + 132);
	uint32_t meta_bytes = load_le32(bytes + 136);

	store_le32(bytes + 140, crc32c(0, bytes + table, (uint64_t)meta + meta_bytes - table));
	store_le32(bytes + 252, crc32c(0, bytes, 252));
}

enum container_fault sample_verdict(const uint8_t *bytes, const struct container_expect *expect,
				    int *ret_err)
{
	struct container container;
	enum container_fault fault;

	*ret_err = container_open(&container, bytes, expect->value_bytes, expect, &fault);
	assert_int_not_equal(*ret_err, -EAGAIN);
	assert_int_equal(*ret_err == 0, fault == CONTAINER_FAULT_NONE);
	for (uint32_t i = 0; !*ret_err && i < container.header.segments_count; i++) {
		struct container_entry entry;
		struct tensor_meta meta;

		container_entry(&container, i, &entry);
		for (uint32_t t = 0; t < entry.tensors_count; t++)
			container_tensor_meta(&container, &entry, t, &meta);
		fault = container_segment_check(&container, i);
		*ret_err = fault ? -EBADMSG : 0;
	}
	return fault;
}
