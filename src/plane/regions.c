/* SPDX-License-Identifier: Apache-2.0 */
/*
 * regions.c - who is connected and what memory they registered.
 *
 * A session's number carries a generation, a region's too, so that an old number finds nothing. A
 * region is detached only when no job uses it; a session ends only when all its jobs completed and
 * its regions are detached. Slots are used again after the last event about them was taken.
 */
#include <errno.h>
#include <string.h>

#include "plane/internal.h"

#define REGION_INDEX_BITS 10u /* PLANE_REGIONS_MAX */

_Static_assert(1u << REGION_INDEX_BITS >= PLANE_REGIONS_MAX, "a region's number holds its index");

/* ---- sessions ------------------------------------------------------------------------------- */

uint64_t session_number(const struct plane *plane, const struct session *session)
{
	return (uint64_t)session->generation << 32 | (uint64_t)(session - plane->sessions);
}

struct session *plane_session(struct plane *plane, uint64_t number)
{
	uint32_t index = (uint32_t)number;

	if (index >= plane->config.sessions_max || !plane->sessions[index].used ||
	    plane->sessions[index].generation != number >> 32)
		return NULL;
	return &plane->sessions[index];
}

int plane_session_add(struct plane *plane, const char *engine_id, uint32_t rank,
		      uint32_t ranks_count, pid_t pid, uint64_t *ret_session, char *error)
{
	const size_t length = strnlen(engine_id, SSV_ENGINE_ID_MAX);
	struct session *session = NULL;

	if (length == 0 || length >= SSV_ENGINE_ID_MAX)
		return plane_refuse(error, -EINVAL, "engine id of %zu bytes, expected 1..%u",
				    length, SSV_ENGINE_ID_MAX - 1);
	if (ranks_count == 0 || ranks_count > SSV_RANKS_MAX || rank >= ranks_count)
		return plane_refuse(error, -EINVAL, "rank %u of %u, expected below 1..%u", rank,
				    ranks_count, SSV_RANKS_MAX);
	for (uint32_t i = 0; i < plane->config.sessions_max && !session; i++) {
		if (!plane->sessions[i].used)
			session = &plane->sessions[i];
	}
	if (!session)
		return plane_refuse(error, -EAGAIN, "%u sessions are connected already",
				    plane->config.sessions_max);
	session->used = 1;
	session->ending = session->ended = 0;
	session->generation++;
	session->rank = rank;
	session->ranks_count = ranks_count;
	session->pid = pid;
	session->running = 0;
	memcpy(session->engine_id, engine_id, length + 1);
	list_init(&session->jobs);
	for (uint32_t k = 0; k < TASK_KINDS; k++)
		list_init(&session->ready[k]);
	*ret_session = session_number(plane, session);
	return 0;
}

/* Stop the running jobs of a session, or of one of its regions. */
static void session_stop_jobs(struct plane *plane, struct session *session, uint32_t region)
{
	struct link *link = session->jobs.next;

	while (link != &session->jobs) {
		struct job *job = link_holder(link, struct job, of_session);

		link = link->next;
		if (job->state != JOB_RUN || job->stopped || job->op == SSV_OP_CANCEL ||
		    (region != NO_INDEX && job->region != region))
			continue;
		job_stop(plane, job, -ECANCELED);
		/* Others may have ended with it: begin again. */
		link = session->jobs.next;
	}
}

void plane_session_end(struct plane *plane, uint64_t number)
{
	struct session *session = plane_session(plane, number);

	if (!session || session->ending)
		return;
	session->ending = 1;
	session_stop_jobs(plane, session, NO_INDEX);
	session_settle(plane, (uint32_t)(session - plane->sessions));
}

/* End a session that is ending once nothing of it runs. */
void session_settle(struct plane *plane, uint32_t index)
{
	struct session *session = &plane->sessions[index];
	struct plane_event event = {.kind = PLANE_EVENT_SESSION_ENDED};

	if (!session->used || !session->ending || session->ended || session->running)
		return;
	for (uint32_t i = 0; i < plane->config.regions_max; i++) {
		struct region_slot *slot = &plane->regions[i];

		if (!slot->used || slot->session != index || !slot->region)
			continue;
		ssv_assert(slot->jobs_count == 0);
		region_detach(slot->region);
		slot->region = NULL;
		slot->used = 0;
	}
	/* Chunks that were captured are still put; nobody waits for them any more. */
	while (!list_is_empty(&session->jobs)) {
		struct job *job = link_holder(session->jobs.next, struct job, of_session);

		ssv_assert(job->state == JOB_PUTTING);
		list_remove(&job->of_session);
		job->session = NO_INDEX;
	}
	session->ended = 1;
	event.session = session_number(plane, session);
	plane_event_push(plane, &event);
}

/* Does each rank of this session's engine have a region? */
int session_ranks_are_complete(const struct plane *plane, const struct session *session,
			       uint32_t ranks_count)
{
	const uint64_t all = ranks_count == 64 ? UINT64_MAX : (1ull << ranks_count) - 1;
	uint64_t seen = 0;

	for (uint32_t i = 0; i < plane->config.regions_max && seen != all; i++) {
		const struct region_slot *slot = &plane->regions[i];
		const struct session *other;

		if (!slot->used || slot->removing || !slot->region)
			continue;
		other = &plane->sessions[slot->session];
		if (!other->ending && other->rank < ranks_count &&
		    strcmp(other->engine_id, session->engine_id) == 0)
			seen |= 1ull << other->rank;
	}
	return seen == all;
}

/* ---- regions -------------------------------------------------------------------------------- */

uint32_t region_index(uint32_t number)
{
	return number & ((1u << REGION_INDEX_BITS) - 1);
}

uint32_t region_number(const struct plane *plane, uint32_t index)
{
	return plane->regions[index].generation << REGION_INDEX_BITS | index;
}

struct region_slot *region_find(const struct plane *plane, uint64_t session, uint32_t number)
{
	uint32_t index = region_index(number);
	struct region_slot *slot;

	if (index >= plane->config.regions_max)
		return NULL;
	slot = &plane->regions[index];
	if (!slot->used || !slot->region || number != region_number(plane, index) ||
	    slot->session != (uint32_t)session)
		return NULL;
	return slot;
}

/* Staging that the largest entry of a container may need at once. */
static uint64_t region_stage_bytes(const struct region *region)
{
	const struct layout *layout = region->layout;
	const uint32_t blocks = SSV_CHUNK_TOKENS / layout->block_tokens;
	uint64_t largest = 0;

	for (uint32_t i = 0; i < layout->parts_count; i++)
		largest = u64_max(largest, region->ops->stage_bytes(region, i, blocks));
	return largest * u64_min(ENTRY_TENSORS_MAX, layout->tensors_count);
}

/* Every worker must be able to hold one chunk of this shape in each of its pools. */
static int region_fits(const struct plane *plane, const struct region *region, char *error)
{
	const struct chunk_shape *shape = &region->layout->shape;
	const uint64_t kv = shape_kv_bytes(shape);
	const uint64_t wire = shape_container_bytes_max(shape) + CONTAINER_SLACK_BYTES;
	const uint64_t stage = region_stage_bytes(region);

	for (uint32_t i = 0; i < shape->parts_count; i++) {
		if (part_channels(&shape->parts[i]) > plane->config.channels_max)
			return plane_refuse(error, -ENOSPC,
					    "part %u has %u channels, the daemon is configured "
					    "for %u (channels_max)",
					    i, part_channels(&shape->parts[i]),
					    plane->config.channels_max);
	}
	if (wire > plane->wire_bytes || wire > plane->put_bytes || kv > plane->capture_bytes)
		return plane_refuse(
		    error, -ENOSPC,
		    "a chunk of this shape needs %llu bytes to arrive, %llu to be captured and "
		    "%llu to be put; a worker of this arena has %llu, %llu and %llu: use a larger "
		    "arena or fewer workers",
		    (unsigned long long)wire, (unsigned long long)kv, (unsigned long long)wire,
		    (unsigned long long)plane->wire_bytes, (unsigned long long)plane->capture_bytes,
		    (unsigned long long)plane->put_bytes);
	if (stage > plane->stage_bytes)
		return plane_refuse(error, -ENOSPC,
				    "%u tensors of this shape need %llu bytes of staging, a worker "
				    "has %llu (channels_max %u)",
				    ENTRY_TENSORS_MAX, (unsigned long long)stage,
				    (unsigned long long)plane->stage_bytes,
				    plane->config.channels_max);
	return 0;
}

static int region_attach_checked(struct plane *plane, const struct session *session,
				 const struct ssv_region *offer, const struct ssv_layout *layout,
				 const struct deliver_owner *owner, struct region **ret_region,
				 struct region_quality *ret_quality, char *error)
{
	const struct deliver_host host = {.memory = plane->arena.base,
					  .bytes = plane->arena.bytes,
					  .workers_count = plane_threads(plane),
					  .rdma = plane->config.rdma};
	int err;

	if (layout->rank != session->rank || layout->ranks_count != session->ranks_count)
		return plane_refuse(
		    error, -EINVAL, "layout of rank %u of %u, the session is rank %u of %u",
		    layout->rank, layout->ranks_count, session->rank, session->ranks_count);
	if (plane->config.attach_region)
		err = plane->config.attach_region(offer, layout, owner, ret_region, error);
	else
		err = region_attach(offer, layout, owner, &host, ret_region, error);
	if (err)
		return err;
	err = region_fits(plane, *ret_region, error);
	if (!err)
		err = region_quality(plane, (*ret_region)->layout, ret_quality, error);
	if (err)
		region_detach(*ret_region);
	return err;
}

int plane_region_add(struct plane *plane, uint64_t number, const struct ssv_region *offer,
		     const struct ssv_layout *layout, const struct blob *offered,
		     struct blob *ret_answer, uint32_t *ret_region, char *error)
{
	struct session *session = plane_session(plane, number);
	struct deliver_owner owner = {.offered = offered, .answer = ret_answer};
	char text[SSV_ERROR_TEXT_MAX];
	struct region_quality quality;
	struct region_slot *slot;
	struct region *region;
	uint32_t index = 0;
	int err;

	if (!session || session->ending)
		return plane_refuse(error, -ENOTCONN, "the session has ended");
	while (index < plane->config.regions_max && plane->regions[index].used)
		index++;
	if (index == plane->config.regions_max)
		return plane_refuse(error, -E2BIG, "%u regions are registered already",
				    plane->config.regions_max);
	owner.pid = session->pid;
	err = region_attach_checked(plane, session, offer, layout, &owner, &region, &quality,
				    error ? error : text);
	if (err) {
		plane->counters[PLANE_REGIONS_REFUSED]++;
		return err;
	}
	slot = &plane->regions[index];
	slot->used = 1;
	slot->removing = 0;
	slot->generation = slot->generation % ((1u << (32 - REGION_INDEX_BITS)) - 1) + 1;
	slot->session = (uint32_t)number;
	slot->jobs_count = 0;
	slot->region = region;
	slot->quality = quality;
	*ret_region = region_number(plane, index);
	return 0;
}

/* Detach a region that is being removed once no job uses it. */
void region_settle(struct plane *plane, uint32_t index)
{
	struct region_slot *slot = &plane->regions[index];
	struct plane_event event = {
	    .kind = PLANE_EVENT_REGION_REMOVED,
	    .region = region_number(plane, index),
	    .session = session_number(plane, &plane->sessions[slot->session]),
	};

	if (!slot->used || !slot->removing || slot->jobs_count || !slot->region)
		return;
	region_detach(slot->region);
	slot->region = NULL;
	plane_event_push(plane, &event);
}

int plane_region_remove(struct plane *plane, uint64_t session, uint32_t number)
{
	struct region_slot *slot = region_find(plane, session, number);

	if (!plane_session(plane, session) || !slot || slot->removing)
		return -ENOENT;
	slot->removing = 1;
	session_stop_jobs(plane, &plane->sessions[slot->session], region_index(number));
	region_settle(plane, region_index(number));
	return 0;
}
