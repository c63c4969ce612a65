/* SPDX-License-Identifier: Apache-2.0 */
/*
 * builder.c - writes a container into the caller's memory.
 *
 *	while building   [header][table, full size][meta, full size][wire data ...]
 *	after finish     [header][table][meta][wire data ...]
 *
 * How many entries and how much meta there will be is known at the end only, so both get the most
 * their shape allows and the rest is moved down once. An entry that a reader would refuse is
 * refused here with -EINVAL.
 */
#include "chunk/builder.h"

#include <errno.h>
#include <string.h>

#include "base/crc.h"
#include "chunk/entry.h"
#include "chunk/fields.h"

static uint8_t *table_entry(const struct builder *builder, uint32_t index)
{
	return builder->bytes + CONTAINER_HEADER_BYTES + index * CONTAINER_ENTRY_BYTES;
}

int builder_begin(struct builder *builder, const struct container_header *header, uint8_t *bytes,
		  uint64_t capacity)
{
	const struct chunk_shape *shape = &header->shape;
	int err = shape_check(shape, NULL);

	if (err)
		return err;
	if (header->tier < SSV_TIER_LOSSLESS || header->tier > SSV_TIER_TINY ||
	    header->verbatim_tokens > shape->tokens)
		return -EINVAL;
	if (capacity < shape_container_bytes_max(shape) + CONTAINER_SLACK_BYTES)
		return -E2BIG;
	memset(builder, 0, sizeof(*builder));
	builder->bytes = bytes;
	builder->capacity = capacity;
	builder->header = *header;
	builder->header.must_flags = 0; /* what entries need is added with them */
	builder->entries_max = shape_entries_max(shape);
	builder->meta_begin =
	    CONTAINER_HEADER_BYTES + (uint64_t)builder->entries_max * CONTAINER_ENTRY_BYTES;
	builder->meta_end = builder->meta_begin;
	builder->meta_reserved_end = builder->meta_begin + shape_meta_bytes_max(shape);
	builder->wire_begin = align_up(builder->meta_reserved_end, WIRE_ALIGN_BYTES);
	builder->wire_end = builder->wire_begin;
	return 0;
}

uint8_t *builder_meta(struct builder *builder, uint64_t *ret_room)
{
	*ret_room = builder->meta_reserved_end - builder->meta_end;
	return builder->bytes + builder->meta_end;
}

uint8_t *builder_wire(struct builder *builder, uint64_t *ret_room)
{
	uint64_t offset = align_up(builder->wire_end, WIRE_ALIGN_BYTES);
	uint64_t end = builder->capacity - CONTAINER_SLACK_BYTES;

	*ret_room = offset < end ? end - offset : 0;
	return builder->bytes + offset;
}

int builder_append(struct builder *builder, struct container_entry *entry)
{
	struct entry_walk walk = {.tensor = builder->next_tensor,
				  .group = builder->next_group,
				  .meta_end = builder->meta_end,
				  .wire_end = builder->wire_end};
	uint32_t must_flags = builder->header.must_flags;
	uint64_t wire_room;
	uint8_t *wire = builder_wire(builder, &wire_room);

	entry->offset = (uint64_t)(wire - builder->bytes);
	entry->meta_offset = (uint32_t)builder->meta_end;
	builder->header.must_flags |= entry_must_flags(entry);
	if (entry_check(&builder->header, entry, builder->bytes + builder->meta_end,
			builder->meta_reserved_end - builder->meta_end, &walk)) {
		builder->header.must_flags = must_flags;
		return -EINVAL;
	}
	if (entry->wire_bytes > wire_room)
		return -E2BIG;
	entry->wire_crc = crc32c(0, wire, entry->wire_bytes);
	memset(builder->bytes + builder->wire_end, 0, entry->offset - builder->wire_end);
	entry_store(table_entry(builder, builder->entries_count), entry);
	builder->entries_count++;
	builder->next_tensor = walk.tensor;
	builder->next_group = walk.group;
	builder->meta_end = walk.meta_end;
	builder->wire_end = walk.wire_end;
	return 0;
}

/* Move meta and wire data down and correct the offsets of all entries. */
static void close_gaps(struct builder *builder)
{
	struct container_header *h = &builder->header;
	uint64_t meta_end = (uint64_t)h->meta_offset + h->meta_bytes;
	uint64_t wire_begin = align_up(meta_end, WIRE_ALIGN_BYTES);
	uint64_t meta_shift = builder->meta_begin - h->meta_offset;
	uint64_t wire_shift = builder->wire_begin - wire_begin;

	for (uint32_t i = 0; i < builder->entries_count; i++) {
		struct container_entry entry;

		entry_load(table_entry(builder, i), &entry);
		entry.meta_offset -= (uint32_t)meta_shift;
		entry.offset -= wire_shift;
		entry_store(table_entry(builder, i), &entry);
	}
	memmove(builder->bytes + h->meta_offset, builder->bytes + builder->meta_begin,
		h->meta_bytes);
	memset(builder->bytes + meta_end, 0, wire_begin - meta_end);
	memmove(builder->bytes + wire_begin, builder->bytes + builder->wire_begin,
		builder->wire_end - builder->wire_begin);
	builder->wire_end -= wire_shift;
}

int builder_finish(struct builder *builder, const float error[SSV_PARTS_MAX], uint64_t *ret_bytes)
{
	struct container_header *h = &builder->header;

	if (builder->next_tensor != shape_tensors(&h->shape))
		return -EINVAL;
	h->major = CONTAINER_MAJOR;
	h->minor = CONTAINER_MINOR;
	h->header_bytes = CONTAINER_HEADER_BYTES;
	h->segments_count = builder->entries_count;
	h->table_offset = CONTAINER_HEADER_BYTES;
	h->meta_offset = h->table_offset + builder->entries_count * CONTAINER_ENTRY_BYTES;
	h->meta_bytes = (uint32_t)(builder->meta_end - builder->meta_begin);
	h->out_bytes = shape_kv_bytes(&h->shape);
	memset(h->error, 0, sizeof(h->error));
	for (uint32_t p = 0; p < h->shape.parts_count; p++)
		h->error[p] = error[p];
	close_gaps(builder);
	h->total_bytes = (uint32_t)builder->wire_end;
	h->table_crc = crc32c(0, builder->bytes + h->table_offset,
			      (uint64_t)h->meta_offset + h->meta_bytes - h->table_offset);
	header_store(builder->bytes, h);
	*ret_bytes = h->total_bytes;
	return 0;
}
