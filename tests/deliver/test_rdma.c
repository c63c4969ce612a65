/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_rdma.c - the "rdma" way over a real RDMA device (in tests a software one: `make test-rdma`):
 * blocks in and out of registered memory, many jobs of several workers, offers that do not fit,
 * keys that open nothing. Skipped where there is no device.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "rdma_ends.h"

static void blocks_are_written_and_read(void **state)
{
	struct pair pair = pair_make(0);

	(void)state;
	memset(pair.memory.region, 0xab, REGION);
	for (uint32_t tensor = 0; tensor < 2; tensor++) {
		assert_int_equal(blocks_move(pair.region, tensor, DELIVER_IN), 0);
		assert_int_equal(blocks_move(pair.region, tensor, DELIVER_OUT), 0);
	}
	blocks_check(pair.memory.region);
	pair_end(&pair);
}

static void worker_run(struct work *work, const struct memory *memory)
{
	for (uint32_t round = 0; round < 3; round++) {
		for (uint32_t k = 0; k < JOBS; k++) {
			work_submit(work, DELIVER_IN, round & 1);
			work_poll(work);
		}
		work_finish(work);
		assert_int_equal(work->failed_count, 0);
		/* Jobs that shared a pair's blocks wrote the same bytes. */
		work_check(work, memory, round);
		work->jobs_count = 0;
		work->done_count = 0;
		for (uint32_t k = 0; k < JOBS; k++)
			memset(work->jobs[k].stage, 0, JOB_BYTES);
		for (uint32_t k = 0; k < JOBS; k++)
			work_submit(work, DELIVER_OUT, round & 1);
		work_finish(work);
		assert_int_equal(work->failed_count, 0);
		work_check(work, memory, round);
		work_again(work);
	}
}

struct thread_work {
	struct work *work;
	const struct memory *memory;
};

static void *worker_thread(void *context)
{
	const struct thread_work *thread = context;

	worker_run(thread->work, thread->memory);
	return NULL;
}

static void workers_move_many_jobs_at_once(void **state)
{
	struct pair pair = pair_make(1);
	struct thread_work works[WORKERS];
	pthread_t thread;

	(void)state;
	for (uint32_t i = 0; i < WORKERS; i++)
		works[i] = (struct thread_work){work_make(pair.region, i), &pair.memory};
	assert_int_equal(pthread_create(&thread, NULL, worker_thread, &works[1]), 0);
	worker_run(works[0].work, &pair.memory);
	assert_int_equal(pthread_join(thread, NULL), 0);
	for (uint32_t i = 0; i < WORKERS; i++)
		free(works[i].work);
	assert_int_equal(region_is_severed(pair.region), 0);
	pair_end(&pair);
}

static void another_key_or_no_rights_yet_end_a_job(void **state)
{
	struct memory memory = memory_make(REGION);
	struct rdma_words words;
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct blob offer, answer;
	struct rdma_owner *owner;
	struct region *region;

	(void)state;
	owner = owner_open(&memory, REGION, &offer);
	assert_int_equal(rdma_blob_decode(&offer, RDMA_OFFER, &words, error), 0);
	words.rkey ^= 0x5500;
	rdma_blob_encode(&words, &offer);
	region = card_attach(&offer, 0, &answer);
	owner_connect(owner, &answer);
	assert_int_equal(blocks_move(region, 0, DELIVER_IN), -EFAULT);
	assert_true(region_is_severed(region));
	region_detach(region);
	assert_int_equal(rdma_owner_close(owner), 0);
	/* An owner that has not taken the answer answers nothing. */
	owner = owner_open(&memory, REGION, &offer);
	region = card_attach(&offer, 0, &answer);
	assert_int_equal(blocks_move(region, 1, DELIVER_OUT), -ESRCH);
	region_detach(region);
	assert_int_equal(rdma_owner_close(owner), 0);
	for (uint32_t i = 0; i < REGION; i++)
		assert_int_equal(memory.region[i], CANARY_BYTE);
	memory_free(&memory);
}

static void offers_that_do_not_fit_are_refused(void **state)
{
	struct memory memory = memory_make(LARGE_REGION);
	struct rdma_owner_config config = {
	    .memory = memory.region, .bytes = LARGE_REGION, .lanes_count = 1};
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct region *region = NULL;
	struct rdma_owner *owner;
	struct rdma_words words;
	struct blob offer, answer;

	(void)state;
	assert_int_equal(rdma_owner_open(&config, &owner, &offer, error), 0);
	assert_int_equal(card_try(&offer, 1, &answer, &region, error), -E2BIG);
	assert_non_null(strstr(error, "1 lanes"));
	assert_int_equal(card_try(&offer, 0, &answer, &region, error), -ERANGE);
	assert_int_equal(rdma_blob_decode(&offer, RDMA_OFFER, &words, error), 0);
	words.kind = RDMA_ANSWER;
	words.rkey = 0;
	words.address = 0;
	words.bytes = 0;
	words.lanes_count = 2;
	words.lanes[1] = words.lanes[0];
	rdma_blob_encode(&words, &answer);
	assert_int_equal(rdma_owner_connect(owner, &answer, error), -EPROTO);
	assert_non_null(strstr(error, "2 lanes"));
	answer.data[0] ^= 1;
	assert_int_equal(rdma_owner_connect(owner, &answer, error), -EPROTO);
	assert_int_equal(rdma_owner_close(owner), 0);
	config.paging = RDMA_ON_DEMAND;
	owner = NULL;
	if (rdma_owner_open(&config, &owner, &offer, error))
		assert_non_null(strstr(error, "on demand"));
	assert_int_equal(rdma_owner_close(owner), 0);
	memory_free(&memory);
}

/* Both sides begin anew, and leave no descriptor behind. */
static void regions_come_and_go(void **state)
{
	int before = dup(0), after;

	(void)state;
	close(before);
	for (uint32_t round = 0; round < 10; round++) {
		struct pair pair = pair_make(0);

		assert_int_equal(blocks_move(pair.region, round % 2, DELIVER_IN), 0);
		pair_end(&pair);
	}
	after = dup(0);
	close(after);
	assert_int_equal(before, after);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(blocks_are_written_and_read),
	    cmocka_unit_test(workers_move_many_jobs_at_once),
	    cmocka_unit_test(another_key_or_no_rights_yet_end_a_job),
	    cmocka_unit_test(offers_that_do_not_fit_are_refused),
	    cmocka_unit_test(regions_come_and_go),
	};
	int status = ends_begin();

	return status ? status : cmocka_run_group_tests(tests, NULL, NULL);
}
