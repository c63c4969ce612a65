/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stat_path.c - the hot path as JSON ("path" of stat): what it copied, asked of the kernel and
 * allocated, and how long each stage and wait took, since the last reset.
 *
 * A reset changes no counter: it notes where they stood and begins a new epoch, whose number is in
 * the JSON. So whoever reads the counters that only grow is not disturbed by one.
 */
#include <cjson/cJSON.h>
#include <string.h>

#include "base/clock.h"
#include "plane/internal.h"

static const char *const stage_names[] = {
#define STAGE_NAME(symbol, name, kind) name,
    STAGES(STAGE_NAME)
#undef STAGE_NAME
};

static const char *const control_stage_names[] = {
#define STAGE_NAME(symbol, name) name,
    CONTROL_STAGES(STAGE_NAME)
#undef STAGE_NAME
};

static const char *const tally_names[] = {
#define TALLY_NAME(symbol, name) name,
    TALLY_CALLS(TALLY_NAME) TALLY_BYTES(TALLY_NAME)
#undef TALLY_NAME
};

/* Everything at one time, all workers and stations together. */
struct path_sum {
	uint64_t tallies[TALLIES_COUNT];
	uint64_t control_tallies[TALLIES_COUNT];
	uint64_t counters[COUNTERS_COUNT];
	struct times_copy stages[STAGES_COUNT];
	struct times_copy control_stages[CONTROL_STAGES_COUNT];
};

struct path_base {
	uint32_t epoch;
	uint64_t since_ns;      /* 0: nothing was asked yet, from the start */
	struct path_sum before; /* at the last reset */
	struct path_sum sum;    /* scratch: since then */
};

struct path_base *path_base_create(void)
{
	struct path_base *base = calloc(1, sizeof(*base));

	if (base)
		base->epoch = 1;
	return base;
}

static void sum_read(const struct plane *plane, struct path_sum *sum)
{
	const struct path *path;

	memset(sum, 0, sizeof(*sum));
	for (uint32_t i = 0; (path = plane_thread_path(plane, i)); i++) {
		for (uint32_t k = 0; k < TALLIES_COUNT; k++)
			sum->tallies[k] += counter_read(&path->tally.counters[k]);
		for (uint32_t k = 0; k < STAGES_COUNT; k++)
			times_read(&path->stages[k], &sum->stages[k]);
	}
	for (uint32_t i = 0; i < plane->config.workers_count; i++) {
		for (uint32_t k = 0; k < COUNTERS_COUNT; k++)
			sum->counters[k] += counter_read(&plane->workers[i].counters[k]);
	}
	for (uint32_t k = 0; k < TALLIES_COUNT; k++)
		sum->control_tallies[k] = counter_read(&plane->tally.counters[k]);
	for (uint32_t k = 0; k < CONTROL_STAGES_COUNT; k++)
		times_read(&plane->stages[k], &sum->control_stages[k]);
}

static void sum_subtract(struct path_sum *sum, const struct path_sum *before)
{
	for (uint32_t k = 0; k < TALLIES_COUNT; k++) {
		sum->tallies[k] -= before->tallies[k];
		sum->control_tallies[k] -= before->control_tallies[k];
	}
	for (uint32_t k = 0; k < COUNTERS_COUNT; k++)
		sum->counters[k] -= before->counters[k];
	for (uint32_t k = 0; k < STAGES_COUNT; k++)
		times_subtract(&sum->stages[k], &before->stages[k]);
	for (uint32_t k = 0; k < CONTROL_STAGES_COUNT; k++)
		times_subtract(&sum->control_stages[k], &before->control_stages[k]);
}

void plane_stat_reset(struct plane *plane, uint64_t now_ns)
{
	struct path_base *base = plane->base;

	sum_read(plane, &base->before);
	base->since_ns = now_ns;
	base->epoch++;
	for (uint32_t i = 0; i < CONTROL_STAGES_COUNT; i++)
		times_restart(&plane->stages[i]);
	/* A worker that sleeps needs no waking: until it works nothing gets longer or fuller. */
	for (uint32_t i = 0; i < plane_threads(plane); i++)
		path_epoch_ask(plane_thread_path(plane, i), base->epoch);
}

static void add_number(cJSON *object, const char *name, uint64_t value)
{
	cJSON_AddNumberToObject(object, name, (double)value);
}

static void add_share(cJSON *object, const char *name, uint64_t value, uint64_t of)
{
	if (of)
		cJSON_AddNumberToObject(object, name, (double)value / (double)of);
	else
		cJSON_AddNullToObject(object, name);
}

/* What the kernel copies out of a socket or file is "received"; everything else that moves a byte
 * of KV between its arrival and its place is a copy of ours. */
static void add_copies(const struct path_sum *sum, cJSON *path)
{
	const uint64_t *bytes = sum->tallies;
	const uint64_t delivered = sum->counters[COUNTER_FETCH_KV_BYTES];
	cJSON *copies = cJSON_AddObjectToObject(path, "bytes");

	add_number(copies, "delivered", delivered);
	add_number(copies, "wire", sum->counters[COUNTER_FETCH_WIRE_BYTES]);
	for (uint32_t k = TALLY_CALLS_COUNT; k < TALLIES_COUNT; k++)
		add_number(copies, tally_names[k], bytes[k]);
	add_share(copies, "decoded_per_delivered", bytes[TALLY_BYTES_DECODED], delivered);
	add_share(copies, "staged_per_delivered", bytes[TALLY_BYTES_STAGED], delivered);
	add_share(copies, "header_per_received", bytes[TALLY_BYTES_HEADER],
		  bytes[TALLY_BYTES_RECEIVED]);
}

static void add_calls(cJSON *path, const char *name, const uint64_t *tallies, uint64_t chunks)
{
	cJSON *calls = cJSON_AddObjectToObject(path, name);
	uint64_t all = 0;

	for (uint32_t k = 0; k < TALLY_CALLS_COUNT; k++) {
		add_number(calls, tally_names[k], tallies[k]);
		all += tallies[k];
	}
	add_number(calls, "all", all);
	add_share(calls, "per_chunk", all, chunks);
}

static void add_times(cJSON *stages, const char *name, const struct times_copy *times)
{
	cJSON *stage = cJSON_AddObjectToObject(stages, name);

	add_number(stage, "count", times->count);
	cJSON_AddNumberToObject(stage, "sum_us", (double)times->sum_ns / 1e3);
	cJSON_AddNumberToObject(stage, "p50_us", (double)times_quantile(times, 0.5) / 1e3);
	cJSON_AddNumberToObject(stage, "p99_us", (double)times_quantile(times, 0.99) / 1e3);
	cJSON_AddNumberToObject(stage, "max_us",
				times->count ? (double)times->longest_ns / 1e3 : 0);
}

/* Chunks that were taken up. One that was given back unbegun is taken up once more elsewhere; it
 * may have come before the last reset and gone back after it. */
static uint64_t count_chunks(const struct path_sum *sum)
{
	const uint64_t fetches = sum->counters[COUNTER_FETCHES];
	const uint64_t returns = sum->counters[COUNTER_FETCH_RETURNS];

	return fetches - u64_min(fetches, returns) + sum->counters[COUNTER_STORES];
}

void stat_path(struct plane *plane, uint64_t now_ns, void *json)
{
	struct path_sum *sum = &plane->base->sum;
	cJSON *path = cJSON_AddObjectToObject(json, "path"), *stages;
	uint64_t chunks;

	sum_read(plane, sum);
	sum_subtract(sum, &plane->base->before);
	chunks = count_chunks(sum);
	add_number(path, "epoch", plane->base->epoch);
	if (plane->base->since_ns)
		cJSON_AddNumberToObject(path, "seconds",
					(double)(now_ns - plane->base->since_ns) / 1e9);
	else
		cJSON_AddNullToObject(path, "seconds"); /* since the start */
	add_number(path, "chunks", chunks);
	add_number(path, "chunks_fetched", sum->counters[COUNTER_FETCH_HITS]);
	add_number(path, "chunks_put", sum->counters[COUNTER_PUTS]);
	add_copies(sum, path);
	add_calls(path, "calls", sum->tallies, chunks);
	add_calls(path, "control_calls", sum->control_tallies, chunks);
	if (plane->config.allocations)
		add_number(path, "allocations", sum->counters[COUNTER_ALLOCATIONS]);
	else
		cJSON_AddNullToObject(path, "allocations"); /* nobody counts them */
	add_number(path, "steps", sum->counters[COUNTER_STEPS]);
	add_number(path, "idle_steps", sum->counters[COUNTER_IDLE_STEPS]);
	add_number(path, "spins_paid", sum->counters[COUNTER_SPINS_PAID]);
	add_number(path, "spins_in_vain", sum->counters[COUNTER_SPINS_IN_VAIN]);
	stages = cJSON_AddObjectToObject(path, "stages");
	for (uint32_t k = 0; k < CONTROL_STAGES_COUNT; k++)
		add_times(stages, control_stage_names[k], &sum->control_stages[k]);
	for (uint32_t k = 0; k < STAGES_COUNT; k++)
		add_times(stages, stage_names[k], &sum->stages[k]);
}
