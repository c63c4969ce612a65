/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scalar_encode.c - the reference of a group's statistics and of its way to integers.
 *
 * Sums of floats have a fixed shape that vectors of any width can follow (kernels.h): each channel
 * by itself, tokens in runs; so every level gives the same bytes.
 */
#include <string.h>

#include "base/bytes.h"
#include "codec/float.h"
#include "codec/scalar.h"

static inline uint32_t element_bits(const uint8_t *row, uint32_t element_bytes, uint32_t i)
{
	if (element_bytes == 1)
		return row[i];
	if (element_bytes == 2)
		return load_le16(row + 2 * (size_t)i);
	return load_le32(row + 4 * (size_t)i);
}

static inline float value_of(uint32_t bits, uint8_t dtype)
{
	switch (dtype) {
	case SSV_DTYPE_BF16:
		return f32_of(bits << 16);
	case SSV_DTYPE_FP16:
		return f32_from_fp16((uint16_t)bits);
	case SSV_DTYPE_FP32:
		return f32_of(bits);
	case SSV_DTYPE_E4M3:
		return f32_from_e4m3((uint8_t)bits);
	default:
		return f32_from_e5m2((uint8_t)bits);
	}
}

void scalar_row(const struct group_view *view, uint32_t token, float values[LANES])
{
	const uint8_t *row = view->elements + token * view->row_bytes;
	uint32_t element_bytes = dtype_bytes(view->dtype);

	for (uint32_t i = 0; i < view->lanes; i++)
		values[i] = value_of(element_bits(row, element_bytes, i), view->dtype);
}

/* Add runs to the sums at the end of each run of tokens. */
static inline int run_ends(const struct group_view *view, uint32_t token)
{
	return (token - view->first) % RUN_TOKENS == RUN_TOKENS - 1 || token + 1 == view->tokens;
}

static void run_add(float *run, double *sum, uint32_t lanes)
{
	for (uint32_t i = 0; i < lanes; i++) {
		sum[i] += (double)run[i];
		run[i] = 0;
	}
}

/* 64 channels or fewer. */
static void spread_group(struct spread_job *job)
{
	float values[LANES] = {0}, sum[LANES] = {0}, square[LANES] = {0};
	const uint32_t lanes = job->view.lanes;

	memset(job->sum, 0, lanes * sizeof(*job->sum));
	memset(job->square, 0, lanes * sizeof(*job->square));
	memset(job->peak, 0, lanes * sizeof(*job->peak));
	memset(job->count, 0, lanes * sizeof(*job->count));
	for (uint32_t t = job->view.first; t < job->view.tokens; t++) {
		scalar_row(&job->view, t, values);
		for (uint32_t i = 0; i < lanes; i++) {
			int finite = f32_is_finite(values[i]);
			float x = finite ? values[i] : 0;
			float magnitude = f32_of(f32_bits(x) & INT32_MAX);

			job->peak[i] = magnitude > job->peak[i] ? magnitude : job->peak[i];
			sum[i] += x;
			square[i] += x * x;
			job->count[i] += (uint32_t)finite;
		}
		if (!run_ends(&job->view, t))
			continue;
		run_add(sum, job->sum, lanes);
		run_add(square, job->square, lanes);
	}
}

void scalar_spread(struct spread_job *job)
{
	for (uint32_t c = 0; c < job->view.lanes; c += LANES) {
		struct spread_job group = {.view = job->view,
					   .sum = job->sum + c,
					   .square = job->square + c,
					   .peak = job->peak + c,
					   .count = job->count + c};

		group.view.elements += (size_t)c * dtype_bytes(job->view.dtype);
		group.view.lanes = (uint32_t)u64_min(job->view.lanes - c, LANES);
		spread_group(&group);
	}
}

void scalar_power(const struct power_job *job)
{
	float values[LANES] = {0}, square[LANES], sum[LANES / 4];

	for (uint32_t t = job->view.first; t < job->view.tokens; t++) {
		scalar_row(&job->view, t, values);
		for (uint32_t i = 0; i < LANES; i++) {
			int counts = i >= job->channel0 && i < job->channel_end;
			float x = counts && f32_is_finite(values[i]) ? values[i] : 0;

			square[i] = x * x;
		}
		for (uint32_t i = 0; i < LANES / 4; i++)
			sum[i] = ((square[2 * i] + square[2 * i + 1]) + square[32 + 2 * i]) +
				 square[33 + 2 * i];
		for (uint32_t half = LANES / 8; half; half /= 2)
			for (uint32_t i = 0; i < half; i++)
				sum[i] += sum[i + half];
		job->power[t] += sum[0];
	}
}

/* quantise_value() with feedback, which is replaced by the next token's. */
static int16_t quantise_shaped(float x, int32_t *feedback)
{
	uint32_t sum = f32_bits(x + ROUND_BIAS) + (uint32_t)*feedback;

	*feedback = 0;
	if (quantise_value(x) == INTEGER_NONE)
		return INTEGER_NONE;
	*feedback = FEEDBACK((int32_t)(sum % FRACTIONS) - FRACTIONS / 2);
	return (int16_t)(sum / FRACTIONS - ROUND_BIAS_BITS / FRACTIONS);
}

static void quantise_all_shaped(const struct quantise_job *job)
{
	float values[LANES] = {0};
	int32_t feedback[LANES] = {0};

	for (uint32_t t = job->view.first; t < job->view.tokens; t++) {
		scalar_row(&job->view, t, values);
		for (uint32_t i = 0; i < LANES; i++)
			job->integers[t * LANES + i] =
			    quantise_shaped(values[i] * job->inverse[i], &feedback[i]);
	}
}

void scalar_quantise(const struct quantise_job *job)
{
	float values[LANES] = {0};

	if (job->is_shaped) {
		quantise_all_shaped(job);
		return;
	}

	for (uint32_t run = job->view.first; run < job->view.tokens;) {
		uint32_t end, t = quantise_run(&job->view, job->is_sample, run, &end);

		for (; t < end; t++) {
			scalar_row(&job->view, t, values);
			for (uint32_t i = 0; i < LANES; i++)
				job->integers[t * LANES + i] =
				    quantise_value(values[i] * job->inverse[i]);
		}
		run = job->is_sample ? run + SAMPLE_EVERY : end;
	}
}

void scalar_distance(struct distance_job *job)
{
	memset(job->to_offset, 0, sizeof(job->to_offset));
	memset(job->to_last, 0, sizeof(job->to_last));
	for (uint32_t t = job->first + 1; t < job->tokens; t++) {
		const int16_t *row = job->integers + t * LANES, *before = row - LANES;
		int takes = sample_takes(job->first, job->tokens, t);

		for (uint32_t i = 0; i < LANES; i++) {
			int32_t plain = row[i] - job->offset[i], delta = row[i] - before[i];

			if (!takes || row[i] == INTEGER_NONE || before[i] == INTEGER_NONE)
				continue;
			job->to_offset[i] += (uint32_t)(plain < 0 ? -plain : plain);
			job->to_last[i] += (uint32_t)(delta < 0 ? -delta : delta);
		}
	}
}

#define HISTOGRAM_HALF (8 << RAW_BITS_MAX)

/* How often each difference to its base occurs; returns how many symbols there are. */
static uint32_t histogram_fill(const struct count_job *job, uint32_t histogram[2 * HISTOGRAM_HALF])
{
	uint32_t total = 0;

	for (uint32_t t = job->first; t < job->tokens; t++) {
		const int16_t *row = job->integers + t * LANES;
		const int16_t *before = t > job->first ? row - LANES : job->offset;
		int takes = sample_takes(job->first, job->tokens, t);

		for (uint32_t i = 0; i < job->lanes && takes; i++) {
			int32_t base = job->delta[i] ? before[i] : job->offset[i];
			uint32_t at = (uint32_t)(row[i] - base + HISTOGRAM_HALF);

			if (row[i] == INTEGER_NONE || base == INTEGER_NONE)
				continue;
			total++;
			if (at < 2 * HISTOGRAM_HALF)
				histogram[at]++;
		}
	}
	return total;
}

void scalar_count(struct count_job *job)
{
	uint32_t histogram[2 * HISTOGRAM_HALF] = {0}, inside[RAW_CHOICES];

	job->total = histogram_fill(job, histogram);
	for (uint32_t r = 0; r < RAW_CHOICES; r++) {
		inside[r] = 0;
		for (uint32_t i = 0; i < 16u << r; i++)
			inside[r] += histogram[HISTOGRAM_HALF - (8 << r) + i];
	}
	count_range(job, inside);
	for (uint32_t r = 0; r < RAW_CHOICES; r++) {
		uint32_t half = HISTOGRAM_HALF >> r;

		memcpy(job->count[r], histogram + half - 8, sizeof(job->count[r]));
		/* one more raw bit: neighbours become one */
		for (uint32_t i = 0; i < half; i++)
			histogram[i] = histogram[2 * i] + histogram[2 * i + 1];
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

/* bf16: the square of what an integer is off, in FRACTIONS. */
static inline uint32_t fraction_square(float value, float inverse, int16_t integer)
{
	int32_t near = (int32_t)(f32_bits(value * inverse + ROUND_BIAS) - ROUND_BIAS_BITS);
	int32_t off = near - FRACTIONS / 2 - integer * FRACTIONS;

	return (uint32_t)(off * off);
}

static void measure_bf16(struct measure_job *job)
{
	float values[LANES] = {0}, norm[LANES] = {0};
	double norm_sum[LANES] = {0};
	uint32_t square[LANES] = {0};

	for (uint32_t t = job->view.first; t < job->view.tokens; t++) {
		scalar_row(&job->view, t, values);
		for (uint32_t i = 0; i < job->view.lanes; i++) {
			if (job->outside[t] >> i & 1)
				continue;
			square[i] += fraction_square(values[i], job->inverse[i],
						     job->integers[t * LANES + i]);
			norm[i] += values[i] * values[i];
		}
		if (run_ends(&job->view, t))
			run_add(norm, norm_sum, LANES);
	}
	measure_fractions(job, square, norm_sum);
}

static void measure_other(struct measure_job *job)
{
	double error_sum[LANES] = {0}, norm_sum[LANES] = {0};
	float values[LANES] = {0}, error[LANES] = {0}, norm[LANES] = {0};

	for (uint32_t t = job->view.first; t < job->view.tokens; t++) {
		scalar_row(&job->view, t, values);
		for (uint32_t i = 0; i < LANES; i++) {
			float product = (float)job->integers[t * LANES + i] * job->scale[i];
			float x = decoded_value(product, job->view.dtype), off = x - values[i];

			if (!f32_is_finite(x))
				job->outside[t] |= UINT64_C(1) << i;
			if (job->outside[t] >> i & 1)
				continue;
			error[i] += off * off;
			norm[i] += values[i] * values[i];
		}
		if (!run_ends(&job->view, t))
			continue;
		run_add(error, error_sum, LANES);
		run_add(norm, norm_sum, LANES);
	}
	measure_total(job, error_sum, norm_sum);
}

void scalar_measure(struct measure_job *job)
{
	if (job->view.dtype == SSV_DTYPE_BF16)
		measure_bf16(job);
	else
		measure_other(job);
}

void measure_total(struct measure_job *job, const double error[LANES], const double norm[LANES])
{
	double error_sum = 0, norm_sum = 0;

	/* sums in memory would wait for it with each addition */
	for (uint32_t i = 0; i < LANES; i++)
		error_sum += error[i];
	for (uint32_t i = 0; i < LANES && job->wants_norm; i++)
		norm_sum += norm[i];
	job->error_sum = error_sum;
	job->norm_sum = norm_sum;
}

void measure_fractions(struct measure_job *job, const uint32_t square[LANES],
		       const double norm[LANES])
{
	double error[LANES];

	for (uint32_t i = 0; i < LANES; i++) {
		double fraction = (double)job->scale[i] / FRACTIONS;

		error[i] = fraction * fraction * square[i];
	}
	measure_total(job, error, norm);
}

void scalar_code(struct code_job *job)
{
	struct quantise_job quantise = {
	    .view = job->measure.view,
	    .inverse = job->measure.inverse,
	    .is_shaped = job->is_shaped,
	    .integers = job->integers,
	};

	scalar_quantise(&quantise);
	for (uint32_t i = 0; i < job->measure.view.first * LANES; i++)
		job->integers[i] = INTEGER_NONE;
	scalar_pack(&job->pack);
	scalar_measure(&job->measure);
	memset(job->some_outside, 0, sizeof(job->some_outside));
	for (uint32_t t = job->measure.view.first; t < job->pack.tokens; t++)
		job->some_outside[t / 64] |= (uint64_t)(job->pack.outside[t] != 0) << t % 64;
}
