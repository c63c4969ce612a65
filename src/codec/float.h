/* SPDX-License-Identifier: Apache-2.0 */
/*
 * float.h - elements of each dtype to and from fp32, in integer arithmetic and exact products.
 *
 * Reading is exact. Writing rounds once: bf16 half away from zero, the others to nearest even; fp16
 * overflows to infinity, the fp8 types saturate (docs/codec.md, "Output"). Needs the default
 * floating-point environment: round to nearest, subnormals kept.
 */
#ifndef SSV_CODEC_FLOAT_H
#define SSV_CODEC_FLOAT_H

#include <stdint.h>
#include <string.h>

#define F32_EXPONENT 0x7f800000u

static inline uint32_t f32_bits(float x)
{
	uint32_t bits;

	memcpy(&bits, &x, sizeof(bits));
	return bits;
}

static inline float f32_of(uint32_t bits)
{
	float x;

	memcpy(&x, &bits, sizeof(x));
	return x;
}

static inline int f32_is_finite(float x)
{
	return (f32_bits(x) & F32_EXPONENT) != F32_EXPONENT;
}

static inline float f32_from_bf16(uint16_t h)
{
	return f32_of((uint32_t)h << 16);
}

static inline uint16_t bf16_from_f32(float x)
{
	return (uint16_t)((f32_bits(x) + 0x8000u) >> 16);
}

/* A small float's magnitude, moved to the top of fp32's fraction, times a power of two. */
static inline float f32_from_fp16(uint16_t h)
{
	uint32_t bits = f32_bits(f32_of((uint32_t)(h & 0x7fff) << 13) * 0x1p112f);

	if ((h & 0x7c00) == 0x7c00)
		bits |= F32_EXPONENT;
	return f32_of(bits | (uint32_t)(h & 0x8000) << 16);
}

static inline float f32_from_e4m3(uint8_t b)
{
	uint32_t bits = f32_bits(f32_of((uint32_t)(b & 0x7f) << 20) * 0x1p120f);

	if ((b & 0x7f) == 0x7f)
		bits |= F32_EXPONENT;
	return f32_of(bits | (uint32_t)(b & 0x80) << 24);
}

static inline float f32_from_e5m2(uint8_t b)
{
	uint32_t bits = f32_bits(f32_of((uint32_t)(b & 0x7f) << 21) * 0x1p112f);

	if ((b & 0x7c) == 0x7c)
		bits |= F32_EXPONENT;
	return f32_of(bits | (uint32_t)(b & 0x80) << 24);
}

/*
 * The magnitude of x in a format with `fraction` bits and least normal 2^-minimum, to nearest even.
 * Below it, adding 2^(23 - minimum - fraction) makes fp32's own rounding do it.
 */
static inline uint32_t small_from_f32(uint32_t magnitude, uint32_t fraction, uint32_t minimum)
{
	uint32_t shift = 23 - fraction;
	uint32_t bias = (127 - 1 - minimum) << 23;
	uint32_t unit = (127 + 23 - minimum - fraction) << 23;

	if (magnitude < (127 - minimum) << 23)
		return f32_bits(f32_of(magnitude) + f32_of(unit)) - unit;
	return (magnitude - bias + (1u << (shift - 1)) - 1 + (magnitude >> shift & 1)) >> shift;
}

static inline uint16_t fp16_from_f32(float x)
{
	uint32_t magnitude = f32_bits(x) & 0x7fffffff;
	uint32_t h = small_from_f32(magnitude, 10, 14);

	if (magnitude >= 0x47800000u) /* 2^16 */
		h = magnitude > F32_EXPONENT ? 0x7e00 : 0x7c00;
	return (uint16_t)(h | (f32_bits(x) >> 16 & 0x8000));
}

static inline uint8_t e4m3_from_f32(float x)
{
	uint32_t magnitude = f32_bits(x) & 0x7fffffff;
	uint32_t b = small_from_f32(magnitude, 3, 6);

	if (magnitude >= 0x43e00000u) /* 448 */
		b = 0x7e;
	return (uint8_t)(b | (f32_bits(x) >> 24 & 0x80));
}

static inline uint8_t e5m2_from_f32(float x)
{
	uint32_t magnitude = f32_bits(x) & 0x7fffffff;
	uint32_t b = small_from_f32(magnitude, 2, 14);

	if (magnitude >= 0x47600000u) /* 57344 */
		b = 0x7b;
	return (uint8_t)(b | (f32_bits(x) >> 24 & 0x80));
}

#endif
