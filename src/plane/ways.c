/* SPDX-License-Identifier: Apache-2.0 */
/* ways.c - see ways.h. */
#include "plane/ways.h"

#include <poll.h>

static void job_back(struct ways *ways, const struct deliver_job *job)
{
	uint32_t k = 0;

	while (ways->out[k] == 0 || ways->ops[k] != job->region->ops)
		k++;
	ways->out[k]--;
}

void ways_submit(struct ways *ways, struct deliver_job *job)
{
	const struct deliver_ops *way = job->region->ops;
	uint32_t k = 0, free_way = WAYS_MAX;

	while (k < WAYS_MAX && (ways->out[k] == 0 || ways->ops[k] != way)) {
		if (ways->out[k] == 0)
			free_way = k;
		k++;
	}
	if (k == WAYS_MAX)
		k = free_way;
	ssv_assert(k < WAYS_MAX);
	ways->ops[k] = way;
	ways->out[k]++;
	job->submitted_ns = ways->queue.now_ns;
	way->submit(&ways->queue, job);
}

uint32_t ways_poll(struct ways *ways, uint32_t *at, struct deliver_job **done, uint32_t max)
{
	while (*at < WAYS_MAX) {
		const uint32_t k = (*at)++;
		uint32_t n = 0;

		if (ways->out[k])
			n = ways->ops[k]->poll(&ways->queue, done, max);
		for (uint32_t i = 0; i < n; i++)
			job_back(ways, done[i]);
		if (n)
			return n;
	}
	return 0;
}

enum ways_out ways_are_out(const struct ways *ways)
{
	enum ways_out out = WAYS_NONE;

	for (uint32_t k = 0; k < WAYS_MAX; k++) {
		if (ways->out[k] && !ways->ops[k]->pollfds)
			return WAYS_LOOK;
		if (ways->out[k])
			out = WAYS_SLEEP;
	}
	return out;
}

uint32_t ways_pollfds(const struct ways *ways, struct pollfd *fds, uint32_t max)
{
	uint32_t n = 0;

	for (uint32_t k = 0; k < WAYS_MAX; k++) {
		if (ways->out[k] && ways->ops[k]->pollfds)
			n += ways->ops[k]->pollfds(&ways->queue, fds + n, max - n);
	}
	return n;
}
