/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store_io.h - a store used one operation at a time, each waited for with a deadline.
 *
 * For commands, where the data path's asynchrony would only be in the way. Values are read into a
 * buffer that grows to the largest seen; it has the container's slack behind it.
 */
#ifndef SSV_CLI_STORE_IO_H
#define SSV_CLI_STORE_IO_H

#include "store/store.h"

struct store_io {
	struct store *store;
	uint32_t timeout_ms;
	uint8_t *value; /* of the last get; lent until the next */
	uint64_t value_bytes, value_capacity;
};

/* uri, else $SHADOWSERVE_STORE, else the store of a daemon that was given none; NULL when that is
 * not there either. */
const char *store_io_uri(const char *uri);

/* Open store_io_uri(uri). A file: store must exist: who looks at one that does not has mistyped its
 * path. Returns 0, or the exit code of an error that was printed under the command's name. */
int store_io_open(struct store_io *io, const char *command, const char *uri, uint32_t timeout_ms);
/* Open uri, and make a file: store that is not there. */
int store_io_create(struct store_io *io, const char *command, const char *uri, uint32_t timeout_ms);
void store_io_close(struct store_io *io);

/* 0 or the operation's status. */
int store_io_exists(struct store_io *io, const struct ssv_key *key, uint64_t *ret_bytes);
int store_io_get(struct store_io *io, const struct ssv_key *key);
int store_io_put(struct store_io *io, const struct ssv_key *key, const uint8_t *bytes,
		 uint64_t count);
int store_io_delete(struct store_io *io, const struct ssv_key *key);

/* All keys at this moment; *ret_keys is owned, free(). -ENOTSUP when the store cannot list. */
int store_io_list(struct store_io *io, struct ssv_key **ret_keys, uint64_t *ret_count);

#endif
