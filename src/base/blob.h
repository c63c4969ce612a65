/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blob.h - a few bytes whose meaning only two ends of a delivery way know: an address, a token, a
 * key of registered memory. The session protocol carries them beside REGISTER and REGISTERED and
 * looks at nothing but their number.
 */
#ifndef SSV_BLOB_H
#define SSV_BLOB_H

#include <stdint.h>

#define BLOB_BYTES_MAX 512

struct blob {
	uint32_t bytes;
	uint8_t data[BLOB_BYTES_MAX];
};

#endif
