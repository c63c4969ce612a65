/* SPDX-License-Identifier: Apache-2.0 */
/* backends.h - every backend's one external symbol; the array of them stands in store.c. */
#ifndef SSV_STORE_BACKENDS_H
#define SSV_STORE_BACKENDS_H

#include "store/store.h"

extern const struct store_ops store_fault;
extern const struct store_ops store_file;
extern const struct store_ops store_memory;
extern const struct store_ops store_null;
extern const struct store_ops store_redis;
extern const struct store_ops store_redis_cluster;
extern const struct store_ops store_redis_unix;

#endif
