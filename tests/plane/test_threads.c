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
#define THREADS (WORKERS + 5u) /* with stations */

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

struct threaded {
	struct rig rig;
	struct thread threads[THREADS];
	uint32_t threads_count;
	int is_staged; /* set before it starts: deflate chunks through stages, by address */
	struct test_region region;
	struct ssv_key keys[4];
	uint32_t blocks[16];
};

static void threaded_start(struct threaded *t, const char *uri)
{
	static const struct test_shape shape = {SSV_DTYPE_BF16, 2, 2, 16, 64, 32};
	struct plane_config config = rig_config(uri);

	config.workers_count = WORKERS;
	config.arena_bytes = WORKERS * 16 * MIB;
	if (t->is_staged) {
		config.codec = SSV_CODEC_DEFLATE;
		config.pipeline = PLANE_STAGES;
		config.arena_bytes += 16 * MIB;
		config.stations[PLANE_STATION_INFLATE] = 2;
		config.stations[PLANE_STATION_DEQUANTISE] = 2;
		config.stations[PLANE_STATION_DELIVER] = 1;
	}
	rig_create(&t->rig, &config);
	t->threads_count = plane_threads(t->rig.plane);
	assert_true(t->threads_count <= THREADS);
	if (t->is_staged)
		region_create_address(&t->rig, &t->region, PACKING_VEC, &shape, 0);
	else
		region_create(&t->rig, &t->region, PACKING_VEC, &shape, 0);
	atomic_store_explicit(&stop, 0, memory_order_release);
	for (uint32_t i = 0; i < t->threads_count; i++) {
		t->threads[i] = (struct thread){.plane = t->rig.plane, .index = i};
		assert_int_equal(pthread_create(&t->threads[i].thread, NULL, work, &t->threads[i]),
				 0);
	}
}

static void threaded_stop(struct threaded *t)
{
	/* Pairs with the acquire in work(). */
	atomic_store_explicit(&stop, 1, memory_order_release);
	for (uint32_t i = 0; i < t->threads_count; i++)
		pthread_join(t->threads[i].thread, NULL);
	region_destroy(&t->region);
	rig_destroy(&t->rig);
}

/* Four chunks, their keys and 16 blocks, filled with their reference. */
static struct ssv_request threaded_fill(struct threaded *t, uint32_t round)
{
	for (uint32_t i = 0; i < 16; i++)
		t->blocks[i] = (i * 5 + round) % 32;
	for (uint32_t i = 0; i < 4; i++) {
		t->keys[i] = chunk_key(round * 4 + i);
		region_fill(&t->region, round * 4 + i, 0, t->blocks + i * 4, 4);
	}
	return (struct ssv_request){
	    .op = SSV_OP_STORE,
	    .keys = t->keys,
	    .keys_count = 4,
	    .blocks = t->blocks,
	    .blocks_count = 16,
	};
}

static void check_rounds(struct threaded *t)
{
	for (uint32_t round = 0; round < ROUNDS; round++) {
		struct ssv_request r = threaded_fill(t, round), flush = {.op = SSV_OP_FLUSH};

		assert_int_equal(request(&t->rig, &t->region, &r).tokens, 1024);
		region_paint(&t->region); /* captured: ours again */
		assert_int_equal(request(&t->rig, &t->region, &flush).status, 0);
		r.op = SSV_OP_FETCH;
		assert_int_equal(request(&t->rig, &t->region, &r).tokens, 1024);
		for (uint32_t i = 0; i < 4; i++)
			assert_int_equal(
			    region_wrong(&t->region, round * 4 + i, 0, t->blocks + i * 4, 4), 0);
		assert_true(rig_stat(&t->rig, "counters.puts") == 4.0 * (round + 1));
	}
}

static void sleeping_workers_lose_nothing(void **state)
{
	static struct threaded t;

	(void)state;
	threaded_start(&t, "memory:threads-1");
	check_rounds(&t);
	threaded_stop(&t);
}

static void sleeping_stations_lose_nothing(void **state)
{
	static struct threaded t = {.is_staged = 1};

	(void)state;
	threaded_start(&t, "memory:threads-5");
	check_rounds(&t);
	assert_true(rig_stat(&t.rig, "counters.inflates") > 0);
	threaded_stop(&t);
}

/* Cancelled at any moment, a fetch writes nothing after its completion. */
static void check_cancels(struct threaded *t)
{
	uint64_t seed = test_seed(5);
	uint32_t cancelled = 0;
	struct ssv_request r = threaded_fill(t, 0), flush = {.op = SSV_OP_FLUSH};

	assert_int_equal(request(&t->rig, &t->region, &r).tokens, 1024);
	assert_int_equal(request(&t->rig, &t->region, &flush).status, 0);
	for (uint32_t round = 0; round < 4 * ROUNDS; round++) {
		struct ssv_request cancel = {
		    .op = SSV_OP_CANCEL, .target = 1000000 + round, .user_data = 2000000 + round};
		uint64_t until_ns;

		r.op = SSV_OP_FETCH;
		r.region = t->region.region;
		r.user_data = 1000000 + round;
		assert_int_equal(
		    plane_submit(t->rig.plane, t->region.session, &r, clock_now_ns(), NULL), 0);
		until_ns = clock_now_ns() + next_random(&seed) % (2 * NS_PER_MS);
		while (clock_now_ns() < until_ns)
			plane_step(t->rig.plane, clock_now_ns());
		assert_int_equal(
		    plane_submit(t->rig.plane, t->region.session, &cancel, clock_now_ns(), NULL),
		    0);
		for (uint32_t i = 0; i < 2; i++) {
			struct ssv_completion completion = wait_completion(&t->rig);

			if (completion.op != SSV_OP_FETCH)
				continue;
			cancelled += completion.status == -ECANCELED;
			region_paint(&t->region);
		}
		assert_int_equal(region_painted_over(&t->region, NULL, 0), 0);
	}
	print_message("%u of %u cancelled in time\n", cancelled, 4 * ROUNDS);
}

static void cancelled_fetch_leaves_the_blocks_alone(void **state)
{
	static struct threaded t;

	(void)state;
	threaded_start(&t, "memory:threads-2");
	check_cancels(&t);
	threaded_stop(&t);
}

static void cancelled_fetch_in_stages_leaves_the_blocks_alone(void **state)
{
	static struct threaded t = {.is_staged = 1};

	(void)state;
	threaded_start(&t, "memory:threads-6");
	check_cancels(&t);
	threaded_stop(&t);
}

/* Cancelled at any moment, a store reads nothing after its completion: what it stored is right. */
static void cancelled_store_has_read_its_blocks_before(void **state)
{
	static struct threaded t;
	uint64_t seed = test_seed(6), tokens = 0;

	(void)state;
	threaded_start(&t, "memory:threads-3");
	for (uint32_t round = 0; round < ROUNDS; round++) {
		struct ssv_request r = threaded_fill(&t, round), flush = {.op = SSV_OP_FLUSH};
		struct ssv_request lookup = {.op = SSV_OP_LOOKUP, .keys = t.keys, .keys_count = 4};
		struct ssv_request cancel = {
		    .op = SSV_OP_CANCEL, .target = 1000000 + round, .user_data = 2000000 + round};
		uint64_t until_ns = clock_now_ns() + next_random(&seed) % NS_PER_MS;
		struct ssv_completion completion;

		r.region = t.region.region;
		r.user_data = cancel.target;
		assert_int_equal(
		    plane_submit(t.rig.plane, t.region.session, &r, clock_now_ns(), NULL), 0);
		while (clock_now_ns() < until_ns)
			plane_step(t.rig.plane, clock_now_ns());
		assert_int_equal(
		    plane_submit(t.rig.plane, t.region.session, &cancel, clock_now_ns(), NULL), 0);
		for (uint32_t i = 0; i < 2; i++) {
			if (wait_completion(&t.rig).op == SSV_OP_STORE)
				region_paint(&t.region); /* ours again, captured or not */
		}
		assert_int_equal(request(&t.rig, &t.region, &flush).status, 0);
		completion = request(&t.rig, &t.region, &lookup);
		r.op = SSV_OP_FETCH;
		assert_int_equal(request(&t.rig, &t.region, &r).tokens, completion.tokens);
		for (uint32_t i = 0; i < completion.tokens / 256; i++)
			assert_int_equal(
			    region_wrong(&t.region, round * 4 + i, 0, t.blocks + i * 4, 4), 0);
		tokens += completion.tokens;
	}
	print_message("%llu of %u tokens stored\n", (unsigned long long)tokens, ROUNDS * 1024);
	threaded_stop(&t);
}

/* What is read beside running workers is whole: each event's fields are plausible, times rise. */
static void state_and_trace_are_read_beside_running_workers(void **state)
{
	static struct trace_event events[256];
	static struct threaded t;
	uint64_t from[WORKERS + 1] = {0}, read = 0;

	(void)state;
	threaded_start(&t, "memory:threads-4");
	for (uint32_t round = 0; round < ROUNDS; round++) {
		struct ssv_request r = threaded_fill(&t, round);

		r.region = t.region.region;
		r.user_data = 3000000 + round;
		assert_int_equal(
		    plane_submit(t.rig.plane, t.region.session, &r, clock_now_ns(), NULL), 0);
		for (uint32_t i = 0; i < 20; i++) {
			struct message_events head = {.track = i % (WORKERS + 1)};

			plane_step(t.rig.plane, clock_now_ns());
			plane_trace(t.rig.plane, from[head.track], &head, events, 256);
			for (uint32_t k = 0; k < head.count; k++) {
				assert_in_range(trace_kind(&events[k]), 1, TRACE_KINDS_COUNT - 1);
				assert_true(events[k].start_ns <= clock_now_ns());
			}
			from[head.track] = head.first + head.count;
			read += head.count;
		}
		assert_true(rig_stat(&t.rig, "path.epoch") == 1.0 + round);
		plane_stat_reset(t.rig.plane, clock_now_ns());
		assert_int_equal(wait_completion(&t.rig).tokens, 1024);
	}
	assert_true(read > ROUNDS);
	threaded_stop(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(sleeping_workers_lose_nothing),
	    cmocka_unit_test(cancelled_fetch_leaves_the_blocks_alone),
	    cmocka_unit_test(sleeping_stations_lose_nothing),
	    cmocka_unit_test(cancelled_fetch_in_stages_leaves_the_blocks_alone),
	    cmocka_unit_test(cancelled_store_has_read_its_blocks_before),
	    cmocka_unit_test(state_and_trace_are_read_beside_running_workers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
