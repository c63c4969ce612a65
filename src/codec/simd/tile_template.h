/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tile_template.h - classes and raw bits to elements, in the vector operations of the file that
 * includes it.
 *
 * A lane's place follows from its number's two low bits (lanes.h): a 32-bit word of the row holds
 * two neighbours of the group's first half and two of its second. Integers are kept as 16-bit
 * numbers, even lanes apart from odd ones, so that offset and delta are an addition each; a word
 * shifted or masked is then an integer times 2^16, and the scales are made smaller by as much.
 * That changes no bit of the product: scales lie far from the smallest floats.
 */
#include <string.h>

#include "codec/float.h"
#include "codec/scalar.h"

struct quantiser {
	vec delta[2], constant[2], previous[2];
	vecf scale[4];
	vec is_odd[2], carry[2], middle; /* trellis: state, and what symbols count from */
};

INLINE void quantiser_load(struct quantiser *q, const struct tile_job *job, uint32_t index,
			   const int is_trellis)
{
	const struct tile_lanes *lane = job->lane;
	const vec middle = v_set32((uint32_t)(uint16_t) - (8 << job->raw_bits) * 0x10001u);
	const uint32_t halves = VEC_BYTES / 2;

	for (uint32_t i = 0; i < 2; i++) {
		uint32_t at = i * LANES / 2 + index * halves;

		q->delta[i] = v_load(lane->delta + at);
		q->previous[i] = v_load(lane->integer + at);
		q->constant[i] = v_select(q->delta[i], v_set32(0), v_load(lane->offset + at));
		if (!is_trellis) {
			q->constant[i] = v_add16(q->constant[i], middle);
			continue;
		}
		q->is_odd[i] = v_load(lane->is_odd + at);
		q->carry[i] = v_load(lane->carry + at);
	}
	q->middle = middle;
	for (uint32_t i = 0; i < 4; i++)
		q->scale[i] = v_mul(v_loadf(lane->scale + i * LANES / 4 + index * VEC_BYTES / 4),
				    v_setf(0x1p-16f));
}

INLINE void quantiser_store(const struct quantiser *q, struct tile_lanes *lane, uint32_t index)
{
	for (uint32_t i = 0; i < 2; i++)
		v_store(lane->integer + i * LANES / 2 + index * VEC_BYTES / 2, q->previous[i]);
}

INLINE void trellis_store(const struct quantiser *q, struct tile_lanes *lane, uint32_t index)
{
	for (uint32_t i = 0; i < 2; i++) {
		uint32_t at = i * LANES / 2 + index * VEC_BYTES / 2;

		v_store(lane->is_odd + at, q->is_odd[i]);
		v_store(lane->carry + at, q->carry[i]);
	}
}

/* What symbols add to their bases, of half the lanes (trellis.h): an odd quantiser takes the
 * symbol's sign away, which is the symbol held between -1 and 1. */
INLINE vec trellis_levels(struct quantiser *q, uint32_t half, vec symbol)
{
	const vec is_odd = q->is_odd[half], k = v_add16(symbol, q->middle);
	const vec sign = v_max16(v_min16(k, is_odd), v_sub16(v_set32(0), is_odd));

	q->is_odd[half] = v_xor(v_and(k, v_set32(0x00010001)), q->carry[half]);
	q->carry[half] = is_odd;
	return v_sub16(v_add16(k, k), sign);
}

/* Symbols to x, lanes 4i + k in x[k]. */
INLINE void quantiser_step(struct quantiser *q, vec even, vec odd, const int has_delta, vecf x[4])
{
	const vec upper = v_set32(0xffff0000);

	even = v_add16(even, q->constant[0]);
	odd = v_add16(odd, q->constant[1]);
	if (has_delta) {
		even = v_add16(even, v_and(q->previous[0], q->delta[0]));
		odd = v_add16(odd, v_and(q->previous[1], q->delta[1]));
		q->previous[0] = even;
		q->previous[1] = odd;
	}
	x[0] = v_mul(v_float(v_shl32(even, 16)), q->scale[0]);
	x[1] = v_mul(v_float(v_shl32(odd, 16)), q->scale[1]);
	x[2] = v_mul(v_float(v_and(even, upper)), q->scale[2]);
	x[3] = v_mul(v_float(v_and(odd, upper)), q->scale[3]);
}

/* Words of 16-bit elements: pairs of the first half and of the second; lanes in order if partial.
 */
INLINE void row16_store(uint8_t *row, uint32_t index, vec first, vec second, const int is_partial)
{
	if (!is_partial) {
		v_store(row + index * VEC_BYTES, first);
		v_store(row + LANES + index * VEC_BYTES, second);
		return;
	}
	v_zip32(first, second, &first, &second);
	v_store(row + 2 * index * VEC_BYTES, first);
	v_store(row + (2 * index + 1) * VEC_BYTES, second);
}

INLINE void row32_store(uint8_t *row, uint32_t index, const vecf x[4])
{
	vec low, high;

	for (uint32_t half = 0; half < 2; half++, row += 2 * LANES) {
		v_zip32(v_bits(x[2 * half]), v_bits(x[2 * half + 1]), &low, &high);
		v_store(row + 2 * index * VEC_BYTES, low);
		v_store(row + (2 * index + 1) * VEC_BYTES, high);
	}
}

/* x as 16-bit elements: words of the first half's pairs and of the second's. */
INLINE void words_of(const vecf x[4], const uint8_t dtype, vec *first, vec *second)
{
	const vec round = v_set32(0x8000);

	if (dtype == SSV_DTYPE_FP16) {
		*first = v_or(v_half(x[0]), v_shl32(v_half(x[1]), 16));
		*second = v_or(v_half(x[2]), v_shl32(v_half(x[3]), 16));
		return;
	}
	*first = v_uppers(v_add32(v_bits(x[0]), round), v_add32(v_bits(x[1]), round));
	*second = v_uppers(v_add32(v_bits(x[2]), round), v_add32(v_bits(x[3]), round));
}

/* What an inner loop has to do; each can do what those before it do, but for LOOKUP and JOIN. */
enum kind {
	KIND_LOOKUP1, /* elements straight from symbols below 32, 64, 128 */
	KIND_LOOKUP2,
	KIND_LOOKUP3,
	KIND_PLAIN, /* symbols below 256, no delta */
	KIND_DELTA,
	KIND_WIDE,    /* any raw bits */
	KIND_TRELLIS, /* raw bits as of KIND_DELTA */
	KIND_TRELLIS_WIDE,
	KIND_JOIN, /* lossless */
};

INLINE int is_trellis(const enum kind kind)
{
	return kind == KIND_TRELLIS || kind == KIND_TRELLIS_WIDE;
}

/* Rows of one group. */
struct maker {
	struct fields fields;
#if HAS_LOOKUP
	struct lookup lookup;
#endif
	struct quantiser quantiser;
	uint8_t upper[16], lower[16]; /* of exponents << 7 */
};

static enum kind kind_of(const struct tile_job *job)
{
	if (job->exponent)
		return KIND_JOIN;
	if (job->is_trellis)
		return job->raw_bits > 4 ? KIND_TRELLIS_WIDE : KIND_TRELLIS;
	if (job->raw_bits > 4)
		return KIND_WIDE;
	if (job->lane->has_delta)
		return KIND_DELTA;
#if HAS_LOOKUP
	if (job->lane->is_uniform && job->raw_bits <= LOOKUP_BITS_MAX)
		return job->raw_bits < 2 ? KIND_LOOKUP1 : (enum kind)(job->raw_bits - 1);
#endif
	return KIND_PLAIN;
}

INLINE vec bf16_words(vecf x)
{
	return v_shr32(v_add32(v_bits(x), v_set32(0x8000)), 16);
}

#if HAS_LOOKUP
INLINE void lookup_open(struct lookup *lookup, const struct tile_job *job, const uint32_t bits,
			const uint8_t dtype)
{
	const vecf scale = v_setf(job->lane->scale[0]);
	const uint32_t middle = 8u << job->raw_bits;

	for (uint32_t i = 0; i < 1u << (bits < 1 ? 1 : bits); i++) {
		vec n = v_add32(v_iota32(), v_set32(16 * i - middle));
		vecf x = v_mul(v_float(n), scale);

		lookup_set(lookup, i, dtype == SSV_DTYPE_FP16 ? v_half(x) : bf16_words(x));
	}
}

INLINE void lookup_row(const struct maker *m, vec class, const uint8_t *raw, const uint32_t bits,
		       vec *first, vec *second)
{
	vec symbol = v_symbols8(&m->fields, class, raw, bits < 2);

	*first = v_lookup16(&m->lookup, v_index16(symbol, 0), bits);
	*second = v_lookup16(&m->lookup, v_index16(symbol, 1), bits);
}
#endif

INLINE void maker_open(struct maker *m, const struct tile_job *job, uint32_t index,
		       const enum kind kind, const uint8_t dtype)
{
	if (kind == KIND_JOIN) {
		for (uint32_t i = 0; i < 16; i++) {
			m->upper[i] = job->exponent[i] >> 1;
			m->lower[i] = (uint8_t)(job->exponent[i] << 7);
		}
		return;
	}
	fields_open(&m->fields, job->raw_bits);
	(void)dtype;
#if HAS_LOOKUP
	if (kind < KIND_PLAIN) {
		lookup_open(&m->lookup, job, kind + 1u, dtype);
		return;
	}
#endif
	quantiser_load(&m->quantiser, job, index, is_trellis(kind));
}

INLINE void row_values(struct maker *m, vec class, const uint8_t *raw, uint32_t index,
		       const enum kind kind, vecf x[4])
{
	const int is_wide = kind == KIND_WIDE || kind == KIND_TRELLIS_WIDE;
	vec even, odd;

	v_symbols(&m->fields, class, raw, index, is_wide, &even, &odd);
	if (is_trellis(kind)) {
		even = trellis_levels(&m->quantiser, 0, even);
		odd = trellis_levels(&m->quantiser, 1, odd);
	}
	quantiser_step(&m->quantiser, even, odd, kind >= KIND_DELTA, x);
}

/* One row of a vector's lanes as 16-bit elements. */
INLINE void maker_words(struct maker *m, vec class, const uint8_t *raw, uint32_t index,
			const enum kind kind, const uint8_t dtype, vec *first, vec *second)
{
	const vec sign = v_set32(0x80808080);
	vecf x[4];

	if (kind == KIND_JOIN) {
		vec field = v_load(raw + index * VEC_BYTES);

		v_zip8(v_select(sign, v_table16(m->lower, class), field),
		       v_select(sign, field, v_table16(m->upper, class)), first, second);
#if HAS_LOOKUP
	} else if (kind < KIND_PLAIN) {
		lookup_row(m, class, raw, kind + 1u, first, second);
#endif
	} else {
		row_values(m, class, raw, index, kind, x);
		words_of(x, dtype, first, second);
	}
}

INLINE void maker_row(struct maker *m, vec class, const uint8_t *raw, uint8_t *row, uint32_t index,
		      const enum kind kind, const uint8_t dtype, const int is_partial)
{
	vec even, odd;
	vecf x[4];

	if (dtype == SSV_DTYPE_FP32) {
		row_values(m, class, raw, index, kind, x);
		row32_store(row, index, x);
		return;
	}
	maker_words(m, class, raw, index, kind, dtype, &even, &odd);
	row16_store(row, index, even, odd, is_partial);
}

INLINE void maker_close(const struct maker *m, const struct tile_job *job, uint32_t index,
			const enum kind kind)
{
	if (kind >= KIND_DELTA && kind < KIND_JOIN)
		quantiser_store(&m->quantiser, job->lane, index);
	if (is_trellis(kind))
		trellis_store(&m->quantiser, job->lane, index);
}

INLINE void tile_run(const struct tile_job *job, const enum kind kind, const uint8_t dtype,
		     const int is_partial)
{
	const uint32_t raw_bytes = (job->lanes * job->raw_bits + 7) / 8;

	for (uint32_t index = 0; index < ROW_VECS; index++) {
		const uint8_t *classes = job->classes + index * VEC_BYTES, *raw = job->raw;
		uint8_t *row = job->tile;
		struct maker m;

		maker_open(&m, job, index, kind, dtype);
		for (uint32_t token = 0; token < job->tokens; token++) {
			maker_row(&m, v_load(classes), raw, row, index, kind, dtype, is_partial);
			classes += LANES;
			raw += raw_bytes;
			row += LANES * (dtype == SSV_DTYPE_FP32 ? 4 : 2);
		}
		maker_close(&m, job, index, kind);
	}
}

INLINE void dequantise_dtype(const struct tile_job *job, const uint8_t dtype)
{
	if (job->lanes < LANES) {
		if (job->is_trellis)
			tile_run(job, KIND_TRELLIS_WIDE, dtype, 1);
		else
			tile_run(job, KIND_WIDE, dtype, 1);
		return;
	}
	switch (kind_of(job)) {
#if HAS_LOOKUP
	case KIND_LOOKUP1:
		tile_run(job, dtype == SSV_DTYPE_FP32 ? KIND_PLAIN : KIND_LOOKUP1, dtype, 0);
		break;
	case KIND_LOOKUP2:
		tile_run(job, dtype == SSV_DTYPE_FP32 ? KIND_PLAIN : KIND_LOOKUP2, dtype, 0);
		break;
	case KIND_LOOKUP3:
		tile_run(job, dtype == SSV_DTYPE_FP32 ? KIND_PLAIN : KIND_LOOKUP3, dtype, 0);
		break;
#endif
	case KIND_WIDE:
		tile_run(job, KIND_WIDE, dtype, 0);
		break;
	case KIND_TRELLIS:
		tile_run(job, KIND_TRELLIS, dtype, 0);
		break;
	case KIND_TRELLIS_WIDE:
		tile_run(job, KIND_TRELLIS_WIDE, dtype, 0);
		break;
	case KIND_DELTA:
		tile_run(job, KIND_DELTA, dtype, 0);
		break;
	default:
		tile_run(job, KIND_PLAIN, dtype, 0);
		break;
	}
}

void LEVEL(dequantise)(const struct tile_job *job)
{
	switch (job->dtype) {
	case SSV_DTYPE_BF16:
		dequantise_dtype(job, SSV_DTYPE_BF16);
		break;
	case SSV_DTYPE_FP16:
		dequantise_dtype(job, SSV_DTYPE_FP16);
		break;
	case SSV_DTYPE_FP32:
		if (job->lanes == LANES)
			dequantise_dtype(job, SSV_DTYPE_FP32);
		else
			scalar_dequantise(job);
		break;
	default:
		scalar_dequantise(job);
		break;
	}
}

void LEVEL(join)(const struct tile_job *job)
{
	if (job->dtype != SSV_DTYPE_BF16)
		scalar_join(job);
	else if (job->lanes == LANES)
		tile_run(job, KIND_JOIN, SSV_DTYPE_BF16, 0);
	else
		tile_run(job, KIND_JOIN, SSV_DTYPE_BF16, 1);
}
