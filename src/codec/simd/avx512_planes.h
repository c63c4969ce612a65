/* SPDX-License-Identifier: Apache-2.0 */
/*
 * avx512_planes.h - how often each of 16 classes occurs, by bit planes: a bit of 64 lanes is one
 * 64-bit number, eight tokens fill a vector, and how often a class occurs in them is a population
 * count of planes and'ed together. For avx512_encode.c alone.
 */
#ifndef SSV_CODEC_SIMD_AVX512_PLANES_H
#define SSV_CODEC_SIMD_AVX512_PLANES_H

#include <immintrin.h>

#include "codec/kernels.h"

#define PLANE_TOKENS 8u /* of one vector of planes */

/* Population counts of the subsets of four planes: bit k of the index: plane k is in it. */
struct subset_counts {
	__m512i sum[16];
};

INLINE void subsets_add(struct subset_counts *counts, const __m512i plane[4], __m512i inside)
{
	__m512i of[16];

	of[0] = inside;
	for (uint32_t i = 1; i < 16; i++) {
		uint32_t top = 31 - (uint32_t)__builtin_clz(i);

		of[i] = _mm512_and_si512(of[i - (1u << top)], plane[top]);
	}
	for (uint32_t i = 0; i < 16; i++)
		counts->sum[i] = _mm512_add_epi64(counts->sum[i], _mm512_popcnt_epi64(of[i]));
}

/* From subsets (these planes are set, whatever the others) to values: count[v ^ flip]. */
static inline void subsets_to_values(const struct subset_counts *counts, uint32_t flip,
				     uint32_t count[16])
{
	uint64_t exact[16];

	/* two in one number: each is below 2^32 */
	for (uint32_t i = 0; i < 16; i += 2) {
		__m512i upper = _mm512_slli_epi64(counts->sum[i + 1], 32);
		uint64_t both =
		    (uint64_t)_mm512_reduce_add_epi64(_mm512_or_si512(counts->sum[i], upper));

		exact[i] = both & UINT32_MAX;
		exact[i + 1] = both >> 32;
	}
	for (uint32_t k = 0; k < 4; k++)
		for (uint32_t i = 0; i < 16; i++)
			if (!(i >> k & 1))
				exact[i] -= exact[i | 1u << k];
	for (uint32_t i = 0; i < 16; i++)
		count[i ^ flip] = (uint32_t)exact[i];
}

/* Planes of the classes of some tokens: of the last eight, and the eight before them. They are
 * added up some tokens later, since a vector cannot be loaded right behind the stores of its
 * numbers. */
struct class_planes {
	_Alignas(64) uint64_t plane[2][4][PLANE_TOKENS];
	struct subset_counts counts;
};

INLINE void class_planes_sum(struct class_planes *planes, uint32_t which, __mmask8 some)
{
	__m512i plane[4];

	for (uint32_t k = 0; k < 4; k++)
		plane[k] = _mm512_maskz_load_epi64(some, planes->plane[which][k]);
	subsets_add(&planes->counts, plane, _mm512_maskz_set1_epi64(some, -1));
}

INLINE void class_planes_add(struct class_planes *planes, uint32_t token, __m512i classes)
{
	uint32_t at = token % PLANE_TOKENS, which = token / PLANE_TOKENS & 1;

	for (int k = 0; k < 4; k++)
		planes->plane[which][k][at] =
		    _mm512_test_epi8_mask(classes, _mm512_set1_epi8((char)(1 << k)));
	if (at == PLANE_TOKENS - 1 && token >= PLANE_TOKENS)
		class_planes_sum(planes, !which, 0xff);
}

/* The tokens after the last eight, then all counts. */
static inline void class_planes_finish(struct class_planes *planes, uint32_t tokens,
				       uint32_t count[16])
{
	uint32_t rest = tokens % PLANE_TOKENS;
	uint32_t which = tokens / PLANE_TOKENS & 1;

	if (tokens >= PLANE_TOKENS)
		class_planes_sum(planes, !which, 0xff);
	class_planes_sum(planes, which, (__mmask8)((1u << rest) - 1));
	subsets_to_values(&planes->counts, 0, count);
}

#endif
