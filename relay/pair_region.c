/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pair_region.c - an engine's memory: mapped here, granted to the card, taken back.
 *
 * The mapping is made and checked by the daemon's own "memory" way. It is unmapped only when the
 * grant is revoked, and only then is the engine told that the region is gone.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "pair.h"

#define PROTO(error, ...) (snprintf(error, SSV_ERROR_TEXT_MAX, __VA_ARGS__), -EPROTO)

static void refuse(struct pair *pair, uint64_t id, int status, const char *text)
{
	end_queue(&pair->engine,
		  message_encode_text(end_reserve(&pair->engine), end_room(&pair->engine),
				      MESSAGE_REFUSED, id, status, text,
				      strnlen(text, SSV_ERROR_TEXT_MAX - 1)));
}

static struct pair_region *region_free(struct pair *pair)
{
	for (uint32_t i = 0; i < PAIR_REGIONS_MAX; i++) {
		if (pair->regions[i].state == REGION_FREE)
			return &pair->regions[i];
	}
	return NULL;
}

/* This machine's address as the card reaches it: the session's own end, unless configured. */
static int here_find(const struct pair *pair, struct sockaddr_storage *ret_here)
{
	socklen_t bytes = sizeof(*ret_here);

	if (pair->world->here.ss_family) {
		*ret_here = pair->world->here;
		return 0;
	}
	return getsockname(stream_fd(pair->card.stream), (struct sockaddr *)ret_here, &bytes) < 0
		   ? -errno
		   : 0;
}

static int region_grant(struct pair *pair, struct pair_region *place, struct ssv_region *offer,
			const struct ssv_layout *layout, struct blob *ret_blob, char *text)
{
	const struct relay_way *way = &pair->world->way;
	const struct deliver_owner owner = {.pid = pair->pid};
	struct sockaddr_storage here;
	int err;

	if (offer->memory != SSV_MEMORY_MEMFD) {
		snprintf(text, SSV_ERROR_TEXT_MAX,
			 "memory of kind %u: a relay maps memfds alone (1)", offer->memory);
		return -ENOTSUP;
	}
	err = here_find(pair, &here);
	if (err)
		return err;
	err = region_attach(offer, layout, &owner, NULL, &place->region, text);
	if (err)
		return err;
	err = way->ops->grant(way->way, place->region->map, place->region->bytes, &here, ret_blob,
			      &place->grant, text);
	if (err) {
		region_detach(place->region);
		place->region = NULL;
	}
	return err;
}

int pair_register(struct pair *pair, const struct message *message, char *error)
{
	struct pair_region *place = region_free(pair);
	char text[SSV_ERROR_TEXT_MAX] = "";
	struct ssv_region offer;
	struct ssv_layout layout;
	struct blob blob = {0};
	int err =
	    message_decode_register(message, &offer, &layout, pair->world->tensors, &blob, error);

	if (err)
		return err;
	if (memory_has_fd(offer.memory)) {
		if (!pair->engine.fds.count)
			return PROTO(error, "REGISTER of memory by descriptor without it");
		offer.fd = pair->engine.fds.fds[0];
		pair->engine.fds.count--;
		memmove(pair->engine.fds.fds, pair->engine.fds.fds + 1,
			pair->engine.fds.count * sizeof(int));
	}
	err = -E2BIG;
	if (place)
		err = region_grant(pair, place, &offer, &layout, &blob, text);
	else
		snprintf(text, sizeof(text), "%d regions are registered already", PAIR_REGIONS_MAX);
	if (offer.fd >= 0)
		close(offer.fd);
	if (err) {
		refuse(pair, message->id, err, text[0] ? text : strerror(-err));
		return 0;
	}
	place->state = REGION_ASKED;
	pair->regions_end =
	    (uint32_t)u64_max(pair->regions_end, (uint64_t)(place - pair->regions) + 1);
	place->id = message->id;
	offer.memory = pair->world->way.ops->memory;
	end_queue(&pair->card,
		  message_encode_register(end_reserve(&pair->card), end_room(&pair->card),
					  message->id, &offer, &layout, &blob));
	pair->waiting++;
	return 0;
}

static struct pair_region *region_asked(struct pair *pair, uint64_t id)
{
	for (uint32_t i = 0; i < PAIR_REGIONS_MAX; i++) {
		if (pair->regions[i].state == REGION_ASKED && pair->regions[i].id == id)
			return &pair->regions[i];
	}
	return NULL;
}

int pair_registered(struct pair *pair, const struct message *message, char *error)
{
	const struct relay_way *way = &pair->world->way;
	struct pair_region *place = region_asked(pair, message->id);
	struct blob answer;
	uint32_t number;
	int err = message_decode_registered(message, &number, &answer, error);

	if (err)
		return err;
	if (!place)
		return PROTO(error, "REGISTERED that answers nothing");
	err = way->ops->answered(way->way, place->grant, &answer, error);
	if (err)
		return err;
	place->state = REGION_USED;
	place->number = number;
	end_queue(&pair->engine,
		  message_encode_region(end_reserve(&pair->engine), end_room(&pair->engine),
					MESSAGE_REGISTERED, message->id, number));
	return 0;
}

static void region_leave(struct pair *pair, struct pair_region *place,
			 const struct message *message)
{
	const struct relay_way *way = &pair->world->way;

	place->state = REGION_LEAVING;
	place->after_bytes = 0;
	if (message && message->bytes <= PAIR_AFTER_BYTES) {
		place->after_bytes = message->bytes;
		memcpy(place->after, message->body - MESSAGE_HEADER_BYTES, message->bytes);
	}
	way->ops->revoke(way->way, place->grant);
}

int pair_unregistered(struct pair *pair, const struct message *message, char *error)
{
	uint32_t number;
	int err = message_decode_region(message, &number, error);

	if (err)
		return err;
	for (uint32_t i = 0; i < PAIR_REGIONS_MAX; i++) {
		struct pair_region *place = &pair->regions[i];

		if (place->state != REGION_USED || place->number != number)
			continue;
		region_leave(pair, place, message);
		return 0;
	}
	return PROTO(error, "UNREGISTERED of region %u, which is not registered", number);
}

int pair_refused(struct pair *pair, const struct message *message)
{
	struct pair_region *place = region_asked(pair, message->id);

	if (!place)
		return 0;
	region_leave(pair, place, message);
	return 1;
}

void pair_regions_revoke(struct pair *pair)
{
	for (uint32_t i = 0; i < PAIR_REGIONS_MAX; i++) {
		if (pair->regions[i].state == REGION_ASKED || pair->regions[i].state == REGION_USED)
			region_leave(pair, &pair->regions[i], NULL);
		else
			pair->regions[i].after_bytes = 0; /* CLOSE will say it all */
	}
}

int pair_regions_settle(struct pair *pair)
{
	const struct relay_way *way = &pair->world->way;
	int left = 0;

	for (uint32_t i = 0; i < pair->regions_end; i++) {
		struct pair_region *place = &pair->regions[i];
		enum grant_state state;

		if (place->state == REGION_FREE)
			continue;
		left++;
		state = way->ops->state(way->way, place->grant);
		if (state == GRANT_BROKEN && place->state != REGION_LEAVING)
			return -EIO;
		if (place->state != REGION_LEAVING || state != GRANT_REVOKED)
			continue;
		if (place->after_bytes > end_room(&pair->engine))
			continue;
		way->ops->release(way->way, place->grant);
		region_detach(place->region);
		memcpy(end_reserve(&pair->engine), place->after, place->after_bytes);
		end_queue(&pair->engine, place->after_bytes);
		memset(place, 0, sizeof(*place));
		left--;
	}
	return left;
}
