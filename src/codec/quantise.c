/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quantise.c - the encoder's choices for a quantised tensor: a step for each head, an offset and a
 * delta flag for each channel, raw bits for each group.
 *
 * None of it is normative: a decoder takes what the meta says. But the same input must give the
 * same bytes everywhere, so sums run in a fixed order, and logarithms are integer tables.
 */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "codec/draft.h"
#include "codec/float.h"
#include "codec/frequency.h"
#include "codec/profile.h"
#include "codec/scalar.h"
#include "codec/symbols.h"
#include "codec/trellis.h"

#define MEDIAN_FACTOR 1.06f /* of the median channel's sigma, for a K step */
#define SIGMA_TOKENS  16u   /* fewer tokens give no sigma of their own */
#define STEP_BITS_MAX 0x7bffu
#define PEAK_RATIO    8.0f /* of the largest value over the rms: look closer */
#define POWER_RATIO   8.0f /* of mean over median token power: beyond it outliers set the step */
#define SIGMAS_MAX    3.0f /* of a head, a profile's step at most */
#define SIGMAS_MIN    (11.0f / (16 << RAW_BITS_MAX)) /* at least: 11 sigma are within reach */
#define FACTOR_RANGE  0x1p15f
#define OFFSET_BITS   8u /* what an offset costs, about */

/* Mean, mean square, variance and peak of each channel, over finite values of coded tokens. */
static void choose_spread(const struct draft *d)
{
	struct codec_scratch *s = d->scratch;
	uint32_t tokens = d->tokens - d->verbatim;
	double all = tokens ? 1.0 / tokens : 1;
	struct spread_job job = {.view = draft_view(d, 0),
				 .sum = s->sum,
				 .square = s->square,
				 .peak = s->peak,
				 .count = s->count};

	job.view.lanes = d->channels;
	d->kernels->spread(&job);
	for (uint32_t c = 0; c < d->channels; c++) {
		double part = all, average, power, variance;

		if (__builtin_expect(s->count[c] != tokens, 0)) {
			part = s->count[c] ? 1.0 / s->count[c] : 1;
			s->peak[c] = INFINITY;
		}
		average = s->sum[c] * part;
		power = s->square[c] * part;
		variance = power - average * average;
		s->mean[c] = (float)average;
		s->power[c] = (float)power;
		s->spread[c] = (float)(variance > 0 ? variance : 0);
	}
}

/* The lower median of values that are not negative, to seven bits: the least such number that is
 * not below half of them. Floats like these are ordered as their bits are. */
static float median(const float *values, uint32_t count)
{
	uint32_t low = 0, high = F32_EXPONENT >> 16, wanted = (count - 1) / 2 + 1;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2, below = 0;
		float limit = f32_of(middle << 16);

		for (uint32_t i = 0; i < count; i++)
			below += values[i] <= limit;
		if (below >= wanted)
			high = middle;
		else
			low = middle + 1;
	}
	return low ? f32_of((low << 16) - 0x8000) : 0;
}

static double mean(const float *values, uint32_t count)
{
	double sum = 0;

	for (uint32_t i = 0; i < count; i++)
		sum += values[i];
	return sum / count;
}

/* Adds a head's squares to the tokens that choices are made from. */
static void token_power(const struct draft *d, uint32_t head, uint32_t group,
			float power[SSV_CHUNK_TOKENS])
{
	uint32_t first = head * d->part->dim, end = first + d->part->dim;
	struct power_job job = {.view = draft_view(d, group), .power = power};

	job.channel0 = first > group * LANES ? first - group * LANES : 0;
	job.channel_end = (uint32_t)u64_min(end - group * LANES, LANES);
	if (!is_sampled(d->verbatim, d->tokens)) {
		d->kernels->power(&job);
		return;
	}
	for (uint32_t t = d->verbatim; t < d->tokens; t += SAMPLE_EVERY) {
		job.view.first = t;
		job.view.tokens = (uint32_t)u64_min(t + SAMPLE_TAKEN, d->tokens);
		d->kernels->power(&job);
	}
}

/* The median over tokens, of a sample if there are many, of a head's mean square. */
static float median_token_power(const struct draft *d, uint32_t head)
{
	uint32_t first = head * d->part->dim, end = first + d->part->dim, count = 0;
	float power[SSV_CHUNK_TOKENS] = {0};

	for (uint32_t group = first / LANES; group <= (end - 1) / LANES; group++)
		token_power(d, head, group, power);
	for (uint32_t t = d->verbatim; t < d->tokens; t++)
		if (sample_takes(d->verbatim, d->tokens, t))
			power[count++] = power[t];
	return median(power, count) / (float)d->part->dim;
}

/* A head's mean square; tokens far beyond the others are not allowed to set it. */
static float head_power(const struct draft *d, uint32_t head)
{
	const struct codec_scratch *s = d->scratch;
	uint32_t first = head * d->part->dim;
	float power = (float)mean(s->power + first, d->part->dim), peak = 0, usual;

	for (uint32_t c = first; c < first + d->part->dim; c++)
		peak = s->peak[c] > peak ? s->peak[c] : peak;
	if ((f32_is_finite(power) && peak <= PEAK_RATIO * sqrtf(power)) ||
	    d->tokens - d->verbatim < SIGMA_TOKENS)
		return power;
	usual = median_token_power(d, head) * POWER_RATIO;
	return usual > 0 && power > usual ? usual : power;
}

/* So many times a head's spread: alpha_k times that of K, alpha_v of V. 0: it has none. */
static float head_spread(const struct draft *d, uint32_t head, float alpha_k, float alpha_v)
{
	struct codec_scratch *s = d->scratch;
	uint32_t dim = d->part->dim, channel = head * dim;
	float step = 0;

	if (d->part->role != SSV_ROLE_V && d->tokens - d->verbatim >= SIGMA_TOKENS) {
		float sigma;

		sigma = sqrtf(median(s->spread + channel, dim));
		if (!(sigma > 0))
			sigma = (float)sqrt(mean(s->spread + channel, dim));
		step = alpha_k * MEDIAN_FACTOR * sigma;
	}
	if (!(step > 0))
		step = alpha_v * sqrtf(head_power(d, head));
	return step > 0 ? step : 0;
}

static float clipped(float x, float least, float most)
{
	x = x > least ? x : least;
	return x < most ? x : most;
}

/* A head's step by the profile, and its channels' factors. Steps beyond the bounds cost more than
 * they give: values become 0, or exceptions. */
static float profile_step(const struct draft *d, uint32_t head)
{
	float step = d->scale * d->weight[head];
	float most = head_spread(d, head, SIGMAS_MAX, SIGMAS_MAX),
	      least = most * SIGMAS_MIN / SIGMAS_MAX;
	uint32_t dim = d->part->dim;
	uint8_t *factor = d->scratch->factor + (size_t)head * dim, low, high;

	if (!d->factor)
		return most > 0 ? clipped(step, least, most) : step;
	memcpy(factor, d->factor + (size_t)head * dim, dim);
	if (!(most > 0))
		return step;
	/* the least factor of the head's step within its bounds */
	step = clipped(step, least, most * FACTOR_RANGE);
	low = factor_below(least / step);
	high = factor_below(most / step);
	for (uint32_t i = 0; i < dim; i++) {
		factor[i] = factor[i] > low ? factor[i] : low;
		factor[i] = factor[i] < high ? factor[i] : high;
	}
	return step;
}

static uint16_t head_step(const struct draft *d, const struct tier *tier, uint32_t head)
{
	float step;
	uint32_t bits;

	if (d->weight)
		step = profile_step(d, head);
	else
		step = head_spread(d, head, tier->alpha_k, tier->alpha_v);
	if (d->is_trellis)
		step *= TRELLIS_STEP;
	if (!(step > 0))
		step = 1;
	bits = fp16_from_f32(step);
	if (!bits)
		bits = 1;
	return (uint16_t)(bits > STEP_BITS_MAX ? STEP_BITS_MAX : bits);
}

static uint8_t channel_factor(const struct draft *d, uint32_t channel)
{
	return d->factor ? d->scratch->factor[channel] : STEP_FACTOR_ONE;
}

/* Bits that offsets save, about: half the logarithm of power over spread, each channel and token.
 * An fp32's bits are its logarithm in 2^-23, near enough for a yes or no. */
static int offsets_pay(const struct draft *d)
{
	const struct codec_scratch *s = d->scratch;
	uint64_t half_bits = 0;
	float floor = 0;

	for (uint32_t c = 0, head = 0; head < d->part->heads; head++) {
		for (uint32_t end = c + d->part->dim; c < end; c++) {
			uint32_t power, spread;

			if (c + d->part->dim == end || d->factor) {
				float step = step_scale(s->steps[head], channel_factor(d, c));

				floor = step * step / 12;
			}
			power = f32_bits(s->power[c] + floor);
			spread = f32_bits(s->spread[c] + floor);
			half_bits += power > spread ? power - spread : 0;
		}
	}
	return (half_bits >> 24) * (d->tokens - d->verbatim) > (uint64_t)OFFSET_BITS * d->channels;
}

/* Offsets (where wanted) and delta flags of a group, by channel. */
static void choose_bases(const struct draft *d, uint32_t group, int want_offsets, int is_small,
			 const float inverse[LANES], int16_t offset[LANES], int16_t delta[LANES])
{
	const struct codec_scratch *s = d->scratch;
	const int16_t *first = s->integers + d->verbatim * LANES;
	struct distance_job job = {.integers = s->integers,
				   .first = d->verbatim,
				   .tokens = d->tokens,
				   .is_small = (uint8_t)is_small,
				   .offset = offset};

	for (uint32_t i = 0; i < LANES; i++)
		offset[i] = 0;
	for (uint32_t i = 0, lanes = want_offsets ? draft_lanes(d, group) : 0; i < lanes; i++) {
		int16_t n = quantise_value(s->mean[group * LANES + i] * inverse[i]);

		offset[i] = n == INTEGER_NONE ? 0 : n;
	}
	d->kernels->distance(&job);
	/* 6 % less, or the flag and the worse mix of the group's table do not pay */
	for (uint32_t i = 0; i < LANES; i++)
		delta[i] = (int16_t) - (job.to_last[i] * 100 < job.to_offset[i] * 94);
	for (uint32_t i = 0; want_offsets && d->verbatim < d->tokens && i < LANES; i++)
		offset[i] = delta[i] && first[i] != INTEGER_NONE ? first[i] : offset[i];
}

/* Bits (q16) that a group of `total` symbols costs with r raw bits, about. count: of its classes.
 */
static uint64_t cost_with(const uint32_t count[META_CLASSES], uint32_t total, uint32_t r,
			  uint32_t element_bytes)
{
	uint64_t bits = (uint64_t)total * r << 16;
	uint32_t inside = 0;

	for (uint32_t i = 0; i < META_CLASSES; i++) {
		inside += count[i];
		bits -= (uint64_t)count[i] * log2_count(count[i]);
	}
	bits += (uint64_t)inside * log2_count(inside);
	/* an exception, and the symbol that stands for it */
	return bits +
	       ((uint64_t)(total - inside) * 8 * (EXCEPTION_INDEX_BYTES + element_bytes + 1) << 16);
}

/* The cheapest number of raw bits. */
static uint32_t choose_raw_bits(const struct draft *d, uint32_t lanes, const int16_t offset[LANES],
				const int16_t delta[LANES])
{
	struct count_job job = {.integers = d->scratch->integers,
				.first = d->verbatim,
				.tokens = d->tokens,
				.lanes = lanes,
				.offset = offset,
				.delta = delta};
	uint64_t least = UINT64_MAX;
	uint32_t best = 0;

	d->kernels->count(&job);
	for (uint32_t r = job.r_first; r <= job.r_last; r++) {
		uint64_t cost = cost_with(job.count[r], job.total, r, d->element_bytes);

		if (cost < least) {
			least = cost;
			best = r;
		}
	}
	return best;
}

/* Of 16 bits, so that a product with a bf16 is exact and may be fused with a sum. */
static float inverse_of(float step)
{
	return f32_of(f32_bits(1 / step) & 0xffffff00);
}

/* Steps of a group's channels, and their inverses. */
static void group_scales(const struct draft *d, uint32_t group, float scale[LANES],
			 float inverse[LANES])
{
	uint32_t lanes = draft_lanes(d, group);

	for (uint32_t i = lanes; i < LANES; i++)
		scale[i] = inverse[i] = 0;
	for (uint32_t i = 0; d->factor && i < lanes; i++) {
		uint32_t c = group * LANES + i;

		scale[i] = step_scale(d->scratch->steps[c / d->part->dim], channel_factor(d, c));
		inverse[i] = inverse_of(scale[i]);
	}
	for (uint32_t i = 0, end; !d->factor && i < lanes; i = end) {
		uint32_t head = (group * LANES + i) / d->part->dim;
		float own = step_scale(d->scratch->steps[head], STEP_FACTOR_ONE);
		float under = inverse_of(own);

		end = (uint32_t)u64_min(lanes, (head + 1) * d->part->dim - group * LANES);
		for (uint32_t k = i; k < end; k++) {
			scale[k] = own;
			inverse[k] = under;
		}
	}
}

/* Are all integers of a group small? Not with a peak that is infinite. */
static int group_is_small(const struct draft *d, uint32_t group, const float inverse[LANES])
{
	const float *peak = d->scratch->peak + group * LANES;
	uint32_t lanes = draft_lanes(d, group), small = 0;

	for (uint32_t i = 0; i < lanes; i++)
		small += peak[i] * inverse[i] < INTEGER_SMALL;
	return small == lanes;
}

/* The integers of a group; verbatim tokens become INTEGER_NONE. */
static void group_integers(const struct draft *d, uint32_t group, const float inverse[LANES],
			   int is_small, int is_shaped)
{
	struct codec_scratch *s = d->scratch;
	struct quantise_job job = {.view = draft_view(d, group),
				   .inverse = inverse,
				   .is_small = (uint8_t)is_small,
				   .is_shaped = (uint8_t)is_shaped,
				   .integers = s->integers};

	d->kernels->quantise(&job);
	for (uint32_t i = 0; i < d->verbatim * LANES; i++)
		s->integers[i] = INTEGER_NONE;
}

/* Those that choices are made from. */
static void sample_integers(const struct draft *d, uint32_t group, const float inverse[LANES],
			    int is_small)
{
	struct quantise_job job = {.view = draft_view(d, group),
				   .inverse = inverse,
				   .is_small = (uint8_t)is_small,
				   .is_sample = 1,
				   .integers = d->scratch->integers};

	if (is_sampled(d->verbatim, d->tokens))
		d->kernels->quantise(&job);
	else
		group_integers(d, group, inverse, is_small, 0);
}

/* Keep a group's choices where the meta is written from. */
static void group_keep(struct draft *d, uint32_t group, const int16_t offset[LANES],
		       const int16_t delta[LANES])
{
	struct codec_scratch *s = d->scratch;
	uint32_t lanes = draft_lanes(d, group), any = 0, wide = 0, some_delta = 0;
	uint8_t *flag = s->delta + group * LANES;

	memcpy(s->offset + group * LANES, offset, lanes * sizeof(*offset));
	for (uint32_t i = 0; i < lanes; i++)
		flag[i] = (uint8_t)(delta[i] & 1);
	for (uint32_t i = 0; i < lanes; i++) {
		any |= (uint16_t)offset[i];
		wide |= (uint32_t)(offset[i] ^ (int8_t)offset[i]);
		some_delta |= (uint16_t)delta[i];
	}
	if (some_delta)
		d->flags |= TENSOR_DELTA;
	if (wide)
		d->flags = (uint8_t)((d->flags & ~TENSOR_OFFSET_I8) | TENSOR_OFFSET_I16);
	else if (any && !(d->flags & TENSOR_OFFSET_I16))
		d->flags |= TENSOR_OFFSET_I8;
}

/* Elements to symbols, and their error. Returns whether job->some_outside is filled. */
static int group_symbols(const struct draft *d, uint32_t group, struct code_job *job, int is_small)
{
	uint64_t bytes = (uint64_t)d->tokens * LANES * d->element_bytes;

	if (d->kernels->code != scalar_code && is_small && job->pack.lanes == LANES &&
	    d->dtype == SSV_DTYPE_BF16) {
		/* the group's share of what is behind this tensor */
		if (d->is_followed)
			job->next = d->elements + (d->groups + group) * bytes;
		d->kernels->code(job);
		return 1;
	}
	if (is_sampled(d->verbatim, d->tokens) || job->is_shaped)
		group_integers(d, group, job->measure.inverse, is_small, job->is_shaped);
	d->kernels->pack(&job->pack);
	d->kernels->measure(&job->measure);
	return 0;
}

/* Four sums side by side: one would wait for each addition. */
static double group_norm(const double *square, uint32_t lanes)
{
	double sum[4] = {0};

	for (uint32_t i = 0; i < lanes; i++)
		sum[i % 4] += square[i];
	return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

static int group_code(struct draft *d, uint32_t group, int want_offsets)
{
	struct codec_scratch *s = d->scratch;
	uint32_t lanes = draft_lanes(d, group);
	int16_t offset[LANES], delta[LANES];
	float scale[LANES], inverse[LANES], coarse[LANES];
	struct code_job job = {
	    .pack = {.integers = s->integers,
		     .tokens = d->tokens,
		     .lanes = lanes,
		     .offset = offset,
		     .delta = delta,
		     .classes = plane_group(&d->plane, group),
		     .raw = d->raw + d->raw_bytes,
		     .outside = s->outside},
	    .measure = {.view = draft_view(d, group),
			.integers = s->integers,
			.scale = scale,
			.inverse = inverse,
			.outside = s->outside},
	    .integers = s->integers,
	    .is_shaped = d->part->role == SSV_ROLE_V,
	};
	int is_small, norm_is_known, is_coded = 0;

	group_scales(d, group, scale, inverse);
	is_small = group_is_small(d, group, inverse);
	/* a trellis' symbols are two steps apart */
	for (uint32_t i = 0; i < LANES; i++)
		coarse[i] = d->is_trellis ? inverse[i] / 2 : inverse[i];
	sample_integers(d, group, coarse, is_small);
	choose_bases(d, group, want_offsets, is_small, coarse, offset, delta);
	job.pack.raw_bits = choose_raw_bits(d, lanes, offset, delta);
	s->raw_bits[group] = (uint8_t)job.pack.raw_bits;
	norm_is_known = is_small && d->dtype == SSV_DTYPE_BF16;
	job.measure.wants_norm = !norm_is_known;
	if (d->is_trellis)
		trellis_symbols(d, &job, offset);
	else
		is_coded = group_symbols(d, group, &job, is_small);
	if (norm_is_known)
		job.measure.norm_sum = group_norm(s->square + group * LANES, lanes);
	d->error_sum += job.measure.error_sum;
	d->norm_sum += job.measure.norm_sum;
	d->raw_bytes += d->tokens * ((lanes * job.pack.raw_bits + 7) / 8);
	group_keep(d, group, offset, delta);
	frequency_fit(job.pack.count, s->frequency + group * META_CLASSES);
	return draft_exceptions(d, group, is_coded ? job.some_outside : NULL, norm_is_known);
}

/* Squares of values below the least step vanish in fp32, and so would their error: store them. */
static int is_too_small(const struct draft *d)
{
	const float *peak = d->scratch->peak, least = step_scale(1, STEP_FACTOR_ONE);
	int is_zero = 1;

	for (uint32_t c = 0; c < d->channels; c++) {
		if (peak[c] >= least)
			return 0;
		is_zero &= !(peak[c] > 0);
	}
	return !is_zero;
}

int draft_quantise(struct draft *d, const struct tier *tier)
{
	int want_offsets, err = 0;

	draft_reset(d);
	choose_spread(d);
	if (is_too_small(d))
		return -E2BIG;
	for (uint32_t head = 0; head < d->part->heads; head++)
		d->scratch->steps[head] = head_step(d, tier, head);
	if (d->factor)
		d->flags |= TENSOR_FACTOR;
	want_offsets = offsets_pay(d);
	for (uint32_t group = 0; !err && group < d->groups; group++)
		err = group_code(d, group, want_offsets);
	return err;
}
