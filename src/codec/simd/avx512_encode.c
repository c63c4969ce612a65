/* SPDX-License-Identifier: Apache-2.0 */
/* avx512_encode.c - the encoding kernels of level avx512. */
#include "codec/simd/encode.h"
