/* SPDX-License-Identifier: Apache-2.0 */
/*
 * region.c - register and unregister memory: the two calls that wait for the daemon.
 *
 * An answer that comes after its caller gave up is not lost: a late REGISTERED is unregistered at
 * once, a late UNREGISTERED lets the next call return.
 */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "client/client.h"

#define REGISTER_NS (5 * NS_PER_S)

#define MISTAKE(error, code, ...) (snprintf(error, SSV_ERROR_TEXT_MAX, __VA_ARGS__), code)

static struct client_region *slot_find(struct ssv *ssv, uint32_t id)
{
	for (uint32_t i = 0; i < CLIENT_REGIONS_MAX; i++) {
		if (ssv->regions[i].state != REGION_FREE && ssv->regions[i].id == id)
			return &ssv->regions[i];
	}
	return NULL;
}

const struct client_region *client_region_find(const struct ssv *ssv, uint32_t id)
{
	for (uint32_t i = 0; i < CLIENT_REGIONS_MAX; i++) {
		if (ssv->regions[i].state == REGION_USED && ssv->regions[i].id == id)
			return &ssv->regions[i];
	}
	return NULL;
}

static struct client_region *slot_free(struct ssv *ssv)
{
	for (uint32_t i = 0; i < CLIENT_REGIONS_MAX; i++) {
		if (ssv->regions[i].state == REGION_FREE)
			return &ssv->regions[i];
	}
	return NULL;
}

void client_region_left(struct ssv *ssv, uint64_t message_id)
{
	for (uint32_t i = 0; i < CLIENT_REGIONS_MAX; i++) {
		if (ssv->regions[i].state == REGION_LEAVING &&
		    ssv->regions[i].leaving_id == message_id)
			ssv->regions[i].state = REGION_GONE;
	}
}

void client_region_disown(struct ssv *ssv, uint32_t id)
{
	size_t bytes = 0;

	if (link_room(ssv) >= 64)
		bytes = message_encode_region(link_reserve(ssv), 64, MESSAGE_UNREGISTER,
					      ++ssv->last_id, id);
	link_queue(ssv, bytes);
	link_flush(ssv);
}

/* ---- what can be said without the daemon ---------------------------------------------------- */

static int offer_check(const struct ssv_region *region, char *error)
{
	const size_t short_bytes = offsetof(struct ssv_region, gpu_uuid);

	/* A caller built before GPU regions has a shorter struct, which is read no further. */
	if (!region || region->struct_size < short_bytes ||
	    (memory_is_gpu(region->memory) && region->struct_size < sizeof(*region)))
		return MISTAKE(error, -EINVAL, "region: struct_size %u, expected %zu",
			       region ? region->struct_size : 0, sizeof(*region));
	if (region->reserved)
		return MISTAKE(error, -EINVAL, "region: reserved must be 0");
	if (region->memory < SSV_MEMORY_MEMFD || region->memory > SSV_MEMORY_GPU_FD)
		return MISTAKE(error, -EINVAL,
			       "region: memory %u, expected 1 (memfd), 2 (address), 3 (GPU by IPC "
			       "handle) or 4 (GPU by descriptor)",
			       region->memory);
	if (memory_has_fd(region->memory) && region->fd < 0)
		return MISTAKE(error, -EINVAL, "region: fd %d, expected a descriptor", region->fd);
	if (region->memory != SSV_MEMORY_ADDRESS && region->address)
		return MISTAKE(error, -EINVAL, "region: address 0x%llx, expected 0",
			       (unsigned long long)region->address);
	if (!region->bytes)
		return MISTAKE(error, -EINVAL, "region: 0 bytes");
	return 0;
}

static int layout_check(const struct ssv_layout *layout, char *error)
{
	if (!layout || layout->struct_size < sizeof(*layout))
		return MISTAKE(error, -EINVAL, "layout: struct_size %u, expected %zu",
			       layout ? layout->struct_size : 0, sizeof(*layout));
	if (layout->parts_count > SSV_PARTS_MAX)
		return MISTAKE(error, -E2BIG, "layout: %u parts, at most %d", layout->parts_count,
			       SSV_PARTS_MAX);
	if (layout->tensors_count > SSV_TENSORS_MAX)
		return MISTAKE(error, -E2BIG, "layout: %u tensors, at most %d",
			       layout->tensors_count, SSV_TENSORS_MAX);
	if (layout->tensors_count && !layout->tensors)
		return MISTAKE(error, -EINVAL, "layout: tensors is NULL");
	for (uint32_t i = 0; i < layout->parts_count; i++) {
		if (layout->parts[i].digits_count > SSV_DIGITS_MAX)
			return MISTAKE(error, -E2BIG, "layout: part %u has %u digits, at most %d",
				       i, layout->parts[i].digits_count, SSV_DIGITS_MAX);
	}
	return 0;
}

/* ---- register ------------------------------------------------------------------------------- */

static int register_send(struct ssv *ssv, const struct ssv_region *region,
			 const struct ssv_layout *layout, uint64_t id, uint64_t deadline_ns)
{
	size_t room = message_register_bytes(region, layout);
	uint8_t *bytes;
	size_t count;
	int err;

	bytes = malloc(room);
	if (!bytes)
		return -ENOMEM;
	count = message_encode_register(bytes, room, id, region, layout, NULL);
	if (memory_has_fd(region->memory)) {
		err = link_send_fd(ssv, bytes, count, region->fd, deadline_ns);
	} else if (link_room(ssv) < count) {
		err = -EAGAIN;
	} else {
		memcpy(link_reserve(ssv), bytes, count);
		link_queue(ssv, count);
		link_flush(ssv);
		err = 0;
	}
	free(bytes);
	return err;
}

static int register_wait(struct ssv *ssv, const struct ssv_layout *layout,
			 struct client_region *slot, uint64_t deadline_ns, char *error)
{
	int err = link_await(ssv, deadline_ns, 0);

	if (err == -ETIMEDOUT)
		return MISTAKE(error, err, "the daemon (pid %d) did not answer within 5 s",
			       (int)ssv->daemon);
	if (err)
		return MISTAKE(error, err, "%s", ssv->reason);
	if (ssv->answer.status)
		return MISTAKE(error, ssv->answer.status, "%s", ssv->answer.text);
	*slot = (struct client_region){
	    .id = ssv->answer.region,
	    .state = REGION_USED,
	    .block_tokens = layout->block_tokens,
	    .blocks_count = layout->blocks_count,
	};
	return 0;
}

static int region_register(struct ssv *ssv, const struct ssv_region *region,
			   const struct ssv_layout *layout, uint32_t *ret_region_id, char *error)
{
	uint64_t deadline_ns = clock_now_ns() + REGISTER_NS;
	struct client_region *slot;
	int err;

	if (client_check(ssv))
		return MISTAKE(error, -ENOTCONN, "this handle belongs to the parent process");
	err = offer_check(region, error);
	if (!err)
		err = layout_check(layout, error);
	if (err)
		return err;
	slot = slot_free(ssv);
	if (!slot)
		return MISTAKE(error, -E2BIG, "%d regions registered, no more fit",
			       CLIENT_REGIONS_MAX);
	if (ssv->state != LINK_OPEN)
		return MISTAKE(error, -ENOTCONN, "%s", ssv->reason);
	ssv->answer = (struct answer){.id = ++ssv->last_id, .type = MESSAGE_REGISTERED};
	err = register_send(ssv, region, layout, ssv->answer.id, deadline_ns);
	if (err)
		snprintf(error, SSV_ERROR_TEXT_MAX, "cannot ask the daemon (pid %d): %s",
			 (int)ssv->daemon, strerror(-err));
	else
		err = register_wait(ssv, layout, slot, deadline_ns, error);
	ssv->answer = (struct answer){0};
	link_signal(ssv);
	if (err)
		return err;
	*ret_region_id = slot->id;
	return 0;
}

SSV_API int ssv_region_register(struct ssv *ssv, const struct ssv_region *region,
				const struct ssv_layout *layout, uint32_t *ret_region_id,
				char *error)
{
	char unwanted[SSV_ERROR_TEXT_MAX];

	if (!ssv || !ret_region_id)
		return -EINVAL;
	if (!error)
		error = unwanted;
	error[0] = 0;
	return region_register(ssv, region, layout, ret_region_id, error);
}

/* ---- unregister ----------------------------------------------------------------------------- */

static int unregister_send(struct ssv *ssv, struct client_region *region)
{
	size_t bytes;

	if (ssv->state != LINK_OPEN)
		return 0; /* broken: only the daemon's death can answer now */
	if (link_room(ssv) < 64)
		return -ETIMEDOUT;
	region->leaving_id = ++ssv->last_id;
	bytes = message_encode_region(link_reserve(ssv), 64, MESSAGE_UNREGISTER, region->leaving_id,
				      region->id);
	region->state = REGION_LEAVING;
	link_queue(ssv, bytes);
	link_flush(ssv);
	return 0;
}

SSV_API int ssv_region_unregister(struct ssv *ssv, uint32_t region_id, uint32_t timeout_ms)
{
	struct client_region *region;
	uint64_t deadline_ns;
	int err = 0;

	if (!ssv)
		return -EINVAL;
	if (client_check(ssv))
		return -ENOTCONN;
	region = slot_find(ssv, region_id);
	if (!region)
		return ssv->state == LINK_ENDED ? -ENOTCONN : -ENOENT;
	deadline_ns = clock_now_ns() + (uint64_t)timeout_ms * NS_PER_MS;
	if (region->state == REGION_USED)
		err = unregister_send(ssv, region);
	/* An earlier call may have given up: the same message's answer still counts. */
	ssv->answer = (struct answer){.id = region->leaving_id, .type = MESSAGE_UNREGISTERED};
	ssv->answer.came = region->state == REGION_GONE;
	if (!err)
		err = link_await(ssv, deadline_ns, 1);
	if (!err)
		err = ssv->answer.status;
	ssv->answer = (struct answer){0};
	link_signal(ssv);
	if (err == -ETIMEDOUT)
		return err;
	region->state = REGION_FREE;
	return err;
}
