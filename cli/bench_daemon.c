/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_daemon.c - `bench fetch` through a daemon: the whole way, into this process's memory.
 *
 * With a store's URI that store is read directly first, only to learn which chunks there are; those
 * of another shape or model than the first are passed over. Without, made-up chunks are stored by
 * the daemon first, under keys that are the same in every run, so that runs do not pile up.
 */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "bench_fetch.h"
#include "chunk_io.h"
#include "cli.h"
#include "fetch_io.h"
#include "made_up.h"

#define MADE_UP_HEADS 8u
#define MADE_UP_DIM   128u
#define BLOCKS_MAX    (64u * FETCH_CHUNK_BLOCKS) /* of a request */

struct target {
	struct ssv_key key;
	uint32_t position;
};

struct daemon_bench {
	const struct daemon_options *options;
	struct fetch_io fetch;
	struct target *targets;
	uint64_t targets_count, fetches_count, passed_over, next; /* chunks */
	uint64_t *start_ns;                                       /* [lanes] */
};

/* The blocks of a lane's chunks; returns how many. */
static uint32_t lane_blocks(const struct daemon_bench *b, uint32_t lane,
			    uint32_t blocks[BLOCKS_MAX])
{
	const uint32_t count = b->options->batch * FETCH_CHUNK_BLOCKS;

	for (uint32_t i = 0; i < count; i++)
		blocks[i] = lane * count + i;
	return count;
}

static int open_region(struct daemon_bench *b, const struct chunk_shape *shape,
		       const uint8_t model[8])
{
	return fetch_io_open(&b->fetch, "bench fetch", b->options->socket, shape, model,
			     b->options->lanes * b->options->batch * FETCH_CHUNK_BLOCKS);
}

/* ---- what a store holds --------------------------------------------------------------------- */

static void add_target(struct daemon_bench *b, struct store_io *store, const struct ssv_key *key,
		       struct container_header *first)
{
	struct container container;
	enum container_fault fault;

	if (store_io_get(store, key) ||
	    chunk_io_open(&container, store->value, store->value_bytes, key, &fault) ||
	    container.header.shape.tokens != SSV_CHUNK_TOKENS ||
	    (b->targets_count && (!shape_equal(&container.header.shape, &first->shape) ||
				  memcmp(container.header.model, first->model, 8)))) {
		b->passed_over++;
		return;
	}
	if (!b->targets_count)
		*first = container.header;
	b->targets[b->targets_count++] =
	    (struct target){.key = *key, .position = container.header.first_token};
}

static int use_store(struct daemon_bench *b, struct store_io *store)
{
	struct container_header first;
	struct ssv_key *keys = NULL;
	uint64_t count = 0;
	int err = store_io_list(store, &keys, &count);

	if (err)
		return cli_fail(EXIT_UNREACHABLE, "bench fetch: listing the store: %s",
				strerror(-err));
	b->targets = cli_alloc(count * sizeof(*b->targets));
	for (uint64_t i = 0; i < count && b->targets_count < b->options->count; i++)
		add_target(b, store, &keys[i], &first);
	free(keys);
	b->fetches_count = b->targets_count;
	if (!b->targets_count)
		return cli_fail(EXIT_FOUND_BAD, "bench fetch: the store holds no whole chunk");
	return open_region(b, &first.shape, first.model);
}

/* ---- made-up chunks ------------------------------------------------------------------------- */

static void fill_blocks(const struct fetch_io *fetch, const uint32_t *blocks, uint64_t seed)
{
	const struct chunk_shape *shape = &fetch->shape;
	uint8_t *elements = cli_alloc(shape_tensor_bytes(shape, 0));
	uint64_t block_bytes = shape_tensor_bytes(shape, 0) / FETCH_CHUNK_BLOCKS;

	for (uint32_t tensor = 0; tensor < shape_tensors(shape); tensor++) {
		made_up_tensor(shape, tensor, seed, elements);
		for (uint32_t i = 0; i < FETCH_CHUNK_BLOCKS; i++)
			memcpy(fetch_io_token(fetch, tensor, blocks[i], 0),
			       elements + i * block_bytes, block_bytes);
	}
	free(elements);
}

/* The one completion to come; 0 or its status. */
static int wait_one(struct daemon_bench *b)
{
	struct ssv_completion done;
	int err = fetch_io_wait(b->fetch.ssv, &done, b->options->timeout_ms + 1000);

	return err ? err : done.status;
}

static int store_chunk(struct daemon_bench *b, uint32_t index)
{
	uint32_t blocks[BLOCKS_MAX];
	int err;

	(void)lane_blocks(b, 0, blocks);
	fill_blocks(&b->fetch, blocks, index);
	err = fetch_io_store(&b->fetch, &b->targets[index].key, b->targets[index].position, blocks,
			     0, b->options->tier, b->options->codec);
	if (!err)
		err = wait_one(b);
	/* One at a time: nothing is dropped for overload, and the next may reuse the blocks. */
	if (!err)
		err = fetch_io_flush(&b->fetch, 0, b->options->timeout_ms);
	return err ? err : wait_one(b);
}

static void make_keys(struct daemon_bench *b, const struct chunk_shape *shape)
{
	char name[64];
	struct ssv_key_root root = {.struct_size = sizeof(root),
				    .dtype = shape->dtype,
				    .parts_count = shape->parts_count,
				    .layers_count = shape->layers_count,
				    .layers_total = shape->layers_total,
				    .ranks_count = 1,
				    .name_space = name};
	uint32_t tokens[SSV_CHUNK_TOKENS] = {0};
	struct ssv_key key;

	snprintf(name, sizeof(name), "bench fetch %u %u", b->options->tier, b->options->codec);
	if (ssv_key_make_root(&root, &key))
		abort(); /* nothing of it comes from outside */
	for (uint32_t i = 0; i < b->options->made_up; i++) {
		tokens[0] = i;
		(void)ssv_key_chain(&key, SSV_CHUNK_TOKENS, tokens, SSV_CHUNK_TOKENS, NULL, &key,
				    1);
		b->targets[i] = (struct target){.key = key, .position = i * SSV_CHUNK_TOKENS};
	}
}

static int use_made_up(struct daemon_bench *b)
{
	struct chunk_shape shape = {.dtype = SSV_DTYPE_BF16,
				    .parts_count = 2,
				    .tokens = SSV_CHUNK_TOKENS,
				    .layers_count = b->options->layers,
				    .layers_total = b->options->layers,
				    .ranks_count = 1};
	const uint8_t model[8] = {'b', 'e', 'n', 'c', 'h'};
	int err;

	for (uint32_t p = 0; p < 2; p++)
		shape.parts[p] = (struct chunk_part){.role = p ? SSV_ROLE_V : SSV_ROLE_K,
						     .heads = MADE_UP_HEADS,
						     .dim = MADE_UP_DIM};
	b->targets = cli_alloc(b->options->made_up * sizeof(*b->targets));
	b->targets_count = b->options->made_up;
	b->fetches_count =
	    (b->options->count + b->options->batch - 1) / b->options->batch * b->options->batch;
	make_keys(b, &shape);
	err = open_region(b, &shape, model);
	if (err)
		return err;
	for (uint32_t i = 0; i < b->options->made_up && !err; i++) {
		cli_progress("storing", i, b->options->made_up);
		err = store_chunk(b, i);
	}
	cli_progress("storing", b->options->made_up, b->options->made_up);
	return err ? cli_fail(EXIT_UNREACHABLE, "bench fetch: storing made-up chunks: %s",
			      strerror(-err))
		   : 0;
}

/* ---- fetching ------------------------------------------------------------------------------- */

static int submit_next(struct daemon_bench *b, uint32_t lane)
{
	const uint32_t batch = b->options->batch;
	const struct target *first = &b->targets[b->next % b->targets_count];
	struct ssv_key keys[BLOCKS_MAX / FETCH_CHUNK_BLOCKS];
	uint32_t blocks[BLOCKS_MAX];

	for (uint32_t i = 0; i < batch; i++)
		keys[i] = first[i].key;
	(void)lane_blocks(b, lane, blocks);
	b->next += batch;
	b->start_ns[lane] = clock_now_ns();
	return fetch_io_submit(&b->fetch, keys, batch, first->position, blocks, lane,
			       b->options->timeout_ms);
}

/* A request is over; what it says of its chunks. */
static int take_completion(const struct daemon_bench *b, const struct ssv_completion *done,
			   struct fetch_result *r)
{
	const uint32_t batch = b->options->batch;

	r->latency_ns[r->requests++] = clock_now_ns() - b->start_ns[done->user_data];
	r->chunks += batch;
	r->wire_bytes += done->wire_bytes;
	r->kv_bytes += done->kv_bytes;
	if (done->status == -ENOENT)
		r->misses += batch - done->tokens / SSV_CHUNK_TOKENS;
	else if (done->status == -EBADMSG)
		r->damaged += batch - done->tokens / SSV_CHUNK_TOKENS;
	else
		return done->status;
	return 0;
}

static int fetch_all(struct daemon_bench *b, struct fetch_result *r)
{
	int err = 0;

	for (uint32_t l = 0; l < b->options->lanes && b->next < b->fetches_count && !err; l++)
		err = submit_next(b, l);
	while (r->chunks < b->fetches_count && !err) {
		struct ssv_completion done;

		err = fetch_io_wait(b->fetch.ssv, &done, b->options->timeout_ms + 1000);
		if (!err)
			err = take_completion(b, &done, r);
		if (!err && b->next < b->fetches_count)
			err = submit_next(b, (uint32_t)done.user_data);
	}
	return err;
}

/* A request of each lane that is not counted: an engine's memory is there long before its fetches,
 * and the daemon takes its pages into its own tables when it first writes them. */
static int map_pages(struct daemon_bench *b)
{
	int err = 0;

	for (uint32_t l = 0; l < b->options->lanes && !err; l++) {
		b->next = 0;
		err = submit_next(b, l);
		if (!err)
			err = wait_one(b);
		if (err == -ENOENT || err == -EBADMSG)
			err = 0; /* counted below */
	}
	b->next = 0;
	return err;
}

int bench_daemon(const struct daemon_options *options, struct store_io *store,
		 struct fetch_result *ret_result)
{
	struct daemon_bench b = {.options = options};
	int err = store ? use_store(&b, store) : use_made_up(&b);
	uint64_t begin_ns;

	if (err)
		goto close_region;
	ret_result->latency_ns = cli_alloc(b.fetches_count * sizeof(*ret_result->latency_ns));
	ret_result->passed_over = b.passed_over;
	b.start_ns = cli_alloc(options->lanes * sizeof(*b.start_ns));
	err = map_pages(&b);
	begin_ns = clock_now_ns();
	if (!err)
		err = fetch_all(&b, ret_result);
	ret_result->elapsed_ns = clock_now_ns() - begin_ns;
	if (err)
		err = cli_fail(EXIT_UNREACHABLE, "bench fetch: the daemon answers: %s",
			       strerror(-err));
close_region:
	if (b.fetch.ssv)
		fetch_io_close(&b.fetch);
	free(b.start_ns);
	free(b.targets);
	return err;
}
