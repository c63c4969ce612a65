/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_rdma_kill.c - the "rdma" way when one side ends in the middle: rights taken away, the owner
 * killed, the card killed, each while writes are under way. From the moment that counts (revoke
 * has returned, the owner's death is proven) memory stays as it is.
 *
 * The side to be killed is a child; memory is shared with it. SSV_SEED chooses the moments,
 * SSV_ROUNDS how many. Skipped where there is no device.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "rdma_ends.h"

#define SETTLE_NS      (30 * NS_PER_MS)
#define MOMENT_NS      (40 * NS_PER_MS)
#define UNDISTURBED_NS (20 * NS_PER_S)

static uint32_t rounds = 10;
static uint8_t *seen; /* LARGE_REGION bytes */

static void sleep_ns(uint64_t ns)
{
	struct timespec t = {.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};

	nanosleep(&t, NULL);
}

/* ---- a card that works without end ---------------------------------------------------------- */

/* A thread of the card: jobs, and more jobs, until one fails; or none does, for long. */
struct card {
	pthread_t thread;
	struct work *work;
	enum deliver_direction direction;
	_Atomic uint32_t rounds;
};

static void *card_thread(void *context)
{
	const uint64_t end_ns = clock_now_ns() + UNDISTURBED_NS;
	struct card *card = context;

	while (!card->work->failed_count && clock_now_ns() < end_ns) {
		work_again(card->work);
		for (uint32_t k = 0; k < JOBS; k++) {
			work_submit(card->work, card->direction, 0);
			work_poll(card->work);
		}
		work_finish(card->work);
		/* Release, pairs with card_wait(). */
		atomic_fetch_add_explicit(&card->rounds, 1, memory_order_release);
	}
	return NULL;
}

/* It is in the middle of its work when this returns. */
static void card_start(struct card *card, const struct region *region, uint32_t worker,
		       enum deliver_direction direction)
{
	*card = (struct card){.work = work_make(region, worker), .direction = direction};
	assert_int_equal(pthread_create(&card->thread, NULL, card_thread, card), 0);
	/* Acquire, pairs with card_thread(). */
	while (!atomic_load_explicit(&card->rounds, memory_order_acquire))
		sleep_ns(NS_PER_MS);
	sleep_ns(random_next() % MOMENT_NS);
}

/* Its jobs have failed, each of them was handed back, and it says so again at once. */
static void card_ends(struct card *card)
{
	struct work *work = card->work;

	assert_int_equal(pthread_join(card->thread, NULL), 0);
	assert_true(work->status == -EFAULT || work->status == -ESRCH || work->status == -EIO);
	assert_true(region_is_severed(work->region));
	work_again(work);
	work_submit(work, DELIVER_IN, 0);
	assert_int_equal(work_poll(work), 1);
	assert_int_equal(work->failed_count, 1);
	free(work);
}

/* Whatever is still sent, the memory stays as it is now, with the owner's own bytes in it. */
static void memory_is_taken_back(const struct memory *memory)
{
	for (uint64_t i = 0; i < LARGE_REGION; i += 512)
		memory->region[i] = (uint8_t)~memory->region[i];
	memcpy(seen, memory->region, LARGE_REGION);
}

static void nothing_has_landed(const struct memory *memory)
{
	sleep_ns(SETTLE_NS);
	assert_memory_equal(seen, memory->region, LARGE_REGION);
}

static void nothing_lands_after_a_revocation(void **state)
{
	(void)state;
	for (uint32_t round = 0; round < rounds; round++) {
		struct pair pair = pair_make(1);
		struct card card;

		card_start(&card, pair.region, round % WORKERS, DELIVER_IN);
		assert_int_equal(rdma_owner_revoke(pair.owner), 0);
		memory_is_taken_back(&pair.memory);
		card_ends(&card);
		nothing_has_landed(&pair.memory);
		pair_end(&pair);
	}
}

/* An owner that has not taken the answer acknowledges nothing, and the device tries for a while. */
static void a_device_without_progress_is_given_up(void **state)
{
	struct memory memory = memory_make(LARGE_REGION);
	struct blob offer, answer;
	struct rdma_owner *owner = owner_open(&memory, LARGE_REGION, &offer);
	struct region *region = card_attach(&offer, 1, &answer);
	struct work *work = work_make(region, 0);

	(void)state;
	work_submit(work, DELIVER_IN, 0);
	work_poll(work);
	work->queue.now_ns = 4 * NS_PER_S;
	work_poll(work);
	assert_false(region_is_severed(region));
	work->queue.now_ns = 6 * NS_PER_S;
	work_poll(work);
	assert_true(region_is_severed(region));
	work_finish(work);
	assert_int_equal(work->status, -ESRCH);
	free(work);
	region_detach(region);
	assert_int_equal(rdma_owner_close(owner), 0);
	memory_free(&memory);
}

/* ---- two processes -------------------------------------------------------------------------- */

/* The other side: it says one blob and hears one. */
struct child {
	pid_t pid;
	int to, from;
};

typedef void child_run(const struct memory *memory, int from, int to);

static void pipe_put(int fd, const void *bytes, size_t count)
{
	assert_int_equal(write(fd, bytes, count), (ssize_t)count);
}

static void pipe_get(int fd, void *bytes, size_t count)
{
	for (size_t got = 0; got < count;) {
		ssize_t n = read(fd, (uint8_t *)bytes + got, count - got);

		assert_true(n > 0);
		got += (size_t)n;
	}
}

static struct child child_start(child_run *run, const struct memory *memory)
{
	struct child child;
	int to[2], from[2];

	assert_true(pipe(to) == 0 && pipe(from) == 0);
	child.pid = fork();
	assert_true(child.pid >= 0);
	if (child.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
		close(to[1]);
		close(from[0]);
		run(memory, to[0], from[1]);
		_exit(0);
	}
	close(to[0]);
	close(from[1]);
	child.to = to[1];
	child.from = from[0];
	return child;
}

static void child_kill(struct child *child)
{
	kill(child->pid, SIGKILL);
	assert_int_equal(waitpid(child->pid, NULL, 0), child->pid);
	close(child->to);
	close(child->from);
}

/* Owner: offers, takes the answer, says so, and does nothing from then on. */
static void owner_run(const struct memory *memory, int from, int to)
{
	struct blob offer, answer;
	struct rdma_owner *owner = owner_open(memory, LARGE_REGION, &offer);

	pipe_put(to, &offer, sizeof(offer));
	pipe_get(from, &answer, sizeof(answer));
	owner_connect(owner, &answer);
	pipe_put(to, "", 1);
	pause();
}

static void owner_is_killed_under_writes(void **state)
{
	(void)state;
	for (uint32_t round = 0; round < rounds; round++) {
		struct memory memory = memory_make(LARGE_REGION);
		struct child child = child_start(owner_run, &memory);
		struct blob offer, answer;
		struct region *region;
		struct card card;
		char byte;

		pipe_get(child.from, &offer, sizeof(offer));
		region = card_attach(&offer, 1, &answer);
		pipe_put(child.to, &answer, sizeof(answer));
		pipe_get(child.from, &byte, 1);
		card_start(&card, region, 0, round & 1 ? DELIVER_OUT : DELIVER_IN);
		child_kill(&child); /* its death is proven */
		memory_is_taken_back(&memory);
		card_ends(&card);
		nothing_has_landed(&memory);
		region_detach(region);
		memory_free(&memory);
	}
}

/* Card: takes the offer, answers, and writes without end. */
static void card_run(const struct memory *memory, int from, int to)
{
	struct blob offer, answer;
	struct region *region;
	struct work *work;
	char byte;

	(void)memory;
	pipe_get(from, &offer, sizeof(offer));
	region = card_attach(&offer, 1, &answer);
	pipe_put(to, &answer, sizeof(answer));
	pipe_get(from, &byte, 1);
	work = work_make(region, 0);
	for (;;) {
		for (uint32_t k = 0; k < JOBS; k++)
			work_submit(work, DELIVER_IN, 0);
		pipe_put(to, "", 1);
		work_finish(work);
		work_again(work);
	}
}

static void card_is_killed_under_writes(void **state)
{
	(void)state;
	for (uint32_t round = 0; round < rounds; round++) {
		struct memory memory = memory_make(LARGE_REGION);
		struct child child = child_start(card_run, &memory);
		struct rdma_owner *owner;
		struct blob offer, answer;
		char byte;

		owner = owner_open(&memory, LARGE_REGION, &offer);
		pipe_put(child.to, &offer, sizeof(offer));
		pipe_get(child.from, &answer, sizeof(answer));
		owner_connect(owner, &answer);
		pipe_put(child.to, "", 1);
		pipe_get(child.from, &byte, 1);
		sleep_ns(random_next() % MOMENT_NS);
		child_kill(&child);
		/* The card's last packets may be under way: only this ends them. */
		assert_int_equal(rdma_owner_revoke(owner), 0);
		memory_is_taken_back(&memory);
		nothing_has_landed(&memory);
		assert_int_equal(rdma_owner_close(owner), 0);
		memory_free(&memory);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(nothing_lands_after_a_revocation),
	    cmocka_unit_test(a_device_without_progress_is_given_up),
	    cmocka_unit_test(owner_is_killed_under_writes),
	    cmocka_unit_test(card_is_killed_under_writes),
	};
	const char *text = getenv("SSV_ROUNDS");
	int status = ends_begin();

	if (status)
		return status;
	rounds = text ? (uint32_t)strtoul(text, NULL, 0) : rounds;
	seen = malloc(LARGE_REGION);
	return seen ? cmocka_run_group_tests(tests, NULL, NULL) : 1;
}
