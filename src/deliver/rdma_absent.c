/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rdma_absent.c - stands for the "rdma" way in a build without libibverbs: says so when a region or
 * an owner asks for it. Nothing else of it can be reached.
 */
#include <errno.h>

#include "deliver/deliver.h"
#include "deliver/rdma_owner.h"

extern const struct deliver_ops deliver_rdma;

static int absent(char *error)
{
	snprintf(error, SSV_ERROR_TEXT_MAX,
		 "RDMA: this build has no libibverbs (meson setup -Drdma=enabled)");
	return -ENOTSUP;
}

static int absent_attach(struct region *region, const struct ssv_region *offer,
			 const struct deliver_owner *owner, const struct deliver_host *host,
			 char *error)
{
	(void)region;
	(void)offer;
	(void)owner;
	(void)host;
	return absent(error);
}

const struct deliver_ops deliver_rdma = {
    .name = "rdma",
    .memory = SSV_MEMORY_RDMA,
    .attach = absent_attach,
};

int rdma_owner_open(const struct rdma_owner_config *config, struct rdma_owner **ret_owner,
		    struct blob *ret_offer, char *error)
{
	(void)config;
	(void)ret_owner;
	(void)ret_offer;
	return absent(error);
}

int rdma_owner_connect(struct rdma_owner *owner, const struct blob *answer, char *error)
{
	(void)owner;
	(void)answer;
	return absent(error);
}

int rdma_owner_revoke(struct rdma_owner *owner)
{
	(void)owner;
	return 0;
}

int rdma_owner_close(struct rdma_owner *owner)
{
	(void)owner;
	return 0;
}
