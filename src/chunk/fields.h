/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fields.h - the container's two field tables as code: where each field of header and entry lies.
 *
 * Private to this room. Loads and stores only; whether the values make sense is container.c's and
 * entry.c's business. The tables are those of docs/container.md.
 */
#ifndef SSV_FIELDS_H
#define SSV_FIELDS_H

#include "chunk/container.h"

#define HEADER_CRC_OFFSET 252u

/* The magic is there. */
int header_has_magic(const uint8_t *bytes);

/* Every byte that must be zero is: part padding, unused parts, seal fields and, in the minor
 * version this code writes, the tail. */
int header_reserved_is_zero(const uint8_t *bytes, const struct container_header *header);

void header_load(const uint8_t *bytes, struct container_header *ret_header);
/* With its checksum. */
void header_store(uint8_t *bytes, const struct container_header *header);

void entry_load(const uint8_t *bytes, struct container_entry *ret_entry);
int entry_reserved_is_zero(const uint8_t *bytes);
void entry_store(uint8_t *bytes, const struct container_entry *entry);

#endif
