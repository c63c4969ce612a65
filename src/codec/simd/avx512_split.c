/* SPDX-License-Identifier: Apache-2.0 */
/* avx512_split.c - the lossless tier's kernels of level avx512. */
#include "codec/scalar.h"
#include "codec/simd/encode.h"

void avx512_exponents(struct exponent_job *job)
{
	scalar_exponents(job);
}

void avx512_split(struct split_job *job)
{
	scalar_split(job);
}
