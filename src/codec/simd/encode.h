/* SPDX-License-Identifier: Apache-2.0 */
/*
 * encode.h - the encoding kernels (kernels.h) of each SIMD level, by file: avx512_encode.c,
 * avx2_encode.c, neon_encode.c. A file is compiled for its level's instructions and must be
 * entered only through the table that kernels.c offers.
 */
#ifndef SSV_CODEC_SIMD_ENCODE_H
#define SSV_CODEC_SIMD_ENCODE_H

#include "codec/kernels.h"

#endif
