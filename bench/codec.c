/* SPDX-License-Identifier: Apache-2.0 */
/*
 * codec.c - bench_codec: ratio, error and speed of every tier and back end on a KV dump, as JSON.
 *
 *	bench_codec FILE [RUNS [TIER [CODEC [OUT]]]]
 *
 * FILE is a dump of tests/codec/make_kv.py; its whole chunks are encoded and decoded one after
 * another on one core, RUNS times (5). classes_gb_s is checksum and back end without dequantising,
 * library_gb_s (deflate) is libdeflate alone on the same class data. Speeds are medians, in GB of
 * uncompressed KV a second of processor time. The decoded chunks lie in one warm buffer of a
 * chunk's size, as pages of an engine would. OUT gets the decoded KV as a dump (part_quality.py).
 */
#include <libdeflate.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "codec/reader.h"
#include "cpu_time.h"

#define DUMP_HEADER_BYTES 36u
#define RUNS_MAX          101u
#define CHUNKS_MAX        4096u

struct bench {
	struct chunk_shape shape;
	uint8_t *dump; /* [layer][part][token][channel] */
	uint32_t dump_tokens, first_token, chunks_count, runs;
	uint8_t *elements; /* [chunk]: canonical order */
	uint8_t *out;
	void *scratch;
	struct value {
		uint8_t *bytes;
		uint64_t bytes_count;
	} values[CHUNKS_MAX];
};

struct result {
	double encode_s, decode_s, classes_s, library_s, error[2];
	uint64_t wire_bytes;
	uint32_t wrong;
};

static void die(const char *what, const char *name)
{
	fprintf(stderr, "bench_codec: %s: %s\n", what, name);
	exit(2);
}

static void *need(void *memory)
{
	if (!memory)
		die("out of memory", "malloc");
	return memory;
}

static void dump_read(struct bench *bench, const char *path)
{
	uint8_t head[DUMP_HEADER_BYTES];
	uint64_t bytes;
	FILE *file = fopen(path, "rb");

	if (!file || fread(head, 1, sizeof(head), file) != sizeof(head) ||
	    memcmp(head, "SSVKVD01", 8))
		die("not a KV dump", path);
	bench->shape.dtype = (uint8_t)load_le32(head + 8);
	bench->shape.layers_count = bench->shape.layers_total = (uint16_t)load_le32(head + 12);
	bench->shape.parts_count = (uint8_t)load_le32(head + 16);
	bench->dump_tokens = load_le32(head + 20);
	bench->first_token = load_le32(head + 32);
	bench->shape.tokens = SSV_CHUNK_TOKENS;
	bench->shape.ranks_count = 1;
	for (uint32_t p = 0; p < bench->shape.parts_count && p < SSV_PARTS_MAX; p++) {
		bench->shape.parts[p].role = p ? SSV_ROLE_V : SSV_ROLE_K;
		bench->shape.parts[p].heads = (uint16_t)load_le32(head + 24);
		bench->shape.parts[p].dim = (uint16_t)load_le32(head + 28);
	}
	bench->chunks_count = bench->dump_tokens / SSV_CHUNK_TOKENS;
	if (shape_check(&bench->shape, NULL) || !bench->chunks_count ||
	    bench->chunks_count > CHUNKS_MAX)
		die("shape out of range", path);
	bytes = shape_kv_bytes(&bench->shape) / SSV_CHUNK_TOKENS * bench->dump_tokens;
	bench->dump = need(malloc(bytes));
	if (fread(bench->dump, 1, bytes, file) != bytes)
		die("shorter than its header says", path);
	fclose(file);
}

/* Put the chunk just decoded where it came from. */
static void chunk_return(struct bench *bench, uint32_t chunk)
{
	uint64_t tensor = shape_tensor_bytes(&bench->shape, 0);
	uint64_t dump_tensor = tensor / SSV_CHUNK_TOKENS * bench->dump_tokens;

	for (uint32_t t = 0; t < shape_tensors(&bench->shape); t++)
		memcpy(bench->dump + t * dump_tensor + chunk * tensor, bench->out + t * tensor,
		       tensor);
}

static void dump_write(const struct bench *bench, const char *from, const char *path)
{
	uint64_t bytes = shape_kv_bytes(&bench->shape) / SSV_CHUNK_TOKENS * bench->dump_tokens;
	uint8_t head[DUMP_HEADER_BYTES];
	FILE *in = fopen(from, "rb"), *out = fopen(path, "wb");

	if (!in || !out || fread(head, 1, sizeof(head), in) != sizeof(head) ||
	    fwrite(head, 1, sizeof(head), out) != sizeof(head) ||
	    fwrite(bench->dump, 1, bytes, out) != bytes || fclose(out))
		die("cannot write", path);
	fclose(in);
}

/* Cut the dump into chunks of canonical order. */
static void chunks_cut(struct bench *bench)
{
	uint32_t tensors = shape_tensors(&bench->shape);
	uint64_t tensor = shape_tensor_bytes(&bench->shape, 0);
	uint64_t dump_tensor = tensor / SSV_CHUNK_TOKENS * bench->dump_tokens;
	uint64_t chunk = shape_kv_bytes(&bench->shape);

	bench->elements = need(malloc(chunk * bench->chunks_count));
	for (uint32_t c = 0; c < bench->chunks_count; c++)
		for (uint32_t t = 0; t < tensors; t++)
			memcpy(bench->elements + c * chunk + t * tensor,
			       bench->dump + t * dump_tensor + c * tensor, tensor);
	bench->out = need(malloc(chunk));
	for (uint32_t c = 0; c < bench->chunks_count; c++)
		bench->values[c].bytes =
		    need(malloc(shape_container_bytes_max(&bench->shape) + CONTAINER_SLACK_BYTES));
}

static void encode_chunk(struct bench *bench, uint32_t chunk, uint8_t tier, uint8_t codec)
{
	const struct chunk_shape *shape = &bench->shape;
	uint32_t first_token = bench->first_token + chunk * SSV_CHUNK_TOKENS;
	struct chunk_identity identity = {.first_token = first_token};
	struct encode_options options = {
	    .tier = tier, .codec = codec, .verbatim_tokens = first_token ? 0 : 4};
	const uint8_t *elements = bench->elements + chunk * shape_kv_bytes(shape);
	struct value *value = &bench->values[chunk];
	struct encoder encoder;
	int err;

	err =
	    encoder_begin(&encoder, &identity, shape, &options, value->bytes,
			  shape_container_bytes_max(shape) + CONTAINER_SLACK_BYTES, bench->scratch);
	for (uint32_t t = 0; !err && t < shape_tensors(shape); t++) {
		err = encoder_tensor(&encoder, elements);
		elements += shape_tensor_bytes(shape, t % shape->parts_count);
	}
	if (!err)
		err = encoder_finish(&encoder, &value->bytes_count);
	if (err)
		die("encoding failed", strerror(-err));
}

static void decode_chunk(struct bench *bench, uint32_t chunk, struct container *container)
{
	static uint32_t channel[SSV_CHANNELS_MAX];
	uint8_t *token[SSV_CHUNK_TOKENS];
	struct container_expect expect = {
	    .value_bytes = bench->values[chunk].bytes_count, .first_token = -1, .any_key = 1};
	uint32_t element = dtype_bytes(bench->shape.dtype);
	uint32_t channels = part_channels(&bench->shape.parts[0]);
	struct decode_target target = {
	    .token = token, .channel = channel, .run_channels = channels};
	enum container_fault fault;
	int err;

	err = container_open(container, bench->values[chunk].bytes, expect.value_bytes, &expect,
			     &fault);
	for (uint32_t c = 0; c < channels; c++)
		channel[c] = c * element;
	for (uint32_t i = 0; !err && i < container->header.segments_count; i++) {
		uint8_t *out = bench->out + i * shape_tensor_bytes(&bench->shape, 0);

		for (uint32_t t = 0; t < SSV_CHUNK_TOKENS; t++)
			token[t] = out + (size_t)t * channels * element;
		err = segment_decode(container, i, &target, bench->scratch, &fault);
	}
	if (err)
		die("decoding failed", container_fault_text(fault));
}

/* The back end alone: class data to class planes, all entries of all chunks. */
static double time_classes(struct bench *bench)
{
	double seconds = 0;

	for (uint32_t c = 0; c < bench->chunks_count; c++) {
		struct container container;
		struct container_expect expect = {
		    .value_bytes = bench->values[c].bytes_count, .first_token = -1, .any_key = 1};
		enum container_fault fault;
		uint64_t begin;

		if (container_open(&container, bench->values[c].bytes, expect.value_bytes, &expect,
				   &fault))
			die("opening failed", container_fault_text(fault));
		begin = cpu_ns(CLOCK_PROCESS_CPUTIME_ID);
		for (uint32_t i = 0; i < container.header.segments_count; i++) {
			struct entry_reader reader;

			if (entry_reader_open(&reader, &container, i, bench->scratch) ||
			    entry_reader_classes(&reader))
				die("decoding failed", "classes");
		}
		seconds += (double)(cpu_ns(CLOCK_PROCESS_CPUTIME_ID) - begin) * 1e-9;
	}
	return seconds;
}

/* libdeflate by itself on the same class data. */
static double time_libdeflate(struct bench *bench)
{
	struct libdeflate_decompressor *inflate = need(libdeflate_alloc_decompressor());
	double seconds = 0;

	for (uint32_t c = 0; c < bench->chunks_count; c++) {
		struct container container = {.bytes = bench->values[c].bytes};
		struct container_expect expect = {
		    .value_bytes = bench->values[c].bytes_count, .first_token = -1, .any_key = 1};
		enum container_fault fault;
		uint64_t begin;

		if (container_open(&container, bench->values[c].bytes, expect.value_bytes, &expect,
				   &fault))
			die("opening failed", container_fault_text(fault));
		begin = cpu_ns(CLOCK_PROCESS_CPUTIME_ID);
		for (uint32_t i = 0; i < container.header.segments_count; i++) {
			struct container_entry entry;
			size_t count;

			container_entry(&container, i, &entry);
			if (entry.codec == WIRE_CODEC_DEFLATE &&
			    libdeflate_deflate_decompress(inflate, container.bytes + entry.offset,
							  entry.class_bytes, bench->out,
							  shape_kv_bytes(&bench->shape), &count))
				die("inflating failed", "libdeflate");
		}
		seconds += (double)(cpu_ns(CLOCK_PROCESS_CPUTIME_ID) - begin) * 1e-9;
	}
	libdeflate_free_decompressor(inflate);
	return seconds;
}

static int double_compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *values, uint32_t count)
{
	qsort(values, count, sizeof(*values), double_compare);
	return values[count / 2];
}

static struct result measure(struct bench *bench, uint8_t tier, uint8_t codec)
{
	uint64_t chunk = shape_kv_bytes(&bench->shape), begin;
	double encode[RUNS_MAX], decode[RUNS_MAX], classes[RUNS_MAX], library[RUNS_MAX];
	struct result result = {0};
	struct container container;

	for (uint32_t run = 0; run < bench->runs; run++) {
		begin = cpu_ns(CLOCK_PROCESS_CPUTIME_ID);
		for (uint32_t c = 0; c < bench->chunks_count; c++)
			encode_chunk(bench, c, tier, codec);
		encode[run] = (double)(cpu_ns(CLOCK_PROCESS_CPUTIME_ID) - begin) * 1e-9;
		begin = cpu_ns(CLOCK_PROCESS_CPUTIME_ID);
		for (uint32_t c = 0; c < bench->chunks_count; c++)
			decode_chunk(bench, c, &container);
		decode[run] = (double)(cpu_ns(CLOCK_PROCESS_CPUTIME_ID) - begin) * 1e-9;
		classes[run] = time_classes(bench);
		library[run] = codec == SSV_CODEC_DEFLATE ? time_libdeflate(bench) : 0;
	}
	for (uint32_t c = 0; c < bench->chunks_count; c++) {
		decode_chunk(bench, c, &container);
		chunk_return(bench, c);
		result.wire_bytes += bench->values[c].bytes_count;
		for (uint32_t p = 0; p < 2; p++)
			result.error[p] += container.header.error[p] / bench->chunks_count;
		if (container.header.tier == SSV_TIER_LOSSLESS)
			result.wrong += !!memcmp(bench->out, bench->elements + c * chunk, chunk);
	}
	result.encode_s = median(encode, bench->runs);
	result.decode_s = median(decode, bench->runs);
	result.classes_s = median(classes, bench->runs);
	result.library_s = median(library, bench->runs);
	return result;
}

static void report(const struct bench *bench, uint8_t tier, uint8_t codec, struct result r,
		   int first)
{
	double bytes = (double)shape_kv_bytes(&bench->shape) * bench->chunks_count;

	printf("%s\n  {\"tier\": \"%s\", \"codec\": \"%s\", \"ratio\": %.4f, "
	       "\"encode_gb_s\": %.3f, \"decode_gb_s\": %.3f, "
	       "\"classes_gb_s\": %.3f, \"library_gb_s\": %.3f, "
	       "\"error_k\": %.5f, \"error_v\": %.5f, \"wrong_chunks\": %u}",
	       first ? "" : ",", tier_name(tier), codec_name(codec), bytes / (double)r.wire_bytes,
	       bytes / r.encode_s * 1e-9, bytes / r.decode_s * 1e-9, bytes / r.classes_s * 1e-9,
	       r.library_s > 0 ? bytes / r.library_s * 1e-9 : 0, r.error[0], r.error[1], r.wrong);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	static struct bench bench;
	uint64_t bytes = codec_scratch_bytes(SSV_CHANNELS_MAX);
	char error[128];
	int first = 1;

	if (kernels_check(error, sizeof(error)))
		die("environment", error);
	if (argc < 2)
		die("usage", "bench_codec FILE [RUNS [TIER [CODEC [OUT]]]]");
	bench.runs = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 5;
	if (!bench.runs || bench.runs > RUNS_MAX)
		die("RUNS must be 1 to 101", argv[2]);
	dump_read(&bench, argv[1]);
	chunks_cut(&bench);
	bench.scratch = need(aligned_alloc(CACHE_LINE_BYTES, bytes));
	if (codec_scratch_init(bench.scratch, bytes, SSV_CHANNELS_MAX))
		die("scratch", "init");
	printf("{\"file\": \"%s\", \"dtype\": \"%s\", \"chunks\": %u, \"kernels\": \"%s\", "
	       "\"results\": [",
	       argv[1], dtype_name(bench.shape.dtype), bench.chunks_count, kernels_get()->name);
	for (uint8_t tier = SSV_TIER_LOSSLESS; tier <= SSV_TIER_TINY; tier++) {
		for (uint32_t i = 0; lossless_at(i); i++) {
			uint8_t codec = lossless_at(i)->codec;

			if ((argc > 3 && tier_parse(argv[3]) != tier) ||
			    (argc > 4 && codec_parse(argv[4]) != codec))
				continue;
			report(&bench, tier, codec, measure(&bench, tier, codec), first);
			first = 0;
		}
	}
	printf("\n]}\n");
	if (argc > 5)
		dump_write(&bench, argv[1], argv[5]);
	codec_scratch_fini(bench.scratch);
	return 0;
}
