/* SPDX-License-Identifier: Apache-2.0 */
/*
 * harness.h - what the tests of stores share: driving operations, values, folders, a Redis.
 *
 * Operations are driven by the real clock; no result depends on how fast they go.
 */
#ifndef SSV_TESTS_STORE_HARNESS_H
#define SSV_TESTS_STORE_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "store/store.h"

#define SKIP              77 /* Meson's exit status of a skipped test */
#define HARNESS_VALUE_MAX (32 * MIB)
#define HARNESS_OPS_MAX   16u
#define HARNESS_PATIENCE  (20 * NS_PER_S) /* deadline of what must succeed */

/* Opens or fails the test with the store's own words. */
struct store *harness_open(const char *uri);
struct store *harness_open_with(const struct store_config *config);

/* Key number n; different numbers, different keys, spread like hashes. */
struct ssv_key harness_key(uint64_t n);
/* Bytes of value n, position by position the same each time. */
void harness_fill(uint8_t *data, uint64_t bytes, uint64_t n);
bool harness_is_filled(const uint8_t *data, uint64_t bytes, uint64_t n);

/* Submit one operation and poll until it is handed back; its status. */
int harness_run(struct store *store, struct store_op *op);
/* Submit and poll n operations, respecting back-pressure; all are handed back exactly once. */
void harness_run_all(struct store *store, struct store_op *ops, uint32_t n);
/* Poll until count operations were handed back. */
void harness_poll(struct store *store, uint32_t count);

int harness_put(struct store *store, uint64_t n, uint64_t bytes);
/* Get value n and check its bytes; -EBADMSG if they are wrong. */
int harness_get(struct store *store, uint64_t n, uint64_t bytes);
int harness_exists(struct store *store, uint64_t n, uint64_t *ret_bytes);
int harness_delete(struct store *store, uint64_t n);

struct store_stats harness_stats(const struct store *store);

/* SSV_SEED or the given one; printed. */
uint64_t harness_seed(uint64_t fallback);
uint64_t harness_random(uint64_t *state);

/* A new temporary folder, and its end. */
char *harness_folder(void);
void harness_remove_folder(char *path);

/* A Redis server of this test's own: free port, temporary folder, ended with the test. */
struct harness_redis {
	int pid;
	unsigned int port;
	char *folder; /* has redis.sock */
};

/* NULL: redis-server is not installed, with the reason printed. extra: more arguments, or NULL. */
struct harness_redis *harness_redis_start(const char *const *extra);
/* End by SIGKILL and start again on the same port. */
void harness_redis_kill(struct harness_redis *redis);
void harness_redis_restart(struct harness_redis *redis, const char *const *extra);
void harness_redis_stop(struct harness_redis *redis);
/* Send one inline command over a connection of its own and return the answer's first line. */
void harness_redis_command(const struct harness_redis *redis, const char *line, char *answer,
			   size_t answer_bytes);
/* A blocking connection that gives up after five seconds of silence; -1: refused. */
int harness_connect(unsigned int port);
/* A TCP port that was free a moment ago; listens if ret_fd is given. */
unsigned int harness_port(int *ret_fd);

#endif
