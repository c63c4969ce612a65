/* SPDX-License-Identifier: Apache-2.0 */
/* fields.c - loads and stores of header and entry, field by field. */
#include "chunk/fields.h"

#include <string.h>

#include "base/bytes.h"
#include "base/crc.h"

#define PARTS_OFFSET 92u
#define PART_BYTES   8u
#define ERROR_OFFSET 152u
#define SEAL_OFFSET  168u
#define TAIL_OFFSET  196u

static const uint8_t magic[4] = {'S', 'K', 'V', 'C'};

static int is_zero(const uint8_t *bytes, uint32_t count)
{
	uint8_t any = 0;

	for (uint32_t i = 0; i < count; i++)
		any |= bytes[i];
	return !any;
}

int header_has_magic(const uint8_t *bytes)
{
	return !memcmp(bytes, magic, sizeof(magic));
}

int header_reserved_is_zero(const uint8_t *bytes, const struct container_header *header)
{
	for (uint32_t p = 0; p < SSV_PARTS_MAX; p++) {
		const uint8_t *part = bytes + PARTS_OFFSET + p * PART_BYTES;

		if (p >= header->shape.parts_count &&
		    (!is_zero(part, PART_BYTES) || !is_zero(bytes + ERROR_OFFSET + 4 * p, 4)))
			return 0;
		if (part[1])
			return 0;
	}
	if (!is_zero(bytes + SEAL_OFFSET, TAIL_OFFSET - SEAL_OFFSET))
		return 0;
	return header->minor > CONTAINER_MINOR ||
	       is_zero(bytes + TAIL_OFFSET, HEADER_CRC_OFFSET - TAIL_OFFSET);
}

static void shape_load(const uint8_t *bytes, struct chunk_shape *shape)
{
	memset(shape, 0, sizeof(*shape));
	shape->tokens = load_le16(bytes + 76);
	shape->layer0 = load_le16(bytes + 80);
	shape->layers_count = load_le16(bytes + 82);
	shape->layers_total = load_le16(bytes + 84);
	shape->rank = load_le16(bytes + 86);
	shape->ranks_count = load_le16(bytes + 88);
	shape->dtype = bytes[90];
	shape->parts_count = bytes[91];
	for (uint32_t p = 0; p < SSV_PARTS_MAX; p++) {
		const uint8_t *part = bytes + PARTS_OFFSET + p * PART_BYTES;

		shape->parts[p].role = part[0];
		shape->parts[p].head0 = load_le16(part + 2);
		shape->parts[p].heads = load_le16(part + 4);
		shape->parts[p].dim = load_le16(part + 6);
	}
}

static void shape_store(uint8_t *bytes, const struct chunk_shape *shape)
{
	store_le16(bytes + 76, shape->tokens);
	store_le16(bytes + 80, shape->layer0);
	store_le16(bytes + 82, shape->layers_count);
	store_le16(bytes + 84, shape->layers_total);
	store_le16(bytes + 86, shape->rank);
	store_le16(bytes + 88, shape->ranks_count);
	bytes[90] = shape->dtype;
	bytes[91] = shape->parts_count;
	for (uint32_t p = 0; p < shape->parts_count; p++) {
		uint8_t *part = bytes + PARTS_OFFSET + p * PART_BYTES;

		part[0] = shape->parts[p].role;
		store_le16(part + 2, shape->parts[p].head0);
		store_le16(part + 4, shape->parts[p].heads);
		store_le16(part + 6, shape->parts[p].dim);
	}
}

void header_load(const uint8_t *bytes, struct container_header *ret_header)
{
	struct container_header *h = ret_header;

	h->major = load_le16(bytes + 4);
	h->minor = load_le16(bytes + 6);
	h->header_bytes = load_le32(bytes + 8);
	h->total_bytes = load_le32(bytes + 12);
	h->must_flags = load_le32(bytes + 16);
	h->may_flags = load_le32(bytes + 20);
	memcpy(h->key.bytes, bytes + 24, sizeof(h->key.bytes));
	memcpy(h->model, bytes + 56, sizeof(h->model));
	memcpy(h->profile, bytes + 64, sizeof(h->profile));
	h->first_token = load_le32(bytes + 72);
	h->verbatim_tokens = bytes[78];
	h->tier = bytes[79];
	shape_load(bytes, &h->shape);
	h->segments_count = load_le32(bytes + 124);
	h->table_offset = load_le32(bytes + 128);
	h->meta_offset = load_le32(bytes + 132);
	h->meta_bytes = load_le32(bytes + 136);
	h->table_crc = load_le32(bytes + 140);
	h->out_bytes = load_le64(bytes + 144);
	for (uint32_t p = 0; p < SSV_PARTS_MAX; p++) {
		uint32_t bits = load_le32(bytes + ERROR_OFFSET + 4 * p);

		memcpy(&h->error[p], &bits, sizeof(bits));
	}
}

void header_store(uint8_t *bytes, const struct container_header *header)
{
	const struct container_header *h = header;

	memset(bytes, 0, CONTAINER_HEADER_BYTES);
	memcpy(bytes, magic, sizeof(magic));
	store_le16(bytes + 4, h->major);
	store_le16(bytes + 6, h->minor);
	store_le32(bytes + 8, h->header_bytes);
	store_le32(bytes + 12, h->total_bytes);
	store_le32(bytes + 16, h->must_flags);
	store_le32(bytes + 20, h->may_flags);
	memcpy(bytes + 24, h->key.bytes, sizeof(h->key.bytes));
	memcpy(bytes + 56, h->model, sizeof(h->model));
	memcpy(bytes + 64, h->profile, sizeof(h->profile));
	store_le32(bytes + 72, h->first_token);
	bytes[78] = h->verbatim_tokens;
	bytes[79] = h->tier;
	shape_store(bytes, &h->shape);
	store_le32(bytes + 124, h->segments_count);
	store_le32(bytes + 128, h->table_offset);
	store_le32(bytes + 132, h->meta_offset);
	store_le32(bytes + 136, h->meta_bytes);
	store_le32(bytes + 140, h->table_crc);
	store_le64(bytes + 144, h->out_bytes);
	for (uint32_t p = 0; p < SSV_PARTS_MAX; p++) {
		uint32_t bits;

		memcpy(&bits, &h->error[p], sizeof(bits));
		store_le32(bytes + ERROR_OFFSET + 4 * p, bits);
	}
	store_le32(bytes + HEADER_CRC_OFFSET, crc32c(0, bytes, HEADER_CRC_OFFSET));
}

void entry_load(const uint8_t *bytes, struct container_entry *ret_entry)
{
	struct container_entry *e = ret_entry;

	e->offset = (uint64_t)load_le32(bytes) * WIRE_ALIGN_BYTES;
	e->wire_bytes = load_le32(bytes + 4);
	e->class_bytes = load_le32(bytes + 8);
	e->raw_bytes = load_le32(bytes + 12);
	e->exceptions_count = load_le32(bytes + 16);
	e->layer = load_le16(bytes + 20);
	e->part = bytes[22];
	e->codec = bytes[23];
	e->group0 = load_le16(bytes + 24);
	e->groups_count = load_le16(bytes + 26);
	e->tensors_count = bytes[28];
	e->streams_count = bytes[29];
	e->meta_offset = load_le32(bytes + 32);
	e->meta_bytes = load_le32(bytes + 36);
	e->wire_crc = load_le32(bytes + 40);
	e->class_crc = load_le32(bytes + 44);
}

int entry_reserved_is_zero(const uint8_t *bytes)
{
	return is_zero(bytes + 30, 2);
}

void entry_store(uint8_t *bytes, const struct container_entry *entry)
{
	const struct container_entry *e = entry;

	store_le32(bytes, (uint32_t)(e->offset / WIRE_ALIGN_BYTES));
	store_le32(bytes + 4, e->wire_bytes);
	store_le32(bytes + 8, e->class_bytes);
	store_le32(bytes + 12, e->raw_bytes);
	store_le32(bytes + 16, e->exceptions_count);
	store_le16(bytes + 20, e->layer);
	bytes[22] = e->part;
	bytes[23] = e->codec;
	store_le16(bytes + 24, e->group0);
	store_le16(bytes + 26, e->groups_count);
	bytes[28] = e->tensors_count;
	bytes[29] = e->streams_count;
	store_le16(bytes + 30, 0);
	store_le32(bytes + 32, e->meta_offset);
	store_le32(bytes + 36, e->meta_bytes);
	store_le32(bytes + 40, e->wire_crc);
	store_le32(bytes + 44, e->class_crc);
}
