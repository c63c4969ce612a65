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
#include "codec/reader.h"
#include "codec/symbols.h"

/* Where channel c of the extent stands in the coded order. */
static void order_invert(const struct entry_reader *r)
{
	for (uint32_t p = 0; r->meta.order && p < r->meta.channels_count; p++)
		r->scratch->position[load_le16(r->meta.order + 2 * p)] = (uint16_t)p;
}

static uint32_t group_lanes(const struct entry_reader *r, uint32_t group)
{
	return (uint32_t)u64_min(LANES, r->extent.channels_count - group * LANES);
}

static void group_scatter(const struct entry_reader *r, const struct decode_target *target,
			  uint32_t group, const uint8_t *elements, uint32_t row_bytes)
{
	const uint32_t *channel = target->channel + r->extent.channel0;
	uint32_t place[LANES], lanes = group_lanes(r, group);
	struct scatter_job job = {.elements = elements,
				  .row_bytes = row_bytes,
				  .tokens = r->tokens,
				  .lanes = lanes,
				  .element_bytes = r->element_bytes,
				  .place = place,
				  .token = target->token,
				  .token_stride = target->token_stride};

	for (uint32_t p = 0; p < lanes; p++)
		place[p] = channel[meta_channel(&r->meta, group * LANES + p)];
	r->kernels->scatter(&job);
}

static void stored_elements(const struct entry_reader *r, const struct decode_target *target)
{
	const uint8_t *wire = r->container->bytes + r->entry.offset;
	uint32_t row_bytes = r->extent.channels_count * r->element_bytes;

	for (uint32_t group = 0; group < r->extent.groups_count; group++)
		group_scatter(r, target, group, wire + group * LANES * r->element_bytes, row_bytes);
}

/*
 * Merge the exceptions of one group into its tile. They must lie in range, outside verbatim tokens,
 * and come in decode order, each once; one that is out of turn is left, and found at the end.
 */
static int group_exceptions(struct entry_reader *r, uint32_t group)
{
	uint32_t exception_bytes = EXCEPTION_INDEX_BYTES + r->element_bytes;
	uint32_t channels = r->extent.channels_count, lanes = group_lanes(r, group);
	int64_t last = -1;

	for (; r->exceptions_left; r->exceptions_left--, r->exception += exception_bytes) {
		uint32_t index = (uint32_t)r->exception[0] | (uint32_t)r->exception[1] << 8 |
				 (uint32_t)r->exception[2] << 16;
		uint32_t token, channel, position;
		int64_t turn;

		index -= r->exception_base; /* an earlier tensor's becomes huge */
		if (index >= r->tokens * channels)
			return 0;
		token = index / channels;
		channel = index % channels;
		position = r->meta.order ? r->scratch->position[channel] : channel;
		if (position / LANES != group)
			return 0;
		turn = (int64_t)token * LANES + channel_lane(position % LANES, lanes);
		if (turn <= last || token < r->verbatim_tokens)
			return -EBADMSG;
		last = turn;
		memcpy(r->scratch->tile + (token * LANES + position % LANES) * r->element_bytes,
		       r->exception + EXCEPTION_INDEX_BYTES, r->element_bytes);
	}
	return 0;
}

static void group_verbatim(const struct entry_reader *r, uint32_t group)
{
	uint32_t bytes = r->element_bytes, row = r->extent.channels_count * bytes;

	for (uint32_t token = 0; token < r->verbatim_tokens; token++) {
		for (uint32_t p = 0; p < group_lanes(r, group); p++) {
			uint32_t channel = meta_channel(&r->meta, group * LANES + p);

			memcpy(r->scratch->tile + (token * LANES + p) * bytes,
			       r->verbatim + token * row + channel * bytes, bytes);
		}
	}
}

static void group_tile(const struct entry_reader *r, uint32_t group, uint32_t raw_bits)
{
	struct group_parameters parameters;
	struct tile_job job = {.classes = plane_group(&r->plane, group),
			       .raw = r->raw,
			       .tokens = r->tokens,
			       .lanes = group_lanes(r, group),
			       .raw_bits = raw_bits,
			       .dtype = r->container->header.shape.dtype,
			       .tile = r->scratch->tile};

	if (r->meta.exponent) {
		job.exponent = r->meta.exponent + group * META_CLASSES;
		r->kernels->join(&job);
		return;
	}
	group_load(&r->meta, &r->extent, r->dim, group, &parameters);
	job.offset = parameters.offset;
	job.delta = parameters.delta;
	job.scale = parameters.scale;
	r->kernels->dequantise(&job);
}

enum container_fault entry_reader_open(struct entry_reader *r, const struct container *container,
				       uint32_t index, struct codec_scratch *scratch)
{
	const struct container_header *header = &container->header;
	const uint8_t *wire;
	enum container_fault fault;

	memset(r, 0, sizeof(*r));
	for (uint32_t p = 0; p < header->shape.parts_count; p++)
		if (part_channels(&header->shape.parts[p]) > scratch->channels_max)
			return CONTAINER_FAULT_SHAPE;
	fault = container_segment_check(container, index);
	if (fault)
		return fault;
	container_entry(container, index, &r->entry);
	r->ops = lossless_find(r->entry.codec + 1);
	if (!r->ops || r->entry.tensors_count > r->ops->tensors_max)
		return CONTAINER_FAULT_CODEC;
	r->container = container;
	r->scratch = scratch;
	r->kernels = kernels_get();
	r->tokens = header->shape.tokens;
	r->element_bytes = dtype_bytes(header->shape.dtype);
	r->verbatim_tokens = header->verbatim_tokens;
	r->exceptions_left = r->entry.exceptions_count;
	class_source_open(container, &r->entry, &r->source);
	wire = container->bytes + r->entry.offset;
	r->raw = wire + r->entry.class_bytes;
	r->exception = r->raw + r->entry.raw_bytes;
	r->verbatim =
	    r->exception + (size_t)r->exceptions_left * (EXCEPTION_INDEX_BYTES + r->element_bytes);
	return CONTAINER_FAULT_NONE;
}

enum container_fault entry_reader_classes(struct entry_reader *r)
{
	if (r->index) {
		r->source.pairs_offset += class_pairs_bytes(&r->plane);
		r->exception_base += r->tokens * r->extent.channels_count;
	}
	entry_extent(&r->container->header.shape, &r->entry, r->index, &r->extent);
	container_tensor_meta(r->container, &r->entry, r->index, &r->meta);
	r->dim = r->container->header.shape.parts[r->extent.part].dim;
	r->index++;
	class_plane_open(&r->plane, r->scratch, &r->extent, r->tokens);
	if (r->ops->has_classes &&
	    r->ops->decode(r->scratch, &r->source, r->meta.frequency, &r->plane))
		return CONTAINER_FAULT_SEGMENT;
	return CONTAINER_FAULT_NONE;
}

enum container_fault entry_reader_elements(struct entry_reader *r,
					   const struct decode_target *target)
{
	if (!r->ops->has_classes) {
		stored_elements(r, target);
		return CONTAINER_FAULT_NONE;
	}
	order_invert(r);
	for (uint32_t group = 0; group < r->extent.groups_count; group++) {
		uint32_t bits = group_raw_bits(&r->container->header, &r->meta, group);

		group_tile(r, group, bits);
		r->raw += (size_t)r->tokens * ((group_lanes(r, group) * bits + 7) / 8);
		if (group_exceptions(r, group))
			return CONTAINER_FAULT_EXCEPTION;
		group_verbatim(r, group);
		group_scatter(r, target, group, r->scratch->tile, LANES * r->element_bytes);
	}
	r->verbatim += (size_t)r->verbatim_tokens * r->extent.channels_count * r->element_bytes;
	return CONTAINER_FAULT_NONE;
}

enum container_fault entry_reader_close(const struct entry_reader *r)
{
	return r->exceptions_left ? CONTAINER_FAULT_EXCEPTION : CONTAINER_FAULT_NONE;
}

int segment_decode(const struct container *container, uint32_t index,
		   const struct decode_target *targets, void *scratch,
		   enum container_fault *ret_fault)
{
	struct entry_reader reader;
	enum container_fault fault = entry_reader_open(&reader, container, index, scratch);

	for (uint32_t t = 0; !fault && t < reader.entry.tensors_count; t++) {
		fault = entry_reader_classes(&reader);
		if (!fault)
			fault = entry_reader_elements(&reader, &targets[t]);
	}
	if (!fault)
		fault = entry_reader_close(&reader);
	*ret_fault = fault;
	return fault ? -EBADMSG : 0;
}
