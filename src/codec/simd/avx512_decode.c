/* SPDX-License-Identifier: Apache-2.0 */
/* avx512_decode.c - the decoding kernels of level avx512. */
#include "codec/simd/decode.h"
