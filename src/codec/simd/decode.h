/* SPDX-License-Identifier: Apache-2.0 */
/*
 * decode.h - the decoding kernels (kernels.h) of each SIMD level, by file: avx512_decode.c,
 * avx2_decode.c, neon_decode.c. A file is compiled for its level's instructions and must be
 * entered only through the table that kernels.c offers.
 */
#ifndef SSV_CODEC_SIMD_DECODE_H
#define SSV_CODEC_SIMD_DECODE_H

#include "codec/kernels.h"

#endif
