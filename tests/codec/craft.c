/* SPDX-License-Identifier: Apache-2.0 */
/* craft.c - see craft.h. */
#include "craft.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/crc.h"
#include "chunk/fields.h"
#include "codec/float.h"

#define PLACES_MAX 8192u

/* One tensor's share of an entry. */
struct tensor {
	struct tensor_extent extent;
	uint32_t dim;
	uint8_t raw_bits[GROUPS_MAX], frequency[GROUPS_MAX][16];
	uint16_t steps[PLACES_MAX];
	int16_t offset[PLACES_MAX];
	uint8_t delta[PLACES_MAX], factor[PLACES_MAX];
	uint16_t order[PLACES_MAX];
	uint16_t *symbols; /* [tokens][place] */
	uint8_t *classes;  /* as a class plane */
};

struct workshop {
	const struct craft *craft;
	struct random random;
	struct test_codec *codec;
	struct builder builder;
	uint8_t *elements; /* the expected result */
	struct tensor tensors[ENTRY_TENSORS_MAX];
	uint32_t tensors_count;
	uint8_t *meta, *wire;
};

static uint32_t groups_of(const struct tensor *t)
{
	return t->extent.groups_count;
}

static uint32_t lanes_of(const struct tensor *t, uint32_t group)
{
	uint32_t left = t->extent.channels_count - group * 64;

	return left < 64 ? left : 64;
}

/* The place within its group that a lane holds, as the format's table has it. */
static uint32_t place_of_lane(uint32_t lane, uint32_t lanes)
{
	const uint32_t i = lane / 4;
	const uint32_t table[4] = {2 * i, 2 * i + 1, 32 + 2 * i, 33 + 2 * i};

	return lanes < 64 ? lane : table[lane % 4];
}

static void fill_frequency(struct random *random, uint8_t frequency[16])
{
	for (uint32_t i = 0; i < 16; i++)
		frequency[i] = 1;
	for (uint32_t left = 240; left; left--)
		frequency[random_below(random, 16) & random_below(random, 16)]++;
}

static void fill_meta(struct workshop *w, struct tensor *t)
{
	struct random *random = &w->random;
	uint8_t flags = w->craft->flags;
	uint32_t channels = t->extent.channels_count;
	uint32_t bits_max = dtype_bytes(w->craft->shape.dtype) == 1 ? 2 : 6;

	for (uint32_t h = 0; h < t->extent.heads_count; h++)
		t->steps[h] = (uint16_t)(0x1400 + random_below(random, 0x2000));
	for (uint32_t g = 0; g < groups_of(t); g++) {
		t->raw_bits[g] = (uint8_t)random_below(random, bits_max + 1);
		fill_frequency(random, t->frequency[g]);
	}
	for (uint32_t c = 0; c < channels; c++) {
		t->offset[c] = 0;
		if (flags & TENSOR_OFFSET_I8)
			t->offset[c] = (int16_t)((int)random_below(random, 256) - 128);
		if (flags & TENSOR_OFFSET_I16)
			t->offset[c] = (int16_t)((int)random_below(random, 65536) - 32768);
		t->delta[c] = flags & TENSOR_DELTA ? random_below(random, 2) : 0;
		t->factor[c] = flags & TENSOR_FACTOR ? (uint8_t)random_below(random, 256) : 128;
		t->order[c] = (uint16_t)c;
	}
	for (uint32_t c = channels; (flags & TENSOR_ORDER) && c-- > 1;) {
		uint32_t other = random_below(random, c + 1);
		uint16_t swap = t->order[c];

		t->order[c] = t->order[other];
		t->order[other] = swap;
	}
}

/* Symbols whose classes follow the frequencies, so that they cost what a table promises. */
static void fill_symbols(struct workshop *w, struct tensor *t)
{
	uint32_t tokens = w->craft->shape.tokens, channels = t->extent.channels_count;

	t->symbols = calloc((size_t)tokens * channels, sizeof(*t->symbols));
	t->classes = calloc((size_t)groups_of(t) * tokens, 64);
	assert_non_null(t->symbols);
	assert_non_null(t->classes);
	for (uint32_t i = 0; i < tokens * channels; i++) {
		uint32_t place = i % channels, slot = random_below(&w->random, 256), class = 0;
		const uint8_t *f = t->frequency[place / 64];
		uint32_t bits = t->raw_bits[place / 64];

		while (slot >= f[class])
			slot -= f[class ++];
		t->symbols[i] = (uint16_t)(class << bits | random_below(&w->random, 1u << bits));
	}
	for (uint32_t g = 0; g < groups_of(t); g++)
		for (uint32_t i = 0; i < tokens * lanes_of(t, g); i++) {
			uint32_t token = i / lanes_of(t, g), lane = i % lanes_of(t, g);
			uint32_t place = g * 64 + place_of_lane(lane, lanes_of(t, g));

			t->classes[(g * tokens + token) * 64 + lane] =
			    (uint8_t)(t->symbols[token * channels + place] >> t->raw_bits[g]);
		}
}

/* s = f32(step) * M[b & 7] * 2^((b >> 3) - 23) */
static float scale_of(const struct tensor *t, uint32_t channel)
{
	static const double m[8] = {128, 140, 152, 166, 181, 197, 215, 235};
	uint32_t head = (t->extent.channel0 + channel) / t->dim - t->extent.head0;
	uint8_t b = t->factor[channel];

	return (float)ldexp((double)f32_from_fp16(t->steps[head]) * m[b & 7], (b >> 3) - 23);
}

/* Where element (token, channel of the extent) lies in the expected result. */
static uint64_t element_index(const struct workshop *w, const struct tensor *t, uint32_t token,
			      uint32_t channel)
{
	const struct chunk_shape *shape = &w->craft->shape;
	uint32_t tensor = t->extent.layer * shape->parts_count + t->extent.part;
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < tensor; i++)
		bytes += shape_tensor_bytes(shape, i % shape->parts_count);
	return bytes / dtype_bytes(shape->dtype) +
	       (uint64_t)token * part_channels(&shape->parts[t->extent.part]) + t->extent.channel0 +
	       channel;
}

/* What a symbol adds to its base, and where its state goes: the table of the format. */
static int trellis_step(int k, uint32_t *state)
{
	static const uint8_t next[4][2] = {{0, 2}, {2, 0}, {1, 3}, {3, 1}};
	int level = 2 * k;

	if (*state >= 2 && k)
		level += k > 0 ? -1 : 1;
	*state = next[*state][k & 1];
	return level;
}

static void expect_values(struct workshop *w, const struct tensor *t)
{
	uint32_t channels = t->extent.channels_count;

	for (uint32_t place = 0; place < channels; place++) {
		uint32_t c = t->order[place], r = t->raw_bits[place / 64];
		int16_t first = (int16_t)(t->offset[c] * (w->craft->is_trellis ? 2 : 1)), n = first;
		uint32_t state = 0;

		for (uint32_t token = 0; token < w->craft->shape.tokens; token++) {
			int base = t->delta[c] ? n : first;
			int k = t->symbols[token * channels + place] - (8 << r);

			n = (int16_t)(base + (w->craft->is_trellis ? trellis_step(k, &state) : k));
			element_store(w->craft->shape.dtype, w->elements,
				      element_index(w, t, token, c), (float)n * scale_of(t, c));
		}
	}
}

static uint8_t *put_meta(const struct workshop *w, const struct tensor *t, uint8_t *out)
{
	uint8_t flags = w->craft->flags;
	uint32_t channels = t->extent.channels_count;

	*out++ = flags;
	for (uint32_t h = 0; h < t->extent.heads_count; h++, out += 2)
		store_le16(out, t->steps[h]);
	memcpy(out, t->raw_bits, groups_of(t));
	out += groups_of(t);
	memcpy(out, t->frequency, groups_of(t) * 16);
	out += groups_of(t) * 16;
	for (uint32_t c = 0; (flags & TENSOR_OFFSET_I8) && c < channels; c++)
		*out++ = (uint8_t)t->offset[c];
	for (uint32_t c = 0; (flags & TENSOR_OFFSET_I16) && c < channels; c++, out += 2)
		store_le16(out, (uint16_t)t->offset[c]);
	if (flags & TENSOR_DELTA) {
		memset(out, 0, (channels + 7) / 8);
		for (uint32_t c = 0; c < channels; c++)
			out[c / 8] |= (uint8_t)(t->delta[c] << c % 8);
		out += (channels + 7) / 8;
	}
	for (uint32_t c = 0; (flags & TENSOR_FACTOR) && c < channels; c++)
		*out++ = t->factor[c];
	for (uint32_t c = 0; (flags & TENSOR_ORDER) && c < channels; c++, out += 2)
		store_le16(out, t->order[c]);
	return out;
}

static uint8_t *put_raw(const struct workshop *w, const struct tensor *t, uint8_t *out)
{
	uint32_t tokens = w->craft->shape.tokens, channels = t->extent.channels_count;

	for (uint32_t g = 0; g < groups_of(t); g++) {
		uint32_t lanes = lanes_of(t, g), r = t->raw_bits[g], bytes = (lanes * r + 7) / 8;

		memset(out, 0, (size_t)bytes * tokens);
		for (uint32_t i = 0; i < tokens * lanes * r; i++) {
			uint32_t token = i / (lanes * r), bit = i % (lanes * r);
			uint32_t place = g * 64 + place_of_lane(bit / r, lanes);
			uint32_t symbol = t->symbols[token * channels + place];

			out[token * bytes + bit / 8] |=
			    (uint8_t)((symbol >> bit % r & 1) << bit % 8);
		}
		out += (size_t)bytes * tokens;
	}
	return out;
}

/* About one element in `period` becomes an exception, in decode order; returns how many. */
static uint32_t put_exceptions(struct workshop *w, const struct tensor *t, uint32_t base,
			       uint32_t period, uint8_t **out)
{
	const struct chunk_shape *shape = &w->craft->shape;
	uint32_t element = dtype_bytes(shape->dtype), count = 0;

	for (uint32_t g = 0; period && g < groups_of(t); g++) {
		uint32_t lanes = lanes_of(t, g);

		for (uint32_t i = w->craft->verbatim_tokens * lanes; i < shape->tokens * lanes;
		     i++) {
			uint32_t place = g * 64 + place_of_lane(i % lanes, lanes);
			uint32_t channel = t->order[place], token = i / lanes;
			uint32_t index = base + token * t->extent.channels_count + channel;
			uint64_t at = element_index(w, t, token, channel) * element;

			if (random_below(&w->random, period))
				continue;
			(*out)[0] = (uint8_t)index;
			(*out)[1] = (uint8_t)(index >> 8);
			(*out)[2] = (uint8_t)(index >> 16);
			*out += 3;
			for (uint32_t b = 0; b < element; b++)
				*(*out)++ = w->elements[at + b] = (uint8_t)random_next(&w->random);
			count++;
		}
	}
	return count;
}

static uint8_t *put_verbatim(struct workshop *w, const struct tensor *t, uint8_t *out)
{
	uint32_t element = dtype_bytes(w->craft->shape.dtype);
	uint32_t row = t->extent.channels_count * element;

	for (uint32_t token = 0; token < w->craft->verbatim_tokens; token++, out += row) {
		for (uint32_t i = 0; i < row; i++)
			out[i] = (uint8_t)random_next(&w->random);
		memcpy(w->elements + element_index(w, t, token, 0) * element, out, row);
	}
	return out;
}

uint32_t craft_deflate(const uint8_t *bytes, uint32_t count, uint8_t *out, uint32_t room)
{
	z_stream z = {0};

	assert_int_equal(deflateInit2(&z, 1, Z_DEFLATED, -15, 8, Z_HUFFMAN_ONLY), Z_OK);
	z.next_in = (Bytef *)(uintptr_t)bytes;
	z.avail_in = count;
	z.next_out = out;
	z.avail_out = room;
	assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
	deflateEnd(&z);
	return (uint32_t)z.total_out;
}

/* The classes of several tensors as one Deflate stream of pairs. */
static void put_pairs(struct workshop *w, struct container_entry *entry)
{
	uint32_t tokens = w->craft->shape.tokens, count = 0;
	uint8_t *pairs = calloc(1, PAIRS_BYTES_MAX);

	assert_non_null(pairs);
	for (uint32_t i = 0; i < w->tensors_count; i++) {
		const struct tensor *t = &w->tensors[i];

		for (uint32_t row = 0; row < groups_of(t) * tokens; row++) {
			uint32_t lanes = lanes_of(t, row / tokens);
			uint32_t bytes = lanes < 32 ? lanes : 32;

			for (uint32_t lane = 0; lane < lanes; lane++)
				pairs[count + lane % 32] |=
				    (uint8_t)(t->classes[row * 64 + lane] << (lane / 32 * 4));
			count += bytes;
		}
	}
	entry->class_bytes = craft_deflate(pairs, count, w->wire, 1 << 20);
	entry->class_crc = crc32_iso(0, pairs, count);
	entry->streams_count = 1;
	free(pairs);
}

static void put_classes(struct workshop *w, struct container_entry *entry)
{
	const struct lossless_ops *ops = lossless_find(w->craft->codec);
	struct tensor *t = w->tensors;
	struct class_plane plane = {.classes = t->classes,
				    .groups_count = groups_of(t),
				    .tokens = w->craft->shape.tokens,
				    .last_lanes = lanes_of(t, groups_of(t) - 1)};
	struct class_result result;

	if (w->tensors_count > 1) {
		put_pairs(w, entry);
		return;
	}
	assert_int_equal(
	    ops->encode(w->codec->scratch, &plane, t->frequency[0], w->wire, 8 << 20, &result), 0);
	entry->class_bytes = result.bytes_count;
	entry->class_crc = result.class_crc;
	entry->streams_count = (uint8_t)result.streams_count;
}

static void put_entry(struct workshop *w, struct container_entry *entry)
{
	const struct chunk_shape *shape = &w->craft->shape;
	uint8_t *meta = w->meta, *out;
	uint32_t base = 0;

	entry->codec = (uint8_t)(w->craft->codec - 1);
	if (w->craft->is_trellis)
		entry->codec = WIRE_CODEC_TRELLIS;
	for (uint32_t i = 0; i < w->tensors_count; i++) {
		struct tensor *t = &w->tensors[i];

		entry_extent(shape, entry, i, &t->extent);
		t->dim = shape->parts[t->extent.part].dim;
		fill_meta(w, t);
		fill_symbols(w, t);
		expect_values(w, t);
		meta = put_meta(w, t, meta);
	}
	put_classes(w, entry);
	out = w->wire + entry->class_bytes;
	for (uint32_t i = 0; i < w->tensors_count; i++)
		out = put_raw(w, &w->tensors[i], out);
	entry->raw_bytes = (uint32_t)(out - w->wire - entry->class_bytes);
	for (uint32_t i = 0; i < w->tensors_count; i++) {
		entry->exceptions_count +=
		    put_exceptions(w, &w->tensors[i], base, w->craft->exceptions, &out);
		base += w->tensors[i].extent.channels_count * shape->tokens;
	}
	for (uint32_t i = 0; i < w->tensors_count; i++) {
		out = put_verbatim(w, &w->tensors[i], out);
		free(w->tensors[i].symbols);
		free(w->tensors[i].classes);
	}
	entry->meta_bytes = (uint32_t)(meta - w->meta);
	entry->wire_bytes = (uint32_t)(out - w->wire);
}

/* Entries for one tensor, or for several from this one on; returns how many tensors. */
static uint32_t put_entries(struct workshop *w, uint32_t tensor)
{
	const struct chunk_shape *shape = &w->craft->shape;
	uint32_t part = tensor % shape->parts_count, left = shape_tensors(shape) - tensor;
	uint32_t groups = part_groups(&shape->parts[part]);
	uint32_t step = w->craft->groups_an_entry ? w->craft->groups_an_entry : groups;
	uint64_t room;

	w->tensors_count = w->craft->tensors_an_entry < left ? w->craft->tensors_an_entry : left;
	for (uint32_t g = 0; g < groups; g += step) {
		struct container_entry entry = {
		    .layer = (uint16_t)(tensor / shape->parts_count),
		    .part = (uint8_t)part,
		    .group0 = (uint16_t)g,
		    .groups_count = (uint16_t)(groups - g < step ? groups - g : step),
		    .tensors_count = (uint8_t)w->tensors_count};

		w->meta = builder_meta(&w->builder, &room);
		w->wire = builder_wire(&w->builder, &room);
		put_entry(w, &entry);
		assert_int_equal(builder_append(&w->builder, &entry), 0);
	}
	return w->tensors_count;
}

struct test_chunk craft_chunk(struct test_codec *codec, const struct craft *craft,
			      uint8_t **ret_elements)
{
	static struct workshop w;
	const float error[SSV_PARTS_MAX] = {0};
	struct container_header header = {.tier = SSV_TIER_STANDARD,
					  .verbatim_tokens = craft->verbatim_tokens,
					  .shape = craft->shape};
	/* wire data that the builder will refuse must still fit */
	uint64_t capacity = shape_container_bytes_max(&craft->shape) * 2 + (16 << 20);
	struct test_chunk chunk = {.bytes = calloc(1, capacity)};

	assert_non_null(chunk.bytes);
	memset(&w, 0, sizeof(w));
	w.craft = craft;
	w.codec = codec;
	w.random.state = craft->seed;
	w.elements = calloc(1, shape_kv_bytes(&craft->shape));
	assert_int_equal(builder_begin(&w.builder, &header, chunk.bytes, capacity), 0);
	for (uint32_t t = 0; t < shape_tensors(&craft->shape);)
		t += put_entries(&w, t);
	assert_int_equal(builder_finish(&w.builder, error, &chunk.bytes_count), 0);
	chunk.bytes = realloc(chunk.bytes, chunk.bytes_count + CONTAINER_SLACK_BYTES);
	assert_non_null(chunk.bytes);
	*ret_elements = w.elements;
	return chunk;
}

void craft_reseal(struct test_chunk *chunk, uint32_t index)
{
	struct container_header header;
	struct container_entry entry;
	uint8_t *table;

	header_load(chunk->bytes, &header);
	table = chunk->bytes + header.table_offset + (size_t)index * CONTAINER_ENTRY_BYTES;
	entry_load(table, &entry);
	if (entry.offset + entry.wire_bytes <= chunk->bytes_count)
		entry.wire_crc = crc32c(0, chunk->bytes + entry.offset, entry.wire_bytes);
	entry_store(table, &entry);
	header.table_crc =
	    crc32c(0, chunk->bytes + header.table_offset,
		   (uint64_t)header.meta_offset + header.meta_bytes - header.table_offset);
	header_store(chunk->bytes, &header);
}
