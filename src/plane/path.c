/* SPDX-License-Identifier: Apache-2.0 */
/* path.c - counting and tracing what a worker did; see path.h. */
#include "plane/internal.h"

static const uint8_t stage_kinds[] = {
#define STAGE_KIND(symbol, name, kind) kind,
    STAGES(STAGE_KIND)
#undef STAGE_KIND
};

void path_event(struct trace *trace, enum trace_kind kind, uint64_t start_ns, uint64_t end_ns,
		const struct path_subject *subject)
{
	const struct trace_event event = {
	    .start_ns = start_ns,
	    .span = trace_span(kind, subject->place, end_ns - start_ns),
	    .request = subject->request,
	    .piece = subject->piece,
	    .detail = subject->detail,
	    .value = subject->value,
	};

	trace_put(trace, &event);
}

void path_stage(struct path *path, enum stage stage, uint64_t start_ns, uint64_t end_ns,
		const struct path_subject *subject)
{
	times_add(&path->stages[stage], end_ns - start_ns);
	if (stage_kinds[stage] != TRACE_NONE)
		path_event(&path->trace, stage_kinds[stage], start_ns, end_ns, subject);
}

struct path *plane_thread_path(const struct plane *plane, uint32_t thread)
{
	const uint32_t workers = plane->config.workers_count;

	if (thread < workers)
		return &plane->workers[thread].path;
	return thread < workers + plane->stations_count ? &plane->stations[thread - workers].path
							: NULL;
}

void plane_worker_slept(struct plane *plane, uint32_t index, uint64_t from_ns, uint64_t to_ns)
{
	const struct path_subject subject = {0};

	path_stage(plane_thread_path(plane, index), STAGE_SLEEP, from_ns, to_ns, &subject);
}

void plane_worker_spun(struct plane *plane, uint32_t index, int paid)
{
	if (index >= plane->config.workers_count)
		return;
	counter_add(
	    &plane->workers[index].counters[paid ? COUNTER_SPINS_PAID : COUNTER_SPINS_IN_VAIN], 1);
}

void path_gauges(struct path *path, uint64_t now_ns, uint64_t gauges)
{
	const struct path_subject subject = {.value = gauges};

	if (gauges == path->gauges)
		return;
	path->gauges = gauges;
	path_event(&path->trace, TRACE_GAUGE, now_ns, now_ns, &subject);
}
