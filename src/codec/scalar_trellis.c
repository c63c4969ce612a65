/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scalar_trellis.c - the reference of the search for a group's symbols (trellis.h), by Viterbi's
 * method.
 *
 * A state is (which quantiser, parity carried) = (high, low); a symbol of parity p leads from it to
 * (p ^ low, high). So a state's two predecessors differ in their low bit alone, and for each token
 * and state one bit says which was better. Those bits are all that is kept: walked back they give
 * the parities of the best path, and with the parities it is walked again.
 */
#include <string.h>

#include "codec/scalar.h"
#include "codec/trellis.h"

/* A path's end. */
struct path {
	int32_t cost, base, feedback;
};

/* A symbol and what it does. */
struct choice {
	int32_t symbol, integer, error;
	uint32_t is_outside;
};

#define TARGET_NONE INT32_MIN

static void targets_fill(const struct trellis_job *job)
{
	float values[LANES] = {0};

	for (uint32_t t = job->view.first; t < job->view.tokens; t++) {
		int32_t *targets = job->targets + (size_t)t * LANES;

		scalar_row(&job->view, t, values);
		for (uint32_t i = 0; i < LANES; i++) {
			float x = values[i] * job->inverse[i];
			uint32_t bits = f32_bits(x + ROUND_BIAS);

			targets[i] = (int32_t)(bits - ROUND_BIAS_BITS) - FRACTIONS / 2;
			if (quantise_value(x) == INTEGER_NONE)
				targets[i] = TARGET_NONE;
		}
	}
}

/* The nearest symbol of that parity for a path in a state. */
static inline struct choice choice_make(const struct path *path, int32_t target, int32_t is_odd,
					int32_t parity, int32_t reach)
{
	int32_t d = target - path->base * FRACTIONS + path->feedback, near, level;
	struct choice choice;

	if (target == TARGET_NONE)
		d = 0;
	near = (d + (d < 0 ? -is_odd : is_odd) * FRACTIONS) >> 8; /* 2 * FRACTIONS apart */
	near = near < -reach ? -reach : near;
	near = near > reach - 2 ? reach - 2 : near;
	choice.symbol = near + ((near ^ parity) & 1);
	if (is_odd && !parity && d < TRELLIS_ZERO && d > -TRELLIS_ZERO)
		choice.symbol = 0;
	level = 2 * choice.symbol - is_odd * ((choice.symbol > 0) - (choice.symbol < 0));
	choice.integer = path->base + level;
	choice.error = d - level * FRACTIONS;
	choice.is_outside = choice.error > TRELLIS_ERROR_MAX || choice.error < -TRELLIS_ERROR_MAX;
	return choice;
}

static inline int32_t choice_cost(const struct choice *choice)
{
	int32_t size = ((choice->error < 0 ? -choice->error : choice->error) + 2) >> 2;

	return choice->is_outside ? TRELLIS_OUTSIDE : size * size;
}

static inline void path_follow(const struct trellis_job *job, uint32_t i, int32_t target,
			       const struct choice *choice, struct path *path)
{
	int is_lost = choice->is_outside || target == TARGET_NONE;

	if (job->delta[i])
		path->base = choice->integer;
	path->feedback = job->is_shaped && !is_lost ? FEEDBACK(choice->error) : 0;
}

/* One token of one channel: the better way into each state; returns a bit for each. */
static uint32_t paths_step(const struct trellis_job *job, uint32_t i, int32_t target,
			   struct path paths[TRELLIS_STATES])
{
	int32_t reach = 8 << job->raw_bits;
	struct path next[TRELLIS_STATES];
	uint32_t bits = 0;

	for (uint32_t to = 0; to < TRELLIS_STATES; to++) {
		uint32_t from = (to & 1) << 1, better = 0;
		struct choice choice[2];
		int32_t cost[2];

		for (uint32_t k = 0; k < 2; k++) {
			choice[k] = choice_make(&paths[from + k], target, (int32_t)(to & 1),
						(int32_t)(k ^ to >> 1), reach);
			cost[k] = paths[from + k].cost + choice_cost(&choice[k]);
		}
		better = cost[1] < cost[0];
		next[to] = paths[from + better];
		next[to].cost = cost[better];
		path_follow(job, i, target, &choice[better], &next[to]);
		bits |= better << to;
	}
	memcpy(paths, next, sizeof(next));
	return bits;
}

/* All tokens of one channel; returns the state that its best path ends in. */
static uint32_t channel_search(const struct trellis_job *job, uint32_t i,
			       uint64_t better[SSV_CHUNK_TOKENS][TRELLIS_STATES])
{
	struct path paths[TRELLIS_STATES];
	uint32_t best = 0;

	for (uint32_t s = 0; s < TRELLIS_STATES; s++)
		paths[s] = (struct path){s ? TRELLIS_CLOSED : 0, job->base[i], 0};
	for (uint32_t t = job->view.first; t < job->view.tokens; t++) {
		uint32_t bits = paths_step(job, i, job->targets[t * LANES + i], paths);

		for (uint32_t s = 0; s < TRELLIS_STATES; s++)
			better[t][s] |= (uint64_t)(bits >> s & 1) << i;
	}
	for (uint32_t s = 1; s < TRELLIS_STATES; s++)
		best = paths[s].cost < paths[best].cost ? s : best;
	return best;
}

void trellis_parities(const struct trellis_job *job, uint64_t low, uint64_t high,
		      uint64_t better[SSV_CHUNK_TOKENS][TRELLIS_STATES],
		      uint64_t parity[SSV_CHUNK_TOKENS])
{
	for (uint32_t t = job->view.tokens; t-- > job->view.first;) {
		uint64_t even = (better[t][0] & ~low) | (better[t][1] & low);
		uint64_t odd = (better[t][2] & ~low) | (better[t][3] & low);
		uint64_t from = (even & ~high) | (odd & high);

		parity[t] = from ^ high;
		high = low;
		low = from;
	}
}

/* The path again, now that its parities are known. */
static void channel_walk(const struct trellis_job *job, uint32_t i,
			 const uint64_t parity[SSV_CHUNK_TOKENS])
{
	struct path path = {0, job->base[i], 0};
	int32_t reach = 8 << job->raw_bits;
	uint8_t state = 0;

	for (uint32_t t = job->view.first; t < job->view.tokens; t++) {
		int32_t target = job->targets[t * LANES + i];
		struct choice choice =
		    choice_make(&path, target, state >> 1, (int32_t)(parity[t] >> i & 1), reach);
		int is_lost = choice.is_outside || target == TARGET_NONE;

		job->symbols[t * LANES + i] = (int16_t)choice.symbol;
		job->integers[t * LANES + i] = is_lost ? INTEGER_NONE : (int16_t)choice.integer;
		path_follow(job, i, target, &choice, &path);
		(void)trellis_level(choice.symbol, &state);
	}
}

void scalar_trellis(struct trellis_job *job)
{
	uint64_t better[SSV_CHUNK_TOKENS][TRELLIS_STATES] = {{0}}, parity[SSV_CHUNK_TOKENS];
	uint64_t low = 0, high = 0;

	targets_fill(job);
	memset(job->symbols, 0, (size_t)job->view.tokens * LANES * sizeof(*job->symbols));
	for (uint32_t i = 0; i < job->view.lanes; i++) {
		uint64_t end = channel_search(job, i, better);

		low |= (end & 1) << i;
		high |= (end >> 1) << i;
	}
	trellis_parities(job, low, high, better, parity);
	for (uint32_t i = 0; i < job->view.lanes; i++)
		channel_walk(job, i, parity);
}
