/* SPDX-License-Identifier: Apache-2.0 */
/*
 * write_template.h - elements to where they belong, in the vector operations of the file that
 * includes it. Whole cache lines go past the caches.
 */

INLINE int is_line(const void *p)
{
	return (uintptr_t)p % CACHE_LINE_BYTES == 0;
}

/* A run of `bytes`, a multiple of a cache line. */
INLINE void lines_copy(uint8_t *out, const uint8_t *in, uint32_t bytes, int is_staged)
{
	if (!is_staged && is_line(out)) {
		for (uint32_t i = 0; i < bytes; i += VEC_BYTES)
			v_stream(out + i, v_load(in + i));
		return;
	}
	for (uint32_t i = 0; i < bytes; i += VEC_BYTES)
		v_store(out + i, v_load(in + i));
}

INLINE void rows_write(const struct write_job *job, const uint32_t run_bytes)
{
	uint32_t step = run_bytes / job->element_bytes;

	for (uint32_t token = 0; token < job->tokens; token++) {
		const uint8_t *row = job->elements + (size_t)token * job->row_bytes;
		uint8_t *out = job->token[token];

		if (!out)
			continue;
		for (uint32_t p = 0; p < job->lanes; p += step, row += run_bytes)
			lines_copy(out + job->place[p], row, run_bytes, job->is_staged);
	}
}

#define VEC_WORDS (VEC_BYTES / 4)

/* A vector of one column; a whole cache line goes past the caches. */
INLINE void column_store(uint8_t *out, vec x)
{
	if (VEC_BYTES == CACHE_LINE_BYTES && is_line(out))
		v_stream(out, x);
	else
		v_store(out, x);
}

/* Columns of 4 bytes: VEC_WORDS tokens of VEC_WORDS columns, from in on. */
INLINE void columns4_block(const struct write_job *job, const uint8_t *in, uint8_t *out,
			   const uint32_t *place, uint32_t step)
{
	vec rows[VEC_WORDS];

#pragma GCC unroll 16
	for (uint32_t i = 0; i < VEC_WORDS; i++)
		rows[i] = v_load(in + (size_t)i * job->row_bytes);
	v_transpose(rows);
#pragma GCC unroll 16
	for (uint32_t i = 0; i < VEC_WORDS; i++)
		column_store(out + place[i * step], rows[i]);
}

/* Columns of 2 bytes: words of two tokens each are made first, then they are columns of 4. */
INLINE void columns2_block(const struct write_job *job, const uint8_t *in, uint8_t *out,
			   const uint32_t *place, uint32_t step, const uint32_t odd)
{
	const vec upper = v_set32(0xffff0000);
	vec rows[VEC_WORDS];

#pragma GCC unroll 16
	for (uint32_t i = 0; i < VEC_WORDS; i++) {
		vec first = v_load(in + (size_t)(2 * i) * job->row_bytes);
		vec second = v_load(in + (size_t)(2 * i + 1) * job->row_bytes);

		rows[i] =
		    odd ? v_uppers(first, second) : v_select(upper, v_shl32(second, 16), first);
	}
	v_transpose(rows);
#pragma GCC unroll 16
	for (uint32_t i = 0; i < VEC_WORDS; i++)
		column_store(out + place[(2 * i + odd) * step], rows[i]);
}

/* Tokens that fill vectors of columns; returns how many. */
INLINE uint32_t columns_write(const struct write_job *job, const uint32_t run_bytes)
{
	const uint32_t tokens = VEC_BYTES / run_bytes, step = run_bytes / job->element_bytes;
	const uint32_t row_bytes = job->lanes * job->element_bytes;
	uint32_t token = 0;

	if (row_bytes % VEC_BYTES)
		return 0;
	for (; token + tokens <= job->tokens; token += tokens) {
		uint8_t *out = job->token[token];

		for (uint32_t at = 0; at < row_bytes; at += VEC_BYTES) {
			const uint8_t *in = job->elements + (size_t)token * job->row_bytes + at;
			const uint32_t *place = job->place + at / job->element_bytes;

			if (run_bytes == 4) {
				columns4_block(job, in, out, place, step);
			} else {
				columns2_block(job, in, out, place, step, 0);
				columns2_block(job, in, out, place, step, 1);
			}
		}
	}
	return token;
}

static void transposed_write(const struct write_job *job)
{
	struct write_job rest = *job;
	uint32_t done = 0;

	if (job->run_bytes == 4)
		done = columns_write(job, 4);
	else if (job->run_bytes == 2)
		done = columns_write(job, 2);
	rest.elements += (size_t)done * job->row_bytes;
	rest.token += done;
	rest.tokens -= done;
	if (rest.tokens)
		scalar_write(&rest);
}

void LEVEL(write)(const struct write_job *job)
{
	if (job->is_transposed) {
		transposed_write(job);
		return;
	}
	switch (job->run_bytes) {
	case 64:
		rows_write(job, 64);
		break;
	case 128:
		rows_write(job, 128);
		break;
	case 256:
		rows_write(job, 256);
		break;
	default:
		scalar_write(job);
		break;
	}
}

void LEVEL(write_end)(void)
{
	v_stream_end();
}
