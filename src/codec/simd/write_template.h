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
INLINE void lines_copy(uint8_t *out, const uint8_t *in, uint32_t bytes)
{
	if (is_line(out)) {
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
			lines_copy(out + job->place[p], row, run_bytes);
	}
}

void LEVEL(write)(const struct write_job *job)
{
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
