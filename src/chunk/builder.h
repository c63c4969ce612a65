/* SPDX-License-Identifier: Apache-2.0 */
/*
 * builder.h - writes a container: reserve, append each entry's meta and wire data in (layer, part)
 * order, finish. The caller owns the memory; nothing allocates.
 */
#ifndef SSV_BUILDER_H
#define SSV_BUILDER_H

#include "chunk/container.h"

struct builder {
	uint8_t *bytes;
	uint64_t capacity;
	struct container_header header;
	uint32_t entries_max, entries_count;
	uint32_t next_tensor, next_group;                 /* what the next entry must begin with */
	uint64_t meta_begin, meta_end, meta_reserved_end; /* moved together at the end */
	uint64_t wire_begin, wire_end;
};

/**
 * Begin a container. header gives identity, shape, tier and verbatim tokens; the rest is filled
 * in. bytes must hold shape_container_bytes_max() + CONTAINER_SLACK_BYTES.
 * Errors: -EINVAL, -E2BIG.
 */
SSV_MUST_CHECK int builder_begin(struct builder *builder, const struct container_header *header,
				 uint8_t *bytes, uint64_t capacity);

/* Where the next entry's meta and wire data are to be written, and how much room there is. */
uint8_t *builder_meta(struct builder *builder, uint64_t *ret_room);
uint8_t *builder_wire(struct builder *builder, uint64_t *ret_room);

/*
 * Append the entry just written. entry's offset, meta_offset and wire_crc are filled in here.
 * Errors: -EINVAL for an entry that container_open() would refuse; -E2BIG.
 */
SSV_MUST_CHECK int builder_append(struct builder *builder, struct container_entry *entry);

/*
 * Close gaps, write table and header with their checksums; the value is bytes[0..*ret_bytes).
 * Errors: -EINVAL when the entries do not cover every tensor.
 */
SSV_MUST_CHECK int builder_finish(struct builder *builder, const float error[SSV_PARTS_MAX],
				  uint64_t *ret_bytes);

#endif
