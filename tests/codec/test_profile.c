/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_profile.c - encoding with a profile's steps: the right head's weight, bounds, factors,
 * groups of very different steps in one tensor, the same bytes at every SIMD level, the finer tier
 * where the error is not the expected one.
 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "codec/float.h"
#include "codec/kernels.h"
#include "codec/symbols.h"
#include "fixture.h"

#define LAYERS_TOTAL 5u

/* A model of five layers and twice the heads; chunks of layers 1 and 2, second rank. */
struct model {
	struct chunk_shape shape;
	struct encode_profile profile;
	float *weight[2], *error;
	uint8_t *factor[2];
};

static void model_open(struct model *m, uint8_t dtype, uint32_t heads, uint32_t dim,
		       uint32_t tokens, int with_factors, uint64_t seed)
{
	struct random random = {seed};
	uint32_t count = LAYERS_TOTAL * heads * 2;

	memset(m, 0, sizeof(*m));
	m->shape = test_shape(dtype, heads, dim, tokens);
	m->shape.layers_total = LAYERS_TOTAL;
	m->shape.layer0 = 1;
	m->shape.rank = 1;
	m->shape.ranks_count = 2;
	m->error = calloc(LAYERS_TOTAL * 2, sizeof(float));
	m->profile = (struct encode_profile){.hash = {9, 8, 7, 6, 5, 4, 3, 2},
					     .dtype = dtype,
					     .parts_count = 2,
					     .layers_count = LAYERS_TOTAL,
					     .scale = {[SSV_TIER_STANDARD] = .5f},
					     .error_margin = 2};
	for (uint32_t p = 0; p < 2; p++) {
		m->shape.parts[p].head0 = (uint16_t)heads;
		m->weight[p] = calloc(count, sizeof(float));
		m->factor[p] = malloc((size_t)count * dim);
		for (uint32_t i = 0; i < count; i++)
			m->weight[p][i] = exp2f((float)random_below(&random, 9000) / 1000 - 6);
		for (uint32_t i = 0; i < count * dim; i++)
			m->factor[p][i] = (uint8_t)(128 + random_below(&random, 40) - 20);
		m->profile.parts[p] =
		    (struct profile_part){.role = m->shape.parts[p].role,
					  .heads = (uint16_t)(heads * 2),
					  .dim = (uint16_t)dim,
					  .weight = m->weight[p],
					  .factor = with_factors && !p ? m->factor[p] : NULL};
	}
}

static void model_close(struct model *m)
{
	for (uint32_t p = 0; p < 2; p++) {
		free(m->weight[p]);
		free(m->factor[p]);
	}
	free(m->error);
}

static struct encode_options options_of(const struct model *m)
{
	return (struct encode_options){.tier = SSV_TIER_STANDARD,
				       .codec = SSV_CODEC_R16,
				       .verbatim_tokens = 3,
				       .profile = &m->profile};
}

static const struct {
	uint32_t heads, dim, tokens;
} shapes[] = {{2, 64, 256}, {3, 64, 200}, {1, 128, 256}, {5, 32, 256},
	      {3, 80, 77},  {8, 128, 40}, {1, 576, 130}, {2, 64, 9}};

/* ---- steps -------------------------------------------------------------------------------------
 */

static double sigma(const struct model *m, const uint8_t *tensor, uint32_t channel)
{
	uint32_t channels = part_channels(&m->shape.parts[0]), n = m->shape.tokens - 3;
	double sum = 0, square = 0;

	for (uint32_t t = 3; t < m->shape.tokens; t++) {
		double x = element_value(m->shape.dtype, tensor, (uint64_t)t * channels + channel);

		sum += x;
		square += x * x;
	}
	return sqrt(square / n - sum / n * (sum / n));
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* What the bounds of a head of K are measured by. */
static double head_sigma(const struct model *m, const uint8_t *tensor, uint32_t head)
{
	double each[576];
	uint32_t dim = m->shape.parts[0].dim;

	for (uint32_t i = 0; i < dim; i++)
		each[i] = sigma(m, tensor, head * dim + i);
	qsort(each, dim, sizeof(each[0]), ascending);
	return 1.06 * each[(dim - 1) / 2];
}

static double near_to(double x, double wanted)
{
	return fabs(x / wanted - 1) < .002;
}

static void check_head(const struct model *m, const struct tensor_meta *meta, const uint8_t *tensor,
		       uint32_t layer, uint32_t head)
{
	uint32_t dim = m->shape.parts[0].dim;
	size_t model_head =
	    (size_t)layer * m->profile.parts[0].heads + m->shape.parts[0].head0 + head;
	double most = 3 * head_sigma(m, tensor, head), least = most / 3 * 11 / 1024;
	double wanted = m->profile.scale[SSV_TIER_STANDARD] * m->weight[0][model_head];

	for (uint32_t i = 0; i < dim; i++) {
		uint8_t factor = meta->factor ? meta->factor[head * dim + i] : STEP_FACTOR_ONE;
		double step = (double)step_scale(load_le16(meta->steps + 2 * head), factor);
		double each = wanted;

		if (meta->factor)
			each =
			    wanted * (double)step_scale(0x3c00, m->factor[0][model_head * dim + i]);
		each = each < least ? least : each > most ? most : each;
		/* factors are a twelfth of an octave apart, and a bound takes the one below */
		if (meta->factor && (each == least || each == most))
			assert_true(step <= each * 1.002 && step > each / 1.11);
		else
			assert_true(near_to(step, each));
	}
}

static void check_steps(struct test_codec *codec, uint32_t k, int with_factors, uint64_t seed)
{
	struct model m;
	struct encode_options options;
	struct container container;
	struct test_chunk chunk;
	uint8_t *in;

	model_open(&m, SSV_DTYPE_BF16, shapes[k].heads, shapes[k].dim, shapes[k].tokens,
		   with_factors, seed);
	options = options_of(&m);
	in = test_elements(&m.shape, CONTENT_KV, seed);
	chunk = test_encode(codec, &m.shape, &options, in);
	test_open(&chunk, &container);
	assert_memory_equal(container.header.profile, m.profile.hash, 8);
	for (uint32_t layer = 0; layer < 2; layer++) {
		const uint8_t *tensor = in + layer * 2 * shape_tensor_bytes(&m.shape, 0);
		struct container_entry entry;
		struct tensor_meta meta;

		container_entry(&container, layer * 2, &entry);
		container_tensor_meta(&container, &entry, 0, &meta);
		if (!meta.steps) /* stored: exceptions cost more */
			continue;
		assert_int_equal(!!(meta.flags & TENSOR_FACTOR), with_factors);
		for (uint32_t head = 0; head < m.shape.parts[0].heads; head++)
			check_head(&m, &meta, tensor, 1 + layer, head);
	}
	free(chunk.bytes);
	free(in);
	model_close(&m);
}

static void steps_are_scale_times_weight_within_bounds(void **state)
{
	uint64_t seed = test_seed();

	for (uint32_t k = 0; k + 1 < ARRAY_COUNT(shapes); k++) {
		check_steps(*state, k, 0, seed + k);
		check_steps(*state, k, 1, seed + 100 + k);
	}
}

/* ---- bytes -------------------------------------------------------------------------------------
 */

static void check_levels(struct test_codec *codec, uint32_t k, uint8_t dtype, uint32_t content,
			 int with_factors, uint64_t seed)
{
	const struct kernels *table;
	struct model m;
	struct encode_options options;
	uint8_t *in, *wanted = NULL, *out;
	struct test_chunk first = {0};

	model_open(&m, dtype, shapes[k].heads, shapes[k].dim, shapes[k].tokens, with_factors, seed);
	options = options_of(&m);
	in = test_elements(&m.shape, content, seed);
	for (uint32_t i = 0; (table = kernels_at(i)); i++) {
		struct container container;
		enum container_fault fault;
		struct test_chunk chunk;

		kernels_use(table);
		chunk = test_encode(codec, &m.shape, &options, in);
		test_open(&chunk, &container);
		out = calloc(1, shape_kv_bytes(&m.shape));
		assert_int_equal(test_decode(codec, &container, out, &fault), 0);
		if (!wanted) {
			first = chunk;
			wanted = out;
			continue;
		}
		assert_int_equal(chunk.bytes_count, first.bytes_count);
		assert_memory_equal(chunk.bytes, first.bytes, first.bytes_count);
		assert_memory_equal(out, wanted, shape_kv_bytes(&m.shape));
		free(out);
		free(chunk.bytes);
	}
	kernels_use(NULL);
	free(first.bytes);
	free(wanted);
	free(in);
	model_close(&m);
}

static void every_level_gives_the_same_bytes(void **state)
{
	uint64_t seed = test_seed();

	for (uint32_t k = 0; k < ARRAY_COUNT(shapes); k++)
		for (uint32_t i = 0; i < 20; i++)
			check_levels(*state, k, (uint8_t)(i % 5),
				     i % 3 ? CONTENT_KV : CONTENT_SPECIAL, i < 10,
				     seed + 20 * k + i);
}

static void groups_of_a_tensor_have_raw_bits_of_their_own(void **state)
{
	struct model m;
	struct encode_options options;
	struct container container;
	struct container_entry entry;
	struct tensor_meta meta;
	struct test_chunk chunk;
	uint8_t *in;

	model_open(&m, SSV_DTYPE_BF16, 2, 64, 256, 0, 1);
	in = test_elements(&m.shape, CONTENT_KV, 1);
	/* a head hundred times finer than the other */
	for (uint32_t i = 0; i < LAYERS_TOTAL * 4; i++)
		m.weight[0][i] = (float)head_sigma(&m, in, i & 1) * (i & 1 ? .02f : 2);
	options = options_of(&m);
	chunk = test_encode(*state, &m.shape, &options, in);
	test_open(&chunk, &container);
	container_entry(&container, 0, &entry);
	container_tensor_meta(&container, &entry, 0, &meta);
	assert_int_equal(meta.raw_bits[0], 0);
	assert_in_range(meta.raw_bits[1], 5, 6);
	assert_true(meta.flags & TENSOR_OFFSET_I16); /* means of a head of fine steps */
	free(chunk.bytes);
	free(in);
	model_close(&m);
}

/* ---- what a profile does not change ------------------------------------------------------------
 */

static void assert_same_bytes(struct test_codec *codec, const struct model *m, uint8_t tier)
{
	struct encode_options options = {.tier = tier, .codec = SSV_CODEC_R16};
	uint8_t *in = test_elements(&m->shape, CONTENT_KV, 5);
	struct test_chunk without = test_encode(codec, &m->shape, &options, in), with;

	options.profile = &m->profile;
	with = test_encode(codec, &m->shape, &options, in);
	assert_int_equal(with.bytes_count, without.bytes_count);
	assert_memory_equal(with.bytes, without.bytes, with.bytes_count);
	free(with.bytes);
	free(without.bytes);
	free(in);
}

static void tiers_without_a_scale_are_uniform(void **state)
{
	struct model m;

	model_open(&m, SSV_DTYPE_BF16, 2, 64, 256, 1, 4);
	assert_same_bytes(*state, &m, SSV_TIER_LOSSLESS);
	assert_same_bytes(*state, &m, SSV_TIER_HIGH);
	assert_same_bytes(*state, &m, SSV_TIER_TINY);
	model_close(&m);
}

static void a_profile_of_another_model_is_refused(void **state)
{
	struct test_codec *codec = *state;
	const struct chunk_identity identity = {.first_token = 0};
	struct encode_options options;
	struct encoder encoder;
	struct model m;
	uint64_t capacity;
	const char *why;
	uint8_t *out;

	model_open(&m, SSV_DTYPE_BF16, 2, 64, 256, 0, 4);
	options = options_of(&m);
	capacity = shape_container_bytes_max(&m.shape) + CONTAINER_SLACK_BYTES;
	out = malloc(capacity);
	assert_int_equal(
	    encoder_begin(&encoder, &identity, &m.shape, &options, out, capacity, codec->scratch),
	    0);
	m.profile.parts[1].heads = 3;
	assert_int_equal(
	    encoder_begin(&encoder, &identity, &m.shape, &options, out, capacity, codec->scratch),
	    -EINVAL);
	assert_false(profile_fits(&m.profile, &m.shape, &why));
	assert_string_equal(why, "its model has fewer heads");
	m.profile.parts[1].dim = 80;
	assert_false(profile_fits(&m.profile, &m.shape, &why));
	assert_string_equal(why, "its model's heads have another size");
	m.profile.parts[0].role = SSV_ROLE_LATENT;
	assert_false(profile_fits(&m.profile, &m.shape, &why));
	m.profile.layers_count = 6;
	assert_false(profile_fits(&m.profile, &m.shape, &why));
	assert_string_equal(why, "its model has another number of layers");
	m.profile.dtype = SSV_DTYPE_E4M3;
	assert_false(profile_fits(&m.profile, &m.shape, NULL));
	free(out);
	model_close(&m);
}

/* ---- the finer tier ----------------------------------------------------------------------------
 */

/* Encode all tensors; which were coded finer, and the errors. */
static uint32_t finer_tensors(struct test_codec *codec, const struct model *m, const uint8_t *in,
			      float errors[4])
{
	uint64_t capacity = shape_container_bytes_max(&m->shape) + CONTAINER_SLACK_BYTES, bytes;
	const struct chunk_identity identity = {.first_token = 0};
	const struct encode_options options = options_of(m);
	uint8_t *out = malloc(capacity);
	struct encoder encoder;

	assert_int_equal(
	    encoder_begin(&encoder, &identity, &m->shape, &options, out, capacity, codec->scratch),
	    0);
	for (uint32_t t = 0; t < 4; t++) {
		assert_int_equal(
		    encoder_tensor(&encoder, in + t * shape_tensor_bytes(&m->shape, 0)), 0);
		errors[t] = encoder.last_error;
	}
	assert_int_equal(encoder_finish(&encoder, &bytes), 0);
	free(out);
	return encoder.finer_tensors;
}

static void another_content_is_coded_finer(void **state)
{
	struct model m;
	float usual[4], errors[4];
	uint8_t *in;

	model_open(&m, SSV_DTYPE_BF16, 2, 64, 256, 0, 11);
	in = test_elements(&m.shape, CONTENT_KV, 11);
	for (uint32_t p = 0; p < 2; p++)
		for (uint32_t i = 0; i < LAYERS_TOTAL * 4; i++)
			m.weight[p][i] = 1;
	assert_int_equal(finer_tensors(*state, &m, in, usual), 0); /* nothing is expected */
	m.profile.error[SSV_TIER_STANDARD] = m.error;
	for (uint32_t t = 0; t < 4; t++)
		m.error[2 + t] = usual[t]; /* the chunk's first layer is the model's second */
	assert_int_equal(finer_tensors(*state, &m, in, errors), 0);
	assert_memory_equal(errors, usual, sizeof(errors));
	m.error[2 + 1] = usual[1] / 2.1f; /* below half of it: beyond the margin */
	assert_int_equal(finer_tensors(*state, &m, in, errors), 1);
	assert_true(errors[1] < usual[1] / 2.1f * 2);
	assert_true(errors[0] == usual[0] && errors[2] == usual[2] && errors[3] == usual[3]);
	free(in);
	model_close(&m);
}

static void a_factor_is_found_by_its_size(void **state)
{
	(void)state;
	for (uint32_t b = 1; b < 256; b++) {
		float factor = step_scale(0x3c00, (uint8_t)b);

		assert_int_equal(factor_below(factor), b);
		assert_int_equal(factor_below(factor * .999f), b - 1);
	}
	assert_int_equal(factor_below(1e30f), 255);
	assert_int_equal(factor_below(1e-30f), 0);
	assert_int_equal(factor_below(INFINITY), 255);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(steps_are_scale_times_weight_within_bounds),
	    cmocka_unit_test(every_level_gives_the_same_bytes),
	    cmocka_unit_test(groups_of_a_tensor_have_raw_bits_of_their_own),
	    cmocka_unit_test(tiers_without_a_scale_are_uniform),
	    cmocka_unit_test(a_profile_of_another_model_is_refused),
	    cmocka_unit_test(another_content_is_coded_finer),
	    cmocka_unit_test(a_factor_is_found_by_its_size),
	};

	return cmocka_run_group_tests(tests, test_scratch_open, test_scratch_close);
}
