/* SPDX-License-Identifier: Apache-2.0 */
/*
 * request.c - submit, poll and stat.
 *
 * What the library can judge alone it refuses at once (the daemon checks all of it again); what it
 * accepted is the daemon's, and comes back as exactly one completion.
 */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "client/client.h"

/* ---- what a request must look like ---------------------------------------------------------- */

static int blocks_check(const struct ssv *ssv, const struct ssv_request *request,
			uint32_t *ret_tokens)
{
	const struct client_region *region = client_region_find(ssv, request->region);

	if (!region)
		return -ENOENT;
	for (uint32_t i = 0; i < request->blocks_count; i++) {
		if (request->blocks[i] >= region->blocks_count)
			return -EINVAL;
	}
	if (request->first_token % region->block_tokens)
		return -EINVAL;
	*ret_tokens = request->first_token + request->blocks_count * region->block_tokens;
	return 0;
}

static int ends_in_last_chunk(const struct ssv_request *request, uint32_t end)
{
	return end <= request->keys_count * SSV_CHUNK_TOKENS &&
	       end > (request->keys_count - 1) * SSV_CHUNK_TOKENS;
}

static int fetch_check(const struct ssv *ssv, const struct ssv_request *request)
{
	uint32_t end;
	int err;

	if (request->tier || request->codec || request->target || request->ranks_count ||
	    !request->keys_count || !request->blocks_count || request->min_tier > SSV_TIER_TINY ||
	    request->first_token >= SSV_CHUNK_TOKENS)
		return -EINVAL;
	err = blocks_check(ssv, request, &end);
	if (err)
		return err;
	return ends_in_last_chunk(request, end) ? 0 : -EINVAL;
}

static int store_check(const struct ssv *ssv, const struct ssv_request *request)
{
	uint32_t end;
	int err;

	if (request->min_tier || request->target || request->ranks_count || request->first_token ||
	    request->deadline_ms || !request->keys_count || !request->blocks_count ||
	    request->tier > SSV_TIER_TINY || request->codec > SSV_CODEC_ZSTD)
		return -EINVAL;
	err = blocks_check(ssv, request, &end);
	if (err)
		return err;
	return ends_in_last_chunk(request, end) ? 0 : -EINVAL;
}

static int lookup_check(const struct ssv_request *request)
{
	uint32_t ranks = request->ranks_count ? request->ranks_count : 1;

	if (ranks > SSV_RANKS_MAX)
		return -E2BIG;
	if (request->tier || request->codec || request->min_tier > SSV_TIER_TINY ||
	    request->region || request->target || request->blocks_count || request->first_token ||
	    request->position || request->deadline_ms || !request->keys_count ||
	    request->keys_count % ranks)
		return -EINVAL;
	return 0;
}

/* CANCEL and FLUSH: nothing but the target, or the deadline. */
static int bare_check(const struct ssv_request *request)
{
	if (request->tier || request->codec || request->min_tier || request->region ||
	    request->keys_count || request->blocks_count || request->ranks_count ||
	    request->first_token || request->position)
		return -EINVAL;
	if (request->op == SSV_OP_CANCEL)
		return request->deadline_ms || request->target == request->user_data ? -EINVAL : 0;
	return request->target ? -EINVAL : 0;
}

static int request_check(const struct ssv *ssv, const struct ssv_request *request)
{
	if (request->keys_count > SSV_KEYS_MAX || request->blocks_count > SSV_BLOCKS_MAX)
		return -E2BIG;
	if ((request->keys_count && !request->keys) || (request->blocks_count && !request->blocks))
		return -EINVAL;
	switch (request->op) {
	case SSV_OP_LOOKUP:
		return lookup_check(request);
	case SSV_OP_FETCH:
		return fetch_check(ssv, request);
	case SSV_OP_STORE:
		return store_check(ssv, request);
	case SSV_OP_CANCEL:
	case SSV_OP_FLUSH:
		return bare_check(request);
	default:
		return -EINVAL;
	}
}

/* ---- submit and poll ------------------------------------------------------------------------ */

static int request_queue(struct ssv *ssv, const struct ssv_request *request)
{
	size_t bytes;
	int err = request_check(ssv, request);

	if (err)
		return err;
	if (ssv->flights.count == SSV_REQUESTS_MAX)
		return -EAGAIN;
	if (flights_find(&ssv->flights, request->user_data))
		return -EINVAL;
	if (message_request_bytes(request) > link_room(ssv))
		return -EAGAIN;
	bytes = message_encode_request(link_reserve(ssv), link_room(ssv), request);
	link_queue(ssv, bytes);
	flights_add(&ssv->flights, request->user_data, request->op);
	return 0;
}

SSV_API int ssv_submit(struct ssv *ssv, const struct ssv_request *requests, uint32_t count)
{
	uint32_t accepted = 0;
	int err = 0;

	if (!ssv || (count && !requests) || count > INT32_MAX)
		return -EINVAL;
	if (client_check(ssv) || ssv->state != LINK_OPEN)
		return -ENOTCONN;
	while (accepted < count && !err) {
		err = request_queue(ssv, &requests[accepted]);
		accepted += !err;
	}
	link_flush(ssv); /* the batch goes out in one send */
	return accepted ? (int)accepted : err;
}

static int wait_left(uint64_t deadline_ns, int timeout_ms)
{
	uint64_t now;

	if (timeout_ms <= 0)
		return timeout_ms;
	now = clock_now_ns();
	return now >= deadline_ns ? 0 : (int)((deadline_ns - now + NS_PER_MS - 1) / NS_PER_MS);
}

SSV_API int ssv_poll(struct ssv *ssv, struct ssv_completion *completions, uint32_t max,
		     int timeout_ms)
{
	uint64_t deadline_ns = 0;
	uint32_t taken;
	int left;

	if (!ssv || (max && !completions))
		return -EINVAL;
	if (client_check(ssv))
		return -ENOTCONN;
	if (timeout_ms > 0)
		deadline_ns = clock_now_ns() + (uint64_t)timeout_ms * NS_PER_MS;
	do {
		left = wait_left(deadline_ns, timeout_ms);
		if (ssv->flights.done_count || link_is_over(ssv))
			left = 0;
		if (ssv->state != LINK_ENDED && link_wait(ssv, left) == -EINTR)
			left = 0; /* the caller may have a reason to look around */
	} while (left && !ssv->flights.done_count && !link_is_over(ssv) && max);
	taken = flights_take(&ssv->flights, completions, max);
	link_signal(ssv);
	if (!taken && !ssv->flights.count && link_is_over(ssv))
		return -ENOTCONN;
	return (int)taken;
}

SSV_API uint32_t ssv_in_flight(const struct ssv *ssv)
{
	return ssv && client_check(ssv) == 0 ? ssv->flights.count : 0;
}

/* ---- stat ----------------------------------------------------------------------------------- */

SSV_API int ssv_stat(struct ssv *ssv, char *json, size_t json_bytes, uint32_t timeout_ms)
{
	uint64_t deadline_ns;
	int result;

	if (!ssv || !json || !json_bytes)
		return -EINVAL;
	if (client_check(ssv) || ssv->state != LINK_OPEN)
		return -ENOTCONN;
	if (link_room(ssv) < MESSAGE_HEADER_BYTES)
		return -EAGAIN;
	deadline_ns = clock_now_ns() + (uint64_t)timeout_ms * NS_PER_MS;
	ssv->answer = (struct answer){
	    .id = ++ssv->last_id,
	    .type = MESSAGE_STATUS,
	    .json = json,
	    .json_bytes = json_bytes,
	};
	link_queue(ssv, message_encode_stat(link_reserve(ssv), link_room(ssv), ssv->answer.id));
	link_flush(ssv);
	result = link_await(ssv, deadline_ns, 0);
	if (!result)
		result = ssv->answer.status ? ssv->answer.status : ssv->answer.json_length;
	ssv->answer = (struct answer){0};
	link_signal(ssv);
	return result;
}
