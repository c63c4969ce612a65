/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz.c - each SIMD level against the scalar kernels, on made-up chunks of every kind: the same
 * container from the same elements, the same elements from the same container, the same verdict on
 * a damaged one. Input and output end (or begin) at a page that may not be touched.
 *
 *	fuzz [LEVEL]
 *
 * Runs CASES cases a level, or for SSV_FUZZ_SECONDS a level. SSV_SEED chooses the cases; a finding
 * prints the seed that repeats it as the first case. On a damaged container that is accepted the
 * elements have to be the same too; of one that is refused only the verdict counts.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "codec/kernels.h"
#include "craft.h"

#define CASES         400u
#define ELEMENTS_MAX  40000u /* of a tensor */
#define MEMORY_BYTES  (2u << 20)
#define DAMAGED_TIMES 4u

/* Memory between two pages that fault. */
struct fenced {
	uint8_t *memory;
};

struct fuzz {
	struct random random;
	struct test_codec codec;
	const struct kernels *level;
	struct fenced elements, container[2], out[2];
	uint64_t cases, damaged, accepted, seed;
	struct chunk_shape shape;
	uint8_t *in;
};

static void finding(const struct fuzz *f, const char *what)
{
	fprintf(stderr,
		"fuzz: %s: %s; dtype %s heads %u dim %u tokens %u; repeat with SSV_SEED=%llu\n",
		f->level->name, what, dtype_name(f->shape.dtype), f->shape.parts[0].heads,
		f->shape.parts[0].dim, f->shape.tokens, (unsigned long long)f->seed);
	abort();
}

/* Where two containers differ first says in which part to look: header, table, meta, wire. */
static void first_difference(const uint8_t *a, uint64_t a_bytes, const uint8_t *b, uint64_t b_bytes)
{
	uint64_t at = 0;

	while (at < a_bytes && at < b_bytes && a[at] == b[at])
		at++;
	fprintf(stderr, "fuzz: %llu and %llu bytes, first difference at %llu\n",
		(unsigned long long)a_bytes, (unsigned long long)b_bytes, (unsigned long long)at);
}

static struct fenced fenced_open(void)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	uint8_t *memory = mmap(NULL, MEMORY_BYTES + 2 * page, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) ||
	    mprotect(memory + page + MEMORY_BYTES, page, PROT_NONE)) {
		perror("fuzz: memory");
		exit(1);
	}
	return (struct fenced){memory + page};
}

/* `bytes` that end where the memory ends. */
static uint8_t *fenced_last(const struct fenced *fenced, uint64_t bytes)
{
	ssv_assert(bytes <= MEMORY_BYTES);
	return fenced->memory + MEMORY_BYTES - bytes;
}

static uint8_t pick(struct random *random, const uint8_t *values, uint32_t count)
{
	return values[random_below(random, count)];
}

static struct chunk_shape random_shape(struct random *random)
{
	static const uint8_t dims[] = {64, 64, 64, 128, 128, 80, 96, 33, 1, 255};
	uint8_t dtype = (uint8_t)random_below(random, 5);
	uint32_t dim = random_below(random, 8) ? pick(random, dims, sizeof(dims))
					       : 1 + random_below(random, 300);
	uint32_t heads = 1 + random_below(random, 6), most = ELEMENTS_MAX / (heads * dim);
	uint32_t tokens = most < SSV_CHUNK_TOKENS ? most : SSV_CHUNK_TOKENS;
	struct chunk_shape shape;

	if (!random_below(random, 3))
		tokens = 1 + random_below(random, tokens);
	/* the three kinds of bf16 and fp16 that are in use more often than others */
	if (random_below(random, 2))
		dtype = SSV_DTYPE_BF16;
	shape = test_shape(dtype, heads, dim, tokens);
	shape.layers_count = shape.layers_total = 1;
	return shape;
}

/* Whole tokens or channels that stand out, now and then. */
static void roughen(struct fuzz *f, uint8_t *elements)
{
	uint32_t channels = part_channels(&f->shape.parts[0]);
	uint64_t count = (uint64_t)channels * f->shape.tokens * f->shape.parts_count;
	uint32_t times = random_below(&f->random, 4);

	for (uint32_t k = 0; k < times; k++) {
		static const float factors[] = {0,    1e-30f, 1e-9f, .01f, 30,
						1000, 1e6f,   1e20f, 3e38f};
		float factor = factors[random_below(&f->random, ARRAY_COUNT(factors))];
		uint64_t step = random_below(&f->random, 2) ? channels : 1;
		uint64_t at = random_below(&f->random, (uint32_t)count);
		uint64_t length = random_below(&f->random, 3) ? channels : 1;

		for (uint64_t i = 0; i < length && at < count; i++, at += step) {
			float x = element_value(f->shape.dtype, elements, at);

			element_store(f->shape.dtype, elements, at, x * factor);
		}
	}
}

static void random_elements(struct fuzz *f)
{
	uint64_t bytes = shape_kv_bytes(&f->shape);
	enum content content = (enum content)random_below(&f->random, CONTENTS_COUNT);
	uint8_t *elements = test_elements(&f->shape, content, random_next(&f->random));

	roughen(f, elements);
	f->in = fenced_last(&f->elements, bytes);
	memcpy(f->in, elements, bytes);
	free(elements);
}

/* Encode f->in at the end of its memory; the value is moved to a place of its own length. */
static uint64_t encode(struct fuzz *f, const struct kernels *level,
		       const struct encode_options *options, struct fenced *place)
{
	uint64_t capacity = shape_container_bytes_max(&f->shape) + CONTAINER_SLACK_BYTES, bytes;
	struct chunk_identity identity = {.first_token = 512};
	uint8_t *out = fenced_last(place, capacity);
	const uint8_t *elements = f->in;
	struct encoder encoder;
	int err;

	kernels_use(level);
	memset(out, 0, capacity);
	err =
	    encoder_begin(&encoder, &identity, &f->shape, options, out, capacity, f->codec.scratch);
	for (uint32_t i = 0; !err && i < shape_tensors(&f->shape); i++) {
		err = encoder_tensor(&encoder, elements);
		elements += shape_tensor_bytes(&f->shape, i % f->shape.parts_count);
	}
	if (!err)
		err = encoder_finish(&encoder, &bytes);
	if (err)
		finding(f, "encoding failed");
	memmove(fenced_last(place, bytes + CONTAINER_SLACK_BYTES), out,
		bytes + CONTAINER_SLACK_BYTES);
	return bytes;
}

/* How the decoded elements are to lie. */
struct plan {
	uint32_t transposed, skip, at_start, staged;
};

static void plan_tokens(const struct fuzz *f, const struct plan *plan, uint8_t *out,
			uint8_t *token[SSV_CHUNK_TOKENS], uint32_t *channel,
			struct decode_target *ret_target)
{
	uint32_t element = dtype_bytes(f->shape.dtype);
	uint32_t channels = part_channels(&f->shape.parts[0]), tokens = f->shape.tokens;
	uint32_t row = plan->transposed ? element : channels * element;

	for (uint32_t t = 0; t < tokens; t++)
		token[t] = plan->skip && t % plan->skip == 0 ? NULL : out + (uint64_t)t * row;
	for (uint32_t c = 0; c < channels; c++)
		channel[c] = c * (plan->transposed ? tokens * element : element);
	*ret_target = (struct decode_target){.token = token,
					     .channel = channel,
					     .run_channels = plan->transposed ? 1 : channels,
					     .token_stride = plan->transposed ? element : 0,
					     .is_staged = (uint8_t)plan->staged};
}

/* Decode a container whose value ends before its fence; 0, or the error. */
static int decode(struct fuzz *f, const struct kernels *level, const struct fenced *place,
		  uint64_t bytes, const struct plan *plan, struct fenced *out_place)
{
	static uint32_t channel[SSV_CHANNELS_MAX];
	uint8_t *token[ENTRY_TENSORS_MAX][SSV_CHUNK_TOKENS];
	const uint8_t *value = fenced_last(place, bytes + CONTAINER_SLACK_BYTES);
	struct decode_target targets[ENTRY_TENSORS_MAX];
	uint64_t kv = shape_kv_bytes(&f->shape), tensor = shape_tensor_bytes(&f->shape, 0);
	uint8_t *out = plan->at_start ? out_place->memory : fenced_last(out_place, kv);
	struct container_expect expect = {.value_bytes = bytes, .first_token = -1, .any_key = 1};
	enum container_fault fault;
	struct container container;
	int err;

	kernels_use(level);
	memset(out, 0x5c, kv);
	err = container_open(&container, value, bytes, &expect, &fault);
	if (!err && !shape_equal(&container.header.shape, &f->shape))
		return -EPROTO; /* damage made another chunk of it */
	for (uint32_t i = 0; !err && i < container.header.segments_count; i++) {
		struct container_entry entry;
		uint32_t first;

		container_entry(&container, i, &entry);
		first = entry.layer * f->shape.parts_count + entry.part;
		for (uint32_t t = 0; t < entry.tensors_count; t++)
			plan_tokens(f, plan, out + (first + t) * tensor, token[t], channel,
				    &targets[t]);
		err = segment_decode(&container, i, targets, f->codec.scratch, &fault);
	}
	return err;
}

/* Scalar and level decode the same bytes: same verdict, and the same elements if it is good. */
static int compare_decoding(struct fuzz *f, uint64_t bytes, const char *what)
{
	struct plan plan = {.transposed = !random_below(&f->random, 3),
			    .skip =
				random_below(&f->random, 3) ? 0 : 2 + random_below(&f->random, 5),
			    .at_start = random_below(&f->random, 2),
			    .staged = !random_below(&f->random, 3)};
	uint64_t kv = shape_kv_bytes(&f->shape);
	int expected = decode(f, &kernels_scalar, &f->container[0], bytes, &plan, &f->out[0]);
	int got = decode(f, f->level, &f->container[0], bytes, &plan, &f->out[1]);
	const uint8_t *a = plan.at_start ? f->out[0].memory : fenced_last(&f->out[0], kv);
	const uint8_t *b = plan.at_start ? f->out[1].memory : fenced_last(&f->out[1], kv);

	if (got != expected)
		finding(f, what);
	if (!got && memcmp(a, b, kv))
		finding(f, what);
	return got;
}

/* Change a few bytes of the table, the meta or an entry, and set the checksums right. */
static void damage(struct fuzz *f, uint64_t bytes)
{
	struct test_chunk chunk = {fenced_last(&f->container[0], bytes + CONTAINER_SLACK_BYTES),
				   bytes};
	struct container container;
	struct container_entry entry;
	uint32_t edits = 1 + random_below(&f->random, 6), index;

	test_open(&chunk, &container);
	index = random_below(&f->random, container.header.segments_count);
	container_entry(&container, index, &entry);
	for (uint32_t k = 0; k < edits; k++) {
		uint32_t where = random_below(&f->random, 8);
		uint64_t from = where ? entry.offset : 256, to = entry.offset + entry.wire_bytes;
		uint8_t *at;

		if (where > 3 && entry.class_bytes)
			to = entry.offset + entry.class_bytes;
		if (where > 6 && entry.class_bytes > 200)
			to = entry.offset + 200; /* lengths and states */
		at = chunk.bytes + from + random_below(&f->random, (uint32_t)(to - from));
		*at = random_below(&f->random, 2)
			  ? (uint8_t)random_next(&f->random)
			  : (uint8_t)(*at ^ 1u << random_below(&f->random, 8));
	}
	craft_reseal(&chunk, index);
}

static void fuzz_case(struct fuzz *f)
{
	static const uint8_t codecs[] = {SSV_CODEC_R16,     SSV_CODEC_R16,  SSV_CODEC_R16,
					 SSV_CODEC_DEFLATE, SSV_CODEC_ZSTD, SSV_CODEC_STORED};
	struct encode_options options = {
	    .tier = (uint8_t)(SSV_TIER_LOSSLESS + random_below(&f->random, 5)),
	    .codec = pick(&f->random, codecs, sizeof(codecs)),
	    .verbatim_tokens = (uint8_t)(random_below(&f->random, 3) ? 0 : 4)};
	uint64_t bytes, other;
	uint8_t *a, *b;

	options.trellis = options.codec == SSV_CODEC_R16 && !random_below(&f->random, 3);
	f->shape = random_shape(&f->random);
	random_elements(f);
	if (random_below(&f->random, 2))
		options.error_max[0] = options.error_max[1] = 1e9f; /* also what is a bad choice */
	bytes = encode(f, &kernels_scalar, &options, &f->container[0]);
	other = encode(f, f->level, &options, &f->container[1]);
	a = fenced_last(&f->container[0], bytes + CONTAINER_SLACK_BYTES);
	b = fenced_last(&f->container[1], other + CONTAINER_SLACK_BYTES);
	if (bytes != other || memcmp(a, b, bytes)) {
		first_difference(a, bytes, b, other);
		finding(f, "another container than scalar");
	}
	if (compare_decoding(f, bytes, "a sound container decodes differently"))
		finding(f, "a sound container is refused");
	for (uint32_t i = 0; i < DAMAGED_TIMES; i++) {
		damage(f, bytes);
		f->damaged++;
		f->accepted += !compare_decoding(f, bytes, "another verdict on damage");
		/* the next damage begins from a sound container */
		memcpy(a, b, bytes);
	}
	f->cases++;
}

/* Chunks that our encoder does not write: orders, factors, several entries a tensor. */
static void crafted_case(struct fuzz *f)
{
	struct craft craft = {.codec =
				  random_below(&f->random, 4) ? SSV_CODEC_R16 : SSV_CODEC_DEFLATE,
			      .flags = TENSOR_DELTA,
			      .exceptions = random_below(&f->random, 60),
			      .verbatim_tokens = 0,
			      .tensors_an_entry = 1,
			      .seed = random_next(&f->random)};
	struct test_chunk chunk;
	uint8_t *expected;

	/* what is not smaller than its elements, no container may hold */
	if (craft.exceptions)
		craft.exceptions += 20;
	craft.shape =
	    test_shape((uint8_t)random_below(&f->random, 3), 1 + random_below(&f->random, 4),
		       40 + random_below(&f->random, 100), 40 + random_below(&f->random, 24));
	craft.shape.layers_count = craft.shape.layers_total = 1;
	if (random_below(&f->random, 2))
		craft.flags |= random_below(&f->random, 2) ? TENSOR_OFFSET_I8 : TENSOR_OFFSET_I16;
	if (random_below(&f->random, 2))
		craft.flags |= TENSOR_FACTOR;
	if (random_below(&f->random, 2))
		craft.flags |= TENSOR_ORDER;
	craft.is_trellis = craft.codec == SSV_CODEC_R16 && random_below(&f->random, 2);
	f->shape = craft.shape;
	chunk = craft_chunk(&f->codec, &craft, &expected);
	if (chunk.bytes_count + CONTAINER_SLACK_BYTES <= MEMORY_BYTES) {
		memcpy(fenced_last(&f->container[0], chunk.bytes_count + CONTAINER_SLACK_BYTES),
		       chunk.bytes, chunk.bytes_count + CONTAINER_SLACK_BYTES);
		if (compare_decoding(f, chunk.bytes_count, "a crafted container differs"))
			finding(f, "a crafted container is refused");
		damage(f, chunk.bytes_count);
		f->damaged++;
		f->accepted += !compare_decoding(f, chunk.bytes_count, "another verdict on craft");
	}
	free(chunk.bytes);
	free(expected);
	f->cases++;
}

static void fuzz_level(struct fuzz *f, uint64_t seed, uint64_t seconds)
{
	uint64_t begin = clock_now_ns(), end = begin + seconds * NS_PER_S;
	double took;

	f->cases = f->damaged = f->accepted = 0;
	for (uint64_t i = 0; seconds ? clock_now_ns() < end : i < CASES; i++) {
		f->seed = seed + i;
		f->random.state = f->seed * 0x9e3779b97f4a7c15u;
		if (random_below(&f->random, 4))
			fuzz_case(f);
		else
			crafted_case(f);
	}
	took = (double)(clock_now_ns() - begin) * 1e-9;
	printf("fuzz: %s: %llu cases, %llu damaged (%llu accepted), %.0f s, no finding\n",
	       f->level->name, (unsigned long long)f->cases, (unsigned long long)f->damaged,
	       (unsigned long long)f->accepted, took);
	fflush(stdout);
	if (!f->accepted || f->accepted == f->damaged) {
		fprintf(stderr, "fuzz: damage is always accepted, or never\n");
		exit(1);
	}
}

int main(int argc, char **argv)
{
	static struct fuzz fuzz;
	const char *seconds = getenv("SSV_FUZZ_SECONDS");
	uint64_t seed = test_seed();

	if (argc > 2 || (argc == 2 && !kernels_find(argv[1]))) {
		fprintf(stderr, "usage: fuzz [LEVEL], of those that run on this machine\n");
		return 2;
	}
	test_codec_open(&fuzz.codec);
	fuzz.elements = fenced_open();
	for (uint32_t i = 0; i < 2; i++) {
		fuzz.container[i] = fenced_open();
		fuzz.out[i] = fenced_open();
	}
	for (uint32_t i = 0; (fuzz.level = kernels_at(i)); i++) {
		if (fuzz.level == &kernels_scalar ||
		    (argc == 2 && strcmp(argv[1], fuzz.level->name)))
			continue;
		fuzz_level(&fuzz, seed, seconds ? strtoull(seconds, NULL, 10) : 0);
	}
	test_codec_close(&fuzz.codec);
	return 0;
}
