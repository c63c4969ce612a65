/* SPDX-License-Identifier: Apache-2.0 */
/*
 * made_up.h - KV that no model computed: keys with offsets, outliers and unequal spreads by
 * channel, values with unequal tokens. For speeds; its ratios say little about a model's.
 */
#ifndef SSV_CLI_MADE_UP_H
#define SSV_CLI_MADE_UP_H

#include "chunk/shape.h"

/* Tensor `tensor` (layer x parts + part) in canonical order; the same seed gives the same bytes. */
void made_up_tensor(const struct chunk_shape *shape, uint32_t tensor, uint64_t seed, uint8_t *out);

#endif
