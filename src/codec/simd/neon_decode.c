/* SPDX-License-Identifier: Apache-2.0 */
/* neon_decode.c - the decoding kernels of level neon. */
#include "codec/simd/neon_ops.h"

#include "codec/simd/r16_template.h"

#include "codec/simd/tile_template.h"

#include "codec/simd/write_template.h"
