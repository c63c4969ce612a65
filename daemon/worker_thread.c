/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker_thread.c - step, spin briefly, sleep until a descriptor or the worker's next time.
 *
 * Everything the threads share with the starter is one stop flag; the plane owns the rest.
 */
#include "worker_thread.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/tally.h"

#define POLLFDS_MAX 128

struct worker_thread {
	struct worker_threads *all;
	pthread_t thread;
	uint32_t index;
	int wake; /* the worker's eventfd, lent by the plane */
	int started;
	uint64_t spin_ns;
	_Atomic pid_t id; /* the kernel's number of the thread; 0: it does not run yet */
};

struct worker_threads {
	struct plane *plane;
	uint32_t count;
	_Atomic int stop;
	struct worker_thread threads[PLANE_WORKERS_MAX * (1 + PLANE_STATIONS)];
};

/* Release, pairs with stop_asked(). */
static void stop_ask(struct worker_threads *all)
{
	atomic_store_explicit(&all->stop, 1, memory_order_release);
}

/* Acquire, pairs with stop_ask(). */
static int stop_asked(struct worker_threads *all)
{
	return atomic_load_explicit(&all->stop, memory_order_acquire);
}

/* Relaxed, pairs with thread_id(): the number alone matters. */
static void thread_id_tell(struct worker_thread *worker)
{
	atomic_store_explicit(&worker->id, gettid(), memory_order_relaxed);
}

/* Relaxed, pairs with thread_id_tell(). */
static pid_t thread_id(const struct worker_thread *worker)
{
	return atomic_load_explicit(&worker->id, memory_order_relaxed);
}

/* How long this thread stays awake without work. As long as it may, as long as that pays; what was
 * in vain halves it, down to nothing; a sleep that was shorter shows that it would have paid. */
struct spin {
	uint64_t limit_ns, now_ns;
	uint64_t since_ns; /* of the last work */
	int idle;          /* a step without work since then */
};

#define SPIN_LEAST_NS NS_PER_US

static void spin_paid(struct worker_thread *worker, struct spin *spin)
{
	spin->now_ns = spin->limit_ns;
	plane_worker_spun(worker->all->plane, worker->index, 1);
}

static void spin_in_vain(struct worker_thread *worker, struct spin *spin)
{
	spin->now_ns = spin->now_ns / 2 < SPIN_LEAST_NS ? 0 : spin->now_ns / 2;
	plane_worker_spun(worker->all->plane, worker->index, 0);
}

/* Returns how long it slept. */
static uint64_t worker_sleep(struct worker_thread *worker, uint64_t wake_ns)
{
	struct pollfd fds[POLLFDS_MAX];
	uint32_t n = plane_worker_pollfds(worker->all->plane, worker->index, fds, POLLFDS_MAX);
	uint64_t now_ns = clock_now_ns(), end_ns;
	struct timespec wait;

	if (wake_ns <= now_ns)
		return 0;
	wait.tv_sec = (time_t)((wake_ns - now_ns) / NS_PER_S);
	wait.tv_nsec = (long)((wake_ns - now_ns) % NS_PER_S);
	tally_add(TALLY_CALL_WAIT, 1);
	/* A failure would only mean waking early. */
	(void)!ppoll(fds, n, wake_ns == TIME_NEVER ? NULL : &wait, NULL);
	end_ns = clock_now_ns();
	plane_worker_slept(worker->all->plane, worker->index, now_ns, end_ns);
	return end_ns - now_ns;
}

static void *worker_main(void *context)
{
	struct worker_thread *worker = context;
	struct worker_threads *all = worker->all;
	struct spin spin = {.limit_ns = worker->spin_ns, .now_ns = worker->spin_ns};

	spin.since_ns = clock_now_ns();
	thread_id_tell(worker);
	while (!stop_asked(all)) {
		uint64_t now_ns = clock_now_ns();
		uint64_t wake_ns = TIME_NEVER;

		if (plane_worker_step(all->plane, worker->index, now_ns, &wake_ns)) {
			if (spin.idle)
				spin_paid(worker, &spin);
			spin.idle = 0;
			spin.since_ns = now_ns;
			continue;
		}
		if (now_ns - spin.since_ns < spin.now_ns) {
			spin.idle = 1;
			continue;
		}
		if (spin.idle)
			spin_in_vain(worker, &spin);
		spin.idle = 0;
		if (worker_sleep(worker, wake_ns) <= spin.limit_ns)
			spin.now_ns = spin.limit_ns;
		spin.since_ns = clock_now_ns();
	}
	return NULL;
}

/* What a thread is: a worker, or which station. Returns its cores, and its place among them. */
static const struct core_list *thread_place(const struct worker_thread *worker,
					    const struct config *config, char name[16],
					    uint32_t *ret_index)
{
	uint32_t kind = 0, index;

	if (worker->index < config->workers) {
		*ret_index = worker->index;
		snprintf(name, 16, "ssv-worker-%u", worker->index % PLANE_WORKERS_MAX);
		return &config->cores;
	}
	index = worker->index - config->workers;
	while (index >= u64_max(1, config->station_cores[kind].count))
		index -= (uint32_t)u64_max(1, config->station_cores[kind++].count);
	*ret_index = index;
	snprintf(name, 16, "ssv-%.6s-%u", plane_station_names[kind], index % PLANE_WORKERS_MAX);
	return &config->station_cores[kind];
}

static int thread_start(struct worker_thread *worker, const struct config *config, char *error)
{
	const struct core_list *cores;
	pthread_attr_t attributes;
	cpu_set_t core;
	char name[16];
	uint32_t index;
	int err;

	cores = thread_place(worker, config, name, &index);
	/* On a core that somebody else may use, spinning would be at his cost. */
	if (cores->count && (cores != &config->cores || config->workers <= cores->count))
		worker->spin_ns = config->spin_us * NS_PER_US;
	err = pthread_attr_init(&attributes);
	if (err)
		return -err;
	if (cores->count) {
		CPU_ZERO(&core);
		CPU_SET(cores->cores[index % cores->count], &core);
		err = pthread_attr_setaffinity_np(&attributes, sizeof(core), &core);
	}
	if (!err)
		err = pthread_create(&worker->thread, &attributes, worker_main, worker);
	pthread_attr_destroy(&attributes);
	if (err) {
		snprintf(error, SSV_ERROR_TEXT_MAX * 2, "%s: %s", name, strerror(err));
		return -err;
	}
	worker->started = 1;
	pthread_setname_np(worker->thread, name);
	return 0;
}

int worker_threads_start(struct plane *plane, const struct config *config,
			 struct worker_threads **ret_threads, char *error)
{
	struct worker_threads *all = calloc(1, sizeof(*all));
	int err = 0;

	if (!all)
		return -ENOMEM;
	all->plane = plane;
	all->count = plane_threads(plane);
	for (uint32_t i = 0; i < all->count && !err; i++) {
		struct pollfd first = {.fd = -1};

		/* Asked before the thread runs: from then on this is the worker's to call. */
		(void)plane_worker_pollfds(plane, i, &first, 1);
		all->threads[i].wake = first.fd;
		all->threads[i].all = all;
		all->threads[i].index = i;
		err = thread_start(&all->threads[i], config, error);
	}
	if (err) {
		(void)!worker_threads_stop(all, 1000);
		return err;
	}
	*ret_threads = all;
	return 0;
}

void worker_threads_usage(const struct worker_threads *all, uint32_t worker,
			  struct thread_usage *ret_usage)
{
	thread_usage_read(thread_id(&all->threads[worker]), ret_usage);
}

int worker_threads_stop(struct worker_threads *all, uint32_t timeout_ms)
{
	struct timespec deadline;
	uint64_t one = 1;
	int hanging = 0;

	if (!all)
		return 0;
	clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += timeout_ms / 1000 + 1;
	stop_ask(all);
	for (uint32_t i = 0; i < all->count; i++) {
		if (!all->threads[i].started)
			continue;
		(void)!write(all->threads[i].wake, &one, sizeof(one));
		if (pthread_timedjoin_np(all->threads[i].thread, NULL, &deadline))
			hanging = 1;
	}
	if (hanging)
		return -ETIMEDOUT;
	free(all);
	return 0;
}
