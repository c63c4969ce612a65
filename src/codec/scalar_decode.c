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
#include "codec/trellis.h"

/*
 * A row's raw bits, least significant first, a byte each. Eight fields of `bits` bits lie in a
 * word's low end; they are spread to bytes by halves. Reads up to 8 bytes past the row.
 */
static inline __attribute__((always_inline)) void raw_unpack(const uint8_t *raw, uint32_t lanes,
							     const uint32_t bits, uint8_t *out)
{
	const uint64_t four = (UINT64_C(1) << 4 * bits) - 1;
	const uint64_t two = ((UINT64_C(1) << 2 * bits) - 1) * 0x0000000100000001u;
	const uint64_t one = ((UINT64_C(1) << bits) - 1) * 0x0001000100010001u;
	const uint64_t all = ((UINT64_C(1) << bits) - 1) * 0x0101010101010101u;

	for (uint32_t lane = 0; lane < lanes; lane += 8, raw += bits) {
		uint64_t word = load_le64(raw);

		word = (word & four) | (word << (32 - 4 * bits) & four << 32);
		word = (word & two) | (word << (16 - 2 * bits) & two << 16);
		word = (word & one) | (word << (8 - bits) & one << 8);
		store_le64(out + lane, word & all);
	}
}

static inline void raw_row(const uint8_t *raw, uint32_t lanes, uint32_t bits, uint8_t *out)
{
	switch (bits) {
	case 0:
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

/* A group's parameters in lane order, for loops over lanes. */
struct lane_order {
	int16_t integer[LANES], offset[LANES], delta[LANES];
	float scale[LANES];
};

static void lanes_load(const struct tile_lanes *lane, struct lane_order *order)
{
	for (uint32_t i = 0; i < LANES; i++) {
		order->integer[i] = lane->integer[lane_split(i)];
		order->offset[i] = lane->offset[lane_split(i)];
		order->delta[i] = lane->delta[lane_split(i)];
		order->scale[i] = lane->scale[lane_four(i)];
	}
}

void scalar_dequantise(const struct tile_job *job)
{
	uint32_t element_bytes = dtype_bytes(job->dtype), bits = job->raw_bits;
	uint32_t raw_bytes = (job->lanes * bits + 7) / 8;
	uint8_t raw[LANES] = {0};
	int32_t symbol[LANES];
	struct lane_order p;
	float x[LANES];

	lanes_load(job->lane, &p);
	for (uint32_t token = 0; token < job->tokens; token++) {
		const uint8_t *classes = job->classes + token * LANES;

		raw_row(job->raw + (size_t)token * raw_bytes, job->lanes, bits, raw);
		for (uint32_t i = 0; i < LANES; i++)
			symbol[i] = (classes[i] << bits) + raw[i] - (8 << bits);
		for (uint32_t i = 0; job->is_trellis && i < LANES; i++)
			symbol[i] = trellis_lane(job->lane, lane_split(i), symbol[i]);
		for (uint32_t i = 0; i < LANES; i++) {
			int base = (p.integer[i] & p.delta[i]) | (p.offset[i] & ~p.delta[i]);

			/* modulo 2^16, as the format says */
			p.integer[i] = (int16_t)(base + symbol[i]);
			x[i] = (float)p.integer[i] * p.scale[i];
		}
		write_row(x, job->lanes, job->dtype, job->tile + token * LANES * element_bytes);
	}
	for (uint32_t i = 0; i < LANES; i++)
		job->lane->integer[lane_split(i)] = p.integer[i];
}

/* Sign and mantissa of each lane of a row: `bits` bits, the mantissa below the sign. */
static inline __attribute__((always_inline)) void
join_fields(const uint8_t *raw, uint32_t lanes, const uint32_t bits, uint32_t fields[LANES])
{
	for (uint32_t i = 0; i < lanes; i++)
		fields[i] = load_le32(raw + i * bits / 8) >> (i * bits % 8) & ((1u << bits) - 1);
}

static inline void join_exponents(const struct tile_job *job, uint32_t token,
				  uint8_t exponent[LANES])
{
	const uint8_t *classes = job->classes + token * LANES;

	for (uint32_t i = 0; i < LANES; i++)
		exponent[i] = job->exponent[classes[i] & 15];
}

static void join_bf16(const struct tile_job *job, uint32_t token)
{
	uint8_t exponent[LANES], field[LANES];
	uint16_t row[LANES];

	join_exponents(job, token, exponent);
	memcpy(field, job->raw + (size_t)token * job->lanes, LANES);
	for (uint32_t i = 0; i < LANES; i++)
		row[i] = (uint16_t)((field[i] & 0x80) << 8 | exponent[i] << 7 | (field[i] & 0x7f));
	place_row16(row, job->lanes, job->tile + token * LANES * 2);
}

static void join_fp16(const struct tile_job *job, uint32_t token)
{
	uint32_t fields[LANES] = {0};
	uint8_t exponent[LANES];
	uint16_t row[LANES];

	join_exponents(job, token, exponent);
	join_fields(job->raw + (size_t)token * ((job->lanes * 11 + 7) / 8), job->lanes, 11, fields);
	for (uint32_t i = 0; i < LANES; i++)
		row[i] = (uint16_t)((fields[i] & 0x400) << 5 | (uint32_t)exponent[i] << 10 |
				    (fields[i] & 0x3ff));
	place_row16(row, job->lanes, job->tile + token * LANES * 2);
}

static void join_fp32(const struct tile_job *job, uint32_t token)
{
	uint32_t fields[LANES] = {0}, row[LANES];
	uint8_t exponent[LANES];

	join_exponents(job, token, exponent);
	join_fields(job->raw + (size_t)token * job->lanes * 3, job->lanes, 24, fields);
	for (uint32_t i = 0; i < LANES; i++)
		row[i] = (fields[i] & 0x800000) << 8 | (uint32_t)exponent[i] << 23 |
			 (fields[i] & 0x7fffff);
	place_row32(row, job->lanes, job->tile + token * LANES * 4);
}

static void join_fp8(const struct tile_job *job, uint32_t token)
{
	uint32_t bits = job->raw_bits, mantissa = bits - 1;
	uint8_t exponent[LANES], field[LANES] = {0}, row[LANES];

	join_exponents(job, token, exponent);
	raw_row(job->raw + (size_t)token * ((job->lanes * bits + 7) / 8), job->lanes, bits, field);
	for (uint32_t i = 0; i < LANES; i++)
		row[i] = (uint8_t)(field[i] >> mantissa << 7 | exponent[i] << mantissa |
				   (field[i] & ((1 << mantissa) - 1)));
	place_row8(row, job->lanes, job->tile + token * LANES);
}

void scalar_join(const struct tile_job *job)
{
	for (uint32_t token = 0; token < job->tokens; token++) {
		switch (job->dtype) {
		case SSV_DTYPE_BF16:
			join_bf16(job, token);
			break;
		case SSV_DTYPE_FP16:
			join_fp16(job, token);
			break;
		case SSV_DTYPE_FP32:
			join_fp32(job, token);
			break;
		default:
			join_fp8(job, token);
			break;
		}
	}
}

static inline __attribute__((always_inline)) void write_rows(const struct write_job *job,
							     const uint32_t run_bytes)
{
	uint32_t step = run_bytes / job->element_bytes;

	for (uint32_t token = 0; token < job->tokens; token++) {
		const uint8_t *row = job->elements + (size_t)token * job->row_bytes;
		uint8_t *out = job->token[token];

		if (!out)
			continue;
		for (uint32_t p = 0; p < job->lanes; p += step, row += run_bytes)
			memcpy(out + job->place[p], row, run_bytes);
	}
}

/* Tokens of a channel lie one behind the other: the inner loop runs along them. */
static inline __attribute__((always_inline)) void write_columns(const struct write_job *job,
								const uint32_t run_bytes)
{
	uint32_t step = run_bytes / job->element_bytes;

	for (uint32_t p = 0; p < job->lanes; p += step) {
		const uint8_t *in = job->elements + p * job->element_bytes;
		uint8_t *out = job->token[0] + job->place[p];

		for (uint32_t t = 0; t < job->tokens; t++, in += job->row_bytes, out += run_bytes)
			memcpy(out, in, run_bytes);
	}
}

#define WRITE_CASE(bytes)                          \
	case bytes:                                \
		if (job->is_transposed)            \
			write_columns(job, bytes); \
		else                               \
			write_rows(job, bytes);    \
		break

void scalar_write(const struct write_job *job)
{
	switch (job->run_bytes) {
		WRITE_CASE(1);
		WRITE_CASE(2);
		WRITE_CASE(4);
		WRITE_CASE(8);
	default:
		write_rows(job, job->run_bytes);
		break;
	}
}

void scalar_write_end(void)
{
	/* ordinary stores: whoever hands the memory over orders them */
}
