/* SPDX-License-Identifier: Apache-2.0 */
/* neon_encode.c - the encoding kernels of level neon. */
#include "codec/simd/encode.h"
