/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scalar_pack.c - the reference of the last step of encoding a group: integers, or elements of the
 * lossless tier, to classes and raw bits. Here channel order becomes lane order.
 */
#include <string.h>

#include "base/bytes.h"
#include "codec/scalar.h"

/* Fields of `bits` bits, least significant first; writes up to 4 bytes past the row's end. */
static void raw_row(const uint32_t *fields, uint32_t lanes, uint32_t bits, uint8_t *out)
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

void scalar_pack(struct pack_job *job)
{
	const int32_t middle = 8 << job->raw_bits, top = (16 << job->raw_bits) - 1;
	uint32_t raw_bytes = (job->lanes * job->raw_bits + 7) / 8, fields[LANES];
	int32_t current[LANES];

	memset(job->count, 0, sizeof(job->count));
	for (uint32_t i = 0; i < LANES; i++)
		current[i] = job->offset[i];
	for (uint32_t t = 0; t < job->tokens; t++) {
		const int16_t *integers = job->integers + t * LANES;
		uint64_t outside = 0;

		for (uint32_t lane = 0; lane < job->lanes; lane++) {
			uint32_t i = lane_channel(lane, job->lanes);
			int32_t base = job->delta[i] ? current[i] : job->offset[i];
			int32_t symbol = middle;

			if (integers[i] != INTEGER_NONE)
				symbol += integers[i] - base;
			symbol = symbol < 0 ? 0 : symbol;
			symbol = symbol > top ? top : symbol;
			current[i] = base + symbol - middle;
			outside |= (uint64_t)(current[i] != integers[i]) << i;
			fields[lane] = (uint32_t)symbol & ((1u << job->raw_bits) - 1);
			job->classes[t * LANES + lane] = (uint8_t)(symbol >> job->raw_bits);
			job->count[symbol >> job->raw_bits]++;
		}
		job->outside[t] = outside;
		raw_row(fields, job->lanes, job->raw_bits, job->raw + (size_t)t * raw_bytes);
	}
}

static inline uint32_t bits_at(const struct group_view *view, uint32_t token, uint32_t i)
{
	const uint8_t *row = view->elements + token * view->row_bytes;

	switch (dtype_bytes(view->dtype)) {
	case 1:
		return row[i];
	case 2:
		return load_le16(row + 2 * (size_t)i);
	default:
		return load_le32(row + 4 * (size_t)i);
	}
}

void scalar_exponents(struct exponent_job *job)
{
	uint32_t fraction = dtype_raw_bits(job->view.dtype) - 1;
	uint32_t mask = dtype_exponent_max(job->view.dtype), part[2][256] = {{0}};

	for (uint32_t t = 0; t < job->view.tokens; t++)
		for (uint32_t i = 0; i < job->view.lanes; i++)
			part[i & 1][bits_at(&job->view, t, i) >> fraction & mask]++;
	for (uint32_t i = 0; i < 256; i++)
		job->count[i] = part[0][i] + part[1][i];
}

void scalar_split(struct split_job *job)
{
	uint32_t lanes = job->view.lanes, raw_bits = dtype_raw_bits(job->view.dtype);
	uint32_t exponent_max = dtype_exponent_max(job->view.dtype), fraction = raw_bits - 1;
	uint32_t sign = 8 * dtype_bytes(job->view.dtype) - 1;
	uint32_t raw_bytes = (lanes * raw_bits + 7) / 8, fields[LANES];

	memset(job->count, 0, sizeof(job->count));
	for (uint32_t t = 0; t < job->view.tokens; t++) {
		uint64_t outside = 0;

		for (uint32_t lane = 0; lane < lanes; lane++) {
			uint32_t i = lane_channel(lane, lanes), bits = bits_at(&job->view, t, i);
			uint8_t class = job->class_of[bits >> fraction & exponent_max];

			if (class > 15) {
				outside |= UINT64_C(1) << i;
				class = job->other_class;
			}
			fields[lane] = (bits & ((1u << fraction) - 1)) | bits >> sign << fraction;
			job->classes[t * LANES + lane] = class;
			job->count[class]++;
		}
		job->outside[t] = outside;
		raw_row(fields, lanes, raw_bits, job->raw + (size_t)t * raw_bytes);
	}
}
