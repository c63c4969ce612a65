/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_golden.c - committed containers: what was written once decodes to the same values for ever,
 * and stored and r16 encode to the same bytes on every machine. (deflate and zstd promise the
 * latter only for one version of their libraries.)
 *
 * SSV_GOLDEN_WRITE=1 writes the files again and prints the table of values.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/crc.h"
#include "codec/lossless.h"
#include "fixture.h"

#define PATH_BYTES 4096

static const uint8_t tiers[] = {SSV_TIER_LOSSLESS, SSV_TIER_STANDARD};

/* CRC-32C of what each standard container decodes to, by dtype. */
static const uint32_t standard_values[] = {0x769aa0a4, 0x50aa2550, 0x4477265c, 0x407b1d2a,
					   0xf80fd5a3};

static const char *folder;

static void golden_path(uint8_t codec, uint8_t tier, uint8_t dtype, char path[PATH_BYTES])
{
	snprintf(path, PATH_BYTES, "%s/%s-%s-%s.skvc", folder, codec_name(codec), tier_name(tier),
		 dtype_name(dtype));
}

static uint8_t *golden_input(uint8_t dtype, struct chunk_shape *ret_shape)
{
	uint32_t bytes = dtype_bytes(dtype);
	uint8_t *in;

	*ret_shape = test_shape(dtype, 2, 40, 64);
	ret_shape->layers_count = ret_shape->layers_total = 1;
	in = test_elements(ret_shape, CONTENT_KV, 7);
	/* a NaN, -0 and the least subnormal of each tensor */
	for (uint32_t tensor = 0; tensor < 2; tensor++) {
		uint8_t *at = in + (tensor * 5120 + 1234) * bytes;

		memset(at, 0xff, bytes);
		memset(at + bytes, 0, 2 * (size_t)bytes);
		at[2 * bytes - 1] = 0x80;
		at[2 * bytes] = 1;
	}
	return in;
}

static struct test_chunk golden_encode(struct test_codec *codec, uint8_t backend, uint8_t tier,
				       uint8_t dtype)
{
	struct encode_options options = {.tier = tier, .codec = backend, .verbatim_tokens = 4};
	struct chunk_shape shape;
	uint8_t *in = golden_input(dtype, &shape);
	struct test_chunk chunk = test_encode(codec, &shape, &options, in);

	free(in);
	return chunk;
}

/* Steps by a profile, with factors for K: of heads that differ by a factor of 16. */
static struct test_chunk golden_encode_profile(struct test_codec *codec, uint8_t dtype)
{
	static const float weight[2][2] = {{.25f, .015625f}, {.5f, .0625f}};
	struct encode_profile profile = {.hash = {1, 2, 3, 4, 5, 6, 7, 8},
					 .dtype = dtype,
					 .parts_count = 2,
					 .layers_count = 1,
					 .scale = {[SSV_TIER_COMPACT] = 1}};
	struct encode_options options = {.tier = SSV_TIER_COMPACT,
					 .codec = SSV_CODEC_R16,
					 .verbatim_tokens = 4,
					 .profile = &profile};
	uint8_t factor[80];
	struct chunk_shape shape;
	uint8_t *in = golden_input(dtype, &shape);
	struct test_chunk chunk;

	for (uint32_t i = 0; i < sizeof(factor); i++)
		factor[i] = (uint8_t)(120 + i * 5 % 17);
	for (uint32_t p = 0; p < 2; p++)
		profile.parts[p] = (struct profile_part){.role = shape.parts[p].role,
							 .heads = 2,
							 .dim = 40,
							 .weight = weight[p],
							 .factor = p ? NULL : factor};
	chunk = test_encode(codec, &shape, &options, in);
	free(in);
	return chunk;
}

static struct test_chunk golden_read(const char *path)
{
	struct test_chunk chunk = {.bytes = calloc(1, 1 << 20)};
	FILE *file = fopen(path, "rb");

	if (!file)
		fail_msg("cannot open %s", path);
	chunk.bytes_count = fread(chunk.bytes, 1, (1 << 20) - CONTAINER_SLACK_BYTES, file);
	fclose(file);
	return chunk;
}

static void golden_write(const char *path, const struct test_chunk *chunk)
{
	FILE *file = fopen(path, "wb");

	assert_non_null(file);
	assert_int_equal(fwrite(chunk->bytes, 1, chunk->bytes_count, file), chunk->bytes_count);
	fclose(file);
}

static void check(struct test_codec *codec, uint8_t backend, uint8_t tier, uint8_t dtype)
{
	char path[PATH_BYTES];
	struct test_chunk golden, ours = golden_encode(codec, backend, tier, dtype);
	struct container container;
	enum container_fault fault;
	struct chunk_shape shape;
	uint8_t *in = golden_input(dtype, &shape), *out = calloc(1, shape_kv_bytes(&shape));
	uint32_t crc;

	golden_path(backend, tier, dtype, path);
	if (getenv("SSV_GOLDEN_WRITE"))
		golden_write(path, &ours);
	golden = golden_read(path);
	test_open(&golden, &container);
	assert_int_equal(test_decode(codec, &container, out, &fault), 0);
	crc = crc32c(0, out, shape_kv_bytes(&shape));
	if (container.header.tier == SSV_TIER_LOSSLESS)
		assert_memory_equal(out, in, shape_kv_bytes(&shape));
	else if (getenv("SSV_GOLDEN_WRITE"))
		print_message("%s 0x%08x\n", path, crc);
	else
		assert_int_equal(crc, standard_values[dtype]);
	if (backend == SSV_CODEC_STORED || backend == SSV_CODEC_R16) {
		assert_int_equal(golden.bytes_count, ours.bytes_count);
		assert_memory_equal(golden.bytes, ours.bytes, ours.bytes_count);
	}
	free(golden.bytes);
	free(ours.bytes);
	free(in);
	free(out);
}

static void golden_containers_decode_and_encode(void **state)
{
	for (uint8_t dtype = SSV_DTYPE_BF16; dtype <= SSV_DTYPE_E5M2; dtype++)
		for (uint32_t t = 0; t < ARRAY_COUNT(tiers); t++)
			check(*state, SSV_CODEC_R16, tiers[t], dtype);
	for (uint32_t t = 0; t < ARRAY_COUNT(tiers); t++) {
		check(*state, SSV_CODEC_DEFLATE, tiers[t], SSV_DTYPE_BF16);
		check(*state, SSV_CODEC_ZSTD, tiers[t], SSV_DTYPE_BF16);
	}
	check(*state, SSV_CODEC_STORED, SSV_TIER_LOSSLESS, SSV_DTYPE_BF16);
}

static void a_profiles_container_is_the_same_everywhere(void **state)
{
	char path[PATH_BYTES];

	for (uint8_t dtype = SSV_DTYPE_BF16; dtype <= SSV_DTYPE_E5M2; dtype++) {
		struct test_chunk golden, ours = golden_encode_profile(*state, dtype);
		struct container container;

		snprintf(path, sizeof(path), "%s/r16-profile-%s.skvc", folder, dtype_name(dtype));
		if (getenv("SSV_GOLDEN_WRITE"))
			golden_write(path, &ours);
		golden = golden_read(path);
		test_open(&golden, &container);
		assert_int_equal(golden.bytes_count, ours.bytes_count);
		assert_memory_equal(golden.bytes, ours.bytes, ours.bytes_count);
		free(golden.bytes);
		free(ours.bytes);
	}
}

/* What scratch memory held before has no influence. */
static void encoding_does_not_depend_on_history(void **state)
{
	struct test_codec *codec = *state;
	struct test_codec fresh;

	for (uint8_t dtype = SSV_DTYPE_BF16; dtype <= SSV_DTYPE_E5M2; dtype++) {
		for (uint32_t b = 0; lossless_at(b); b++) {
			uint8_t backend = lossless_at(b)->codec;
			struct test_chunk a, other;

			test_codec_open(&fresh);
			a = golden_encode(codec, backend, SSV_TIER_COMPACT, dtype);
			other = golden_encode(&fresh, backend, SSV_TIER_COMPACT, dtype);
			assert_int_equal(a.bytes_count, other.bytes_count);
			assert_memory_equal(a.bytes, other.bytes, a.bytes_count);
			free(a.bytes);
			free(other.bytes);
			test_codec_close(&fresh);
		}
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(golden_containers_decode_and_encode),
	    cmocka_unit_test(a_profiles_container_is_the_same_everywhere),
	    cmocka_unit_test(encoding_does_not_depend_on_history),
	};

	if (argc != 2) {
		fprintf(stderr, "usage: test_golden FOLDER\n");
		return 2;
	}
	folder = argv[1];
	return cmocka_run_group_tests(tests, test_scratch_open, test_scratch_close);
}
