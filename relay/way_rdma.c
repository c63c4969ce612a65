/* SPDX-License-Identifier: Apache-2.0 */
/*
 * way_rdma.c - grants, answers and revocations by src/deliver/rdma_owner.h.
 *
 * All of it happens within the calls, so there is nothing to wait for. Registering pins the memory:
 * some hundred milliseconds for tens of gigabytes, once a region. Where the device refuses to give
 * rights back this process ends: its death takes them away, and engines see it by its pidfd.
 */
#include "way_rdma.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "deliver/rdma_owner.h"

struct way_rdma {
	char device[128];
};

struct grant {
	struct rdma_owner *owner;
	enum grant_state state;
};

static int rdma_grant(void *way_pointer, uint8_t *map, uint64_t bytes,
		      const struct sockaddr_storage *here, struct blob *ret_offer,
		      struct grant **ret_grant, char *error)
{
	const struct way_rdma *way = way_pointer;
	const struct rdma_owner_config config = {
	    .device = way->device, .memory = map, .bytes = bytes, .dmabuf_fd = -1};
	struct grant *grant = calloc(1, sizeof(*grant));
	int err;

	(void)here; /* the device has an address of its own */
	if (!grant) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "no memory for a grant");
		return -ENOMEM;
	}
	err = rdma_owner_open(&config, &grant->owner, ret_offer, error);
	if (err) {
		free(grant);
		return err;
	}
	grant->state = GRANT_HELD;
	*ret_grant = grant;
	return 0;
}

static int rdma_answered(void *way, struct grant *grant, const struct blob *answer, char *error)
{
	(void)way;
	return rdma_owner_connect(grant->owner, answer, error);
}

static void rdma_revoke(void *way, struct grant *grant)
{
	int err = rdma_owner_revoke(grant->owner);

	(void)way;
	if (err) {
		log_error("rights cannot be taken back, ending status=%d reason=\"%s\"", err,
			  strerror(-err));
		_exit(1);
	}
	grant->state = GRANT_REVOKED;
}

static enum grant_state rdma_state(void *way, struct grant *grant)
{
	(void)way;
	return grant->state;
}

static void rdma_release(void *way, struct grant *grant)
{
	(void)way;
	(void)rdma_owner_close(grant->owner); /* revoked: nothing can fail any more */
	free(grant);
}

static int rdma_fd(void *way)
{
	(void)way;
	return -1;
}

static void rdma_changed(void *way)
{
	(void)way;
}

static void rdma_close(void *way)
{
	free(way);
}

int way_rdma_open(const char *device, struct way_rdma **ret_way, char *error)
{
	struct way_rdma *way = calloc(1, sizeof(*way));

	if (!way) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "no memory for a way");
		return -ENOMEM;
	}
	snprintf(way->device, sizeof(way->device), "%s", device);
	*ret_way = way;
	return 0;
}

const struct relay_way_ops relay_way_rdma = {
    .name = "rdma",
    .memory = SSV_MEMORY_RDMA,
    .grant = rdma_grant,
    .answered = rdma_answered,
    .revoke = rdma_revoke,
    .state = rdma_state,
    .release = rdma_release,
    .fd = rdma_fd,
    .changed = rdma_changed,
    .close = rdma_close,
};
