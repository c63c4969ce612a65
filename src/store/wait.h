/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wait.h - one operation of a store at a time, waited for: for commands and for a daemon's start,
 * where the data path's asynchrony would only be in the way.
 */
#ifndef SSV_STORE_WAIT_H
#define SSV_STORE_WAIT_H

#include "store/store.h"

/* Run the operation on a handle that has no other; blocks no longer than timeout_ms and a little.
 * Returns its status. */
SSV_MUST_CHECK int store_wait(struct store *store, struct store_op *op, uint32_t timeout_ms);

#endif
