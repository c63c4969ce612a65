/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rdma_blob.h - what the two ends of an RDMA region tell each other, as bytes (docs/rdma.md).
 *
 * The owner's offer travels in REGISTER: the key of the registered memory and one waiting queue
 * pair a lane. The card's answer travels back in REGISTERED: its own end of the lanes it took.
 * Decoding trusts nothing and needs no RDMA library. What a blob promises is the peer's word: a
 * wrong key or queue pair fails in the peer's own device and harms nobody else.
 */
#ifndef SSV_DELIVER_RDMA_BLOB_H
#define SSV_DELIVER_RDMA_BLOB_H

#include "base/base.h"
#include "base/blob.h"
#include "shadowserve.h"

#define RDMA_LANES_MAX 64u /* as many as a daemon has workers */
#define RDMA_READS_MAX 16u /* READs in flight a lane */

enum rdma_kind {
	RDMA_OFFER = 1,  /* owner to card */
	RDMA_ANSWER = 2, /* card to owner */
};

/* How the frames of a port are addressed. */
enum rdma_link {
	RDMA_LINK_INFINIBAND = 1, /* by lid */
	RDMA_LINK_ETHERNET = 2,   /* RoCE: by gid */
};

/* One end of a lane: a queue pair and the number of its first packet; 24 bits each. */
struct rdma_end {
	uint32_t qp, psn;
};

struct rdma_words {
	uint8_t kind;    /* enum rdma_kind */
	uint8_t link;    /* enum rdma_link */
	uint8_t mtu;     /* enum ibv_mtu: 1 (256 bytes) to 5 (4096) */
	uint8_t reads;   /* READs that this side answers (offer) or asks (answer) at once, a lane */
	uint16_t lid;    /* InfiniBand */
	uint8_t gid[16]; /* RoCE */
	uint32_t rkey;   /* offer */
	uint64_t address; /* offer: where the region begins for this key */
	uint64_t bytes;   /* offer: of the region */
	uint32_t lanes_count;
	struct rdma_end lanes[RDMA_LANES_MAX];
};

void rdma_blob_encode(const struct rdma_words *words, struct blob *ret_blob);

/* -EPROTO with one line in error (SSV_ERROR_TEXT_MAX bytes). kind: what is expected. */
SSV_MUST_CHECK int rdma_blob_decode(const struct blob *blob, enum rdma_kind kind,
				    struct rdma_words *ret_words, char *error);

#endif
