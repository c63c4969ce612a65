/* SPDX-License-Identifier: Apache-2.0 */
/* trace.c - reading a ring that is being written; see trace.h for why this is sound. */
#include "base/trace.h"

#include <string.h>

static void slot_read(const struct trace_slot *slot, struct trace_event *event)
{
	const uint64_t third = trace_word_get(&slot->words[2]);

	event->start_ns = trace_word_get(&slot->words[0]);
	event->span = trace_word_get(&slot->words[1]);
	event->request = (uint32_t)third;
	event->piece = (uint16_t)(third >> 32);
	event->detail = (uint16_t)(third >> 48);
	event->value = trace_word_get(&slot->words[3]);
}

uint32_t trace_read(const struct trace *trace, uint64_t from, struct trace_event *events,
		    uint32_t max, uint64_t *ret_first)
{
	const uint64_t size = trace->slots_count;
	uint64_t head = trace_head(trace), first = from, lost;
	uint32_t n;

	if (head > size && first < head - size)
		first = head - size;
	*ret_first = first;
	if (!trace->slots || first >= head)
		return 0;
	n = (uint32_t)u64_min(max, head - first);
	for (uint32_t i = 0; i < n; i++)
		slot_read(&trace->slots[(first + i) & (size - 1)], &events[i]);
	/* Event `head` may be half written: its slot was event head - size. */
	head = trace_head(trace);
	lost = head >= size && first <= head - size ? head - size + 1 - first : 0;
	lost = u64_min(lost, n);
	memmove(events, events + lost, (n - lost) * sizeof(*events));
	*ret_first = first + lost;
	return n - (uint32_t)lost;
}
