/* SPDX-License-Identifier: Apache-2.0 */
/*
 * container.c - opens a container: the checks of docs/container.md in their order, cheapest first,
 * so that nothing is believed before its checksum and no length is used before it was compared.
 */
#include "chunk/container.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/crc.h"
#include "chunk/entry.h"
#include "chunk/fields.h"

const char *container_fault_text(enum container_fault fault)
{
	static const char *const texts[] = {
#define CONTAINER_FAULT_TEXT(symbol, text) [CONTAINER_FAULT_##symbol] = text,
	    CONTAINER_FAULTS(CONTAINER_FAULT_TEXT)
#undef CONTAINER_FAULT_TEXT
	};

	return (unsigned)fault < ARRAY_COUNT(texts) ? texts[fault] : "unknown fault";
}

static int errors_are_sound(const struct container_header *h)
{
	for (uint32_t p = 0; p < SSV_PARTS_MAX; p++) {
		if (!isfinite(h->error[p]) || signbit(h->error[p]))
			return 0;
	}
	return 1;
}

static int fields_are_sound(const uint8_t *bytes, const struct container_header *h)
{
	uint64_t table_bytes = (uint64_t)h->segments_count * CONTAINER_ENTRY_BYTES;

	if (h->header_bytes != CONTAINER_HEADER_BYTES || shape_check(&h->shape, NULL) ||
	    !header_reserved_is_zero(bytes, h))
		return 0;
	if (h->tier < SSV_TIER_LOSSLESS || h->tier > SSV_TIER_TINY ||
	    h->verbatim_tokens > h->shape.tokens || !errors_are_sound(h) ||
	    h->out_bytes != shape_kv_bytes(&h->shape))
		return 0;
	return h->segments_count && h->table_offset == CONTAINER_HEADER_BYTES &&
	       h->meta_offset == CONTAINER_HEADER_BYTES + table_bytes &&
	       (uint64_t)h->meta_offset + h->meta_bytes <= h->total_bytes;
}

static enum container_fault header_check(const uint8_t *bytes, const struct container_header *h,
					 const struct container_expect *expect)
{
	if (!header_has_magic(bytes))
		return CONTAINER_FAULT_MAGIC;
	if (h->major != CONTAINER_MAJOR)
		return CONTAINER_FAULT_VERSION;
	if (crc32c(0, bytes, HEADER_CRC_OFFSET) != load_le32(bytes + HEADER_CRC_OFFSET))
		return CONTAINER_FAULT_HEADER_CRC;
	if (h->must_flags & ~(uint32_t)CONTAINER_MUST_TRELLIS)
		return CONTAINER_FAULT_MUST_FLAG;
	if (!fields_are_sound(bytes, h))
		return CONTAINER_FAULT_HEADER_FIELD;
	if (expect->value_bytes < h->total_bytes)
		return CONTAINER_FAULT_TRUNCATED;
	if (expect->value_bytes > h->total_bytes)
		return CONTAINER_FAULT_LENGTH;
	return CONTAINER_FAULT_NONE;
}

/* A chunk may hold fewer tokens than a whole one: any number that covers what is wanted. */
static int shape_fits(const struct chunk_shape *shape, const struct container_expect *expect)
{
	struct chunk_shape wanted = *expect->shape;

	if (expect->tokens_min && shape->tokens >= expect->tokens_min)
		wanted.tokens = shape->tokens;
	return shape_equal(shape, &wanted);
}

static enum container_fault expect_check(const struct container_header *h,
					 const struct container_expect *expect)
{
	if (!expect->any_key && memcmp(&h->key, &expect->key, sizeof(h->key)))
		return CONTAINER_FAULT_KEY;
	if (expect->model && memcmp(h->model, expect->model, sizeof(h->model)))
		return CONTAINER_FAULT_MODEL;
	if (expect->shape && !shape_fits(&h->shape, expect))
		return CONTAINER_FAULT_SHAPE;
	if (expect->first_token >= 0 && h->first_token != (uint64_t)expect->first_token)
		return CONTAINER_FAULT_POSITION;
	if (expect->min_tier && h->tier > expect->min_tier)
		return CONTAINER_FAULT_TIER;
	return CONTAINER_FAULT_NONE;
}

static enum container_fault table_check(const uint8_t *bytes, const struct container_header *h)
{
	uint64_t meta_end = (uint64_t)h->meta_offset + h->meta_bytes;
	struct entry_walk walk = {.meta_end = h->meta_offset, .wire_end = meta_end};
	uint32_t used_flags = 0;

	if (crc32c(0, bytes + h->table_offset, meta_end - h->table_offset) != h->table_crc)
		return CONTAINER_FAULT_TABLE_CRC;
	for (uint32_t i = 0; i < h->segments_count; i++) {
		const uint8_t *entry_bytes = bytes + h->table_offset + i * CONTAINER_ENTRY_BYTES;
		struct container_entry entry;
		enum container_fault fault;

		entry_load(entry_bytes, &entry);
		if (!entry_reserved_is_zero(entry_bytes))
			return CONTAINER_FAULT_TABLE;
		fault =
		    entry_check(h, &entry, bytes + walk.meta_end, meta_end - walk.meta_end, &walk);
		if (fault != CONTAINER_FAULT_NONE)
			return fault;
		used_flags |= entry_must_flags(&entry);
	}
	if (used_flags != h->must_flags)
		return CONTAINER_FAULT_TABLE;
	if (walk.tensor != shape_tensors(&h->shape) || walk.wire_end != h->total_bytes)
		return CONTAINER_FAULT_TABLE;
	return walk.meta_end == meta_end ? CONTAINER_FAULT_NONE : CONTAINER_FAULT_META;
}

static int refuse(enum container_fault fault, enum container_fault *ret_fault)
{
	*ret_fault = fault;
	switch (fault) {
	case CONTAINER_FAULT_VERSION:
	case CONTAINER_FAULT_MUST_FLAG:
	case CONTAINER_FAULT_CODEC:
		return -ENOTSUP;
	default:
		return -EBADMSG;
	}
}

int container_open(struct container *container, const uint8_t *bytes, uint64_t received,
		   const struct container_expect *expect, enum container_fault *ret_fault)
{
	struct container_header *h = &container->header;
	enum container_fault fault;

	*ret_fault = CONTAINER_FAULT_NONE;
	if (expect->value_bytes < CONTAINER_HEADER_BYTES)
		return refuse(CONTAINER_FAULT_TRUNCATED, ret_fault);
	received = u64_min(received, expect->value_bytes);
	if (received < CONTAINER_HEADER_BYTES)
		return -EAGAIN;
	container->bytes = bytes;
	header_load(bytes, h);
	fault = header_check(bytes, h, expect);
	if (fault == CONTAINER_FAULT_NONE)
		fault = expect_check(h, expect);
	if (fault != CONTAINER_FAULT_NONE)
		return refuse(fault, ret_fault);
	if (received < (uint64_t)h->meta_offset + h->meta_bytes)
		return -EAGAIN;
	fault = table_check(bytes, h);
	return fault == CONTAINER_FAULT_NONE ? 0 : refuse(fault, ret_fault);
}

void container_entry(const struct container *container, uint32_t index,
		     struct container_entry *ret_entry)
{
	const struct container_header *h = &container->header;

	ssv_assert(index < h->segments_count);
	entry_load(container->bytes + h->table_offset + index * CONTAINER_ENTRY_BYTES, ret_entry);
}

enum container_fault container_segment_check(const struct container *container, uint32_t index)
{
	uint64_t end = (uint64_t)container->header.meta_offset + container->header.meta_bytes;
	struct container_entry entry, before;
	uint8_t padding = 0;

	container_entry(container, index, &entry);
	if (index) {
		container_entry(container, index - 1, &before);
		end = container_entry_end(&before);
	}
	for (; end < entry.offset; end++)
		padding |= container->bytes[end];
	if (padding ||
	    crc32c(0, container->bytes + entry.offset, entry.wire_bytes) != entry.wire_crc)
		return CONTAINER_FAULT_SEGMENT_CRC;
	return CONTAINER_FAULT_NONE;
}
