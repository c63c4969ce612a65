/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_threads.c - the plane as the daemon runs it: real worker threads that sleep on their
 * descriptors, real time, a memory store. ThreadSanitizer judges rings, wake-ups and counters; the
 * test judges that nothing is lost and every byte is right.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "rig.h"

#define WORKERS 3u
#define ROUNDS  40u

static atomic_int stop;

struct thread {
	pthread_t thread;
	struct plane *plane;
	uint32_t index;
};

static int sleep_ms(uint64_t wake_ns)
{
	uint64_t now_ns = clock_now_ns();

	if (wake_ns <= now_ns)
		return 0;
	return (int)u64_min((wake_ns - now_ns) / NS_PER_MS + 1, 100);
}

static void *work(void *context)
{
	struct thread *thread = context;

	/* Pairs with the release in the test's end. */
	while (!atomic_load_explicit(&stop, memory_order_acquire)) {
		struct pollfd fds[16];
		uint64_t wake_ns;
		uint32_t n;

		if (plane_worker_step(thread->plane, thread->index, clock_now_ns(), &wake_ns))
			continue;
		n = plane_worker_pollfds(thread->plane, thread->index, fds, 16);
		poll(fds, n, sleep_ms(wake_ns));
	}
	return NULL;
}

/* Step control until a completion comes. */
static struct ssv_completion wait_completion(struct rig *rig)
{
	struct pollfd pollfd = {.fd = plane_control_fd(rig->plane), .events = POLLIN};
	struct plane_event event;
	uint64_t limit_ns = clock_now_ns() + 20 * NS_PER_S;

	for (;;) {
		if (plane_poll(rig->plane, &event, 1)) {
			assert_int_equal(event.kind, PLANE_EVENT_COMPLETION);
			return event.completion;
		}
		if (clock_now_ns() > limit_ns)
			fail_msg("no completion");
		if (!plane_step(rig->plane, clock_now_ns()))
			poll(&pollfd, 1, sleep_ms(plane_next_ns(rig->plane)));
	}
}

static struct ssv_completion request(struct rig *rig, const struct test_region *region,
				     struct ssv_request *r)
{
	static uint64_t number;
	char error[SSV_ERROR_TEXT_MAX];

	r->region = r->op == SSV_OP_FETCH || r->op == SSV_OP_STORE ? region->region : 0;
	r->user_data = ++number;
	if (plane_submit(rig->plane, region->session, r, clock_now_ns(), error))
		fail_msg("plane_submit: %s", error);
	return wait_completion(rig);
}

static void sleeping_workers_lose_nothing(void **state)
{
	static const struct test_shape shape = {SSV_DTYPE_BF16, 2, 2, 16, 64, 32};
	struct plane_config config = rig_config("memory:threads");
	struct thread threads[WORKERS];
	struct test_region region;
	struct ssv_key keys[4];
	uint32_t blocks[16];
	struct rig rig;

	(void)state;
	config.workers_count = WORKERS;
	config.arena_bytes = WORKERS * 16 * MIB;
	rig_create(&rig, &config);
	region_create(&rig, &region, PACKING_VEC, &shape, 0);
	for (uint32_t i = 0; i < WORKERS; i++) {
		threads[i] = (struct thread){.plane = rig.plane, .index = i};
		assert_int_equal(pthread_create(&threads[i].thread, NULL, work, &threads[i]), 0);
	}
	for (uint32_t round = 0; round < ROUNDS; round++) {
		struct ssv_request r = {
		    .op = SSV_OP_STORE,
		    .keys = keys,
		    .keys_count = 4,
		    .blocks = blocks,
		    .blocks_count = 16,
		};
		struct ssv_request flush = {.op = SSV_OP_FLUSH};

		for (uint32_t i = 0; i < 16; i++)
			blocks[i] = (i * 5 + round) % 32;
		for (uint32_t i = 0; i < 4; i++) {
			keys[i] = chunk_key(round * 4 + i);
			region_fill(&region, round * 4 + i, 0, blocks + i * 4, 4);
		}
		assert_int_equal(request(&rig, &region, &r).tokens, 1024);
		region_paint(&region); /* captured: ours again */
		assert_int_equal(request(&rig, &region, &flush).status, 0);
		r.op = SSV_OP_FETCH;
		assert_int_equal(request(&rig, &region, &r).tokens, 1024);
		for (uint32_t i = 0; i < 4; i++)
			assert_int_equal(region_wrong(&region, round * 4 + i, 0, blocks + i * 4, 4),
					 0);
		assert_true(rig_stat(&rig, "counters.puts") == 4.0 * (round + 1));
	}
	/* Pairs with the acquire in work(). */
	atomic_store_explicit(&stop, 1, memory_order_release);
	for (uint32_t i = 0; i < WORKERS; i++)
		pthread_join(threads[i].thread, NULL);
	region_destroy(&region);
	rig_destroy(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(sleeping_workers_lose_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
