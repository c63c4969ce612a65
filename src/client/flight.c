/* SPDX-License-Identifier: Apache-2.0 */
/*
 * flight.c - which requests are in flight, and the completions that nobody took yet.
 *
 * A fixed table with hash chains and a ring as long as the table: an entry is SENT until its
 * completion arrives, DONE while that lies in the ring, and free once it is taken. So the ring can
 * never be too short, and a second completion for the same request is recognised.
 */
#include <errno.h>

#include "client/client.h"

#define NONE SSV_REQUESTS_MAX

static_assert(SSV_REQUESTS_MAX < UINT16_MAX, "links are 16 bits");

static uint32_t head_of(uint64_t user_data)
{
	return (uint32_t)((user_data * 0x9e3779b97f4a7c15u) >> 32) & (CLIENT_HEADS - 1);
}

void flights_init(struct flights *flights)
{
	for (uint32_t i = 0; i < CLIENT_HEADS; i++)
		flights->heads[i] = NONE;
	for (uint32_t i = 0; i < SSV_REQUESTS_MAX; i++) {
		flights->entries[i].state = FLIGHT_FREE;
		flights->entries[i].next = (uint16_t)(i + 1);
	}
	flights->free = 0;
	flights->count = 0;
	flights->done_start = 0;
	flights->done_count = 0;
}

struct flight *flights_find(struct flights *flights, uint64_t user_data)
{
	uint16_t i = flights->heads[head_of(user_data)];

	while (i != NONE && flights->entries[i].user_data != user_data)
		i = flights->entries[i].next;
	return i == NONE ? NULL : &flights->entries[i];
}

void flights_add(struct flights *flights, uint64_t user_data, uint8_t op)
{
	uint16_t *head = &flights->heads[head_of(user_data)];
	uint16_t i = flights->free;
	struct flight *flight;

	ssv_assert(i != NONE);
	flight = &flights->entries[i];
	flights->free = flight->next;
	*flight =
	    (struct flight){.user_data = user_data, .op = op, .state = FLIGHT_SENT, .next = *head};
	*head = i;
	flights->count++;
}

static void flights_remove(struct flights *flights, uint64_t user_data)
{
	uint16_t *link = &flights->heads[head_of(user_data)];
	uint16_t i;

	while (flights->entries[*link].user_data != user_data)
		link = &flights->entries[*link].next;
	i = *link;
	*link = flights->entries[i].next;
	flights->entries[i].state = FLIGHT_FREE;
	flights->entries[i].next = flights->free;
	flights->free = i;
	flights->count--;
}

static void ring_push(struct flights *flights, const struct ssv_completion *completion)
{
	uint32_t at = (flights->done_start + flights->done_count) % SSV_REQUESTS_MAX;

	flights->done[at] = *completion;
	flights->done_count++;
}

int flights_complete(struct flights *flights, const struct ssv_completion *completion)
{
	struct flight *flight = flights_find(flights, completion->user_data);

	if (!flight || flight->state != FLIGHT_SENT || flight->op != completion->op)
		return -EPROTO;
	flight->state = FLIGHT_DONE;
	ring_push(flights, completion);
	return 0;
}

void flights_end(struct flights *flights, int status)
{
	for (uint32_t i = 0; i < SSV_REQUESTS_MAX; i++) {
		struct flight *flight = &flights->entries[i];
		struct ssv_completion completion = {
		    .user_data = flight->user_data, .op = flight->op, .status = status};

		if (flight->state != FLIGHT_SENT)
			continue;
		flight->state = FLIGHT_DONE;
		ring_push(flights, &completion);
	}
}

uint32_t flights_take(struct flights *flights, struct ssv_completion *completions, uint32_t max)
{
	uint32_t n = (uint32_t)u64_min(max, flights->done_count);

	for (uint32_t i = 0; i < n; i++) {
		completions[i] = flights->done[flights->done_start];
		flights->done_start = (flights->done_start + 1) % SSV_REQUESTS_MAX;
		flights->done_count--;
		flights_remove(flights, completions[i].user_data);
	}
	return n;
}
