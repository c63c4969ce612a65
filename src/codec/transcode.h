/* SPDX-License-Identifier: Apache-2.0 */
/* transcode.h - the same chunk with another lossless back end; every value stays the same. */
#ifndef SSV_TRANSCODE_H
#define SSV_TRANSCODE_H

#include "codec/codec.h"

/* Errors: -EBADMSG with *ret_fault, -EINVAL for an unknown codec, -E2BIG when out is too small. */
SSV_MUST_CHECK int chunk_transcode(const struct container *container, uint8_t codec, uint8_t *out,
				   uint64_t out_capacity, void *scratch, uint64_t *ret_bytes,
				   enum container_fault *ret_fault);

#endif
