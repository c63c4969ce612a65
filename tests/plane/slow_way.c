/* SPDX-License-Identifier: Apache-2.0 */
/* slow_way.c - see slow_way.h. One thread; the bytes are moved by the way that it stands before. */
#include "slow_way.h"

#include <errno.h>
#include <string.h>

#include "layouts.h"

#define JOBS_MAX 256u

static struct {
	struct deliver_job *job;
	struct deliver_queue *queue;
} out[JOBS_MAX];
static uint32_t out_count, failures;
static uint64_t random_state;

static const struct deliver_ops *inner(void)
{
	return deliver_way(SSV_MEMORY_ADDRESS);
}

static void slow_submit(struct deliver_queue *queue, struct deliver_job *job)
{
	ssv_assert(out_count < JOBS_MAX);
	out[out_count].job = job;
	out[out_count++].queue = queue;
}

static void slow_move(uint32_t i)
{
	struct deliver_job *job = out[i].job;
	struct deliver_queue *queue = out[i].queue;

	out[i] = out[--out_count];
	if (next_random(&random_state) % 1000 < failures) {
		job->status = -EIO;
		deliver_queue_push(queue, job);
		return;
	}
	inner()->submit(queue, job);
}

static uint32_t slow_poll(struct deliver_queue *queue, struct deliver_job **done, uint32_t max)
{
	for (uint32_t i = 0; i < out_count;) {
		if (out[i].queue == queue && next_random(&random_state) % 4 == 0)
			slow_move(i);
		else
			i++;
	}
	return deliver_queue_poll(queue, done, max);
}

static struct deliver_ops slow_ops;

int slow_attach(const struct ssv_region *offer, const struct ssv_layout *layout,
		const struct deliver_owner *owner, struct region **ret_region, char *error)
{
	int err = region_attach(offer, layout, owner, NULL, ret_region, error);

	if (err || offer->memory != SSV_MEMORY_ADDRESS)
		return err;
	slow_ops = *inner();
	slow_ops.name = "slow";
	slow_ops.submit = slow_submit;
	slow_ops.poll = slow_poll;
	(*ret_region)->ops = &slow_ops;
	return 0;
}

void slow_way_reset(uint64_t seed, uint32_t failures_per_mille)
{
	random_state = seed;
	failures = failures_per_mille;
	out_count = 0;
}

uint32_t slow_way_jobs_out(void)
{
	return out_count;
}
