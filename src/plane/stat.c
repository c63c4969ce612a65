/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stat.c - the plane's state as JSON: docs/plane.md lists the fields. Counters of running workers
 * are read as they are; numbers of one object may be some microseconds apart.
 */
#include <cjson/cJSON.h>
#include <errno.h>

#include "codec/kernels.h"
#include "plane/internal.h"

static const char *const worker_counter_names[] = {
#define WORKER_COUNTER_NAME(symbol, name) name,
    WORKER_COUNTERS(WORKER_COUNTER_NAME)
#undef WORKER_COUNTER_NAME
};

static const char *const plane_counter_names[] = {
#define PLANE_COUNTER_NAME(symbol, name) name,
    PLANE_COUNTERS(PLANE_COUNTER_NAME)
#undef PLANE_COUNTER_NAME
};

static const char *const stage_names[] = {
#define STAGE_NAME(symbol, name, kind) name,
    STAGES(STAGE_NAME)
#undef STAGE_NAME
};

static const char *const store_counter_names[] = {
#define STORE_COUNTER_NAME(field) #field,
    STORE_COUNTERS(STORE_COUNTER_NAME)
#undef STORE_COUNTER_NAME
};

static void add_number(cJSON *object, const char *name, uint64_t value)
{
	cJSON_AddNumberToObject(object, name, (double)value);
}

static uint64_t sum_counter(const struct plane *plane, uint32_t counter)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < plane->config.workers_count; i++)
		sum += counter_read(&plane->workers[i].counters[counter]);
	return sum;
}

static void add_memory(const struct plane *plane, cJSON *json)
{
	cJSON *memory = cJSON_AddObjectToObject(json, "memory");

	add_number(memory, "bytes", plane_bytes(plane));
	add_number(memory, "arena_bytes", plane->arena.bytes);
	add_number(memory, "tables_bytes", plane->tables_bytes);
	cJSON_AddBoolToObject(memory, "pinned", plane->arena.pinned);
	cJSON_AddStringToObject(memory, "huge_pages",
				plane->arena.reserved     ? "reserved"
				: plane->arena.huge_bytes ? "transparent"
							  : "none");
	add_number(memory, "huge_bytes", plane->arena.huge_bytes);
	add_number(memory, "wire_pool_bytes", plane->wire_bytes);
	add_number(memory, "capture_pool_bytes", plane->capture_bytes);
	add_number(memory, "put_pool_bytes", plane->put_bytes);
	add_number(memory, "stage_pool_bytes", plane->stage_bytes);
	add_number(memory, "inflated_pool_bytes", plane->inflated_bytes);
	add_number(memory, "request_slots_free", plane->request_slots.free_count);
	add_number(memory, "request_slots", plane->request_slots.slots_count);
}

static void add_counters(const struct plane *plane, cJSON *json)
{
	cJSON *counters = cJSON_AddObjectToObject(json, "counters");
	cJSON *faults = cJSON_AddObjectToObject(json, "faults");

	for (uint32_t i = 0; i < PLANE_COUNTERS_COUNT; i++)
		add_number(counters, plane_counter_names[i], plane->counters[i]);
	for (uint32_t i = 0; i < COUNTER_STEPS; i++)
		add_number(counters, worker_counter_names[i], sum_counter(plane, i));
	for (uint32_t i = 1; i < FAULTS_COUNT; i++) {
		uint64_t sum = 0;

		for (uint32_t k = 0; k < plane->config.workers_count; k++)
			sum += counter_read(&plane->workers[k].faults[i]);
		if (sum)
			add_number(faults, container_fault_text((enum container_fault)i), sum);
	}
}

static void add_stages(const struct plane *plane, cJSON *json)
{
	cJSON *stages = cJSON_AddObjectToObject(json, "stages");

	for (uint32_t i = 0; i < STAGES_COUNT; i++) {
		cJSON *stage = cJSON_AddObjectToObject(stages, stage_names[i]);
		uint64_t count = 0, sum_ns = 0;

		for (uint32_t k = 0; k < plane_threads(plane); k++) {
			const struct path *path = plane_thread_path(plane, k);

			count += counter_read(&path->stages[i].count);
			sum_ns += counter_read(&path->stages[i].sum_ns);
		}
		add_number(stage, "count", count);
		add_number(stage, "sum_us", sum_ns / 1000);
	}
}

static void add_store(const struct plane *plane, cJSON *json)
{
	cJSON *store = cJSON_AddObjectToObject(json, "store");

	cJSON_AddStringToObject(store, "uri", plane->store_text);
	cJSON_AddStringToObject(store, "scheme", plane->workers[0].store->ops->scheme);
	for (uint32_t i = 0; i < STORE_COUNTERS_COUNT; i++) {
		/* What the store as a whole has is the same for every handle. */
		int whole = i == STORE_COUNTER_bytes_used || i == STORE_COUNTER_bytes_limit ||
			    i == STORE_COUNTER_nodes || i == STORE_COUNTER_nodes_connected;
		uint64_t sum = 0;

		for (uint32_t k = 0; k < plane->config.workers_count; k++) {
			uint64_t value = counter_read(&plane->workers[k].store_counters[i]);

			sum = whole ? u64_max(sum, value) : sum + value;
		}
		add_number(store, store_counter_names[i], sum);
	}
	cJSON_AddNumberToObject(store, "fetch_bytes_per_s", plane_fetch_rate(plane));
	cJSON_AddNumberToObject(store, "chunk_bytes",
				plane->rate_chunks > 0 ? plane->rate_bytes / plane->rate_chunks
						       : 0);
}

static void add_sessions(struct plane *plane, cJSON *json)
{
	cJSON *sessions = cJSON_AddArrayToObject(json, "sessions");

	for (uint32_t i = 0; i < plane->config.sessions_max; i++) {
		struct session *session = &plane->sessions[i];
		cJSON *item;

		if (!session->used || session->ended)
			continue;
		item = cJSON_CreateObject();
		cJSON_AddItemToArray(sessions, item);
		add_number(item, "session", i);
		cJSON_AddStringToObject(item, "engine_id", session->engine_id);
		add_number(item, "rank", session->rank);
		add_number(item, "ranks_count", session->ranks_count);
		add_number(item, "pid", (uint64_t)session->pid);
		add_number(item, "requests", session->running);
		cJSON_AddBoolToObject(item, "ending", session->ending);
	}
}

static void add_quality(const struct region_slot *slot, cJSON *item)
{
	const struct region_quality *q = &slot->quality;
	char text[17];
	cJSON *tiers;

	plane_hex(slot->region->layout->model, text);
	cJSON_AddStringToObject(item, "model", text);
	cJSON_AddStringToObject(item, "tier", tier_name(q->tier));
	if (q->profile)
		plane_hex(q->profile->steps.hash, text);
	cJSON_AddStringToObject(item, "profile", q->profile ? text : "none");
	if (q->profile)
		cJSON_AddStringToObject(item, "profile_name", q->profile->name);
	cJSON_AddStringToObject(item, "steps", q->profile ? "profile" : "uniform");
	tiers = cJSON_AddArrayToObject(item, "tiers_allowed");
	for (uint8_t t = SSV_TIER_LOSSLESS; t <= SSV_TIER_TINY; t++)
		if (q->allowed[t] == t)
			cJSON_AddItemToArray(tiers, cJSON_CreateString(tier_name(t)));
}

static void add_region(const struct plane *plane, uint32_t index, cJSON *item)
{
	const struct region_slot *slot = &plane->regions[index];
	const struct layout *layout = slot->region->layout;
	cJSON *parts;

	add_number(item, "region", region_number(plane, index));
	add_number(item, "session", slot->session);
	cJSON_AddStringToObject(item, "way", slot->region->ops->name);
	add_number(item, "bytes", slot->region->bytes);
	cJSON_AddStringToObject(item, "dtype", dtype_name(layout->shape.dtype));
	add_number(item, "layers", layout->shape.layers_count);
	add_number(item, "block_tokens", layout->block_tokens);
	add_number(item, "blocks", layout->blocks_count);
	add_number(item, "chunk_kv_bytes", shape_kv_bytes(&layout->shape));
	add_number(item, "requests", slot->jobs_count);
	add_quality(slot, item);
	parts = cJSON_AddArrayToObject(item, "parts");
	for (uint32_t i = 0; i < layout->parts_count; i++) {
		cJSON *part = cJSON_CreateObject();

		cJSON_AddItemToArray(parts, part);
		add_number(part, "role", layout->parts[i].shape.role);
		add_number(part, "heads", layout->parts[i].shape.heads);
		add_number(part, "dim", layout->parts[i].shape.dim);
		add_number(part, "run_bytes",
			   (uint64_t)layout->parts[i].place.run_channels * layout->element_bytes);
	}
}

static void add_workers(const struct plane *plane, cJSON *json)
{
	cJSON *workers = cJSON_AddArrayToObject(json, "workers");

	for (uint32_t i = 0; i < plane->config.workers_count; i++) {
		const struct worker *worker = &plane->workers[i];
		cJSON *item = cJSON_CreateObject();

		cJSON_AddItemToArray(workers, item);
		for (uint32_t k = COUNTER_STEPS; k < COUNTERS_COUNT; k++)
			add_number(item, worker_counter_names[k],
				   counter_read(&worker->counters[k]));
		add_number(item, "wire_slots", worker->wire.slots_count);
		add_number(item, "capture_slots", worker->capture.slots_count);
		add_number(item, "put_slots", worker->put.slots_count);
		add_number(item, "stage_slots", worker->stage.slots_count);
		add_number(item, "inflated_slots", worker->inflated.slots_count);
		add_number(item, "lanes", plane->config.lanes);
		add_number(item, "captures", plane->config.captures_max);
	}
}

/* Who does the stages: the engine, and the threads beside the workers. */
static void add_pipeline(const struct plane *plane, cJSON *json)
{
	const char *engine = plane->config.inflate;
	cJSON *pipeline = cJSON_AddObjectToObject(json, "pipeline");
	cJSON *stations = cJSON_AddArrayToObject(pipeline, "stations");

	cJSON_AddStringToObject(pipeline, "shape", plane->stations ? "stages" : "one-pass");
	if (!engine)
		engine = plane->stations ? "cpu" : "in the decoder";
	cJSON_AddStringToObject(pipeline, "inflate", engine);
	if (plane->inflate_caps.device) {
		cJSON_AddStringToObject(pipeline, "inflate_device", plane->inflate_caps.device);
		add_number(pipeline, "inflate_depth", plane->inflate_caps.depth);
		add_number(pipeline, "inflate_record_bytes_max", plane->inflate_caps.out_bytes_max);
	}
	for (uint32_t i = 0; i < plane->stations_count; i++) {
		const struct station *station = &plane->stations[i];
		cJSON *item = cJSON_CreateObject();
		uint64_t busy_ns = 0;

		for (uint32_t k = STAGE_SLEEP + 1; k < STAGES_COUNT; k++)
			busy_ns += counter_read(&station->path.stages[k].sum_ns);
		cJSON_AddItemToArray(stations, item);
		cJSON_AddStringToObject(item, "stage", plane_station_names[station->kind]);
		add_number(item, "index", station->index);
		add_number(item, "items", counter_read(&station->items));
		add_number(item, "busy_us", busy_ns / 1000);
		add_number(item, "steps", counter_read(&station->steps));
		add_number(item, "idle_steps", counter_read(&station->idle_steps));
	}
}

int plane_stat(struct plane *plane, uint64_t now_ns, void *object)
{
	cJSON *json = object, *regions, *times;

	add_memory(plane, json);
	add_number(json, "profiles", plane->config.profiles ? plane->config.profiles->count : 0);
	add_number(json, "jobs", plane->jobs_used);
	add_number(json, "jobs_max", plane->config.jobs_max);
	cJSON_AddBoolToObject(json, "draining", plane->draining);
	cJSON_AddStringToObject(json, "tier",
				plane->config.tier ? tier_name(plane->config.tier) : "auto");
	cJSON_AddStringToObject(json, "codec", codec_name(plane->config.codec));
	cJSON_AddBoolToObject(json, "trellis", plane->config.trellis);
	cJSON_AddStringToObject(json, "simd", kernels_get()->name);
	add_counters(plane, json);
	add_stages(plane, json);
	stat_path(plane, now_ns, json);
	add_store(plane, json);
	add_sessions(plane, json);
	regions = cJSON_AddArrayToObject(json, "regions");
	for (uint32_t i = 0; i < plane->config.regions_max; i++) {
		cJSON *item;

		if (!plane->regions[i].used || !plane->regions[i].region)
			continue;
		item = cJSON_CreateObject();
		cJSON_AddItemToArray(regions, item);
		add_region(plane, i, item);
	}
	times = cJSON_AddArrayToObject(json, "fetch_us_log2");
	for (uint32_t i = 0; i < TIME_BUCKETS; i++)
		cJSON_AddItemToArray(times, cJSON_CreateNumber((double)plane->fetch_times[i]));
	add_workers(plane, json);
	add_pipeline(plane, json);
	/* cJSON reports a failed allocation only by what is missing. */
	return cJSON_GetObjectItem(json, "workers") ? 0 : -ENOMEM;
}
