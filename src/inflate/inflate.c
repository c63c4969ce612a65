/* SPDX-License-Identifier: Apache-2.0 */
/*
 * inflate.c - the one place that names the engines, and what they share: options and queues.
 */
#include "inflate/inflate.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "inflate/engines.h"

static const struct inflate_ops *const engines[] = {
    &inflate_cpu,
    &inflate_null,
    &inflate_fault,
    &inflate_dpdk,
};

int inflate_refuse(char *error, int code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(error, SSV_ERROR_TEXT_MAX, format, args);
	va_end(args);
	return code;
}

/* The engine that a name begins with; what follows is its own. */
static const struct inflate_ops *find(const char *name, const char **ret_rest)
{
	const size_t bytes = strcspn(name, "+:?");

	for (uint32_t i = 0; i < ARRAY_COUNT(engines); i++) {
		if (strlen(engines[i]->name) != bytes || memcmp(engines[i]->name, name, bytes))
			continue;
		*ret_rest = name + bytes;
		return engines[i];
	}
	return NULL;
}

int inflate_check(const char *name, char *error)
{
	const struct inflate_ops *ops;
	const char *rest;

	if (strlen(name) >= INFLATE_NAME_MAX)
		return inflate_refuse(error, -EINVAL, "inflate engine: name of %u bytes or more",
				      INFLATE_NAME_MAX);
	ops = find(name, &rest);
	if (!ops)
		return inflate_refuse(error, -EINVAL,
				      "inflate engine \"%.100s\": expected cpu, dpdk, "
				      "dpdk:DEVICE, null, or fault+ before one of these",
				      name);
	if (ops == &inflate_fault && rest[0] == '+')
		return inflate_check(rest + 1, error);
	if (rest[0] == '+')
		return inflate_refuse(error, -EINVAL,
				      "inflate engine \"%.100s\": nothing stacks on %s", name,
				      ops->name);
	return 0;
}

int inflate_open(const struct inflate_config *config, struct inflate **ret_inflate, char *error)
{
	const struct inflate_ops *ops;
	const char *rest = NULL;
	int err;

	err = inflate_check(config->name, error);
	if (err)
		return err;
	if (!config->depth || config->depth > INFLATE_DEPTH_MAX || !config->handles ||
	    config->handles > INFLATE_DEPTH_MAX)
		return inflate_refuse(error, -EINVAL,
				      "inflate engine: depth %u of %u handles, expected 1..%u",
				      config->depth, config->handles, INFLATE_DEPTH_MAX);
	ops = find(config->name, &rest);
	return ops->open(config, rest, ret_inflate, error);
}

void inflate_close(struct inflate *inflate)
{
	if (inflate)
		inflate->ops->close(inflate);
}

/* ---- options -------------------------------------------------------------------------------- */

static int option_read(const char *engine, const char *pair, size_t bytes,
		       struct engine_option *options, uint32_t count, char *error)
{
	for (uint32_t i = 0; i < count; i++) {
		const size_t key = strlen(options[i].key);
		char *end = NULL;

		if (bytes <= key + 1 || memcmp(pair, options[i].key, key) || pair[key] != '=')
			continue;
		errno = 0;
		if (pair[key + 1] >= '0' && pair[key + 1] <= '9')
			options[i].value = strtoull(pair + key + 1, &end, 10);
		if (end && *end == '%')
			end++;
		if (!end || errno || end != pair + bytes || options[i].value > options[i].max)
			return inflate_refuse(error, -EINVAL,
					      "inflate engine %s: \"%.*s\": expected %s=0..%llu",
					      engine, (int)bytes, pair, options[i].key,
					      (unsigned long long)options[i].max);
		return 0;
	}
	return inflate_refuse(error, -EINVAL, "inflate engine %s: no option \"%.*s\"", engine,
			      (int)bytes, pair);
}

int engine_options(const char *engine, const char *rest, struct engine_option *options,
		   uint32_t count, char *error)
{
	int err = 0;

	if (rest[0] && rest[0] != '?')
		return inflate_refuse(error, -EINVAL,
				      "inflate engine %s: \"%.100s\": expected nothing or "
				      "?option=value",
				      engine, rest);
	while (!err && *rest) {
		const size_t bytes = strcspn(++rest, "&");

		err = option_read(engine, rest, bytes, options, count, error);
		rest += bytes;
	}
	return err;
}

/* ---- queues --------------------------------------------------------------------------------- */

void job_queue_push(struct job_queue *queue, struct inflate_job *job)
{
	job->next = NULL;
	if (queue->first)
		queue->last->next = job;
	else
		queue->first = job;
	queue->last = job;
	queue->count++;
}

struct inflate_job *job_queue_take(struct job_queue *queue)
{
	struct inflate_job *job = queue->first;

	if (job) {
		queue->first = job->next;
		queue->count--;
	}
	return job;
}

int job_check(const struct inflate_job *job, const struct inflate_caps *caps)
{
	if (!job->in_bytes || !job->out_bytes || job->in_bytes > caps->in_bytes_max ||
	    job->out_bytes > caps->out_bytes_max)
		return -EINVAL;
	return 0;
}

void job_count(struct inflate_stats *stats, const struct inflate_job *job)
{
	stats->jobs++;
	stats->failed += job->status != 0;
	stats->bytes_in += job->in_bytes;
	stats->bytes_out += job->status ? 0 : job->out_bytes;
}
