/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spread_template.h - sums, squares and peaks by channel, and power by token, in the terms of
 * encode_template.h, which includes it.
 *
 * A tensor is read in the order of memory, some groups wide: what is kept of each channel waits in
 * the first-level cache meanwhile. Sums have the shape that kernels.h gives them.
 */
/* ---- spread ------------------------------------------------------------------------------------
 */

#define SPREAD_GROUPS 8u /* at once: what is kept of them stays in the first-level cache */
#define SPREAD_TOKENS 8u
#define SPREAD_AHEAD  8u /* tokens */

struct spread_sums {
	_Alignas(VECTOR_BYTES) double sum[SPREAD_GROUPS * LANES], square[SPREAD_GROUPS * LANES];
	_Alignas(VECTOR_BYTES) float run_sum[SPREAD_GROUPS * LANES];
	_Alignas(VECTOR_BYTES) float run_square[SPREAD_GROUPS * LANES];
	_Alignas(VECTOR_BYTES) int32_t peak[SPREAD_GROUPS * LANES], count[SPREAD_GROUPS * LANES];
};

/* Peaks of bf16 are its own 16 bits, in the order of channels: the first half of each column's. */
#define BF16_INFINITY 0x7f80

/* Half a column of a few tokens, in registers. */
struct spread_part {
	vf sum, square;
	vi peak, count;
};

INLINE void spread_add(struct spread_part *part, vf x, const int careful, const uint8_t dtype)
{
	if (careful) {
		vi finite = finite_mask(x);

		x = (vf)((vi)x & finite);
		part->count -= finite;
	}
	if (dtype != SSV_DTYPE_BF16)
		part->peak = max32(part->peak, (vi)x & INT32_MAX);
	part->sum += x;
	part->square =
	    dtype == SSV_DTYPE_BF16 ? add_product(part->square, x, x) : part->square + x * x;
}

INLINE vi peak_of_pairs(vi peak, const uint8_t *p, const int careful)
{
	vh magnitude = (vh)load_vector(p) & INT16_MAX;

	if (careful)
		magnitude &= magnitude < BF16_INFINITY;
	return (vi)max16((vh)peak, magnitude);
}

INLINE struct spread_part spread_load(const struct spread_sums *sums, uint32_t at)
{
	struct spread_part part;

	part.sum = (vf)load_vector(sums->run_sum + at);
	part.square = (vf)load_vector(sums->run_square + at);
	part.peak = (vi)load_vector(sums->peak + at);
	part.count = (vi)load_vector(sums->count + at);
	return part;
}

INLINE void spread_save(struct spread_sums *sums, uint32_t at, struct spread_part part,
			const int careful)
{
	memcpy(sums->run_sum + at, &part.sum, sizeof(part.sum));
	memcpy(sums->run_square + at, &part.square, sizeof(part.square));
	memcpy(sums->peak + at, &part.peak, sizeof(part.peak));
	if (careful)
		memcpy(sums->count + at, &part.count, sizeof(part.count));
}

/* A few tokens of one column. Careful: some elements are not finite. Otherwise the peak shows it,
 * and the rest is wrong. */
INLINE void spread_few(const uint8_t *p, uint64_t row_bytes, const uint32_t tokens,
		       struct spread_sums *sums, uint32_t at, const int careful,
		       const uint8_t dtype)
{
	struct spread_part even = spread_load(sums, at), odd = spread_load(sums, at + V);

	for (uint32_t t = 0; t < tokens; t++, p += row_bytes) {
		struct column x = load_column(p, dtype);

		__builtin_prefetch(p + SPREAD_AHEAD * row_bytes);
		spread_add(&even, x.even, careful, dtype);
		spread_add(&odd, x.odd, careful, dtype);
		if (dtype == SSV_DTYPE_BF16)
			even.peak = peak_of_pairs(even.peak, p, careful);
	}
	spread_save(sums, at, even, careful);
	spread_save(sums, at + V, odd, careful);
}

/* The end of a run of tokens. */
INLINE void spread_run_end(struct spread_sums *sums, uint32_t channels)
{
	for (uint32_t c = 0; c < channels; c += COLUMN) {
		struct column sum, square;

		memcpy(&sum, sums->run_sum + c, sizeof(sum));
		memcpy(&square, sums->run_square + c, sizeof(square));
		add_run(sum, sums->sum + c);
		add_run(square, sums->square + c);
		memset(sums->run_sum + c, 0, sizeof(sum));
		memset(sums->run_square + c, 0, sizeof(square));
	}
}

/* In the order of memory: a few tokens, and of them all columns. */
INLINE void spread_columns(const struct group_view *view, struct spread_sums *sums,
			   const int careful, const uint8_t dtype)
{
	const uint32_t column_bytes = COLUMN * dtype_size(dtype), columns = view->lanes / COLUMN;
	const uint32_t coded = view->tokens - view->first;
	const uint8_t *p = view->elements + view->first * view->row_bytes;

	memset(sums, 0, sizeof(*sums));
	for (uint32_t t = 0, few; t < coded; t += few, p += few * view->row_bytes) {
		few = coded - t < SPREAD_TOKENS ? 1 : SPREAD_TOKENS;
		for (uint32_t k = 0; k < columns && few == SPREAD_TOKENS; k++)
			spread_few(p + (size_t)k * column_bytes, view->row_bytes, SPREAD_TOKENS,
				   sums, k * COLUMN, careful, dtype);
		for (uint32_t k = 0; k < columns && few == 1; k++)
			spread_few(p + (size_t)k * column_bytes, view->row_bytes, 1, sums,
				   k * COLUMN, careful, dtype);
		if ((t + few) % RUN_TOKENS == 0)
			spread_run_end(sums, view->lanes);
	}
	spread_run_end(sums, view->lanes);
}

INLINE int spread_is_finite(const struct spread_sums *sums, uint32_t channels, const uint8_t dtype)
{
	vi peak = {0};
	vh pairs = {0};

	if (dtype == SSV_DTYPE_BF16) {
		for (uint32_t i = 0; i < channels; i += COLUMN)
			pairs = max16(pairs, (vh)load_vector(sums->peak + i));
		for (uint32_t i = 0; i < COLUMN; i++)
			if (pairs[i] >= BF16_INFINITY)
				return 0;
		return 1;
	}
	for (uint32_t i = 0; i < channels; i += V)
		peak = max32(peak, (vi)load_vector(sums->peak + i));
	for (uint32_t i = 0; i < V; i++)
		if (peak[i] >= (int32_t)F32_EXPONENT)
			return 0;
	return 1;
}

INLINE void spread_groups(const struct group_view *view, struct spread_sums *sums,
			  const uint8_t dtype)
{
	spread_columns(view, sums, 0, dtype);
	if (!spread_is_finite(sums, view->lanes, dtype)) {
		spread_columns(view, sums, 1, dtype);
		return;
	}
	for (uint32_t i = 0; i < view->lanes; i++)
		sums->count[i] = (int32_t)(view->tokens - view->first);
}

static float peak_at(const struct spread_sums *sums, uint32_t channel, uint8_t dtype)
{
	uint16_t pairs[COLUMN];

	if (dtype != SSV_DTYPE_BF16)
		return f32_of((uint32_t)sums->peak[column_place(channel)]);
	memcpy(pairs, sums->peak + channel / COLUMN * COLUMN, sizeof(pairs));
	return f32_from_bf16(pairs[channel % COLUMN]);
}

static void spread_store(const struct spread_sums *sums, const struct spread_job *job,
			 uint32_t channel0, uint32_t channels)
{
	for (uint32_t i = 0; i < channels; i++) {
		uint32_t place = column_place(i);

		job->sum[channel0 + i] = sums->sum[place];
		job->square[channel0 + i] = sums->square[place];
		job->peak[channel0 + i] = peak_at(sums, i, job->view.dtype);
		job->count[channel0 + i] = (uint32_t)sums->count[place];
	}
}

void LEVEL(spread)(struct spread_job *job)
{
	const uint32_t full = job->view.lanes / LANES * LANES;
	struct spread_sums sums;

	for (uint32_t c = 0, channels; c < full; c += channels) {
		struct group_view view = job->view;

		channels = full - c < SPREAD_GROUPS * LANES ? full - c : SPREAD_GROUPS * LANES;
		view.elements += (size_t)c * dtype_bytes(view.dtype);
		view.lanes = channels;
		BY_DTYPE(view.dtype, spread_groups, &view, &sums);
		spread_store(&sums, job, c, channels);
	}
	if (full < job->view.lanes) {
		struct spread_job rest = {.view = job->view,
					  .sum = job->sum + full,
					  .square = job->square + full,
					  .peak = job->peak + full,
					  .count = job->count + full};

		rest.view.elements += (size_t)full * dtype_bytes(rest.view.dtype);
		rest.view.lanes -= full;
		scalar_spread(&rest);
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
