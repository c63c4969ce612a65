/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_roundtrip.c - a chunk stored from one layout comes back in every other: bit-exact when
 * lossless, the same values in every layout and near the source otherwise; through both ways.
 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "chunk/builder.h"
#include "rig.h"

static const uint32_t blocks[16] = {3, 9, 1, 14, 5, 12, 7, 0, 2, 15, 4, 11, 6, 13, 8, 10};

static uint32_t blocks_of_chunk(const struct test_shape *shape)
{
	return SSV_CHUNK_TOKENS / shape->block_tokens;
}

static void store_one(struct rig *rig, const struct test_region *region, uint32_t chunk,
		      uint8_t tier, uint8_t codec)
{
	const struct ssv_key key = chunk_key(chunk);
	const struct ssv_request request = {
	    .op = SSV_OP_STORE,
	    .tier = tier,
	    .codec = codec,
	    .region = region->region,
	    .keys = &key,
	    .keys_count = 1,
	    .blocks = blocks,
	    .blocks_count = blocks_of_chunk(&region->shape),
	};

	region_fill(region, chunk, 0, blocks, blocks_of_chunk(&region->shape));
	assert_int_equal(rig_request(rig, region->session, &request)->tokens, 256);
	rig_flush(rig, region->session);
}

static void fetch_one(struct rig *rig, const struct test_region *region, uint32_t chunk)
{
	const struct ssv_key key = chunk_key(chunk);

	region_paint(region);
	assert_int_equal(
	    rig_fetch(rig, region, &key, 1, blocks, blocks_of_chunk(&region->shape), 0, 0)->tokens,
	    256);
	assert_int_equal(region_painted_over(region, blocks, blocks_of_chunk(&region->shape)), 0);
}

static void every_layout_reads_what_every_other_stored(void **state)
{
	static const struct test_shape shape = {SSV_DTYPE_BF16, 2, 3, 32, 32, 16};
	struct plane_config config = rig_config("memory:roundtrip-1");
	struct test_region regions[2 * PACKINGS_COUNT];
	struct rig rig;

	(void)state;
	config.regions_max = config.sessions_max = 2 * PACKINGS_COUNT;
	rig_create(&rig, &config);
	for (uint32_t i = 0; i < PACKINGS_COUNT; i++) {
		region_create(&rig, &regions[i], (enum packing)i, &shape, 0);
		region_create_address(&rig, &regions[PACKINGS_COUNT + i], (enum packing)i, &shape,
				      0);
	}
	for (uint32_t from = 0; from < 2 * PACKINGS_COUNT; from++) {
		store_one(&rig, &regions[from], from, 0, 0);
		for (uint32_t to = 0; to < 2 * PACKINGS_COUNT; to++) {
			fetch_one(&rig, &regions[to], from);
			if (region_wrong(&regions[to], from, 0, blocks, 8))
				fail_msg("%s to %s", packing_names[from % PACKINGS_COUNT],
					 packing_names[to % PACKINGS_COUNT]);
		}
	}
	for (uint32_t i = 0; i < 2 * PACKINGS_COUNT; i++)
		region_destroy(&regions[i]);
	rig_destroy(&rig);
}

static void every_dtype_and_back_end_is_bit_exact_when_lossless(void **state)
{
	static const uint8_t codecs[] = {SSV_CODEC_STORED, SSV_CODEC_DEFLATE, SSV_CODEC_R16,
					 SSV_CODEC_ZSTD};
	static const uint8_t dtypes[] = {SSV_DTYPE_BF16, SSV_DTYPE_FP16, SSV_DTYPE_FP32,
					 SSV_DTYPE_E4M3, SSV_DTYPE_E5M2};
	static const struct {
		uint16_t heads, dim;
		uint32_t block_tokens;
		enum packing packing;
	} cells[] = {
	    {1, 64, 32, PACKING_VEC},   {2, 80, 16, PACKING_HND},
	    {1, 96, 64, PACKING_NHD},   {4, 128, 32, PACKING_CONTENT},
	    {1, 256, 256, PACKING_VEC}, {3, 24, 128, PACKING_OUTERMOST},
	};
	struct plane_config config = rig_config("memory:roundtrip-2");
	uint32_t chunk = 100;
	struct rig rig;

	(void)state;
	rig_create(&rig, &config);
	for (uint32_t i = 0; i < ARRAY_COUNT(cells) * ARRAY_COUNT(dtypes); i++) {
		const uint32_t k = i % ARRAY_COUNT(cells);
		const struct test_shape shape = {
		    dtypes[i / ARRAY_COUNT(cells)], 1,  cells[k].heads, cells[k].dim,
		    cells[k].block_tokens,          16,
		};
		struct test_region region;

		region_create(&rig, &region, cells[k].packing, &shape, 0);
		for (uint32_t c = 0; c < ARRAY_COUNT(codecs); c++, chunk++) {
			store_one(&rig, &region, chunk, SSV_TIER_LOSSLESS, codecs[c]);
			fetch_one(&rig, &region, chunk);
			if (region_wrong(&region, chunk, 0, blocks, blocks_of_chunk(&shape)))
				fail_msg("%s heads %u dim %u codec %u", dtype_name(shape.dtype),
					 shape.heads, shape.dim, codecs[c]);
		}
		plane_session_end(rig.plane, region.session);
		rig_wait(&rig, PLANE_EVENT_SESSION_ENDED, 1000);
		region_destroy(&region);
	}
	rig_destroy(&rig);
}

static float bf16_value(uint32_t bits)
{
	float value;

	bits <<= 16;
	memcpy(&value, &bits, sizeof(value));
	return value;
}

static uint32_t bf16_at(const struct test_region *region, uint32_t tensor, uint32_t t, uint32_t c)
{
	const struct test_shape *s = &region->shape;
	uint16_t bits;

	memcpy(&bits,
	       region->memory + element_place(&region->made.layout, tensor,
					      blocks[t / s->block_tokens], t % s->block_tokens,
					      c / s->dim, c % s->dim),
	       2);
	return bits;
}

/* Relative L2 error of a fetched chunk against its reference; a and b must hold equal bits. */
static double compare_lossy(const struct test_region *a, const struct test_region *b,
			    uint32_t chunk)
{
	const uint32_t channels = (uint32_t)a->shape.heads * a->shape.dim;
	double error = 0, norm = 0;

	for (uint32_t tensor = 0; tensor < a->made.layout.tensors_count; tensor++) {
		for (uint32_t i = 0; i < SSV_CHUNK_TOKENS * channels; i++) {
			uint32_t t = i / channels, c = i % channels;
			uint32_t bits = bf16_at(a, tensor, t, c);
			double source =
			    bf16_value(element_bits(SSV_DTYPE_BF16, chunk, tensor, t, c));
			double difference = bf16_value(bits) - source;

			assert_int_equal(bits, bf16_at(b, tensor, t, c));
			error += difference * difference;
			norm += source * source;
		}
	}
	return sqrt(error / norm);
}

static void lossy_tiers_give_the_same_values_in_every_layout(void **state)
{
	static const struct test_shape shape = {SSV_DTYPE_BF16, 2, 2, 64, 32, 16};
	static const double error_max[] = {0, 0, 0.05, 0.20, 0.30, 0.60};
	struct plane_config config = rig_config("memory:roundtrip-3");
	struct test_region a, b;
	struct rig rig;

	(void)state;
	config.verbatim_tokens = 1;
	rig_create(&rig, &config);
	region_create(&rig, &a, PACKING_AMX, &shape, 0);
	region_create_address(&rig, &b, PACKING_CONTENT, &shape, 0);
	for (uint8_t tier = SSV_TIER_HIGH; tier <= SSV_TIER_TINY; tier++) {
		for (uint8_t codec = SSV_CODEC_DEFLATE; codec <= SSV_CODEC_R16; codec++) {
			uint32_t chunk = 200u + tier * 8u + codec;
			double error;

			store_one(&rig, &a, chunk, tier, codec);
			fetch_one(&rig, &a, chunk);
			fetch_one(&rig, &b, chunk);
			error = compare_lossy(&a, &b, chunk);
			print_message("tier %u codec %u: relative error %.4f\n", tier, codec,
				      error);
			assert_true(error > 0 && error < error_max[tier]);
		}
	}
	region_destroy(&a);
	region_destroy(&b);
	rig_destroy(&rig);
}

/* A container such as other writers may make: each tensor in an entry a group. */
static uint64_t build_split(const struct test_region *region, uint32_t chunk, uint8_t *bytes,
			    uint64_t capacity)
{
	const struct test_shape *s = &region->shape;
	const uint32_t channels = (uint32_t)s->heads * s->dim, groups = (channels + 63) / 64;
	const float error[SSV_PARTS_MAX] = {0};
	struct container_header header = {
	    .key = chunk_key(chunk),
	    .tier = SSV_TIER_LOSSLESS,
	    .shape = {.dtype = s->dtype,
		      .parts_count = 2,
		      .tokens = SSV_CHUNK_TOKENS,
		      .layers_count = s->layers,
		      .layers_total = s->layers,
		      .ranks_count = 1,
		      .parts = {{SSV_ROLE_K, 0, s->heads, s->dim},
				{SSV_ROLE_V, 0, s->heads, s->dim}}},
	};
	struct builder builder;
	uint64_t room, value_bytes = 0;

	memcpy(header.model, region->made.layout.model, sizeof(header.model));
	assert_int_equal(builder_begin(&builder, &header, bytes, capacity), 0);
	for (uint32_t i = 0; i < 2u * s->layers * groups; i++) {
		uint32_t tensor = i / groups, c0 = i % groups * 64;
		uint32_t lanes = channels - c0 < 64 ? channels - c0 : 64;
		uint8_t *wire = builder_wire(&builder, &room);
		struct container_entry entry = {
		    .layer = (uint16_t)(tensor / 2),
		    .part = (uint8_t)(tensor % 2),
		    .codec = WIRE_CODEC_STORED,
		    .group0 = (uint16_t)(i % groups),
		    .groups_count = 1,
		    .tensors_count = 1,
		    .streams_count = 1,
		    .wire_bytes = SSV_CHUNK_TOKENS * lanes * 2,
		};

		for (uint32_t k = 0; k < SSV_CHUNK_TOKENS * lanes; k++) {
			uint32_t bits =
			    element_bits(s->dtype, chunk, tensor, k / lanes, c0 + k % lanes);

			memcpy(wire + 2 * k, &bits, 2);
		}
		assert_int_equal(builder_append(&builder, &entry), 0);
	}
	assert_int_equal(builder_finish(&builder, error, &value_bytes), 0);
	return value_bytes;
}

static void put_value(const char *uri, const struct ssv_key *key, uint8_t *data, uint64_t bytes)
{
	const struct store_config config = {.uri = uri, .value_bytes_max = 16 * MIB, .ops_max = 1};
	struct store_op op = {.kind = STORE_OP_PUT,
			      .key = *key,
			      .data = data,
			      .value_bytes = bytes,
			      .deadline_ns = UINT64_MAX};
	struct store_op *ops[1] = {&op}, *done[1];
	char error[SSV_ERROR_TEXT_MAX];
	struct store *store = NULL;

	assert_int_equal(store_open(&config, &store, error), 0);
	assert_int_equal(store->ops->submit(store, ops, 1, 1), 1);
	while (!store->ops->poll(store, done, 1, 1))
		;
	assert_int_equal(op.status, 0);
	store_close(store);
}

static void tensor_split_over_entries_comes_back_whole(void **state)
{
	static const struct test_shape shape = {SSV_DTYPE_BF16, 2, 3, 48, 32, 16};
	const char *uri = "memory:roundtrip-4";
	struct plane_config config = rig_config(uri);
	const uint64_t capacity = MIB;
	struct test_region regions[2];
	uint8_t *bytes = malloc(capacity);
	const struct ssv_key key = chunk_key(300);
	uint64_t value_bytes;
	struct rig rig;

	(void)state;
	assert_non_null(bytes);
	rig_create(&rig, &config);
	region_create(&rig, &regions[0], PACKING_VEC, &shape, 0);
	region_create_address(&rig, &regions[1], PACKING_CONTENT, &shape, 0);
	value_bytes = build_split(&regions[0], 300, bytes, capacity);
	put_value(uri, &key, bytes, value_bytes);
	for (uint32_t i = 0; i < 2; i++) {
		fetch_one(&rig, &regions[i], 300);
		assert_int_equal(region_wrong(&regions[i], 300, 0, blocks, 8), 0);
		/* Two blocks of its middle: the others keep what they hold. */
		region_paint(&regions[i]);
		assert_int_equal(rig_fetch(&rig, &regions[i], &key, 1, blocks, 2, 96, 0)->tokens,
				 64);
		assert_int_equal(region_wrong(&regions[i], 300, 96, blocks, 2), 0);
		assert_int_equal(region_painted_over(&regions[i], blocks, 2), 0);
		region_destroy(&regions[i]);
	}
	free(bytes);
	rig_destroy(&rig);
}

/* The end of a sequence: fewer blocks than a chunk has, under a key of its own. */
static void short_chunk_is_stored_and_fetched(void **state)
{
	static const struct test_shape shape = {SSV_DTYPE_BF16, 2, 3, 48, 32, 16};
	static const uint8_t tiers[] = {SSV_TIER_LOSSLESS, SSV_TIER_STANDARD};
	struct plane_config config = rig_config("memory:roundtrip-5");
	struct test_region regions[2];
	struct rig rig;

	(void)state;
	rig_create(&rig, &config);
	region_create(&rig, &regions[0], PACKING_VEC, &shape, 0);
	region_create_address(&rig, &regions[1], PACKING_CONTENT, &shape, 0);
	for (uint32_t i = 0; i < 2 * ARRAY_COUNT(tiers); i++) {
		const struct test_region *region = &regions[i % 2];
		const struct ssv_key key = chunk_key(400 + i);
		const struct ssv_request request = {
		    .op = SSV_OP_STORE,
		    .tier = tiers[i / 2],
		    .codec = SSV_CODEC_R16,
		    .region = region->region,
		    .keys = &key,
		    .keys_count = 1,
		    .blocks = blocks,
		    .blocks_count = 3,
		};
		const struct ssv_completion *done;

		region_fill(region, 400 + i, 0, blocks, 3);
		done = rig_request(&rig, region->session, &request);
		assert_int_equal(done->tokens, 96);
		assert_int_equal(done->kv_bytes, 2 * 2 * 96 * 3 * 48 * 2);
		rig_flush(&rig, region->session);
		region_paint(region);
		assert_int_equal(rig_fetch(&rig, region, &key, 1, blocks, 3, 0, 0)->tokens, 96);
		assert_int_equal(region_painted_over(region, blocks, 3), 0);
		if (tiers[i / 2] == SSV_TIER_LOSSLESS)
			assert_int_equal(region_wrong(region, 400 + i, 0, blocks, 3), 0);
		/* A part of it, and more than there is of it. */
		region_paint(region);
		assert_int_equal(rig_fetch(&rig, region, &key, 1, blocks, 1, 32, 0)->tokens, 32);
		assert_int_equal(region_painted_over(region, blocks, 1), 0);
		region_paint(region);
		done = rig_fetch(&rig, region, &key, 1, blocks, 4, 0, 0);
		assert_int_equal(done->tokens, 0);
		assert_int_equal(done->status, -EBADMSG);
		assert_int_equal(region_painted_over(region, blocks, 0), 0);
	}
	region_destroy(&regions[0]);
	region_destroy(&regions[1]);
	rig_destroy(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(every_layout_reads_what_every_other_stored),
	    cmocka_unit_test(every_dtype_and_back_end_is_bit_exact_when_lossless),
	    cmocka_unit_test(lossy_tiers_give_the_same_values_in_every_layout),
	    cmocka_unit_test(tensor_split_over_entries_comes_back_whole),
	    cmocka_unit_test(short_chunk_is_stored_and_fetched),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
