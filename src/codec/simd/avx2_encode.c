/* SPDX-License-Identifier: Apache-2.0 */
/* avx2_encode.c - the encoding kernels of level avx2. */
#include <immintrin.h>

#include "codec/simd/encode.h"

#define VECTOR_BYTES 32
#define LEVEL(name)  avx2_##name

#define widen8(p)              ((vu)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(p))))
#define max32(a, b)            ((vi)_mm256_max_epi32((__m256i)(a), (__m256i)(b)))
#define max16(a, b)            ((vh)_mm256_max_epi16((__m256i)(a), (__m256i)(b)))
#define min16(a, b)            ((vh)_mm256_min_epi16((__m256i)(a), (__m256i)(b)))
#define even32(a, b)           __builtin_shuffle(a, b, (vu){0, 2, 4, 6, 8, 10, 12, 14})
#define odd32(a, b)            __builtin_shuffle(a, b, (vu){1, 3, 5, 7, 9, 11, 13, 15})
#define add_product(sum, a, b) ((sum) + (a) * (b))

#include "codec/simd/encode_template.h"
