/* SPDX-License-Identifier: Apache-2.0 */
/*
 * avx512_split.c - the lossless tier's kernels of level avx512: bf16 in registers, other dtypes by
 * the scalar kernels.
 */
#include <immintrin.h>
#include <string.h>

#include "codec/scalar.h"
#include "codec/simd/encode.h"

#define INLINE static inline __attribute__((always_inline))

/*
 * Four counts a class would be slow for 256 exponents: each of four neighbouring channels has its
 * own table, so that equal exponents side by side do not wait for one another.
 */
void avx512_exponents(struct exponent_job *job)
{
	_Alignas(64) uint8_t exponents[LANES];
	uint32_t part[4][256] = {{0}};

	if (job->view.lanes < LANES || job->view.dtype != SSV_DTYPE_BF16) {
		scalar_exponents(job);
		return;
	}
	for (uint32_t t = 0; t < job->view.tokens; t++) {
		const uint8_t *row = job->view.elements + t * job->view.row_bytes;
		__m512i a = _mm512_srli_epi16(_mm512_loadu_si512(row), 7);
		__m512i b = _mm512_srli_epi16(_mm512_loadu_si512(row + 64), 7);

		_mm256_store_si256((__m256i *)(void *)exponents, _mm512_cvtepi16_epi8(a));
		_mm256_store_si256((__m256i *)(void *)(exponents + 32), _mm512_cvtepi16_epi8(b));
		for (uint32_t i = 0; i < LANES; i += 4)
			for (uint32_t k = 0; k < 4; k++)
				part[k][exponents[i + k]]++;
	}
	for (uint32_t i = 0; i < 256; i++)
		job->count[i] = part[0][i] + part[1][i] + part[2][i] + part[3][i];
}

/* Bytes of two vectors of 16-bit numbers, in lane order. */
INLINE __m512i lane_bytes(void)
{
	_Alignas(64) uint8_t at[LANES];

	for (uint32_t lane = 0; lane < LANES; lane++)
		at[lane] = (uint8_t)(2 * lane_channel(lane, LANES));
	return _mm512_load_si512(at);
}

/* One byte for each channel, from the one table of 256. */
INLINE __m512i look_up(const __m512i table[4], __m512i at)
{
	__m512i low = _mm512_permutex2var_epi8(table[0], at, table[1]);
	__m512i high = _mm512_permutex2var_epi8(table[2], at, table[3]);

	return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(at), high);
}

/* Channels of a set of lanes: rare, one by one. */
static uint64_t lanes_to_channels(uint64_t lanes)
{
	uint64_t channels = 0;

	for (; lanes; lanes &= lanes - 1)
		channels |= UINT64_C(1) << lane_channel((uint32_t)__builtin_ctzll(lanes), LANES);
	return channels;
}

void avx512_split(struct split_job *job)
{
	const __m512i lanes = lane_bytes(), other = _mm512_set1_epi8((char)job->other_class);
	__m512i table[4];
	uint32_t sum[16] = {0};

	if (job->view.lanes < LANES || job->view.dtype != SSV_DTYPE_BF16) {
		scalar_split(job);
		return;
	}
	for (uint32_t k = 0; k < 4; k++)
		table[k] = _mm512_loadu_si512(job->class_of + 64 * k);
	for (uint32_t t = 0; t < job->view.tokens; t++) {
		const uint8_t *row = job->view.elements + t * job->view.row_bytes;
		__m512i a = _mm512_loadu_si512(row), b = _mm512_loadu_si512(row + 64);
		__m512i exponents = _mm512_permutex2var_epi8(_mm512_srli_epi16(a, 7), lanes,
							     _mm512_srli_epi16(b, 7));
		__m512i mantissa = _mm512_permutex2var_epi8(a, lanes, b);
		__m512i sign = _mm512_permutex2var_epi8(_mm512_srli_epi16(a, 8), lanes,
							_mm512_srli_epi16(b, 8));
		__m512i classes = look_up(table, exponents);
		uint64_t outside = _mm512_cmpgt_epu8_mask(classes, _mm512_set1_epi8(15));

		classes = _mm512_mask_mov_epi8(classes, outside, other);
		job->outside[t] = lanes_to_channels(outside);
		_mm512_storeu_si512(job->classes + t * LANES, classes);
		/* the sign above seven bits */
		_mm512_storeu_si512(
		    job->raw + t * LANES,
		    _mm512_ternarylogic_epi64(_mm512_set1_epi8(0x7f), mantissa, sign, 0xca));
		for (int c = 0; c < 16; c++)
			sum[c] += (uint32_t)__builtin_popcountll(
			    _mm512_cmpeq_epi8_mask(classes, _mm512_set1_epi8((char)c)));
	}
	memcpy(job->count, sum, sizeof(sum));
}
