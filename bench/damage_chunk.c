/* SPDX-License-Identifier: Apache-2.0 */
/* damage_chunk.c - makes chunks from a seed, and damages them. */
#include "damage_chunk.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/crc.h"
#include "cli.h"
#include "codec/float.h"

#define MODEL        0x11
#define LONGER_BYTES 4096u
#define VARIANTS     1000u /* shapes repeat before this many chunks */

const char *const damage_names[DAMAGES_COUNT] = {
    "flipped bits",  "truncated",       "longer",        "zeroed range",
    "noise",         "shifted",         "swapped",       "foreign key",
    "foreign model", "changed lengths", "older version", "another position",
};

static uint64_t random_next(uint64_t *seed)
{
	uint64_t z = (*seed += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

struct ssv_key maker_key(const struct maker *maker, uint64_t n)
{
	uint64_t seed = maker->seed ^ (n * 2 + 1) << 20;
	struct ssv_key key;

	for (uint32_t i = 0; i < 4; i++)
		store_le64(key.bytes + 8 * i, random_next(&seed));
	return key;
}

struct chunk_shape maker_shape(const struct maker *maker, uint64_t n)
{
	static const uint16_t dims[] = {64, 80, 128};
	static const uint16_t tokens[] = {256, 64, 16};
	struct chunk_shape shape = {
	    .parts_count = 2, .layers_count = 1, .layers_total = 1, .ranks_count = 1};

	if (maker->uniform)
		n = 0;
	shape.dtype = (uint8_t)(n % 5);
	shape.tokens = tokens[n / 5 % 3];
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

int maker_make(struct maker *maker, uint64_t n)
{
	static const uint8_t codecs[] = {SSV_CODEC_R16, SSV_CODEC_DEFLATE, SSV_CODEC_STORED,
					 SSV_CODEC_ZSTD};
	const struct chunk_shape shape = maker_shape(maker, n);
	const struct encode_options options = {.tier = (uint8_t)(1 + n / 3 % 5),
					       .codec = codecs[n % 4],
					       .verbatim_tokens = n % 6 ? 0 : 4};
	struct chunk_identity identity = {.key = maker_key(maker, n),
					  .first_token = (uint32_t)n * 256};
	uint64_t seed = maker->seed + n, count = shape_kv_bytes(&shape) / dtype_bytes(shape.dtype);
	const uint8_t *next = maker->elements;
	struct encoder encoder;
	int err;

	maker_model(identity.model);
	for (uint64_t i = 0; i < count; i++) {
		uint64_t bits = random_next(&seed);
		float value = (float)(int16_t)bits + (float)(int16_t)(bits >> 16) +
			      (float)(int16_t)(bits >> 32);

		store_element(shape.dtype, maker->elements + i * dtype_bytes(shape.dtype),
			      value / 30000);
	}
	err = encoder_begin(&encoder, &identity, &shape, &options, maker->value,
			    maker->value_capacity, maker->scratch);
	for (uint32_t t = 0; t < shape_tensors(&shape) && !err; t++) {
		err = encoder_tensor(&encoder, next);
		next += shape_tensor_bytes(&shape, t % 2);
	}
	return err ? err : encoder_finish(&encoder, &maker->value_bytes);
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

/* Damage maker->value, which holds chunk n; returns its length now. */
static uint64_t damage_value(struct maker *maker, uint64_t n, enum damage damage, uint64_t *seed)
{
	uint8_t *bytes = maker->value;
	uint64_t count = maker->value_bytes;

	switch (damage) {
	case DAMAGE_BITS:
		for (uint64_t i = random_next(seed) % 8 + 1; i; i--)
			bytes[random_next(seed) % count] ^= (uint8_t)(1 << random_next(seed) % 8);
		return count;
	case DAMAGE_TRUNCATED:
		return 1 + random_next(seed) % (count - 1);
	case DAMAGE_LONGER:
		return count + 1 + random_next(seed) % LONGER_BYTES;
	case DAMAGE_SWAPPED:
		(void)maker_make(maker,
				 (n + 1 + random_next(seed) % (maker->chunks - 1)) % maker->chunks);
		return maker->value_bytes;
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

int maker_damage(struct maker *maker, uint64_t n, enum damage damage)
{
	uint64_t seed = maker->seed * 1000003 + n, sound_bytes, count;
	int err;

	do {
		err = maker_make(maker, n);
		if (err)
			return err;
		sound_bytes = maker->value_bytes;
		memcpy(maker->sound, maker->value, sound_bytes);
		count = damage_value(maker, n, damage, &seed);
	} while (count == sound_bytes && !memcmp(maker->sound, maker->value, count));
	maker->value_bytes = count;
	return 0;
}

void maker_model(uint8_t model[8])
{
	memset(model, MODEL, 8);
}

void maker_init(struct maker *maker, uint64_t seed, uint64_t chunks, int uniform)
{
	uint64_t scratch_bytes = align_up(codec_scratch_bytes(SSV_CHANNELS_MAX), 64);
	uint64_t value_bytes = 0;

	memset(maker, 0, sizeof(*maker));
	maker->seed = seed;
	maker->chunks = chunks;
	maker->uniform = uniform;
	for (uint64_t n = 0; n < VARIANTS; n++) {
		const struct chunk_shape shape = maker_shape(maker, n);

		maker->kv_bytes_max = u64_max(maker->kv_bytes_max, shape_kv_bytes(&shape));
		value_bytes = u64_max(value_bytes, shape_container_bytes_max(&shape));
	}
	maker->scratch = aligned_alloc(64, scratch_bytes);
	if (!maker->scratch || codec_scratch_init(maker->scratch, scratch_bytes, SSV_CHANNELS_MAX))
		exit(cli_fail(EXIT_BROKEN, "damage: out of memory"));
	maker->value_capacity = value_bytes + CONTAINER_SLACK_BYTES + LONGER_BYTES;
	maker->value = cli_alloc(maker->value_capacity);
	maker->sound = cli_alloc(maker->value_capacity);
	maker->elements = cli_alloc(maker->kv_bytes_max);
}

void maker_fini(struct maker *maker)
{
	codec_scratch_fini(maker->scratch);
	free(maker->scratch);
	free(maker->value);
	free(maker->sound);
	free(maker->elements);
	memset(maker, 0, sizeof(*maker));
}
