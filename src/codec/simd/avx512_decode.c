/* SPDX-License-Identifier: Apache-2.0 */
/* avx512_decode.c - the decoding kernels of level avx512. */
#include "codec/simd/avx512_ops.h"

#include "codec/simd/r16_template.h"

#include "codec/simd/tile_template.h"

#include "codec/simd/fuse_template.h"
#include "codec/simd/write_template.h"
