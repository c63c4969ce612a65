/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engines.h - what the engines share among themselves: their tables, their options, the queue of
 * finished jobs. Nothing outside this folder includes it.
 */
#ifndef SSV_INFLATE_ENGINES_H
#define SSV_INFLATE_ENGINES_H

#include "inflate/inflate.h"

extern const struct inflate_ops inflate_cpu, inflate_null, inflate_fault, inflate_dpdk;

int SSV_PRINTF(3, 4) inflate_refuse(char *error, int code, const char *format, ...);

/* An option "key=number" or "key=number%" of "?key=...&key=...". */
struct engine_option {
	const char *key;
	uint64_t max;
	uint64_t value; /* the default, then what was read */
};

/* Read options from rest, which is empty or begins with '?'. -EINVAL with one line in error. */
SSV_MUST_CHECK int engine_options(const char *engine, const char *rest,
				  struct engine_option *options, uint32_t count, char *error);

/* Jobs in order of arrival. */
struct job_queue {
	struct inflate_job *first, *last;
	uint32_t count;
};

void job_queue_push(struct job_queue *queue, struct inflate_job *job);
struct inflate_job *job_queue_take(struct job_queue *queue); /* NULL: empty */

/* May a job be begun? 0 or -EINVAL. */
int job_check(const struct inflate_job *job, const struct inflate_caps *caps);
void job_count(struct inflate_stats *stats, const struct inflate_job *job);

#endif
