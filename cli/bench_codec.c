/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_codec.c - `shadowserve bench codec`: ratio, error and speed of each tier and back end, on
 * this machine and on one core.
 *
 * The KV is made up (made_up.h). Ratios of a model's own KV are what `inspect` and `verify` show.
 */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "chunk_io.h"
#include "cli.h"
#include "made_up.h"

static const char *option_tier, *option_codec, *option_dtype = "bf16";
static uint64_t option_layers = 4, option_heads = 8, option_dim = 128, option_tokens = 256;
static uint64_t option_time = 300, option_seed = 1;

static const struct arg bench_args[] = {
    {"tier", "NAME", "lossless, high, standard, compact or tiny (default: each)", ARG_TEXT,
     &option_tier, 0, 0},
    {"codec", "NAME", "stored, deflate, r16 or zstd (default: each)", ARG_TEXT, &option_codec, 0,
     0},
    {"dtype", "NAME", "bf16, fp16, fp32, e4m3 or e5m2 (default bf16)", ARG_TEXT, &option_dtype, 0,
     0},
    {"layers", "N", "layers of the chunk (default 4)", ARG_NUMBER, &option_layers, 1, 512},
    {"heads", "N", "KV heads (default 8)", ARG_NUMBER, &option_heads, 1, SSV_HEADS_MAX},
    {"dim", "N", "channels a head (default 128)", ARG_NUMBER, &option_dim, 1, SSV_CHANNELS_MAX},
    {"tokens", "N", "tokens of the chunk (default 256)", ARG_NUMBER, &option_tokens, 1,
     SSV_CHUNK_TOKENS},
    {"time", "MS", "measure each for this long (default 300)", ARG_NUMBER, &option_time, 1, 60000},
    {"seed", "N", "of the made-up KV (default 1)", ARG_NUMBER, &option_seed, 0, UINT64_MAX},
    ARG_END,
};

struct bench {
	struct chunk_shape shape;
	struct chunk_io io;
	uint8_t *elements, *container;
	uint64_t kv_bytes, capacity, value_bytes;
};

struct result {
	const char *tier, *codec;
	double ratio, error, encode_rate, decode_rate;
	int exact;
};

static void make_elements(struct bench *b)
{
	uint8_t *out = b->elements;

	for (uint32_t t = 0; t < shape_tensors(&b->shape); t++) {
		made_up_tensor(&b->shape, t, option_seed, out);
		out += shape_tensor_bytes(&b->shape, t % b->shape.parts_count);
	}
}

static int encode_once(struct bench *b, uint8_t tier, uint8_t codec)
{
	const struct encode_options options = {.tier = tier, .codec = codec};
	const struct chunk_identity identity = {.key = {{1}}};
	const uint8_t *elements = b->elements;
	struct encoder encoder;
	int err = encoder_begin(&encoder, &identity, &b->shape, &options, b->container, b->capacity,
				b->io.scratch);

	for (uint32_t t = 0; t < shape_tensors(&b->shape) && !err; t++) {
		err = encoder_tensor(&encoder, elements);
		elements += shape_tensor_bytes(&b->shape, t % b->shape.parts_count);
	}
	return err ? err : encoder_finish(&encoder, &b->value_bytes);
}

/* Encode, then decode, each for the time given. */
static int measure(struct bench *b, uint8_t tier, uint8_t codec, struct result *result)
{
	uint64_t start_ns = clock_now_ns(), end_ns = start_ns + option_time * NS_PER_MS, now_ns;
	enum container_fault fault;
	struct container container;
	uint64_t rounds = 0;
	int err = 0;

	do {
		err = encode_once(b, tier, codec);
		rounds++;
		now_ns = clock_now_ns();
	} while (!err && now_ns < end_ns);
	if (err)
		return err;
	result->encode_rate = (double)(b->kv_bytes * rounds) / (double)(now_ns - start_ns);
	start_ns = now_ns;
	end_ns = start_ns + option_time * NS_PER_MS;
	rounds = 0;
	do {
		err = chunk_io_open(&container, b->container, b->value_bytes, NULL, &fault);
		if (!err)
			err = chunk_io_decode(&b->io, &container, &fault);
		rounds++;
		now_ns = clock_now_ns();
	} while (!err && now_ns < end_ns);
	if (err)
		return err;
	result->decode_rate = (double)(b->kv_bytes * rounds) / (double)(now_ns - start_ns);
	result->ratio = (double)b->kv_bytes / (double)b->value_bytes;
	result->error = fmax(container.header.error[0], container.header.error[1]);
	result->exact = !memcmp(b->io.elements, b->elements, b->kv_bytes);
	result->tier = tier_name(container.header.tier);
	result->codec = codec_name(codec);
	return 0;
}

static void print_result(const struct result *r, cJSON *results)
{
	if (option_json) {
		cJSON *object = cli_object();

		cli_add_text(object, "tier", r->tier);
		cli_add_text(object, "codec", r->codec);
		cli_add_number(object, "ratio", r->ratio);
		cli_add_number(object, "relative_error", r->error);
		cli_add_bool(object, "exact", r->exact);
		cli_add_number(object, "encode_gb_s", r->encode_rate);
		cli_add_number(object, "decode_gb_s", r->decode_rate);
		cJSON_AddItemToArray(results, object);
		return;
	}
	printf("%-9s %-8s %7.3f  %10.4g  %-5s %8.3f %8.3f\n", r->tier, r->codec, r->ratio, r->error,
	       r->exact ? "yes" : "no", r->encode_rate, r->decode_rate);
	fflush(stdout);
}

static int bench_all(struct bench *b, uint8_t only_tier, uint8_t only_codec)
{
	static const uint8_t codecs[] = {SSV_CODEC_STORED, SSV_CODEC_DEFLATE, SSV_CODEC_R16,
					 SSV_CODEC_ZSTD};
	cJSON *results = cli_array(), *object;
	struct result result;
	int err;

	if (!option_json)
		printf("one core, %s KV, GB/s of KV\n"
		       "tier      codec      ratio       error  exact   encode   decode\n",
		       option_dtype);
	for (uint8_t tier = SSV_TIER_LOSSLESS; tier <= SSV_TIER_TINY; tier++) {
		for (uint32_t c = 0; c < ARRAY_COUNT(codecs); c++) {
			if ((only_tier && tier != only_tier) ||
			    (only_codec && codecs[c] != only_codec) || !codec_name(codecs[c]) ||
			    (codecs[c] == SSV_CODEC_STORED && !only_tier && tier > 1))
				continue;
			err = measure(b, tier, codecs[c], &result);
			if (err) {
				cJSON_Delete(results);
				return cli_fail(EXIT_BROKEN, "bench codec: %s with %s: %s",
						tier_name(tier), codec_name(codecs[c]),
						strerror(-err));
			}
			print_result(&result, results);
		}
	}
	if (!option_json) {
		cJSON_Delete(results);
		return EXIT_OK;
	}
	object = cli_object();
	cli_add_text(object, "dtype", option_dtype);
	cli_add_number(object, "kv_bytes", (double)b->kv_bytes);
	cli_add(object, "results", results);
	return cli_print_json(object, EXIT_OK);
}

static int parse_dtype(const char *name, uint8_t *ret_dtype)
{
	for (uint8_t d = SSV_DTYPE_BF16; d <= SSV_DTYPE_E5M2; d++) {
		if (!strcmp(dtype_name(d), name)) {
			*ret_dtype = d;
			return 0;
		}
	}
	return -EINVAL;
}

static int run_bench(int argc, char **argv)
{
	struct bench b = {.shape = {.parts_count = 2, .ranks_count = 1}};
	uint8_t tier = option_tier ? tier_parse(option_tier) : 0;
	uint8_t codec = option_codec ? codec_parse(option_codec) : 0;
	const char *why = NULL;
	int err;

	(void)argc;
	(void)argv;
	if (option_tier && !tier)
		return cli_fail(EXIT_USAGE,
				"bench codec: --tier \"%s\" is none of lossless, high, standard, "
				"compact, tiny",
				option_tier);
	if (option_codec && !codec)
		return cli_fail(EXIT_USAGE,
				"bench codec: --codec \"%s\" is none of stored, deflate, r16, zstd",
				option_codec);
	if (parse_dtype(option_dtype, &b.shape.dtype))
		return cli_fail(
		    EXIT_USAGE,
		    "bench codec: --dtype \"%s\" is none of bf16, fp16, fp32, e4m3, e5m2",
		    option_dtype);
	b.shape.tokens = (uint16_t)option_tokens;
	b.shape.layers_count = b.shape.layers_total = (uint16_t)option_layers;
	for (uint32_t p = 0; p < 2; p++)
		b.shape.parts[p] = (struct chunk_part){.role = p ? SSV_ROLE_V : SSV_ROLE_K,
						       .heads = (uint16_t)option_heads,
						       .dim = (uint16_t)option_dim};
	if (shape_check(&b.shape, &why))
		return cli_fail(EXIT_USAGE, "bench codec: %s", why);
	b.kv_bytes = shape_kv_bytes(&b.shape);
	b.capacity = shape_container_bytes_max(&b.shape) + CONTAINER_SLACK_BYTES;
	b.elements = cli_alloc(b.kv_bytes);
	b.container = cli_alloc(b.capacity);
	chunk_io_init(&b.io);
	make_elements(&b);
	err = bench_all(&b, tier, codec);
	chunk_io_fini(&b.io);
	free(b.container);
	free(b.elements);
	return err;
}

const struct command bench_codec_command = {
    .name = "bench codec",
    .operands = "",
    .summary = "ratio and speed of every tier and back end on this machine",
    .text = "Encode and decode a made-up chunk with each tier and back end, on one core, checks\n"
	    "included. Ratios are of made-up KV; speeds are this machine's.\n\n"
	    "  shadowserve bench codec\n"
	    "  shadowserve bench codec --tier standard --codec r16 --time 2000\n"
	    "  shadowserve bench codec --dtype fp16 --heads 4 --dim 64 --json",
    .args = bench_args,
    .run = run_bench,
};
