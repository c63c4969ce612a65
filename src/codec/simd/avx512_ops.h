/* SPDX-License-Identifier: Apache-2.0 */
/*
 * avx512_ops.h - the vector operations that the decode templates are written in, for AVX-512 with
 * VBMI2. A row of 64 lanes is one vector.
 */
#ifndef SSV_CODEC_SIMD_AVX512_OPS_H
#define SSV_CODEC_SIMD_AVX512_OPS_H

#include <immintrin.h>

#include "base/bytes.h"
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
	/* the mask, which is often a constant, is not the operand that is overwritten */
	return _mm512_ternarylogic_epi32(a, mask, b, 0xe2);
}

INLINE vec v_sub8(vec a, vec b)
{
	return _mm512_sub_epi8(a, b);
}

INLINE vec v_add16(vec a, vec b)
{
	return _mm512_add_epi16(a, b);
}

INLINE vec v_sub16(vec a, vec b)
{
	return _mm512_sub_epi16(a, b);
}

/* Signed. */
INLINE vec v_min16(vec a, vec b)
{
	return _mm512_min_epi16(a, b);
}

INLINE vec v_max16(vec a, vec b)
{
	return _mm512_max_epi16(a, b);
}

INLINE vec v_xor(vec a, vec b)
{
	return _mm512_xor_si512(a, b);
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

/* Upper halves of a's words to the lower ones, those of b stay where they are. */
INLINE vec v_uppers(vec a, vec b)
{
	return v_select(_mm512_set1_epi32((int)0xffff0000), b, _mm512_srli_epi32(a, 16));
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

/* Words [row][column] to [column][row]. */
INLINE void v_transpose(vec rows[16])
{
	vec t[16];

#pragma GCC unroll 8
	for (uint32_t i = 0; i < 16; i += 2) {
		t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
		t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
	}
#pragma GCC unroll 4
	for (uint32_t i = 0; i < 16; i += 4) {
		rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
		rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
		rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
		rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
	}
	/* rows[4 r + c] has columns c, 4 + c, 8 + c, 12 + c of four rows */
#pragma GCC unroll 4
	for (uint32_t c = 0; c < 4; c++) {
		t[c] = _mm512_shuffle_i32x4(rows[c], rows[4 + c], 0x88);
		t[4 + c] = _mm512_shuffle_i32x4(rows[c], rows[4 + c], 0xdd);
		t[8 + c] = _mm512_shuffle_i32x4(rows[8 + c], rows[12 + c], 0x88);
		t[12 + c] = _mm512_shuffle_i32x4(rows[8 + c], rows[12 + c], 0xdd);
	}
#pragma GCC unroll 4
	for (uint32_t c = 0; c < 4; c++) {
		rows[c] = _mm512_shuffle_i32x4(t[c], t[8 + c], 0x88);
		rows[4 + c] = _mm512_shuffle_i32x4(t[4 + c], t[12 + c], 0x88);
		rows[8 + c] = _mm512_shuffle_i32x4(t[c], t[8 + c], 0xdd);
		rows[12 + c] = _mm512_shuffle_i32x4(t[4 + c], t[12 + c], 0xdd);
	}
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

/* f * high + rest, a 16-bit number a lane, in two bytes. Few shifts: they share two pipes with the
 * shuffles. */
INLINE void v_state(vec f, vec high, vec rest, vec *ret_low, vec *ret_high)
{
	const vec bytes = _mm512_set1_epi16(0xff);
	vec even = _mm512_mullo_epi16(v_and(f, bytes), v_and(high, bytes));
	vec odd =
	    _mm512_mulhi_epu16(_mm512_andnot_si512(bytes, f), _mm512_andnot_si512(bytes, high));

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
	__m128i bits;
};

INLINE void fields_open(struct fields *f, uint32_t bits)
{
	/* bytes below 64: the products of one stay out of the next */
	const vec by_bits = _mm512_set1_epi16((int16_t)bits);
	const vec inside = _mm512_set1_epi64(0x0706050403020100);
	const vec eighth = _mm512_setr_epi64(
	    0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303, 0x0404040404040404,
	    0x0505050505050505, 0x0606060606060606, 0x0707070707070707);
	const vec class =
	    _mm512_broadcast_i32x4(_mm_set_epi64x(0x0f0e0d0c0b0a0908, 0x0706050403020100));

	f->bits = _mm_cvtsi32_si128((int)bits);
	f->group = _mm512_add_epi8(inside, _mm512_mullo_epi16(eighth, by_bits));
	f->shift = _mm512_mullo_epi16(inside, by_bits);
	if (bits == 1) { /* all bits of the row in each eighth: fields_bytes1() */
		f->group = inside;
		f->shift = _mm512_add_epi8(inside, _mm512_slli_epi16(eighth, 3));
	}
	f->mask = _mm512_set1_epi8((char)((1 << bits) - 1));
	f->classes = _mm512_sll_epi16(class, f->bits); /* not for is_wide */
}

INLINE vec fields_bytes(const struct fields *f, const uint8_t *raw)
{
	return _mm512_multishift_epi64_epi8(f->shift,
					    _mm512_permutexvar_epi8(f->group, v_load(raw)));
}

/* The same of one bit at most. */
INLINE vec fields_bytes1(const struct fields *f, const uint8_t *raw)
{
	return _mm512_multishift_epi64_epi8(f->shift, _mm512_set1_epi64((long long)load_le64(raw)));
}

/* class << bits | raw, below 256, of a vector's lanes. */
INLINE vec v_symbols8(const struct fields *f, vec class, const uint8_t *raw, const int is_narrow)
{
	return _mm512_ternarylogic_epi32(_mm512_shuffle_epi8(f->classes, class),
					 is_narrow ? fields_bytes1(f, raw) : fields_bytes(f, raw),
					 f->mask, 0xf8);
}

/* The same as 16-bit numbers, even lanes and odd ones; is_wide: they may pass 255. */
INLINE void v_symbols(const struct fields *f, vec class, const uint8_t *raw, uint32_t index,
		      const int is_wide, vec *even, vec *odd)
{
	const vec bytes = _mm512_set1_epi16(0xff);
	vec v;

	(void)index;
	if (!is_wide) {
		v = v_symbols8(f, class, raw, 0);
		*even = v_and(v, bytes);
		*odd = _mm512_srli_epi16(v, 8);
		return;
	}
	v = v_and(fields_bytes(f, raw), f->mask);
	*even = v_add16(_mm512_sll_epi16(v_and(class, bytes), f->bits), v_and(v, bytes));
	*odd = v_add16(_mm512_sll_epi16(_mm512_srli_epi16(class, 8), f->bits),
		       _mm512_srli_epi16(v, 8));
}

/* Put an element of 16 bits at a place of a row of two vectors. */
INLINE void v_patch16(vec *first, vec *second, uint32_t place, uint16_t element)
{
	uint64_t mask = UINT64_C(1) << place;

	*first = _mm512_mask_set1_epi16(*first, (__mmask32)mask, (int16_t)element);
	*second = _mm512_mask_set1_epi16(*second, (__mmask32)(mask >> 32), (int16_t)element);
}

/* ---- elements by symbol ---- */

#define HAS_LOOKUP      1
#define LOOKUP_BITS_MAX 3

struct lookup {
	vec table[4]; /* of 32 elements of 16 bits */
};

/* A table of elements of 16 bits that are made 16 at a time, in the low halves of words. */
INLINE void lookup_set(struct lookup *t, uint32_t sixteenth, vec words)
{
	__m256i half = _mm512_cvtepi32_epi16(words);
	vec *table = &t->table[sixteenth / 2];

	*table = sixteenth % 2 ? _mm512_inserti64x4(*table, half, 1) : _mm512_castsi256_si512(half);
}

INLINE vec v_iota32(void)
{
	return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

/* Elements of 16-bit indices below 16 << bits; what lies above them does not count. */
INLINE vec v_lookup16(const struct lookup *t, vec index, const uint32_t bits)
{
	vec low, high;

	if (bits < 2)
		return _mm512_permutexvar_epi16(index, t->table[0]);
	low = _mm512_permutex2var_epi16(t->table[0], index, t->table[1]);
	if (bits == 2)
		return low;
	high = _mm512_permutex2var_epi16(t->table[2], index, t->table[3]);
	return _mm512_mask_mov_epi16(low, _mm512_test_epi16_mask(index, _mm512_set1_epi16(64)),
				     high);
}

/* Bytes 0 and 1 of each word, or 2 and 3, as two 16-bit indices; what lies above them means
 * nothing. */
INLINE vec v_index16(vec bytes, const uint32_t half)
{
	const vec first = _mm512_broadcast_i32x4(
	    _mm_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13));
	const vec second = _mm512_broadcast_i32x4(
	    _mm_setr_epi8(2, 2, 3, 3, 6, 6, 7, 7, 10, 10, 11, 11, 14, 14, 15, 15));

	return _mm512_shuffle_epi8(bytes, half ? second : first);
}

/* ---- integers of a group with one scale ---- */

/*
 * u = n + 2^15 is made by one addition, put under the exponent of 2^23, and taken from there to x
 * by one fused product: (2^23 + u) * s - (2^23 + 2^15) * s. The second product is exact for a step
 * that no factor was applied to (11 bits times 9), so x is n * s rounded once, which is the
 * format's.
 */
struct chain {
	struct fields fields;
	vec base[2],
	    delta[2]; /* what a symbol is added to: even lanes, odd ones; where it moves on */
	vecf scale, zero;
};

INLINE void chain_open(struct chain *c, const struct tile_job *job)
{
	const float scale = job->lane->scale[0];

	fields_open(&c->fields, job->raw_bits);
	/* symbols as signed bytes, 0 in the middle; the raw bits below are still zero */
	c->fields.classes = v_sub8(c->fields.classes, _mm512_set1_epi8((char)(8 << job->raw_bits)));
	c->scale = v_setf(scale);
	c->zero = v_setf(-(0x1p23f + 0x1p15f) * scale);
	for (uint32_t i = 0; i < 2; i++) {
		vec offset = v_load(job->lane->offset + i * LANES / 2);

		c->base[i] = v_add16(offset, v_set32(0x80008000));
		c->delta[i] = v_load(job->lane->delta + i * LANES / 2);
	}
}

/* The next token's symbols of one half of the lanes, to x of its words' lower and upper halves. */
INLINE void chain_half(struct chain *c, const uint32_t half, vec symbol, vecf *lower, vecf *upper)
{
	const vec exponent = v_set32(0x4b000000);
	vec u = v_add16(c->base[half], symbol);

	c->base[half] = v_select(c->delta[half], u, c->base[half]);
	*lower = _mm512_castsi512_ps(v_select(v_set32(0xffff), u, exponent));
	*upper = _mm512_castsi512_ps(_mm512_shrdi_epi32(u, v_set32(0x4b00), 16));
	*lower = _mm512_fmadd_ps(*lower, c->scale, c->zero);
	*upper = _mm512_fmadd_ps(*upper, c->scale, c->zero);
}

/* Pairs of x as bf16. */
INLINE vec chain_pair(vecf low, vecf high)
{
	const vec round = v_set32(0x8000),
		  upper = _mm512_broadcast_i32x4(
		      _mm_setr_epi8(2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15));

	return _mm512_mask_shuffle_epi8(v_add32(v_bits(high), round), 0x3333333333333333,
					v_add32(v_bits(low), round), upper);
}

INLINE void chain_step(struct chain *c, vec class, const uint8_t *raw, vec *first, vec *second)
{
	vec symbol = v_symbols8(&c->fields, class, raw, 0);
	vecf x[4];

	/* sign extension of every other byte, as a product of 1 and a sum with nothing */
	chain_half(c, 0, _mm512_maddubs_epi16(_mm512_set1_epi16(0x0001), symbol), &x[0], &x[2]);
	chain_half(c, 1, _mm512_maddubs_epi16(_mm512_set1_epi16(0x0100), symbol), &x[1], &x[3]);
	*first = chain_pair(x[0], x[1]);
	*second = chain_pair(x[2], x[3]);
}

#endif
