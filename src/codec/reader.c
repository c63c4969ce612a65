/* SPDX-License-Identifier: Apache-2.0 */
/*
 * reader.c - one entry of a container: its parts found, its tensors one after another (reader.h).
 *
 * container_open() has checked every length and the meta; nothing here follows a length that it has
 * not seen.
 */
#include "codec/reader.h"

#include <string.h>

#include "base/bytes.h"
#include "codec/strips.h"
#include "codec/symbols.h"

static void soon_find(struct entry_reader *r, uint32_t next)
{
	struct container_entry entry;

	if (next >= r->container->header.segments_count)
		return;
	container_entry(r->container, next, &entry);
	r->soon = r->container->bytes + entry.offset;
	r->soon_bytes = entry.wire_bytes;
}

/* Find the parts of an entry whose wire data was verified. */
static enum container_fault find_parts(struct entry_reader *r, const struct container *container,
				       uint32_t index, struct codec_scratch *scratch)
{
	const struct container_header *header = &container->header;
	const uint8_t *wire;

	memset(r, 0, sizeof(*r));
	for (uint32_t p = 0; p < header->shape.parts_count; p++)
		if (part_channels(&header->shape.parts[p]) > scratch->channels_max)
			return CONTAINER_FAULT_SHAPE;
	container_entry(container, index, &r->entry);
	r->ops = lossless_of_wire(r->entry.codec);
	r->is_trellis = r->entry.codec == WIRE_CODEC_TRELLIS;
	if (!r->ops || r->entry.tensors_count > r->ops->tensors_max)
		return CONTAINER_FAULT_CODEC;
	r->container = container;
	r->scratch = scratch;
	r->kernels = kernels_get();
	r->tokens = header->shape.tokens;
	r->element_bytes = dtype_bytes(header->shape.dtype);
	r->verbatim_tokens = header->verbatim_tokens;
	r->exceptions_left = r->entry.exceptions_count;
	soon_find(r, index + 1);
	class_source_open(container, &r->entry, &r->source);
	wire = container->bytes + r->entry.offset;
	r->raw = wire + r->entry.class_bytes;
	r->exception = r->raw + r->entry.raw_bytes;
	r->verbatim =
	    r->exception + (size_t)r->exceptions_left * (EXCEPTION_INDEX_BYTES + r->element_bytes);
	return CONTAINER_FAULT_NONE;
}

enum container_fault entry_reader_open(struct entry_reader *r, const struct container *container,
				       uint32_t index, struct codec_scratch *scratch)
{
	enum container_fault fault = container_segment_check(container, index);

	return fault ? fault : find_parts(r, container, index, scratch);
}

enum container_fault entry_reader_open_inflated(struct entry_reader *r,
						const struct container *container, uint32_t index,
						const uint8_t *pairs, struct codec_scratch *scratch)
{
	enum container_fault fault = find_parts(r, container, index, scratch);

	if (!fault && r->entry.codec != WIRE_CODEC_DEFLATE)
		return CONTAINER_FAULT_CODEC;
	r->source.pairs = pairs;
	return fault;
}

static void next_tensor(struct entry_reader *r)
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
}

enum container_fault entry_reader_classes(struct entry_reader *r)
{
	next_tensor(r);
	if (!r->ops->has_classes)
		return CONTAINER_FAULT_NONE;
	if (r->ops->decode(r->scratch, &r->source, r->meta.frequency, &r->plane))
		return CONTAINER_FAULT_SEGMENT;
	strips_open_plane(r->scratch->strips, &r->plane);
	return CONTAINER_FAULT_NONE;
}

enum container_fault entry_reader_strips(struct entry_reader *r)
{
	next_tensor(r);
	if (r->ops->has_classes &&
	    r->ops->open_strips(r->scratch, &r->source, r->meta.frequency, &r->plane))
		return CONTAINER_FAULT_SEGMENT;
	return CONTAINER_FAULT_NONE;
}

enum container_fault entry_reader_close(const struct entry_reader *r)
{
	return r->exceptions_left ? CONTAINER_FAULT_EXCEPTION : CONTAINER_FAULT_NONE;
}
