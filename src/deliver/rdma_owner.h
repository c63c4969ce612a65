/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rdma_owner.h - the other end of the "rdma" way: memory of this host is offered to a card that
 * reads and writes it through the network device, without any thread here taking part.
 *
 *   open      registers the memory and makes a waiting queue pair for each worker the card may
 * have; the offer goes to the card with REGISTER connect   takes the card's answer from REGISTERED;
 * from then on the card may reach the memory revoke    ends the card's rights; when it has
 * returned, no byte of the card's can land any more close     gives everything back (revokes first)
 *
 * The promise: as long as rights are not revoked nothing but the card's own completion says that it
 * is done with a block. So whoever wants to report anything else (connection lost, a deadline) must
 * revoke first, and report only if that succeeded; if it failed, only the end of this process takes
 * the rights away. The kernel does that before the process counts as dead.
 *
 * One thread at a time. A process that holds an owner must not fork without exec: a child that kept
 * the device open would keep the rights alive.
 */
#ifndef SSV_DELIVER_RDMA_OWNER_H
#define SSV_DELIVER_RDMA_OWNER_H

#include "deliver/rdma_blob.h"

struct rdma_owner;

/* How the device reaches the memory. */
enum rdma_paging {
	RDMA_PINNED = 0,    /* all pages are made present and held */
	RDMA_ON_DEMAND = 1, /* pages come when they are touched; not every device can */
};

struct rdma_owner_config {
	const char *device;   /* as rdma_port_open(); NULL: the first that is active */
	uint8_t paging;       /* enum rdma_paging */
	uint32_t lanes_count; /* workers that the card may have; 0: RDMA_LANES_MAX */
	void *memory;         /* a mapping; stays the caller's, until close */
	int dmabuf_fd; /* with memory NULL: a GPU's memory, exported; borrowed for the call */
	uint64_t dmabuf_offset;
	uint64_t bytes;
};

/**
 * Errors: -ENOTSUP this build or device cannot; -ENODEV, -EINVAL, -EPERM, -EIO; -ENOMEM also where
 * the memory must not be pinned (ulimit -l). One line in error (SSV_ERROR_TEXT_MAX bytes).
 */
SSV_MUST_CHECK int rdma_owner_open(const struct rdma_owner_config *config,
				   struct rdma_owner **ret_owner, struct blob *ret_offer,
				   char *error);
/* -EPROTO a bad answer; -EINVAL, -EIO no way to the card. Nothing was granted then. */
SSV_MUST_CHECK int rdma_owner_connect(struct rdma_owner *owner, const struct blob *answer,
				      char *error);
/* 0: revoked, now or before. Else rights may remain: the process must end. */
SSV_MUST_CHECK int rdma_owner_revoke(struct rdma_owner *owner);
/* Takes NULL. What revoke says. */
int rdma_owner_close(struct rdma_owner *owner);

#endif
