/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_engines.c - one suite over every inflate engine: what inflate.h promises, on good streams,
 * damaged ones and ones that somebody made to harm.
 *
 * usage: test_engines ENGINE. Exit status 77 with "skip: ..." where the engine is not there.
 * SSV_SEED=n replays one run.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "inflate/inflate.h"
#include "streams.h"

#define EXIT_SKIPPED 77
#define DEPTH        16u
#define POLLS_MAX    1000000u

static const char *engine_name;
static struct inflate *engine;
static struct inflate_caps caps;
static uint64_t random_state;

/* ---- tools ---------------------------------------------------------------------------------- */

static int open_engine(struct inflate **ret_engine, uint32_t depth, char *error)
{
	const struct inflate_config config = {
	    .name = engine_name, .seed = random_state, .depth = depth, .handles = 2};

	return inflate_open(&config, ret_engine, error);
}

/* Output memory that ends where nothing can be written. */
struct guarded {
	uint8_t *map, *out;
	size_t bytes;
};

static void guarded_make(struct guarded *g, uint32_t out_bytes)
{
	const size_t page = (size_t)sysconf(_SC_PAGESIZE);

	g->bytes = align_up(out_bytes, page) + page;
	g->map = mmap(NULL, g->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(g->map != MAP_FAILED);
	assert_int_equal(mprotect(g->map + g->bytes - page, page, PROT_NONE), 0);
	g->out = g->map + g->bytes - page - out_bytes;
	memset(g->map, 0xa5, g->bytes - page);
}

static void guarded_free(struct guarded *g)
{
	munmap(g->map, g->bytes);
}

/* One job, alone, to its end. */
static int run_one(const uint8_t *in, uint32_t in_bytes, uint8_t *out, uint32_t out_bytes)
{
	struct inflate_job job = {
	    .in = in, .in_bytes = in_bytes, .out = out, .out_bytes = out_bytes, .status = 1};
	struct inflate_job *one = &job, *done[2];
	uint32_t n = 0;

	for (uint32_t i = 0; engine->ops->submit(engine, &one, 1) == 0; i++)
		assert_true(i < POLLS_MAX);
	for (uint32_t i = 0; n == 0; i++) {
		assert_true(i < POLLS_MAX);
		n = engine->ops->poll(engine, done, 2);
	}
	assert_int_equal(n, 1);
	assert_ptr_equal(done[0], &job);
	assert_int_equal(engine->ops->poll(engine, done, 2), 0);
	return job.status;
}

static int writes_nothing(void)
{
	return caps.flags & INFLATE_CAP_NOTHING;
}

/* ---- good streams --------------------------------------------------------------------------- */

static void streams_of_every_kind_and_length_come_out_right(void **state)
{
	static const uint32_t lengths[] = {1,     2,      63,     4096,   65407,   65408,  65409,
					   65536, 131072, 262144, 262147, 1048576, 2097152};

	(void)state;
	for (uint32_t i = 0; i < ARRAY_COUNT(lengths) * STREAM_KINDS; i++) {
		struct stream stream;
		struct guarded g;

		stream_make(&stream, (enum stream_kind)(i % STREAM_KINDS),
			    lengths[i / STREAM_KINDS], random_state + i);
		if (stream.in_bytes <= caps.in_bytes_max) {
			guarded_make(&g, stream.out_bytes);
			assert_int_equal(
			    run_one(stream.in, stream.in_bytes, g.out, stream.out_bytes), 0);
			if (!writes_nothing())
				assert_memory_equal(g.out, stream.out, stream.out_bytes);
			guarded_free(&g);
		}
		stream_free(&stream);
	}
}

static void many_jobs_in_flight_each_come_back_once(void **state)
{
	enum { JOBS = 100 };
	struct inflate_job jobs[JOBS] = {0}, *done[7];
	struct stream streams[JOBS];
	uint8_t *outs[JOBS], back[JOBS] = {0};
	uint32_t submitted = 0, finished = 0, polls = 0;

	(void)state;
	for (uint32_t i = 0; i < JOBS; i++) {
		uint32_t bytes = 1 + (uint32_t)(streams_random(&random_state) % 150000);

		stream_make(&streams[i], (enum stream_kind)(i % STREAM_KINDS), bytes,
			    random_state + i);
		outs[i] = malloc(bytes);
		assert_non_null(outs[i]);
		jobs[i] = (struct inflate_job){.in = streams[i].in,
					       .in_bytes = streams[i].in_bytes,
					       .out = outs[i],
					       .out_bytes = bytes,
					       .owner = &back[i],
					       .status = 1};
	}
	while (finished < JOBS) {
		struct inflate_job *next[5];
		uint32_t n = 0, taken;

		assert_true(polls++ < POLLS_MAX);
		while (n < 5 && submitted + n < JOBS) {
			next[n] = &jobs[submitted + n];
			n++;
		}
		taken = n ? engine->ops->submit(engine, next, n) : 0;
		assert_true(taken <= n);
		submitted += taken;
		assert_true(submitted - finished <= caps.depth);
		n = engine->ops->poll(engine, done, 7);
		assert_true(n <= 7);
		for (uint32_t i = 0; i < n; i++)
			++*(uint8_t *)done[i]->owner;
		finished += n;
	}
	for (uint32_t i = 0; i < JOBS; i++) {
		assert_int_equal(back[i], 1);
		assert_int_equal(jobs[i].status, 0);
		if (!writes_nothing())
			assert_memory_equal(outs[i], streams[i].out, streams[i].out_bytes);
		stream_free(&streams[i]);
		free(outs[i]);
	}
}

static void a_full_engine_refuses_and_changes_nothing(void **state)
{
	struct inflate_job jobs[DEPTH + 1] = {0}, *all[DEPTH + 1], *done[DEPTH + 1];
	struct stream stream;
	uint8_t *out = malloc(100 * (DEPTH + 1));
	uint32_t taken = 0, n = 0, tries = 0;

	(void)state;
	assert_non_null(out);
	stream_make(&stream, STREAM_HUFFMAN, 100, random_state);
	for (uint32_t i = 0; i <= DEPTH; i++) {
		jobs[i] = (struct inflate_job){.in = stream.in,
					       .in_bytes = stream.in_bytes,
					       .out = out + i * 100,
					       .out_bytes = 100};
		all[i] = &jobs[i];
	}
	while (taken < caps.depth && tries++ < 1000)
		taken += engine->ops->submit(engine, all + taken, DEPTH + 1 - taken);
	assert_int_equal(taken, caps.depth);
	assert_int_equal(engine->ops->submit(engine, all + taken, DEPTH + 1 - taken), 0);
	for (uint32_t i = 0; n < taken; i++) {
		assert_true(i < POLLS_MAX);
		n += engine->ops->poll(engine, done, DEPTH + 1);
	}
	assert_int_equal(n, taken);
	for (uint32_t i = 0; i < taken; i++)
		assert_int_equal(jobs[i].status, 0);
	free(out);
	stream_free(&stream);
}

static void two_handles_do_not_meet(void **state)
{
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct inflate *first = engine, *second;
	struct stream stream;
	uint8_t out[5000];

	(void)state;
	if (open_engine(&second, 4, error))
		fail_msg("%s", error);
	stream_make(&stream, STREAM_HUFFMAN, sizeof(out), random_state);
	for (uint32_t i = 0; i < 10; i++) {
		engine = i % 2 ? first : second;
		memset(out, 0, sizeof(out));
		assert_int_equal(run_one(stream.in, stream.in_bytes, out, sizeof(out)), 0);
		if (!writes_nothing())
			assert_memory_equal(out, stream.out, sizeof(out));
	}
	engine = first;
	inflate_close(second);
	stream_free(&stream);
}

/* ---- bad streams ---------------------------------------------------------------------------- */

/* A stream that is cut anywhere never hangs, never writes past its output, and is refused, unless
 * what is missing was not needed: then its output is right. A lenient engine leaves that to the
 * checksum of the output. */
static void truncated_streams_end_in_an_error(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < 60 && !writes_nothing(); i++) {
		const uint32_t bytes =
		    i % 3 ? 1 + (uint32_t)(streams_random(&random_state) % 3000) : 200000;
		struct stream stream;
		struct guarded g;
		uint32_t cut;
		uint8_t *in;
		int status;

		stream_make(&stream, (enum stream_kind)(i % STREAM_KINDS), bytes, random_state);
		cut = i % 5 ? 1 + (uint32_t)(streams_random(&random_state) % stream.in_bytes)
			    : stream.in_bytes - 1;
		cut = (uint32_t)u64_max(1, u64_min(cut, stream.in_bytes - 1));
		in = calloc(1, cut + INFLATE_IN_SLACK);
		assert_non_null(in);
		memcpy(in, stream.in, cut);
		guarded_make(&g, bytes);
		status = run_one(in, cut, g.out, bytes);
		assert_true(status == -EBADMSG || status == 0);
		if (status == 0 && !(caps.flags & INFLATE_CAP_LENIENT))
			assert_memory_equal(g.out, stream.out, bytes);
		guarded_free(&g);
		free(in);
		stream_free(&stream);
	}
}

static void a_flipped_bit_never_hangs_or_writes_outside(void **state)
{
	uint32_t noticed = 0;

	(void)state;
	for (uint32_t i = 0; i < 400 && !writes_nothing(); i++) {
		const uint32_t bytes = i % 40 ? 2000 : 150000;
		struct stream stream;
		struct guarded g;
		uint64_t at;

		stream_make(&stream, (enum stream_kind)(i % STREAM_KINDS), bytes, i / 8);
		at = streams_random(&random_state) % (8 * (uint64_t)stream.in_bytes);
		if (i % 4 == 0)
			at %= 800; /* where the codes are described */
		stream.in[at / 8 % stream.in_bytes] ^= (uint8_t)(1u << at % 8);
		guarded_make(&g, bytes);
		if (run_one(stream.in, stream.in_bytes, g.out, bytes) ||
		    memcmp(g.out, stream.out, bytes))
			noticed++;
		guarded_free(&g);
		stream_free(&stream);
	}
	assert_true(writes_nothing() || noticed > 350);
}

static void random_bytes_never_hang_or_write_outside(void **state)
{
	uint8_t in[600 + INFLATE_IN_SLACK];

	(void)state;
	for (uint32_t i = 0; i < 3000; i++) {
		const uint32_t in_bytes = 1 + (uint32_t)(streams_random(&random_state) % 600);
		const uint32_t out_bytes = 1 + (uint32_t)(streams_random(&random_state) % 70000);
		struct guarded g;

		memset(in, 0, sizeof(in));
		for (uint32_t k = 0; k < in_bytes; k++)
			in[k] = (uint8_t)streams_random(&random_state);
		in[0] = (uint8_t)((in[0] & ~7u) | (i % 3) << 1 | i / 3 % 2);
		guarded_make(&g, out_bytes);
		(void)run_one(in, in_bytes, g.out, out_bytes);
		guarded_free(&g);
	}
}

static void another_length_than_promised_is_refused(void **state)
{
	static const int deltas[] = {-1, 1, -500, 500, -60000, 60000};

	(void)state;
	for (uint32_t i = 0; i < ARRAY_COUNT(deltas) * STREAM_KINDS && !writes_nothing(); i++) {
		const int delta = deltas[i / STREAM_KINDS];
		struct stream stream;
		struct guarded g;

		stream_make(&stream, (enum stream_kind)(i % STREAM_KINDS), 131072, i);
		guarded_make(&g, (uint32_t)(131072 + delta));
		assert_int_equal(
		    run_one(stream.in, stream.in_bytes, g.out, (uint32_t)(131072 + delta)),
		    -EBADMSG);
		guarded_free(&g);
		stream_free(&stream);
	}
}

static void bytes_behind_the_end_are_refused_where_they_show(void **state)
{
	struct stream stream;
	uint8_t out[3000];
	int status;

	(void)state;
	if (writes_nothing())
		return;
	stream_make(&stream, STREAM_HUFFMAN, sizeof(out), 1);
	status = run_one(stream.in, stream.in_bytes + 20, out, sizeof(out));
	if (caps.flags & INFLATE_CAP_LENIENT)
		assert_true(status == 0 || status == -EBADMSG);
	else
		assert_int_equal(status, -EBADMSG);
	stream_free(&stream);
}

static void lengths_out_of_range_are_refused(void **state)
{
	static uint8_t byte[INFLATE_IN_SLACK + 8];

	(void)state;
	assert_int_equal(run_one(byte, 0, byte, 1), -EINVAL);
	assert_int_equal(run_one(byte, 1, byte, 0), -EINVAL);
	if (caps.out_bytes_max < UINT32_MAX)
		assert_int_equal(run_one(byte, 1, byte, caps.out_bytes_max + 1), -EINVAL);
}

static void what_was_done_is_counted(void **state)
{
	struct inflate_stats before, after;
	struct stream stream;
	uint8_t out[1000];

	(void)state;
	stream_make(&stream, STREAM_HUFFMAN, sizeof(out), 1);
	engine->ops->stats(engine, &before);
	assert_int_equal(run_one(stream.in, stream.in_bytes, out, sizeof(out)), 0);
	engine->ops->stats(engine, &after);
	assert_int_equal(after.jobs - before.jobs, 1);
	assert_int_equal(after.failed - before.failed, 0);
	assert_int_equal(after.bytes_in - before.bytes_in, stream.in_bytes);
	assert_int_equal(after.bytes_out - before.bytes_out, sizeof(out));
	stream_free(&stream);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(streams_of_every_kind_and_length_come_out_right),
	    cmocka_unit_test(many_jobs_in_flight_each_come_back_once),
	    cmocka_unit_test(a_full_engine_refuses_and_changes_nothing),
	    cmocka_unit_test(two_handles_do_not_meet),
	    cmocka_unit_test(truncated_streams_end_in_an_error),
	    cmocka_unit_test(a_flipped_bit_never_hangs_or_writes_outside),
	    cmocka_unit_test(random_bytes_never_hang_or_write_outside),
	    cmocka_unit_test(another_length_than_promised_is_refused),
	    cmocka_unit_test(bytes_behind_the_end_are_refused_where_they_show),
	    cmocka_unit_test(lengths_out_of_range_are_refused),
	    cmocka_unit_test(what_was_done_is_counted),
	};
	const char *seed = getenv("SSV_SEED");
	char error[SSV_ERROR_TEXT_MAX] = "";
	int failed, err;

	engine_name = argc > 1 ? argv[1] : "cpu";
	random_state = seed ? strtoull(seed, NULL, 0) : (uint64_t)getpid();
	printf("SSV_SEED=%llu\n", (unsigned long long)random_state);
	err = open_engine(&engine, DEPTH, error);
	if (err == -ENOTSUP || err == -ENODEV) {
		printf("skip: %s\n", error);
		return EXIT_SKIPPED;
	}
	if (err) {
		fprintf(stderr, "%s: %s\n", engine_name, error);
		return 1;
	}
	engine->ops->caps(engine, &caps);
	failed = cmocka_run_group_tests_name(engine_name, tests, NULL, NULL);
	inflate_close(engine);
	return failed;
}
