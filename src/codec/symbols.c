/* SPDX-License-Identifier: Apache-2.0 */
/* symbols.c - meta to per-lane parameters, class planes to class pairs and back. */
#include "codec/symbols.h"

#include <string.h>

#include "codec/float.h"

#define NIBBLE_LANES (LANES / 2)

float step_scale(uint16_t step_bits, uint8_t factor)
{
	static const uint8_t mantissa[8] = {128, 140, 152, 166, 181, 197, 215, 235};
	/* 2^((b >> 3) - 23): b >> 3 is 0..31, so the exponent is 104..135 */
	float power = f32_of((uint32_t)(127 + (factor >> 3) - 23) << 23);

	/* exact: 11 + 8 bits of mantissa, then a power of two */
	return f32_from_fp16(step_bits) * mantissa[factor & 7] * power;
}

/* Steps of a group's lanes, head by head. */
static void scales_load(const struct tensor_meta *meta, const struct tensor_extent *extent,
			uint32_t dim, uint32_t group, struct tile_lanes *lane)
{
	uint32_t place0 = group * LANES, end;
	uint32_t lanes = (uint32_t)u64_min(LANES, extent->channels_count - place0);
	uint32_t head = (extent->channel0 + place0) / dim;

	for (uint32_t p = 0; p < lanes; p = end, head++) {
		float scale = step_scale(load_le16(meta->steps + 2 * (head - extent->head0)),
					 STEP_FACTOR_ONE);

		end = (uint32_t)u64_min(lanes, (head + 1) * dim - extent->channel0 - place0);
		if (end - p == LANES) {
			lane->has_one_scale = 1;
			lane->is_uniform = 1;
			for (uint32_t i = 0; i < LANES; i++)
				lane->scale[i] = scale;
			return;
		}
		for (uint32_t i = p; i < end; i++)
			lane->scale[lane_four(channel_lane(i, lanes))] = scale;
	}
}

/* The same for a full group in the order of channels, each with a factor. */
static void scales_load_factors(const struct tensor_meta *meta, const struct tensor_extent *extent,
				uint32_t dim, uint32_t group, struct tile_lanes *lane)
{
	uint32_t place0 = group * LANES, end;
	uint32_t head = (extent->channel0 + place0) / dim;
	float scale[LANES];

	for (uint32_t p = 0; p < LANES; p = end, head++) {
		uint16_t step = load_le16(meta->steps + 2 * (head - extent->head0));

		end = (uint32_t)u64_min(LANES, (head + 1) * dim - extent->channel0 - place0);
		for (uint32_t i = p; i < end; i++)
			scale[i] = step_scale(step, meta->factor[place0 + i]);
	}
	/* place 2 i + odd + 32 half is lane 4 i + odd + 2 half */
	for (uint32_t i = 0; i < LANES / 4; i++) {
		lane->scale[i] = scale[2 * i];
		lane->scale[i + LANES / 4] = scale[2 * i + 1];
		lane->scale[i + LANES / 2] = scale[2 * i + LANES / 2];
		lane->scale[i + 3 * LANES / 4] = scale[2 * i + 1 + LANES / 2];
	}
}

/* The same one by one: channels in another order, or a part of a group with factors. */
static void scales_load_each(const struct tensor_meta *meta, const struct tensor_extent *extent,
			     uint32_t dim, uint32_t group, struct tile_lanes *lane)
{
	uint32_t place0 = group * LANES;
	uint32_t lanes = (uint32_t)u64_min(LANES, extent->channels_count - place0);

	for (uint32_t p = 0; p < lanes; p++) {
		uint32_t c = meta_channel(meta, place0 + p);
		uint32_t head = (extent->channel0 + c) / dim - extent->head0;
		uint8_t factor = meta->factor ? meta->factor[c] : STEP_FACTOR_ONE;

		lane->scale[lane_four(channel_lane(p, lanes))] =
		    step_scale(load_le16(meta->steps + 2 * head), factor);
	}
}

/* A group in the order of channels to split order: place 2 i + odd + 32 half is lane 4 i + odd +
 * 2 half. */
static void lanes_split(const int16_t value[LANES], int16_t lane[LANES])
{
	for (uint32_t i = 0; i < LANES / 2; i += 2) {
		lane[i] = value[i];
		lane[i + 1] = value[i + LANES / 2];
		lane[i + LANES / 2] = value[i + 1];
		lane[i + LANES / 2 + 1] = value[i + LANES / 2 + 1];
	}
}

/* Offsets and delta bits of a full group: loops that compilers make vectors of. */
static void integers_load(const struct tensor_meta *meta, uint32_t place0, struct tile_lanes *lane)
{
	_Alignas(CACHE_LINE_BYTES) int16_t value[LANES];

	if (meta->flags & (TENSOR_OFFSET_I8 | TENSOR_OFFSET_I16)) {
		if (meta->flags & TENSOR_OFFSET_I8)
			for (uint32_t p = 0; p < LANES; p++)
				value[p] = (int8_t)meta->offsets[place0 + p];
		else
			for (uint32_t p = 0; p < LANES; p++)
				value[p] =
				    (int16_t)load_le16(meta->offsets + 2 * (size_t)(place0 + p));
		lanes_split(value, lane->offset);
	}
	if (!lane->has_delta)
		return;
	for (uint32_t q = 0; q < LANES / 16; q++) {
		int16_t bits = (int16_t)load_le16(meta->delta + place0 / 8 + 2 * q);

		for (uint32_t i = 0; i < 16; i++)
			value[q * 16 + i] = (int16_t) - ((bits & (int16_t)(1u << i)) != 0);
	}
	lanes_split(value, lane->delta);
}

static void integers_load_each(const struct tensor_meta *meta, uint32_t place0, uint32_t lanes,
			       struct tile_lanes *lane)
{
	for (uint32_t p = 0; p < lanes; p++) {
		uint32_t c = meta_channel(meta, place0 + p);
		uint32_t at = lane_split(channel_lane(p, lanes));

		if (meta->flags & TENSOR_OFFSET_I8)
			lane->offset[at] = (int8_t)meta->offsets[c];
		else if (meta->flags & TENSOR_OFFSET_I16)
			lane->offset[at] = (int16_t)load_le16(meta->offsets + 2 * c);
		if (meta->delta && meta->delta[c / 8] >> c % 8 & 1)
			lane->delta[at] = -1;
	}
}

/* A tensor with delta bits may have a few: groups without are the faster ones. */
static int group_has_delta(const struct tensor_meta *meta, uint32_t place0, uint32_t lanes)
{
	if (!meta->delta || meta->order || lanes < LANES)
		return meta->delta != NULL;
	return load_le64(meta->delta + place0 / 8) != 0;
}

void group_load(const struct tensor_meta *meta, const struct tensor_extent *extent, uint32_t dim,
		uint32_t group, struct tile_lanes *ret_lane)
{
	struct tile_lanes *lane = ret_lane;
	uint32_t place0 = group * LANES;
	uint32_t lanes = (uint32_t)u64_min(LANES, extent->channels_count - place0);

	memset(lane, 0, sizeof(*lane));
	if (meta->factor && !meta->order && lanes == LANES)
		scales_load_factors(meta, extent, dim, group, lane);
	else if (meta->order || meta->factor)
		scales_load_each(meta, extent, dim, group, lane);
	else
		scales_load(meta, extent, dim, group, lane);
	lane->has_delta = group_has_delta(meta, place0, lanes);
	if (!meta->offsets && !lane->has_delta)
		return;
	lane->is_uniform = 0;
	if (lanes < LANES || meta->order)
		integers_load_each(meta, place0, lanes, lane);
	else
		integers_load(meta, place0, lane);
	memcpy(lane->integer, lane->offset, sizeof(lane->integer));
}

static uint32_t row_pairs(uint32_t lanes)
{
	return (uint32_t)u64_min(lanes, NIBBLE_LANES);
}

uint32_t class_pairs_bytes(const struct class_plane *plane)
{
	return plane->tokens *
	       ((plane->groups_count - 1) * NIBBLE_LANES + row_pairs(plane->last_lanes));
}

static inline void row_pack(const uint8_t *row, uint32_t lanes, uint8_t *pairs)
{
	uint8_t in[LANES] = {0};

	if (lanes == LANES) {
		memcpy(in, row, LANES);
		for (uint32_t k = 0; k < NIBBLE_LANES; k++)
			pairs[k] = (uint8_t)(in[k] | in[k + NIBBLE_LANES] << 4);
		return;
	}
	memcpy(in, row, lanes);
	for (uint32_t k = 0; k < row_pairs(lanes); k++)
		pairs[k] = (uint8_t)(in[k] | in[k + NIBBLE_LANES] << 4);
}

void class_pairs_pack(const struct class_plane *plane, uint8_t *pairs)
{
	for (uint32_t g = 0; g < plane->groups_count; g++) {
		uint32_t lanes = plane_lanes(plane, g), bytes = row_pairs(lanes);
		const uint8_t *row = plane_group(plane, g);

		for (uint32_t t = 0; t < plane->tokens; t++, row += LANES, pairs += bytes)
			row_pack(row, lanes, pairs);
	}
}

/* Pairs to one row; lanes past the pairs become 0. */
static inline __attribute__((always_inline)) void row_unpack(const uint8_t *pairs, uint32_t bytes,
							     uint8_t *row)
{
	uint8_t in[NIBBLE_LANES] = {0};

	memcpy(in, pairs, bytes);
	for (uint32_t k = 0; k < NIBBLE_LANES; k++)
		row[k] = in[k] & 15;
	for (uint32_t k = 0; k < NIBBLE_LANES; k++)
		row[k + NIBBLE_LANES] = in[k] >> 4;
}

void class_pairs_unpack(const struct class_plane *plane, const uint8_t *pairs)
{
	for (uint32_t g = 0; g < plane->groups_count; g++) {
		uint32_t bytes = row_pairs(plane_lanes(plane, g));
		uint8_t *row = plane_group(plane, g);

		for (uint32_t t = 0; t < plane->tokens; t++, row += LANES, pairs += bytes) {
			if (bytes == NIBBLE_LANES)
				row_unpack(pairs, NIBBLE_LANES, row);
			else
				row_unpack(pairs, bytes, row);
		}
	}
}

void class_plane_open(struct class_plane *plane, struct codec_scratch *scratch,
		      const struct tensor_extent *extent, uint32_t tokens)
{
	plane->classes = scratch->classes;
	plane->groups_count = extent->groups_count;
	plane->tokens = tokens;
	plane->last_lanes = extent->channels_count - (extent->groups_count - 1) * LANES;
}

void class_source_open(const struct container *container, const struct container_entry *entry,
		       struct class_source *ret_source)
{
	const struct chunk_shape *shape = &container->header.shape;

	memset(ret_source, 0, sizeof(*ret_source));
	ret_source->bytes = container->bytes + entry->offset;
	ret_source->bytes_count = entry->class_bytes;
	ret_source->streams_count = entry->streams_count;
	ret_source->class_crc = entry->class_crc;
	for (uint32_t t = 0; t < entry->tensors_count; t++) {
		struct tensor_extent extent;
		struct class_plane plane = {.tokens = shape->tokens};

		entry_extent(shape, entry, t, &extent);
		plane.groups_count = extent.groups_count;
		plane.last_lanes = extent.channels_count - (extent.groups_count - 1) * LANES;
		ret_source->pairs_bytes += class_pairs_bytes(&plane);
	}
}
