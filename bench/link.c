/* SPDX-License-Identifier: Apache-2.0 */
/*
 * link.c - bench_link: an engine without a model, which stores and fetches made-up KV through a
 * daemon, as JSON.
 *
 *	bench_link SOCKET LAYERS CHUNKS BATCH IN_FLIGHT NODES
 *
 * Registers host memory (a memfd) for BATCH x IN_FLIGHT chunks of the shape of Llama-3-8B (8 KV
 * heads of 128, bf16, 256 tokens; LAYERS 32: 32 MiB) and obeys the lines on stdin, with a line of
 * JSON each. Keys are chosen so that a cluster of NODES masters with equal slots holds as many of
 * them on each:
 *
 *	store TIER         the CHUNKS chunks, under keys that the tier's name is part of
 *	keys TIER          their keys
 *	fetch TIER N R     R rounds of N requests of BATCH chunks each, IN_FLIGHT at a time; a round
 *	                   begins and ends with nothing in flight
 *	prompt TIER N R    the same one at a time, each looked up before, as an engine does
 *	check TIER         fetches a request's worth into emptied memory and compares it with what
 *was made up: bit by bit when the tier is lossless, else by relative error
 *
 * Any chunk that does not come whole ends the program.
 */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "cli.h"
#include "codec/codec.h"
#include "codec/float.h"
#include "fetch_io.h"
#include "made_up.h"
#include "store/cluster_map.h"

#define HEADS         8u
#define DIM           128u
#define CHUNKS_MAX    64u
#define BLOCKS_MAX    (CHUNKS_MAX * FETCH_CHUNK_BLOCKS)
#define ROUNDS_MAX    1000u
#define DEADLINE_MS   60000u
#define POISON        0xa5
#define ERROR_ALLOWED 0.5 /* of the root mean square; another chunk's KV is 1.4 off */

struct load {
	struct fetch_io io;
	struct ssv_key keys[CHUNKS_MAX];
	uint32_t chunks, batch, in_flight, nodes, next;
	uint8_t tier;
};

static void need(int err, const char *what)
{
	if (err)
		exit(cli_fail(EXIT_BROKEN, "bench_link: %s: %s", what, strerror(-err)));
}

static void open_load(struct load *load, const char *socket, uint16_t layers)
{
	struct chunk_shape shape = {.dtype = SSV_DTYPE_BF16,
				    .parts_count = 2,
				    .tokens = SSV_CHUNK_TOKENS,
				    .layers_count = layers,
				    .layers_total = layers,
				    .ranks_count = 1};
	const uint8_t model[8] = {'l', 'i', 'n', 'k'};
	int err;

	for (uint32_t p = 0; p < 2; p++)
		shape.parts[p] = (struct chunk_part){
		    .role = p ? SSV_ROLE_V : SSV_ROLE_K, .heads = HEADS, .dim = DIM};
	err = fetch_io_open(&load->io, "bench_link", socket, &shape, model,
			    load->batch * load->in_flight * FETCH_CHUNK_BLOCKS);
	if (err)
		exit(err);
}

/* Which of the nodes holds this key, under the store's usual prefix. */
static uint32_t node_of(const struct load *load, const struct ssv_key *key)
{
	uint32_t slot = cluster_slot(cluster_crc16(0, "ssv:", 4), key);

	return slot * load->nodes / CLUSTER_SLOTS;
}

static int use_tier(struct load *load, const char *name)
{
	char text[64];
	struct ssv_key_root root = {.struct_size = sizeof(root),
				    .dtype = SSV_DTYPE_BF16,
				    .parts_count = 2,
				    .layers_count = load->io.shape.layers_count,
				    .layers_total = load->io.shape.layers_count,
				    .ranks_count = 1,
				    .name_space = text};
	uint32_t tokens[SSV_CHUNK_TOKENS] = {0};
	struct ssv_key key;

	load->tier = tier_parse(name);
	if (!load->tier)
		return -EINVAL;
	snprintf(text, sizeof(text), "bench link %s", name);
	need(ssv_key_make_root(&root, &key), "key");
	for (uint32_t i = 0; i < load->chunks; tokens[0]++) {
		struct ssv_key next;

		(void)ssv_key_chain(&key, SSV_CHUNK_TOKENS, tokens, SSV_CHUNK_TOKENS, NULL, &next,
				    1);
		if (node_of(load, &next) == i % load->nodes)
			load->keys[i++] = key = next;
	}
	return 0;
}

/* The blocks of the k-th chunk of the request in place `slot`. */
static void chunk_blocks(const struct load *load, uint32_t slot, uint32_t k, uint32_t *blocks)
{
	for (uint32_t i = 0; i < FETCH_CHUNK_BLOCKS; i++)
		blocks[i] = (slot * load->batch + k) * FETCH_CHUNK_BLOCKS + i;
}

static struct ssv_completion wait_one(struct load *load, const char *what)
{
	struct ssv_completion done = {0};

	need(fetch_io_wait(load->io.ssv, &done, DEADLINE_MS + 5000), what);
	need(done.status, what);
	return done;
}

/* ---- store ---------------------------------------------------------------------------------- */

static void store_chunk(struct load *load, uint32_t chunk)
{
	const struct chunk_shape *shape = &load->io.shape;
	uint64_t bytes = shape_tensor_bytes(shape, 0);
	uint8_t *elements = cli_alloc(bytes);
	uint32_t blocks[FETCH_CHUNK_BLOCKS];

	chunk_blocks(load, 0, 0, blocks);
	for (uint32_t t = 0; t < shape_tensors(shape); t++) {
		made_up_tensor(shape, t, chunk, elements);
		for (uint32_t i = 0; i < FETCH_CHUNK_BLOCKS; i++)
			memcpy(fetch_io_token(&load->io, t, blocks[i], 0),
			       elements + i * (bytes / FETCH_CHUNK_BLOCKS),
			       bytes / FETCH_CHUNK_BLOCKS);
	}
	free(elements);
	need(fetch_io_store(&load->io, &load->keys[chunk], chunk * SSV_CHUNK_TOKENS, blocks, 0,
			    load->tier, SSV_CODEC_R16),
	     "store");
	(void)wait_one(load, "store");
	need(fetch_io_flush(&load->io, 0, DEADLINE_MS), "flush");
	(void)wait_one(load, "flush");
}

static void do_store(struct load *load)
{
	uint64_t begin_ns = clock_now_ns();

	for (uint32_t i = 0; i < load->chunks; i++)
		store_chunk(load, i);
	printf("{\"seconds\": %.3f}\n", (double)(clock_now_ns() - begin_ns) / 1e9);
}

static void do_keys(const struct load *load)
{
	char text[65];

	printf("[");
	for (uint32_t i = 0; i < load->chunks; i++)
		printf("%s\"%s\"", i ? ", " : "", cli_key_text(&load->keys[i], text));
	printf("]\n");
}

/* ---- fetch ---------------------------------------------------------------------------------- */

static void submit(struct load *load, uint32_t slot)
{
	uint32_t first = load->next % (load->chunks / load->batch) * load->batch;
	uint32_t blocks[BLOCKS_MAX];

	load->next++;
	for (uint32_t k = 0; k < load->batch; k++)
		chunk_blocks(load, slot, k, &blocks[k * FETCH_CHUNK_BLOCKS]);
	need(fetch_io_submit(&load->io, &load->keys[first], load->batch, first * SSV_CHUNK_TOKENS,
			     blocks, slot, DEADLINE_MS),
	     "fetch");
}

static void run_round(struct load *load, uint32_t requests, const char *separator)
{
	uint64_t begin_ns = clock_now_ns(), wire_bytes = 0, kv_bytes = 0;
	uint32_t begun = 0;

	while (begun < requests && begun < load->in_flight)
		submit(load, begun++);
	for (uint32_t ended = 0; ended < requests; ended++) {
		struct ssv_completion done = wait_one(load, "fetch");

		wire_bytes += done.wire_bytes;
		kv_bytes += done.kv_bytes;
		if (begun < requests) {
			submit(load, (uint32_t)done.user_data);
			begun++;
		}
	}
	printf("%s{\"wire_bytes\": %llu, \"kv_bytes\": %llu, \"seconds\": %.6f}", separator,
	       (unsigned long long)wire_bytes, (unsigned long long)kv_bytes,
	       (double)(clock_now_ns() - begin_ns) / 1e9);
}

/* ---- prompts --------------------------------------------------------------------------------- */

static void lookup(struct load *load)
{
	uint32_t first = load->next % (load->chunks / load->batch) * load->batch;
	const struct ssv_request request = {.op = SSV_OP_LOOKUP,
					    .user_data = 1,
					    .keys = &load->keys[first],
					    .keys_count = load->batch,
					    .ranks_count = 1};

	need(ssv_submit(load->io.ssv, &request, 1) == 1 ? 0 : -EAGAIN, "lookup");
	if (wait_one(load, "lookup").tokens != load->batch * SSV_CHUNK_TOKENS)
		need(-ENOENT, "lookup");
}

static void run_prompts(struct load *load, uint32_t prompts, const char *separator)
{
	uint64_t begin_ns = clock_now_ns(), wire_bytes = 0, kv_bytes = 0;

	for (uint32_t i = 0; i < prompts; i++) {
		struct ssv_completion done;

		lookup(load);
		submit(load, 0);
		done = wait_one(load, "fetch");
		wire_bytes += done.wire_bytes;
		kv_bytes += done.kv_bytes;
	}
	printf("%s{\"wire_bytes\": %llu, \"kv_bytes\": %llu, \"seconds\": %.6f}", separator,
	       (unsigned long long)wire_bytes, (unsigned long long)kv_bytes,
	       (double)(clock_now_ns() - begin_ns) / 1e9);
}

static void do_rounds(struct load *load,
		      void (*run)(struct load *load, uint32_t requests, const char *separator),
		      uint32_t requests, uint32_t rounds)
{
	printf("{\"rounds\": [");
	for (uint32_t i = 0; i < rounds; i++)
		run(load, requests, i ? ", " : "");
	printf("]}\n");
}

/* ---- check ---------------------------------------------------------------------------------- */

/* Adds squares of a tensor and of its deviation; returns the bytes that are not the same. */
static uint64_t compare_tensor(const struct load *load, uint32_t tensor, uint32_t chunk,
			       const uint32_t *blocks, double *squares, double *errors)
{
	const struct chunk_shape *shape = &load->io.shape;
	uint64_t bytes = shape_tensor_bytes(shape, tensor % shape->parts_count);
	uint64_t per_block = bytes / FETCH_CHUNK_BLOCKS, differ = 0;
	uint8_t *elements = cli_alloc(bytes);

	made_up_tensor(shape, tensor, chunk, elements);
	for (uint64_t at = 0; at < bytes; at += 2) {
		const uint8_t *got =
		    fetch_io_token(&load->io, tensor, blocks[at / per_block], 0) + at % per_block;
		uint16_t a, b;
		double x, y;

		memcpy(&a, elements + at, 2);
		memcpy(&b, got, 2);
		x = (double)f32_from_bf16(a);
		y = (double)f32_from_bf16(b);
		*squares += x * x;
		*errors += (x - y) * (x - y);
		differ += a != b;
	}
	free(elements);
	return differ;
}

static void do_check(struct load *load)
{
	double squares = 0, errors = 0;
	uint64_t differ = 0;
	bool right;

	memset(load->io.memory, POISON, load->io.memory_bytes);
	load->next = 0;
	submit(load, 0);
	(void)wait_one(load, "fetch");
	for (uint32_t k = 0; k < load->batch; k++) {
		uint32_t blocks[FETCH_CHUNK_BLOCKS];

		chunk_blocks(load, 0, k, blocks);
		for (uint32_t t = k; t < shape_tensors(&load->io.shape); t += load->batch)
			differ += compare_tensor(load, t, k, blocks, &squares, &errors);
	}
	right = load->tier == SSV_TIER_LOSSLESS ? !differ : errors / squares < ERROR_ALLOWED;
	printf("{\"right\": %s, \"differ\": %llu, \"error\": %.6f}\n", right ? "true" : "false",
	       (unsigned long long)differ, squares > 0 ? sqrt(errors / squares) : 0);
}

/* ---- commands ------------------------------------------------------------------------------- */

static int obey(struct load *load, const char *line)
{
	char verb[16], tier[16];
	uint32_t requests = 1, rounds = 1;
	int n = sscanf(line, "%15s %15s %u %u", verb, tier, &requests, &rounds);

	if (n < 2 || use_tier(load, tier) || rounds > ROUNDS_MAX)
		return -EINVAL;
	if (!strcmp(verb, "store"))
		do_store(load);
	else if (!strcmp(verb, "keys"))
		do_keys(load);
	else if (!strcmp(verb, "fetch"))
		do_rounds(load, run_round, requests, rounds);
	else if (!strcmp(verb, "prompt"))
		do_rounds(load, run_prompts, requests, rounds);
	else if (!strcmp(verb, "check"))
		do_check(load);
	else
		return -EINVAL;
	return 0;
}

static uint32_t argument(const char *text, uint32_t max)
{
	unsigned long value = strtoul(text, NULL, 10);

	if (!value || value > max)
		exit(cli_fail(EXIT_USAGE, "bench_link: \"%s\" is not 1 to %u", text, max));
	return (uint32_t)value;
}

int main(int argc, char **argv)
{
	static struct load load;
	char line[128];

	if (argc != 7)
		return (int)cli_fail(
		    EXIT_USAGE,
		    "bench_link: SOCKET LAYERS CHUNKS BATCH IN_FLIGHT NODES < COMMANDS");
	load.chunks = argument(argv[3], CHUNKS_MAX);
	load.batch = argument(argv[4], load.chunks);
	load.in_flight = argument(argv[5], CHUNKS_MAX / load.batch);
	load.nodes = argument(argv[6], 64);
	open_load(&load, argv[1], (uint16_t)argument(argv[2], 512));
	while (fgets(line, sizeof(line), stdin)) {
		need(obey(&load, line), line);
		fflush(stdout);
	}
	fetch_io_close(&load.io);
	return 0;
}
