/* SPDX-License-Identifier: Apache-2.0 */
/* neon_encode.c - the encoding kernels of level neon. */
#include <arm_neon.h>

#include "codec/simd/encode.h"

#define VECTOR_BYTES 16
#define LEVEL(name)  neon_##name

#define widen8(p)              ((vu)vmovl_u8(vld1_u8(p)))
#define max32(a, b)            ((vi)vmaxq_s32((int32x4_t)(a), (int32x4_t)(b)))
#define max16(a, b)            ((vh)vmaxq_s16((int16x8_t)(a), (int16x8_t)(b)))
#define min16(a, b)            ((vh)vminq_s16((int16x8_t)(a), (int16x8_t)(b)))
#define even32(a, b)           ((vu)vuzp1q_u32((uint32x4_t)(a), (uint32x4_t)(b)))
#define odd32(a, b)            ((vu)vuzp2q_u32((uint32x4_t)(a), (uint32x4_t)(b)))
#define add_product(sum, a, b) ((sum) + (a) * (b))

#include "codec/simd/encode_template.h"
