/* SPDX-License-Identifier: Apache-2.0 */
/* neon_decode.c - the decoding kernels of level neon. */
#include "codec/simd/decode.h"
