/* SPDX-License-Identifier: Apache-2.0 */
/*
 * entry.h - the checks of one segment table entry and its meta, shared by reader and builder: what
 * the reader would refuse, the builder does not write.
 *
 * Private to this room.
 */
#ifndef SSV_ENTRY_H
#define SSV_ENTRY_H

#include "chunk/container.h"

/* Where the next entry must begin: entries cover every tensor's groups once, in order. */
struct entry_walk {
	uint32_t tensor; /* layer * parts_count + part */
	uint32_t group;
	uint64_t meta_end, wire_end;
};

/*
 * Check an entry and its meta, then advance the walk past it. meta points to the entry's meta,
 * meta_room says how much of the meta is left from there.
 */
SSV_MUST_CHECK enum container_fault entry_check(const struct container_header *header,
						const struct container_entry *entry,
						const uint8_t *meta, uint64_t meta_room,
						struct entry_walk *walk);

/* The must flags that a container with this entry has (enum container_must_flags). */
static inline uint32_t entry_must_flags(const struct container_entry *entry)
{
	return entry->codec == WIRE_CODEC_TRELLIS ? CONTAINER_MUST_TRELLIS : 0;
}

#endif
