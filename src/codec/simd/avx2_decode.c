/* SPDX-License-Identifier: Apache-2.0 */
/* avx2_decode.c - the decoding kernels of level avx2. */
#include "codec/simd/avx2_ops.h"

#include "codec/simd/r16_template.h"

#include "codec/simd/tile_template.h"

#include "codec/simd/write_template.h"
