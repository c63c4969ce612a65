/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prefault.c - one thread a region, at low priority, in small steps, until all of it is mapped.
 *
 * It follows the engine, which allocates the pages from the first one on, and gives up when no page
 * has been added for PATIENCE_MS. It never writes and never allocates a page (but for one that is
 * released between the question and the answer, which engines do not do).
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"
#include "deliver/prefault.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define STEP_BYTES  (2ull * MIB)
#define PAUSE_MS    1u /* between steps: others use this core */
#define WAIT_MS     20u
#define PATIENCE_MS 60000u
#define NICE        10

struct prefault {
	uint8_t *map;
	uint64_t bytes;
	int fd;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	int stop; /* under lock */
};

/* Wait, unless it is to end. Returns whether it is. */
static int pause_or_stop(struct prefault *p, uint32_t ms)
{
	struct timespec until;
	int stop;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += (long)ms * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	pthread_mutex_lock(&p->lock);
	while (!p->stop && pthread_cond_timedwait(&p->wake, &p->lock, &until) == 0)
		;
	stop = p->stop;
	pthread_mutex_unlock(&p->lock);
	return stop;
}

/* Where the pages that begin at `offset` end; `offset` if there are none. The kernel walks over
 * all of them to answer, so this is asked once a run of pages, not once a step. */
static uint64_t present_until(const struct prefault *p, uint64_t offset)
{
	off_t data = lseek(p->fd, (off_t)offset, SEEK_DATA), hole;

	if (data < 0 || (uint64_t)data != offset)
		return offset;
	hole = lseek(p->fd, (off_t)offset, SEEK_HOLE);
	return hole < 0 ? offset : u64_min((uint64_t)hole, p->bytes);
}

static void *prefault_run(void *argument)
{
	struct prefault *p = argument;
	uint32_t waited_ms = 0;
	uint64_t offset = 0, until = 0;

	(void)setpriority(PRIO_PROCESS, 0, NICE); /* of this thread alone */
	while (offset < p->bytes && waited_ms < PATIENCE_MS) {
		uint64_t step;

		if (offset == until)
			until = present_until(p, offset);
		step = u64_min(until - offset, STEP_BYTES);
		if (step && madvise(p->map + offset, step, MADV_POPULATE_WRITE))
			break; /* an old kernel */
		offset += step;
		waited_ms = step ? 0 : waited_ms + WAIT_MS;
		if (pause_or_stop(p, step ? PAUSE_MS : WAIT_MS))
			break;
	}
	close(p->fd);
	return NULL;
}

static int prefault_start(struct prefault *p)
{
	pthread_condattr_t clock;
	int err;

	pthread_condattr_init(&clock);
	pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->wake, &clock);
	pthread_condattr_destroy(&clock);
	err = pthread_create(&p->thread, NULL, prefault_run, p);
	if (err == 0) {
		pthread_setname_np(p->thread, "prefault");
		return 0;
	}
	pthread_cond_destroy(&p->wake);
	pthread_mutex_destroy(&p->lock);
	return -err;
}

struct prefault *prefault_begin(uint8_t *map, uint64_t bytes, int fd)
{
	struct prefault *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	p->map = map;
	p->bytes = bytes;
	p->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (p->fd >= 0 && prefault_start(p) == 0)
		return p;
	if (p->fd >= 0)
		close(p->fd);
	free(p);
	return NULL;
}

void prefault_end(struct prefault *p)
{
	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	p->stop = 1;
	pthread_cond_signal(&p->wake);
	pthread_mutex_unlock(&p->lock);
	pthread_join(p->thread, NULL);
	pthread_cond_destroy(&p->wake);
	pthread_mutex_destroy(&p->lock);
	free(p);
}
