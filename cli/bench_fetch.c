/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_fetch.c - `shadowserve bench fetch`: how fast chunks come out of a store and are decoded.
 *
 * Direct: one thread, several GETs in flight, each chunk decoded as soon as it is there, which is
 * what one worker of the daemon does, without its delivery. Or through a daemon: bench_daemon.c.
 */
#include "bench_fetch.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#include "base/clock.h"
#include "chunk_io.h"
#include "cli.h"
#include "store_io.h"

#define LANES_MAX 16u
#define BATCH_MAX 64u

static const char *option_store, *option_socket, *option_tier, *option_codec;
static int option_raw, option_daemon;
static uint64_t option_count = 256, option_lanes = 4, option_timeout = 10000;
static uint64_t option_batch = 1, option_made_up = 16, option_layers = 8;

static const struct arg fetch_args[] = {
    {"store", "URI", "what to fetch from (default: $SHADOWSERVE_STORE)", ARG_TEXT, &option_store, 0,
     0},
    {"count", "N", "chunks to fetch, at most those there are (default 256)", ARG_NUMBER,
     &option_count, 1, 1000000},
    {"lanes", "N", "fetches in flight, 1..16 (default 4)", ARG_NUMBER, &option_lanes, 1, LANES_MAX},
    {"raw", NULL, "do not decode", ARG_FLAG, &option_raw, 0, 0},
    {"daemon", NULL, "through the daemon, into this process; without --store: made-up chunks",
     ARG_FLAG, &option_daemon, 0, 0},
    {"socket", "PATH", "through the daemon at this socket", ARG_TEXT, &option_socket, 0, 0},
    {"tier", "NAME", "of made-up chunks (default: the daemon's)", ARG_TEXT, &option_tier, 0, 0},
    {"codec", "NAME", "of made-up chunks (default: the daemon's)", ARG_TEXT, &option_codec, 0, 0},
    {"batch", "N", "chunks a request, of made-up chunks (default 1)", ARG_NUMBER, &option_batch, 1,
     BATCH_MAX},
    {"made-up", "N", "how many made-up chunks (default 16), rounded up to whole batches",
     ARG_NUMBER, &option_made_up, 1, 1024},
    {"layers", "N", "of made-up chunks: 32 is Llama-3-8B, 32 MiB a chunk (default 8)", ARG_NUMBER,
     &option_layers, 1, 128},
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
	uint64_t keys_count, next;
	struct fetch_result result;
};

/* Buffers for the largest value, and a key list that is as long as was asked for. */
static int prepare(struct fetch *f)
{
	uint64_t value_max = 0, bytes;
	int err = store_io_list(&f->store, &f->keys, &f->keys_count);

	if (err)
		return err;
	f->keys_count = u64_min(f->keys_count, option_count);
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
	f->result.latency_ns = cli_alloc(f->keys_count * sizeof(*f->result.latency_ns));
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
	struct fetch_result *r = &f->result;
	uint64_t now_ns = clock_now_ns();
	enum container_fault fault;
	struct container container;
	int err = op->status;

	lane->busy = 0;
	r->chunks++;
	r->latency_ns[r->requests++] = now_ns - lane->start_ns;
	if (err == -ENOENT) {
		r->misses++;
		return 0;
	}
	if (err)
		return err;
	r->wire_bytes += op->value_bytes;
	err = chunk_io_open(&container, op->data, op->value_bytes, &op->key, &fault);
	if (!err)
		r->kv_bytes += container.header.out_bytes;
	if (!err && !option_raw)
		err = chunk_io_decode(&f->chunk, &container, &fault);
	r->damaged += err != 0;
	r->decode_ns += clock_now_ns() - now_ns;
	return 0;
}

static int fetch_all(struct fetch *f)
{
	struct store *store = f->store.store;
	int err = 0;

	while (f->result.chunks < f->keys_count && !err) {
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

static int answer_json(const struct fetch_result *r, double p50, double p99, enum exit_code code)
{
	cJSON *object = cli_object();

	cli_add_bool(object, "daemon", option_daemon);
	cli_add_number(object, "requests", (double)r->requests);
	cli_add_number(object, "chunks", (double)r->chunks);
	cli_add_number(object, "misses", (double)r->misses);
	cli_add_number(object, "damaged", (double)r->damaged);
	cli_add_number(object, "passed_over", (double)r->passed_over);
	cli_add_number(object, "seconds", (double)r->elapsed_ns / 1e9);
	cli_add_number(object, "wire_bytes", (double)r->wire_bytes);
	cli_add_number(object, "kv_bytes", (double)r->kv_bytes);
	cli_add_number(object, "wire_gb_s", (double)r->wire_bytes / (double)r->elapsed_ns);
	cli_add_number(object, "kv_gb_s", (double)r->kv_bytes / (double)r->elapsed_ns);
	if (!option_daemon)
		cli_add_number(object, "decode_share",
			       (double)r->decode_ns / (double)r->elapsed_ns);
	cli_add_number(object, "get_ms_p50", p50);
	cli_add_number(object, "get_ms_p99", p99);
	return cli_print_json(object, code);
}

static int answer(struct fetch_result *r)
{
	enum exit_code code = r->damaged || r->misses ? EXIT_FOUND_BAD : EXIT_OK;
	char wire[32], kv[32];
	double p50, p99;

	qsort(r->latency_ns, r->requests, sizeof(*r->latency_ns), compare_ns);
	p50 = (double)r->latency_ns[r->requests / 2] / 1e6;
	p99 = (double)r->latency_ns[r->requests * 99 / 100] / 1e6;
	if (option_json)
		return answer_json(r, p50, p99, code);
	printf("%llu chunks in %.3f s: %s of wire (%.3f GB/s), %s of KV (%.3f GB/s)\n",
	       (unsigned long long)r->chunks, (double)r->elapsed_ns / 1e9,
	       cli_bytes((double)r->wire_bytes, wire),
	       (double)r->wire_bytes / (double)r->elapsed_ns, cli_bytes((double)r->kv_bytes, kv),
	       (double)r->kv_bytes / (double)r->elapsed_ns);
	printf("a request: p50 %.2f ms, p99 %.2f ms\n", p50, p99);
	if (!option_daemon)
		printf("%.0f %% of the time went into %s\n",
		       100.0 * (double)r->decode_ns / (double)r->elapsed_ns,
		       option_raw ? "checking headers" : "checking and decoding");
	if (r->passed_over)
		printf("%llu chunks of other shapes or models were passed over\n",
		       (unsigned long long)r->passed_over);
	if (code)
		printf("%llu missing, %llu damaged: see `shadowserve verify`\n",
		       (unsigned long long)r->misses, (unsigned long long)r->damaged);
	return (int)code;
}

static int bench_direct(struct fetch *f)
{
	uint64_t start_ns;
	int err = store_io_open(&f->store, "bench fetch", option_store, (uint32_t)option_timeout);

	if (err)
		return err;
	err = prepare(f);
	if (!err && !f->keys_count)
		return cli_fail(EXIT_FOUND_BAD, "bench fetch: the store is empty");
	start_ns = clock_now_ns();
	if (!err)
		err = fetch_all(f);
	f->result.elapsed_ns = clock_now_ns() - start_ns;
	return err ? cli_fail(EXIT_UNREACHABLE, "bench fetch: the store answers: %s",
			      strerror(-err))
		   : 0;
}

/* With a daemon: a store only when it is named, else made-up chunks. */
static int bench_through_daemon(struct fetch *f, uint8_t tier, uint8_t codec)
{
	const struct daemon_options options = {
	    .socket = option_socket,
	    .count = option_count,
	    .lanes = (uint32_t)option_lanes,
	    .batch = (uint32_t)option_batch,
	    .made_up =
		(uint32_t)((option_made_up + option_batch - 1) / option_batch * option_batch),
	    .layers = (uint16_t)option_layers,
	    .timeout_ms = (uint32_t)option_timeout,
	    .tier = tier,
	    .codec = codec};
	int err = 0;

	if (option_store)
		err =
		    store_io_open(&f->store, "bench fetch", option_store, (uint32_t)option_timeout);
	return err ? err : bench_daemon(&options, option_store ? &f->store : NULL, &f->result);
}

static int run_fetch(int argc, char **argv)
{
	uint8_t tier = option_tier ? tier_parse(option_tier) : 0;
	uint8_t codec = option_codec ? codec_parse(option_codec) : 0;
	struct fetch *f;
	int err;

	(void)argc;
	(void)argv;
	option_daemon |= option_socket != NULL;
	if ((option_tier && !tier) || (option_codec && !codec))
		return cli_fail(EXIT_USAGE, "bench fetch: there is no %s \"%s\"",
				option_tier && !tier ? "tier" : "codec",
				option_tier && !tier ? option_tier : option_codec);
	if ((tier || codec) && (!option_daemon || option_store))
		return cli_fail(EXIT_USAGE,
				"bench fetch: --tier and --codec are of made-up chunks: "
				"with a daemon and without --store");
	if (option_batch > 1 && (!option_daemon || option_store))
		return cli_fail(EXIT_USAGE, "bench fetch: --batch is of made-up chunks: "
					    "with a daemon and without --store");
	f = cli_alloc(sizeof(*f));
	chunk_io_init(&f->chunk);
	err = option_daemon ? bench_through_daemon(f, tier, codec) : bench_direct(f);
	if (!err)
		err = answer(&f->result);
	/* The store may still write to the lanes until it is closed. */
	store_io_close(&f->store);
	for (uint32_t l = 0; l < option_lanes; l++)
		free(f->lanes[l].op.data);
	chunk_io_fini(&f->chunk);
	free(f->result.latency_ns);
	free(f->keys);
	free(f);
	return err;
}

const struct command bench_fetch_command = {
    .name = "bench fetch",
    .operands = "",
    .summary = "how fast chunks come out of a store and are decoded",
    .text = "Fetch and decode the chunks of a store in one thread, as one worker of the daemon\n"
	    "does, without delivery; say how fast, and whether store or decoding is the limit.\n"
	    "With --daemon or --socket the whole way, through the daemon into memory of this\n"
	    "process: what --store holds, or made-up chunks that it stores first;\n"
	    "each lane's first fetch, which maps pages, is not counted.\n"
	    "Exit 0: done; 1: empty store, or chunks missing or damaged; 3: no store.\n\n"
	    "  shadowserve bench fetch --store file:/var/cache/kv\n"
	    "  shadowserve bench fetch --store redis://127.0.0.1:6379 --lanes 8 --raw\n"
	    "  shadowserve bench fetch --daemon --tier standard --count 1000\n"
	    "  shadowserve bench fetch --daemon --layers 32 --batch 8 --lanes 2 --count 512\n"
	    "  shadowserve bench fetch --daemon --store file:/var/cache/kv",
    .args = fetch_args,
    .run = run_fetch,
};
