/* SPDX-License-Identifier: Apache-2.0 */
/* avx2_decode.c - the decoding kernels of level avx2. */
#include "codec/simd/decode.h"
