/* SPDX-License-Identifier: Apache-2.0 */
/*
 * avx512_encode.c - the encoding kernels of level avx512, but for r16 (avx512_r16_encode.c).
 *
 * Classes are counted by bit planes: a bit of 64 lanes is one 64-bit number, eight tokens fill a
 * vector, and how often a class occurs in them is a population count of planes and'ed together.
 */
#include <immintrin.h>

#include "codec/simd/encode.h"

#define VECTOR_BYTES 64
#define LEVEL(name)  avx512_##name

#define widen8(p)   ((vu)_mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(p))))
#define max32(a, b) ((vi)_mm512_max_epi32((__m512i)(a), (__m512i)(b)))
#define max16(a, b) ((vh)_mm512_max_epi16((__m512i)(a), (__m512i)(b)))
#define min16(a, b) ((vh)_mm512_min_epi16((__m512i)(a), (__m512i)(b)))
#define even32(a, b) \
	__builtin_shuffle(a, b, (vu){0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30})
#define odd32(a, b) \
	__builtin_shuffle(a, b, (vu){1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31})

#include "codec/simd/encode_template.h"

#define PLANE_TOKENS 8u /* of one vector of planes */

/* Which byte of two vectors of channels (16-bit each) is a lane's lower one. */
INLINE __m512i lane_bytes(void)
{
	_Alignas(64) uint8_t at[LANES];

	for (uint32_t lane = 0; lane < LANES; lane++)
		at[lane] = (uint8_t)(2 * lane_channel(lane, LANES));
	return _mm512_load_si512(at);
}

/* The same for channels. */
INLINE __m512i channel_bytes(void)
{
	_Alignas(64) uint8_t at[LANES];

	for (uint32_t i = 0; i < LANES; i++)
		at[i] = (uint8_t)(2 * i);
	return _mm512_load_si512(at);
}

/* ---- counting -----------------------------------------------------------------------------------
 */

/* Population counts of the subsets of four planes: bit k of the index: plane k is in it. */
struct subset_counts {
	__m512i sum[16];
};

INLINE void subsets_add(struct subset_counts *counts, const __m512i plane[4], __m512i inside)
{
	__m512i of[16];

	of[0] = inside;
	for (uint32_t i = 1; i < 16; i++) {
		uint32_t top = 31 - (uint32_t)__builtin_clz(i);

		of[i] = _mm512_and_si512(of[i - (1u << top)], plane[top]);
	}
	for (uint32_t i = 0; i < 16; i++)
		counts->sum[i] = _mm512_add_epi64(counts->sum[i], _mm512_popcnt_epi64(of[i]));
}

/* From subsets (these planes are set, whatever the others) to values: count[v ^ flip]. */
static void subsets_to_values(const struct subset_counts *counts, uint32_t flip, uint32_t count[16])
{
	uint64_t exact[16];

	for (uint32_t i = 0; i < 16; i++)
		exact[i] = (uint64_t)_mm512_reduce_add_epi64(counts->sum[i]);
	for (uint32_t k = 0; k < 4; k++)
		for (uint32_t i = 0; i < 16; i++)
			if (!(i >> k & 1))
				exact[i] -= exact[i | 1u << k];
	for (uint32_t i = 0; i < 16; i++)
		count[i ^ flip] = (uint32_t)exact[i];
}

/* Planes of the classes of some tokens, until there are eight of them. */
struct class_planes {
	_Alignas(64) uint64_t plane[4][PLANE_TOKENS];
	uint32_t tokens;
	struct subset_counts counts;
};

INLINE void class_planes_add(struct class_planes *planes, uint32_t token, __m512i classes)
{
	uint32_t at = token % PLANE_TOKENS;

	for (int k = 0; k < 4; k++)
		planes->plane[k][at] =
		    _mm512_test_epi8_mask(classes, _mm512_set1_epi8((char)(1 << k)));
	if (at == PLANE_TOKENS - 1) {
		__m512i plane[4];

		for (uint32_t k = 0; k < 4; k++)
			plane[k] = _mm512_load_si512(planes->plane[k]);
		subsets_add(&planes->counts, plane, _mm512_set1_epi64(-1));
	}
}

/* The tokens after the last eight, then all counts. */
static void class_planes_finish(struct class_planes *planes, uint32_t tokens, uint32_t count[16])
{
	uint32_t rest = tokens % PLANE_TOKENS;
	__mmask8 some = (__mmask8)((1u << rest) - 1);
	__m512i plane[4];

	for (uint32_t k = 0; k < 4; k++)
		plane[k] = _mm512_maskz_load_epi64(some, planes->plane[k]);
	subsets_add(&planes->counts, plane, _mm512_maskz_set1_epi64(some, -1));
	subsets_to_values(&planes->counts, 0, count);
}

/* Bit planes of differences, of which ten bits count: 0 to 8 and the sign. */
struct difference_planes {
	_Alignas(64) uint64_t bit[9][PLANE_TOKENS], sign[PLANE_TOKENS], inside[PLANE_TOKENS];
};

INLINE __m512i difference(const struct count_job *job, uint32_t token, uint32_t half,
			  __mmask32 *ret_known)
{
	const int16_t *row = job->integers + token * LANES + half * 32;
	const __m512i none = _mm512_set1_epi16(INTEGER_NONE);
	__m512i n = _mm512_loadu_si512(row), offset = _mm512_loadu_si512(job->offset + half * 32);
	__m512i delta = _mm512_loadu_si512(job->delta + half * 32), base = offset;

	if (token > job->first)
		base = _mm512_mask_mov_epi16(offset, _mm512_movepi16_mask(delta),
					     _mm512_loadu_si512(row - LANES));
	*ret_known = _mm512_cmpneq_epi16_mask(n, none) & _mm512_cmpneq_epi16_mask(base, none);
	return _mm512_subs_epi16(n, base);
}

/* One token: lower bytes and upper bytes of the differences, channels 0..63. */
INLINE uint64_t difference_add(const struct count_job *job, struct difference_planes *planes,
			       uint32_t token, uint32_t at, __m512i low_bytes, __m512i high_bytes)
{
	__mmask32 known[2];
	__m512i a = difference(job, token, 0, &known[0]), b = difference(job, token, 1, &known[1]);
	__m512i low = _mm512_permutex2var_epi8(a, low_bytes, b);
	__m512i high = _mm512_permutex2var_epi8(a, high_bytes, b);
	uint64_t all = (uint64_t)known[1] << 32 | known[0];

	for (int k = 0; k < 8; k++)
		planes->bit[k][at] = _mm512_test_epi8_mask(low, _mm512_set1_epi8((char)(1 << k)));
	planes->bit[8][at] = _mm512_test_epi8_mask(high, _mm512_set1_epi8(1));
	planes->sign[at] = _mm512_movepi8_mask(high);
	/* -512..511: upper bytes -2..1 */
	planes->inside[at] =
	    all &
	    _mm512_cmplt_epu8_mask(_mm512_add_epi8(high, _mm512_set1_epi8(2)), _mm512_set1_epi8(4));
	return all;
}

/* Add what eight tokens have, for each number of raw bits. */
static void difference_count(const struct difference_planes *planes, __mmask8 some,
			     struct subset_counts counts[RAW_CHOICES])
{
	__m512i sign = _mm512_maskz_load_epi64(some, planes->sign);
	__m512i inside = _mm512_maskz_load_epi64(some, planes->inside), bit[10];

	for (uint32_t k = 0; k < 9; k++)
		bit[k] = _mm512_load_si512(planes->bit[k]);
	bit[9] = sign;
	for (uint32_t r = RAW_CHOICES; r-- > 0;) {
		__m512i plane[4] = {bit[r], bit[r + 1], bit[r + 2], sign};

		/* with r raw bits, all from bit r + 3 on have to be the sign */
		inside = _mm512_andnot_si512(_mm512_xor_si512(bit[r + 3], sign), inside);
		subsets_add(&counts[r], plane, inside);
	}
}

void avx512_count(struct count_job *job)
{
	const __m512i low_bytes = channel_bytes();
	const __m512i high_bytes = _mm512_add_epi8(low_bytes, _mm512_set1_epi8(1));
	struct subset_counts counts[RAW_CHOICES];
	struct difference_planes planes;
	uint32_t at = 0;

	if (job->lanes < LANES) {
		scalar_count(job);
		return;
	}
	memset(counts, 0, sizeof(counts));
	job->total = 0;
	for (uint32_t t = job->first; t < job->tokens; t++) {
		if (!sample_takes(job->first, job->tokens, t))
			continue;
		job->total += (uint32_t)__builtin_popcountll(
		    difference_add(job, &planes, t, at, low_bytes, high_bytes));
		if (++at < PLANE_TOKENS)
			continue;
		difference_count(&planes, 0xff, counts);
		at = 0;
	}
	if (at)
		difference_count(&planes, (__mmask8)((1u << at) - 1), counts);
	for (uint32_t r = 0; r < RAW_CHOICES; r++)
		subsets_to_values(&counts[r], 8, job->count[r]);
}

/* ---- packing ------------------------------------------------------------------------------------
 */

/* 64 bytes of r bits each to 8 * r bytes. */
INLINE void raw_store(__m512i bytes, const uint32_t r, uint8_t *out)
{
	_Alignas(64) uint8_t at[LANES] = {0};
	__m512i x;

	for (uint32_t i = 0; i < 8 * r; i++)
		at[i] = (uint8_t)(i / r * 8 + i % r);
	x = _mm512_maddubs_epi16(bytes, _mm512_set1_epi16((short)(1 << (r + 8) | 1)));
	x = _mm512_madd_epi16(x, _mm512_set1_epi32(1 << (2 * r + 16) | 1));
	x = _mm512_or_si512(_mm512_and_si512(x, _mm512_set1_epi64(UINT32_MAX)),
			    _mm512_slli_epi64(_mm512_srli_epi64(x, 32), 4 * r));
	x = _mm512_permutexvar_epi8(_mm512_load_si512(at), x);
	_mm512_mask_storeu_epi8(out, (1ull << 8 * r) - 1, x);
}

/* Half a row: what of it is a symbol, and what is not reproduced. */
struct pack_half {
	__m512i offset, delta, current;
};

INLINE __m512i pack_step(struct pack_half *half, const int16_t *integers, const uint32_t r,
			 __mmask32 *ret_outside)
{
	const __m512i middle = _mm512_set1_epi16((short)(8 << r));
	const __m512i top = _mm512_set1_epi16((short)((16 << r) - 1));
	__m512i n = _mm512_loadu_si512(integers);
	__m512i base = _mm512_ternarylogic_epi64(half->delta, half->current, half->offset, 0xca);
	__mmask32 known = _mm512_cmpneq_epi16_mask(n, _mm512_set1_epi16(INTEGER_NONE));
	__m512i symbol = _mm512_mask_adds_epi16(middle, known, _mm512_subs_epi16(n, base), middle);

	symbol = _mm512_max_epi16(symbol, _mm512_setzero_si512());
	symbol = _mm512_min_epi16(symbol, top);
	half->current = _mm512_add_epi16(base, _mm512_sub_epi16(symbol, middle));
	*ret_outside = _mm512_cmpneq_epi16_mask(half->current, n);
	return symbol;
}

INLINE void pack_rows(struct pack_job *job, const uint32_t r)
{
	const __m512i lanes = lane_bytes(), mask = _mm512_set1_epi8((char)((1 << r) - 1));
	struct class_planes planes;
	struct pack_half half[2];
	uint8_t *raw = job->raw;

	memset(&planes, 0, sizeof(planes));
	for (uint32_t k = 0; k < 2; k++) {
		half[k].offset = _mm512_loadu_si512(job->offset + 32 * k);
		half[k].delta = _mm512_loadu_si512(job->delta + 32 * k);
		half[k].current = half[k].offset;
	}
	for (uint32_t t = 0; t < job->tokens; t++) {
		const int16_t *row = job->integers + t * LANES;
		__mmask32 outside[2];
		__m512i a = pack_step(&half[0], row, r, &outside[0]);
		__m512i b = pack_step(&half[1], row + 32, r, &outside[1]);
		__m512i classes = _mm512_permutex2var_epi8(_mm512_srli_epi16(a, r), lanes,
							   _mm512_srli_epi16(b, r));

		job->outside[t] = (uint64_t)outside[1] << 32 | outside[0];
		_mm512_storeu_si512(job->classes + t * LANES, classes);
		class_planes_add(&planes, t, classes);
		if (!r)
			continue;
		raw_store(_mm512_and_si512(_mm512_permutex2var_epi8(a, lanes, b), mask), r, raw);
		raw += 8 * r;
	}
	class_planes_finish(&planes, job->tokens, job->count);
}

void avx512_pack(struct pack_job *job)
{
	if (job->lanes < LANES) {
		scalar_pack(job);
		return;
	}
	switch (job->raw_bits) {
	case 0:
		pack_rows(job, 0);
		break;
	case 1:
		pack_rows(job, 1);
		break;
	case 2:
		pack_rows(job, 2);
		break;
	case 3:
		pack_rows(job, 3);
		break;
	case 4:
		pack_rows(job, 4);
		break;
	case 5:
		pack_rows(job, 5);
		break;
	default:
		pack_rows(job, 6);
		break;
	}
}

/* ---- all at once --------------------------------------------------------------------------------
 */

#define CODE_AHEAD 12u /* tokens; they share four sets of the first-level cache */

/* Half a row of a code_job: 32 channels, the even and the odd ones. */
struct code_half {
	struct column inverse, scale, error, norm;
	__m512i offset, delta, last;
};

INLINE __m512i code_quantise(const struct code_half *half, struct column x, struct column *ret_y)
{
	vf even = x.even * half->inverse.even + ROUND_BIAS;
	vf odd = x.odd * half->inverse.odd + ROUND_BIAS;

	ret_y->even = (even - ROUND_BIAS) * half->scale.even;
	ret_y->odd = (odd - ROUND_BIAS) * half->scale.odd;
	/* an integer is the lower half of its float, whose bias ends with 16 zeros */
	return _mm512_mask_blend_epi16(0xaaaaaaaa, (__m512i)even,
				       _mm512_slli_epi32((__m512i)odd, 16));
}

/* Errors of what is not `outside`. */
INLINE void code_measure(struct code_half *half, struct column x, struct column y, uint32_t outside)
{
	y.even = decoded(y.even, SSV_DTYPE_BF16) - x.even;
	y.odd = decoded(y.odd, SSV_DTYPE_BF16) - x.odd;
	if (__builtin_expect(outside != 0, 0)) {
		vi even = inside_mask(outside, 0, 0), odd = inside_mask(outside, 0, 1);

		x.even = (vf)((vi)x.even & even);
		y.even = (vf)((vi)y.even & even);
		x.odd = (vf)((vi)x.odd & odd);
		y.odd = (vf)((vi)y.odd & odd);
	}
	half->error.even += y.even * y.even;
	half->error.odd += y.odd * y.odd;
	half->norm.even += x.even * x.even;
	half->norm.odd += x.odd * x.odd;
}

/* One token of half a group: its symbols. */
INLINE __m512i code_step(struct code_half *half, const uint8_t *elements, const uint32_t r,
			 uint32_t *ret_outside)
{
	const __m512i middle = _mm512_set1_epi16((short)(8 << r));
	const __m512i top = _mm512_set1_epi16((short)((16 << r) - 1));
	struct column x = load_column(elements, SSV_DTYPE_BF16), y;
	__m512i n = code_quantise(half, x, &y);
	__m512i base = _mm512_ternarylogic_epi64(half->delta, half->last, half->offset, 0xca);
	__m512i symbol = _mm512_sub_epi16(_mm512_add_epi16(n, middle), base);
	uint32_t outside = _mm512_cmpgt_epu16_mask(symbol, top);

	/* the decoder has n, so that tokens do not wait for one another */
	half->last = n;
	if (__builtin_expect(outside != 0, 0)) {
		__m512i near = _mm512_max_epi16(symbol, _mm512_setzero_si512());

		near = _mm512_min_epi16(near, top);
		half->last = _mm512_add_epi16(n, _mm512_sub_epi16(near, symbol));
		symbol = near;
	}
	code_measure(half, x, y, outside);
	*ret_outside = outside;
	return symbol;
}

INLINE void code_half_open(struct code_half *half, const struct code_job *job, uint32_t k)
{
	half->inverse = column_of(job->inverse, k);
	half->scale = column_of(job->measure.scale, k);
	half->offset = _mm512_loadu_si512(job->pack.offset + 32 * k);
	half->delta = _mm512_loadu_si512(job->pack.delta + 32 * k);
	half->last = half->offset;
}

/* Verbatim tokens: the middle symbol, which leaves every base as it is. */
static uint8_t *code_verbatim(const struct code_job *job, const uint32_t r,
			      struct class_planes *planes)
{
	const struct pack_job *pack = &job->pack;
	uint32_t first = job->measure.view.first;

	memset(pack->classes, 8, (size_t)first * LANES);
	memset(pack->raw, 0, (size_t)first * 8 * r);
	for (uint32_t t = 0; t < first; t++) {
		pack->outside[t] = UINT64_MAX;
		class_planes_add(planes, t, _mm512_set1_epi8(8));
	}
	return pack->raw + (size_t)first * 8 * r;
}

struct code_sums {
	_Alignas(VECTOR_BYTES) double error[LANES], norm[LANES];
};

INLINE void code_rows(struct code_job *job, const uint32_t r, struct code_sums *sums)
{
	const __m512i lanes = lane_bytes(), mask = _mm512_set1_epi8((char)((1 << r) - 1));
	const struct group_view *view = &job->measure.view;
	const uint8_t *row = view->elements + view->first * view->row_bytes;
	const uint8_t *next = job->next ? job->next : row;
	uint32_t step = job->next ? 2 * CACHE_LINE_BYTES : 0;
	struct class_planes planes;
	struct code_half low, high;
	uint8_t *raw;

	memset(&planes, 0, sizeof(planes));
	raw = code_verbatim(job, r, &planes);
	code_half_open(&low, job, 0);
	code_half_open(&high, job, 1);
	for (uint32_t t = view->first; t < view->tokens;) {
		uint32_t end = t + RUN_TOKENS < view->tokens ? t + RUN_TOKENS : view->tokens;

		low.error = low.norm = high.error = high.norm = (struct column){{0}, {0}};
		for (; t < end; t++, row += view->row_bytes, raw += 8 * r, next += step) {
			uint32_t outside[2];
			__m512i a = code_step(&low, row, r, &outside[0]);
			__m512i b = code_step(&high, row + VECTOR_BYTES, r, &outside[1]);
			__m512i classes = _mm512_permutex2var_epi8(_mm512_srli_epi16(a, r), lanes,
								   _mm512_srli_epi16(b, r));

			/* rows are too far apart for the processor to see them coming */
			__builtin_prefetch(row + CODE_AHEAD * view->row_bytes);
			__builtin_prefetch(row + CODE_AHEAD * view->row_bytes + CACHE_LINE_BYTES);
			__builtin_prefetch(next, 0, 2);
			__builtin_prefetch(next + CACHE_LINE_BYTES, 0, 2);
			job->pack.outside[t] = (uint64_t)outside[1] << 32 | outside[0];
			_mm512_storeu_si512(job->pack.classes + t * LANES, classes);
			class_planes_add(&planes, t, classes);
			if (r)
				raw_store(
				    _mm512_and_si512(_mm512_permutex2var_epi8(a, lanes, b), mask),
				    r, raw);
		}
		add_run(low.error, sums->error);
		add_run(low.norm, sums->norm);
		add_run(high.error, sums->error + COLUMN);
		add_run(high.norm, sums->norm + COLUMN);
	}
	class_planes_finish(&planes, view->tokens, job->pack.count);
}

#define CODE_ROWS(r)                       \
	case r:                            \
		code_rows(job, r, &place); \
		break

void avx512_code(struct code_job *job)
{
	struct code_sums place, sums;

	memset(&place, 0, sizeof(place));
	switch (job->pack.raw_bits) {
		CODE_ROWS(0);
		CODE_ROWS(1);
		CODE_ROWS(2);
		CODE_ROWS(3);
		CODE_ROWS(4);
		CODE_ROWS(5);
		CODE_ROWS(6);
	default:
		return;
	}
	for (uint32_t i = 0; i < LANES; i++) {
		sums.error[i] = place.error[column_place(i)];
		sums.norm[i] = place.norm[column_place(i)];
	}
	measure_total(&job->measure, sums.error, sums.norm);
}
