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

int scalar_r16_table(struct r16_table *table, const uint8_t frequency[16])
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

/* One step of `lanes` lanes; the caller holds the pointer at the end afterwards. */
static inline __attribute__((always_inline)) const uint8_t *
step(uint16_t *restrict x, const uint32_t *restrict slots, const uint8_t *restrict next,
     uint8_t *restrict symbols, uint32_t lanes)
{
#pragma GCC unroll 4
	for (uint32_t lane = 0; lane < lanes; lane++) {
		uint32_t entry = slots[x[lane] & 255];
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

static void strip_stream(struct r16_stream *stream, const uint32_t *slots, uint8_t *symbols,
			 uint32_t lanes, uint32_t tokens)
{
	uint16_t x[LANES];

	for (uint32_t lane = 0; lane < LANES; lane++)
		x[lane] = (uint16_t)(stream->low[lane] | stream->high[lane] << 8);
	for (uint32_t token = 0; token < tokens; token++, symbols += LANES) {
		if (lanes == LANES)
			stream->next = step(x, slots, stream->next, symbols, LANES);
		else
			stream->next = step(x, slots, stream->next, symbols, lanes);
		stream->over |= stream->next > stream->end;
		stream->next = stream->next > stream->end ? stream->end : stream->next;
	}
	for (uint32_t lane = 0; lane < LANES; lane++) {
		stream->low[lane] = (uint8_t)x[lane];
		stream->high[lane] = (uint8_t)(x[lane] >> 8);
	}
}

void scalar_r16_strip(const struct r16_strip *strip)
{
	for (uint32_t k = 0; k < strip->streams_count; k++)
		strip_stream(strip->stream[k], strip->table[k].slot, strip->classes[k],
			     strip->lanes[k], strip->tokens);
}

void scalar_fused(const struct fused_job *job)
{
	(void)job;
	ssv_assert(!"this level decodes in parts");
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

uint8_t *scalar_r16_encode_group(const struct class_plane *plane, uint32_t group,
				 const uint8_t frequency[16], uint16_t x[LANES], uint8_t *next)
{
	uint32_t lanes = plane_lanes(plane, group);
	const uint8_t *symbols = plane_group(plane, group) + plane->tokens * LANES;
	struct symbol_table table;

	symbols_fill(&table, frequency);
	for (uint32_t token = plane->tokens; token-- > 0;) {
		symbols -= LANES;
		for (uint32_t lane = lanes; lane-- > 0;) {
			uint32_t s = symbols[lane], state = x[lane];
			uint32_t emit = state >= table.symbol[s].limit, quotient;

			next[-1] = (uint8_t)state;
			next -= emit;
			state >>= emit << 3;
			quotient = (uint32_t)((uint64_t)state * table.symbol[s].reciprocal >> 24);
			x[lane] = (uint16_t)(state + quotient * table.symbol[s].complement +
					     table.symbol[s].start);
		}
	}
	return next;
}

uint8_t *r16_encode_begin(uint16_t x[LANES], uint8_t *end)
{
	for (uint32_t lane = 0; lane < LANES; lane++)
		x[lane] = (uint16_t)r16_start_state(lane);
	return end;
}

uint8_t *r16_encode_finish(const uint16_t x[LANES], uint8_t *next)
{
	next -= R16_STATES_BYTES;
	for (uint32_t lane = 0; lane < LANES; lane++) {
		next[lane] = (uint8_t)x[lane];
		next[LANES + lane] = (uint8_t)(x[lane] >> 8);
	}
	return next;
}

void scalar_r16_encode(struct r16_encode_job *job)
{
	uint32_t streams = job->streams_count, groups = job->plane->groups_count;
	uint16_t x[LANES];

	for (uint32_t k = 0; k < streams; k++) {
		uint8_t *next = r16_encode_begin(x, job->end[k]);

		for (uint32_t group = stream_group0(k + 1, streams, groups);
		     group-- > stream_group0(k, streams, groups);)
			next = scalar_r16_encode_group(
			    job->plane, group, job->frequency + (size_t)group * 16, x, next);
		job->begin[k] = r16_encode_finish(x, next);
	}
}
