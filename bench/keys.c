/* SPDX-License-Identifier: Apache-2.0 */
/*
 * keys.c - bench_keys: what a look-up costs in a store that holds more and more keys, as JSON.
 *
 *	bench_keys URI ROUNDS LOOKUPS COUNT...
 *
 * For each COUNT, ascending, the store is filled up to so many values of 64 bytes; then LOOKUPS
 * random keys are looked up ROUNDS times, every second one of them stored, 64 in flight, from one
 * thread that sleeps on the store's descriptors as a worker does. An answer that is not the right
 * one ends the program with exit status 1.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cpu_time.h"
#include "store_load.h"

#define IN_FLIGHT   64u
#define VALUE_BYTES 64u
#define COUNT_MAX   10000000u
#define DEADLINE_NS (60 * NS_PER_S)

struct bench {
	struct store *store;
	uint8_t buffers[IN_FLIGHT][VALUE_BYTES];
	struct store_op ops[IN_FLIGHT];
	int expected[IN_FLIGHT];
	uint64_t random;
};

struct cost {
	double cpu_ns, wall_ns; /* of one operation */
};

static void die(int status, const char *what, const char *name)
{
	fprintf(stderr, "bench_keys: %s: %s\n", what, name);
	exit(status);
}

/* Operation i of a kind: a put of key number first + i, or a look-up of any key. */
static void begin(struct bench *bench, uint32_t slot, uint8_t kind, uint64_t first, uint64_t i)
{
	struct store_op *op = &bench->ops[slot];
	uint64_t number = first + i;

	bench->expected[slot] = 0;
	if (kind == STORE_OP_EXISTS) { /* of `first` that are stored, or of none that is */
		bench->random = bench->random * 6364136223846793005u + 1442695040888963407u;
		number = (bench->random >> 33) % first;
		if (i % 2) {
			number += COUNT_MAX;
			bench->expected[slot] = -ENOENT;
		}
	}
	*op = (struct store_op){.kind = kind,
				.key = key_of(number),
				.data = bench->buffers[slot],
				.capacity = VALUE_BYTES,
				.value_bytes = kind == STORE_OP_PUT ? VALUE_BYTES : 0,
				.deadline_ns = clock_now_ns() + DEADLINE_NS};
	if (bench->store->ops->submit(bench->store, &op, 1, clock_now_ns()) != 1)
		die(2, "submit", "refused");
}

static struct cost run(struct bench *bench, uint8_t kind, uint64_t first, uint64_t count)
{
	uint64_t begin_ns = clock_now_ns(), begin_cpu_ns = cpu_ns(CLOCK_PROCESS_CPUTIME_ID),
		 next = 0, finished = 0;

	for (; next < count && next < IN_FLIGHT; next++)
		begin(bench, (uint32_t)next, kind, first, next);
	while (finished < count) {
		struct store_op *done[IN_FLIGHT];
		uint32_t n = bench->store->ops->poll(bench->store, done, IN_FLIGHT, clock_now_ns());

		for (uint32_t i = 0; i < n; i++) {
			uint32_t slot = (uint32_t)(done[i] - bench->ops);

			if (done[i]->status != bench->expected[slot])
				die(1, "WRONG: status", strerror(-done[i]->status));
			if (next < count)
				begin(bench, slot, kind, first, next++);
		}
		finished += n;
		if (!n)
			wait_for(bench->store);
	}
	return (struct cost){.cpu_ns = (double)(cpu_ns(CLOCK_PROCESS_CPUTIME_ID) - begin_cpu_ns) /
				       (double)count,
			     .wall_ns = (double)(clock_now_ns() - begin_ns) / (double)count};
}

static unsigned long resident_kib(void)
{
	unsigned long pages = 0;
	FILE *file = fopen("/proc/self/statm", "r");

	if (!file || fscanf(file, "%*u %lu", &pages) != 1)
		die(2, "cannot read", "/proc/self/statm");
	fclose(file);
	return pages * 4;
}

static uint64_t number(const char *text)
{
	char *end;
	unsigned long value = strtoul(text, &end, 10);

	if (*end || !value || value > COUNT_MAX)
		die(2, "expected a number from 1 to 10000000", text);
	return value;
}

int main(int argc, char **argv)
{
	static struct bench bench = {.random = 1};
	struct store_config config = {
	    .seed = 1, .value_bytes_max = VALUE_BYTES, .ops_max = IN_FLIGHT};
	char error[SSV_ERROR_TEXT_MAX] = "";
	uint64_t stored = 0, rounds, lookups;

	if (argc < 5)
		die(2, "usage", "bench_keys URI ROUNDS LOOKUPS COUNT...");
	config.uri = argv[1];
	rounds = number(argv[2]);
	lookups = number(argv[3]);
	if (store_open(&config, &bench.store, error))
		die(2, "open", error);
	printf("[");
	for (int i = 4; i < argc; i++) {
		uint64_t count = number(argv[i]);
		struct cost put;

		if (count <= stored)
			die(2, "counts must ascend", argv[i]);
		put = run(&bench, STORE_OP_PUT, stored, count - stored);
		stored = count;
		printf("%s\n {\"keys\": %llu, \"put_cpu_ns\": %.0f, \"resident_kib\": %lu, "
		       "\"lookup\": [",
		       i == 4 ? "" : ",", (unsigned long long)count, put.cpu_ns, resident_kib());
		for (uint64_t r = 0; r < rounds; r++) {
			struct cost cost = run(&bench, STORE_OP_EXISTS, stored, lookups);

			printf("%s[%.1f, %.1f]", r ? ", " : "", cost.cpu_ns, cost.wall_ns);
		}
		printf("]}");
		fflush(stdout);
	}
	printf("\n]\n");
	store_close(bench.store);
	return 0;
}
