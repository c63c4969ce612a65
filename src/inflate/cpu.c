/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpu.c - the engine of a machine that has none: ISA-L on the caller's core, one job a poll.
 *
 * It inflates each stream at once and whole, so it never waits for input that does not come.
 */
#include <errno.h>
#include <isa-l.h>
#include <stdlib.h>

#include "inflate/engines.h"

struct cpu {
	struct inflate inflate;
	struct inflate_caps caps;
	struct inflate_stats stats;
	struct job_queue waiting;
	struct inflate_state state;
};

static struct cpu *cpu_of(const struct inflate *inflate)
{
	return (struct cpu *)(uintptr_t)inflate;
}

static int cpu_open(const struct inflate_config *config, const char *rest,
		    struct inflate **ret_inflate, char *error)
{
	struct cpu *cpu;
	int err;

	err = engine_options("cpu", rest, NULL, 0, error);
	if (err)
		return err;
	cpu = calloc(1, sizeof(*cpu));
	if (!cpu)
		return inflate_refuse(error, -ENOMEM, "inflate engine cpu: out of memory");
	cpu->inflate.ops = &inflate_cpu;
	cpu->caps = (struct inflate_caps){.depth = config->depth,
					  .in_bytes_max = INT32_MAX,
					  .out_bytes_max = INT32_MAX,
					  .device = "ISA-L on the worker's core"};
	*ret_inflate = &cpu->inflate;
	return 0;
}

static void cpu_close(struct inflate *inflate)
{
	free(cpu_of(inflate));
}

static int cpu_inflate(struct inflate_state *state, const struct inflate_job *job)
{
	isal_inflate_reset(state);
	state->crc_flag = ISAL_DEFLATE;
	state->next_in = (uint8_t *)(uintptr_t)job->in;
	state->avail_in = job->in_bytes;
	state->next_out = job->out;
	state->avail_out = job->out_bytes;
	if (isal_inflate_stateless(state) != ISAL_DECOMP_OK)
		return -EBADMSG;
	return state->total_out == job->out_bytes && state->avail_in == 0 ? 0 : -EBADMSG;
}

static uint32_t cpu_submit(struct inflate *inflate, struct inflate_job *const *jobs, uint32_t n)
{
	struct cpu *cpu = cpu_of(inflate);
	uint32_t i;

	for (i = 0; i < n && cpu->waiting.count < cpu->caps.depth; i++)
		job_queue_push(&cpu->waiting, jobs[i]);
	return i;
}

static uint32_t cpu_poll(struct inflate *inflate, struct inflate_job **done, uint32_t max)
{
	struct cpu *cpu = cpu_of(inflate);
	struct inflate_job *job = max ? job_queue_take(&cpu->waiting) : NULL;

	if (!job)
		return 0;
	job->status = job_check(job, &cpu->caps);
	if (!job->status)
		job->status = cpu_inflate(&cpu->state, job);
	job_count(&cpu->stats, job);
	done[0] = job;
	return 1;
}

static void cpu_caps(const struct inflate *inflate, struct inflate_caps *ret_caps)
{
	*ret_caps = cpu_of(inflate)->caps;
}

static void cpu_stats(const struct inflate *inflate, struct inflate_stats *ret_stats)
{
	*ret_stats = cpu_of(inflate)->stats;
}

const struct inflate_ops inflate_cpu = {
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .submit = cpu_submit,
    .poll = cpu_poll,
    .caps = cpu_caps,
    .stats = cpu_stats,
};
