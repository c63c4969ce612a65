/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_slots.c - slot pool, arena and wake-up words: a pool of runs against a plain model, random
 * acquires, shrinks and releases; SSV_SEED replays.
 */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/slots.h"
#include "base/wake.h"

#define SLOTS 24u
#define RUNS  32u

static uint64_t next_random(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static void run_takes_adjacent_slots_and_limits_are_told_apart(void **state)
{
	static uint8_t memory[SLOTS * 64];
	struct slot_state states[SLOTS];
	struct slots slots;
	struct slot_run a = {0}, b = {0}, c = {0};

	(void)state;
	slots_init(&slots, memory, states, 64, SLOTS);
	assert_int_equal(slots_acquire(&slots, 65, &a), 0);
	assert_int_equal(a.slots_count, 2);
	assert_int_equal(slots_acquire(&slots, 64 * 22, &b), 0);
	assert_int_equal(slots_acquire(&slots, 1, &c), -EAGAIN);
	assert_int_equal(slots_acquire(&slots, 64 * SLOTS + 1, &c), -E2BIG);
	assert_ptr_equal(slots_data(&slots, &b), memory + 128);
	slots_shrink(&slots, &b, 64 * 20 + 1);
	assert_int_equal(b.slots_count, 21);
	assert_int_equal(slots_acquire(&slots, 1, &c), 0);
	assert_int_equal(slots_acquire(&slots, 1, &c), -EAGAIN);
	slots_release(&slots, &a);
	assert_int_equal(a.slots_count, 0);
	slots_release(&slots, &a); /* an empty run */
	assert_int_equal(slots.free_count, 2);
}

/* One step of the model: acquire, shrink or release run k; owner[] says who holds each slot. */
static void model_step(struct slots *slots, struct slot_run *runs, uint8_t *owner, uint64_t *seed)
{
	uint32_t k = (uint32_t)(next_random(seed) % RUNS);
	uint64_t bytes = next_random(seed) % (64 * 6);
	uint32_t held = runs[k].slots_count;

	if (held && next_random(seed) % 3 == 0) {
		slots_shrink(slots, &runs[k], bytes);
		for (uint32_t i = runs[k].slots_count; i < held; i++)
			owner[runs[k].first + i] = 0;
	} else if (held) {
		for (uint32_t i = 0; i < held; i++)
			owner[runs[k].first + i] = 0;
		slots_release(slots, &runs[k]);
	} else if (slots_acquire(slots, bytes, &runs[k]) == 0) {
		for (uint32_t i = 0; i < runs[k].slots_count; i++) {
			assert_int_equal(owner[runs[k].first + i], 0);
			owner[runs[k].first + i] = (uint8_t)(k + 1);
		}
	}
}

static void random_runs_never_share_a_slot(void **state)
{
	static uint8_t memory[SLOTS * 64];
	const char *text = getenv("SSV_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : 7;
	struct slot_state states[SLOTS];
	struct slot_run runs[RUNS] = {{0}};
	uint8_t owner[SLOTS] = {0};
	struct slots slots;

	(void)state;
	print_message("seed %llu\n", (unsigned long long)seed);
	slots_init(&slots, memory, states, 64, SLOTS);
	for (int i = 0; i < 20000; i++) {
		uint32_t free_count = 0;

		model_step(&slots, runs, owner, &seed);
		for (uint32_t k = 0; k < SLOTS; k++)
			free_count += owner[k] == 0;
		assert_int_equal(free_count, slots.free_count);
	}
}

static void arena_carves_aligned_zeroed_pieces_until_full(void **state)
{
	struct arena arena = {0};
	uint8_t *a, *b;

	(void)state;
	assert_int_equal(arena_create(&arena, 64 * KIB, 0, 0), 0);
	a = arena_carve(&arena, 100, 64);
	b = arena_carve(&arena, 4096, 4096);
	assert_non_null(a);
	assert_non_null(b);
	assert_int_equal((uintptr_t)b % 4096, 0);
	for (int i = 0; i < 4096; i++)
		assert_int_equal(b[i], 0);
	assert_int_equal(arena_left(&arena), 64 * KIB - 8192);
	assert_null(arena_carve(&arena, 64 * KIB, 1));
	assert_non_null(arena_carve(&arena, 64 * KIB - 8192, 1));
	arena_destroy(&arena);
	arena_destroy(&arena);
}

static void signal_reaches_a_sleeper_and_costs_nothing_when_awake(void **state)
{
	struct pollfd pollfd = {.events = POLLIN};
	struct wake wake;

	(void)state;
	assert_int_equal(wake_init(&wake), 0);
	pollfd.fd = wake.fd;
	wake_begin(&wake);
	wake_signal(&wake);
	assert_int_equal(poll(&pollfd, 1, 0), 0);
	assert_int_equal(wake_may_sleep(&wake), 0); /* signalled meanwhile: look again */
	wake_begin(&wake);
	assert_int_equal(wake_may_sleep(&wake), 1);
	wake_signal(&wake);
	assert_int_equal(poll(&pollfd, 1, 0), 1);
	wake_begin(&wake);
	assert_int_equal(poll(&pollfd, 1, 0), 0);
	wake_fini(&wake);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(run_takes_adjacent_slots_and_limits_are_told_apart),
	    cmocka_unit_test(random_runs_never_share_a_slot),
	    cmocka_unit_test(arena_carves_aligned_zeroed_pieces_until_full),
	    cmocka_unit_test(signal_reaches_a_sleeper_and_costs_nothing_when_awake),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
