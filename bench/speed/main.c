/* SPDX-License-Identifier: Apache-2.0 */
/*
 * main.c - bench_speed: how fast contenders decode and encode the same KV on one core, as JSON.
 *
 *	bench_speed [--runs N] [--destination MIB] (--store FOLDER | --made-up LAYERS,CHUNKS)
 *SPEC...
 *
 *	decode:TIER:CODEC:LEVEL:LAYOUT   container to engine pages; LAYOUT rows or transposed
 *	encode:TIER:CODEC:LEVEL          canonical order to container
 *	unpack:LIBRARY:FORM              a library's decompression, then dequantising, to rows
 *	pack:LIBRARY:FORM                quantising, then a library's compression
 *	copy, fill, read                 memcpy, non-temporal stores, a sum over the source
 *
 * Each run of a contender takes about TARGET_S and at least RUN_BYTES_MIN of KV; all contenders
 * have their first run, then all their second, and so on. Seconds are of processor time.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/clock.h"
#include "codec/kernels.h"
#include "cpu_time.h"
#include "speed.h"

#define TARGET_S        0.05
#define RUN_BYTES_MIN   (16 * MIB)
#define CONTENDERS_MAX  256u
#define HUGE_PAGE_BYTES (2 * MIB)

static const struct contender_ops *const kinds[] = {
    &speed_decode, &speed_encode, &speed_unpack, &speed_pack, &speed_copy, &speed_fill, &speed_read,
};

void speed_die(const char *what, const char *name)
{
	fprintf(stderr, "bench_speed: %s: %s\n", what, name);
	exit(2);
}

/* Large blocks lie in huge pages, as all memory of the daemon does (base/arena.c). */
void *speed_alloc(uint64_t bytes)
{
	const uint64_t align = bytes >= HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : 64;
	void *memory;

	bytes = align_up(bytes + CONTAINER_SLACK_BYTES, align);
	memory = aligned_alloc(align, bytes);
	if (!memory)
		speed_die("out of memory", "aligned_alloc");
	if (align == HUGE_PAGE_BYTES)
		(void)madvise(memory, bytes, MADV_HUGEPAGE); /* advice: slower without */
	return memory;
}

static double cpu_s(void)
{
	return 1e-9 * (double)cpu_ns(CLOCK_THREAD_CPUTIME_ID);
}

static void destination_open(struct destination *to, const struct kv *kv, uint64_t bytes)
{
	to->slots_count = (uint32_t)(bytes / kv->chunk_bytes);
	if (to->slots_count < 2)
		speed_die("destination below two chunks", "--destination");
	bytes = to->slots_count * kv->chunk_bytes;
	to->bytes = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (to->bytes == MAP_FAILED)
		speed_die("out of memory", "mmap");
	madvise(to->bytes, bytes, MADV_HUGEPAGE);
	memset(to->bytes, 1, bytes);
}

static void contender_open(struct contender *c, char *spec, const struct kv *kv,
			   const struct destination *to)
{
	uint32_t count = 0;

	c->spec = strdup(spec);
	for (char *word = strtok(spec, ":"); word; word = strtok(NULL, ":")) {
		if (count == SPEED_FIELDS_MAX)
			speed_die("too many fields", c->spec);
		c->field[count++] = word;
	}
	for (uint32_t i = 0; i < ARRAY_COUNT(kinds); i++)
		if (count && !strcmp(c->field[0], kinds[i]->name))
			c->ops = kinds[i];
	if (!c->ops || count != c->ops->fields_count)
		speed_die("unknown contender", c->spec);
	c->ops->prepare(c, kv, to);
}

static double contender_run(struct contender *c, const struct kv *kv, const struct destination *to,
			    uint32_t chunks)
{
	static uint32_t
	    next; /* chunk and slot move on, so that no run finds its bytes in a cache */
	double begin;

	if (c->ops->begin)
		c->ops->begin(c);
	begin = cpu_s();
	for (uint32_t i = 0; i < chunks; i++, next++)
		c->ops->chunk(c, kv, next % kv->chunks_count, to, next % to->slots_count);
	return cpu_s() - begin;
}

/* How many chunks a run has: found by a first one, which also warms everything up. */
static void contender_size(struct contender *c, const struct kv *kv, const struct destination *to)
{
	uint32_t least = (uint32_t)(RUN_BYTES_MIN / kv->chunk_bytes);
	double one;

	contender_run(c, kv, to, 1);
	one = contender_run(c, kv, to, 1);
	c->chunks = one > 0 ? (uint32_t)(TARGET_S / one) : least;
	if (c->chunks < least || !c->chunks)
		c->chunks = least ? least : 1;
}

static void report(const struct contender *c, const struct kv *kv, uint32_t runs, int first)
{
	double bytes = (double)c->chunks * (double)kv->chunk_bytes;

	printf("%s\n  {\"spec\": \"%s\", \"wire_bytes\": %llu, \"run_bytes\": %.0f, \"gb_s\": [",
	       first ? "" : ",", c->spec, (unsigned long long)c->wire_bytes, bytes);
	for (uint32_t i = 0; i < runs; i++)
		printf("%s%.4f", i ? ", " : "", bytes / c->seconds[i] * 1e-9);
	printf("]}");
}

struct options {
	uint32_t runs, layers, chunks;
	uint64_t destination_bytes;
	const char *store;
	int first_spec;
};

static struct options options_parse(int argc, char **argv)
{
	struct options o = {.runs = 7, .destination_bytes = 256 * MIB};
	int i = 1;

	for (; i + 1 < argc && !strncmp(argv[i], "--", 2); i += 2) {
		if (!strcmp(argv[i], "--runs"))
			o.runs = (uint32_t)strtoul(argv[i + 1], NULL, 10);
		else if (!strcmp(argv[i], "--destination"))
			o.destination_bytes = strtoul(argv[i + 1], NULL, 10) * MIB;
		else if (!strcmp(argv[i], "--store"))
			o.store = argv[i + 1];
		else if (strcmp(argv[i], "--made-up") ||
			 sscanf(argv[i + 1], "%u,%u", &o.layers, &o.chunks) != 2)
			speed_die("unknown option", argv[i]);
	}
	if (!o.runs || o.runs > SPEED_RUNS_MAX)
		speed_die("--runs", "expected 1 to 101");
	if (!o.store == !o.layers)
		speed_die("usage", "one of --store FOLDER and --made-up LAYERS,CHUNKS");
	if (argc - i < 1 || argc - i > (int)CONTENDERS_MAX)
		speed_die("usage", "1 to 256 specs");
	o.first_spec = i;
	return o;
}

static void print_levels(void)
{
	const struct kernels *kernels;

	printf("[");
	for (uint32_t i = 0; (kernels = kernels_at(i)); i++)
		printf("%s\"%s\"", i ? ", " : "", kernels->name);
	printf("]\n");
}

int main(int argc, char **argv)
{
	static struct contender contenders[CONTENDERS_MAX];
	struct destination to;
	struct options o;
	struct kv kv = {0};
	uint32_t count;

	if (argc == 2 && !strcmp(argv[1], "levels")) {
		print_levels();
		return 0;
	}
	o = options_parse(argc, argv);
	count = (uint32_t)(argc - o.first_spec);
	if (o.store)
		kv_load(&kv, o.store);
	else
		kv_make(&kv, o.layers, o.chunks);
	destination_open(&to, &kv, o.destination_bytes);
	for (uint32_t i = 0; i < count; i++) {
		contender_open(&contenders[i], argv[(uint32_t)o.first_spec + i], &kv, &to);
		contender_size(&contenders[i], &kv, &to);
	}
	for (uint32_t run = 0; run < o.runs; run++)
		for (uint32_t i = 0; i < count; i++)
			contenders[i].seconds[run] =
			    contender_run(&contenders[i], &kv, &to, contenders[i].chunks);
	printf("{\"layers\": %u, \"channels\": %u, \"chunks\": %u, \"chunk_bytes\": %llu, "
	       "\"destination_bytes\": %llu, \"contenders\": [",
	       kv.shape.layers_count, kv.channels, kv.chunks_count,
	       (unsigned long long)kv.chunk_bytes,
	       (unsigned long long)(to.slots_count * kv.chunk_bytes));
	for (uint32_t i = 0; i < count; i++)
		report(&contenders[i], &kv, o.runs, !i);
	printf("\n]}\n");
	return 0;
}
