/* SPDX-License-Identifier: Apache-2.0 */
/*
 * entry.c - one entry of the segment table: what it covers, where its meta lies, whether it is
 * consistent.
 *
 * Every length is compared with what codec, shape and meta say it must be, so that a decoder needs
 * no length checks but those inside the entropy-coded data.
 */
#include "chunk/entry.h"

#include <string.h>

#include "base/bytes.h"

#define TENSOR_FLAGS_ALL \
	(TENSOR_OFFSET_I8 | TENSOR_OFFSET_I16 | TENSOR_DELTA | TENSOR_FACTOR | TENSOR_ORDER)
#define FREQUENCY_SUM 256u
#define STEP_BITS_MAX 0x7bffu
#define PAIRS_BYTES   (GROUP_CHANNELS / 2) /* class pairs of one (group, token) */

uint32_t dtype_raw_bits(uint8_t dtype)
{
	static const uint8_t bits[] = {8, 11, 24, 4, 3};

	return dtype < ARRAY_COUNT(bits) ? bits[dtype] : 0;
}

uint32_t dtype_exponent_max(uint8_t dtype)
{
	static const uint8_t exponent[] = {255, 31, 255, 15, 31};

	return dtype < ARRAY_COUNT(exponent) ? exponent[dtype] : 0;
}

void entry_extent(const struct chunk_shape *shape, const struct container_entry *entry,
		  uint32_t tensor, struct tensor_extent *ret_extent)
{
	uint32_t index = (uint32_t)entry->layer * shape->parts_count + entry->part + tensor;
	struct tensor_extent *x = ret_extent;
	const struct chunk_part *part;
	uint32_t end;

	x->layer = index / shape->parts_count;
	x->part = index % shape->parts_count;
	part = &shape->parts[x->part];
	x->group0 = tensor ? 0 : entry->group0;
	x->groups_count = entry->tensors_count > 1 ? part_groups(part) : entry->groups_count;
	x->channel0 = x->group0 * GROUP_CHANNELS;
	end =
	    (uint32_t)u64_min((x->group0 + x->groups_count) * GROUP_CHANNELS, part_channels(part));
	x->channels_count = end - x->channel0;
	x->head0 = x->channel0 / part->dim;
	x->heads_count = (end - 1) / part->dim - x->head0 + 1;
}

uint64_t entry_stored_bytes(const struct chunk_shape *shape, const struct container_entry *entry)
{
	struct tensor_extent extent;
	uint64_t channels = 0;

	for (uint32_t t = 0; t < entry->tensors_count; t++) {
		entry_extent(shape, entry, t, &extent);
		channels += extent.channels_count;
	}
	return channels * shape->tokens * dtype_bytes(shape->dtype);
}

uint32_t tensor_meta_bytes(uint8_t flags, int lossless, uint32_t heads, uint32_t groups,
			   uint32_t channels)
{
	uint32_t bytes = 1 + groups * META_CLASSES;

	bytes += lossless ? groups * META_CLASSES : 2 * heads + groups;
	if (flags & TENSOR_OFFSET_I8)
		bytes += channels;
	if (flags & TENSOR_OFFSET_I16)
		bytes += 2 * channels;
	if (flags & TENSOR_DELTA)
		bytes += (channels + 7) / 8;
	if (flags & TENSOR_FACTOR)
		bytes += channels;
	if (flags & TENSOR_ORDER)
		bytes += 2 * channels;
	return bytes;
}

static const uint8_t *take(const uint8_t **next, uint32_t bytes)
{
	const uint8_t *field = *next;

	*next += bytes;
	return bytes ? field : NULL;
}

/* Set the pointers of one tensor's meta, which begins at next; returns where it ends. */
static const uint8_t *meta_load(int lossless, const struct tensor_extent *extent,
				const uint8_t *next, struct tensor_meta *meta)
{
	uint32_t channels = extent->channels_count, groups = extent->groups_count;
	uint8_t flags = *next++;

	memset(meta, 0, sizeof(*meta));
	meta->flags = flags;
	meta->groups_count = groups;
	meta->channels_count = channels;
	meta->heads_count = extent->heads_count;
	if (!lossless) {
		meta->steps = take(&next, 2 * extent->heads_count);
		meta->raw_bits = take(&next, groups);
	}
	meta->frequency = take(&next, groups * META_CLASSES);
	if (lossless)
		meta->exponent = take(&next, groups * META_CLASSES);
	if (flags & TENSOR_OFFSET_I8)
		meta->offsets = take(&next, channels);
	else if (flags & TENSOR_OFFSET_I16)
		meta->offsets = take(&next, 2 * channels);
	if (flags & TENSOR_DELTA)
		meta->delta = take(&next, (channels + 7) / 8);
	if (flags & TENSOR_FACTOR)
		meta->factor = take(&next, channels);
	if (flags & TENSOR_ORDER)
		meta->order = take(&next, 2 * channels);
	return next;
}

void container_tensor_meta(const struct container *container, const struct container_entry *entry,
			   uint32_t tensor, struct tensor_meta *ret_meta)
{
	const struct container_header *header = &container->header;
	const uint8_t *next = container->bytes + entry->meta_offset;
	struct tensor_extent extent;

	ssv_assert(tensor < entry->tensors_count);
	for (uint32_t t = 0; t <= tensor; t++) {
		entry_extent(&header->shape, entry, t, &extent);
		if (entry->codec != WIRE_CODEC_STORED)
			next =
			    meta_load(header->tier == SSV_TIER_LOSSLESS, &extent, next, ret_meta);
	}
	if (entry->codec == WIRE_CODEC_STORED) {
		memset(ret_meta, 0, sizeof(*ret_meta));
		ret_meta->groups_count = extent.groups_count;
		ret_meta->channels_count = extent.channels_count;
		ret_meta->heads_count = extent.heads_count;
	}
}

uint64_t tensor_raw_bytes(const struct container_header *header, const struct tensor_meta *meta)
{
	uint64_t token_bytes = 0;

	for (uint32_t g = 0; g < meta->groups_count; g++) {
		uint32_t lanes =
		    (uint32_t)u64_min(GROUP_CHANNELS, meta->channels_count - g * GROUP_CHANNELS);
		uint32_t bits =
		    meta->raw_bits ? meta->raw_bits[g] : dtype_raw_bits(header->shape.dtype);

		token_bytes += (lanes * bits + 7) / 8;
	}
	return token_bytes * header->shape.tokens;
}

static int frequencies_are_sound(const struct tensor_meta *meta)
{
	for (uint32_t g = 0; g < meta->groups_count; g++) {
		uint32_t sum = 0;

		for (uint32_t i = 0; i < META_CLASSES; i++)
			sum += meta->frequency[g * META_CLASSES + i];
		if (sum != FREQUENCY_SUM)
			return 0;
	}
	return 1;
}

static int steps_are_sound(const struct tensor_meta *meta)
{
	for (uint32_t h = 0; h < meta->heads_count; h++) {
		uint16_t step = load_le16(meta->steps + 2 * h);

		if (!step || step > STEP_BITS_MAX)
			return 0;
	}
	for (uint32_t g = 0; g < meta->groups_count; g++) {
		if (meta->raw_bits[g] > RAW_BITS_MAX)
			return 0;
	}
	return 1;
}

static int order_is_bijective(const struct tensor_meta *meta)
{
	uint64_t seen[SSV_CHANNELS_MAX / 64] = {0};

	for (uint32_t p = 0; p < meta->channels_count; p++) {
		uint32_t channel = load_le16(meta->order + 2 * p);
		uint64_t bit = UINT64_C(1) << (channel % 64);

		if (channel >= meta->channels_count || (seen[channel / 64] & bit))
			return 0;
		seen[channel / 64] |= bit;
	}
	return 1;
}

static int flags_are_sound(uint8_t flags, int lossless)
{
	if (flags & ~(lossless ? TENSOR_ORDER : TENSOR_FLAGS_ALL))
		return 0;
	return !(flags & TENSOR_OFFSET_I8) || !(flags & TENSOR_OFFSET_I16);
}

static int meta_is_sound(const struct container_header *header, const struct tensor_meta *meta)
{
	uint32_t tail = meta->channels_count % 8;

	if (!frequencies_are_sound(meta) || (meta->steps && !steps_are_sound(meta)))
		return 0;
	for (uint32_t i = 0; meta->exponent && i < meta->groups_count * META_CLASSES; i++) {
		if (meta->exponent[i] > dtype_exponent_max(header->shape.dtype))
			return 0;
	}
	if (meta->delta && tail && meta->delta[meta->channels_count / 8] >> tail)
		return 0;
	return !meta->order || order_is_bijective(meta);
}

/* Meta of all tensors of an entry is sound and exactly meta_bytes long; adds up raw planes. */
static int entry_meta_is_sound(const struct container_header *header,
			       const struct container_entry *entry, const uint8_t *meta,
			       uint64_t *ret_raw_bytes)
{
	int lossless = header->tier == SSV_TIER_LOSSLESS;
	const uint8_t *next = meta, *end = meta + entry->meta_bytes;
	uint64_t raw_bytes = 0;

	for (uint32_t t = 0; t < entry->tensors_count; t++) {
		struct tensor_extent extent;
		struct tensor_meta tensor;
		uint64_t room = (uint64_t)(end - next);

		entry_extent(&header->shape, entry, t, &extent);
		if (!room || !flags_are_sound(*next, lossless) ||
		    tensor_meta_bytes(*next, lossless, extent.heads_count, extent.groups_count,
				      extent.channels_count) > room)
			return 0;
		next = meta_load(lossless, &extent, next, &tensor);
		if (!meta_is_sound(header, &tensor))
			return 0;
		raw_bytes += tensor_raw_bytes(header, &tensor);
	}
	*ret_raw_bytes = raw_bytes;
	return next == end;
}

/* The entry begins where the walk stands and covers whole groups of tensors that exist. */
static int extent_is_sound(const struct chunk_shape *shape, const struct container_entry *entry,
			   const struct entry_walk *walk)
{
	uint32_t groups, tensors = shape_tensors(shape);

	if (entry->part >= shape->parts_count || walk->tensor >= tensors ||
	    (uint32_t)entry->layer * shape->parts_count + entry->part != walk->tensor ||
	    entry->group0 != walk->group)
		return 0;
	groups = part_groups(&shape->parts[entry->part]);
	if (!entry->groups_count || entry->group0 + (uint32_t)entry->groups_count > groups)
		return 0;
	if (!entry->tensors_count || entry->tensors_count > ENTRY_TENSORS_MAX ||
	    entry->tensors_count > tensors - walk->tensor)
		return 0;
	return entry->tensors_count == 1 ||
	       (entry->codec == WIRE_CODEC_DEFLATE && entry->groups_count == groups);
}

static int streams_are_sound(const struct container_entry *entry)
{
	if (entry->codec != WIRE_CODEC_R16 && entry->codec != WIRE_CODEC_TRELLIS)
		return entry->streams_count == 1;
	if (entry->streams_count != 1 && entry->streams_count != 2 && entry->streams_count != 4)
		return 0;
	return entry->streams_count <= entry->groups_count &&
	       entry->class_bytes >= entry->streams_count * R16_STREAM_BYTES_MIN;
}

static int inflated_fits(const struct chunk_shape *shape, const struct container_entry *entry)
{
	struct tensor_extent extent;
	uint64_t bytes = 0;

	for (uint32_t t = 0; t < entry->tensors_count; t++) {
		entry_extent(shape, entry, t, &extent);
		bytes += (uint64_t)extent.groups_count * shape->tokens * PAIRS_BYTES;
	}
	return bytes <= INFLATED_BYTES_MAX;
}

static enum container_fault stored_check(const struct container_header *header,
					 const struct container_entry *entry)
{
	if (entry->wire_bytes != entry_stored_bytes(&header->shape, entry) || entry->class_bytes ||
	    entry->raw_bytes || entry->exceptions_count || entry->class_crc)
		return CONTAINER_FAULT_TABLE;
	return entry->meta_bytes ? CONTAINER_FAULT_META : CONTAINER_FAULT_NONE;
}

/* Wire = class data, raw planes, exceptions, verbatim tokens; never longer than STORED. */
static enum container_fault coded_check(const struct container_header *header,
					const struct container_entry *entry, const uint8_t *meta)
{
	const struct chunk_shape *shape = &header->shape;
	uint64_t stored = entry_stored_bytes(shape, entry);
	uint64_t element = dtype_bytes(shape->dtype);
	uint64_t wire = (uint64_t)entry->class_bytes + entry->raw_bytes +
			entry->exceptions_count * (EXCEPTION_INDEX_BYTES + element) +
			stored / shape->tokens * header->verbatim_tokens;
	uint64_t raw_bytes;

	if (!entry->class_bytes || entry->wire_bytes != wire || wire > stored ||
	    !inflated_fits(shape, entry))
		return CONTAINER_FAULT_TABLE;
	if (!entry_meta_is_sound(header, entry, meta, &raw_bytes))
		return CONTAINER_FAULT_META;
	return entry->raw_bytes == raw_bytes ? CONTAINER_FAULT_NONE : CONTAINER_FAULT_TABLE;
}

static void walk_advance(const struct chunk_shape *shape, const struct container_entry *entry,
			 struct entry_walk *walk)
{
	walk->group += entry->groups_count;
	if (walk->group == part_groups(&shape->parts[entry->part])) {
		walk->tensor += entry->tensors_count;
		walk->group = 0;
	}
	walk->meta_end += entry->meta_bytes;
	walk->wire_end = container_entry_end(entry);
}

enum container_fault entry_check(const struct container_header *header,
				 const struct container_entry *entry, const uint8_t *meta,
				 uint64_t meta_room, struct entry_walk *walk)
{
	enum container_fault fault;

	if (!extent_is_sound(&header->shape, entry, walk))
		return CONTAINER_FAULT_TABLE;
	if (entry->codec == WIRE_CODEC_R16_32 || entry_must_flags(entry) & ~header->must_flags)
		return CONTAINER_FAULT_CODEC;
	if (entry->codec == WIRE_CODEC_TRELLIS && header->tier == SSV_TIER_LOSSLESS)
		return CONTAINER_FAULT_TABLE;
	if (!streams_are_sound(entry) || entry->meta_offset != walk->meta_end ||
	    entry->meta_bytes > meta_room ||
	    entry->offset != align_up(walk->wire_end, WIRE_ALIGN_BYTES))
		return CONTAINER_FAULT_TABLE;
	fault = entry->codec == WIRE_CODEC_STORED ? stored_check(header, entry)
						  : coded_check(header, entry, meta);
	if (fault == CONTAINER_FAULT_NONE)
		walk_advance(&header->shape, entry, walk);
	return fault;
}
