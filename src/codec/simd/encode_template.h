/* SPDX-License-Identifier: Apache-2.0 */
/*
 * encode_template.h - statistics, integers and errors of a full group, for vectors of any width: a
 * level defines VECTOR_BYTES, LEVEL(name) and the few operations below, then includes this file.
 *
 * A column is what two vectors of floats hold: the even and the odd channels of VECTOR_BYTES / 2
 * neighbours, since 16-bit elements come apart that way without a shuffle. What is kept by channel
 * is laid out [column][even, odd][lane] meanwhile. Partial groups go to the scalar kernels.
 *
 *	widen8(p)		VECTOR_BYTES / 2 bytes to 16-bit numbers
 *	even32(a, b), odd32(a, b)	32-bit numbers at even, odd places of a, then of b
 *	max32(a, b), max16, min16	of signed numbers
 */
#include <string.h>

#include "codec/float.h"
#include "codec/scalar.h"

#define V       (VECTOR_BYTES / 4u)
#define COLUMN  (2u * V) /* channels */
#define COLUMNS (LANES / COLUMN)
#define INLINE  static inline __attribute__((always_inline))

#define PREFETCH_TOKENS 24u

typedef float vf __attribute__((vector_size(VECTOR_BYTES)));
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
	float place[COLUMN];

	memcpy(place, &run, sizeof(run));
	for (uint32_t i = 0; i < COLUMN; i++)
		sum[i] += (double)place[i];
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

/* ---- spread ------------------------------------------------------------------------------------
 */

struct spread_sums {
	_Alignas(VECTOR_BYTES) double sum[LANES], square[LANES];
	_Alignas(VECTOR_BYTES) int32_t peak[LANES], count[LANES];
};

INLINE void spread_part(vf x, const int careful, vf *sum, vf *square, vi *peak, vi *count)
{
	if (careful) {
		vi finite = finite_mask(x);

		x = (vf)((vi)x & finite);
		*count -= finite;
	}
	*peak = max32(*peak, (vi)x & INT32_MAX);
	*sum += x;
	*square += x * x;
}

/* Careful: some elements are not finite. Otherwise the peak shows it, and the rest is wrong. */
INLINE void spread_column(const struct group_view *view, uint32_t column, struct spread_sums *sums,
			  const int careful, const uint8_t dtype)
{
	const uint8_t *p = column_at(view, column, dtype);
	struct {
		vi even, odd;
	} peak = {{0}, {0}}, count = {{0}, {0}};

	memset(sums->sum + column * COLUMN, 0, COLUMN * sizeof(double));
	memset(sums->square + column * COLUMN, 0, COLUMN * sizeof(double));
	for (uint32_t t = view->first; t < view->tokens;) {
		uint32_t end = t + RUN_TOKENS < view->tokens ? t + RUN_TOKENS : view->tokens;
		struct column sum = {{0}, {0}}, square = {{0}, {0}};

		for (; t < end; t++, p += view->row_bytes) {
			struct column x = load_column(p, dtype);

			/* rows are too far apart for the processor to see them coming */
			__builtin_prefetch(p + PREFETCH_TOKENS * view->row_bytes);
			spread_part(x.even, careful, &sum.even, &square.even, &peak.even,
				    &count.even);
			spread_part(x.odd, careful, &sum.odd, &square.odd, &peak.odd, &count.odd);
		}
		add_run(sum, sums->sum + column * COLUMN);
		add_run(square, sums->square + column * COLUMN);
	}
	if (!careful)
		count.even = count.odd = (vi){0} + (int32_t)(view->tokens - view->first);
	memcpy(sums->peak + column * COLUMN, &peak, sizeof(peak));
	memcpy(sums->count + column * COLUMN, &count, sizeof(count));
}

INLINE void spread_columns(const struct group_view *view, struct spread_sums *sums,
			   const uint8_t dtype)
{
	for (uint32_t column = 0; column < COLUMNS; column++) {
		int32_t peak = 0;

		spread_column(view, column, sums, 0, dtype);
		for (uint32_t i = 0; i < COLUMN; i++)
			peak = sums->peak[column * COLUMN + i] > peak
				   ? sums->peak[column * COLUMN + i]
				   : peak;
		if (peak >= (int32_t)F32_EXPONENT)
			spread_column(view, column, sums, 1, dtype);
	}
}

void LEVEL(spread)(struct spread_job *job)
{
	struct spread_sums sums;

	if (job->view.lanes < LANES) {
		scalar_spread(job);
		return;
	}
	BY_DTYPE(job->view.dtype, spread_columns, &job->view, &sums);
	for (uint32_t i = 0; i < LANES; i++) {
		uint32_t place = column_place(i);

		job->sum[i] = sums.sum[place];
		job->square[i] = sums.square[place];
		job->peak[i] = f32_of((uint32_t)sums.peak[place]);
		job->count[i] = (uint32_t)sums.count[place];
	}
}

/* ---- power of tokens ----------------------------------------------------------------------------
 */

INLINE vf finite_square(vf x)
{
	x = (vf)((vi)x & finite_mask(x));
	return x * x;
}

INLINE void power_tokens(const struct power_job *job, const uint8_t dtype)
{
	const struct group_view *view = &job->view;
	const uint32_t half = COLUMNS / 2; /* columns of the lower 32 channels */

	for (uint32_t t = view->first; t < view->tokens; t++) {
		const uint8_t *p = view->elements + t * view->row_bytes;
		_Alignas(VECTOR_BYTES) float sum[LANES / 4];

		for (uint32_t k = 0; k < half; k++) {
			struct column a = load_column(p + k * COLUMN * dtype_size(dtype), dtype);
			struct column b =
			    load_column(p + (half + k) * COLUMN * dtype_size(dtype), dtype);
			vf s = ((finite_square(a.even) + finite_square(a.odd)) +
				finite_square(b.even)) +
			       finite_square(b.odd);

			memcpy(sum + k * V, &s, sizeof(s));
		}
		for (uint32_t n = LANES / 8; n; n /= 2)
			for (uint32_t i = 0; i < n; i++)
				sum[i] += sum[i + n];
		job->power[t] += sum[0];
	}
}

void LEVEL(power)(const struct power_job *job)
{
	if (job->view.lanes < LANES || job->channel0 || job->channel_end < LANES) {
		scalar_power(job);
		return;
	}
	BY_DTYPE(job->view.dtype, power_tokens, job);
}

/* ---- integers -----------------------------------------------------------------------------------
 */

#define ROUND_BIAS      12582912.0f /* 1.5 * 2^23: leaves the nearest integer in the low bits */
#define ROUND_BIAS_BITS 0x4b400000
#define LIMIT_BITS      0x46fa0000 /* of (float)INTEGER_MAX */

INLINE vi integers_of(vf x)
{
	vi near = ((vi)x & INT32_MAX) <= LIMIT_BITS;
	vi n = (vi)((vf)((vi)x & near) + ROUND_BIAS) - ROUND_BIAS_BITS;

	return (n & near) | (INTEGER_NONE & ~near);
}

INLINE void quantise_columns(const struct quantise_job *job, const uint8_t dtype)
{
	for (uint32_t column = 0; column < COLUMNS; column++) {
		const uint8_t *p = column_at(&job->view, column, dtype);
		struct column inverse = column_of(job->inverse, column);
		int16_t *out = job->integers + column * COLUMN;

		for (uint32_t t = job->view.first; t < job->view.tokens; t++) {
			struct column x = load_column(p, dtype);
			vi n = (integers_of(x.even * inverse.even) & 0xffff) |
			       integers_of(x.odd * inverse.odd) << 16;

			memcpy(out + t * LANES, &n, sizeof(n));
			p += job->view.row_bytes;
		}
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
	BY_DTYPE(job->view.dtype, measure_columns, job, error, norm);
	for (uint32_t i = 0; i < LANES; i++) {
		error_sum[i] = error[column_place(i)];
		norm_sum[i] = norm[column_place(i)];
	}
	measure_total(job, error_sum, norm_sum);
}
