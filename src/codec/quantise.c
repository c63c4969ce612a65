/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quantise.c - the encoder's choices for a quantised tensor: a step for each head, an offset and a
 * delta flag for each channel, raw bits for each group.
 *
 * None of it is normative: a decoder takes what the meta says. But the same input must give the
 * same bytes everywhere, so sums run in a fixed order, and logarithms are integer tables.
 */
#include <math.h>
#include <string.h>

#include "codec/draft.h"
#include "codec/float.h"
#include "codec/frequency.h"
#include "codec/symbols.h"

#define MEDIAN_FACTOR  1.06f /* of the median channel's sigma, for a K step */
#define SIGMA_TOKENS   16u   /* fewer tokens give no sigma of their own */
#define STEP_BITS_MAX  0x7bffu
#define PEAK_RATIO     8.0f /* of the largest value over the rms: look closer */
#define POWER_RATIO    8.0f /* of mean over median token power: beyond it outliers set the step */
#define OFFSET_BITS    8u   /* what an offset costs, about */
#define HISTOGRAM_HALF (8 << RAW_BITS_MAX)

static void group_values(const struct draft *d, uint32_t group)
{
	struct load_job job = {.elements = draft_group(d, group),
			       .row_bytes = (uint64_t)d->channels * d->element_bytes,
			       .tokens = d->tokens,
			       .lanes = draft_lanes(d, group),
			       .dtype = d->dtype,
			       .values = d->scratch->values};

	d->kernels->load(&job);
}

/* Mean square and variance of each channel of a group, over finite values of coded tokens. */
static void group_spread(const struct draft *d, uint32_t group)
{
	struct codec_scratch *s = d->scratch;
	double sum[LANES] = {0}, square[LANES] = {0};
	float peak[LANES] = {0};
	uint32_t lanes = draft_lanes(d, group);
	int32_t count[LANES] = {0};

	group_values(d, group);
	for (uint32_t t = d->verbatim; t < d->tokens; t++) {
		const float *row = s->values + t * LANES;

		for (uint32_t i = 0; i < LANES; i++) {
			int finite = f32_is_finite(row[i]);
			double x = finite ? row[i] : 0;

			float magnitude = f32_of(f32_bits((float)x) & INT32_MAX);

			peak[i] = magnitude > peak[i] ? magnitude : peak[i];
			sum[i] += x;
			square[i] += x * x;
			count[i] += finite;
		}
	}
	for (uint32_t i = 0; i < lanes; i++) {
		uint32_t channel = group * LANES + lane_channel(i, lanes);
		double n = count[i] ? count[i] : 1;
		double variance = square[i] / n - (sum[i] / n) * (sum[i] / n);

		s->power[channel] = (float)(square[i] / n);
		s->spread[channel] = (float)(variance > 0 ? variance : 0);
		s->peak[channel] = peak[i];
	}
}

/* The lower median; sorts in place (Shell's gaps, no allocation). */
static float median(float *values, uint32_t count)
{
	for (uint32_t gap = count / 2; gap; gap /= 2) {
		for (uint32_t i = gap; i < count; i++) {
			float x = values[i];
			uint32_t j = i;

			for (; j >= gap && values[j - gap] > x; j -= gap)
				values[j] = values[j - gap];
			values[j] = x;
		}
	}
	return values[(count - 1) / 2];
}

static double mean(const float *values, uint32_t count)
{
	double sum = 0;

	for (uint32_t i = 0; i < count; i++)
		sum += values[i];
	return sum / count;
}

/* The median over tokens of a head's mean square. */
static float median_token_power(const struct draft *d, uint32_t head)
{
	uint32_t first = head * d->part->dim, end = first + d->part->dim;
	float power[SSV_CHUNK_TOKENS] = {0};

	for (uint32_t group = first / LANES; group <= (end - 1) / LANES; group++) {
		uint32_t lanes = draft_lanes(d, group);

		group_values(d, group);
		for (uint32_t i = 0; i < lanes; i++) {
			uint32_t channel = group * LANES + lane_channel(i, lanes);

			if (channel < first || channel >= end)
				continue;
			for (uint32_t t = 0; t < d->tokens; t++) {
				float x = d->scratch->values[t * LANES + i];

				power[t] += f32_is_finite(x) ? x * x : 0;
			}
		}
	}
	return median(power + d->verbatim, d->tokens - d->verbatim) / (float)d->part->dim;
}

/* A head's mean square; tokens far beyond the others are not allowed to set it. */
static float head_power(const struct draft *d, uint32_t head)
{
	const struct codec_scratch *s = d->scratch;
	uint32_t first = head * d->part->dim;
	float power = (float)mean(s->power + first, d->part->dim), peak = 0, usual;

	for (uint32_t c = first; c < first + d->part->dim; c++)
		peak = s->peak[c] > peak ? s->peak[c] : peak;
	if (peak <= PEAK_RATIO * sqrtf(power) || d->tokens - d->verbatim < SIGMA_TOKENS)
		return power;
	usual = median_token_power(d, head) * POWER_RATIO;
	return usual > 0 && power > usual ? usual : power;
}

static uint16_t head_step(const struct draft *d, const struct tier *tier, uint32_t head)
{
	struct codec_scratch *s = d->scratch;
	uint32_t dim = d->part->dim, channel = head * dim, bits;
	float power = sqrtf(head_power(d, head));
	float step = tier->alpha_v * power;

	if (d->part->role != SSV_ROLE_V && d->tokens - d->verbatim >= SIGMA_TOKENS) {
		float sigma;

		memcpy(s->sorted, s->spread + channel, dim * sizeof(*s->sorted));
		sigma = sqrtf(median(s->sorted, dim));
		if (!(sigma > 0))
			sigma = (float)sqrt(mean(s->spread + channel, dim));
		step = tier->alpha_k * MEDIAN_FACTOR * sigma;
	}
	if (!(step > 0))
		step = tier->alpha_v * power;
	if (!(step > 0))
		step = 1;
	bits = fp16_from_f32(step);
	if (!bits)
		bits = 1;
	return (uint16_t)(bits > STEP_BITS_MAX ? STEP_BITS_MAX : bits);
}

/* Bits that offsets save, about: half the logarithm of power over spread, each channel and token.
 * An fp32's bits are its logarithm in 2^-23, near enough for a yes or no. */
static int offsets_pay(const struct draft *d)
{
	const struct codec_scratch *s = d->scratch;
	uint64_t half_bits = 0;

	for (uint32_t c = 0; c < d->channels; c++) {
		float step = step_scale(s->steps[c / d->part->dim], STEP_FACTOR_ONE);
		float floor = step * step / 12;
		uint32_t power = f32_bits(s->power[c] + floor);
		uint32_t spread = f32_bits(s->spread[c] + floor);

		if (power > spread)
			half_bits += power - spread;
	}
	return (half_bits >> 24) * (d->tokens - d->verbatim) > (uint64_t)OFFSET_BITS * d->channels;
}

/* Integer sums of each lane of a group, for the choice between offset and delta. */
struct lane_sums {
	int32_t sum[LANES], count[LANES];
	int32_t off_mean[LANES], off_last[LANES];
};

static void lane_means(const struct draft *d, struct lane_sums *sums)
{
	memset(sums, 0, sizeof(*sums));
	for (uint32_t t = d->verbatim; t < d->tokens; t++) {
		const int16_t *row = d->scratch->integers + t * LANES;

		for (uint32_t i = 0; i < LANES; i++) {
			int32_t valid = -(row[i] != INTEGER_NONE);

			sums->sum[i] += row[i] & valid;
			sums->count[i] -= valid;
		}
	}
}

static void lane_differences(const struct draft *d, const int16_t offset[LANES],
			     struct lane_sums *sums)
{
	for (uint32_t t = d->verbatim + 1; t < d->tokens; t++) {
		const int16_t *row = d->scratch->integers + t * LANES, *before = row - LANES;

		for (uint32_t i = 0; i < LANES; i++) {
			int32_t valid = -((row[i] != INTEGER_NONE) & (before[i] != INTEGER_NONE));
			int32_t plain = row[i] - offset[i], delta = row[i] - before[i];

			plain = plain < 0 ? -plain : plain;
			delta = delta < 0 ? -delta : delta;
			sums->off_mean[i] += plain & valid;
			sums->off_last[i] += delta & valid;
		}
	}
}

static int32_t divide_round(int32_t a, int32_t b)
{
	return (a >= 0 ? a + b / 2 : a - b / 2) / b;
}

/* Offsets (where wanted) and delta flags of a group, by lane. */
static void choose_bases(const struct draft *d, int want_offsets, int16_t offset[LANES],
			 int16_t delta[LANES])
{
	struct lane_sums sums;

	lane_means(d, &sums);
	for (uint32_t i = 0; i < LANES; i++)
		offset[i] = (int16_t)(want_offsets && sums.count[i]
					  ? divide_round(sums.sum[i], sums.count[i])
					  : 0);
	lane_differences(d, offset, &sums);
	for (uint32_t i = 0; i < LANES; i++) {
		int16_t first = d->verbatim < d->tokens
				    ? d->scratch->integers[d->verbatim * LANES + i]
				    : INTEGER_NONE;

		/* 2 % less, or the flag and the worse mix of the group's table do not pay */
		delta[i] = -((int64_t)sums.off_last[i] * 100 < (int64_t)sums.off_mean[i] * 98);
		if (delta[i] && want_offsets && first != INTEGER_NONE)
			offset[i] = first;
	}
}

/* How often each difference to its base occurs; returns how many are beyond any range. */
static uint32_t histogram_fill(const struct draft *d, uint32_t lanes, const int16_t offset[LANES],
			       const int16_t delta[LANES], uint32_t histogram[2 * HISTOGRAM_HALF])
{
	int32_t last[LANES];
	uint32_t beyond = 0;

	memset(histogram, 0, 2 * HISTOGRAM_HALF * sizeof(*histogram));
	for (uint32_t i = 0; i < LANES; i++)
		last[i] = offset[i];
	for (uint32_t t = d->verbatim; t < d->tokens; t++) {
		const int16_t *row = d->scratch->integers + t * LANES;

		for (uint32_t i = 0; i < lanes; i++) {
			int32_t base = delta[i] ? last[i] : offset[i];
			uint32_t at = (uint32_t)(row[i] - base + HISTOGRAM_HALF);

			if (row[i] == INTEGER_NONE)
				continue;
			last[i] = row[i];
			if (at < 2 * HISTOGRAM_HALF)
				histogram[at]++;
			else
				beyond++;
		}
	}
	return beyond;
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

/* The cheapest number of raw bits. Uses the histogram up: it is folded in two for each bit. */
static uint32_t choose_raw_bits(uint32_t histogram[2 * HISTOGRAM_HALF], uint32_t beyond,
				uint32_t element_bytes)
{
	uint64_t least = UINT64_MAX;
	uint32_t best = 0, total = beyond;

	for (uint32_t i = 0; i < 2 * HISTOGRAM_HALF; i++)
		total += histogram[i];
	for (uint32_t r = 0; r <= RAW_BITS_MAX; r++) {
		uint32_t half = HISTOGRAM_HALF >> r;
		uint64_t cost =
		    cost_with(histogram + half - META_CLASSES / 2, total, r, element_bytes);

		if (cost < least) {
			least = cost;
			best = r;
		}
		for (uint32_t i = 0; i < half; i++)
			histogram[i] = histogram[2 * i] + histogram[2 * i + 1];
	}
	return best;
}

/* Steps, their inverses, and the integers of a group; verbatim tokens become INTEGER_NONE. */
static void group_integers(const struct draft *d, uint32_t group, float scale[LANES])
{
	struct codec_scratch *s = d->scratch;
	uint32_t lanes = draft_lanes(d, group);
	float inverse[LANES] = {0};
	struct quantise_job job = {
	    .values = s->values, .tokens = d->tokens, .inverse = inverse, .integers = s->integers};

	memset(scale, 0, LANES * sizeof(*scale));
	for (uint32_t i = 0; i < lanes; i++) {
		uint32_t channel = group * LANES + lane_channel(i, lanes);

		scale[i] = step_scale(s->steps[channel / d->part->dim], STEP_FACTOR_ONE);
		inverse[i] = 1 / scale[i];
	}
	group_values(d, group);
	d->kernels->quantise(&job);
	for (uint32_t i = 0; i < d->verbatim * LANES; i++)
		s->integers[i] = INTEGER_NONE;
}

/* Keep a group's choices where the meta is written from. */
static void group_keep(struct draft *d, uint32_t group, const int16_t offset[LANES],
		       const int16_t delta[LANES])
{
	struct codec_scratch *s = d->scratch;
	uint32_t lanes = draft_lanes(d, group);

	for (uint32_t i = 0; i < lanes; i++) {
		uint32_t channel = group * LANES + lane_channel(i, lanes);

		s->offset[channel] = offset[i];
		s->delta[channel] = delta[i] != 0;
		if (offset[i] < INT8_MIN || offset[i] > INT8_MAX)
			d->flags = (uint8_t)((d->flags & ~TENSOR_OFFSET_I8) | TENSOR_OFFSET_I16);
		else if (offset[i] && !(d->flags & TENSOR_OFFSET_I16))
			d->flags |= TENSOR_OFFSET_I8;
		if (delta[i])
			d->flags |= TENSOR_DELTA;
	}
}

static int group_code(struct draft *d, uint32_t group, int want_offsets)
{
	struct codec_scratch *s = d->scratch;
	uint32_t histogram[2 * HISTOGRAM_HALF], beyond, lanes = draft_lanes(d, group);
	int16_t offset[LANES], delta[LANES];
	float scale[LANES];
	struct pack_job pack = {.integers = s->integers,
				.tokens = d->tokens,
				.lanes = lanes,
				.offset = offset,
				.delta = delta,
				.classes = plane_group(&d->plane, group),
				.raw = d->raw + d->raw_bytes,
				.outside = s->outside};
	struct measure_job measure = {.values = s->values,
				      .integers = s->integers,
				      .scale = scale,
				      .first = d->verbatim,
				      .tokens = d->tokens,
				      .lanes = lanes,
				      .dtype = d->dtype,
				      .outside = s->outside};

	group_integers(d, group, scale);
	choose_bases(d, want_offsets, offset, delta);
	beyond = histogram_fill(d, lanes, offset, delta, histogram);
	pack.raw_bits = choose_raw_bits(histogram, beyond, d->element_bytes);
	s->raw_bits[group] = (uint8_t)pack.raw_bits;
	d->kernels->pack(&pack);
	d->kernels->measure(&measure);
	d->error_sum += measure.error_sum;
	d->norm_sum += measure.norm_sum;
	d->raw_bytes += d->tokens * ((lanes * pack.raw_bits + 7) / 8);
	group_keep(d, group, offset, delta);
	draft_frequency(d, group);
	return draft_exceptions(d, group);
}

int draft_quantise(struct draft *d, const struct tier *tier)
{
	int want_offsets, err = 0;

	draft_reset(d);
	for (uint32_t group = 0; group < d->groups; group++)
		group_spread(d, group);
	for (uint32_t head = 0; head < d->part->heads; head++)
		d->scratch->steps[head] = head_step(d, tier, head);
	want_offsets = offsets_pay(d);
	for (uint32_t group = 0; !err && group < d->groups; group++)
		err = group_code(d, group, want_offsets);
	return err;
}
