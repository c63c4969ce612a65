/* SPDX-License-Identifier: Apache-2.0 */
/*
 * avx512_encode.c - the encoding kernels of level avx512, but for r16 (avx512_r16_encode.c).
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
#define add_product(sum, a, b) ((vf)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(sum)))

#include "codec/simd/encode_template.h"

#include "codec/simd/avx512_planes.h" /* in terms of the template */

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

/* How many symbols have a class with each number of raw bits. */
static void difference_range(struct count_job *job, const struct difference_planes *planes,
			     uint32_t count)
{
	__m512i sum[RAW_CHOICES];
	uint32_t total[RAW_CHOICES];

	for (uint32_t r = 0; r < RAW_CHOICES; r++)
		sum[r] = _mm512_setzero_si512();
	for (; count--; planes++) {
		__m512i sign = _mm512_load_si512(planes->sign);
		__m512i inside = _mm512_load_si512(planes->inside), bit = sign;

		for (uint32_t r = RAW_CHOICES; r-- > 0;) {
			/* with r raw bits, all from bit r + 3 on have to be the sign */
			inside = _mm512_andnot_si512(_mm512_xor_si512(bit, sign), inside);
			sum[r] = _mm512_add_epi64(sum[r], _mm512_popcnt_epi64(inside));
			bit = _mm512_load_si512(planes->bit[r + 2]);
		}
	}
	for (uint32_t r = 0; r < RAW_CHOICES; r++)
		total[r] = (uint32_t)_mm512_reduce_add_epi64(sum[r]);
	count_range(job, total);
}

/* The counts with so many raw bits. */
static void difference_count(const struct difference_planes *planes, uint32_t count, uint32_t r,
			     uint32_t of_class[16])
{
	struct subset_counts counts;

	memset(&counts, 0, sizeof(counts));
	for (; count--; planes++) {
		__m512i sign = _mm512_load_si512(planes->sign), plane[4];
		__m512i inside = _mm512_load_si512(planes->inside);

		for (uint32_t k = 0; k < 3; k++)
			plane[k] = _mm512_load_si512(planes->bit[r + k]);
		plane[3] = sign;
		for (uint32_t k = r + 3; k < 9; k++)
			inside = _mm512_andnot_si512(
			    _mm512_xor_si512(_mm512_load_si512(planes->bit[k]), sign), inside);
		subsets_add(&counts, plane, inside);
	}
	subsets_to_values(&counts, 8, of_class);
}

/* So many vectors of planes: of all tokens if they are few, of those that are taken otherwise. */
_Static_assert(SAMPLE_TAKEN == PLANE_TOKENS && SAMPLE_EVERY % PLANE_TOKENS == 0,
	       "a vector of planes is a run of the sample");
#define PLANES_MAX                                                           \
	((SSV_CHUNK_TOKENS * SAMPLE_TAKEN / SAMPLE_EVERY > SAMPLE_TOKENS_MIN \
	      ? SSV_CHUNK_TOKENS * SAMPLE_TAKEN / SAMPLE_EVERY               \
	      : SAMPLE_TOKENS_MIN) /                                         \
	 PLANE_TOKENS)

void avx512_count(struct count_job *job)
{
	const __m512i low_bytes = channel_bytes();
	const __m512i high_bytes = _mm512_add_epi8(low_bytes, _mm512_set1_epi8(1));
	const int sampled = is_sampled(job->first, job->tokens);
	struct difference_planes planes[PLANES_MAX];
	uint32_t at = 0;

	if (job->lanes < LANES) {
		scalar_count(job);
		return;
	}
	job->total = 0;
	for (uint32_t t = job->first; t < job->tokens; t++) {
		if (sampled && (t - job->first) % PLANE_TOKENS == 0 && t > job->first) {
			t += SAMPLE_EVERY - SAMPLE_TAKEN;
			if (t >= job->tokens)
				break;
		}
		job->total += (uint32_t)__builtin_popcountll(difference_add(
		    job, &planes[at / PLANE_TOKENS], t, at % PLANE_TOKENS, low_bytes, high_bytes));
		at++;
	}
	for (; at % PLANE_TOKENS; at++)
		planes[at / PLANE_TOKENS].inside[at % PLANE_TOKENS] = 0;
	difference_range(job, planes, at / PLANE_TOKENS);
	for (uint32_t r = job->r_first; r <= job->r_last; r++)
		difference_count(planes, at / PLANE_TOKENS, r, job->count[r]);
}

/* ---- packing ------------------------------------------------------------------------------------
 */

/* 64 bytes of r bits each to 8 * r bytes; up to 64 are written. */
INLINE void raw_store(__m512i bytes, const uint32_t r, uint8_t *out)
{
	_Alignas(64) uint8_t at[LANES] = {0};
	uint64_t bits;
	__m512i x;

	if (r == 1) {
		bits = _mm512_test_epi8_mask(bytes, bytes);
		memcpy(out, &bits, sizeof(bits));
		return;
	}
	x = _mm512_maddubs_epi16(bytes, _mm512_set1_epi16((short)(1 << (r + 8) | 1)));
	if (r == 4) {
		_mm256_storeu_si256((__m256i *)(void *)out, _mm512_cvtepi16_epi8(x));
		return;
	}
	x = _mm512_madd_epi16(x, _mm512_set1_epi32(1 << (2 * r + 16) | 1));
	if (r == 2) {
		_mm_storeu_si128((__m128i *)(void *)out, _mm512_cvtepi32_epi8(x));
		return;
	}
	for (uint32_t i = 0; i < 8 * r; i++)
		at[i] = (uint8_t)(i / r * 8 + i % r);
	x = _mm512_or_si512(_mm512_and_si512(x, _mm512_set1_epi64(UINT32_MAX)),
			    _mm512_slli_epi64(_mm512_srli_epi64(x, 32), 4 * r));
	x = _mm512_permutexvar_epi8(_mm512_load_si512(at), x);
	_mm512_storeu_si512(out, x);
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

/* Half a row of a code_job: 32 channels, the even and the odd ones. A channel without delta gets
 * its symbol at once, since the bias holds the middle less its offset; one with delta its integer.
 */
struct code_half {
	struct column inverse, bias;
	__m512i last; /* the integer that the decoder has, less the middle */
	__m512i feedback;
	__mmask32 delta;
	vuh error;
	struct wide_sum error_sum;
};

/* The bias's own 2^15 is left in 16 bits: symbols are less 2^15 as signed numbers, until the end.
 */
#define BIASED 0x8000

/* Adds the feedback to the fractions, and what becomes whole to the integers; returns what these
 * are off. */
INLINE __m512i code_feedback(struct code_half *half, __m512i fraction, __m512i *n)
{
	__m512i sum = _mm512_add_epi16(fraction, half->feedback), left, off;

	*n = _mm512_add_epi16(*n, _mm512_srai_epi16(sum, 7));
	left = _mm512_sub_epi16(_mm512_and_si512(sum, _mm512_set1_epi16(FRACTIONS - 1)),
				_mm512_set1_epi16(FRACTIONS / 2));
	off = _mm512_sub_epi16(left, half->feedback);
	half->feedback = (__m512i)FEEDBACK((vh)left);
	return off;
}

/* One token of half a group: its symbols, as far as they are inside, BIASED. */
INLINE __m512i code_step(struct code_half *half, const uint8_t *elements, const uint32_t r,
			 const int has_delta, const int is_shaped, __m512i *ret_fraction)
{
	const __m512i middle = _mm512_set1_epi16((short)(BIASED + (8 << r)));
	struct column x = load_column(elements, SSV_DTYPE_BF16);
	__m512i even = (__m512i)add_product(half->bias.even, x.even, half->inverse.even);
	__m512i odd = (__m512i)add_product(half->bias.odd, x.odd, half->inverse.odd);
	/* bits 7 to 22 of each: integers; bits 0 to 6: fractions, half a step too large */
	__m512i n = _mm512_mask_mov_epi16(_mm512_srli_epi32(even, 7), 0xaaaaaaaa,
					  _mm512_slli_epi32(odd, 9));
	__m512i fraction = _mm512_mask_mov_epi16(even, 0xaaaaaaaa, _mm512_slli_epi32(odd, 16));
	__m512i symbol;

	fraction = _mm512_and_si512(fraction, _mm512_set1_epi16(FRACTIONS - 1));
	if (is_shaped)
		fraction = code_feedback(half, fraction, &n);
	else
		fraction = _mm512_sub_epi16(fraction, _mm512_set1_epi16(FRACTIONS / 2));
	*ret_fraction = fraction;
	symbol = n;
	if (has_delta) {
		symbol = _mm512_mask_sub_epi16(n, half->delta, n, half->last);
		half->last = _mm512_sub_epi16(n, middle);
	}
	return symbol;
}

/* Some symbols are not inside: the nearest are taken, which the next tokens see, and their errors
 * do not count. */
static __m512i code_outside(struct code_half *half, __m512i symbol, __m512i top, __mmask32 outside,
			    __m512i *fraction)
{
	const __m512i biased = _mm512_set1_epi16((short)BIASED);
	__m512i near = _mm512_max_epi16(_mm512_xor_si512(symbol, biased), _mm512_setzero_si512());

	near = _mm512_xor_si512(_mm512_min_epi16(near, _mm512_xor_si512(top, biased)), biased);
	half->last = _mm512_add_epi16(half->last, _mm512_sub_epi16(near, symbol));
	*fraction = _mm512_maskz_mov_epi16(~outside, *fraction);
	return near;
}

INLINE void code_half_open(struct code_half *half, const struct code_job *job, uint32_t k,
			   const uint32_t r)
{
	const int16_t *offset = job->pack.offset + 32 * k, *delta = job->pack.delta + 32 * k;
	int32_t middle = 8 << r;
	float bias[32];
	int16_t last[32];

	for (uint32_t i = 0; i < 32; i++) {
		bias[(i & 1) * V + i / 2] = ROUND_BIAS + (float)(delta[i] ? 0 : middle - offset[i]);
		last[i] = (int16_t)(offset[i] - middle);
	}
	memset(half, 0, sizeof(*half));
	memcpy(&half->bias, bias, sizeof(bias));
	half->inverse = column_of(job->measure.inverse, k);
	half->last = _mm512_loadu_si512(last);
	half->delta = _mm512_movepi16_mask(_mm512_loadu_si512(delta));
}

/* Verbatim tokens: the middle symbol, which leaves every base as it is. */
static uint8_t *code_verbatim(const struct code_job *job, const uint32_t r,
			      struct class_planes *planes)
{
	const struct pack_job *pack = &job->pack;
	uint32_t first = job->measure.view.first;

	memset(pack->classes, 8, (size_t)first * LANES);
	memset(pack->raw, 0, (size_t)first * 8 * r);
	for (uint32_t t = 0; t < first; t++)
		class_planes_add(planes, t, _mm512_set1_epi8(8));
	return pack->raw + (size_t)first * 8 * r;
}

/* Symbols to classes and raw bits. */
INLINE __m512i code_split(__m512i a, __m512i b, __m512i lanes, const uint32_t r, uint8_t *raw)
{
	const __m512i mask = _mm512_set1_epi8((char)((1 << r) - 1));
	__m512i bytes = _mm512_permutex2var_epi8(a, lanes, b), classes;

	if (r > 4) { /* symbols have more than a byte, and BIASED is not in it */
		classes = _mm512_permutex2var_epi8(_mm512_srli_epi16(a, r), lanes,
						   _mm512_srli_epi16(b, r));
		classes = _mm512_and_si512(classes, _mm512_set1_epi8(15));
	} else {
		classes = _mm512_and_si512(_mm512_srli_epi16(bytes, r), _mm512_set1_epi8(15));
	}
	if (r)
		raw_store(_mm512_and_si512(bytes, mask), r, raw);
	return classes;
}

/* Moves what eight tokens had to the sums. */
INLINE void code_half_sum(struct code_half *half)
{
	wide_add(&half->error_sum, half->error);
	half->error = (vuh){0};
}

INLINE void code_rows(struct code_job *job, const uint32_t r, const int has_delta,
		      const int is_shaped, uint32_t square[LANES])
{
	const __m512i lanes = lane_bytes(),
		      top = _mm512_set1_epi16((short)(BIASED + (16 << r) - 1));
	const struct group_view *view = &job->measure.view;
	const uint8_t *row = view->elements + view->first * view->row_bytes;
	const uint8_t *next = job->next ? job->next : row;
	const uint64_t row_bytes = view->row_bytes;
	const uint32_t tokens = view->tokens;
	uint8_t *classes_out = job->pack.classes + view->first * LANES;
	uint32_t step = job->next ? 2 * CACHE_LINE_BYTES : 0;
	struct class_planes planes;
	struct code_half low, high;
	uint8_t *raw;

	memset(&planes, 0, sizeof(planes));
	memset(job->some_outside, 0, sizeof(job->some_outside));
	raw = code_verbatim(job, r, &planes);
	code_half_open(&low, job, 0, r);
	code_half_open(&high, job, 1, r);
	for (uint32_t t = view->first; t < tokens; t++) {
		__m512i fraction[2], classes;
		__m512i a = code_step(&low, row, r, has_delta, is_shaped, &fraction[0]);
		__m512i b =
		    code_step(&high, row + VECTOR_BYTES, r, has_delta, is_shaped, &fraction[1]);

		if (__builtin_expect(_mm512_cmpgt_epi16_mask(_mm512_max_epi16(a, b), top), 0)) {
			__mmask32 outside[2] = {_mm512_cmpgt_epi16_mask(a, top),
						_mm512_cmpgt_epi16_mask(b, top)};

			a = code_outside(&low, a, top, outside[0], &fraction[0]);
			b = code_outside(&high, b, top, outside[1], &fraction[1]);
			job->pack.outside[t] = (uint64_t)outside[1] << 32 | outside[0];
			job->some_outside[t / 64] |= UINT64_C(1) << t % 64;
		}
		low.error += (vuh)fraction[0] * (vuh)fraction[0];
		high.error += (vuh)fraction[1] * (vuh)fraction[1];
		classes = code_split(a, b, lanes, r, raw);
		_mm512_storeu_si512(classes_out, classes);
		class_planes_add(&planes, t, classes);
		if (t % PLANE_TOKENS == PLANE_TOKENS - 1) {
			code_half_sum(&low);
			code_half_sum(&high);
		}
		/* rows are too far apart for the processor to see them coming */
		__builtin_prefetch(row + CODE_AHEAD * row_bytes);
		__builtin_prefetch(row + CODE_AHEAD * row_bytes + CACHE_LINE_BYTES);
		__builtin_prefetch(next, 0, 2);
		__builtin_prefetch(next + CACHE_LINE_BYTES, 0, 2);
		row += row_bytes;
		classes_out += LANES;
		raw += 8 * r;
		next += step;
	}
	class_planes_finish(&planes, view->tokens, job->pack.count);
	code_half_sum(&low);
	code_half_sum(&high);
	wide_store(low.error_sum, square);
	wide_store(high.error_sum, square + COLUMN);
}

#define CODE_ROWS(r)                                     \
	case r:                                          \
		if (job->is_shaped && has_delta)         \
			code_rows(job, r, 1, 1, square); \
		else if (job->is_shaped)                 \
			code_rows(job, r, 0, 1, square); \
		else if (has_delta)                      \
			code_rows(job, r, 1, 0, square); \
		else                                     \
			code_rows(job, r, 0, 0, square); \
		break

void avx512_code(struct code_job *job)
{
	const double none[LANES] = {0};
	uint32_t square[LANES];
	int has_delta = 0;

	for (uint32_t i = 0; i < LANES; i++)
		has_delta |= job->pack.delta[i];
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
	measure_fractions(&job->measure, square, none);
}
