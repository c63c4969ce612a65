/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scalar_r16.c - the reference of r16, a range coder of 64 interleaved lanes (docs/codec.md,
 * "r16").
 *
 * A lane's state x is 16 bits, 256 or more between steps. Decoding a step takes slot = x & 255,
 * whose owner is the symbol; x = f * (x >> 8) + slot - c; below 256 a byte is shifted in. Encoding
 * runs the other way, from the last step to the first.
 *
 * Reading: a stream's pointer is held at its end after every step of 64 lanes, so that no more than
 * 64 bytes past the end are read whatever the stream holds; running over is remembered as damage.
 */
#include <errno.h>

#include "codec/scalar.h"

#define R16_TOTAL 256u /* of a group's frequencies, and the least state */

/* What every lane's state is before encoding, and so after decoding. */
static inline uint32_t start_state(uint32_t lane)
{
	return R16_TOTAL + (lane * 37 & 255);
}

/* By slot: f << 16 | (slot - c) << 8 | symbol. */
struct slot_table {
	uint32_t slot[R16_TOTAL];
};

struct decoder {
	uint16_t x[LANES];
	const uint8_t *next, *end;
	uint32_t group, group_end;
	uint8_t over;
	struct slot_table table;
};

static int table_fill(struct slot_table *table, const uint8_t frequency[16])
{
	uint32_t slot = 0;

	for (uint32_t symbol = 0; symbol < 16; symbol++) {
		uint32_t f = frequency[symbol];

		if (f > R16_TOTAL - slot)
			return -EBADMSG;
		for (uint32_t i = 0; i < f; i++)
			table->slot[slot++] = f << 16 | i << 8 | symbol;
	}
	return slot == R16_TOTAL ? 0 : -EBADMSG;
}

static void decoder_open(struct decoder *d, const struct r16_job *job, uint32_t stream)
{
	uint32_t groups = job->plane->groups_count, streams = job->streams_count;
	const uint8_t *bytes = job->stream[stream];

	for (uint32_t lane = 0; lane < LANES; lane++)
		d->x[lane] = (uint16_t)(bytes[lane] | bytes[LANES + lane] << 8);
	d->next = bytes + R16_STATES_BYTES;
	d->end = bytes + job->stream_bytes[stream];
	d->group = stream * groups / streams;
	d->group_end = (stream + 1) * groups / streams;
	d->over = 0;
}

/* One step of `lanes` lanes; the caller holds the pointer at the end afterwards. */
static inline __attribute__((always_inline)) const uint8_t *
step(uint16_t *restrict x, const struct slot_table *restrict table, const uint8_t *restrict next,
     uint8_t *restrict symbols, uint32_t lanes)
{
#pragma GCC unroll 4
	for (uint32_t lane = 0; lane < lanes; lane++) {
		uint32_t entry = table->slot[x[lane] & 255];
		uint32_t state = (entry >> 16) * (x[lane] >> 8) + (entry >> 8 & 255);
		uint32_t more = state << 8 | *next;
		/* all ones or none: a branch here could not be predicted */
		uint32_t refill = (uint32_t)((int32_t)(state - R16_TOTAL) >> 31);

		symbols[lane] = (uint8_t)entry;
		x[lane] = (uint16_t)(state ^ ((state ^ more) & refill));
		next += refill & 1;
	}
	return next;
}

/* Decode one group of a stream. */
static int decoder_group(struct decoder *d, const struct r16_job *job)
{
	uint32_t lanes = plane_lanes(job->plane, d->group);
	uint8_t *symbols = plane_group(job->plane, d->group);
	uint32_t tokens = job->plane->tokens;

	if (table_fill(&d->table, job->frequency + (size_t)d->group * 16))
		return -EBADMSG;
	for (uint32_t token = 0; token < tokens; token++, symbols += LANES) {
		if (lanes == LANES)
			d->next = step(d->x, &d->table, d->next, symbols, LANES);
		else
			d->next = step(d->x, &d->table, d->next, symbols, lanes);
		d->over |= d->next > d->end;
		d->next = d->next > d->end ? d->end : d->next;
	}
	d->group++;
	return 0;
}

static int decoder_is_done(const struct decoder *d)
{
	uint32_t wrong = d->over | (d->next != d->end);

	for (uint32_t lane = 0; lane < LANES; lane++)
		wrong |= d->x[lane] ^ start_state(lane);
	return !wrong;
}

int scalar_r16_decode(const struct r16_job *job)
{
	struct decoder d;

	for (uint32_t stream = 0; stream < job->streams_count; stream++) {
		decoder_open(&d, job, stream);
		while (d.group < d.group_end)
			if (decoder_group(&d, job))
				return -EBADMSG;
		if (!decoder_is_done(&d))
			return -EBADMSG;
	}
	return 0;
}

/* By symbol: what one encoding step needs. reciprocal = ceil(2^24 / f), exact for states < 2^16. */
struct symbol_table {
	struct {
		uint32_t limit, reciprocal, complement, start;
	} symbol[16];
};

static void symbols_fill(struct symbol_table *table, const uint8_t frequency[16])
{
	uint32_t start = 0;

	for (uint32_t s = 0; s < 16; s++) {
		uint32_t f = frequency[s];

		table->symbol[s].limit = f << 8;
		table->symbol[s].reciprocal = f ? ((1u << 24) + f - 1) / f : 0;
		table->symbol[s].complement = R16_TOTAL - f;
		table->symbol[s].start = start;
		start += f;
	}
}

uint8_t *scalar_r16_encode(const struct r16_encode_job *job)
{
	const struct class_plane *plane = job->plane;
	struct symbol_table table;
	uint32_t x[LANES];
	uint8_t *next = job->end;

	for (uint32_t lane = 0; lane < LANES; lane++)
		x[lane] = start_state(lane);
	for (uint32_t group = job->group_end; group-- > job->group0;) {
		uint32_t lanes = plane_lanes(plane, group);
		const uint8_t *symbols = plane_group(plane, group) + plane->tokens * LANES;

		symbols_fill(&table, job->frequency + (size_t)group * 16);
		for (uint32_t token = plane->tokens; token-- > 0;) {
			symbols -= LANES;
			if (next - job->begin < (ptrdiff_t)(LANES + R16_STATES_BYTES))
				return NULL;
			for (uint32_t lane = lanes; lane-- > 0;) {
				uint32_t s = symbols[lane], state = x[lane];
				uint32_t emit = state >= table.symbol[s].limit, quotient;

				next[-1] = (uint8_t)state;
				next -= emit;
				state >>= emit << 3;
				quotient =
				    (uint32_t)((uint64_t)state * table.symbol[s].reciprocal >> 24);
				x[lane] = state + quotient * table.symbol[s].complement +
					  table.symbol[s].start;
			}
		}
	}
	if (next - job->begin < (ptrdiff_t)R16_STATES_BYTES)
		return NULL;
	next -= R16_STATES_BYTES;
	for (uint32_t lane = 0; lane < LANES; lane++) {
		next[lane] = (uint8_t)x[lane];
		next[LANES + lane] = (uint8_t)(x[lane] >> 8);
	}
	return next;
}
