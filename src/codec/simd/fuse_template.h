/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuse_template.h - r16 streams to bf16 elements in one loop, in the vector operations of the file
 * that includes it.
 *
 * r16 waits for itself most of the time, making elements never does, and storing waits for memory:
 * in one loop they overlap. The rows of the strip before, to which exceptions have been merged
 * meanwhile, are written as this strip's are made.
 */

/* Write a row of the strip before. */
INLINE void behind_row(const uint8_t *row, uint8_t *out, const uint32_t *place,
		       const uint32_t count)
{
	if (!out)
		return;
#pragma GCC unroll 4
	for (uint32_t k = 0; k < count; k++)
		for (uint32_t i = 0; i < FUSED_GROUP_BYTES; i += VEC_BYTES)
			v_stream(out + place[k] + i, v_load(row + k * FUSED_GROUP_BYTES + i));
}

INLINE void fused_run(const struct fused_strip *strip, const uint32_t count, const enum kind kind)
{
	const struct r16_strip *r16 = &strip->r16;
	const struct r16_table *tables = r16->table;
	const uint8_t *end[R16_STREAMS_MAX], *raw[R16_STREAMS_MAX], *behind = strip->behind;
	uint8_t *const *token = strip->behind_token, *const * behind_end;
	uint32_t raw_bytes[R16_STREAMS_MAX];
	struct lanes lanes[R16_STREAMS_MAX];
	struct maker makers[R16_STREAMS_MAX];
	uint8_t *row = strip->rows, *row_end = row + (size_t)r16->tokens * FUSED_ROW_BYTES;

#pragma GCC unroll 4
	for (uint32_t k = 0; k < count; k++) {
		lanes_load(&lanes[k], r16->stream[k]);
		maker_open(&makers[k], strip->tile[k], 0, kind, SSV_DTYPE_BF16);
		end[k] = r16->stream[k]->end;
		raw[k] = strip->tile[k]->raw;
		raw_bytes[k] = strip->tile[k]->raw_bits * (LANES / 8);
	}
	behind_end = token + strip->behind_tokens;
	for (; row < row_end; row += FUSED_ROW_BYTES) {
#pragma GCC unroll 4
		for (uint32_t k = 0; k < count; k++) {
			vec class[ROW_VECS];

			lanes_step(&lanes[k], &tables[k], class, 0, 0);
			maker_row(&makers[k], class[0], raw[k], row + k * FUSED_GROUP_BYTES, 0,
				  kind, SSV_DTYPE_BF16, 0);
			raw[k] += raw_bytes[k];
			lanes_hold(&lanes[k], end[k], r16->stream[k]);
		}
		if (token < behind_end) {
			behind_row(behind, *token++, strip->place, count);
			behind += FUSED_ROW_BYTES;
		}
	}
	for (; token < behind_end; behind += FUSED_ROW_BYTES)
		behind_row(behind, *token++, strip->place, count);
#pragma GCC unroll 4
	for (uint32_t k = 0; k < count; k++) {
		lanes_store(&lanes[k], r16->stream[k]);
		maker_close(&makers[k], strip->tile[k], 0, kind);
	}
}

/* Many combinations, each a loop of its own. */
#define FUSED(kind)                                                                         \
	static __attribute__((noinline)) void fused_##kind(const struct fused_strip *strip) \
	{                                                                                   \
		switch (strip->r16.streams_count) {                                         \
		case 1:                                                                     \
			fused_run(strip, 1, kind);                                          \
			break;                                                              \
		case 2:                                                                     \
			fused_run(strip, 2, kind);                                          \
			break;                                                              \
		case 3:                                                                     \
			fused_run(strip, 3, kind);                                          \
			break;                                                              \
		default:                                                                    \
			fused_run(strip, 4, kind);                                          \
			break;                                                              \
		}                                                                           \
	}

FUSED(KIND_LOOKUP1)
FUSED(KIND_LOOKUP2)
FUSED(KIND_LOOKUP3)
FUSED(KIND_PLAIN)
FUSED(KIND_DELTA)
FUSED(KIND_WIDE)
FUSED(KIND_JOIN)

void LEVEL(fused)(const struct fused_strip *strip)
{
	static void (*const loops[])(const struct fused_strip *) = {
	    [KIND_LOOKUP1] = fused_KIND_LOOKUP1, [KIND_LOOKUP2] = fused_KIND_LOOKUP2,
	    [KIND_LOOKUP3] = fused_KIND_LOOKUP3, [KIND_PLAIN] = fused_KIND_PLAIN,
	    [KIND_DELTA] = fused_KIND_DELTA,     [KIND_WIDE] = fused_KIND_WIDE,
	    [KIND_JOIN] = fused_KIND_JOIN,
	};
	enum kind kind = KIND_LOOKUP1;

	/* groups of other kinds go with the one that can do the most */
	for (uint32_t k = 0; k < strip->r16.streams_count; k++) {
		enum kind of = kind_of(strip->tile[k]);

		kind = of > kind ? of : kind;
	}
	loops[kind](strip);
}
