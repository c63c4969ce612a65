/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuse_template.h - r16 streams to bf16 elements at their targets in one loop, in the vector
 * operations of the file that includes it, for levels where a row is one vector.
 *
 * r16 waits for itself most of the time, making elements never does, and storing waits for memory:
 * in one loop they overlap. A row goes past the caches as it is made, so what replaces some of its
 * elements is put into it before.
 */

/* Replace the row's elements that the next patches name, in registers: a load would wait for all
 * stores before it. */
INLINE const struct patch *row_patch(const struct patch *patch, uint32_t token, vec *first,
				     vec *second)
{
	do {
		v_patch16(first, second, patch->place, patch->element);
		patch++;
	} while (patch->token == token);
	return patch;
}

/* What makes rows of one group. The kinds up to KIND_DELTA are one here, with one scale a group. */
struct row_maker {
	struct maker maker;
	struct chain chain;
};

static enum kind fused_kind_of(const struct tile_job *job)
{
	enum kind kind = kind_of(job);

	if (kind == KIND_PLAIN || kind == KIND_DELTA)
		return job->lane->has_one_scale ? KIND_DELTA : KIND_WIDE;
	return kind == KIND_TRELLIS ? KIND_TRELLIS_WIDE : kind;
}

INLINE void row_open(struct row_maker *m, const struct tile_job *job, const enum kind kind)
{
	if (kind == KIND_DELTA)
		chain_open(&m->chain, job);
	else
		maker_open(&m->maker, job, 0, kind, SSV_DTYPE_BF16);
}

INLINE void row_words(struct row_maker *m, vec class, const uint8_t *raw, const enum kind kind,
		      vec *first, vec *second)
{
	if (kind == KIND_DELTA)
		chain_step(&m->chain, class, raw, first, second);
	else
		maker_words(&m->maker, class, raw, 0, kind, SSV_DTYPE_BF16, first, second);
}

INLINE void row_stream(uint8_t *to, vec first, vec second)
{
	v_stream(to, first);
	v_stream(to + VEC_BYTES, second);
}

/* A finished row of stream k to its target, if it has one, or for every second stream to `held`. */
INLINE void row_put(const struct fused_job *job, const uint32_t k, uint8_t *held, uint8_t *out,
		    vec first, vec second)
{
	if (k % 2 && job->stores_held && out)
		row_stream(out + job->held_place[k], v_load(held), v_load(held + VEC_BYTES));
	if (k % 2 && job->holds) {
		v_store(held, first);
		v_store(held + VEC_BYTES, second);
	} else if (out && job->is_staged) {
		v_store(out + job->place[k], first);
		v_store(out + job->place[k] + VEC_BYTES, second);
	} else if (out) {
		row_stream(out + job->place[k], first, second);
	}
}

INLINE void fused_run(const struct fused_job *job, const uint32_t count, const enum kind kind)
{
	const struct r16_table *tables = job->r16.table;
	const uint8_t *end[R16_STREAMS_MAX], *raw[R16_STREAMS_MAX];
	const struct patch *patch[R16_STREAMS_MAX];
	uint32_t raw_bytes[R16_STREAMS_MAX];
	struct lanes lanes[R16_STREAMS_MAX];
	struct row_maker makers[R16_STREAMS_MAX];
	uint8_t *held = job->held;
	const uint32_t soon_lines = job->soon_lines;
	const uint8_t *soon = job->soon;

#pragma GCC unroll 4
	for (uint32_t k = 0; k < count; k++) {
		lanes_load(&lanes[k], job->r16.stream[k]);
		row_open(&makers[k], job->tile[k], kind);
		end[k] = job->r16.stream[k]->end;
		raw[k] = job->tile[k]->raw;
		raw_bytes[k] = job->tile[k]->raw_bits * (LANES / 8);
		patch[k] = job->patch[k];
	}
	for (uint32_t token = 0; token < job->r16.tokens; token++) {
		uint8_t *out = job->token[token];
		uint8_t *kept = held;

		held += R16_STREAMS_MAX / 2 * FUSED_ROW_BYTES;
		for (uint32_t i = 0; i < soon_lines; i++, soon += CACHE_LINE_BYTES)
			__builtin_prefetch(soon, 0, 2);

#pragma GCC unroll 4
		for (uint32_t k = 0; k < count; k++) {
			vec class[ROW_VECS], first, second;

			lanes_step(&lanes[k], &tables[k], class, 0, 0);
			row_words(&makers[k], class[0], raw[k], kind, &first, &second);
			raw[k] += raw_bytes[k];
			lanes_hold(&lanes[k], end[k], job->r16.stream[k]);
			if (__builtin_expect(patch[k]->token == token, 0))
				patch[k] = row_patch(patch[k], token, &first, &second);
			row_put(job, k, kept + k / 2 * FUSED_ROW_BYTES, out, first, second);
		}
	}
#pragma GCC unroll 4
	for (uint32_t k = 0; k < count; k++)
		lanes_store(&lanes[k], job->r16.stream[k]);
}

/* Many combinations, each a loop of its own. */
#define FUSED(kind)                                                                     \
	static __attribute__((noinline)) void fused_##kind(const struct fused_job *job) \
	{                                                                               \
		switch (job->r16.streams_count) {                                       \
		case 1:                                                                 \
			fused_run(job, 1, kind);                                        \
			break;                                                          \
		case 2:                                                                 \
			fused_run(job, 2, kind);                                        \
			break;                                                          \
		case 3:                                                                 \
			fused_run(job, 3, kind);                                        \
			break;                                                          \
		default:                                                                \
			fused_run(job, 4, kind);                                        \
			break;                                                          \
		}                                                                       \
	}

FUSED(KIND_LOOKUP1)
FUSED(KIND_LOOKUP2)
FUSED(KIND_LOOKUP3)
FUSED(KIND_DELTA)
FUSED(KIND_WIDE)
FUSED(KIND_TRELLIS_WIDE)
FUSED(KIND_JOIN)

void LEVEL(fused)(const struct fused_job *job)
{
	static void (*const loops[])(const struct fused_job *) = {
	    [KIND_LOOKUP1] = fused_KIND_LOOKUP1, [KIND_LOOKUP2] = fused_KIND_LOOKUP2,
	    [KIND_LOOKUP3] = fused_KIND_LOOKUP3, [KIND_DELTA] = fused_KIND_DELTA,
	    [KIND_WIDE] = fused_KIND_WIDE,       [KIND_TRELLIS_WIDE] = fused_KIND_TRELLIS_WIDE,
	    [KIND_JOIN] = fused_KIND_JOIN,
	};
	enum kind kind = KIND_LOOKUP1;

	/* groups of other kinds go with the one that can do the most */
	for (uint32_t k = 0; k < job->r16.streams_count; k++) {
		enum kind of = fused_kind_of(job->tile[k]);

		kind = of > kind ? of : kind;
	}
	loops[kind](job);
}
