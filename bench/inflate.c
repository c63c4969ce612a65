/* SPDX-License-Identifier: Apache-2.0 */
/*
 * inflate.c - what an inflate engine costs beside the library that it calls, called directly, on
 * streams as the codec writes them. Prints JSON.
 *
 * All contenders of one record size take turns of a few milliseconds, round after round, so that
 * whatever else the machine does meets them alike; a ratio is the median of the rounds' ratios.
 * Time is the thread's processor time: everything here works on the calling thread.
 * The same jobs, each to memory of its own, DEPTH in flight. Every output is compared.
 *
 * usage: bench_inflate [ROUNDS]
 */
#include <isa-l.h>
#include <libdeflate.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zlib.h>

#include "base/clock.h"
#include "inflate/inflate.h"
#include "streams.h"

#define DEPTH      16u
#define ROUNDS_MAX 1001u
#define TURN_BYTES (2u << 20)

struct set {
	struct stream streams[DEPTH];
	uint8_t *outs[DEPTH];
	uint32_t turns; /* of all the streams, a round */
};

struct contender {
	const char *name, *engine; /* engine: NULL: direct */
	int (*direct)(const struct stream *stream, uint8_t *out);
	uint32_t against; /* the library that it calls */
	struct inflate *inflate;
	int is_absent;
	double rate[ROUNDS_MAX];
};

static struct inflate_state isal_state;
static z_stream zlib_state;
static struct libdeflate_decompressor *libdeflate_state;

/* As the ISA-L driver does: state begun anew for each stream. */
static int direct_isal(const struct stream *stream, uint8_t *out)
{
	isal_inflate_init(&isal_state);
	isal_state.crc_flag = ISAL_DEFLATE;
	isal_state.next_in = stream->in;
	isal_state.avail_in = stream->in_bytes;
	isal_state.next_out = out;
	isal_state.avail_out = stream->out_bytes;
	return isal_inflate_stateless(&isal_state) != ISAL_DECOMP_OK ||
	       isal_state.total_out != stream->out_bytes;
}

static int direct_zlib(const struct stream *stream, uint8_t *out)
{
	if (inflateReset(&zlib_state) != Z_OK)
		return 1;
	zlib_state.next_in = stream->in;
	zlib_state.avail_in = stream->in_bytes;
	zlib_state.next_out = out;
	zlib_state.avail_out = stream->out_bytes;
	return inflate(&zlib_state, Z_FINISH) != Z_STREAM_END ||
	       zlib_state.total_out != stream->out_bytes;
}

static int direct_libdeflate(const struct stream *stream, uint8_t *out)
{
	return libdeflate_deflate_decompress(libdeflate_state, stream->in, stream->in_bytes, out,
					     stream->out_bytes, NULL) != LIBDEFLATE_SUCCESS;
}

static struct contender contenders[] = {
    {.name = "ISA-L called directly", .direct = direct_isal, .against = 0},
    {.name = "cpu", .engine = "cpu", .against = 0},
    {.name = "dpdk:compress_isal", .engine = "dpdk:compress_isal", .against = 0},
    {.name = "zlib called directly", .direct = direct_zlib, .against = 3},
    {.name = "dpdk:compress_zlib", .engine = "dpdk:compress_zlib", .against = 3},
    {.name = "libdeflate called directly", .direct = direct_libdeflate, .against = 5},
};

static int run_engine(struct inflate *inflate, const struct set *set)
{
	struct inflate_job jobs[DEPTH], *next[DEPTH], *done[DEPTH];
	uint32_t submitted = 0, finished = 0;
	int failed = 0;

	for (uint32_t i = 0; i < DEPTH; i++) {
		jobs[i] = (struct inflate_job){.in = set->streams[i].in,
					       .in_bytes = set->streams[i].in_bytes,
					       .out = set->outs[i],
					       .out_bytes = set->streams[i].out_bytes};
		next[i] = &jobs[i];
	}
	while (finished < DEPTH) {
		uint32_t n;

		submitted += inflate->ops->submit(inflate, next + submitted, DEPTH - submitted);
		n = inflate->ops->poll(inflate, done, DEPTH);
		for (uint32_t i = 0; i < n; i++)
			failed |= done[i]->status != 0;
		finished += n;
	}
	return failed;
}

static int turn(const struct contender *c, const struct set *set)
{
	int failed = 0;

	if (c->inflate)
		return run_engine(c->inflate, set);
	for (uint32_t i = 0; i < DEPTH; i++)
		failed |= c->direct(&set->streams[i], set->outs[i]);
	return failed;
}

static uint64_t thread_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static double measure(const struct contender *c, const struct set *set)
{
	const uint64_t begun_ns = thread_ns();

	for (uint32_t t = 0; t < set->turns; t++) {
		if (turn(c, set)) {
			fprintf(stderr, "bench_inflate: %s failed\n", c->name);
			exit(1);
		}
	}
	return (double)set->turns * DEPTH * set->streams[0].out_bytes /
	       (double)(thread_ns() - begun_ns) * 1e3;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static void quartiles(const double *values, uint32_t count, double ret[3])
{
	static double sorted[ROUNDS_MAX];

	memcpy(sorted, values, count * sizeof(*values));
	qsort(sorted, count, sizeof(*sorted), compare);
	for (uint32_t i = 0; i < 3; i++)
		ret[i] = sorted[(count - 1) * (i + 1) / 4];
}

static void print_contender(const struct contender *c, uint32_t rounds, int first)
{
	static double ratio[ROUNDS_MAX];
	double rate[3], share[3];

	for (uint32_t r = 0; r < rounds; r++)
		ratio[r] = c->rate[r] / contenders[c->against].rate[r];
	quartiles(c->rate, rounds, rate);
	quartiles(ratio, rounds, share);
	printf("%s\n    {\"name\": \"%s\", \"MB_per_s\": [%.1f, %.1f, %.1f], \"against\": \"%s\", "
	       "\"ratio\": [%.4f, %.4f, %.4f]}",
	       first ? "" : ",", c->name, rate[0], rate[1], rate[2], contenders[c->against].name,
	       share[0], share[1], share[2]);
}

static void run_size(uint32_t bytes, uint32_t rounds, int first)
{
	struct set set = {.turns = (uint32_t)u64_max(1, TURN_BYTES / (DEPTH * (uint64_t)bytes))};
	uint64_t in_bytes = 0;

	for (uint32_t i = 0; i < DEPTH; i++) {
		stream_make(&set.streams[i], STREAM_HUFFMAN, bytes, i);
		set.outs[i] = malloc(bytes);
		ssv_assert(set.outs[i]);
		in_bytes += set.streams[i].in_bytes;
	}
	for (uint32_t c = 0; c < ARRAY_COUNT(contenders); c++) {
		if (contenders[c].is_absent)
			continue;
		(void)measure(&contenders[c], &set);
		for (uint32_t i = 0; i < DEPTH; i++) {
			ssv_assert(!memcmp(set.outs[i], set.streams[i].out, bytes));
			memset(set.outs[i], 0, bytes);
		}
	}
	for (uint32_t r = 0; r < rounds; r++)
		for (uint32_t c = 0; c < ARRAY_COUNT(contenders); c++)
			if (!contenders[c].is_absent)
				contenders[c].rate[r] = measure(&contenders[c], &set);
	printf("%s\n  {\"record_bytes\": %u, \"compressed\": %.4f, \"rounds\": %u, "
	       "\"contenders\": [",
	       first ? "" : ",", bytes, (double)in_bytes / DEPTH / bytes, rounds);
	for (uint32_t c = 0; c < ARRAY_COUNT(contenders); c++)
		if (!contenders[c].is_absent)
			print_contender(&contenders[c], rounds, c == 0);
	printf("]}");
	for (uint32_t i = 0; i < DEPTH; i++) {
		stream_free(&set.streams[i]);
		free(set.outs[i]);
	}
}

int main(int argc, char **argv)
{
	static const uint32_t sizes[] = {32768, 65536, 131072, 262144, 1048576};
	const uint32_t rounds =
	    argc > 1 ? (uint32_t)u64_min(strtoul(argv[1], NULL, 0), ROUNDS_MAX) : 31;
	char error[SSV_ERROR_TEXT_MAX];

	libdeflate_state = libdeflate_alloc_decompressor();
	if (!rounds || !libdeflate_state || inflateInit2(&zlib_state, -15) != Z_OK)
		return 1;
	for (uint32_t c = 0; c < ARRAY_COUNT(contenders); c++) {
		const struct inflate_config config = {
		    .name = contenders[c].engine, .depth = DEPTH, .handles = 1};

		if (config.name && inflate_open(&config, &contenders[c].inflate, error)) {
			fprintf(stderr, "bench_inflate: without %s: %s\n", config.name, error);
			contenders[c].is_absent = 1;
		}
	}
	printf("[");
	for (uint32_t i = 0; i < ARRAY_COUNT(sizes); i++) {
		run_size(sizes[i], rounds, i == 0);
		fflush(stdout);
	}
	printf("\n]\n");
	return 0;
}
