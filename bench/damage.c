/* SPDX-License-Identifier: Apache-2.0 */
/*
 * damage.c - fills a store with chunks, damages every one differently, and reads them all back.
 *
 *	damage --store file:/tmp/kv --chunks 10000
 *	damage --store file:/tmp/kv --socket /tmp/d.sock	through a daemon of that store
 *
 * Passes over N chunks: all are read and decode; each is damaged by its own seeded corruption and
 * all must be misses; what was intact is put back, and all decode to the same as before. Without a
 * daemon, every decode goes into memory between guards; with one, into blocks of a region, and no
 * other block may change. A chunk that passes after damage, a guard that changed or a wrong element
 * ends the run with exit 1.
 *
 * Not among the corruptions: values or entropy-coded data changed by someone who also writes the
 * checksums again. That is forgery, which checksums cannot find (docs/container.md).
 */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/crc.h"
#include "cli.h"
#include "damage_chunk.h"
#include "fetch_io.h"
#include "store_io.h"

#define GUARD_BYTES   4096u
#define GUARD_PATTERN 0x5a
#define FAULTS_MAX    64u
#define DEADLINE_MS   10000u
#define BLOCKS        (3 * FETCH_CHUNK_BLOCKS) /* of the region: a third is asked for */
#define BLOCK_STEP    5u                       /* prime to BLOCKS: the named blocks are scattered */

static const char *option_store, *option_socket;
static int option_fill, option_keep, option_help;
static uint64_t option_chunks = 200, option_seed = 1;

static const struct arg args[] = {
    {"store", "URI", "where to", ARG_TEXT, &option_store, 0, 0},
    {"socket", "PATH", "read through the daemon of that store", ARG_TEXT, &option_socket, 0, 0},
    {"chunks", "N", "how many (default 200)", ARG_NUMBER, &option_chunks, 2, 10000000},
    {"seed", "N", "of chunks and damage (default 1)", ARG_NUMBER, &option_seed, 0, UINT64_MAX},
    {"fill", NULL, "only fill the store with sound chunks", ARG_FLAG, &option_fill, 0, 0},
    {"keep", NULL, "leave the damaged chunks in the store", ARG_FLAG, &option_keep, 0, 0},
    {"json", NULL, "answer with one JSON object", ARG_FLAG, &option_json, 0, 0},
    {"help", NULL, "explain the options", ARG_FLAG, &option_help, 0, 0},
    ARG_END,
};

struct run {
	struct maker maker;
	struct store_io store;
	struct fetch_io fetch; /* with a daemon */
	uint8_t *guarded;      /* GUARD_BYTES, elements, GUARD_BYTES */
	uint64_t guarded_elements;
	uint8_t *tokens[ENTRY_TENSORS_MAX][SSV_CHUNK_TOKENS];
	uint32_t channels[SSV_CHANNELS_MAX];
	uint32_t *sums; /* [chunks] checksum of what each decodes to */
	uint64_t by_damage[DAMAGES_COUNT], by_fault[FAULTS_MAX], deleted;
};

/* ---- reading without a daemon --------------------------------------------------------------- */

static int guards_are_whole(const struct run *run)
{
	const uint8_t *after = run->guarded + GUARD_BYTES + run->guarded_elements;

	for (uint32_t i = 0; i < GUARD_BYTES; i++) {
		if (run->guarded[i] != GUARD_PATTERN || after[i] != GUARD_PATTERN)
			return 0;
	}
	return 1;
}

static int decode_entry(struct run *run, const struct container *container, uint32_t index,
			enum container_fault *ret_fault)
{
	const struct chunk_shape *shape = &container->header.shape;
	struct decode_target targets[ENTRY_TENSORS_MAX];
	struct container_entry entry;
	uint32_t element = dtype_bytes(shape->dtype), tensor;
	uint8_t *out = run->guarded + GUARD_BYTES;

	container_entry(container, index, &entry);
	tensor = (uint32_t)entry.layer * shape->parts_count + entry.part;
	for (uint32_t t = 0; t < tensor; t++)
		out += shape_tensor_bytes(shape, t % shape->parts_count);
	for (uint32_t t = 0; t < entry.tensors_count; t++) {
		uint32_t part = (tensor + t) % shape->parts_count;
		uint32_t channels = part_channels(&shape->parts[part]);

		for (uint32_t token = 0; token < shape->tokens; token++)
			run->tokens[t][token] = out + (uint64_t)token * channels * element;
		targets[t] = (struct decode_target){
		    .token = run->tokens[t], .channel = run->channels, .run_channels = channels};
		out += shape_tensor_bytes(shape, part);
	}
	for (uint32_t c = 0; c < SSV_CHANNELS_MAX; c++)
		run->channels[c] = c * element;
	return segment_decode(container, index, targets, run->maker.scratch, ret_fault);
}

/* 0: decoded, *ret_sum says to what; -ENOENT: a miss; anything else ends the run. */
static int read_direct(struct run *run, uint64_t n, uint32_t *ret_sum,
		       enum container_fault *ret_fault)
{
	const struct chunk_shape shape = maker_shape(&run->maker, n);
	const struct ssv_key key = maker_key(&run->maker, n);
	uint8_t model[8];
	struct container_expect expect = {
	    .key = key, .shape = &shape, .model = model, .first_token = (int64_t)n * 256};
	struct container container;
	int err = store_io_get(&run->store, &key);

	if (err)
		return err;
	maker_model(model);
	run->guarded_elements = shape_kv_bytes(&shape);
	memset(run->guarded, GUARD_PATTERN, run->guarded_elements + (uint64_t)2 * GUARD_BYTES);
	expect.value_bytes = run->store.value_bytes;
	err = container_open(&container, run->store.value, expect.value_bytes, &expect, ret_fault);
	for (uint32_t i = 0; !err && i < container.header.segments_count; i++)
		err = decode_entry(run, &container, i, ret_fault);
	if (!guards_are_whole(run))
		return -EFAULT;
	if (err)
		return -ENOENT;
	*ret_sum = crc32c(0, run->guarded + GUARD_BYTES, run->guarded_elements);
	return 0;
}

/* ---- reading through a daemon --------------------------------------------------------------- */

/* Every byte of the blocks that were not named is as it was. */
static int other_blocks_are_whole(const struct run *run, const uint32_t *blocks)
{
	const struct fetch_io *f = &run->fetch;
	uint8_t named[BLOCKS] = {0};

	for (uint32_t i = 0; i < FETCH_CHUNK_BLOCKS; i++)
		named[blocks[i]] = 1;
	for (uint32_t tensor = 0; tensor < shape_tensors(&f->shape); tensor++) {
		uint64_t bytes = shape_tensor_bytes(&f->shape, tensor % f->shape.parts_count) /
				 FETCH_CHUNK_BLOCKS;

		for (uint32_t block = 0; block < BLOCKS; block++) {
			const uint8_t *at = fetch_io_token(f, tensor, block, 0);

			for (uint64_t i = 0; i < bytes && !named[block]; i++) {
				if (at[i] != GUARD_PATTERN)
					return 0;
			}
		}
	}
	return 1;
}

/* Checksum of the chunk in canonical order, from its blocks. */
static uint32_t sum_blocks(const struct run *run, const uint32_t *blocks)
{
	const struct fetch_io *f = &run->fetch;
	uint32_t sum = 0;

	for (uint32_t tensor = 0; tensor < shape_tensors(&f->shape); tensor++) {
		uint64_t bytes = shape_tensor_bytes(&f->shape, tensor % f->shape.parts_count) /
				 FETCH_CHUNK_BLOCKS;

		for (uint32_t i = 0; i < FETCH_CHUNK_BLOCKS; i++)
			sum = crc32c(sum, fetch_io_token(f, tensor, blocks[i], 0), bytes);
	}
	return sum;
}

static int read_daemon(struct run *run, uint64_t n, uint32_t *ret_sum)
{
	const struct ssv_key key = maker_key(&run->maker, n);
	uint32_t blocks[FETCH_CHUNK_BLOCKS];
	struct ssv_completion completion;
	int err;

	for (uint32_t i = 0; i < FETCH_CHUNK_BLOCKS; i++)
		blocks[i] = (uint32_t)((n + i * BLOCK_STEP) % BLOCKS);
	memset(run->fetch.memory, GUARD_PATTERN, run->fetch.memory_bytes);
	err = fetch_io_submit(&run->fetch, &key, 1, (uint32_t)n * 256, blocks, n + 1, DEADLINE_MS);
	if (err)
		return err;
	err = fetch_io_wait(run->fetch.ssv, &completion, 2 * DEADLINE_MS);
	if (err)
		return err;
	if (!other_blocks_are_whole(run, blocks))
		return -EFAULT;
	if (completion.status == 0 && completion.tokens == SSV_CHUNK_TOKENS) {
		*ret_sum = sum_blocks(run, blocks);
		return 0;
	}
	/* A miss is a miss only when nothing is called in place. */
	if (completion.tokens || !completion.status)
		return -EPROTO;
	return completion.status == -EBADMSG || completion.status == -ENOENT ? -ENOENT
									     : completion.status;
}

static int read_chunk(struct run *run, uint64_t n, uint32_t *ret_sum,
		      enum container_fault *ret_fault)
{
	*ret_fault = CONTAINER_FAULT_NONE;
	return option_socket ? read_daemon(run, n, ret_sum)
			     : read_direct(run, n, ret_sum, ret_fault);
}

/* ---- the passes ----------------------------------------------------------------------------- */

static int put_sound(struct run *run, uint64_t n)
{
	const struct ssv_key key = maker_key(&run->maker, n);
	int err = maker_make(&run->maker, n);

	return err ? err
		   : store_io_put(&run->store, &key, run->maker.value, run->maker.value_bytes);
}

static int put_damaged(struct run *run, uint64_t n)
{
	const struct ssv_key key = maker_key(&run->maker, n);
	int err = maker_damage(&run->maker, n, (enum damage)(n % DAMAGES_COUNT));

	run->by_damage[n % DAMAGES_COUNT]++;
	return err ? err
		   : store_io_put(&run->store, &key, run->maker.value, run->maker.value_bytes);
}

static int put_all(struct run *run, const char *what, int (*put)(struct run *, uint64_t))
{
	int err = 0;

	for (uint64_t n = 0; n < option_chunks && !err; n++) {
		cli_progress(what, n, option_chunks);
		err = put(run, n);
	}
	cli_progress(what, option_chunks, option_chunks);
	return err ? cli_fail(EXIT_BROKEN, "damage: %s: %s", what, strerror(-err)) : 0;
}

/* All must decode to what they did before (or, the first time, decode at all). */
static int read_sound(struct run *run, const char *what, int first)
{
	for (uint64_t n = 0; n < option_chunks; n++) {
		enum container_fault fault;
		uint32_t sum;
		int err;

		cli_progress(what, n, option_chunks);
		err = read_chunk(run, n, &sum, &fault);
		if (err || (!first && sum != run->sums[n]))
			return cli_fail(EXIT_FOUND_BAD, "damage: %s: chunk %llu: %s (%s)", what,
					(unsigned long long)n,
					err ? strerror(-err) : "wrong elements",
					container_fault_text(fault));
		run->sums[n] = sum;
	}
	cli_progress(what, option_chunks, option_chunks);
	return 0;
}

static int read_damaged(struct run *run, uint64_t *ret_misses)
{
	uint64_t misses = 0, bytes;

	for (uint64_t n = 0; n < option_chunks; n++) {
		const struct ssv_key key = maker_key(&run->maker, n);
		enum container_fault fault;
		uint32_t sum = 0;
		int err;

		cli_progress("reading damaged", n, option_chunks);
		err = read_chunk(run, n, &sum, &fault);
		if (err != -ENOENT)
			return cli_fail(EXIT_FOUND_BAD, "damage: chunk %llu, %s: %s",
					(unsigned long long)n, damage_names[n % DAMAGES_COUNT],
					err ? strerror(-err) : "was decoded");
		misses++;
		run->by_fault[fault]++;
		/* The daemon deletes what fails verification, shortly after. */
		if (option_socket)
			run->deleted += store_io_exists(&run->store, &key, &bytes) == -ENOENT;
	}
	cli_progress("reading damaged", option_chunks, option_chunks);
	*ret_misses = misses;
	return 0;
}

/* ---- the answer ----------------------------------------------------------------------------- */

static int answer_json(const struct run *run, uint64_t misses, double seconds)
{
	cJSON *object = cli_object(), *damages = cli_object(), *faults = cli_object();

	cli_add_number(object, "chunks", (double)option_chunks);
	cli_add_number(object, "misses", (double)misses);
	cli_add_number(object, "wrong_bytes", 0);
	cli_add_number(object, "seed", (double)option_seed);
	cli_add_number(object, "seconds", seconds);
	cli_add_bool(object, "daemon", option_socket != NULL);
	cli_add_number(object, "deleted_by_daemon", (double)run->deleted);
	for (uint32_t i = 0; i < DAMAGES_COUNT; i++)
		cli_add_number(damages, damage_names[i], (double)run->by_damage[i]);
	for (uint32_t i = 1; i < FAULTS_MAX; i++) {
		if (run->by_fault[i])
			cli_add_number(faults, container_fault_text((enum container_fault)i),
				       (double)run->by_fault[i]);
	}
	cli_add(object, "damage", damages);
	cli_add(object, "refused", faults);
	return cli_print_json(object, EXIT_OK);
}

static int answer(const struct run *run, uint64_t misses, uint64_t elapsed_ns)
{
	double seconds = (double)elapsed_ns / 1e9;

	if (option_json)
		return answer_json(run, misses, seconds);
	for (uint32_t i = 0; i < DAMAGES_COUNT; i++)
		printf("damaged  %8llu  %s\n", (unsigned long long)run->by_damage[i],
		       damage_names[i]);
	for (uint32_t i = 1; i < FAULTS_MAX; i++) {
		if (run->by_fault[i])
			printf("refused  %8llu  %s\n", (unsigned long long)run->by_fault[i],
			       container_fault_text((enum container_fault)i));
	}
	if (option_socket)
		printf("deleted  %8llu  by the daemon, at once\n",
		       (unsigned long long)run->deleted);
	printf("%llu chunks, all damaged, %llu misses, 0 wrong bytes (%s, seed %llu, %.1f s)\n",
	       (unsigned long long)option_chunks, (unsigned long long)misses,
	       option_socket ? "through the daemon" : "direct", (unsigned long long)option_seed,
	       seconds);
	return EXIT_OK;
}

static int run_passes(struct run *run, uint64_t start_ns)
{
	uint64_t misses = 0;
	int err = put_all(run, "filling", put_sound);

	if (!err)
		err = read_sound(run, "reading", 1);
	if (err || option_fill)
		return err;
	err = put_all(run, "damaging", put_damaged);
	if (!err)
		err = read_damaged(run, &misses);
	if (!err && !option_keep)
		err = put_all(run, "healing", put_sound);
	if (!err && !option_keep)
		err = read_sound(run, "reading again", 0);
	return err ? err : answer(run, misses, clock_now_ns() - start_ns);
}

static int open_daemon(struct run *run)
{
	const struct chunk_shape shape = maker_shape(&run->maker, 0);
	uint8_t model[8];

	if (!option_socket)
		return 0;
	maker_model(model);
	return fetch_io_open(&run->fetch, "damage", option_socket, &shape, model, BLOCKS);
}

int main(int argc, char **argv)
{
	static struct run run;
	char error[256];
	uint64_t start_ns = clock_now_ns();
	int err = args_parse(args, NULL, argc - 1, argv + 1, error, sizeof(error));

	if (err < 0)
		return cli_fail(EXIT_USAGE, "damage: %s", error);
	if (option_help) {
		puts("usage: damage [OPTIONS]\n\n"
		     "Damage every chunk of a store; all must be misses.\n");
		args_print(args);
		return EXIT_OK;
	}
	err = store_io_create(&run.store, "damage", option_store, DEADLINE_MS);
	if (err)
		return err;
	maker_init(&run.maker, option_seed, option_chunks, option_socket != NULL);
	run.guarded = cli_alloc(run.maker.kv_bytes_max + (uint64_t)2 * GUARD_BYTES);
	run.sums = cli_alloc(option_chunks * sizeof(*run.sums));
	err = open_daemon(&run);
	if (!err)
		err = run_passes(&run, start_ns);
	if (run.fetch.ssv)
		fetch_io_close(&run.fetch);
	store_io_close(&run.store);
	free(run.guarded);
	free(run.sums);
	maker_fini(&run.maker);
	return err;
}
