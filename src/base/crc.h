/* SPDX-License-Identifier: Apache-2.0 */
/*
 * crc.h - the two checksums of the container, over ISA-L.
 *
 * Both continue: crc32c(crc32c(0, a), b) is the checksum of a followed by b. Start with 0; initial
 * and final inversion are inside. A checksum finds damage; it does not authenticate.
 */
#ifndef SSV_CRC_H
#define SSV_CRC_H

#include <stdint.h>

/* CRC-32C (Castagnoli, as in iSCSI): "123456789" gives 0xe3069283. */
uint32_t crc32c(uint32_t crc, const uint8_t *bytes, uint64_t count);

/* CRC-32 (ISO-HDLC, as in gzip): "123456789" gives 0xcbf43926. */
uint32_t crc32_iso(uint32_t crc, const uint8_t *bytes, uint64_t count);

#endif
