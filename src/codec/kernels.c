/* SPDX-License-Identifier: Apache-2.0 */
/* kernels.c - chooses the kernels: one table, the scalar one. */
#include "codec/kernels.h"

#include "codec/scalar.h"

const struct kernels kernels_scalar = {
    .name = "scalar",
    .r16_decode = scalar_r16_decode,
    .r16_encode = scalar_r16_encode,
    .dequantise = scalar_dequantise,
    .join = scalar_join,
    .scatter = scalar_scatter,
    .split = scalar_split,
    .load = scalar_load,
    .quantise = scalar_quantise,
    .pack = scalar_pack,
    .measure = scalar_measure,
};

const struct kernels *kernels_get(void)
{
	return &kernels_scalar;
}
