/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ways.h - the delivery ways that one thread has jobs out at: they share its queue, so a job may
 * come back from another way's poll.
 */
#ifndef SSV_PLANE_WAYS_H
#define SSV_PLANE_WAYS_H

#include "deliver/deliver.h"

#define WAYS_MAX 8u /* in use at once */

struct ways {
	struct deliver_queue queue;
	const struct deliver_ops *ops[WAYS_MAX]; /* those with jobs out */
	uint32_t out[WAYS_MAX];                  /* jobs */
};

/* Submit a job that was opened; its way is polled until it comes back. */
void ways_submit(struct ways *ways, struct deliver_job *job);
/* Jobs that are back from place *at on, which moves on; 0: that was the last. Begin at 0. */
uint32_t ways_poll(struct ways *ways, uint32_t *at, struct deliver_job **done, uint32_t max);

enum ways_out {
	WAYS_NONE = 0,  /* no job is out */
	WAYS_SLEEP = 1, /* some are; their ways have descriptors to sleep on */
	WAYS_LOOK = 2,  /* some way must be polled again at once */
};
enum ways_out ways_are_out(const struct ways *ways);
/* Descriptors of ways with jobs out, at most max, as struct pollfd. */
uint32_t ways_pollfds(const struct ways *ways, struct pollfd *fds, uint32_t max);

#endif
