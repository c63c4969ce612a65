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

/* A row of elements in lane order, as bits. */
static inline void load_bits(const uint8_t *row, uint32_t lanes, uint32_t element_bytes,
			     const uint8_t place[LANES], uint32_t bits[LANES])
{
	switch (element_bytes) {
	case 1:
		for (uint32_t i = 0; i < lanes; i++)
			bits[i] = row[place[i]];
		break;
	case 2:
		for (uint32_t i = 0; i < lanes; i++)
			bits[i] = load_le16(row + 2 * (size_t)place[i]);
		break;
	default:
		for (uint32_t i = 0; i < lanes; i++)
			bits[i] = load_le32(row + 4 * (size_t)place[i]);
		break;
	}
}

static void lane_places(uint32_t lanes, uint8_t place[LANES])
{
	for (uint32_t i = 0; i < LANES; i++)
		place[i] = (uint8_t)lane_channel(i, lanes);
}

void scalar_split(const struct split_job *job)
{
	uint32_t element_bytes = dtype_bytes(job->dtype);
	uint32_t raw_bits = dtype_raw_bits(job->dtype), fraction = raw_bits - 1;
	uint32_t exponent_max = dtype_exponent_max(job->dtype), sign = 8 * element_bytes - 1;
	uint32_t raw_bytes = (job->lanes * raw_bits + 7) / 8;
	uint32_t bits[LANES], fields[LANES];
	uint8_t place[LANES];

	lane_places(job->lanes, place);
	for (uint32_t token = 0; token < job->tokens; token++) {
		uint8_t *classes = job->classes + token * LANES;
		uint64_t outside = 0;

		load_bits(job->elements + token * job->row_bytes, job->lanes, element_bytes, place,
			  bits);
		for (uint32_t i = 0; i < job->lanes; i++) {
			uint8_t class = job->class_of[bits[i] >> fraction & exponent_max];
			uint32_t none = class >> 4;

			outside |= (uint64_t)none << i;
			classes[i] = none ? job->other_class : class;
			fields[i] = (bits[i] & ((1u << fraction) - 1)) | bits[i] >> sign
											<< fraction;
		}
		job->outside[token] = outside;
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
	uint8_t place[LANES];

	lane_places(job->lanes, place);
	for (uint32_t token = 0; token < job->tokens; token++) {
		load_bits(job->elements + token * job->row_bytes, job->lanes,
			  dtype_bytes(job->dtype), place, bits);
		values_row(bits, job->dtype, job->values + token * LANES);
	}
}

/* Adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the low bits. */
#define ROUND_BIAS      12582912.0f
#define ROUND_BIAS_BITS 0x4b400000

void scalar_quantise(const struct quantise_job *job)
{
	const float limit = INTEGER_MAX;

	for (uint32_t token = 0; token < job->tokens; token++) {
		const float *values = job->values + token * LANES;
		int16_t *integers = job->integers + token * LANES;

		for (uint32_t i = 0; i < LANES; i++) {
			float x = values[i] * job->inverse[i];
			/* false for NaN too */
			int near = (x >= -limit) & (x <= limit);
			float held = near ? x : 0;
			int32_t n = (int32_t)f32_bits(held + ROUND_BIAS) - ROUND_BIAS_BITS;

			integers[i] = (int16_t)(near ? n : INTEGER_NONE);
		}
	}
}

void scalar_pack(const struct pack_job *job)
{
	const int32_t middle = 8 << job->raw_bits, top = (16 << job->raw_bits) - 1;
	const uint32_t mask = (1u << job->raw_bits) - 1;
	uint32_t raw_bytes = (job->lanes * job->raw_bits + 7) / 8;
	int32_t current[LANES];
	uint32_t fields[LANES];
	uint8_t wrong[LANES];

	for (uint32_t i = 0; i < LANES; i++)
		current[i] = job->offset[i];
	for (uint32_t token = 0; token < job->tokens; token++) {
		const int16_t *integers = job->integers + token * LANES;
		uint8_t *classes = job->classes + token * LANES;
		uint64_t outside = 0;

		for (uint32_t i = 0; i < LANES; i++) {
			int32_t base = job->delta[i] ? current[i] : job->offset[i];
			int32_t symbol =
			    integers[i] == INTEGER_NONE ? middle : integers[i] - base + middle;

			symbol = symbol < 0 ? 0 : symbol;
			symbol = symbol > top ? top : symbol;
			current[i] = base + symbol - middle;
			wrong[i] = current[i] != integers[i];
			classes[i] = (uint8_t)(symbol >> job->raw_bits);
			fields[i] = (uint32_t)symbol & mask;
		}
		for (uint32_t i = 0; i < job->lanes; i++)
			outside |= (uint64_t)wrong[i] << i;
		job->outside[token] = outside;
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

static inline __attribute__((always_inline)) void measure(struct measure_job *job,
							  const uint8_t dtype)
{
	double error[LANES] = {0}, norm[LANES] = {0};

	for (uint32_t token = job->first; token < job->tokens; token++) {
		const float *values = job->values + token * LANES;
		const int16_t *integers = job->integers + token * LANES;
		uint64_t outside = job->outside[token];

		for (uint32_t i = 0; i < job->lanes; i++) {
			float x = decoded_value((float)integers[i] * job->scale[i], dtype);
			float off = x - values[i];

			if (!f32_is_finite(x))
				outside |= UINT64_C(1) << i;
			if (outside >> i & 1)
				continue;
			error[i] += (double)off * off;
			norm[i] += (double)values[i] * values[i];
		}
		job->outside[token] = outside;
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
