/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fault.c - a wrapper that makes another engine fail: "fault+cpu?seed=7&error=1%".
 *
 * Each job's faults are drawn when it is submitted, always the same number of draws, so a seed and
 * an order of submission give the same faults. The contract holds above the wrapper too: a job is
 * handed back once, after the engine below has let go of it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "inflate/engines.h"

enum fault_option {
	OPTION_SEED,
	OPTION_ERROR, /* -EIO although it was inflated */
	OPTION_FLIP,  /* one bit of the output is another, and the status is 0 */
	OPTION_SHORT, /* produced less: -EBADMSG, the output's second half is untouched or wrong */
	OPTION_FULL,  /* submit takes nothing this time */
	OPTION_DELAY, /* polls until it is handed back, at most */
	OPTION_STALL, /* never handed back until the engine is closed */
	OPTIONS_COUNT,
};

struct held {
	struct inflate_job *job; /* NULL: free */
	uint8_t inflated, error, flip, cut, stall;
	uint32_t polls; /* left */
	uint64_t draw;
};

struct fault {
	struct inflate inflate;
	struct inflate *below;
	struct inflate_caps caps;
	struct engine_option option[OPTIONS_COUNT];
	uint64_t random;
	uint32_t held_count;
	struct held held[];
};

static struct fault *fault_of(const struct inflate *inflate)
{
	return (struct fault *)(uintptr_t)inflate;
}

static int fault_open(const struct inflate_config *config, const char *rest,
		      struct inflate **ret_inflate, char *error)
{
	static const struct engine_option options[OPTIONS_COUNT] = {
	    [OPTION_SEED] = {"seed", UINT64_MAX, UINT64_MAX},
	    [OPTION_ERROR] = {"error", 100, 0},
	    [OPTION_FLIP] = {"flip", 100, 0},
	    [OPTION_SHORT] = {"short", 100, 0},
	    [OPTION_FULL] = {"full", 99, 0},
	    [OPTION_DELAY] = {"delay", 1000, 0},
	    [OPTION_STALL] = {"stall", 100, 0}};
	struct inflate_config config_below = *config;
	char below[INFLATE_NAME_MAX];
	struct fault *fault;
	size_t bytes;
	int err;

	if (rest[0] != '+')
		return inflate_refuse(error, -EINVAL,
				      "inflate engine fault: expected fault+ENGINE?option=value");
	bytes = strcspn(++rest, "?");
	snprintf(below, sizeof(below), "%.*s", (int)bytes, rest);
	config_below.name = below;
	fault = calloc(1, sizeof(*fault) + config->depth * sizeof(fault->held[0]));
	if (!fault)
		return inflate_refuse(error, -ENOMEM, "inflate engine fault: out of memory");
	memcpy(fault->option, options, sizeof(options));
	err = engine_options("fault", rest + bytes, fault->option, OPTIONS_COUNT, error);
	if (!err)
		err = inflate_open(&config_below, &fault->below, error);
	if (err) {
		free(fault);
		return err;
	}
	fault->below->ops->caps(fault->below, &fault->caps);
	fault->caps.depth = (uint32_t)u64_min(fault->caps.depth, config->depth);
	fault->random = fault->option[OPTION_SEED].value == UINT64_MAX
			    ? config->seed
			    : fault->option[OPTION_SEED].value;
	fault->inflate.ops = &inflate_fault;
	*ret_inflate = &fault->inflate;
	return 0;
}

static void fault_close(struct inflate *inflate)
{
	inflate_close(fault_of(inflate)->below);
	free(fault_of(inflate));
}

static uint64_t next_random(struct fault *fault)
{
	uint64_t z = fault->random += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static uint8_t draw(struct fault *fault, enum fault_option option)
{
	return next_random(fault) % 100 < fault->option[option].value;
}

static struct held *held_find(struct fault *fault, const struct inflate_job *job)
{
	uint32_t i = 0;

	while (fault->held[i].job != job)
		i++; /* there is one: held_count says so, or the job was taken below */
	return &fault->held[i];
}

/* One job goes to the engine below, with what will become of it. */
static int take(struct fault *fault, struct inflate_job *job)
{
	struct held *held = held_find(fault, NULL);

	if (fault->below->ops->submit(fault->below, &job, 1) != 1)
		return 0;
	*held = (struct held){.job = job,
			      .error = draw(fault, OPTION_ERROR),
			      .flip = draw(fault, OPTION_FLIP),
			      .cut = draw(fault, OPTION_SHORT),
			      .stall = draw(fault, OPTION_STALL),
			      .draw = next_random(fault)};
	held->polls = (uint32_t)(next_random(fault) % (fault->option[OPTION_DELAY].value + 1));
	fault->held_count++;
	return 1;
}

static uint32_t fault_submit(struct inflate *inflate, struct inflate_job *const *jobs, uint32_t n)
{
	struct fault *fault = fault_of(inflate);
	uint32_t i;

	if (draw(fault, OPTION_FULL))
		return 0;
	for (i = 0; i < n && fault->held_count < fault->caps.depth; i++) {
		if (!take(fault, jobs[i]))
			break;
	}
	return i;
}

static void spoil(const struct held *held)
{
	struct inflate_job *job = held->job;

	if (job->status)
		return;
	if (held->flip)
		job->out[held->draw / 8 % job->out_bytes] ^= (uint8_t)(1u << held->draw % 8);
	if (held->cut) {
		memset(job->out + job->out_bytes / 2, 0xcc, job->out_bytes - job->out_bytes / 2);
		job->status = -EBADMSG;
	}
	if (held->error)
		job->status = -EIO;
}

static uint32_t fault_poll(struct inflate *inflate, struct inflate_job **done, uint32_t max)
{
	struct fault *fault = fault_of(inflate);
	struct inflate_job *below[16];
	uint32_t n, count = 0;

	n = fault->below->ops->poll(fault->below, below, ARRAY_COUNT(below));
	for (uint32_t i = 0; i < n; i++)
		held_find(fault, below[i])->inflated = 1;
	for (uint32_t i = 0; i < fault->caps.depth && count < max; i++) {
		struct held *held = &fault->held[i];

		if (!held->job || !held->inflated || held->stall)
			continue;
		if (held->polls) {
			held->polls--;
			continue;
		}
		spoil(held);
		done[count++] = held->job;
		held->job = NULL;
		fault->held_count--;
	}
	return count;
}

static void fault_caps(const struct inflate *inflate, struct inflate_caps *ret_caps)
{
	*ret_caps = fault_of(inflate)->caps;
}

static void fault_stats(const struct inflate *inflate, struct inflate_stats *ret_stats)
{
	const struct fault *fault = fault_of(inflate);

	fault->below->ops->stats(fault->below, ret_stats);
}

const struct inflate_ops inflate_fault = {
    .name = "fault",
    .open = fault_open,
    .close = fault_close,
    .submit = fault_submit,
    .poll = fault_poll,
    .caps = fault_caps,
    .stats = fault_stats,
};
