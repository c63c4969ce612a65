/* SPDX-License-Identifier: Apache-2.0 */
/*
 * neon_ops.h - the vector operations that the decode templates are written in, for NEON. A row of
 * 64 lanes is four vectors.
 */
#ifndef SSV_CODEC_SIMD_NEON_OPS_H
#define SSV_CODEC_SIMD_NEON_OPS_H

#include <arm_neon.h>

#include "codec/simd/decode.h"
#include "codec/simd/expand.h"

#define LEVEL(name) neon_##name
#define VEC_BYTES   16u
#define ROW_VECS    4u

typedef uint8x16_t vec;
typedef float32x4_t vecf;

#define U16(a)   vreinterpretq_u16_u8(a)
#define U32(a)   vreinterpretq_u32_u8(a)
#define OF_16(a) vreinterpretq_u8_u16(a)
#define OF_32(a) vreinterpretq_u8_u32(a)

INLINE vec v_load(const void *p)
{
	return vld1q_u8(p);
}

INLINE vecf v_loadf(const float *p)
{
	return vld1q_f32(p);
}

INLINE void v_store(void *p, vec x)
{
	vst1q_u8(p, x);
}

/* Stores that pass the caches gain nothing here. */
INLINE void v_stream(void *p, vec x)
{
	vst1q_u8(p, x);
}

INLINE void v_stream_end(void)
{
}

INLINE vec v_set32(uint32_t x)
{
	return OF_32(vdupq_n_u32(x));
}

INLINE vecf v_setf(float x)
{
	return vdupq_n_f32(x);
}

INLINE vec v_and(vec a, vec b)
{
	return vandq_u8(a, b);
}

INLINE vec v_or(vec a, vec b)
{
	return vorrq_u8(a, b);
}

/* Bits of a where the mask has ones, of b elsewhere. */
INLINE vec v_select(vec mask, vec a, vec b)
{
	return vbslq_u8(mask, a, b);
}

INLINE vec v_sub8(vec a, vec b)
{
	return vsubq_u8(a, b);
}

INLINE vec v_add16(vec a, vec b)
{
	return OF_16(vaddq_u16(U16(a), U16(b)));
}

INLINE vec v_sub16(vec a, vec b)
{
	return OF_16(vsubq_u16(U16(a), U16(b)));
}

/* Signed. */
INLINE vec v_min16(vec a, vec b)
{
	return vreinterpretq_u8_s16(vminq_s16(vreinterpretq_s16_u8(a), vreinterpretq_s16_u8(b)));
}

INLINE vec v_max16(vec a, vec b)
{
	return vreinterpretq_u8_s16(vmaxq_s16(vreinterpretq_s16_u8(a), vreinterpretq_s16_u8(b)));
}

INLINE vec v_xor(vec a, vec b)
{
	return veorq_u8(a, b);
}

INLINE vec v_add32(vec a, vec b)
{
	return OF_32(vaddq_u32(U32(a), U32(b)));
}

INLINE vec v_shl32(vec a, uint32_t n)
{
	return OF_32(vshlq_u32(U32(a), vdupq_n_s32((int32_t)n)));
}

INLINE vec v_shr32(vec a, uint32_t n)
{
	return OF_32(vshlq_u32(U32(a), vdupq_n_s32(-(int32_t)n)));
}

INLINE vecf v_float(vec a)
{
	return vcvtq_f32_s32(vreinterpretq_s32_u8(a));
}

INLINE vec v_bits(vecf a)
{
	return vreinterpretq_u8_f32(a);
}

INLINE vecf v_mul(vecf a, vecf b)
{
	return vmulq_f32(a, b);
}

/* fp16 of each float, in the low halves of words; the high ones are zero. */
INLINE vec v_half(vecf a)
{
	return OF_32(vmovl_u16(vreinterpret_u16_f16(vcvt_f16_f32(a))));
}

/* Upper halves of a's words to the lower ones, those of b stay where they are. */
INLINE vec v_uppers(vec a, vec b)
{
	return OF_32(vsriq_n_u32(U32(b), U32(a), 16));
}

/* Bytes of a table of 16, by index below 16. */
INLINE vec v_table16(const uint8_t table[16], vec index)
{
	return vqtbl1q_u8(vld1q_u8(table), index);
}

/* a0 b0 a1 b1 ... of the words of a and b. */
INLINE void v_zip32(vec a, vec b, vec *low, vec *high)
{
	*low = OF_32(vzip1q_u32(U32(a), U32(b)));
	*high = OF_32(vzip2q_u32(U32(a), U32(b)));
}

/* Of each word's four bytes: l0 h0 l1 h1 to even, l2 h2 l3 h3 to odd. */
INLINE void v_zip8(vec l, vec h, vec *even, vec *odd)
{
	uint32x4_t low = U32(vzip1q_u8(l, h)), high = U32(vzip2q_u8(l, h));

	*even = OF_32(vuzp1q_u32(low, high));
	*odd = OF_32(vuzp2q_u32(low, high));
}

/* Words [row][column] to [column][row]. */
INLINE void v_transpose(vec rows[4])
{
	uint64x2_t a = vreinterpretq_u64_u32(vtrn1q_u32(U32(rows[0]), U32(rows[1])));
	uint64x2_t b = vreinterpretq_u64_u32(vtrn2q_u32(U32(rows[0]), U32(rows[1])));
	uint64x2_t c = vreinterpretq_u64_u32(vtrn1q_u32(U32(rows[2]), U32(rows[3])));
	uint64x2_t d = vreinterpretq_u64_u32(vtrn2q_u32(U32(rows[2]), U32(rows[3])));

	rows[0] = vreinterpretq_u8_u64(vtrn1q_u64(a, c));
	rows[1] = vreinterpretq_u8_u64(vtrn1q_u64(b, d));
	rows[2] = vreinterpretq_u8_u64(vtrn2q_u64(a, c));
	rows[3] = vreinterpretq_u8_u64(vtrn2q_u64(b, d));
}

/* ---- r16 ---- */

#define R16_NEEDS_SYMBOL 1

/* Owners of slots: an index past a table of 64 leaves what is there. */
INLINE vec v_owner(const struct r16_table *table, vec slot)
{
	const vec quarter = vdupq_n_u8(64);
	vec owner = vqtbl4q_u8(vld1q_u8_x4(table->symbol), slot);

	for (uint32_t i = 1; i < 4; i++) {
		slot = vsubq_u8(slot, quarter);
		owner = vqtbx4q_u8(owner, vld1q_u8_x4(table->symbol + 64 * i), slot);
	}
	return owner;
}

/* f * high + rest, a 16-bit number a lane, in two bytes. */
INLINE void v_state(vec f, vec high, vec rest, vec *ret_low, vec *ret_high)
{
	uint16x8_t first = vmull_u8(vget_low_u8(f), vget_low_u8(high));
	uint16x8_t second = vmull_high_u8(f, high);

	first = vaddw_u8(first, vget_low_u8(rest));
	second = vaddw_high_u8(second, rest);
	*ret_low = vuzp1q_u8(OF_16(first), OF_16(second));
	*ret_high = vuzp2q_u8(OF_16(first), OF_16(second));
}

/* A bit of each byte of a half row. */
INLINE uint8x8_t lane_bits(void)
{
	return vcreate_u8(UINT64_C(0x8040201008040201));
}

/* The next bytes to the lanes that take one. */
INLINE uint8x8_t expand8(const uint8_t *next, uint8x8_t takes)
{
	uint32_t mask = vaddv_u8(vand_u8(takes, lane_bits()));

	return vtbl1_u8(vld1_u8(next), vcreate_u8(expand_lanes[mask]));
}

INLINE uint32_t count8(uint8x8_t takes)
{
	return vaddv_u8(vshr_n_u8(takes, 7));
}

/* Lanes of the vector, by the low bits of a mask, as bytes of ones. */
INLINE vec v_active(uint64_t active)
{
	uint8x8_t low = vtst_u8(vdup_n_u8((uint8_t)active), lane_bits());
	uint8x8_t high = vtst_u8(vdup_n_u8((uint8_t)(active >> 8)), lane_bits());

	return vcombine_u8(low, high);
}

/* Lanes whose high byte is 0 shift the next byte in; `active` lanes alone. */
INLINE const uint8_t *v_refill(vec *low, vec *high, const uint8_t *next, uint64_t active)
{
	vec takes = vceqzq_u8(*high), bytes;
	const uint8_t *then;

	if (active != UINT64_MAX)
		takes = vandq_u8(takes, v_active(active));
	then = next + count8(vget_low_u8(takes));
	bytes = vcombine_u8(expand8(next, vget_low_u8(takes)), expand8(then, vget_high_u8(takes)));
	*high = vbslq_u8(takes, *low, *high);
	*low = vbslq_u8(takes, bytes, *low);
	return then + count8(vget_high_u8(takes));
}

/* Bytes of a where active, of b elsewhere. */
INLINE vec v_choose(uint64_t active, vec a, vec b)
{
	return vbslq_u8(v_active(active), a, b);
}

/* ---- symbols ---- */

/* Raw bits: of the even lanes and of the odd ones, two bytes that hold a lane's, and how far down
 * they are to be shifted. */
struct fields {
	vec window[2];
	int16x8_t down[2];
	uint16x8_t mask;
	int16x8_t bits;
	uint32_t vec_bytes;
};

INLINE void fields_open(struct fields *f, uint32_t bits)
{
	static const uint16_t even[8] = {0, 2, 4, 6, 8, 10, 12, 14};

	for (uint32_t i = 0; i < 2; i++) {
		uint16x8_t lane = vaddq_u16(vld1q_u16(even), vdupq_n_u16((uint16_t)i));
		uint16x8_t at = vmulq_n_u16(lane, (uint16_t)bits);
		uint16x8_t byte = vshrq_n_u16(at, 3);

		f->window[i] =
		    OF_16(vaddq_u16(vorrq_u16(byte, vshlq_n_u16(byte, 8)), vdupq_n_u16(0x100)));
		f->down[i] = vnegq_s16(vreinterpretq_s16_u16(vandq_u16(at, vdupq_n_u16(7))));
	}
	f->mask = vdupq_n_u16((uint16_t)((1u << bits) - 1));
	f->bits = vdupq_n_s16((int16_t)bits);
	f->vec_bytes = 2 * bits;
}

/* class << bits | raw of a vector's lanes as 16-bit numbers, even lanes and odd ones. */
INLINE void v_symbols(const struct fields *f, vec class, const uint8_t *raw, uint32_t index,
		      const int is_wide, vec *even, vec *odd)
{
	vec from = vld1q_u8(raw + (size_t)index * f->vec_bytes);
	uint16x8_t e = vshlq_u16(U16(vqtbl1q_u8(from, f->window[0])), f->down[0]);
	uint16x8_t o = vshlq_u16(U16(vqtbl1q_u8(from, f->window[1])), f->down[1]);
	uint16x8_t low = vandq_u16(U16(class), vdupq_n_u16(0xff)),
		   high = vshrq_n_u16(U16(class), 8);

	(void)is_wide;
	*even = OF_16(vorrq_u16(vshlq_u16(low, f->bits), vandq_u16(e, f->mask)));
	*odd = OF_16(vorrq_u16(vshlq_u16(high, f->bits), vandq_u16(o, f->mask)));
}

#define HAS_LOOKUP 0

#endif
