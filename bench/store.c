/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store.c - bench_store: how fast a store takes and gives values, as JSON.
 *
 *	bench_store URI [VALUE_KIB [COUNT [IN_FLIGHT]]]
 *
 * Puts COUNT (64) values of VALUE_KIB (8192) KiB, reads them back in order, looks them up, deletes
 * them; IN_FLIGHT (8) operations at once, from one thread that sleeps on the store's descriptors as
 * a worker does. Rates are of wall time; cpu_share is the processor time of the thread. A GET's
 * latency is from its submission until it is handed back. The bytes are checked once, untimed.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cpu_time.h"
#include "store_load.h"

#define IN_FLIGHT_MAX 256u
#define COUNT_MAX     100000u
#define DEADLINE_NS   (60 * NS_PER_S)

struct bench {
	struct store *store;
	uint64_t value_bytes;
	uint32_t count, in_flight;
	uint8_t *buffers[IN_FLIGHT_MAX];
	struct store_op ops[IN_FLIGHT_MAX];
	uint64_t submitted_ns[IN_FLIGHT_MAX];
	uint64_t *latencies_ns;
};

struct result {
	double seconds, cpu_share;
	uint32_t failed;
};

static void die(const char *what, const char *name)
{
	fprintf(stderr, "bench_store: %s: %s\n", what, name);
	exit(2);
}

static void *need(void *memory)
{
	if (!memory)
		die("out of memory", "malloc");
	return memory;
}

static void begin(struct bench *bench, uint32_t slot, uint8_t kind, uint32_t n)
{
	struct store_op *op = &bench->ops[slot];

	*op = (struct store_op){
	    .kind = kind,
	    .key = key_of(n),
	    .data = bench->buffers[slot],
	    .capacity = bench->value_bytes,
	    .value_bytes = bench->value_bytes,
	    .deadline_ns = clock_now_ns() + DEADLINE_NS,
	};
	if (kind == STORE_OP_PUT)
		store_le64(op->data, n);
	bench->submitted_ns[slot] = clock_now_ns();
	if (bench->store->ops->submit(bench->store, &op, 1, clock_now_ns()) != 1)
		die("submit", "refused");
}

/* One operation of a kind for each value; a slot begins the next when its own is over. */
static struct result run(struct bench *bench, uint8_t kind)
{
	struct result result = {0};
	uint64_t begin_ns = clock_now_ns(), begin_cpu_ns = cpu_ns(CLOCK_PROCESS_CPUTIME_ID);
	uint32_t next = 0, finished = 0, i;

	while (next < bench->count && next < bench->in_flight) {
		begin(bench, next, kind, next);
		next++;
	}
	while (finished < bench->count) {
		struct store_op *done[16];
		uint32_t n = bench->store->ops->poll(bench->store, done, 16, clock_now_ns());

		for (i = 0; i < n; i++) {
			uint32_t slot = (uint32_t)(done[i] - bench->ops);

			bench->latencies_ns[finished++] =
			    clock_now_ns() - bench->submitted_ns[slot];
			result.failed += done[i]->status != 0;
			if (next < bench->count)
				begin(bench, slot, kind, next++);
		}
		if (!n)
			wait_for(bench->store);
	}
	result.seconds = (double)(clock_now_ns() - begin_ns) / 1e9;
	result.cpu_share =
	    (double)(cpu_ns(CLOCK_PROCESS_CPUTIME_ID) - begin_cpu_ns) / 1e9 / result.seconds;
	return result;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void print_values(const struct bench *bench, const char *name, const struct result *result)
{
	double gb = (double)bench->value_bytes * bench->count / 1e9;

	qsort(bench->latencies_ns, bench->count, sizeof(*bench->latencies_ns), compare);
	printf("\"%s\": {\"gb_s\": %.3f, \"cpu_share\": %.2f, \"p50_us\": %.0f, \"p99_us\": %.0f, "
	       "\"failed\": %u}, ",
	       name, gb / result->seconds, result->cpu_share,
	       (double)bench->latencies_ns[bench->count / 2] / 1e3,
	       (double)bench->latencies_ns[bench->count * 99 / 100] / 1e3, result->failed);
}

static void check_bytes(struct bench *bench)
{
	uint32_t n;

	for (n = 0; n < bench->count && n < bench->in_flight; n++) {
		struct store_op *done;

		begin(bench, 0, STORE_OP_GET, n);
		while (!bench->store->ops->poll(bench->store, &done, 1, clock_now_ns()))
			wait_for(bench->store);
		if (!done->status &&
		    (done->received != bench->value_bytes || load_le64(done->data) != n ||
		     done->data[bench->value_bytes - 1] != 0x5a))
			die("a value came back wrong", "GET");
	}
}

static void open_bench(struct bench *bench, const char *uri)
{
	struct store_config config = {
	    .uri = uri,
	    .seed = 1,
	    .value_bytes_max = bench->value_bytes,
	    .ops_max = bench->in_flight,
	};
	char error[SSV_ERROR_TEXT_MAX];
	uint32_t i;

	if (store_open(&config, &bench->store, error))
		die("open", error);
	bench->latencies_ns = need(calloc(bench->count, sizeof(*bench->latencies_ns)));
	for (i = 0; i < bench->in_flight; i++) {
		bench->buffers[i] = need(malloc(bench->value_bytes));
		memset(bench->buffers[i], 0x5a, bench->value_bytes);
	}
}

static uint32_t number(const char *text, uint32_t min, uint32_t max)
{
	char *end;
	unsigned long value = strtoul(text, &end, 10);

	if (*end || value < min || value > max)
		die("expected a number within its range", text);
	return (uint32_t)value;
}

int main(int argc, char **argv)
{
	struct bench bench = {.value_bytes = 8 * MIB, .count = 64, .in_flight = 8};
	char shown[STORE_URI_MAX];
	struct result put, get, exists;
	uint32_t i;

	if (argc < 2 || argc > 5) {
		fprintf(stderr, "usage: bench_store URI [VALUE_KIB [COUNT [IN_FLIGHT]]]\n");
		return 2;
	}
	if (argc > 2)
		bench.value_bytes = number(argv[2], 1, 1 << 20) * KIB;
	if (argc > 3)
		bench.count = number(argv[3], 1, COUNT_MAX);
	if (argc > 4)
		bench.in_flight = number(argv[4], 1, IN_FLIGHT_MAX);
	open_bench(&bench, argv[1]);
	store_uri_redact(argv[1], shown, sizeof(shown));
	printf("{\"store\": \"%s\", \"value_bytes\": %llu, \"count\": %u, \"in_flight\": %u, ",
	       shown, (unsigned long long)bench.value_bytes, bench.count, bench.in_flight);
	put = run(&bench, STORE_OP_PUT);
	print_values(&bench, "put", &put);
	check_bytes(&bench);
	get = run(&bench, STORE_OP_GET);
	print_values(&bench, "get", &get);
	exists = run(&bench, STORE_OP_EXISTS);
	printf("\"exists_per_s\": %.0f}\n", bench.count / exists.seconds);
	(void)run(&bench, STORE_OP_DELETE);
	store_close(bench.store);
	for (i = 0; i < bench.in_flight; i++)
		free(bench.buffers[i]);
	free(bench.latencies_ns);
	return 0;
}
