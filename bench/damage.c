/* SPDX-License-Identifier: Apache-2.0 */
/*
 * damage.c - fills a store with chunks, damages every one differently, and reads them all back.
 *
 *	damage --store file:/tmp/kv --chunks 10000
 *
 * Three passes over N chunks of mixed shapes, types, tiers and back ends: all are read and decode
 *to what was stored; each is damaged by its own seeded corruption and all must be misses; what was
 * intact is put back, and all are read again. Every decode goes into memory between guards. A chunk
 * that passes after damage, a guard that changed or a wrong element ends the run with exit 1.
 *
 * Not among the corruptions: values or entropy-coded data changed by someone who also writes the
 * checksums again. That is forgery, which checksums cannot find (docs/container.md).
 */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/crc.h"
#include "chunk_io.h"
#include "cli.h"
#include "codec/float.h"
#include "store_io.h"

#define GUARD_BYTES   4096u
#define GUARD_PATTERN 0x5a
#define MODEL         0x11

static const char *option_store;
static int option_fill, option_keep, option_help;
static uint64_t option_chunks = 200, option_seed = 1;

static const struct arg args[] = {
    {"store", "URI", "where to", ARG_TEXT, &option_store, 0, 0},
    {"chunks", "N", "how many (default 200)", ARG_NUMBER, &option_chunks, 2, 10000000},
    {"seed", "N", "of chunks and damage (default 1)", ARG_NUMBER, &option_seed, 0, UINT64_MAX},
    {"fill", NULL, "only fill the store with sound chunks", ARG_FLAG, &option_fill, 0, 0},
    {"keep", NULL, "leave the damaged chunks in the store", ARG_FLAG, &option_keep, 0, 0},
    {"json", NULL, "answer with one JSON object", ARG_FLAG, &option_json, 0, 0},
    {"help", NULL, "explain the options", ARG_FLAG, &option_help, 0, 0},
    ARG_END,
};

enum damage {
	DAMAGE_BITS = 0, /* 1 to 8 flipped bits */
	DAMAGE_TRUNCATED,
	DAMAGE_LONGER,
	DAMAGE_ZEROED,   /* a range */
	DAMAGE_NOISE,    /* random bytes over a range */
	DAMAGE_SHIFTED,  /* bytes lost in the middle, the length kept */
	DAMAGE_SWAPPED,  /* another key's sound value */
	DAMAGE_FOREIGN,  /* the key in the header, checksums written again */
	DAMAGE_MODEL,    /* the model in the header, checksums written again */
	DAMAGE_LENGTHS,  /* a length or offset in header or table, checksums written again */
	DAMAGE_VERSION,  /* an older major version, checksums written again */
	DAMAGE_POSITION, /* another first token, checksums written again */
	DAMAGES_COUNT,
};

static const char *const damage_names[] = {
    "flipped bits",  "truncated",       "longer",        "zeroed range",
    "noise",         "shifted",         "swapped",       "foreign key",
    "foreign model", "changed lengths", "older version", "another position",
};

struct run {
	struct store_io store;
	void *scratch;
	uint8_t *guarded; /* GUARD_BYTES, elements, GUARD_BYTES */
	uint64_t guarded_elements;
	uint8_t *tokens[ENTRY_TENSORS_MAX][SSV_CHUNK_TOKENS];
	uint32_t channels[SSV_CHANNELS_MAX];
	uint8_t *elements, *value, *other;
	uint64_t value_capacity;
	uint32_t *sums; /* [chunks] checksum of what each decodes to */
	uint64_t by_damage[DAMAGES_COUNT], by_fault[64], value_bytes;
};

static uint64_t random_next(uint64_t *seed)
{
	uint64_t z = (*seed += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static struct ssv_key chunk_key(uint64_t n)
{
	uint64_t seed = option_seed ^ (n * 2 + 1) << 20;
	struct ssv_key key;

	for (uint32_t i = 0; i < 4; i++)
		store_le64(key.bytes + 8 * i, random_next(&seed));
	return key;
}

static struct chunk_shape chunk_shape(uint64_t n)
{
	static const uint16_t dims[] = {64, 80, 128};
	static const uint16_t tokens[] = {256, 64, 16};
	struct chunk_shape shape = {.dtype = (uint8_t)(n % 5),
				    .parts_count = 2,
				    .tokens = tokens[n / 5 % 3],
				    .layers_count = 1,
				    .layers_total = 1,
				    .ranks_count = 1};

	for (uint32_t p = 0; p < 2; p++)
		shape.parts[p] = (struct chunk_part){.role = p ? SSV_ROLE_V : SSV_ROLE_K,
						     .heads = (uint16_t)(1 + n % 2),
						     .dim = dims[n / 7 % 3]};
	return shape;
}

static void store_element(uint8_t dtype, uint8_t *out, float value)
{
	if (dtype == SSV_DTYPE_BF16)
		store_le16(out, bf16_from_f32(value));
	else if (dtype == SSV_DTYPE_FP16)
		store_le16(out, fp16_from_f32(value));
	else if (dtype == SSV_DTYPE_FP32)
		store_le32(out, f32_bits(value));
	else
		*out = dtype == SSV_DTYPE_E4M3 ? e4m3_from_f32(value) : e5m2_from_f32(value);
}

/* Chunk n as it is stored, in run->value. */
static int make_chunk(struct run *run, uint64_t n)
{
	static const uint8_t codecs[] = {SSV_CODEC_R16, SSV_CODEC_DEFLATE, SSV_CODEC_STORED,
					 SSV_CODEC_ZSTD};
	const struct chunk_shape shape = chunk_shape(n);
	const struct encode_options options = {.tier = (uint8_t)(1 + n / 3 % 5),
					       .codec = codecs[n % 4],
					       .verbatim_tokens = n % 6 ? 0 : 4};
	struct chunk_identity identity = {.key = chunk_key(n), .first_token = (uint32_t)n * 256};
	uint64_t seed = option_seed + n, count = shape_kv_bytes(&shape) / dtype_bytes(shape.dtype);
	const uint8_t *next = run->elements;
	struct encoder encoder;
	int err;

	memset(identity.model, MODEL, sizeof(identity.model));
	for (uint64_t i = 0; i < count; i++) {
		uint64_t bits = random_next(&seed);
		float value = (float)(int16_t)bits + (float)(int16_t)(bits >> 16) +
			      (float)(int16_t)(bits >> 32);

		store_element(shape.dtype, run->elements + i * dtype_bytes(shape.dtype),
			      value / 30000);
	}
	err = encoder_begin(&encoder, &identity, &shape, &options, run->value, run->value_capacity,
			    run->scratch);
	for (uint32_t t = 0; t < shape_tensors(&shape) && !err; t++) {
		err = encoder_tensor(&encoder, next);
		next += shape_tensor_bytes(&shape, t % 2);
	}
	return err ? err : encoder_finish(&encoder, &run->value_bytes);
}

static int guards_are_whole(const struct run *run)
{
	const uint8_t *after = run->guarded + GUARD_BYTES + run->guarded_elements;

	for (uint32_t i = 0; i < GUARD_BYTES; i++) {
		if (run->guarded[i] != GUARD_PATTERN || after[i] != GUARD_PATTERN)
			return 0;
	}
	return 1;
}

static int decode_entry(struct run *run, const struct container *container, uint32_t index,
			enum container_fault *ret_fault)
{
	const struct chunk_shape *shape = &container->header.shape;
	struct decode_target targets[ENTRY_TENSORS_MAX];
	struct container_entry entry;
	uint32_t element = dtype_bytes(shape->dtype), tensor;
	uint8_t *out = run->guarded + GUARD_BYTES;

	container_entry(container, index, &entry);
	tensor = (uint32_t)entry.layer * shape->parts_count + entry.part;
	for (uint32_t t = 0; t < tensor; t++)
		out += shape_tensor_bytes(shape, t % shape->parts_count);
	for (uint32_t t = 0; t < entry.tensors_count; t++) {
		uint32_t channels = part_channels(&shape->parts[(tensor + t) % 2]);

		for (uint32_t token = 0; token < shape->tokens; token++)
			run->tokens[t][token] = out + (uint64_t)token * channels * element;
		targets[t] = (struct decode_target){
		    .token = run->tokens[t], .channel = run->channels, .run_channels = channels};
		out += shape_tensor_bytes(shape, (tensor + t) % 2);
	}
	for (uint32_t c = 0; c < SSV_CHANNELS_MAX; c++)
		run->channels[c] = c * element;
	return segment_decode(container, index, targets, run->scratch, ret_fault);
}

/* Read chunk n as a fetch does. 0: decoded, *ret_sum says to what; -ENOENT: a miss. */
static int read_chunk(struct run *run, uint64_t n, uint32_t *ret_sum,
		      enum container_fault *ret_fault)
{
	const struct chunk_shape shape = chunk_shape(n);
	const struct ssv_key key = chunk_key(n);
	uint8_t model[8];
	struct container_expect expect = {
	    .key = key, .shape = &shape, .model = model, .first_token = (int64_t)n * 256};
	struct container container;
	int err = store_io_get(&run->store, &key);

	*ret_fault = CONTAINER_FAULT_NONE;
	if (err)
		return err;
	memset(model, MODEL, sizeof(model));
	run->guarded_elements = shape_kv_bytes(&shape);
	memset(run->guarded, GUARD_PATTERN, run->guarded_elements + (uint64_t)2 * GUARD_BYTES);
	expect.value_bytes = run->store.value_bytes;
	err = container_open(&container, run->store.value, expect.value_bytes, &expect, ret_fault);
	for (uint32_t i = 0; !err && i < container.header.segments_count; i++)
		err = decode_entry(run, &container, i, ret_fault);
	if (!guards_are_whole(run))
		return -EFAULT;
	if (err)
		return -ENOENT;
	*ret_sum = crc32c(0, run->guarded + GUARD_BYTES, run->guarded_elements);
	return 0;
}

/* ---- damage --------------------------------------------------------------------------------- */

static void reseal(uint8_t *bytes)
{
	uint64_t meta_end = (uint64_t)load_le32(bytes + 132) + load_le32(bytes + 136);

	store_le32(bytes + 140, crc32c(0, bytes + 256, meta_end - 256));
	store_le32(bytes + 252, crc32c(0, bytes, 252));
}

/* A length or offset, in header or table, becomes another one. */
static void change_length(uint8_t *bytes, uint64_t *seed)
{
	static const uint8_t header_fields[] = {12, 124, 128, 132, 136, 144};
	static const uint8_t entry_fields[] = {0, 4, 8, 12, 16, 32, 36};
	uint64_t roll = random_next(seed);
	uint32_t change = 1 + (uint32_t)(random_next(seed) % 1000);
	uint32_t entries = load_le32(bytes + 124);
	uint8_t *field;

	if (roll % 4 == 0) {
		/* Its own checksum only: table and meta are where they were. */
		field = bytes + header_fields[roll / 4 % ARRAY_COUNT(header_fields)];
		store_le32(field, load_le32(field) + change);
		store_le32(bytes + 252, crc32c(0, bytes, 252));
		return;
	}
	field = bytes + 256 + 48 * (roll / 4 % entries) +
		entry_fields[roll / 4096 % ARRAY_COUNT(entry_fields)];
	store_le32(field, load_le32(field) + (roll & 1 ? change : -change));
	reseal(bytes);
}

static uint64_t damage_range(uint8_t *bytes, uint64_t count, enum damage damage, uint64_t *seed)
{
	uint64_t at = random_next(seed) % count;
	uint64_t length = 1 + random_next(seed) % u64_min(count - at, 4096);

	switch (damage) {
	case DAMAGE_ZEROED:
		memset(bytes + at, 0, length);
		break;
	case DAMAGE_NOISE:
		for (uint64_t i = 0; i < length; i++)
			bytes[at + i] = (uint8_t)random_next(seed);
		break;
	default: /* DAMAGE_SHIFTED */
		memmove(bytes + at, bytes + at + length, count - at - length);
		memset(bytes + count - length, 0, length);
		break;
	}
	return count;
}

/* Damage run->value, which holds chunk n; returns its length now. */
static uint64_t damage_value(struct run *run, uint64_t n, enum damage damage, uint64_t *seed)
{
	uint8_t *bytes = run->value;
	uint64_t count = run->value_bytes;

	switch (damage) {
	case DAMAGE_BITS:
		for (uint64_t i = random_next(seed) % 8 + 1; i; i--)
			bytes[random_next(seed) % count] ^= (uint8_t)(1 << random_next(seed) % 8);
		return count;
	case DAMAGE_TRUNCATED:
		return 1 + random_next(seed) % (count - 1);
	case DAMAGE_LONGER:
		return count + 1 + random_next(seed) % GUARD_BYTES;
	case DAMAGE_SWAPPED:
		(void)make_chunk(run,
				 (n + 1 + random_next(seed) % (option_chunks - 1)) % option_chunks);
		return run->value_bytes;
	case DAMAGE_FOREIGN:
		bytes[24 + random_next(seed) % 32] ^= (uint8_t)(1 + random_next(seed) % 255);
		reseal(bytes);
		return count;
	case DAMAGE_MODEL:
		bytes[56 + random_next(seed) % 8] ^= (uint8_t)(1 + random_next(seed) % 255);
		reseal(bytes);
		return count;
	case DAMAGE_LENGTHS:
		change_length(bytes, seed);
		return count;
	case DAMAGE_VERSION:
		store_le16(bytes + 4, 0);
		reseal(bytes);
		return count;
	case DAMAGE_POSITION:
		store_le32(bytes + 72, load_le32(bytes + 72) + 1 + (uint32_t)(*seed % 1000));
		reseal(bytes);
		return count;
	default:
		return damage_range(bytes, count, damage, seed);
	}
}

/* Put chunk n damaged; tries again where damage by chance changed nothing. */
static int put_damaged(struct run *run, uint64_t n)
{
	enum damage damage = (enum damage)(n % DAMAGES_COUNT);
	uint64_t seed = option_seed * 1000003 + n, sound_bytes, count;
	const struct ssv_key key = chunk_key(n);
	int err;

	do {
		err = make_chunk(run, n);
		if (err)
			return err;
		sound_bytes = run->value_bytes;
		memcpy(run->other, run->value, sound_bytes);
		count = damage_value(run, n, damage, &seed);
	} while (count == sound_bytes && !memcmp(run->other, run->value, count));
	run->by_damage[damage]++;
	return store_io_put(&run->store, &key, run->value, count);
}

/* ---- the passes ----------------------------------------------------------------------------- */

static int put_sound(struct run *run, uint64_t n)
{
	const struct ssv_key key = chunk_key(n);
	int err = make_chunk(run, n);

	return err ? err : store_io_put(&run->store, &key, run->value, run->value_bytes);
}

static int put_all(struct run *run, const char *what, int (*put)(struct run *, uint64_t))
{
	int err = 0;

	for (uint64_t n = 0; n < option_chunks && !err; n++) {
		cli_progress(what, n, option_chunks);
		err = put(run, n);
	}
	cli_progress(what, option_chunks, option_chunks);
	return err ? cli_fail(EXIT_BROKEN, "damage: %s: %s", what, strerror(-err)) : 0;
}

/* All must decode to what they did before (or, the first time, decode at all). */
static int read_sound(struct run *run, const char *what, int first)
{
	for (uint64_t n = 0; n < option_chunks; n++) {
		enum container_fault fault;
		uint32_t sum;
		int err;

		cli_progress(what, n, option_chunks);
		err = read_chunk(run, n, &sum, &fault);
		if (err || (!first && sum != run->sums[n]))
			return cli_fail(EXIT_FOUND_BAD, "damage: %s: chunk %llu: %s", what,
					(unsigned long long)n,
					err ? container_fault_text(fault) : "wrong elements");
		run->sums[n] = sum;
	}
	cli_progress(what, option_chunks, option_chunks);
	return 0;
}

static int read_damaged(struct run *run, uint64_t *ret_misses)
{
	uint64_t misses = 0;

	for (uint64_t n = 0; n < option_chunks; n++) {
		enum container_fault fault;
		uint32_t sum = 0;
		int err;

		cli_progress("reading damaged", n, option_chunks);
		err = read_chunk(run, n, &sum, &fault);
		if (err != -ENOENT)
			return cli_fail(EXIT_FOUND_BAD, "damage: chunk %llu, %s: %s",
					(unsigned long long)n, damage_names[n % DAMAGES_COUNT],
					err ? strerror(-err) : "was decoded");
		misses++;
		run->by_fault[fault]++;
	}
	cli_progress("reading damaged", option_chunks, option_chunks);
	*ret_misses = misses;
	return 0;
}

static int answer(const struct run *run, uint64_t misses, uint64_t elapsed_ns)
{
	cJSON *object, *damages, *faults;

	if (!option_json) {
		for (uint32_t i = 0; i < DAMAGES_COUNT; i++)
			printf("damaged  %8llu  %s\n", (unsigned long long)run->by_damage[i],
			       damage_names[i]);
		for (uint32_t i = 0; i < ARRAY_COUNT(run->by_fault); i++) {
			if (run->by_fault[i])
				printf("refused  %8llu  %s\n", (unsigned long long)run->by_fault[i],
				       container_fault_text((enum container_fault)i));
		}
		printf(
		    "%llu chunks, %llu damaged, %llu misses, 0 wrong bytes (seed %llu, %.1f s)\n",
		    (unsigned long long)option_chunks, (unsigned long long)option_chunks,
		    (unsigned long long)misses, (unsigned long long)option_seed,
		    (double)elapsed_ns / 1e9);
		return EXIT_OK;
	}
	object = cli_object();
	damages = cli_object();
	faults = cli_object();
	cli_add_number(object, "chunks", (double)option_chunks);
	cli_add_number(object, "misses", (double)misses);
	cli_add_number(object, "wrong_bytes", 0);
	cli_add_number(object, "seed", (double)option_seed);
	cli_add_number(object, "seconds", (double)elapsed_ns / 1e9);
	for (uint32_t i = 0; i < DAMAGES_COUNT; i++)
		cli_add_number(damages, damage_names[i], (double)run->by_damage[i]);
	for (uint32_t i = 0; i < ARRAY_COUNT(run->by_fault); i++) {
		if (run->by_fault[i])
			cli_add_number(faults, container_fault_text((enum container_fault)i),
				       (double)run->by_fault[i]);
	}
	cli_add(object, "damage", damages);
	cli_add(object, "refused", faults);
	return cli_print_json(object, EXIT_OK);
}

static void run_init(struct run *run)
{
	uint64_t scratch_bytes = align_up(codec_scratch_bytes(SSV_CHANNELS_MAX), 64);
	uint64_t kv_bytes = 0, value_bytes = 0;

	for (uint64_t n = 0; n < 1000; n++) {
		const struct chunk_shape shape = chunk_shape(n);

		kv_bytes = u64_max(kv_bytes, shape_kv_bytes(&shape));
		value_bytes = u64_max(value_bytes, shape_container_bytes_max(&shape));
	}
	run->scratch = aligned_alloc(64, scratch_bytes);
	if (!run->scratch || codec_scratch_init(run->scratch, scratch_bytes, SSV_CHANNELS_MAX))
		exit(cli_fail(EXIT_BROKEN, "damage: out of memory"));
	run->value_capacity = value_bytes + 2 * GUARD_BYTES;
	run->value = cli_alloc(run->value_capacity);
	run->other = cli_alloc(run->value_capacity);
	run->elements = cli_alloc(kv_bytes);
	run->guarded = cli_alloc(kv_bytes + (uint64_t)2 * GUARD_BYTES);
	run->sums = cli_alloc(option_chunks * sizeof(*run->sums));
}

static void run_fini(struct run *run)
{
	codec_scratch_fini(run->scratch);
	free(run->scratch);
	free(run->value);
	free(run->other);
	free(run->elements);
	free(run->guarded);
	free(run->sums);
	store_io_close(&run->store);
}

int main(int argc, char **argv)
{
	static struct run run;
	char error[256];
	uint64_t misses = 0, start_ns = clock_now_ns();
	int err = args_parse(args, NULL, argc - 1, argv + 1, error, sizeof(error));

	if (err < 0)
		return cli_fail(EXIT_USAGE, "damage: %s", error);
	if (option_help) {
		puts("usage: damage [OPTIONS]\n\nDamage every chunk of a store; all must be "
		     "misses.\n");
		args_print(args);
		return EXIT_OK;
	}
	err = store_io_create(&run.store, "damage", option_store, 10000);
	if (err)
		return err;
	run_init(&run);
	err = put_all(&run, "filling", put_sound);
	if (!err)
		err = read_sound(&run, "reading", 1);
	if (!err && !option_fill) {
		err = put_all(&run, "damaging", put_damaged);
		if (!err)
			err = read_damaged(&run, &misses);
		if (!err && !option_keep)
			err = put_all(&run, "healing", put_sound);
		if (!err && !option_keep)
			err = read_sound(&run, "reading again", 0);
		if (!err)
			err = answer(&run, misses, clock_now_ns() - start_ns);
	}
	run_fini(&run);
	return err;
}
