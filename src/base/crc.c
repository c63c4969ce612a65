/* SPDX-License-Identifier: Apache-2.0 */
/* crc.c - ISA-L's checksums with one calling convention; its two functions differ in inversion,
 * argument order and the width of the length. */
#include "base/crc.h"

#include <isa-l/crc.h>

/* ISA-L takes the length as an int. */
#define STEP_BYTES (1u << 30)

uint32_t crc32c(uint32_t crc, const uint8_t *bytes, uint64_t count)
{
	crc = ~crc;
	while (count > STEP_BYTES) {
		crc = crc32_iscsi((unsigned char *)bytes, (int)STEP_BYTES, crc);
		bytes += STEP_BYTES;
		count -= STEP_BYTES;
	}
	return ~crc32_iscsi((unsigned char *)bytes, (int)count, crc);
}

uint32_t crc32_iso(uint32_t crc, const uint8_t *bytes, uint64_t count)
{
	return crc32_gzip_refl(crc, (unsigned char *)bytes, count);
}
