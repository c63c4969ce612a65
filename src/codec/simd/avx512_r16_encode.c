/* SPDX-License-Identifier: Apache-2.0 */
/*
 * avx512_r16_encode.c - r16 encoding of level avx512: up to four streams take turns, token by
 * token, since one alone waits for its own states most of the time.
 *
 * A step of 64 lanes, 16 bits each: lanes whose state is f << 8 or more give a byte, then
 * x = (x / f) * 256 + x mod f + c. The quotient by multiplying with floor(2^16 / f) is right or one
 * too small: 2^16 / f loses less than 1, x < 2^16; f = 1 takes 2^16 - 1, for which it holds too.
 */
#include <immintrin.h>
#include <string.h>

#include "codec/scalar.h"
#include "codec/simd/encode.h"

#define INLINE static inline __attribute__((always_inline))

/* By class, twice: what vpermw looks up by a lane's class. */
struct group_tables {
	__m512i frequency, reciprocal, start;
};

struct stream {
	__m512i x[2]; /* states of lanes 0..31, 32..63 */
	uint8_t *next;
	const uint8_t *symbols; /* behind the token to be coded */
	struct group_tables tables;
	uint32_t group0, group; /* group: one behind the one to be coded */
};

static void tables_fill(struct group_tables *tables, const uint8_t frequency[16])
{
	_Alignas(64) uint16_t f[32], reciprocal[32], start[32];
	uint32_t sum = 0;

	for (uint32_t i = 0; i < 16; i++) {
		uint32_t own = frequency[i];

		f[i] = f[i + 16] = (uint16_t)own;
		reciprocal[i] = (uint16_t)(own > 1 ? 65536 / own : 65535);
		reciprocal[i + 16] = reciprocal[i];
		start[i] = start[i + 16] = (uint16_t)sum;
		sum += own;
	}
	tables->frequency = _mm512_load_si512(f);
	tables->reciprocal = _mm512_load_si512(reciprocal);
	tables->start = _mm512_load_si512(start);
}

/* The lanes that give a byte are marked and shifted. */
INLINE __m512i shift_out(__m512i x, __m512i f, __mmask32 *ret_gives)
{
	__m512i upper = _mm512_srli_epi16(x, 8);

	*ret_gives = _mm512_cmpge_epu16_mask(upper, f);
	return _mm512_mask_mov_epi16(x, *ret_gives, upper);
}

INLINE __m512i next_state(__m512i x, __m512i f, __m512i reciprocal, __m512i start)
{
	__m512i quotient = _mm512_mulhi_epu16(x, reciprocal);
	__m512i rest = _mm512_sub_epi16(x, _mm512_mullo_epi16(quotient, f));
	__mmask32 small = _mm512_cmpge_epu16_mask(rest, f);

	/* one more in the quotient: 256 more, f less */
	x = _mm512_add_epi16(_mm512_add_epi16(_mm512_slli_epi16(quotient, 8), rest), start);
	return _mm512_mask_add_epi16(x, small, x, _mm512_sub_epi16(_mm512_set1_epi16(256), f));
}

/* Code the token before stream->symbols. */
INLINE void stream_step(struct stream *s, __m512i low_bytes)
{
	__m512i symbols[2], f[2], bytes;
	__mmask32 gives[2];
	uint64_t all;
	uint32_t count;

	s->symbols -= LANES;
	bytes = _mm512_permutex2var_epi8(s->x[0], low_bytes, s->x[1]);
	for (uint32_t k = 0; k < 2; k++) {
		symbols[k] = _mm512_cvtepu8_epi16(
		    _mm256_loadu_si256((const __m256i *)(const void *)(s->symbols + 32 * k)));
		f[k] = _mm512_permutexvar_epi16(symbols[k], s->tables.frequency);
		s->x[k] = shift_out(s->x[k], f[k], &gives[k]);
	}
	all = (uint64_t)gives[1] << 32 | gives[0];
	count = (uint32_t)__builtin_popcountll(all);
	s->next -= count;
	_mm512_mask_storeu_epi8(s->next, _bzhi_u64(~0ull, count),
				_mm512_maskz_compress_epi8(all, bytes));
	for (uint32_t k = 0; k < 2; k++)
		s->x[k] = next_state(s->x[k], f[k],
				     _mm512_permutexvar_epi16(symbols[k], s->tables.reciprocal),
				     _mm512_permutexvar_epi16(symbols[k], s->tables.start));
}

/* Whole groups, one of each of some streams. */
INLINE void streams_group(struct stream *const *streams, const uint32_t count, uint32_t tokens)
{
	struct stream local[R16_STREAMS_MAX];
	_Alignas(64) uint8_t at[LANES];
	__m512i low_bytes;

	for (uint32_t i = 0; i < LANES; i++)
		at[i] = (uint8_t)(2 * i);
	low_bytes = _mm512_load_si512(at);
	for (uint32_t k = 0; k < count; k++)
		local[k] = *streams[k];
	for (uint32_t t = 0; t < tokens; t++)
		for (uint32_t k = 0; k < count; k++)
			stream_step(&local[k], low_bytes);
	for (uint32_t k = 0; k < count; k++)
		*streams[k] = local[k];
}

static void streams_run(struct stream *const *streams, uint32_t count, uint32_t tokens)
{
	switch (count) {
	case 4:
		streams_group(streams, 4, tokens);
		break;
	case 3:
		streams_group(streams, 3, tokens);
		break;
	case 2:
		streams_group(streams, 2, tokens);
		break;
	default:
		streams_group(streams, 1, tokens);
		break;
	}
}

/* The last group of the last stream may be partial: it comes first. */
static void stream_partial(struct stream *s, const struct r16_encode_job *job, uint16_t x[LANES])
{
	if (s->group == s->group0 || plane_lanes(job->plane, s->group - 1) == LANES)
		return;
	s->group--;
	s->next = scalar_r16_encode_group(job->plane, s->group,
					  job->frequency + (size_t)s->group * 16, x, s->next);
}

void avx512_r16_encode(struct r16_encode_job *job)
{
	const struct class_plane *plane = job->plane;
	struct stream streams[R16_STREAMS_MAX], *some[R16_STREAMS_MAX];
	uint32_t count;
	uint16_t x[LANES];

	for (uint32_t k = 0; k < job->streams_count; k++) {
		struct stream *s = &streams[k];

		s->group0 = stream_group0(k, job->streams_count, plane->groups_count);
		s->group = stream_group0(k + 1, job->streams_count, plane->groups_count);
		s->next = r16_encode_begin(x, job->end[k]);
		stream_partial(s, job, x);
		s->x[0] = _mm512_loadu_si512(x);
		s->x[1] = _mm512_loadu_si512(x + 32);
	}
	do {
		count = 0;
		for (uint32_t k = 0; k < job->streams_count; k++) {
			struct stream *s = &streams[k];

			if (s->group == s->group0)
				continue;
			s->group--;
			s->symbols = plane_group(plane, s->group) + (size_t)plane->tokens * LANES;
			tables_fill(&s->tables, job->frequency + (size_t)s->group * 16);
			some[count++] = s;
		}
		if (count)
			streams_run(some, count, plane->tokens);
	} while (count);
	for (uint32_t k = 0; k < job->streams_count; k++) {
		_mm512_storeu_si512(x, streams[k].x[0]);
		_mm512_storeu_si512(x + 32, streams[k].x[1]);
		job->begin[k] = r16_encode_finish(x, streams[k].next);
	}
}
