/* SPDX-License-Identifier: Apache-2.0 */
/*
 * encode_template.h - integers and errors of a full group, and by spread_template.h the statistics
 *of a tensor, for vectors of any width: a level defines VECTOR_BYTES, LEVEL(name) and the few
 *operations below, then includes this file.
 *
 * A column is what two vectors of floats hold: the even and the odd channels of VECTOR_BYTES / 2
 * neighbours, since 16-bit elements come apart that way without a shuffle. What is kept by channel
 * is laid out [column][even, odd][lane] meanwhile. Partial groups go to the scalar kernels.
 *
 *	widen8(p)		VECTOR_BYTES / 2 bytes to 16-bit numbers
 *	even32(a, b), odd32(a, b)	32-bit numbers at even, odd places of a, then of b
 *	max32(a, b), max16, min16	of signed numbers
 *	add_product(sum, a, b)	sum + a * b of products that fp32 holds exactly, in one step or two
 */
#include <string.h>

#include "codec/float.h"
#include "codec/scalar.h"

#define V       (VECTOR_BYTES / 4u)
#define COLUMN  (2u * V) /* channels */
#define COLUMNS (LANES / COLUMN)
#define INLINE  static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(VECTOR_BYTES)));
typedef float vhalf __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef double vd __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t vi __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t vu __attribute__((vector_size(VECTOR_BYTES)));
typedef int16_t vh __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t vuh __attribute__((vector_size(VECTOR_BYTES)));

struct column {
	vf even, odd;
};

/* dtype_bytes() of a constant. */
INLINE uint32_t dtype_size(const uint8_t dtype)
{
	if (dtype == SSV_DTYPE_FP32)
		return 4;
	return dtype == SSV_DTYPE_BF16 || dtype == SSV_DTYPE_FP16 ? 2 : 1;
}

INLINE vu load_vector(const void *p)
{
	vu v;

	memcpy(&v, p, sizeof(v));
	return v;
}

/* ---- elements to floats and back, as in float.h ---------------------------------------------- */

INLINE vf small_value(vu h, const uint32_t sign, const uint32_t infinite, const uint32_t shift,
		      const float power)
{
	vu value = (vu)((vf)((h & (sign - 1)) << shift) * power);

	value |= (vu)((h & infinite) == infinite) & F32_EXPONENT;
	return (vf)(value | (h & sign) << (__builtin_clz(sign)));
}

INLINE vf value_of(vu h, const uint8_t dtype)
{
	switch (dtype) {
	case SSV_DTYPE_FP16:
		return small_value(h, 0x8000, 0x7c00, 13, 0x1p112f);
	case SSV_DTYPE_E4M3:
		return small_value(h, 0x80, 0x7f, 20, 0x1p120f);
	default:
		return small_value(h, 0x80, 0x7c, 21, 0x1p112f);
	}
}

/* One column of one token. */
INLINE struct column load_column(const uint8_t *p, const uint8_t dtype)
{
	struct column c;
	vu pairs;

	if (dtype == SSV_DTYPE_FP32) {
		vu a = load_vector(p), b = load_vector(p + VECTOR_BYTES);

		c.even = (vf)even32(a, b);
		c.odd = (vf)odd32(a, b);
		return c;
	}
	pairs = dtype == SSV_DTYPE_BF16 || dtype == SSV_DTYPE_FP16 ? load_vector(p) : widen8(p);
	if (dtype == SSV_DTYPE_BF16) {
		c.even = (vf)(pairs << 16);
		c.odd = (vf)(pairs & 0xffff0000);
		return c;
	}
	c.even = value_of(pairs & 0xffff, dtype);
	c.odd = value_of(pairs >> 16, dtype);
	return c;
}

INLINE vu small_magnitude(vu magnitude, const uint32_t fraction, const uint32_t minimum)
{
	const uint32_t shift = 23 - fraction, bias = (127 - 1 - minimum) << 23;
	const uint32_t unit = (127 + 23 - minimum - fraction) << 23;
	vf units = (vf)((vu){0} + unit);
	vu tiny = (vu)((vi)magnitude < (int32_t)((127 - minimum) << 23));
	vu low = (vu)((vf)magnitude + units) - unit;
	vu high = (magnitude - bias + (1u << (shift - 1)) - 1 + (magnitude >> shift & 1)) >> shift;

	return (low & tiny) | (high & ~tiny);
}

/* What a product becomes as an element, as a float again. */
INLINE vf decoded(vf x, const uint8_t dtype)
{
	vu bits = (vu)x, magnitude = bits & INT32_MAX, h, big;

	switch (dtype) {
	case SSV_DTYPE_BF16:
		return (vf)((bits + 0x8000) & 0xffff0000);
	case SSV_DTYPE_FP32:
		return x;
	case SSV_DTYPE_FP16:
		big = (vu)((vi)magnitude >= 0x47800000);
		h = (small_magnitude(magnitude, 10, 14) & ~big) | (big & 0x7c00);
		return value_of(h | (bits >> 16 & 0x8000), dtype);
	case SSV_DTYPE_E4M3:
		big = (vu)((vi)magnitude >= 0x43e00000);
		h = (small_magnitude(magnitude, 3, 6) & ~big) | (big & 0x7e);
		return value_of(h | (bits >> 24 & 0x80), dtype);
	default:
		big = (vu)((vi)magnitude >= 0x47600000);
		h = (small_magnitude(magnitude, 2, 14) & ~big) | (big & 0x7b);
		return value_of(h | (bits >> 24 & 0x80), dtype);
	}
}

/* ---- order of channels ------------------------------------------------------------------------
 */

/* Where channel i stands in [column][even, odd][lane]. */
INLINE uint32_t column_place(uint32_t i)
{
	return i / COLUMN * COLUMN + (i & 1) * V + i % COLUMN / 2;
}

INLINE struct column column_of(const float *by_channel, uint32_t column)
{
	float place[COLUMN];
	struct column c;

	for (uint32_t i = 0; i < COLUMN; i++)
		place[(i & 1) * V + i / 2] = by_channel[column * COLUMN + i];
	memcpy(&c, place, sizeof(c));
	return c;
}

INLINE void add_run(struct column run, double *sum)
{
	vf part[2] = {run.even, run.odd};

	for (uint32_t k = 0; k < 4; k++) {
		vd total = (vd)load_vector(sum + k * V / 2);
		vhalf half;

		memcpy(&half, (const char *)part + k * sizeof(half), sizeof(half));
		total += __builtin_convertvector(half, vd);
		memcpy(sum + k * V / 2, &total, sizeof(total));
	}
}

INLINE vi finite_mask(vf x)
{
	return ((vi)x & (int32_t)F32_EXPONENT) != (int32_t)F32_EXPONENT;
}

/* Call function(job, ..., dtype) with the dtype as a constant. */
#define BY_DTYPE(dtype, function, ...)                         \
	do {                                                   \
		switch (dtype) {                               \
		case SSV_DTYPE_BF16:                           \
			function(__VA_ARGS__, SSV_DTYPE_BF16); \
			break;                                 \
		case SSV_DTYPE_FP16:                           \
			function(__VA_ARGS__, SSV_DTYPE_FP16); \
			break;                                 \
		case SSV_DTYPE_FP32:                           \
			function(__VA_ARGS__, SSV_DTYPE_FP32); \
			break;                                 \
		case SSV_DTYPE_E4M3:                           \
			function(__VA_ARGS__, SSV_DTYPE_E4M3); \
			break;                                 \
		default:                                       \
			function(__VA_ARGS__, SSV_DTYPE_E5M2); \
			break;                                 \
		}                                              \
	} while (0)

INLINE const uint8_t *column_at(const struct group_view *view, uint32_t column, const uint8_t dtype)
{
	return view->elements + (size_t)column * COLUMN * dtype_size(dtype) +
	       view->first * view->row_bytes;
}

#include "codec/simd/spread_template.h"

/* ---- integers -----------------------------------------------------------------------------------
 */

INLINE vi integers_of(vf x)
{
	vi near = ((vi)x & INT32_MAX) <= LIMIT_BITS;
	vu sum = (vu)((vf)((vi)x & near) + ROUND_BIAS);
	vi n = (vi)(sum / FRACTIONS) - ROUND_BIAS_BITS / FRACTIONS;

	return (n & near) | (INTEGER_NONE & ~near);
}

/* The same of values that are small: the lower 16 bits are the integers'. */
INLINE vi small_integers_of(vf x, vf inverse, const uint8_t dtype)
{
	vf bias = (vf){0} + ROUND_BIAS;
	vu sum = (vu)(dtype == SSV_DTYPE_BF16 ? add_product(bias, x, inverse) : x * inverse + bias);

	return (vi)(sum / FRACTIONS) - ROUND_BIAS_BITS / FRACTIONS;
}

INLINE void quantise_tokens(const struct quantise_job *job, uint32_t token, uint32_t end,
			    const struct column *inverse, const int is_small, const uint8_t dtype)
{
	const uint8_t *row = job->view.elements + token * job->view.row_bytes;

	for (; token < end; token++, row += job->view.row_bytes) {
		int16_t *out = job->integers + token * LANES;

		for (uint32_t k = 0; k < COLUMNS; k++) {
			struct column x = load_column(row + k * COLUMN * dtype_size(dtype), dtype);
			vi even, odd, n;

			if (is_small) {
				even = small_integers_of(x.even, inverse[k].even, dtype);
				odd = small_integers_of(x.odd, inverse[k].odd, dtype);
			} else {
				even = integers_of(x.even * inverse[k].even);
				odd = integers_of(x.odd * inverse[k].odd);
			}
			n = (even & 0xffff) | odd << 16;
			memcpy(out + k * COLUMN, &n, sizeof(n));
		}
	}
}

/* Half a column with feedback, which is replaced by the next token's. */
INLINE vi shaped_integers_of(vf x, vf inverse, vi *feedback, const uint8_t dtype)
{
	vf product = x * inverse, bias = (vf){0} + ROUND_BIAS;
	vi near = ((vi)product & INT32_MAX) <= LIMIT_BITS;
	vu sum = (vu)(dtype == SSV_DTYPE_BF16 ? add_product(bias, x, inverse) : product + bias);
	vi n;

	sum += (vu)*feedback;
	n = (vi)(sum / FRACTIONS) - ROUND_BIAS_BITS / FRACTIONS;
	*feedback = FEEDBACK((vi)(sum % FRACTIONS) - FRACTIONS / 2) & near;
	return (n & near) | (INTEGER_NONE & ~near);
}

INLINE void quantise_shaped(const struct quantise_job *job, const struct column *inverse,
			    const uint8_t dtype)
{
	const uint8_t *row = job->view.elements + job->view.first * job->view.row_bytes;
	vi even[COLUMNS] = {0}, odd[COLUMNS] = {0};

	for (uint32_t t = job->view.first; t < job->view.tokens; t++, row += job->view.row_bytes) {
		for (uint32_t k = 0; k < COLUMNS; k++) {
			struct column x = load_column(row + k * COLUMN * dtype_size(dtype), dtype);
			vi low = shaped_integers_of(x.even, inverse[k].even, &even[k], dtype);
			vi high = shaped_integers_of(x.odd, inverse[k].odd, &odd[k], dtype);
			vi n = (low & 0xffff) | high << 16;

			memcpy(job->integers + t * LANES + k * COLUMN, &n, sizeof(n));
		}
	}
}

INLINE void quantise_columns(const struct quantise_job *job, const uint8_t dtype)
{
	struct column inverse[COLUMNS];

	for (uint32_t k = 0; k < COLUMNS; k++)
		inverse[k] = column_of(job->inverse, k);
	if (job->is_shaped) {
		quantise_shaped(job, inverse, dtype);
		return;
	}
	for (uint32_t run = job->view.first; run < job->view.tokens;) {
		uint32_t end, t = quantise_run(&job->view, job->is_sample, run, &end);

		if (job->is_small)
			quantise_tokens(job, t, end, inverse, 1, dtype);
		else
			quantise_tokens(job, t, end, inverse, 0, dtype);
		run = job->is_sample ? run + SAMPLE_EVERY : end;
	}
}

void LEVEL(quantise)(const struct quantise_job *job)
{
	if (job->view.lanes < LANES)
		scalar_quantise(job);
	else
		BY_DTYPE(job->view.dtype, quantise_columns, job);
}

/* ---- distances ----------------------------------------------------------------------------------
 */

/* Sums of 16-bit numbers without a sign, at even and odd places. */
struct wide_sum {
	vu even, odd;
};

INLINE void wide_add(struct wide_sum *sum, vuh x)
{
	sum->even += (vu)x & 0xffff;
	sum->odd += (vu)x >> 16;
}

INLINE void wide_store(struct wide_sum sum, uint32_t *out)
{
	uint32_t place[COLUMN];

	memcpy(place, &sum, sizeof(sum));
	for (uint32_t i = 0; i < COLUMN; i++)
		out[i] = place[(i & 1) * V + i / 2];
}

INLINE vuh apart(vh a, vh b)
{
	return (vuh)max16(a, b) - (vuh)min16(a, b);
}

/* Small integers are at most 8190 apart: eight of them fit 16 bits. */
INLINE void distance_column(struct distance_job *job, uint32_t column, const int is_small)
{
	const int sampled = is_sampled(job->first, job->tokens);
	const int16_t *p = job->integers + job->first * LANES + column * COLUMN;
	struct wide_sum to_offset = {{0}, {0}}, to_last = {{0}, {0}};
	vh offset = (vh)load_vector(job->offset + column * COLUMN), last = (vh)load_vector(p);

	for (uint32_t t = job->first + 1; t < job->tokens;) {
		uint32_t end = is_small ? t + 8 - (t - job->first) % 8 : t + 1;
		vuh plain = {0}, delta = {0};

		if (sampled && (t - job->first) % SAMPLE_EVERY == SAMPLE_TAKEN) {
			t += SAMPLE_EVERY - SAMPLE_TAKEN;
			p += (SAMPLE_EVERY - SAMPLE_TAKEN) * LANES;
			if (t < job->tokens)
				last = (vh)load_vector(p);
			continue;
		}
		if (end > job->tokens)
			end = job->tokens;

		for (; t < end; t++) {
			vh n;

			p += LANES;
			n = (vh)load_vector(p);
			plain += apart(n, offset);
			delta += apart(n, last);
			if (!is_small) {
				vuh both = (vuh)((n != INTEGER_NONE) & (last != INTEGER_NONE));

				plain &= both;
				delta &= both;
			}
			last = n;
		}
		wide_add(&to_offset, plain);
		wide_add(&to_last, delta);
	}
	wide_store(to_offset, job->to_offset + column * COLUMN);
	wide_store(to_last, job->to_last + column * COLUMN);
}

void LEVEL(distance)(struct distance_job *job)
{
	if (job->first >= job->tokens) {
		scalar_distance(job);
		return;
	}
	for (uint32_t column = 0; column < COLUMNS; column++) {
		if (job->is_small)
			distance_column(job, column, 1);
		else
			distance_column(job, column, 0);
	}
}

/* ---- errors -------------------------------------------------------------------------------------
 */

/* All ones where the bits of a column's channels are 0. */
INLINE vi inside_mask(uint64_t outside, uint32_t column, uint32_t odd)
{
	vu bit;

	for (uint32_t i = 0; i < V; i++)
		bit[i] = 1u << (2 * i + odd);
	return (vi)((bit & (uint32_t)(outside >> column * COLUMN)) == 0);
}

INLINE uint64_t overflow_bits(vf x)
{
	vi finite = finite_mask(x);
	uint64_t bits = 0;

	for (uint32_t i = 0; i < V; i++)
		bits |= (uint64_t)!finite[i] << 2 * i;
	return bits;
}

/* bf16: squares of what integers are off. Runs of 8 tokens fit 16 bits. */
INLINE void fraction_column(const struct measure_job *job, uint32_t column, uint32_t *square_sum)
{
	const struct group_view *view = &job->view;
	const uint8_t *p = column_at(view, column, SSV_DTYPE_BF16);
	const int16_t *n = job->integers + view->first * LANES + column * COLUMN;
	struct column inverse = column_of(job->inverse, column);
	struct wide_sum sum = {{0}, {0}};

	for (uint32_t t = view->first; t < view->tokens;) {
		uint32_t end = t + 8 < view->tokens ? t + 8 : view->tokens;
		vuh run = {0};

		for (; t < end; t++, p += view->row_bytes, n += LANES) {
			struct column x = load_column(p, SSV_DTYPE_BF16);
			vu even = (vu)(x.even * inverse.even + ROUND_BIAS);
			vu odd = (vu)(x.odd * inverse.odd + ROUND_BIAS);
			/* the bias itself, but for its half, is 0 in 16 bits */
			vuh e = (vuh)((even & 0xffff) | odd << 16);

			e -= (vuh)load_vector(n) * FRACTIONS + FRACTIONS / 2;
			if (__builtin_expect(job->outside[t] != 0, 0)) {
				vi in = (inside_mask(job->outside[t], column, 0) & 0xffff) |
					inside_mask(job->outside[t], column, 1) << 16;

				e &= (vuh)in;
			}
			run += e * e;
		}
		wide_add(&sum, run);
	}
	wide_store(sum, square_sum);
}

INLINE void norm_column(const struct measure_job *job, uint32_t column, double *norm_sum)
{
	const struct group_view *view = &job->view;
	const uint8_t *p = column_at(view, column, SSV_DTYPE_BF16);

	for (uint32_t t = view->first; t < view->tokens;) {
		uint32_t end = t + RUN_TOKENS < view->tokens ? t + RUN_TOKENS : view->tokens;
		struct column norm = {{0}, {0}};

		for (; t < end; t++, p += view->row_bytes) {
			struct column x = load_column(p, SSV_DTYPE_BF16);

			if (job->outside[t]) {
				vi even = inside_mask(job->outside[t], column, 0);
				vi odd = inside_mask(job->outside[t], column, 1);

				x.even = (vf)((vi)x.even & even);
				x.odd = (vf)((vi)x.odd & odd);
			}
			norm.even += x.even * x.even;
			norm.odd += x.odd * x.odd;
		}
		add_run(norm, norm_sum + column * COLUMN);
	}
}

static void measure_bf16(struct measure_job *job)
{
	_Alignas(VECTOR_BYTES) double norm[LANES] = {0};
	double norm_sum[LANES];
	uint32_t square[LANES];

	for (uint32_t column = 0; column < COLUMNS; column++) {
		fraction_column(job, column, square + column * COLUMN);
		if (job->wants_norm)
			norm_column(job, column, norm);
	}
	for (uint32_t i = 0; i < LANES; i++)
		norm_sum[i] = norm[column_place(i)];
	measure_fractions(job, square, norm_sum);
}

INLINE void measure_column(struct measure_job *job, uint32_t column, double *error_sum,
			   double *norm_sum, const uint8_t dtype)
{
	const struct group_view *view = &job->view;
	const uint8_t *p = column_at(view, column, dtype);
	const int16_t *n = job->integers + view->first * LANES + column * COLUMN;
	struct column scale = column_of(job->scale, column);

	for (uint32_t t = view->first; t < view->tokens;) {
		uint32_t end = t + RUN_TOKENS < view->tokens ? t + RUN_TOKENS : view->tokens;
		struct column error = {{0}, {0}}, norm = {{0}, {0}};

		for (; t < end; t++, p += view->row_bytes, n += LANES) {
			struct column x = load_column(p, dtype), y;
			vi pair = (vi)load_vector(n);

			y.even = decoded(__builtin_convertvector(pair << 16 >> 16, vf) * scale.even,
					 dtype);
			y.odd = decoded(__builtin_convertvector(pair >> 16, vf) * scale.odd, dtype);
			if (dtype == SSV_DTYPE_FP16)
				job->outside[t] |=
				    (overflow_bits(y.even) | overflow_bits(y.odd) << 1)
				    << column * COLUMN;
			y.even -= x.even;
			y.odd -= x.odd;
			if (__builtin_expect(job->outside[t] != 0, 0)) {
				vi even = inside_mask(job->outside[t], column, 0);
				vi odd = inside_mask(job->outside[t], column, 1);

				x.even = (vf)((vi)x.even & even);
				y.even = (vf)((vi)y.even & even);
				x.odd = (vf)((vi)x.odd & odd);
				y.odd = (vf)((vi)y.odd & odd);
			}
			error.even += y.even * y.even;
			error.odd += y.odd * y.odd;
			norm.even += x.even * x.even;
			norm.odd += x.odd * x.odd;
		}
		add_run(error, error_sum + column * COLUMN);
		add_run(norm, norm_sum + column * COLUMN);
	}
}

INLINE void measure_columns(struct measure_job *job, double *error_sum, double *norm_sum,
			    const uint8_t dtype)
{
	for (uint32_t column = 0; column < COLUMNS; column++)
		measure_column(job, column, error_sum, norm_sum, dtype);
}

void LEVEL(measure)(struct measure_job *job)
{
	_Alignas(VECTOR_BYTES) double error[LANES] = {0}, norm[LANES] = {0};
	double error_sum[LANES], norm_sum[LANES];

	if (job->view.lanes < LANES) {
		scalar_measure(job);
		return;
	}
	if (job->view.dtype == SSV_DTYPE_BF16) {
		measure_bf16(job);
		return;
	}
	BY_DTYPE(job->view.dtype, measure_columns, job, error, norm);
	for (uint32_t i = 0; i < LANES; i++) {
		error_sum[i] = error[column_place(i)];
		norm_sum[i] = norm[column_place(i)];
	}
	measure_total(job, error_sum, norm_sum);
}
