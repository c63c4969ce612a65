/* SPDX-License-Identifier: Apache-2.0 */
/*
 * r16_template.h - r16 decoding, in the vector operations of the file that includes it.
 *
 * The steps of several streams stand side by side in one loop: each is a chain of dependent
 * operations, and only other streams fill its waits. The read pointer is held at the stream's end
 * after every step, as the reference does.
 */
#include <errno.h>
#include <string.h>

/* A stream, in registers. */
struct lanes {
	vec low[ROW_VECS], high[ROW_VECS];
	const uint8_t *next;
};

INLINE void lanes_load(struct lanes *s, const struct r16_stream *stream)
{
	for (uint32_t i = 0; i < ROW_VECS; i++) {
		s->low[i] = v_load(stream->low + i * VEC_BYTES);
		s->high[i] = v_load(stream->high + i * VEC_BYTES);
	}
	s->next = stream->next;
}

INLINE void lanes_store(const struct lanes *s, struct r16_stream *stream)
{
	for (uint32_t i = 0; i < ROW_VECS; i++) {
		v_store(stream->low + i * VEC_BYTES, s->low[i]);
		v_store(stream->high + i * VEC_BYTES, s->high[i]);
	}
	stream->next = s->next;
}

/* One step, to the classes of a row; active: lanes of a partial group. */
INLINE void lanes_step(struct lanes *s, const struct r16_table *table, vec classes[ROW_VECS],
		       uint64_t active, const int is_partial)
{
	for (uint32_t i = 0; i < ROW_VECS; i++, active >>= VEC_BYTES % 64) {
		vec owner = v_owner(table, s->low[i]);
		vec rest = v_sub8(s->low[i], v_table16(table->start, owner));
		vec low, high;

		classes[i] = owner;
		v_state(v_table16(table->frequency, owner), s->high[i], rest, &low, &high);
		if (is_partial) {
			low = v_choose(active, low, s->low[i]);
			high = v_choose(active, high, s->high[i]);
		}
		s->next = v_refill(&low, &high, s->next, is_partial ? active : UINT64_MAX);
		s->low[i] = low;
		s->high[i] = high;
	}
}

INLINE void classes_store(uint8_t *to, const vec classes[ROW_VECS])
{
	for (uint32_t i = 0; i < ROW_VECS; i++)
		v_store(to + i * VEC_BYTES, classes[i]);
}

/* Hold the read pointer at the stream's end. Checked by a branch: it is taken in damaged streams
 * alone, and nothing waits for it. */
INLINE void lanes_hold(struct lanes *s, const uint8_t *end, struct r16_stream *stream)
{
	if (__builtin_expect(s->next > end, 0)) {
		s->next = end;
		stream->over = 1;
	}
}

INLINE void strip_run(const struct r16_strip *strip, const uint32_t count)
{
	const struct r16_table *tables = strip->table;
	const uint8_t *end[R16_STREAMS_MAX];
	uint8_t *classes[R16_STREAMS_MAX];
	struct lanes lanes[R16_STREAMS_MAX];

#pragma GCC unroll 4
	for (uint32_t k = 0; k < count; k++) {
		lanes_load(&lanes[k], strip->stream[k]);
		end[k] = strip->stream[k]->end;
		classes[k] = strip->classes[k];
	}
	for (size_t at = 0; at < (size_t)strip->tokens * LANES; at += LANES) {
#pragma GCC unroll 4
		for (uint32_t k = 0; k < count; k++) {
			vec row[ROW_VECS];

			lanes_step(&lanes[k], &tables[k], row, 0, 0);
			classes_store(classes[k] + at, row);
			lanes_hold(&lanes[k], end[k], strip->stream[k]);
		}
	}
#pragma GCC unroll 4
	for (uint32_t k = 0; k < count; k++)
		lanes_store(&lanes[k], strip->stream[k]);
}

/* The stream of a partial group alone: its idle lanes are not stepped. */
static void strip_run_partial(const struct r16_strip *strip, uint32_t k)
{
	struct r16_stream *stream = strip->stream[k];
	uint64_t active = (UINT64_C(1) << strip->lanes[k]) - 1;
	struct lanes lanes;

	lanes_load(&lanes, stream);
	for (size_t at = 0; at < (size_t)strip->tokens * LANES; at += LANES) {
		vec classes[ROW_VECS];

		lanes_step(&lanes, &strip->table[k], classes, active, 1);
		classes_store(strip->classes[k] + at, classes);
		lanes_hold(&lanes, stream->end, stream);
	}
	lanes_store(&lanes, stream);
}

/* A partial group is its entry's last, and so in the last stream. */
void LEVEL(r16_strip)(const struct r16_strip *strip)
{
	uint32_t full = strip->streams_count;

	if (full && strip->lanes[full - 1] < LANES)
		strip_run_partial(strip, --full);
	switch (full) {
	case 0:
		break;
	case 1:
		strip_run(strip, 1);
		break;
	case 2:
		strip_run(strip, 2);
		break;
	case 3:
		strip_run(strip, 3);
		break;
	default:
		strip_run(strip, 4);
		break;
	}
}

/* Slots of each class, by owner; bounds of the upper half bytes where a level looks owners up so.
 */
int LEVEL(r16_table)(struct r16_table *table, const uint8_t frequency[16])
{
	uint32_t slot = 0;

	for (uint32_t s = 0; s < 16; s++) {
		uint32_t f = frequency[s];

		if (f > 256 - slot)
			return -EBADMSG;
		table->frequency[s] = frequency[s];
		table->start[s] = (uint8_t)slot;
#if R16_NEEDS_SYMBOL
		/* what passes f belongs to the next, or to the bytes behind the table */
		for (uint32_t i = 0; i < f; i += VEC_BYTES)
			v_store(table->symbol + slot + i, v_set32(s * 0x01010101u));
#endif
		slot += f;
	}
	if (slot != 256)
		return -EBADMSG;
#if !R16_NEEDS_SYMBOL
	table_bounds(table);
#endif
	return 0;
}
