/* SPDX-License-Identifier: Apache-2.0 */
/*
 * null.c - the engine that inflates nothing and says that it did, at once: it measures what is
 * around an engine. The output is whatever lay there.
 */
#include <errno.h>
#include <stdlib.h>

#include "inflate/engines.h"

struct null {
	struct inflate inflate;
	struct inflate_caps caps;
	struct inflate_stats stats;
	struct job_queue done;
};

static struct null *null_of(const struct inflate *inflate)
{
	return (struct null *)(uintptr_t)inflate;
}

static int null_open(const struct inflate_config *config, const char *rest,
		     struct inflate **ret_inflate, char *error)
{
	struct null *null;
	int err;

	err = engine_options("null", rest, NULL, 0, error);
	if (err)
		return err;
	null = calloc(1, sizeof(*null));
	if (!null)
		return inflate_refuse(error, -ENOMEM, "inflate engine null: out of memory");
	null->inflate.ops = &inflate_null;
	null->caps = (struct inflate_caps){.flags = INFLATE_CAP_BESIDE | INFLATE_CAP_NOTHING,
					   .depth = config->depth,
					   .in_bytes_max = INT32_MAX,
					   .out_bytes_max = INT32_MAX,
					   .device = "nothing"};
	*ret_inflate = &null->inflate;
	return 0;
}

static void null_close(struct inflate *inflate)
{
	free(null_of(inflate));
}

static uint32_t null_submit(struct inflate *inflate, struct inflate_job *const *jobs, uint32_t n)
{
	struct null *null = null_of(inflate);
	uint32_t i;

	for (i = 0; i < n && null->done.count < null->caps.depth; i++) {
		jobs[i]->status = job_check(jobs[i], &null->caps);
		job_count(&null->stats, jobs[i]);
		job_queue_push(&null->done, jobs[i]);
	}
	return i;
}

static uint32_t null_poll(struct inflate *inflate, struct inflate_job **done, uint32_t max)
{
	uint32_t n = 0;

	while (n < max && null_of(inflate)->done.count)
		done[n++] = job_queue_take(&null_of(inflate)->done);
	return n;
}

static void null_caps(const struct inflate *inflate, struct inflate_caps *ret_caps)
{
	*ret_caps = null_of(inflate)->caps;
}

static void null_stats(const struct inflate *inflate, struct inflate_stats *ret_stats)
{
	*ret_stats = null_of(inflate)->stats;
}

const struct inflate_ops inflate_null = {
    .name = "null",
    .open = null_open,
    .close = null_close,
    .submit = null_submit,
    .poll = null_poll,
    .caps = null_caps,
    .stats = null_stats,
};
