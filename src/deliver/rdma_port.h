/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rdma_port.h - a port of an RDMA device as both ends of the way use it: opened by name, described
 * in a blob, and reliable connections made over it by hand (no connection manager: the session has
 * carried what it would carry).
 *
 * Control thread only.
 */
#ifndef SSV_DELIVER_RDMA_PORT_H
#define SSV_DELIVER_RDMA_PORT_H

#include <infiniband/verbs.h>

#include "deliver/rdma_blob.h"

struct rdma_port {
	struct ibv_context *context;
	struct ibv_pd *pd;
	uint8_t number;
	uint8_t link;  /* enum rdma_link */
	uint8_t mtu;   /* enum ibv_mtu, as it is active */
	uint8_t asks;  /* READs that a queue pair may have out */
	uint8_t reads; /* READs that it answers at once */
	uint16_t lid;
	int gid_index;
	uint8_t gid[16];
	uint32_t depth_max;   /* work requests of a queue */
	uint64_t message_max; /* bytes of one */
};

/**
 * Open a port. choice: "device", "device:port" or "device:port:gid index"; NULL or "": the first
 * device with an active port, its first RoCE v2 address (one of IPv4 before others).
 * Errors: -ENODEV, -EINVAL, -EIO, -EPERM with one line in error (SSV_ERROR_TEXT_MAX bytes).
 */
SSV_MUST_CHECK int rdma_port_open(const char *choice, struct rdma_port *ret_port, char *error);
void rdma_port_close(struct rdma_port *port);

/* What the peer must know of this port: link, mtu, lid, gid. */
void rdma_port_describe(const struct rdma_port *port, struct rdma_words *words);

/* One line in error: what, and the text of err (positive); returns -err. */
int rdma_refuse(char *error, const char *what, int err);

/* A reliable queue pair on a completion queue of its own, in no state yet. On failure both are
 * destroyed. *inline_bytes: wanted, then had. */
SSV_MUST_CHECK int rdma_pair_create(const struct rdma_port *port, uint32_t depth,
				    uint32_t *inline_bytes, struct ibv_cq **ret_cq,
				    struct ibv_qp **ret_qp, char *error);
void rdma_pair_destroy(struct ibv_cq *cq, struct ibv_qp *qp); /* takes NULL */

/* INIT: access is what the peer may do, IBV_ACCESS_REMOTE_*. */
SSV_MUST_CHECK int rdma_pair_init(const struct rdma_port *port, struct ibv_qp *qp,
				  unsigned int access, char *error);
/* Ready to receive from the peer's lane; reads: its READs to be answered at once. */
SSV_MUST_CHECK int rdma_pair_receive(const struct rdma_port *port, struct ibv_qp *qp,
				     const struct rdma_words *peer, uint32_t lane, uint8_t reads,
				     char *error);
/* Ready to send, from packet number psn on; reads: READs to have out at once. */
SSV_MUST_CHECK int rdma_pair_send(struct ibv_qp *qp, uint32_t psn, uint8_t reads, char *error);

/* To the error state: what is out ends with an error, nothing of the peer is let in any more. */
int rdma_pair_stop(struct ibv_qp *qp);

/* The number of a first packet: 24 random bits. */
uint32_t rdma_psn(void);

#endif
