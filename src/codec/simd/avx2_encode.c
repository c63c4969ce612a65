/* SPDX-License-Identifier: Apache-2.0 */
/* avx2_encode.c - the encoding kernels of level avx2. */
#include "codec/simd/encode.h"
