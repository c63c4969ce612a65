/* SPDX-License-Identifier: Apache-2.0 */
/*
 * trellis.h - symbols of trellis-coded tensors (docs/codec.md, section 1.1): two quantisers, one of
 * the even integers and one of 0 and the odd ones; which of them is a token's follows from the
 * parities of the same channel's symbols before it.
 *
 * Decoding moves a state of two bits along (trellis_level); encoding looks for the whole path that
 * comes nearest (struct trellis_job). Classes, raw bits and r16 know nothing of it.
 */
#ifndef SSV_CODEC_TRELLIS_H
#define SSV_CODEC_TRELLIS_H

#include "codec/kernels.h"

#define TRELLIS_STATES 4u
/* Of the step that plain rounding would take: symbols then cost less at about the same error. */
#define TRELLIS_STEP .6f

/* What symbol k adds to its base. state: the channel's, 0 before the first token. */
static inline int32_t trellis_level(int32_t k, uint8_t *state)
{
	uint32_t is_odd = *state >> 1, last = *state & 1;
	int32_t sign = (k > 0) - (k < 0);

	*state = (uint8_t)(((uint32_t)k & 1) ^ last) << 1 | (uint8_t)is_odd;
	return 2 * k - (is_odd ? sign : 0);
}

/* The same for a lane that decodes; lane in split order. */
static inline int32_t trellis_lane(struct tile_lanes *lanes, uint32_t lane, int32_t k)
{
	uint8_t state = (uint8_t)(lanes->is_odd[lane] << 1 | lanes->carry[lane]);
	int32_t level = trellis_level(k, &state);

	lanes->is_odd[lane] = state >> 1;
	lanes->carry[lane] = state & 1;
	return level;
}

/* Offsets of a trellis tensor count two integers each; its lanes' states begin as 0. */
static inline void trellis_begin(struct tile_lanes *lane)
{
	for (uint32_t i = 0; i < LANES; i++)
		lane->offset[i] = lane->integer[i] = (int16_t)((uint32_t)lane->offset[i] << 1);
	lane->is_uniform = 0;
}

/*
 * The symbols of one group: of all paths through the trellis, each channel's with the least sum of
 * squares. What is quantised are values in 1 / FRACTIONS of a step, as `quantise` rounds them, with
 * its feedback if is_shaped. Normative for our encoder's bytes, so exact at every level:
 *
 *	d       value - FRACTIONS * base + what the path's last rounding feeds back; 0 for a value
 *		that is INTEGER_NONE
 *	symbol  the nearest to d of each parity, within reach
 *	e       d - FRACTIONS * level
 *	cost    square of (|e| + 2) / 4, or TRELLIS_OUTSIDE where |e| > TRELLIS_ERROR_MAX
 *
 * Of equal costs the path from the lower state wins, at the end the lower state.
 */
struct trellis_job {
	struct group_view view;
	const float *inverse; /* [64]: 1 / scale; 0 for idle channels */
	const int16_t *base;  /* [64]: what the first token's symbol adds to */
	const int16_t *delta; /* [64]: -1 where the integer before is the base, else `base` again */
	uint32_t raw_bits;
	uint8_t is_shaped;
	int32_t *targets; /* [tokens][64]: room */
	/* results, [tokens][64]; before `first` symbols are 0 */
	int16_t *symbols;
	int16_t *integers; /* INTEGER_NONE where the element needs an exception; from `first` on */
};

/* Of the odd integers and 0, symbols 0 and 2 (or -2) are equally near here. */
#define TRELLIS_ZERO      (3 * FRACTIONS / 2)
#define TRELLIS_ERROR_MAX (2 * FRACTIONS)
#define TRELLIS_OUTSIDE   (127 * 127)
/* What a state costs that no path has reached: more than two steps can. */
#define TRELLIS_CLOSED 40000

/*
 * Parities of the best paths, a bit a channel, from the bits that say which way into each state was
 * better (the state's low bit before it) and the states that the paths end in.
 */
void trellis_parities(const struct trellis_job *job, uint64_t low, uint64_t high,
		      uint64_t better[SSV_CHUNK_TOKENS][TRELLIS_STATES],
		      uint64_t parity[SSV_CHUNK_TOKENS]);

struct draft;

/* As group_symbols() of quantise.c. offset: the group's choices, of two integers each; one that is
 * out of reach becomes 0. */
void trellis_symbols(const struct draft *draft, struct code_job *job, int16_t offset[LANES]);

#endif
