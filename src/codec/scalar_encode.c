/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scalar_encode.c - the reference of encoding one group: elements to classes, raw bits and the
 * error that decoding will have.
 *
 * Sums are kept by lane and added in lane order at the end, so that a vector of any width gives the
 * same bytes.
 */
#include <string.h>

#include "base/bytes.h"
#include "codec/float.h"
#include "codec/scalar.h"

/* Fields of `bits` bits, least significant first; writes up to 4 bytes past the row's end. */
static inline __attribute__((always_inline)) void raw_pack(const uint32_t *fields, uint32_t lanes,
							   const uint32_t bits, uint8_t *out)
{
	uint64_t word = 0;
	uint32_t filled = 0;

	for (uint32_t lane = 0; lane < lanes; lane++) {
		word |= (uint64_t)fields[lane] << filled;
		filled += bits;
		if (filled < 32)
			continue;
		store_le32(out, (uint32_t)word);
		out += 4;
		word >>= 32;
		filled -= 32;
	}
	if (filled)
		store_le32(out, (uint32_t)word);
}

static void raw_row(const uint32_t *fields, uint32_t lanes, uint32_t bits, uint8_t *out)
{
	switch (bits) {
	case 0:
		break;
	case 1:
		raw_pack(fields, lanes, 1, out);
		break;
	case 2:
		raw_pack(fields, lanes, 2, out);
		break;
	case 3:
		raw_pack(fields, lanes, 3, out);
		break;
	case 4:
		raw_pack(fields, lanes, 4, out);
		break;
	case 8:
		raw_pack(fields, lanes, 8, out);
		break;
	default:
		raw_pack(fields, lanes, bits, out);
		break;
	}
}

/* A row of elements in lane order, as bits: a full row's lanes are pairs of channels taken by turns
 * from its lower and its upper half. */
#define LOAD_ROW(name, type)                                                              \
	static inline void name(const uint8_t *row, uint32_t lanes, uint32_t bits[LANES]) \
	{                                                                                 \
		type in[LANES];                                                           \
                                                                                          \
		memcpy(in, row, lanes * sizeof(type));                                    \
		for (uint32_t i = 0; lanes < LANES && i < lanes; i++)                     \
			bits[i] = in[i];                                                  \
		for (uint32_t i = 0; lanes == LANES && i < LANES / 4; i++) {              \
			bits[4 * i] = in[2 * i];                                          \
			bits[4 * i + 1] = in[2 * i + 1];                                  \
			bits[4 * i + 2] = in[LANES / 2 + 2 * i];                          \
			bits[4 * i + 3] = in[LANES / 2 + 2 * i + 1];                      \
		}                                                                         \
	}

LOAD_ROW(load_row8, uint8_t)
LOAD_ROW(load_row16, uint16_t)
LOAD_ROW(load_row32, uint32_t)

static inline void load_bits(const uint8_t *row, uint32_t lanes, uint32_t element_bytes,
			     uint32_t bits[LANES])
{
	if (element_bytes == 1)
		load_row8(row, lanes, bits);
	else if (element_bytes == 2)
		load_row16(row, lanes, bits);
	else
		load_row32(row, lanes, bits);
}

/* One bit a lane of what is marked there with 1; most rows have none. */
static inline uint64_t marks_to_bits(const uint8_t marks[LANES], uint32_t lanes)
{
	uint64_t bits = 0;
	uint8_t any = 0;

	for (uint32_t i = 0; i < LANES; i++)
		any |= marks[i];
	if (!any)
		return 0;
	for (uint32_t i = 0; i < LANES; i++)
		bits |= (uint64_t)marks[i] << i;
	return bits & UINT64_MAX >> (LANES - lanes);
}

void scalar_split(const struct split_job *job)
{
	uint32_t element_bytes = dtype_bytes(job->dtype);
	uint32_t raw_bits = dtype_raw_bits(job->dtype), fraction = raw_bits - 1;
	uint32_t exponent_max = dtype_exponent_max(job->dtype), sign = 8 * element_bytes - 1;
	uint32_t raw_bytes = (job->lanes * raw_bits + 7) / 8;
	uint32_t bits[LANES], fields[LANES];
	uint8_t marks[LANES] = {0};

	for (uint32_t token = 0; token < job->tokens; token++) {
		uint8_t *classes = job->classes + token * LANES;

		load_bits(job->elements + token * job->row_bytes, job->lanes, element_bytes, bits);
		for (uint32_t i = 0; i < job->lanes; i++) {
			uint8_t class = job->class_of[bits[i] >> fraction & exponent_max];

			marks[i] = class >> 4;
			classes[i] = marks[i] ? job->other_class : class;
		}
		for (uint32_t i = 0; i < job->lanes; i++)
			fields[i] = (bits[i] & ((1u << fraction) - 1)) | bits[i] >> sign
											<< fraction;
		job->outside[token] = marks_to_bits(marks, job->lanes);
		raw_row(fields, job->lanes, raw_bits, job->raw + (size_t)token * raw_bytes);
	}
}

static inline void values_row(const uint32_t bits[LANES], uint8_t dtype, float *values)
{
	switch (dtype) {
	case SSV_DTYPE_BF16:
		for (uint32_t i = 0; i < LANES; i++)
			values[i] = f32_of(bits[i] << 16);
		break;
	case SSV_DTYPE_FP16:
		for (uint32_t i = 0; i < LANES; i++)
			values[i] = f32_from_fp16((uint16_t)bits[i]);
		break;
	case SSV_DTYPE_FP32:
		memcpy(values, bits, LANES * sizeof(*values));
		break;
	case SSV_DTYPE_E4M3:
		for (uint32_t i = 0; i < LANES; i++)
			values[i] = f32_from_e4m3((uint8_t)bits[i]);
		break;
	default:
		for (uint32_t i = 0; i < LANES; i++)
			values[i] = f32_from_e5m2((uint8_t)bits[i]);
		break;
	}
}

void scalar_load(const struct load_job *job)
{
	uint32_t bits[LANES] = {0};

	for (uint32_t token = 0; token < job->tokens; token++) {
		load_bits(job->elements + token * job->row_bytes, job->lanes,
			  dtype_bytes(job->dtype), bits);
		values_row(bits, job->dtype, job->values + token * LANES);
	}
}

/* Adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the low bits. */
#define ROUND_BIAS      12582912.0f
#define ROUND_BIAS_BITS 0x4b400000
#define LIMIT_BITS      0x46fa0000 /* of (float)INTEGER_MAX */

void scalar_quantise(const struct quantise_job *job)
{
	const float *restrict inverse = job->inverse;

	for (uint32_t token = 0; token < job->tokens; token++) {
		const float *restrict values = job->values + token * LANES;
		int16_t *restrict integers = job->integers + token * LANES;

		for (uint32_t i = 0; i < LANES; i++) {
			int32_t bits = (int32_t)f32_bits(values[i] * inverse[i]);
			/* as integers, magnitudes beyond the limit, infinity and NaN are above */
			int32_t near = -((bits & INT32_MAX) <= LIMIT_BITS);
			float held = f32_of((uint32_t)(bits & near));
			int32_t n = (int32_t)f32_bits(held + ROUND_BIAS) - ROUND_BIAS_BITS;

			integers[i] = (int16_t)((n & near) | (INTEGER_NONE & ~near));
		}
	}
}

void scalar_pack(const struct pack_job *job)
{
	const int32_t middle = 8 << job->raw_bits, top = (16 << job->raw_bits) - 1;
	const int32_t mask = (1 << job->raw_bits) - 1;
	uint32_t raw_bytes = (job->lanes * job->raw_bits + 7) / 8;
	int32_t current[LANES], symbols[LANES];
	uint32_t fields[LANES];
	uint8_t marks[LANES];

	for (uint32_t i = 0; i < LANES; i++)
		current[i] = job->offset[i];
	for (uint32_t token = 0; token < job->tokens; token++) {
		const int16_t *restrict integers = job->integers + token * LANES;
		uint8_t *restrict classes = job->classes + token * LANES;

		for (uint32_t i = 0; i < LANES; i++) {
			int32_t base =
			    (current[i] & job->delta[i]) | (job->offset[i] & ~job->delta[i]);
			int32_t known = -(integers[i] != INTEGER_NONE);
			int32_t symbol = ((integers[i] - base) & known) + middle;

			symbol &= -(symbol >= 0);
			symbol = symbol > top ? top : symbol;
			current[i] = base + symbol - middle;
			symbols[i] = symbol;
		}
		for (uint32_t i = 0; i < LANES; i++) {
			marks[i] = current[i] != integers[i];
			classes[i] = (uint8_t)(symbols[i] >> job->raw_bits);
			fields[i] = (uint32_t)(symbols[i] & mask);
		}
		job->outside[token] = marks_to_bits(marks, job->lanes);
		raw_row(fields, job->lanes, job->raw_bits, job->raw + (size_t)token * raw_bytes);
	}
}

/* What a product becomes as an element, as a float again; infinite where it overflows. */
static inline float decoded_value(float x, uint8_t dtype)
{
	switch (dtype) {
	case SSV_DTYPE_BF16:
		return f32_from_bf16(bf16_from_f32(x));
	case SSV_DTYPE_FP16:
		return f32_from_fp16(fp16_from_f32(x));
	case SSV_DTYPE_FP32:
		return x;
	case SSV_DTYPE_E4M3:
		return f32_from_e4m3(e4m3_from_f32(x));
	default:
		return f32_from_e5m2(e5m2_from_f32(x));
	}
}

/* One row; lanes in *outside are left out, lanes that overflow are added to it. */
static void measure_marked(const struct measure_job *job, uint32_t token, double *error,
			   double *norm)
{
	const float *values = job->values + token * LANES;
	const int16_t *integers = job->integers + token * LANES;

	for (uint32_t i = 0; i < job->lanes; i++) {
		float x = decoded_value((float)integers[i] * job->scale[i], job->dtype);
		float off = x - values[i];

		if (!f32_is_finite(x))
			job->outside[token] |= UINT64_C(1) << i;
		if (job->outside[token] >> i & 1)
			continue;
		error[i] += (double)off * off;
		norm[i] += (double)values[i] * values[i];
	}
}

/* One row of which nothing is outside, and nothing can overflow. */
static inline __attribute__((always_inline)) void measure_row(const struct measure_job *job,
							      uint32_t token, const uint8_t dtype,
							      double *restrict error,
							      double *restrict norm)
{
	const float *restrict values = job->values + token * LANES;
	const int16_t *restrict integers = job->integers + token * LANES;
	const float *restrict scale = job->scale;

	for (uint32_t i = 0; i < LANES; i++) {
		double off = decoded_value((float)integers[i] * scale[i], dtype) - values[i];

		error[i] += off * off;
		norm[i] += (double)values[i] * values[i];
	}
}

static inline __attribute__((always_inline)) void measure(struct measure_job *job,
							  const uint8_t dtype)
{
	double error[LANES] = {0}, norm[LANES] = {0};

	for (uint32_t token = job->first; token < job->tokens; token++) {
		if (job->outside[token] || dtype == SSV_DTYPE_FP16)
			measure_marked(job, token, error, norm);
		else
			measure_row(job, token, dtype, error, norm);
	}
	job->error_sum = 0;
	job->norm_sum = 0;
	for (uint32_t i = 0; i < job->lanes; i++) {
		job->error_sum += error[i];
		job->norm_sum += norm[i];
	}
}

void scalar_measure(struct measure_job *job)
{
	switch (job->dtype) {
	case SSV_DTYPE_BF16:
		measure(job, SSV_DTYPE_BF16);
		break;
	case SSV_DTYPE_FP16:
		measure(job, SSV_DTYPE_FP16);
		break;
	case SSV_DTYPE_FP32:
		measure(job, SSV_DTYPE_FP32);
		break;
	case SSV_DTYPE_E4M3:
		measure(job, SSV_DTYPE_E4M3);
		break;
	default:
		measure(job, SSV_DTYPE_E5M2);
		break;
	}
}
