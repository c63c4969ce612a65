/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_daemon.c - `bench fetch --daemon`: the whole way of a fetch, into this process's memory.
 *
 * The store is read directly first, only to learn which chunks there are and what they hold; what
 * is timed goes through the daemon. Chunks of another shape or model than the first are passed
 * over.
 */
#include "bench_fetch.h"

#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "chunk_io.h"
#include "cli.h"
#include "fetch_io.h"

struct target {
	struct ssv_key key;
	uint32_t position;
};

struct daemon_bench {
	struct fetch_io fetch;
	struct target *targets;
	uint64_t targets_count, passed_over, next;
	uint64_t *start_ns; /* [lanes] */
	uint64_t deadline_ms;
};

/* Fill targets from the store; the first whole chunk decides shape and model. */
static int find_targets(struct daemon_bench *b, struct store_io *store, uint64_t chunks_max,
			struct container_header *ret_first)
{
	struct ssv_key *keys = NULL;
	uint64_t count = 0;
	int err = store_io_list(store, &keys, &count);

	if (err)
		return err;
	b->targets = cli_alloc(count * sizeof(*b->targets));
	for (uint64_t i = 0; i < count && b->targets_count < chunks_max; i++) {
		struct container container;
		enum container_fault fault;

		if (store_io_get(store, &keys[i]) ||
		    chunk_io_open(&container, store->value, store->value_bytes, &keys[i], &fault) ||
		    container.header.shape.tokens != SSV_CHUNK_TOKENS ||
		    (b->targets_count &&
		     (!shape_equal(&container.header.shape, &ret_first->shape) ||
		      memcmp(container.header.model, ret_first->model, 8)))) {
			b->passed_over++;
			continue;
		}
		if (!b->targets_count)
			*ret_first = container.header;
		b->targets[b->targets_count++] =
		    (struct target){.key = keys[i], .position = container.header.first_token};
	}
	free(keys);
	return 0;
}

static int submit_next(struct daemon_bench *b, uint32_t lane)
{
	const struct target *target = &b->targets[b->next++];
	uint32_t blocks[FETCH_CHUNK_BLOCKS];

	for (uint32_t i = 0; i < FETCH_CHUNK_BLOCKS; i++)
		blocks[i] = lane * FETCH_CHUNK_BLOCKS + i;
	b->start_ns[lane] = clock_now_ns();
	return fetch_io_submit(&b->fetch, &target->key, target->position, blocks, lane,
			       (uint32_t)b->deadline_ms);
}

static int fetch_all(struct daemon_bench *b, uint64_t lanes, struct fetch_result *r)
{
	int err = 0;

	for (uint32_t lane = 0; lane < lanes && b->next < b->targets_count && !err; lane++)
		err = submit_next(b, lane);
	while (r->chunks < b->targets_count && !err) {
		struct ssv_completion done;

		err = ssv_poll(b->fetch.ssv, &done, 1, (int)b->deadline_ms + 1000);
		if (err != 1)
			return err ? err : -ETIMEDOUT;
		err = 0;
		r->latency_ns[r->chunks++] = clock_now_ns() - b->start_ns[done.user_data];
		r->wire_bytes += done.wire_bytes;
		r->kv_bytes += done.kv_bytes;
		r->misses += done.status == -ENOENT;
		r->damaged += done.status == -EBADMSG;
		if (done.status && done.status != -ENOENT && done.status != -EBADMSG)
			err = done.status;
		else if (b->next < b->targets_count)
			err = submit_next(b, (uint32_t)done.user_data);
	}
	return err;
}

int bench_daemon(struct store_io *store, const char *socket, uint64_t chunks_max, uint64_t lanes,
		 uint64_t timeout_ms, struct fetch_result *ret_result)
{
	struct daemon_bench b = {.deadline_ms = timeout_ms};
	struct container_header first;
	int err = find_targets(&b, store, chunks_max, &first);
	uint64_t begin_ns;

	if (err) {
		err = cli_fail(EXIT_UNREACHABLE, "bench fetch: the store answers: %s",
			       strerror(-err));
		goto free_targets;
	}
	if (!b.targets_count) {
		err = cli_fail(EXIT_FOUND_BAD, "bench fetch: the store holds no whole chunk");
		goto free_targets;
	}
	err = fetch_io_open(&b.fetch, "bench fetch", socket, &first.shape, first.model,
			    (uint32_t)lanes * FETCH_CHUNK_BLOCKS);
	if (err)
		goto free_targets;
	ret_result->latency_ns = cli_alloc(b.targets_count * sizeof(*ret_result->latency_ns));
	ret_result->passed_over = b.passed_over;
	b.start_ns = cli_alloc(lanes * sizeof(*b.start_ns));
	begin_ns = clock_now_ns();
	err = fetch_all(&b, lanes, ret_result);
	ret_result->elapsed_ns = clock_now_ns() - begin_ns;
	if (err)
		err = cli_fail(EXIT_UNREACHABLE, "bench fetch: the daemon answers: %s",
			       strerror(-err));
	free(b.start_ns);
	fetch_io_close(&b.fetch);
free_targets:
	free(b.targets);
	return err;
}
