/* SPDX-License-Identifier: Apache-2.0 */
/*
 * avx512_ops.h - the vector operations that the decode templates are written in, for AVX-512 with
 * VBMI2. A row of 64 lanes is one vector.
 */
#ifndef SSV_CODEC_SIMD_AVX512_OPS_H
#define SSV_CODEC_SIMD_AVX512_OPS_H

#include <immintrin.h>

#include "codec/simd/decode.h"

#define LEVEL(name) avx512_##name
#define VEC_BYTES   64u
#define ROW_VECS    1u

typedef __m512i vec;
typedef __m512 vecf;

INLINE vec v_load(const void *p)
{
	return _mm512_loadu_si512(p);
}

INLINE vecf v_loadf(const float *p)
{
	return _mm512_loadu_ps(p);
}

INLINE void v_store(void *p, vec x)
{
	_mm512_storeu_si512(p, x);
}

/* Past the caches; p is aligned. */
INLINE void v_stream(void *p, vec x)
{
	_mm512_stream_si512(p, x);
}

INLINE void v_stream_end(void)
{
	_mm_sfence();
}

INLINE vec v_set32(uint32_t x)
{
	return _mm512_set1_epi32((int)x);
}

INLINE vecf v_setf(float x)
{
	return _mm512_set1_ps(x);
}

INLINE vec v_and(vec a, vec b)
{
	return _mm512_and_si512(a, b);
}

INLINE vec v_or(vec a, vec b)
{
	return _mm512_or_si512(a, b);
}

/* Bits of a where the mask has ones, of b elsewhere. */
INLINE vec v_select(vec mask, vec a, vec b)
{
	return _mm512_ternarylogic_epi32(mask, a, b, 0xca);
}

INLINE vec v_sub8(vec a, vec b)
{
	return _mm512_sub_epi8(a, b);
}

INLINE vec v_add16(vec a, vec b)
{
	return _mm512_add_epi16(a, b);
}

INLINE vec v_add32(vec a, vec b)
{
	return _mm512_add_epi32(a, b);
}

INLINE vec v_shl32(vec a, uint32_t n)
{
	return _mm512_slli_epi32(a, n);
}

INLINE vec v_shr32(vec a, uint32_t n)
{
	return _mm512_srli_epi32(a, n);
}

INLINE vecf v_float(vec a)
{
	return _mm512_cvtepi32_ps(a);
}

INLINE vec v_bits(vecf a)
{
	return _mm512_castps_si512(a);
}

INLINE vecf v_mul(vecf a, vecf b)
{
	return _mm512_mul_ps(a, b);
}

/* fp16 of each float, in the low halves of words; the high ones are zero. */
INLINE vec v_half(vecf a)
{
	return _mm512_cvtepu16_epi32(_mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

/* Bytes of a table of 16, by index below 16. */
INLINE vec v_table16(const uint8_t table[16], vec index)
{
	__m128i t = _mm_loadu_si128((const __m128i *)(const void *)table);

	return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t), index);
}

/* a0 b0 a1 b1 ... of the words of a and b. */
INLINE void v_zip32(vec a, vec b, vec *low, vec *high)
{
	const vec first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
	const vec second =
	    _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);

	*low = _mm512_permutex2var_epi32(a, first, b);
	*high = _mm512_permutex2var_epi32(a, second, b);
}

/* Of each word's four bytes: l0 h0 l1 h1 to even, l2 h2 l3 h3 to odd. */
INLINE void v_zip8(vec l, vec h, vec *even, vec *odd)
{
	vec low = _mm512_unpacklo_epi8(l, h), high = _mm512_unpackhi_epi8(l, h);

	*even = _mm512_castps_si512(
	    _mm512_shuffle_ps(_mm512_castsi512_ps(low), _mm512_castsi512_ps(high), 0x88));
	*odd = _mm512_castps_si512(
	    _mm512_shuffle_ps(_mm512_castsi512_ps(low), _mm512_castsi512_ps(high), 0xdd));
}

/* ---- r16 ---- */

#define R16_NEEDS_SYMBOL 1

/* Owners of slots. */
INLINE vec v_owner(const struct r16_table *table, vec slot)
{
	vec low = _mm512_permutex2var_epi8(v_load(table->symbol), slot, v_load(table->symbol + 64));
	vec high = _mm512_permutex2var_epi8(v_load(table->symbol + 128), slot,
					    v_load(table->symbol + 192));

	return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(slot), high);
}

/* f * high + rest, a 16-bit number a lane, in two bytes. */
INLINE void v_state(vec f, vec high, vec rest, vec *ret_low, vec *ret_high)
{
	const vec bytes = _mm512_set1_epi16(0xff);
	vec even = _mm512_mullo_epi16(v_and(f, bytes), v_and(high, bytes));
	vec odd = _mm512_mullo_epi16(_mm512_srli_epi16(f, 8), _mm512_srli_epi16(high, 8));

	even = v_add16(even, v_and(rest, bytes));
	odd = v_add16(odd, _mm512_srli_epi16(rest, 8));
	*ret_low = v_select(bytes, even, _mm512_slli_epi16(odd, 8));
	*ret_high = v_select(bytes, _mm512_srli_epi16(even, 8), odd);
}

/* Lanes whose high byte is 0 shift the next byte in; `active` lanes alone if PARTIAL. */
INLINE const uint8_t *v_refill(vec *low, vec *high, const uint8_t *next, uint64_t active)
{
	__mmask64 empty = _mm512_testn_epi8_mask(*high, *high) & active;

	*high = _mm512_mask_mov_epi8(*high, empty, *low);
	*low = _mm512_mask_expand_epi8(*low, empty, v_load(next));
	return next + __builtin_popcountll(empty);
}

/* Bytes of a where active, of b elsewhere. */
INLINE vec v_choose(uint64_t active, vec a, vec b)
{
	return _mm512_mask_mov_epi8(b, active, a);
}

/* ---- symbols ---- */

/* How raw bits are spread: for each byte, where its bits begin. */
struct fields {
	vec group, shift, mask, classes;
	uint32_t bits;
};

INLINE void fields_open(struct fields *f, uint32_t bits)
{
	uint8_t group[64], shift[64], classes[16];

	for (uint32_t i = 0; i < 64; i++) {
		group[i] = (uint8_t)(i / 8 * bits + i % 8);
		shift[i] = (uint8_t)(i % 8 * bits);
	}
	for (uint32_t i = 0; i < 16; i++)
		classes[i] = (uint8_t)(i << bits);
	f->group = v_load(group);
	f->shift = v_load(shift);
	f->mask = _mm512_set1_epi8((char)((1 << bits) - 1));
	f->classes =
	    _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)classes));
	f->bits = bits;
}

INLINE vec fields_bytes(const struct fields *f, const uint8_t *raw)
{
	return _mm512_multishift_epi64_epi8(f->shift,
					    _mm512_permutexvar_epi8(f->group, v_load(raw)));
}

/* class << bits | raw of a vector's lanes as 16-bit numbers, even lanes and odd ones. */
INLINE void v_symbols(const struct fields *f, const uint8_t *classes, const uint8_t *raw,
		      uint32_t index, int is_wide, vec *even, vec *odd)
{
	const vec bytes = _mm512_set1_epi16(0xff);
	vec c = v_load(classes), v;

	(void)index;
	if (!is_wide) {
		v = _mm512_ternarylogic_epi32(_mm512_shuffle_epi8(f->classes, c),
					      fields_bytes(f, raw), f->mask, 0xf8);
		*even = v_and(v, bytes);
		*odd = _mm512_srli_epi16(v, 8);
		return;
	}
	v = v_and(fields_bytes(f, raw), f->mask);
	*even = v_add16(_mm512_sll_epi16(v_and(c, bytes), _mm_cvtsi32_si128((int)f->bits)),
			v_and(v, bytes));
	*odd = v_add16(_mm512_sll_epi16(_mm512_srli_epi16(c, 8), _mm_cvtsi32_si128((int)f->bits)),
		       _mm512_srli_epi16(v, 8));
}

#endif
