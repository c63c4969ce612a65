/* SPDX-License-Identifier: Apache-2.0 */
/*
 * plane.c - the plane as a whole: everything is allocated here, at start, and stepped from here.
 */
#include "plane/plane.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "plane/internal.h"

int plane_refuse(char *error, int code, const char *format, ...)
{
	va_list args;

	if (!error)
		return code;
	va_start(args, format);
	vsnprintf(error, SSV_ERROR_TEXT_MAX, format, args);
	va_end(args);
	return code;
}

void plane_key_text(const struct ssv_key *key, char text[PLANE_KEY_TEXT])
{
	for (uint32_t i = 0; i < sizeof(key->bytes); i++)
		snprintf(text + 2 * i, 3, "%02x", key->bytes[i]);
}

#define CONTROL_TRACE_SLOTS 4096u

const char *const plane_station_names[PLANE_STATIONS] = {
    [PLANE_STATION_INFLATE] = "inflate",
    [PLANE_STATION_DEQUANTISE] = "dequantise",
    [PLANE_STATION_DELIVER] = "deliver",
};

/* ---- creation ------------------------------------------------------------------------------- */

struct limit {
	const char *name;
	uint32_t value, least, most;
};

static int config_check(const struct plane_config *config, char *error)
{
	const struct limit limits[] = {
	    {"workers", config->workers_count, 1, PLANE_WORKERS_MAX},
	    {"sessions_max", config->sessions_max, 1, PLANE_SESSIONS_MAX},
	    {"regions_max", config->regions_max, 1, PLANE_REGIONS_MAX},
	    {"jobs_max", config->jobs_max, 1, 1u << 20},
	    {"lanes", config->lanes, 1, LANES_MAX},
	    {"captures_max", config->captures_max, 1, CAPTURES_MAX},
	    {"channels_max", config->channels_max, 1, SSV_CHANNELS_MAX},
	    {"fetch_deadline_ms", config->fetch_deadline_ms, 1, UINT32_MAX},
	    {"store_deadline_ms", config->store_deadline_ms, 1, UINT32_MAX},
	    {"lookup_deadline_ms", config->lookup_deadline_ms, 1, UINT32_MAX},
	    {"tier", config->tier, 0, SSV_TIER_TINY},
	    {"min_tier", config->min_tier, 0, SSV_TIER_TINY},
	    {"verbatim_tokens", config->verbatim_tokens, 0, UINT8_MAX},
	    {"overlap", config->overlap, 0, PLANE_OVERLAPS - 1},
	    {"pipeline", config->pipeline, 0, PLANE_PIPELINES - 1},
	};

	for (size_t i = 0; i < ARRAY_COUNT(limits); i++) {
		if (limits[i].value < limits[i].least || limits[i].value > limits[i].most)
			return plane_refuse(error, -EINVAL, "%s is %u, expected %u..%u",
					    limits[i].name, limits[i].value, limits[i].least,
					    limits[i].most);
	}
	for (uint32_t i = 0; i < PLANE_STATIONS && config->pipeline == PLANE_STAGES; i++) {
		if (config->stations[i] < 1 || config->stations[i] > PLANE_WORKERS_MAX)
			return plane_refuse(error, -EINVAL, "%s threads are %u, expected 1..%u",
					    plane_station_names[i], config->stations[i],
					    PLANE_WORKERS_MAX);
	}
	if (config->inflate && inflate_check(config->inflate, error))
		return -EINVAL;
	if (!config->codec || !codec_name(config->codec))
		return plane_refuse(error, -EINVAL, "codec %u is not known", config->codec);
	if (config->trellis && config->codec != SSV_CODEC_R16)
		return plane_refuse(error, -EINVAL, "trellis is on with codec %s, expected r16",
				    codec_name(config->codec));
	if (!config->store_uri || strlen(config->store_uri) >= STORE_URI_MAX)
		return plane_refuse(error, -EINVAL, "no store, or its URI has %u bytes or more",
				    STORE_URI_MAX);
	return 0;
}

static void config_take(struct plane *plane, const struct plane_config *config)
{
	const uint64_t tensor = (uint64_t)config->channels_max * SSV_CHUNK_TOKENS;

	plane->config = *config;
	memcpy(plane->store_uri, config->store_uri, strlen(config->store_uri) + 1);
	plane->config.store_uri = plane->store_uri;
	store_uri_redact(config->store_uri, plane->store_text, sizeof(plane->store_text));
	if (config->inflate) {
		memcpy(plane->inflate_name, config->inflate, strlen(config->inflate) + 1);
		plane->config.inflate = plane->inflate_name;
	}
	plane->inflated_bytes = inflated_pool_bytes(config);
	plane->task_count[TASK_LOOKUP] = LOOKUP_TASKS;
	plane->task_count[TASK_FETCH] = config->lanes + FETCH_AHEAD;
	plane->task_count[TASK_STORE] = config->captures_max;
	for (uint32_t kind = 0; kind < TASK_KINDS; kind++) {
		plane->task_first[kind] = plane->tasks_count;
		plane->tasks_count += plane->task_count[kind];
	}
	/* Two tensors of the largest kind, eight of a quarter of it. */
	plane->stage_bytes = u64_max(align_up(tensor * 8, STAGE_SLOT_BYTES), 2 * MIB);
}

static void *table(struct plane *plane, uint64_t count, uint64_t bytes)
{
	plane->tables_bytes += count * bytes;
	return calloc(count, bytes);
}

/* Request memory for the largest request twice over, and one slot a job. */
static uint32_t request_slots(const struct plane_config *config)
{
	const uint64_t largest = SSV_KEYS_MAX * (sizeof(struct ssv_key) + sizeof(uint32_t)) +
				 SSV_BLOCKS_MAX * sizeof(uint32_t);

	return (uint32_t)(2 * (largest / REQUEST_SLOT_BYTES + 1)) + config->jobs_max;
}

static int tables_create(struct plane *plane, char *error)
{
	const struct plane_config *config = &plane->config;
	const uint32_t slots = request_slots(config);

	plane->completions_max = 2 * config->jobs_max;
	plane->events_max = plane->completions_max + config->regions_max + config->sessions_max;
	plane->desks = table(plane, config->workers_count, sizeof(struct worker_desk));
	plane->jobs = table(plane, config->jobs_max, sizeof(struct job));
	plane->sessions = table(plane, config->sessions_max, sizeof(struct session));
	plane->regions = table(plane, config->regions_max, sizeof(struct region_slot));
	plane->refused = table(plane, REFUSED_MAX, sizeof(struct refused));
	plane->events = table(plane, plane->events_max, sizeof(struct plane_event));
	plane->request_states = table(plane, slots, sizeof(struct slot_state));
	plane->base = path_base_create();
	plane->request_memory = table(plane, slots, REQUEST_SLOT_BYTES);
	if (!plane->desks || !plane->jobs || !plane->sessions || !plane->regions || !plane->base ||
	    !plane->refused || !plane->events || !plane->request_states || !plane->request_memory)
		return plane_refuse(error, -ENOMEM, "no memory for tables of %llu bytes",
				    (unsigned long long)plane->tables_bytes);
	for (uint32_t i = 0; i < config->workers_count; i++) {
		plane->desks[i].slots = table(plane, plane->tasks_count, sizeof(struct task_slot));
		if (!plane->desks[i].slots)
			return plane_refuse(error, -ENOMEM, "no memory for %u tasks",
					    plane->tasks_count);
	}
	slots_init(&plane->request_slots, plane->request_memory, plane->request_states,
		   REQUEST_SLOT_BYTES, slots);
	list_init(&plane->free_jobs);
	list_init(&plane->active_jobs);
	for (uint32_t i = 0; i < config->jobs_max; i++) {
		struct job *job = &plane->jobs[i];

		job->number = i;
		list_init(&job->of_session);
		list_init(&job->ready);
		list_push_back(&plane->free_jobs, &job->active);
	}
	return 0;
}

static int trace_create(struct plane *plane, char *error)
{
	struct trace_slot *slots;

	if (plane->config.trace_off)
		return 0;
	slots = table(plane, CONTROL_TRACE_SLOTS, sizeof(*slots));
	if (!slots)
		return plane_refuse(error, -ENOMEM, "no memory for the trace");
	trace_init(&plane->trace, slots, CONTROL_TRACE_SLOTS);
	return 0;
}

static int workers_create(struct plane *plane, char *error)
{
	const struct plane_config *config = &plane->config;
	int err;

	err = arena_create(&plane->arena, config->arena_bytes, config->pin_memory,
			   config->huge_pages);
	if (err)
		return plane_refuse(error, err, "arena of %llu bytes: not available",
				    (unsigned long long)config->arena_bytes);
	if (config->pin_memory && !plane->arena.pinned)
		log_warn("arena not pinned bytes=%llu: raise the memlock limit",
			 (unsigned long long)config->arena_bytes);
	if (config->huge_pages && !plane->arena.reserved)
		log_warn("arena not in reserved huge pages bytes=%llu: raise vm.nr_hugepages",
			 (unsigned long long)config->arena_bytes);
	plane->workers = arena_carve(&plane->arena, config->workers_count * sizeof(struct worker),
				     CACHE_LINE_BYTES);
	if (!plane->workers)
		return plane_refuse(error, -ENOSPC, "arena of %llu bytes is too small",
				    (unsigned long long)config->arena_bytes);
	err = stations_create(plane, error);
	for (uint32_t i = 0; !err && i < config->workers_count; i++)
		err = worker_create(plane, i, error);
	return err;
}

int plane_create(const struct plane_config *config, struct plane **ret_plane, char *error)
{
	struct plane *plane;
	int err;

	error[0] = 0;
	err = config_check(config, error);
	if (err)
		return err;
	plane = aligned_alloc(CACHE_LINE_BYTES, align_up(sizeof(*plane), CACHE_LINE_BYTES));
	if (!plane)
		return plane_refuse(error, -ENOMEM, "no memory for a plane");
	memset(plane, 0, sizeof(*plane));
	plane->tables_bytes = sizeof(*plane);
	plane->deadline_ns = TIME_NEVER;
	plane->wake.fd = -1;
	config_take(plane, config);
	err = wake_init(&plane->wake);
	if (err)
		plane_refuse(error, err, "eventfd failed");
	if (!err)
		err = tables_create(plane, error);
	if (!err)
		err = trace_create(plane, error);
	if (!err)
		err = workers_create(plane, error);
	if (err) {
		plane_destroy(plane);
		return err;
	}
	*ret_plane = plane;
	return 0;
}

void plane_destroy(struct plane *plane)
{
	if (!plane)
		return;
	stations_destroy(plane);
	for (uint32_t i = 0; i < plane->config.workers_count; i++) {
		if (plane->workers)
			worker_destroy(&plane->workers[i]);
		if (plane->desks)
			free(plane->desks[i].slots);
	}
	for (uint32_t i = 0; i < plane->config.regions_max && plane->regions; i++)
		region_detach(plane->regions[i].region);
	arena_destroy(&plane->arena);
	wake_fini(&plane->wake);
	free(plane->request_memory);
	free(plane->request_states);
	free(plane->events);
	free(plane->base);
	free(plane->trace.slots);
	free(plane->refused);
	free(plane->regions);
	free(plane->sessions);
	free(plane->jobs);
	free(plane->desks);
	free(plane);
}

uint64_t plane_bytes(const struct plane *plane)
{
	return plane->arena.bytes + plane->tables_bytes;
}

uint32_t plane_threads(const struct plane *plane)
{
	return plane->config.workers_count + plane->stations_count;
}

void plane_thread_name(const struct plane *plane, uint32_t thread, char name[PLANE_THREAD_NAME_MAX])
{
	const uint32_t workers = plane->config.workers_count;
	const struct station *station;

	if (thread < workers) {
		snprintf(name, PLANE_THREAD_NAME_MAX, "worker %u", thread);
	} else if (thread < plane_threads(plane)) {
		station = &plane->stations[thread - workers];
		snprintf(name, PLANE_THREAD_NAME_MAX, "%s %u", plane_station_names[station->kind],
			 station->index);
	} else {
		snprintf(name, PLANE_THREAD_NAME_MAX, "control");
	}
}

/* ---- steps ---------------------------------------------------------------------------------- */

int plane_step(struct plane *plane, uint64_t now_ns)
{
	int did;

	plane->now_ns = now_ns;
	tally_use(&plane->tally);
	wake_begin(&plane->wake);
	did = dispatch_reports(plane);
	did |= jobs_watch_deadlines(plane);
	did |= dispatch_pieces(plane);
	dispatch_wake(plane);
	if (did)
		return 1;
	return !wake_may_sleep(&plane->wake);
}

uint64_t plane_next_ns(const struct plane *plane)
{
	return plane->deadline_ns;
}

int plane_control_fd(const struct plane *plane)
{
	return plane->wake.fd;
}

int plane_drain(struct plane *plane, uint64_t now_ns)
{
	struct link *link = plane->active_jobs.next;
	int left = 0;

	plane->now_ns = now_ns;
	plane->draining = 1;
	while (link != &plane->active_jobs) {
		struct job *job = link_holder(link, struct job, active);

		link = link->next;
		if (job->op != SSV_OP_STORE || job->stopped)
			continue;
		job_stop(plane, job, -EAGAIN);
		link = plane->active_jobs.next;
	}
	dispatch_wake(plane);
	for (uint32_t i = 0; i < plane->config.workers_count; i++)
		left |= plane->desks[i].busy[TASK_STORE] > 0;
	return !left;
}

/* ---- events --------------------------------------------------------------------------------- */

void plane_event_push(struct plane *plane, const struct plane_event *event)
{
	uint32_t at = (plane->events_head + plane->events_count) % plane->events_max;

	/* plane_submit() keeps room for every completion; regions and sessions end once each. */
	ssv_assert(plane->events_count < plane->events_max);
	plane->events[at] = *event;
	plane->events_count++;
}

static void event_taken(struct plane *plane, const struct plane_event *event)
{
	struct session *session;
	uint32_t index;

	if (event->kind == PLANE_EVENT_SESSION_ENDED) {
		session = plane_session(plane, event->session);
		ssv_assert(session && session->ended);
		session->used = 0;
	} else if (event->kind == PLANE_EVENT_REGION_REMOVED) {
		index = region_index(event->region);
		ssv_assert(plane->regions[index].used && !plane->regions[index].region);
		plane->regions[index].used = 0;
	}
}

uint32_t plane_poll(struct plane *plane, struct plane_event *events, uint32_t max)
{
	uint32_t n = 0;

	while (n < max && plane->events_count) {
		events[n] = plane->events[plane->events_head];
		plane->events_head = (plane->events_head + 1) % plane->events_max;
		plane->events_count--;
		event_taken(plane, &events[n++]);
	}
	return n;
}

/* ---- the trace ------------------------------------------------------------------------------ */

void plane_trace(const struct plane *plane, uint64_t from, struct message_events *ret_head,
		 struct trace_event *events, uint32_t max)
{
	const uint32_t threads = plane_threads(plane);
	const struct path *path;
	const struct trace *trace;

	ret_head->tracks_count = threads + 1;
	ret_head->count = 0;
	ret_head->slots_count = ret_head->first = ret_head->head = 0;
	if (ret_head->track > threads)
		return;
	path = plane_thread_path(plane, ret_head->track);
	trace = path ? &path->trace : &plane->trace;
	ret_head->slots_count = trace->slots_count;
	ret_head->count = trace_read(trace, from, events, max, &ret_head->first);
	ret_head->head = trace_head(trace);
}
