/* SPDX-License-Identifier: Apache-2.0 */
/*
 * way_rdma.h - the "rdma" way of a relay: granted memory is registered with an RDMA device, and the
 * card reads and writes it through that device. No thread of this host takes part.
 */
#ifndef SSV_RELAY_WAY_RDMA_H
#define SSV_RELAY_WAY_RDMA_H

#include "way.h"

struct way_rdma;

/* device: "name", "name:port", "name:port:gid index"; "": the first active one of each grant.
 * Errors: -ENOMEM; a device that is not there is found out at the first grant. */
SSV_MUST_CHECK int way_rdma_open(const char *device, struct way_rdma **ret_way, char *error);

extern const struct relay_way_ops relay_way_rdma; /* way: a struct way_rdma */

#endif
