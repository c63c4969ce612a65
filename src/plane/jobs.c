/* SPDX-License-Identifier: Apache-2.0 */
/*
 * jobs.c - the life of a request: checked, copied, split into pieces, completed exactly once.
 *
 * A piece is one chunk of a FETCH or STORE, or up to LOOKUP_BATCH keys of one rank of a LOOKUP. A
 * prefix is useful up to its first gap, so a job keeps one bound: the first piece (LOOKUP: key)
 * that is known not to be there. Pieces behind it are not handed out, or are cancelled.
 *
 * A job completes when no piece of it is at a worker with its source or target in use (out == 0)
 * and none will be handed out. A STORE then lives on until its chunks are put; FLUSH waits for it.
 */
#include <errno.h>

#include "base/clock.h"
#include "plane/internal.h"

/* ---- pieces --------------------------------------------------------------------------------- */

/* The first key of a LOOKUP's piece. Batch by batch, all ranks of one before the next. */
static uint32_t lookup_key(const struct job *job, uint32_t piece)
{
	return piece / job->ranks_count * LOOKUP_BATCH;
}

static uint32_t lookup_keys(const struct job *job)
{
	return job->keys_count / job->ranks_count;
}

int job_has_piece(const struct job *job)
{
	if (job->state != JOB_RUN || job->stopped || job->next_piece >= job->pieces_count)
		return 0;
	if (job->op == SSV_OP_LOOKUP)
		return lookup_key(job, job->next_piece) < job->bound;
	return job->next_piece < job->bound;
}

static uint32_t job_kind(const struct job *job)
{
	return job->op == SSV_OP_LOOKUP  ? TASK_LOOKUP
	       : job->op == SSV_OP_FETCH ? TASK_FETCH
					 : TASK_STORE;
}

static void fill_lookup(const struct job *job, uint32_t piece, struct task *task)
{
	const uint32_t keys = lookup_keys(job), first = lookup_key(job, piece);

	task->keys = job->keys + (size_t)(piece % job->ranks_count) * keys + first;
	task->keys_count = (uint32_t)u64_min(LOOKUP_BATCH, keys - first);
}

static void fill_chunk(const struct plane *plane, const struct job *job, uint32_t piece,
		       struct task *task)
{
	const struct region_slot *slot = &plane->regions[job->region];
	const uint32_t block_tokens = slot->region->layout->block_tokens;
	const uint32_t per_chunk = SSV_CHUNK_TOKENS / block_tokens;
	const uint32_t skipped = job->first_token / block_tokens;
	const uint32_t end = skipped + job->blocks_count; /* counted from keys[0]'s chunk */
	const uint32_t first = piece ? piece * per_chunk : skipped;

	task->region = slot->region;
	task->profile = slot->quality.profile ? &slot->quality.profile->steps : NULL;
	task->region_index = job->region;
	task->region_generation = slot->generation;
	task->keys = job->keys + piece;
	task->keys_count = 1;
	task->blocks = job->blocks + (first - skipped);
	task->blocks_count = (uint32_t)u64_min(end, (piece + 1ull) * per_chunk) - first;
	task->first_token = piece ? 0 : job->first_token;
	task->position = job->position + piece * SSV_CHUNK_TOKENS;
}

void job_fill_task(struct plane *plane, const struct job *job, uint32_t piece, struct task *task)
{
	task->kind = (uint8_t)job_kind(job);
	task->min_tier = job->min_tier;
	task->tier = job->tier;
	task->codec = job->codec;
	task->deadline_ns = job->deadline_ns;
	task->overwrite = plane->config.overwrite;
	task->status = 0;
	task->kept_fault = task->kept_tier = task->stored = task->returned = 0;
	task->found = 0;
	task->value_bytes = 0;
	task->request = (uint32_t)job->sequence;
	task->piece = (uint16_t)piece;
	if (job->op == SSV_OP_LOOKUP)
		fill_lookup(job, piece, task);
	else
		fill_chunk(plane, job, piece, task);
	if (job->op == SSV_OP_STORE && refused_is_replaced(plane, task->keys, job->tier))
		task->overwrite = 1;
}

static void lookup_piece_done(struct plane *plane, struct job *job, uint32_t piece,
			      const struct task *task)
{
	const uint32_t first = lookup_key(job, piece);
	uint32_t found = 0;

	while (found < task->found && !refused_hides(plane, &task->keys[found], job->min_tier))
		found++;
	plane->counters[PLANE_LOOKUPS_CUT] += found < task->found;
	job->found_keys += task->found;
	job->found_bytes += task->value_bytes;
	if (found == task->keys_count || first + found >= job->bound)
		return;
	job->bound = first + found;
	job->gap_status = found < task->found || task->status == -ENOENT ? 0 : task->status;
}

void job_piece_done(struct plane *plane, struct job *job, uint32_t piece, const struct task *task)
{
	if (task->kept_fault)
		refused_note(plane, task->keys, task);
	if (job->op == SSV_OP_LOOKUP) {
		lookup_piece_done(plane, job, piece, task);
	} else if (task->status == 0) {
		job->piece_bytes[piece] = (uint32_t)task->value_bytes;
	} else if (piece < job->bound) {
		job->bound = piece;
		job->gap_status = task->status;
		if (task->status == -ECANCELED && job->stopped)
			job->gap_status = job->stop_status;
		dispatch_cancel(plane, job, piece + 1);
	}
	if (!job_has_piece(job))
		job_unready(plane, job);
}

/* ---- ready lists ---------------------------------------------------------------------------- */

static void job_ready(struct plane *plane, struct job *job)
{
	struct session *session = &plane->sessions[job->session];

	list_push_back(&session->ready[job_kind(job)], &job->ready);
	plane->ready_count[job_kind(job)]++;
}

void job_unready(struct plane *plane, struct job *job)
{
	if (list_is_empty(&job->ready))
		return;
	list_remove(&job->ready);
	plane->ready_count[job_kind(job)]--;
}

/* ---- ending --------------------------------------------------------------------------------- */

/*
 * Moving averages, so that a LOOKUP can say how long its FETCH would take. Bytes and time are kept
 * apart: a long fetch says more about the rate than a short one. A fetch that timed out says
 * nothing about those that do not.
 */
static void measure_fetch(struct plane *plane, const struct ssv_completion *completion,
			  uint32_t chunks, uint64_t elapsed_ns)
{
	uint32_t bucket = 0;

	while (bucket + 1 < TIME_BUCKETS && elapsed_ns / NS_PER_US >> (bucket + 1))
		bucket++;
	plane->fetch_times[bucket]++;
	if (!completion->wire_bytes || !elapsed_ns || completion->status == -ETIMEDOUT ||
	    completion->status == -ECANCELED)
		return;
	if (plane->now_ns - plane->measured_ns > MEASURE_AGE_NS)
		plane->rate_bytes = plane->rate_ns = plane->rate_chunks = 0;
	plane->measured_ns = plane->now_ns;
	plane->rate_bytes += (double)completion->wire_bytes - plane->rate_bytes / 4;
	plane->rate_ns += (double)elapsed_ns - plane->rate_ns / 4;
	plane->rate_chunks += chunks - plane->rate_chunks / 4;
}

/* Bytes per second of past fetches; 0: nothing measured lately, so that a store that was slow once
 * is tried again. */
double plane_fetch_rate(const struct plane *plane)
{
	if (plane->rate_ns <= 0 || plane->now_ns - plane->measured_ns > MEASURE_AGE_NS)
		return 0;
	return plane->rate_bytes * 1e9 / plane->rate_ns;
}

static void complete_lookup(struct plane *plane, const struct job *job,
			    struct ssv_completion *completion)
{
	const double rate = plane_fetch_rate(plane);
	double bytes = plane->rate_chunks > 0 ? plane->rate_bytes / plane->rate_chunks : 0;

	plane->counters[PLANE_LOOKUPS]++;
	completion->tokens = job->bound * SSV_CHUNK_TOKENS;
	if (job->found_keys)
		bytes = (double)job->found_bytes / (double)job->found_keys;
	if (rate > 0) {
		double us = bytes * job->bound * 1e6 / rate;

		completion->estimate_us = us < UINT32_MAX ? (uint32_t)us : UINT32_MAX;
	}
}

static void complete_chunks(struct plane *plane, const struct job *job,
			    struct ssv_completion *completion, uint64_t elapsed_ns)
{
	const struct layout *layout = plane->regions[job->region].region->layout;
	const uint64_t total = (uint64_t)job->blocks_count * layout->block_tokens;

	if (job->bound > 0)
		completion->tokens = (uint32_t)u64_min(
		    total, (uint64_t)job->bound * SSV_CHUNK_TOKENS - job->first_token);
	completion->kv_bytes =
	    shape_kv_bytes(&layout->shape) / SSV_CHUNK_TOKENS * completion->tokens;
	for (uint32_t i = 0; i < job->bound; i++)
		completion->wire_bytes += job->piece_bytes[i];
	if (job->op == SSV_OP_FETCH) {
		plane->counters[PLANE_FETCHES]++;
		plane->counters[PLANE_FETCH_TOKENS] += completion->tokens;
		plane->counters[completion->status ? PLANE_FETCHES_SHORT : PLANE_FETCHES_FULL]++;
		measure_fetch(plane, completion, job->bound, elapsed_ns);
		times_add(&plane->stages[CONTROL_STAGE_FETCH], elapsed_ns);
		return;
	}
	completion->wire_bytes = 0;
	plane->counters[PLANE_STORES]++;
	plane->counters[PLANE_STORES_DROPPED] += completion->status == -EAGAIN;
	plane->counters[PLANE_STORE_TOKENS] += completion->tokens;
}

/* What was not handed out because the job was stopped is missing from the prefix. */
static void job_close_bound(struct job *job)
{
	uint32_t reached = job->next_piece;

	if (!job->stopped || job->next_piece >= job->pieces_count)
		return;
	if (job->op == SSV_OP_LOOKUP)
		reached = lookup_key(job, job->next_piece);
	if (reached >= job->bound)
		return;
	job->bound = reached;
	job->gap_status = job->stop_status;
}

static void session_cancels_settle(struct plane *plane, struct session *session, uint64_t target,
				   uint64_t sequence);
static void session_flushes_settle(struct plane *plane, uint32_t index);

static void job_free(struct plane *plane, struct job *job)
{
	const uint32_t session = job->session;
	const uint8_t op = job->op;

	list_remove(&job->of_session);
	job->state = JOB_FREE;
	job->generation++;
	list_push_front(&plane->free_jobs, &job->active);
	plane->jobs_used--;
	if (op == SSV_OP_STORE && session != NO_INDEX)
		session_flushes_settle(plane, session);
}

static void job_trace(struct plane *plane, const struct job *job,
		      const struct ssv_completion *completion)
{
	const struct path_subject subject = {
	    .request = (uint32_t)job->sequence,
	    .detail = (uint16_t)(job->session << 4 | job->op),
	    .value = (uint64_t)(uint32_t)completion->status << 32 | completion->tokens,
	};

	path_event(&plane->trace, TRACE_REQUEST, job->begun_ns, plane->now_ns, &subject);
}

static void job_complete(struct plane *plane, struct job *job, int status)
{
	struct session *session = &plane->sessions[job->session];
	struct plane_event event = {
	    .kind = PLANE_EVENT_COMPLETION,
	    .session = session_number(plane, session),
	    .completion = {.user_data = job->user_data, .op = job->op, .status = status},
	};
	const uint64_t elapsed_ns = plane->now_ns - job->begun_ns;
	const uint64_t user_data = job->user_data, sequence = job->sequence;
	const uint32_t region = job->region;

	event.completion.elapsed_us = elapsed_ns / NS_PER_US;
	event.severed = region != NO_INDEX && region_is_severed(plane->regions[region].region);
	if (job->op == SSV_OP_LOOKUP)
		complete_lookup(plane, job, &event.completion);
	else if (job->op == SSV_OP_FETCH || job->op == SSV_OP_STORE)
		complete_chunks(plane, job, &event.completion, elapsed_ns);
	slots_release(&plane->request_slots, &job->memory);
	job_unready(plane, job);
	list_remove(&job->active);
	session->running--;
	/* Before anything below settles: what ends with this job may end the session. */
	if (region != NO_INDEX)
		plane->regions[region].jobs_count--;
	job->region = NO_INDEX;
	job_trace(plane, job, &event.completion);
	plane_event_push(plane, &event);
	job->state = JOB_PUTTING;
	if (job->putting == 0)
		job_free(plane, job);
	if (region != NO_INDEX)
		region_settle(plane, region);
	session_cancels_settle(plane, session, user_data, sequence);
	session_settle(plane, (uint32_t)(session - plane->sessions));
}

void job_settle(struct plane *plane, struct job *job)
{
	uint32_t pieces = job->pieces_count;

	if (job->state == JOB_PUTTING && job->putting == 0)
		job_free(plane, job);
	if (job->state != JOB_RUN || job->out || job_has_piece(job))
		return;
	if (job->op == SSV_OP_CANCEL || job->op == SSV_OP_FLUSH)
		return;
	job_close_bound(job);
	if (job->op == SSV_OP_LOOKUP)
		pieces = lookup_keys(job);
	job_complete(plane, job, job->bound == pieces ? 0 : job->gap_status);
}

void job_stop(struct plane *plane, struct job *job, int status)
{
	if (job->state != JOB_RUN || job->stopped || job->op == SSV_OP_CANCEL)
		return;
	job->stopped = 1;
	job->stop_status = status;
	job->deadline_ns = TIME_NEVER;
	if (status == -ETIMEDOUT)
		plane->counters[PLANE_DEADLINES]++;
	if (job->op == SSV_OP_FLUSH) {
		job_complete(plane, job, status);
		return;
	}
	job_unready(plane, job);
	dispatch_cancel(plane, job, 0);
	job_settle(plane, job);
}

/* ---- CANCEL and FLUSH ----------------------------------------------------------------------- */

/* Complete the CANCELs that waited for a job that has just completed. */
static void session_cancels_settle(struct plane *plane, struct session *session, uint64_t target,
				   uint64_t sequence)
{
	struct link *link = session->jobs.next;

	while (link != &session->jobs) {
		struct job *job = link_holder(link, struct job, of_session);

		link = link->next;
		if (job->state == JOB_RUN && job->op == SSV_OP_CANCEL && job->target == target &&
		    job->sequence > sequence) {
			job_complete(plane, job, 0);
			/* The session may have ended with it, and nothing is in its list then. */
			link = session->jobs.next;
		}
	}
}

static int flush_is_done(const struct session *session, const struct job *flush)
{
	for (struct link *link = session->jobs.next; link != &flush->of_session;
	     link = link->next) {
		const struct job *job = link_holder(link, struct job, of_session);

		if (job->op == SSV_OP_STORE)
			return 0;
	}
	return 1;
}

/* Complete the FLUSHes whose STOREs are all put or dropped. */
static void session_flushes_settle(struct plane *plane, uint32_t index)
{
	struct session *session = &plane->sessions[index];
	struct link *link = session->jobs.next;

	while (link != &session->jobs) {
		struct job *job = link_holder(link, struct job, of_session);

		link = link->next;
		if (job->state == JOB_RUN && job->op == SSV_OP_FLUSH &&
		    flush_is_done(session, job)) {
			job_complete(plane, job, 0);
			link = session->jobs.next; /* others may have gone with it */
		}
	}
}

struct job *session_find(struct session *session, uint64_t user_data)
{
	for (struct link *link = session->jobs.next; link != &session->jobs; link = link->next) {
		struct job *job = link_holder(link, struct job, of_session);

		if (job->state == JOB_RUN && job->user_data == user_data)
			return job;
	}
	return NULL;
}

/* ---- beginning and time --------------------------------------------------------------------- */

/* A job that was accepted and filled in begins. */
void job_start(struct plane *plane, struct job *job, struct session *session,
	       const struct ssv_request *request)
{
	struct job *target;

	switch (job->op) {
	case SSV_OP_LOOKUP:
		job->bound = lookup_keys(job);
		job->pieces_count =
		    (job->bound + LOOKUP_BATCH - 1) / LOOKUP_BATCH * job->ranks_count;
		/* Nothing counts until every rank can take part. */
		if (!session_ranks_are_complete(plane, session, job->ranks_count))
			job->bound = 0;
		break;
	case SSV_OP_FETCH:
	case SSV_OP_STORE:
		job->region = region_index(request->region);
		plane->regions[job->region].jobs_count++;
		job->pieces_count = job->bound = job->keys_count;
		break;
	case SSV_OP_CANCEL:
		plane->counters[PLANE_CANCELS]++;
		target = session_find(session, job->target);
		if (!target || target == job || target->op == SSV_OP_CANCEL)
			job_complete(plane, job, -ENOENT);
		else
			job_stop(plane, target, -ECANCELED);
		return;
	default:
		plane->counters[PLANE_FLUSHES]++;
		session_flushes_settle(plane, job->session);
		return;
	}
	if (job->op == SSV_OP_STORE && plane->draining)
		job_stop(plane, job, -EAGAIN);
	else if (job_has_piece(job))
		job_ready(plane, job);
	else
		job_settle(plane, job);
}

/* Stop every job whose time has come, and note when the next one's comes. */
int jobs_watch_deadlines(struct plane *plane)
{
	const uint64_t now_ns = plane->now_ns;
	struct link *link = plane->active_jobs.next;
	int did = 0;

	if (now_ns < plane->deadline_ns)
		return 0;
	plane->deadline_ns = TIME_NEVER;
	while (link != &plane->active_jobs) {
		struct job *job = link_holder(link, struct job, active);

		link = link->next;
		if (job->deadline_ns > now_ns) {
			plane->deadline_ns = u64_min(plane->deadline_ns, job->deadline_ns);
			continue;
		}
		/* A store that no worker has taken up was dropped for overload. */
		job_stop(plane, job, job->op == SSV_OP_STORE ? -EAGAIN : -ETIMEDOUT);
		/* Others may have ended with it: begin again. */
		link = plane->active_jobs.next;
		did = 1;
	}
	return did;
}
