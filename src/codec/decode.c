/* SPDX-License-Identifier: Apache-2.0 */
/*
 * decode.c - one entry of a container, verified and written to its targets.
 *
 * A tensor is decoded group by group: classes (back end) -> tile of elements (kernels) ->
 * exceptions and verbatim tokens merged in -> targets. container_open() has checked every length
 * and the meta; what is checked here is the class data and the exceptions.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "codec/codec.h"
#include "codec/float.h"
#include "codec/kernels.h"
#include "codec/lossless.h"
#include "codec/symbols.h"

/* The parts of an entry's wire data that are read front to back. */
struct cursors {
	const uint8_t *raw, *exception, *verbatim;
	uint32_t exceptions_left;
};

/* One tensor of an entry. */
struct tensor_work {
	const struct container_header *header;
	struct tensor_meta meta;
	struct tensor_extent extent;
	uint32_t index; /* in the entry */
	uint32_t tokens, element_bytes, dim, verbatim;
	const struct decode_target *target;
	struct codec_scratch *scratch;
	const struct kernels *kernels;
};

static void tensor_open(struct tensor_work *w, const struct container *container,
			const struct container_entry *entry, uint32_t index)
{
	const struct container_header *header = &container->header;

	entry_extent(&header->shape, entry, index, &w->extent);
	container_tensor_meta(container, entry, index, &w->meta);
	w->header = header;
	w->index = index;
	w->tokens = header->shape.tokens;
	w->element_bytes = dtype_bytes(header->shape.dtype);
	w->dim = header->shape.parts[w->extent.part].dim;
	w->verbatim = header->verbatim_tokens;
}

/* Where channel c of the extent stands in the coded order. */
static void order_invert(const struct tensor_work *w)
{
	for (uint32_t p = 0; w->meta.order && p < w->meta.channels_count; p++)
		w->scratch->position[load_le16(w->meta.order + 2 * p)] = (uint16_t)p;
}

static uint32_t group_lanes(const struct tensor_work *w, uint32_t group)
{
	return (uint32_t)u64_min(LANES, w->extent.channels_count - group * LANES);
}

/* Byte offsets of a group's places at the target. */
static void group_places(const struct tensor_work *w, uint32_t group, uint32_t place[LANES])
{
	const uint32_t *channel = w->target->channel + w->extent.channel0;

	for (uint32_t p = 0; p < group_lanes(w, group); p++)
		place[p] = channel[meta_channel(&w->meta, group * LANES + p)];
}

static void group_scatter(const struct tensor_work *w, uint32_t group, const uint8_t *elements,
			  uint32_t row_bytes)
{
	uint32_t place[LANES];
	struct scatter_job job = {.elements = elements,
				  .row_bytes = row_bytes,
				  .tokens = w->tokens,
				  .lanes = group_lanes(w, group),
				  .element_bytes = w->element_bytes,
				  .place = place,
				  .token = w->target->token,
				  .token_stride = w->target->token_stride};

	group_places(w, group, place);
	w->kernels->scatter(&job);
}

static void stored_tensor(const struct tensor_work *w, const uint8_t *wire)
{
	uint32_t row_bytes = w->extent.channels_count * w->element_bytes;

	for (uint32_t group = 0; group < w->extent.groups_count; group++)
		group_scatter(w, group, wire + group * LANES * w->element_bytes, row_bytes);
}

/*
 * Merge the exceptions of one group into its tile. They must lie in range, outside verbatim tokens,
 * and come in decode order, each once; one that is out of turn is left, and found at the end.
 */
static int group_exceptions(const struct tensor_work *w, uint32_t group, struct cursors *at)
{
	uint32_t exception_bytes = EXCEPTION_INDEX_BYTES + w->element_bytes;
	uint32_t lanes = group_lanes(w, group);
	int64_t last = -1;

	for (; at->exceptions_left; at->exceptions_left--, at->exception += exception_bytes) {
		uint32_t index = (uint32_t)at->exception[0] | (uint32_t)at->exception[1] << 8 |
				 (uint32_t)at->exception[2] << 16;
		uint32_t channels = w->extent.channels_count;
		uint32_t token, channel, position, lane;
		int64_t turn;

		if (index < w->scratch->index_base ||
		    index - w->scratch->index_base >= w->tokens * channels)
			return 0;
		token = (index - w->scratch->index_base) / channels;
		channel = (index - w->scratch->index_base) % channels;
		position = w->meta.order ? w->scratch->position[channel] : channel;
		if (position / LANES != group)
			return 0;
		lane = channel_lane(position % LANES, lanes);
		turn = (int64_t)token * LANES + lane;
		if (turn <= last || token < w->verbatim)
			return -EBADMSG;
		last = turn;
		memcpy(w->scratch->tile + (token * LANES + position % LANES) * w->element_bytes,
		       at->exception + EXCEPTION_INDEX_BYTES, w->element_bytes);
	}
	return 0;
}

static void group_verbatim(const struct tensor_work *w, uint32_t group, const uint8_t *verbatim)
{
	uint32_t bytes = w->element_bytes, row = w->extent.channels_count * bytes;

	for (uint32_t token = 0; token < w->verbatim; token++) {
		for (uint32_t p = 0; p < group_lanes(w, group); p++) {
			uint32_t channel = meta_channel(&w->meta, group * LANES + p);

			memcpy(w->scratch->tile + (token * LANES + p) * bytes,
			       verbatim + token * row + channel * bytes, bytes);
		}
	}
}

static void group_tile(const struct tensor_work *w, uint32_t group, const uint8_t *raw,
		       const struct class_plane *plane)
{
	struct group_parameters parameters;
	struct tile_job job = {.classes = plane_group(plane, group),
			       .raw = raw,
			       .tokens = w->tokens,
			       .lanes = group_lanes(w, group),
			       .raw_bits = group_raw_bits(w->header, &w->meta, group),
			       .dtype = w->header->shape.dtype,
			       .tile = w->scratch->tile};

	if (w->meta.exponent) {
		job.exponent = w->meta.exponent + group * META_CLASSES;
		w->kernels->join(&job);
		return;
	}
	group_load(&w->meta, &w->extent, w->dim, group, &parameters);
	job.offset = parameters.offset;
	job.delta = parameters.delta;
	job.scale = parameters.scale;
	w->kernels->dequantise(&job);
}

static int coded_tensor(struct tensor_work *w, const struct class_plane *plane, struct cursors *at)
{
	int err;

	order_invert(w);
	for (uint32_t group = 0; group < w->extent.groups_count; group++) {
		uint32_t bits = group_raw_bits(w->header, &w->meta, group);

		group_tile(w, group, at->raw, plane);
		at->raw += (size_t)w->tokens * ((group_lanes(w, group) * bits + 7) / 8);
		err = group_exceptions(w, group, at);
		if (err)
			return err;
		group_verbatim(w, group, at->verbatim);
		group_scatter(w, group, w->scratch->tile, LANES * w->element_bytes);
	}
	at->verbatim += (size_t)w->verbatim * w->extent.channels_count * w->element_bytes;
	w->scratch->index_base += w->tokens * w->extent.channels_count;
	return 0;
}

static enum container_fault coded_entry(const struct container *container,
					const struct container_entry *entry,
					const struct decode_target *targets,
					struct codec_scratch *scratch)
{
	const uint8_t *wire = container->bytes + entry->offset;
	const struct lossless_ops *ops = lossless_find(entry->codec + 1);
	struct cursors at = {.raw = wire + entry->class_bytes,
			     .exceptions_left = entry->exceptions_count};
	struct class_source source;
	struct tensor_work w = {.scratch = scratch, .kernels = kernels_get()};

	if (!ops || entry->tensors_count > ops->tensors_max)
		return CONTAINER_FAULT_CODEC;
	class_source_open(container, entry, &source);
	at.exception = at.raw + entry->raw_bytes;
	at.verbatim =
	    at.exception + (size_t)entry->exceptions_count *
			       (EXCEPTION_INDEX_BYTES + dtype_bytes(container->header.shape.dtype));
	scratch->index_base = 0;
	for (uint32_t t = 0; t < entry->tensors_count; t++) {
		struct class_plane plane;

		tensor_open(&w, container, entry, t);
		w.target = &targets[t];
		class_plane_open(&plane, scratch, &w.extent, w.tokens);
		if (ops->decode(scratch, &source, w.meta.frequency, &plane))
			return CONTAINER_FAULT_SEGMENT;
		source.pairs_offset += class_pairs_bytes(&plane);
		if (coded_tensor(&w, &plane, &at))
			return CONTAINER_FAULT_EXCEPTION;
	}
	return at.exceptions_left ? CONTAINER_FAULT_EXCEPTION : CONTAINER_FAULT_NONE;
}

static enum container_fault entry_decode(const struct container *container, uint32_t index,
					 const struct decode_target *targets,
					 struct codec_scratch *scratch)
{
	struct container_entry entry;
	struct tensor_work w = {.scratch = scratch, .kernels = kernels_get()};
	enum container_fault fault;

	fault = container_segment_check(container, index);
	if (fault)
		return fault;
	container_entry(container, index, &entry);
	if (entry.codec != WIRE_CODEC_STORED)
		return coded_entry(container, &entry, targets, scratch);
	tensor_open(&w, container, &entry, 0);
	w.target = targets;
	stored_tensor(&w, container->bytes + entry.offset);
	return CONTAINER_FAULT_NONE;
}

int segment_decode(const struct container *container, uint32_t index,
		   const struct decode_target *targets, void *scratch,
		   enum container_fault *ret_fault)
{
	const struct chunk_shape *shape = &container->header.shape;
	struct codec_scratch *s = scratch;

	for (uint32_t p = 0; p < shape->parts_count; p++)
		ssv_assert(part_channels(&shape->parts[p]) <= s->channels_max);
	*ret_fault = entry_decode(container, index, targets, s);
	return *ret_fault ? -EBADMSG : 0;
}
