/* SPDX-License-Identifier: Apache-2.0 */
/*
 * accept.c - a request is checked against what was registered, copied, and becomes a job.
 *
 * Everything in it comes from outside. A refusal changes nothing and says which number is wrong.
 */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "plane/internal.h"

#define FLUSH_FACTOR 4u /* a FLUSH waits for so many store deadlines, unless it says otherwise */

static int refuse_region(const struct plane *plane, uint64_t session,
			 const struct ssv_request *request, const struct layout **ret_layout,
			 char *error)
{
	const struct region_slot *slot = region_find(plane, session, request->region);

	if (!slot || slot->removing)
		return plane_refuse(error, -ENOENT, "region %u is not registered", request->region);
	*ret_layout = slot->region->layout;
	return 0;
}

static int refuse_blocks(const struct ssv_request *request, const struct layout *layout,
			 char *error)
{
	const uint64_t tokens = (uint64_t)request->blocks_count * layout->block_tokens;
	const uint64_t end = request->first_token + tokens;
	const uint64_t chunks = (uint64_t)request->keys_count * SSV_CHUNK_TOKENS;

	if (request->first_token >= SSV_CHUNK_TOKENS || request->first_token % layout->block_tokens)
		return plane_refuse(error, -EINVAL,
				    "first_token %u is not a multiple of %u below %u",
				    request->first_token, layout->block_tokens, SSV_CHUNK_TOKENS);
	if (end > chunks || end + SSV_CHUNK_TOKENS <= chunks || tokens == 0 ||
	    (request->op == SSV_OP_STORE && request->first_token))
		return plane_refuse(error, -EINVAL,
				    "%u blocks of %u tokens from token %u do not fit %u chunks",
				    request->blocks_count, layout->block_tokens,
				    request->first_token, request->keys_count);
	if (request->position > UINT32_MAX - chunks)
		return plane_refuse(error, -EINVAL, "position %u is out of range",
				    request->position);
	for (uint32_t i = 0; i < request->blocks_count; i++) {
		if (request->blocks[i] >= layout->blocks_count)
			return plane_refuse(error, -EINVAL, "block %u is not below %u",
					    request->blocks[i], layout->blocks_count);
	}
	return 0;
}

static int refuse_request(const struct plane *plane, uint64_t session,
			  const struct ssv_request *request, char *error)
{
	const uint32_t ranks = request->ranks_count ? request->ranks_count : 1;
	const struct layout *layout = NULL;
	int err;

	if (request->op < SSV_OP_LOOKUP || request->op > SSV_OP_FLUSH)
		return plane_refuse(error, -EINVAL, "operation %u is not known", request->op);
	/* What an operation does not name is not copied, so it must not be there. */
	if ((request->op > SSV_OP_STORE && (request->keys_count || request->blocks_count)) ||
	    (request->op == SSV_OP_LOOKUP && request->blocks_count))
		return plane_refuse(error, -EINVAL, "operation %u with %u keys and %u blocks",
				    request->op, request->keys_count, request->blocks_count);
	if (request->op > SSV_OP_STORE)
		return 0;
	if (request->keys_count > SSV_KEYS_MAX || request->blocks_count > SSV_BLOCKS_MAX ||
	    ranks > SSV_RANKS_MAX)
		return plane_refuse(error, -E2BIG,
				    "%u keys, %u blocks, %u ranks: at most %u, %u, %u",
				    request->keys_count, request->blocks_count, ranks, SSV_KEYS_MAX,
				    SSV_BLOCKS_MAX, SSV_RANKS_MAX);
	if (request->keys_count == 0 || !request->keys)
		return plane_refuse(error, -EINVAL, "no keys");
	if (request->tier > SSV_TIER_TINY || request->min_tier > SSV_TIER_TINY ||
	    (request->codec && !codec_name(request->codec)))
		return plane_refuse(error, -EINVAL, "tier %u, minimum tier %u or codec %u unknown",
				    request->tier, request->min_tier, request->codec);
	if (request->op == SSV_OP_LOOKUP) {
		if (request->keys_count % ranks)
			return plane_refuse(error, -EINVAL, "%u keys for %u ranks",
					    request->keys_count, ranks);
		return 0;
	}
	if (request->blocks_count == 0 || !request->blocks)
		return plane_refuse(error, -EINVAL, "no blocks");
	err = refuse_region(plane, session, request, &layout, error);
	return err ? err : refuse_blocks(request, layout, error);
}

/* Keys, blocks and results of a job lie in one run of request slots. */
static int job_copy(struct plane *plane, struct job *job, const struct ssv_request *request)
{
	const uint64_t keys = (uint64_t)request->keys_count * sizeof(struct ssv_key);
	const uint64_t blocks = (uint64_t)request->blocks_count * sizeof(uint32_t);
	const uint64_t pieces =
	    request->op == SSV_OP_LOOKUP ? 0 : request->keys_count * sizeof(uint32_t);
	uint8_t *memory;
	int err;

	job->memory.slots_count = 0;
	if (keys == 0)
		return 0;
	err = slots_acquire(&plane->request_slots, keys + blocks + pieces, &job->memory);
	if (err)
		return -EAGAIN;
	memory = slots_data(&plane->request_slots, &job->memory);
	job->keys = (struct ssv_key *)memory;
	job->blocks = (uint32_t *)(void *)(memory + keys);
	job->piece_bytes = (uint32_t *)(void *)(memory + keys + blocks);
	memcpy(job->keys, request->keys, keys);
	if (blocks)
		memcpy(job->blocks, request->blocks, blocks);
	memset(job->piece_bytes, 0, pieces);
	return 0;
}

static uint64_t job_deadline(const struct plane *plane, const struct ssv_request *request,
			     uint64_t now_ns)
{
	const struct plane_config *config = &plane->config;
	uint64_t ms = request->deadline_ms;

	switch (request->op) {
	case SSV_OP_LOOKUP:
		ms = ms ? ms : config->lookup_deadline_ms;
		break;
	case SSV_OP_FETCH:
		ms = ms ? ms : config->fetch_deadline_ms;
		break;
	case SSV_OP_STORE:
		ms = ms ? ms : config->store_deadline_ms;
		break;
	case SSV_OP_FLUSH:
		ms = ms ? ms : (uint64_t)config->store_deadline_ms * FLUSH_FACTOR;
		break;
	default:
		return TIME_NEVER;
	}
	return now_ns + ms * NS_PER_MS;
}

static uint8_t coarsest_tier(uint8_t asked, uint8_t configured)
{
	if (!asked || !configured)
		return asked ? asked : configured;
	return asked < configured ? asked : configured;
}

static void job_init(struct plane *plane, struct job *job, const struct ssv_request *request,
		     uint64_t now_ns)
{
	job->state = JOB_RUN;
	job->op = request->op;
	job->tier = request->tier;
	job->codec = request->codec ? request->codec : plane->config.codec;
	job->min_tier = coarsest_tier(request->min_tier, plane->config.min_tier);
	job->stopped = 0;
	job->stop_status = job->gap_status = 0;
	job->user_data = request->user_data;
	job->target = request->target;
	job->sequence = ++plane->sequence;
	job->begun_ns = now_ns;
	job->deadline_ns = job_deadline(plane, request, now_ns);
	job->keys_count = request->keys_count;
	job->blocks_count = request->blocks_count;
	job->ranks_count = request->ranks_count ? request->ranks_count : 1;
	job->first_token = request->first_token;
	job->position = request->position;
	job->next_piece = job->out = job->putting = 0;
	job->found_bytes = job->found_keys = 0;
	job->pieces_count = job->bound = 0;
	job->region = NO_INDEX;
}

int plane_submit(struct plane *plane, uint64_t number, const struct ssv_request *request,
		 uint64_t now_ns, char *error)
{
	struct session *session = plane_session(plane, number);
	struct job *job;
	int err;

	plane->now_ns = now_ns;
	if (!session || session->ending)
		return plane_refuse(error, -ENOTCONN, "the session has ended");
	err = refuse_request(plane, number, request, error);
	if (err) {
		plane->counters[PLANE_REFUSED]++;
		return err;
	}
	if (list_is_empty(&plane->free_jobs) || session->running >= SSV_REQUESTS_MAX ||
	    plane->events_count + plane->jobs_used >= plane->completions_max)
		return plane_refuse(error, -EAGAIN, "%u requests are in flight", plane->jobs_used);
	if (session_find(session, request->user_data))
		return plane_refuse(error, -EINVAL, "user_data %llu is in flight already",
				    (unsigned long long)request->user_data);
	job = link_holder(plane->free_jobs.next, struct job, active);
	err = job_copy(plane, job, request);
	if (err)
		return plane_refuse(error, err, "no memory for %u keys and %u blocks now",
				    request->keys_count, request->blocks_count);
	list_remove(&job->active);
	job_init(plane, job, request, now_ns);
	if (request->op == SSV_OP_STORE)
		job->tier = quality_tier(
		    plane, &region_find(plane, number, request->region)->quality, request->tier);
	job->session = (uint32_t)(session - plane->sessions);
	list_push_back(&plane->active_jobs, &job->active);
	list_push_back(&session->jobs, &job->of_session);
	session->running++;
	plane->jobs_used++;
	plane->deadline_ns = u64_min(plane->deadline_ns, job->deadline_ns);
	job_start(plane, job, session, request);
	return 0;
}
