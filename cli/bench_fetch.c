/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_fetch.c - `shadowserve bench fetch`: how fast chunks come out of a store and are decoded.
 *
 * One thread, several GETs in flight, each chunk decoded as soon as it is there: what one worker of
 * the daemon does, without its delivery.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "base/clock.h"
#include "chunk_io.h"
#include "cli.h"
#include "store_io.h"

#define LANES_MAX 16u

static const char *option_store;
static int option_raw;
static uint64_t option_chunks = 256, option_lanes = 4, option_timeout = 10000;

static const struct arg fetch_args[] = {
    {"store", "URI", "the store (default: $SHADOWSERVE_STORE)", ARG_TEXT, &option_store, 0, 0},
    {"chunks", "N", "fetch at most this many (default 256)", ARG_NUMBER, &option_chunks, 1,
     1000000},
    {"lanes", "N", "GETs in flight, 1..16 (default 4)", ARG_NUMBER, &option_lanes, 1, LANES_MAX},
    {"raw", NULL, "do not decode", ARG_FLAG, &option_raw, 0, 0},
    {"timeout", "MS", "give up on an operation after this long (default 10000)", ARG_NUMBER,
     &option_timeout, 1, 600000},
    ARG_END,
};

struct lane {
	struct store_op op;
	uint64_t start_ns;
	int busy;
};

struct fetch {
	struct store_io store;
	struct chunk_io chunk;
	struct lane lanes[LANES_MAX];
	struct ssv_key *keys;
	uint64_t keys_count, next, done;
	uint64_t wire_bytes, kv_bytes, decode_ns, misses, damaged;
	uint64_t *latency_ns;
};

/* Buffers for the largest value, and a key list that is as long as was asked for. */
static int prepare(struct fetch *f)
{
	uint64_t value_max = 0, bytes;
	int err = store_io_list(&f->store, &f->keys, &f->keys_count);

	if (err)
		return err;
	f->keys_count = u64_min(f->keys_count, option_chunks);
	for (uint64_t i = 0; i < f->keys_count; i++) {
		err = store_io_exists(&f->store, &f->keys[i], &bytes);
		if (err && err != -ENOENT)
			return err;
		value_max = err ? value_max : u64_max(value_max, bytes);
	}
	for (uint32_t l = 0; l < option_lanes; l++) {
		f->lanes[l].op.data = cli_alloc(value_max + CONTAINER_SLACK_BYTES);
		f->lanes[l].op.capacity = value_max;
		f->lanes[l].op.owner = &f->lanes[l];
	}
	f->latency_ns = cli_alloc(f->keys_count * sizeof(*f->latency_ns));
	return 0;
}

static void begin_gets(struct fetch *f, uint64_t now_ns)
{
	struct store *store = f->store.store;

	for (uint32_t l = 0; l < option_lanes && f->next < f->keys_count; l++) {
		struct lane *lane = &f->lanes[l];
		struct store_op *op = &lane->op;

		if (lane->busy)
			continue;
		op->kind = STORE_OP_GET;
		op->key = f->keys[f->next];
		op->deadline_ns = now_ns + option_timeout * NS_PER_MS;
		op->value_bytes = op->received = 0;
		if (!store->ops->submit(store, &op, 1, now_ns))
			return;
		lane->busy = 1;
		lane->start_ns = now_ns;
		f->next++;
	}
}

static int end_get(struct fetch *f, struct lane *lane)
{
	struct store_op *op = &lane->op;
	uint64_t now_ns = clock_now_ns();
	enum container_fault fault;
	struct container container;
	int err = op->status;

	lane->busy = 0;
	f->latency_ns[f->done++] = now_ns - lane->start_ns;
	if (err == -ENOENT) {
		f->misses++;
		return 0;
	}
	if (err)
		return err;
	f->wire_bytes += op->value_bytes;
	err = chunk_io_open(&container, op->data, op->value_bytes, &op->key, &fault);
	if (!err)
		f->kv_bytes += container.header.out_bytes;
	if (!err && !option_raw)
		err = chunk_io_decode(&f->chunk, &container, &fault);
	f->damaged += err != 0;
	f->decode_ns += clock_now_ns() - now_ns;
	return 0;
}

static int fetch_all(struct fetch *f)
{
	struct store *store = f->store.store;
	int err = 0;

	while (f->done < f->keys_count && !err) {
		struct store_op *done;
		struct pollfd fds[LANES_MAX];
		uint32_t count;

		begin_gets(f, clock_now_ns());
		if (store->ops->poll(store, &done, 1, clock_now_ns())) {
			err = end_get(f, done->owner);
			continue;
		}
		count = store->ops->pollfds(store, fds, LANES_MAX);
		if (count && store->ops->next_ns(store) > clock_now_ns())
			(void)poll(fds, count, 1);
	}
	return err;
}

static int compare_ns(const void *a, const void *b)
{
	uint64_t x, y;

	memcpy(&x, a, sizeof(x));
	memcpy(&y, b, sizeof(y));
	return x < y ? -1 : x > y;
}

static int answer(struct fetch *f, uint64_t elapsed_ns)
{
	enum exit_code code = f->damaged || f->misses ? EXIT_FOUND_BAD : EXIT_OK;
	double p50, p99, seconds = (double)elapsed_ns / 1e9;
	char wire[32], kv[32];

	qsort(f->latency_ns, f->done, sizeof(*f->latency_ns), compare_ns);
	p50 = (double)f->latency_ns[f->done / 2] / 1e6;
	p99 = (double)f->latency_ns[f->done * 99 / 100] / 1e6;
	if (option_json) {
		cJSON *object = cli_object();

		cli_add_number(object, "chunks", (double)f->done);
		cli_add_number(object, "misses", (double)f->misses);
		cli_add_number(object, "damaged", (double)f->damaged);
		cli_add_number(object, "seconds", seconds);
		cli_add_number(object, "wire_bytes", (double)f->wire_bytes);
		cli_add_number(object, "kv_bytes", (double)f->kv_bytes);
		cli_add_number(object, "wire_gb_s", (double)f->wire_bytes / (double)elapsed_ns);
		cli_add_number(object, "kv_gb_s", (double)f->kv_bytes / (double)elapsed_ns);
		cli_add_number(object, "decode_share", (double)f->decode_ns / (double)elapsed_ns);
		cli_add_number(object, "get_ms_p50", p50);
		cli_add_number(object, "get_ms_p99", p99);
		return cli_print_json(object, code);
	}
	printf("%llu chunks in %.3f s: %s of wire (%.3f GB/s), %s of KV (%.3f GB/s)\n",
	       (unsigned long long)f->done, seconds, cli_bytes((double)f->wire_bytes, wire),
	       (double)f->wire_bytes / (double)elapsed_ns, cli_bytes((double)f->kv_bytes, kv),
	       (double)f->kv_bytes / (double)elapsed_ns);
	printf("GET p50 %.2f ms, p99 %.2f ms; %.0f %% of the time went into %s\n", p50, p99,
	       100.0 * (double)f->decode_ns / (double)elapsed_ns,
	       option_raw ? "checking headers" : "checking and decoding");
	if (code)
		printf("%llu missing, %llu damaged: see `shadowserve verify`\n",
		       (unsigned long long)f->misses, (unsigned long long)f->damaged);
	return (int)code;
}

static int run_fetch(int argc, char **argv)
{
	struct fetch *f = cli_alloc(sizeof(*f));
	uint64_t start_ns;
	int err;

	(void)argc;
	(void)argv;
	err = store_io_open(&f->store, "bench fetch", option_store, (uint32_t)option_timeout);
	if (err) {
		free(f);
		return err;
	}
	chunk_io_init(&f->chunk);
	err = prepare(f);
	if (!err && !f->keys_count) {
		err = cli_fail(EXIT_FOUND_BAD, "bench fetch: the store is empty");
	} else {
		start_ns = clock_now_ns();
		if (!err)
			err = fetch_all(f);
		err = err ? cli_fail(EXIT_UNREACHABLE, "bench fetch: the store answers: %s",
				     strerror(-err))
			  : answer(f, clock_now_ns() - start_ns);
	}
	/* The store may still write to the lanes until it is closed. */
	store_io_close(&f->store);
	for (uint32_t l = 0; l < option_lanes; l++)
		free(f->lanes[l].op.data);
	chunk_io_fini(&f->chunk);
	free(f->latency_ns);
	free(f->keys);
	free(f);
	return err;
}

const struct command bench_fetch_command = {
    .name = "bench fetch",
    .operands = "",
    .summary = "how fast chunks come out of a store and are decoded",
    .text = "Fetch and decode the chunks of a store in one thread, as one worker of the daemon\n"
	    "does, without delivery. Say how fast, and whether store or decoding is the limit.\n"
	    "Exit 0: done; 1: empty store, or chunks missing or damaged; 3: no store.\n\n"
	    "  shadowserve bench fetch --store file:/var/cache/kv\n"
	    "  shadowserve bench fetch --store redis://127.0.0.1:6379 --lanes 8 --raw",
    .args = fetch_args,
    .run = run_fetch,
};
