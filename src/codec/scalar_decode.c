/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scalar_decode.c - the reference of decoding one group: classes and raw bits to elements, and
 * elements to where they belong.
 *
 * A row is worked out in lane order and written in place order, so that the inner loops have no
 * gathers. Tiles are [tokens][64] elements whatever the group's width.
 */
#include <string.h>

#include "base/bytes.h"
#include "codec/float.h"
#include "codec/scalar.h"

/* A row's raw bits, least significant first. Reads up to 8 bytes past the row. */
static inline __attribute__((always_inline)) void raw_unpack(const uint8_t *raw, uint32_t lanes,
							     const uint32_t bits, uint16_t *out)
{
	for (uint32_t lane = 0; lane < lanes; lane += 8, raw += bits) {
		uint64_t word = load_le64(raw);

		for (uint32_t i = 0; i < 8; i++)
			out[lane + i] = (uint16_t)(word >> (bits * i) & ((1u << bits) - 1));
	}
}

static inline void raw_row(const uint8_t *raw, uint32_t lanes, uint32_t bits, uint16_t *out)
{
	switch (bits) {
	case 0:
		memset(out, 0, LANES * sizeof(*out));
		break;
	case 1:
		raw_unpack(raw, lanes, 1, out);
		break;
	case 2:
		raw_unpack(raw, lanes, 2, out);
		break;
	case 3:
		raw_unpack(raw, lanes, 3, out);
		break;
	case 4:
		raw_unpack(raw, lanes, 4, out);
		break;
	case 5:
		raw_unpack(raw, lanes, 5, out);
		break;
	default:
		raw_unpack(raw, lanes, 6, out);
		break;
	}
}

/* A full row from lane order to place order: even pairs of lanes first, then the odd ones. */
#define PLACE_ROW(name, type, bytes)                                                     \
	static inline void name(const type *row, uint32_t lanes, uint8_t *out)           \
	{                                                                                \
		type place[LANES];                                                       \
                                                                                         \
		if (lanes < LANES) {                                                     \
			memcpy(out, row, lanes *(bytes));                                \
			return;                                                          \
		}                                                                        \
		for (uint32_t i = 0; i < LANES / 4; i++) {                               \
			memcpy(place + 2 * i, row + 4 * i, 2 * (bytes));                 \
			memcpy(place + LANES / 2 + 2 * i, row + 4 * i + 2, 2 * (bytes)); \
		}                                                                        \
		memcpy(out, place, sizeof(place));                                       \
	}

PLACE_ROW(place_row8, uint8_t, 1)
PLACE_ROW(place_row16, uint16_t, 2)
PLACE_ROW(place_row32, uint32_t, 4)

/* x of a row, lane order, to elements in place order. */
static inline void write_row(const float *x, uint32_t lanes, uint8_t dtype, uint8_t *out)
{
	uint16_t row16[LANES];
	uint32_t row32[LANES];
	uint8_t row8[LANES];

	switch (dtype) {
	case SSV_DTYPE_BF16:
		for (uint32_t i = 0; i < LANES; i++)
			row16[i] = bf16_from_f32(x[i]);
		place_row16(row16, lanes, out);
		break;
	case SSV_DTYPE_FP16:
		for (uint32_t i = 0; i < LANES; i++)
			row16[i] = fp16_from_f32(x[i]);
		place_row16(row16, lanes, out);
		break;
	case SSV_DTYPE_FP32:
		for (uint32_t i = 0; i < LANES; i++)
			row32[i] = f32_bits(x[i]);
		place_row32(row32, lanes, out);
		break;
	case SSV_DTYPE_E4M3:
		for (uint32_t i = 0; i < LANES; i++)
			row8[i] = e4m3_from_f32(x[i]);
		place_row8(row8, lanes, out);
		break;
	default:
		for (uint32_t i = 0; i < LANES; i++)
			row8[i] = e5m2_from_f32(x[i]);
		place_row8(row8, lanes, out);
		break;
	}
}

void scalar_dequantise(const struct tile_job *job)
{
	uint32_t element_bytes = dtype_bytes(job->dtype), bits = job->raw_bits;
	uint32_t raw_bytes = (job->lanes * bits + 7) / 8;
	uint16_t raw[LANES] = {0};
	int16_t integer[LANES];
	float x[LANES];

	memcpy(integer, job->offset, sizeof(integer));
	for (uint32_t token = 0; token < job->tokens; token++) {
		const uint8_t *classes = job->classes + token * LANES;

		raw_row(job->raw + (size_t)token * raw_bytes, job->lanes, bits, raw);
		for (uint32_t i = 0; i < LANES; i++) {
			int base = (integer[i] & job->delta[i]) | (job->offset[i] & ~job->delta[i]);
			int symbol = (classes[i] << bits) + raw[i];

			/* modulo 2^16, as the format says */
			integer[i] = (int16_t)(base + symbol - (8 << bits));
			x[i] = (float)integer[i] * job->scale[i];
		}
		write_row(x, job->lanes, job->dtype, job->tile + token * LANES * element_bytes);
	}
}

/* Sign and mantissa of one lane: `bits` bits from bit `at` of a row. */
static inline uint32_t raw_field(const uint8_t *raw, uint32_t at, uint32_t bits)
{
	return load_le32(raw + at / 8) >> (at % 8) & ((1u << bits) - 1);
}

/* A lossless row of `bytes`-wide elements with a `fraction`-bit mantissa. */
#define JOIN_ROW(name, type, place, fraction)                                                   \
	static inline void name(const struct tile_job *job, uint32_t token, uint32_t raw_bytes) \
	{                                                                                       \
		const uint8_t *raw = job->raw + (size_t)token * raw_bytes;                      \
		const uint8_t *classes = job->classes + token * LANES;                          \
		const uint32_t sign = 8 * sizeof(type) - 1;                                     \
		type row[LANES];                                                                \
                                                                                                \
		for (uint32_t i = 0; i < job->lanes; i++) {                                     \
			uint32_t field = raw_field(raw, i * ((fraction) + 1), (fraction) + 1);  \
			uint32_t exponent = job->exponent[classes[i] & 15];                     \
                                                                                                \
			row[i] = (type)(field >> (fraction) << sign | exponent << (fraction) |  \
					(field & ((1u << (fraction)) - 1)));                    \
		}                                                                               \
		place(row, job->lanes, job->tile + token * LANES * sizeof(type));               \
	}

JOIN_ROW(join_bf16, uint16_t, place_row16, 7)
JOIN_ROW(join_fp16, uint16_t, place_row16, 10)
JOIN_ROW(join_fp32, uint32_t, place_row32, 23)
JOIN_ROW(join_e4m3, uint8_t, place_row8, 3)
JOIN_ROW(join_e5m2, uint8_t, place_row8, 2)

void scalar_join(const struct tile_job *job)
{
	uint32_t raw_bytes = (job->lanes * job->raw_bits + 7) / 8;

	for (uint32_t token = 0; token < job->tokens; token++) {
		switch (job->dtype) {
		case SSV_DTYPE_BF16:
			join_bf16(job, token, raw_bytes);
			break;
		case SSV_DTYPE_FP16:
			join_fp16(job, token, raw_bytes);
			break;
		case SSV_DTYPE_FP32:
			join_fp32(job, token, raw_bytes);
			break;
		case SSV_DTYPE_E4M3:
			join_e4m3(job, token, raw_bytes);
			break;
		default:
			join_e5m2(job, token, raw_bytes);
			break;
		}
	}
}

/* Places that follow one another at the destination too. */
struct run {
	uint32_t place, count;
};

static uint32_t find_runs(const struct scatter_job *job, struct run runs[LANES])
{
	uint32_t count = 0;

	for (uint32_t p = 0; p < job->lanes; p++) {
		if (p && job->place[p] == job->place[p - 1] + job->element_bytes) {
			runs[count - 1].count++;
			continue;
		}
		runs[count].place = p;
		runs[count++].count = 1;
	}
	return count;
}

static void scatter_rows(const struct scatter_job *job, const struct run *runs, uint32_t count)
{
	for (uint32_t token = 0; token < job->tokens; token++) {
		const uint8_t *row = job->elements + (size_t)token * job->row_bytes;
		uint8_t *out = job->token[token];

		if (!out)
			continue;
		for (uint32_t r = 0; r < count; r++)
			memcpy(out + job->place[runs[r].place],
			       row + runs[r].place * job->element_bytes,
			       runs[r].count * job->element_bytes);
	}
}

/* Tokens from `first` on whose addresses are token_stride apart. */
static uint32_t tokens_in_step(const struct scatter_job *job, uint32_t first)
{
	uint32_t end = first + 1;

	while (end < job->tokens && job->token[end] &&
	       (uintptr_t)job->token[end] == (uintptr_t)job->token[end - 1] + job->token_stride)
		end++;
	return end - first;
}

#define SCATTER_COLUMNS(name, type)                                                            \
	static void name(const struct scatter_job *job, uint32_t first, uint32_t count)        \
	{                                                                                      \
		for (uint32_t p = 0; p < job->lanes; p++) {                                    \
			const uint8_t *in =                                                    \
			    job->elements + (size_t)first * job->row_bytes + p * sizeof(type); \
			uint8_t *out = job->token[first] + job->place[p];                      \
                                                                                               \
			for (uint32_t t = 0; t < count; t++, in += job->row_bytes) {           \
				memcpy(out, in, sizeof(type));                                 \
				out += job->token_stride;                                      \
			}                                                                      \
		}                                                                              \
	}

SCATTER_COLUMNS(scatter_columns8, uint8_t)
SCATTER_COLUMNS(scatter_columns16, uint16_t)
SCATTER_COLUMNS(scatter_columns32, uint32_t)

/* A transposed layout: tokens of a channel lie close to one another. */
static void scatter_transposed(const struct scatter_job *job)
{
	uint32_t count;

	for (uint32_t token = 0; token < job->tokens; token += count) {
		count = 1;
		if (!job->token[token])
			continue;
		count = tokens_in_step(job, token);
		if (job->element_bytes == 1)
			scatter_columns8(job, token, count);
		else if (job->element_bytes == 2)
			scatter_columns16(job, token, count);
		else
			scatter_columns32(job, token, count);
	}
}

void scalar_scatter(const struct scatter_job *job)
{
	struct run runs[LANES];
	uint32_t count = find_runs(job, runs);

	if (count == job->lanes && job->token_stride)
		scatter_transposed(job);
	else
		scatter_rows(job, runs, count);
}
