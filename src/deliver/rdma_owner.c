/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rdma_owner.c - registers memory for a card, answers its queue pairs, takes its rights away.
 *
 * Revocation in order: each queue pair goes to the error state (what arrives is dropped), then the
 * memory is deregistered (its key opens nothing, and the call returns only when the device is done
 * with it). The queue pairs are destroyed last, so that their numbers are not used again before.
 */
#include "deliver/rdma_owner.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "deliver/rdma_port.h"

#define OWNER_RIGHTS (IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ)

struct rdma_owner {
	struct rdma_port port;
	struct ibv_mr *mr; /* NULL: revoked */
	uint64_t address;  /* where the memory begins for its key */
	uint64_t bytes;
	uint32_t lanes_count;
	uint8_t reads;
	struct {
		struct ibv_cq *cq;
		struct ibv_qp *qp;
		uint32_t psn;
	} lanes[RDMA_LANES_MAX];
};

/* ---- the memory ----------------------------------------------------------------------------- */

static int on_demand_check(struct ibv_context *context, char *error)
{
	const uint32_t needed = IBV_ODP_SUPPORT_WRITE | IBV_ODP_SUPPORT_READ;
	struct ibv_device_attr_ex attr;

	memset(&attr, 0, sizeof(attr));
	if (ibv_query_device_ex(context, NULL, &attr) == 0 &&
	    (attr.odp_caps.general_caps & IBV_ODP_SUPPORT) &&
	    (attr.odp_caps.per_transport_caps.rc_odp_caps & needed) == needed)
		return 0;
	snprintf(error, SSV_ERROR_TEXT_MAX,
		 "RDMA device %s cannot page on demand (ODP): memory must be pinned",
		 ibv_get_device_name(context->device));
	return -ENOTSUP;
}

static int memory_register(struct rdma_owner *owner, const struct rdma_owner_config *config,
			   char *error)
{
	int access = IBV_ACCESS_LOCAL_WRITE | OWNER_RIGHTS;
	int err;

	if (!config->memory) {
		owner->mr = ibv_reg_dmabuf_mr(owner->port.pd, config->dmabuf_offset, config->bytes,
					      config->dmabuf_offset, config->dmabuf_fd, access);
		owner->address = config->dmabuf_offset;
	} else {
		if (config->paging == RDMA_ON_DEMAND) {
			err = on_demand_check(owner->port.context, error);
			if (err)
				return err;
			access |= IBV_ACCESS_ON_DEMAND;
		}
		owner->mr =
		    ibv_reg_mr(owner->port.pd, config->memory, config->bytes, (unsigned)access);
		owner->address = (uintptr_t)config->memory;
	}
	if (owner->mr)
		return 0;
	err = errno;
	snprintf(error, SSV_ERROR_TEXT_MAX,
		 "%s of %llu bytes cannot be registered with RDMA device %s: %s%s",
		 config->memory ? "memory" : "a dma-buf", (unsigned long long)config->bytes,
		 ibv_get_device_name(owner->port.context->device), strerror(err),
		 err == ENOMEM ? " (ulimit -l?)" : "");
	return err == EOPNOTSUPP ? -ENOTSUP : -err;
}

/* ---- lanes ---------------------------------------------------------------------------------- */

static void lanes_destroy(struct rdma_owner *owner, uint32_t kept)
{
	for (uint32_t i = kept; i < owner->lanes_count; i++)
		rdma_pair_destroy(owner->lanes[i].cq, owner->lanes[i].qp);
	owner->lanes_count = (uint32_t)u64_min(owner->lanes_count, kept);
}

static int lanes_create(struct rdma_owner *owner, uint32_t count, char *error)
{
	for (uint32_t i = 0; i < count; i++) {
		uint32_t no_inline = 0;
		int err = rdma_pair_create(&owner->port, 1, &no_inline, &owner->lanes[i].cq,
					   &owner->lanes[i].qp, error);

		if (!err) {
			owner->lanes_count++;
			err = rdma_pair_init(&owner->port, owner->lanes[i].qp, OWNER_RIGHTS, error);
		}
		if (err) {
			lanes_destroy(owner, 0);
			return err;
		}
		owner->lanes[i].psn = rdma_psn();
	}
	return 0;
}

static void offer_put(const struct rdma_owner *owner, struct blob *offer)
{
	struct rdma_words words = {
	    .kind = RDMA_OFFER,
	    .reads = owner->reads,
	    .rkey = owner->mr->rkey,
	    .address = owner->address,
	    .bytes = owner->bytes,
	    .lanes_count = owner->lanes_count,
	};

	rdma_port_describe(&owner->port, &words);
	for (uint32_t i = 0; i < owner->lanes_count; i++)
		words.lanes[i] =
		    (struct rdma_end){.qp = owner->lanes[i].qp->qp_num, .psn = owner->lanes[i].psn};
	rdma_blob_encode(&words, offer);
}

/* ---- open, connect, revoke, close ----------------------------------------------------------- */

int rdma_owner_open(const struct rdma_owner_config *config, struct rdma_owner **ret_owner,
		    struct blob *ret_offer, char *error)
{
	const uint32_t lanes = config->lanes_count ? config->lanes_count : RDMA_LANES_MAX;
	struct rdma_owner *owner;
	int err;

	if (!config->bytes || lanes > RDMA_LANES_MAX || (!config->memory && config->dmabuf_fd < 0))
		return rdma_refuse(error, "no memory to offer, or too many lanes", EINVAL);
	owner = calloc(1, sizeof(*owner));
	if (!owner)
		return rdma_refuse(error, "no memory for an owner", ENOMEM);
	owner->bytes = config->bytes;
	err = rdma_port_open(config->device, &owner->port, error);
	if (err)
		goto free_owner;
	owner->reads = (uint8_t)u64_max(owner->port.reads, 1);
	err = memory_register(owner, config, error);
	if (err)
		goto close_port;
	err = lanes_create(owner, lanes, error);
	if (err)
		goto deregister;
	offer_put(owner, ret_offer);
	*ret_owner = owner;
	return 0;

deregister:
	(void)ibv_dereg_mr(owner->mr);
close_port:
	rdma_port_close(&owner->port);
free_owner:
	free(owner);
	return err;
}

int rdma_owner_connect(struct rdma_owner *owner, const struct blob *answer, char *error)
{
	struct rdma_words words;
	int err = rdma_blob_decode(answer, RDMA_ANSWER, &words, error);

	if (err)
		return err;
	if (!owner->mr || words.lanes_count > owner->lanes_count) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "RDMA: %u lanes were taken, %u are offered",
			 words.lanes_count, owner->mr ? owner->lanes_count : 0);
		return -EPROTO;
	}
	lanes_destroy(owner, words.lanes_count);
	for (uint32_t i = 0; i < owner->lanes_count && !err; i++)
		err = rdma_pair_receive(&owner->port, owner->lanes[i].qp, &words, i, owner->reads,
					error);
	/* Some lanes may be open: take them back. */
	if (err && rdma_owner_revoke(owner))
		snprintf(error, SSV_ERROR_TEXT_MAX, "RDMA: rights that were given cannot be taken");
	return err;
}

int rdma_owner_revoke(struct rdma_owner *owner)
{
	int err = 0;

	if (!owner->mr)
		return 0;
	/* A queue pair that cannot be stopped does not matter if the memory can be taken away. */
	for (uint32_t i = 0; i < owner->lanes_count; i++)
		(void)rdma_pair_stop(owner->lanes[i].qp);
	err = ibv_dereg_mr(owner->mr);
	if (err)
		return err > 0 ? -err : -EIO;
	owner->mr = NULL;
	lanes_destroy(owner, 0);
	return 0;
}

int rdma_owner_close(struct rdma_owner *owner)
{
	int err;

	if (!owner)
		return 0;
	err = rdma_owner_revoke(owner);
	if (err)
		return err;
	rdma_port_close(&owner->port);
	free(owner);
	return 0;
}
