/* SPDX-License-Identifier: Apache-2.0 */
/*
 * avx2_ops.h - the vector operations that the decode templates are written in, for AVX2. A row of
 * 64 lanes is two vectors.
 */
#ifndef SSV_CODEC_SIMD_AVX2_OPS_H
#define SSV_CODEC_SIMD_AVX2_OPS_H

#include <immintrin.h>
#include <string.h>

#include "codec/simd/decode.h"
#include "codec/simd/expand.h"

#define LEVEL(name) avx2_##name
#define VEC_BYTES   32u
#define ROW_VECS    2u

typedef __m256i vec;
typedef __m256 vecf;

INLINE vec v_load(const void *p)
{
	return _mm256_loadu_si256(p);
}

INLINE vecf v_loadf(const float *p)
{
	return _mm256_loadu_ps(p);
}

INLINE void v_store(void *p, vec x)
{
	_mm256_storeu_si256(p, x);
}

/* Past the caches; p is aligned. */
INLINE void v_stream(void *p, vec x)
{
	_mm256_stream_si256(p, x);
}

INLINE void v_stream_end(void)
{
	_mm_sfence();
}

INLINE vec v_set32(uint32_t x)
{
	return _mm256_set1_epi32((int)x);
}

INLINE vecf v_setf(float x)
{
	return _mm256_set1_ps(x);
}

INLINE vec v_and(vec a, vec b)
{
	return _mm256_and_si256(a, b);
}

INLINE vec v_or(vec a, vec b)
{
	return _mm256_or_si256(a, b);
}

/* Bits of a where the mask has ones, of b elsewhere. */
INLINE vec v_select(vec mask, vec a, vec b)
{
	return _mm256_or_si256(_mm256_and_si256(mask, a), _mm256_andnot_si256(mask, b));
}

INLINE vec v_sub8(vec a, vec b)
{
	return _mm256_sub_epi8(a, b);
}

INLINE vec v_add16(vec a, vec b)
{
	return _mm256_add_epi16(a, b);
}

INLINE vec v_sub16(vec a, vec b)
{
	return _mm256_sub_epi16(a, b);
}

/* Signed. */
INLINE vec v_min16(vec a, vec b)
{
	return _mm256_min_epi16(a, b);
}

INLINE vec v_max16(vec a, vec b)
{
	return _mm256_max_epi16(a, b);
}

INLINE vec v_xor(vec a, vec b)
{
	return _mm256_xor_si256(a, b);
}

INLINE vec v_add32(vec a, vec b)
{
	return _mm256_add_epi32(a, b);
}

INLINE vec v_shl32(vec a, uint32_t n)
{
	return _mm256_slli_epi32(a, (int)n);
}

INLINE vec v_shr32(vec a, uint32_t n)
{
	return _mm256_srli_epi32(a, (int)n);
}

INLINE vecf v_float(vec a)
{
	return _mm256_cvtepi32_ps(a);
}

INLINE vec v_bits(vecf a)
{
	return _mm256_castps_si256(a);
}

INLINE vecf v_mul(vecf a, vecf b)
{
	return _mm256_mul_ps(a, b);
}

/* fp16 of each float, in the low halves of words; the high ones are zero. */
INLINE vec v_half(vecf a)
{
	return _mm256_cvtepu16_epi32(_mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

/* Upper halves of a's words to the lower ones, those of b stay where they are. */
INLINE vec v_uppers(vec a, vec b)
{
	return _mm256_blend_epi16(_mm256_srli_epi32(a, 16), b, 0xaa);
}

INLINE vec v_broadcast16(const uint8_t table[16])
{
	return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)table));
}

/* Bytes of a table of 16, by index below 16. */
INLINE vec v_table16(const uint8_t table[16], vec index)
{
	return _mm256_shuffle_epi8(v_broadcast16(table), index);
}

/* a0 b0 a1 b1 ... of the words of a and b. */
INLINE void v_zip32(vec a, vec b, vec *low, vec *high)
{
	vec even = _mm256_unpacklo_epi32(a, b), odd = _mm256_unpackhi_epi32(a, b);

	*low = _mm256_permute2x128_si256(even, odd, 0x20);
	*high = _mm256_permute2x128_si256(even, odd, 0x31);
}

/* Of each word's four bytes: l0 h0 l1 h1 to even, l2 h2 l3 h3 to odd. */
INLINE void v_zip8(vec l, vec h, vec *even, vec *odd)
{
	__m256 low = _mm256_castsi256_ps(_mm256_unpacklo_epi8(l, h));
	__m256 high = _mm256_castsi256_ps(_mm256_unpackhi_epi8(l, h));

	*even = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0x88));
	*odd = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0xdd));
}

/* Words [row][column] to [column][row]. */
INLINE void v_transpose(vec rows[8])
{
	vec t[8];

#pragma GCC unroll 4
	for (uint32_t i = 0; i < 8; i += 2) {
		t[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
		t[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
	}
#pragma GCC unroll 2
	for (uint32_t i = 0; i < 8; i += 4) {
		rows[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
		rows[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
		rows[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
		rows[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
	}
#pragma GCC unroll 4
	for (uint32_t c = 0; c < 4; c++) {
		vec upper = _mm256_permute2x128_si256(rows[c], rows[4 + c], 0x31);

		rows[c] = _mm256_permute2x128_si256(rows[c], rows[4 + c], 0x20);
		rows[4 + c] = upper;
	}
}

/* ---- r16 ---- */

#define R16_NEEDS_SYMBOL 0

/*
 * Owners without a table of 256: the upper half byte of a slot says how many classes end below it,
 * and what ends inside its 16 slots is compared one by one. Where most classes end, at the two ends
 * of the range, decides how many comparisons there are. Bounds are less by one, and signed.
 */
/* (GCC 12's sanitized builds see a block past the 16th.) */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wstringop-overflow"
static __attribute__((noinline)) void table_bounds(struct r16_table *table)
{
	uint32_t end = 0, owner = 0;

	memset(table->bound, 0x7f, sizeof(table->bound));
	table->bounds_count = 0;
	for (uint32_t block = 0; block < 16; block++) {
		while (owner < 15 && end + table->frequency[owner] <= block * 16)
			end += table->frequency[owner++];
		table->base[block] = (uint8_t)owner;
		for (uint32_t s = owner, e = end; s < 15; s++) {
			e += table->frequency[s];
			if (e >= block * 16 + 16)
				break;
			table->bound[(s - owner) % 16][block] = (uint8_t)((e - 1) ^ 0x80);
			if (table->bounds_count <= s - owner)
				table->bounds_count = s - owner + 1;
		}
	}
}
#pragma GCC diagnostic pop

#define BOUNDS_USUAL 4u

INLINE vec v_owner(const struct r16_table *table, vec slot)
{
	const vec half = _mm256_set1_epi8(15);
	vec block = v_and(_mm256_srli_epi16(slot, 4), half);
	vec from = _mm256_xor_si256(slot, _mm256_set1_epi8((char)0x80));
	vec owner = v_table16(table->base, block);

#pragma GCC unroll 4
	for (uint32_t i = 0; i < BOUNDS_USUAL; i++)
		owner = v_sub8(owner, _mm256_cmpgt_epi8(from, v_table16(table->bound[i], block)));
	for (uint32_t i = BOUNDS_USUAL; __builtin_expect(i < table->bounds_count, 0); i++)
		owner = v_sub8(owner, _mm256_cmpgt_epi8(from, v_table16(table->bound[i], block)));
	return owner;
}

/* f * high + rest, a 16-bit number a lane, in two bytes. */
INLINE void v_state(vec f, vec high, vec rest, vec *ret_low, vec *ret_high)
{
	const vec bytes = _mm256_set1_epi16(0xff);
	vec even = _mm256_mullo_epi16(v_and(f, bytes), v_and(high, bytes));
	vec odd = _mm256_mullo_epi16(_mm256_srli_epi16(f, 8), _mm256_srli_epi16(high, 8));

	even = v_add16(even, v_and(rest, bytes));
	odd = v_add16(odd, _mm256_srli_epi16(rest, 8));
	*ret_low = v_or(v_and(even, bytes), _mm256_slli_epi16(odd, 8));
	*ret_high = v_or(_mm256_srli_epi16(even, 8), _mm256_andnot_si256(bytes, odd));
}

INLINE __m128i expand16(const uint8_t *next, uint32_t mask)
{
	const uint8_t *then = next + __builtin_popcount(mask & 0xff);
	__m128i low = _mm_loadl_epi64((const __m128i *)(const void *)next);
	__m128i high = _mm_loadl_epi64((const __m128i *)(const void *)then);

	low = _mm_shuffle_epi8(
	    low, _mm_loadl_epi64((const __m128i *)(const void *)&expand_lanes[mask & 0xff]));
	high = _mm_shuffle_epi8(
	    high, _mm_loadl_epi64((const __m128i *)(const void *)&expand_lanes[mask >> 8]));
	return _mm_unpacklo_epi64(low, high);
}

/* Lanes of the vector, by the low bits of a mask, as bytes of ones. */
INLINE vec v_active(uint64_t active)
{
	const vec byte =
	    _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
	const vec bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
	vec mask = _mm256_shuffle_epi8(_mm256_set1_epi32((int)(uint32_t)active), byte);

	return _mm256_cmpeq_epi8(v_and(mask, bit), bit);
}

/* Lanes whose high byte is 0 shift the next byte in; `active` lanes alone. */
INLINE const uint8_t *v_refill(vec *low, vec *high, const uint8_t *next, uint64_t active)
{
	vec empty = _mm256_cmpeq_epi8(*high, _mm256_setzero_si256()), bytes;
	uint32_t mask;

	if (active != UINT64_MAX)
		empty = v_and(empty, v_active(active));
	mask = (uint32_t)_mm256_movemask_epi8(empty);
	*high = _mm256_blendv_epi8(*high, *low, empty);
	bytes = _mm256_set_m128i(expand16(next + __builtin_popcount(mask & 0xffff), mask >> 16),
				 expand16(next, mask & 0xffff));
	*low = _mm256_blendv_epi8(*low, bytes, empty);
	return next + __builtin_popcount(mask);
}

/* Bytes of a where active, of b elsewhere. */
INLINE vec v_choose(uint64_t active, vec a, vec b)
{
	return v_select(v_active(active), a, b);
}

/* ---- symbols ---- */

/* Raw bits: of the even lanes and of the odd ones, two bytes that hold a lane's, and what moves
 * them to the upper end of the two bytes. */
struct fields {
	vec window[2], move[2];
	__m128i bits, down;
	uint32_t half_bytes; /* of 16 lanes */
};

INLINE void fields_open(struct fields *f, uint32_t bits)
{
	const vec byte = _mm256_set1_epi16(0xff), one = _mm256_set1_epi16(0x100);
	const vec low = _mm256_set1_epi64x((int64_t)0x8040201008040201); /* 1 << n % 8 */
	/* even lanes of 16: 0, 2, 4 ... */
	vec lane = _mm256_broadcastsi128_si256(_mm_setr_epi16(0, 2, 4, 6, 8, 10, 12, 14));

	for (uint32_t i = 0; i < 2; i++) {
		vec at = _mm256_mullo_epi16(lane, _mm256_set1_epi16((int16_t)bits));
		vec first = _mm256_srli_epi16(at, 3);
		vec up = _mm256_sub_epi16(_mm256_set1_epi16((int16_t)(16 - bits)),
					  v_and(at, _mm256_set1_epi16(7)));
		vec power = v_and(_mm256_shuffle_epi8(low, up), byte);
		vec is_high = _mm256_cmpgt_epi16(up, _mm256_set1_epi16(7));

		f->window[i] = v_add16(v_or(first, _mm256_slli_epi16(first, 8)), one);
		f->move[i] = _mm256_blendv_epi8(power, _mm256_slli_epi16(power, 8), is_high);
		if (!bits)
			f->move[i] = _mm256_setzero_si256();
		lane = v_add16(lane, _mm256_set1_epi16(1));
	}
	f->bits = _mm_cvtsi32_si128((int)bits);
	f->down = _mm_cvtsi32_si128((int)(16 - bits));
	f->half_bytes = 2 * bits;
}

/* class << bits | raw of a vector's lanes as 16-bit numbers, even lanes and odd ones. */
INLINE void v_symbols(const struct fields *f, vec class, const uint8_t *raw, uint32_t index,
		      const int is_wide, vec *even, vec *odd)
{
	const vec bytes = _mm256_set1_epi16(0xff);
	const uint8_t *from = raw + (size_t)index * 2 * f->half_bytes;
	vec r =
	    _mm256_set_m128i(_mm_loadu_si128((const __m128i *)(const void *)(from + f->half_bytes)),
			     _mm_loadu_si128((const __m128i *)(const void *)from));
	vec e = _mm256_mullo_epi16(_mm256_shuffle_epi8(r, f->window[0]), f->move[0]);
	vec o = _mm256_mullo_epi16(_mm256_shuffle_epi8(r, f->window[1]), f->move[1]);

	(void)is_wide;
	*even = v_or(_mm256_sll_epi16(v_and(class, bytes), f->bits), _mm256_srl_epi16(e, f->down));
	*odd = v_or(_mm256_sll_epi16(_mm256_srli_epi16(class, 8), f->bits),
		    _mm256_srl_epi16(o, f->down));
}

#define HAS_LOOKUP 0

#endif
