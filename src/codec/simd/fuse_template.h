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

INLINE void fused_run(const struct fused_job *job, const uint32_t count, const enum kind kind)
{
	const struct r16_table *tables = job->r16.table;
	const uint8_t *end[R16_STREAMS_MAX], *raw[R16_STREAMS_MAX];
	const struct patch *patch[R16_STREAMS_MAX];
	uint32_t raw_bytes[R16_STREAMS_MAX], place[R16_STREAMS_MAX];
	struct lanes lanes[R16_STREAMS_MAX];
	struct maker makers[R16_STREAMS_MAX];

#pragma GCC unroll 4
	for (uint32_t k = 0; k < count; k++) {
		lanes_load(&lanes[k], job->r16.stream[k]);
		maker_open(&makers[k], job->tile[k], 0, kind, SSV_DTYPE_BF16);
		end[k] = job->r16.stream[k]->end;
		raw[k] = job->tile[k]->raw;
		raw_bytes[k] = job->tile[k]->raw_bits * (LANES / 8);
		patch[k] = job->patch[k];
		place[k] = job->place[k];
	}
	for (uint32_t token = 0; token < job->r16.tokens; token++) {
		uint8_t *out = job->token[token];

#pragma GCC unroll 4
		for (uint32_t k = 0; k < count; k++) {
			vec class[ROW_VECS], first, second;

			lanes_step(&lanes[k], &tables[k], class, 0, 0);
			maker_words(&makers[k], class[0], raw[k], 0, kind, SSV_DTYPE_BF16, &first,
				    &second);
			raw[k] += raw_bytes[k];
			lanes_hold(&lanes[k], end[k], job->r16.stream[k]);
			if (__builtin_expect(patch[k]->token == token, 0))
				patch[k] = row_patch(patch[k], token, &first, &second);
			if (out) {
				v_stream(out + place[k], first);
				v_stream(out + place[k] + VEC_BYTES, second);
			}
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
FUSED(KIND_PLAIN)
FUSED(KIND_DELTA)
FUSED(KIND_WIDE)
FUSED(KIND_JOIN)

void LEVEL(fused)(const struct fused_job *job)
{
	static void (*const loops[])(const struct fused_job *) = {
	    [KIND_LOOKUP1] = fused_KIND_LOOKUP1, [KIND_LOOKUP2] = fused_KIND_LOOKUP2,
	    [KIND_LOOKUP3] = fused_KIND_LOOKUP3, [KIND_PLAIN] = fused_KIND_PLAIN,
	    [KIND_DELTA] = fused_KIND_DELTA,     [KIND_WIDE] = fused_KIND_WIDE,
	    [KIND_JOIN] = fused_KIND_JOIN,
	};
	enum kind kind = KIND_LOOKUP1;

	/* groups of other kinds go with the one that can do the most */
	for (uint32_t k = 0; k < job->r16.streams_count; k++) {
		enum kind of = kind_of(job->tile[k]);

		kind = of > kind ? of : kind;
	}
	loops[kind](job);
}
