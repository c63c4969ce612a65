/* SPDX-License-Identifier: Apache-2.0 */
/* slots.c - runs of adjacent slots; see slots.h. */
#include "base/slots.h"

#include <errno.h>

#define SLOT_INSIDE UINT32_MAX

void slots_init(struct slots *slots, uint8_t *memory, struct slot_state *states,
		uint64_t slot_bytes, uint32_t count)
{
	slots->memory = memory;
	slots->states = states;
	slots->slot_bytes = slot_bytes;
	slots->slots_count = count;
	slots->free_count = slots->free_low = count;
	slots->runs_count = 0;
	for (uint32_t i = 0; i < count; i++) {
		states[i].generation = 0;
		states[i].run = 0;
	}
}

static uint32_t slots_needed(const struct slots *slots, uint64_t bytes)
{
	uint64_t n = bytes / slots->slot_bytes + (bytes % slots->slot_bytes != 0);

	return n > UINT32_MAX ? UINT32_MAX : n == 0 ? 1 : (uint32_t)n;
}

/* The first of `need` adjacent free slots, or slots_count. */
static uint32_t slots_find(const struct slots *slots, uint32_t need)
{
	uint32_t i = 0, length = 0;

	while (i < slots->slots_count) {
		uint32_t run = slots->states[i].run;

		if (run) {
			ssv_assert(run != SLOT_INSIDE);
			i += run;
			length = 0;
			continue;
		}
		i++;
		if (++length == need)
			return i - need;
	}
	return slots->slots_count;
}

int slots_acquire(struct slots *slots, uint64_t bytes, struct slot_run *ret_run)
{
	uint32_t need = slots_needed(slots, bytes);
	uint32_t first;

	if (need > slots->slots_count)
		return -E2BIG;
	if (need > slots->free_count)
		return -EAGAIN;
	first = slots_find(slots, need);
	if (first == slots->slots_count)
		return -EAGAIN;
	for (uint32_t i = 1; i < need; i++) {
		ssv_assert(slots->states[first + i].run == 0);
		slots->states[first + i].run = SLOT_INSIDE;
	}
	slots->states[first].run = need;
	slots->states[first].generation++;
	slots->free_count -= need;
	if (slots->free_count < slots->free_low)
		slots->free_low = slots->free_count;
	slots->runs_count++;
	ret_run->first = first;
	ret_run->slots_count = need;
	ret_run->generation = slots->states[first].generation;
	return 0;
}

static void slots_check(const struct slots *slots, const struct slot_run *run)
{
	ssv_assert(run->slots_count > 0 && run->first < slots->slots_count);
	ssv_assert(slots->states[run->first].run == run->slots_count);
	ssv_assert(slots->states[run->first].generation == run->generation);
}

/* Free slots from..to of a run. */
static void slots_free(struct slots *slots, uint32_t from, uint32_t to)
{
	for (uint32_t i = from; i < to; i++)
		slots->states[i].run = 0;
	slots->free_count += to - from;
}

void slots_release(struct slots *slots, struct slot_run *run)
{
	if (run->slots_count == 0)
		return;
	slots_check(slots, run);
	slots_free(slots, run->first, run->first + run->slots_count);
	slots->runs_count--;
	run->slots_count = 0;
}

void slots_shrink(struct slots *slots, struct slot_run *run, uint64_t bytes)
{
	uint32_t keep = slots_needed(slots, bytes);

	slots_check(slots, run);
	if (keep >= run->slots_count)
		return;
	slots_free(slots, run->first + keep, run->first + run->slots_count);
	slots->states[run->first].run = keep;
	run->slots_count = keep;
}

uint8_t *slots_data(const struct slots *slots, const struct slot_run *run)
{
	slots_check(slots, run);
	return slots->memory + slots->slot_bytes * run->first;
}
