/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_profile.c - profiles as JSON: what is read, what is refused and in which words, text that is
 * meant to hurt, and which promises are kept.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "profile/profile.h"

#define TEXT_BYTES 8192

static const char valid[] =
    "{\"schema\": \"shadowserve-profile-1\",\n"
    " \"model\": {\"name\": \"a model\", \"digest\": \"00112233445566778899aabbccddeeff"
    "00112233445566778899aabbccddeeff\"},\n"
    " \"text\": {\"digest\": \"ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\","
    " \"documents\": 24},\n"
    " \"dtype\": \"bf16\", \"layers\": 2, \"verbatim_tokens\": 4, \"error_margin\": 1.5,\n"
    " \"parts\": [{\"role\": \"K\", \"heads\": 2, \"dim\": 3,\n"
    "   \"weight\": [[1, 2], [0.5, 4e-3]], \"factor\": [\"80807f818283\", \"000102fdfeff\"]},\n"
    "  {\"role\": \"V\", \"heads\": 1, \"dim\": 4, \"weight\": [[3], [0.25]]}],\n"
    " \"tiers\": {\n"
    "  \"high\": {\"scale\": 0.01, \"ratio\": 3.8, \"error\": [[0.01, 0.02], [0.03, 0]],\n"
    "   \"measured\": [{\"tokens\": 1536, \"kl\": 1e-5, \"bound\": 0.9, \"p99\": 1.1, \"top1\": "
    "0.99},\n"
    "     {\"tokens\": 6144, \"kl\": 2e-5, \"bound\": 0.95, \"p99\": 1.2, \"top1\": 0.98}]},\n"
    "  \"compact\": {\"scale\": 0.3, \"ratio\": 6.5, \"error\": [[0.1, 0.2], [0.3, 0.4]],\n"
    "   \"measured\": [{\"tokens\": 1536, \"kl\": 3e-3, \"bound\": 1.02, \"p99\": 1, \"top1\": "
    "0.9}]}},\n"
    " \"references\": {\"FP8\": {\"ratio\": 2, \"measured\": [{\"tokens\": 1536, \"kl\": 1e-4,"
    " \"top1\": 0.97}, {\"tokens\": 6144, \"kl\": 3e-4, \"top1\": 0.96}]},\n"
    "  \"int4\": {\"ratio\": 3.7, \"measured\": [{\"tokens\": 1536, \"kl\": 4e-3, \"top1\": "
    "0.93}]}},\n"
    " \"a tool's own\": [1, {\"x\": null}]}\n";

static void a_valid_one_is_read(void **state)
{
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct profile *p;

	(void)state;
	assert_int_equal(profile_parse(valid, strlen(valid), &p, error), 0);
	assert_string_equal(p->name, "a model");
	assert_int_equal(p->digest[1], 0x11);
	assert_int_equal(p->text_digest[0], 0xff);
	assert_int_equal(p->documents, 24);
	assert_int_equal(p->steps.layers_count, 2);
	assert_int_equal(p->steps.parts_count, 2);
	assert_int_equal(p->steps.parts[0].role, SSV_ROLE_K);
	assert_int_equal(p->steps.parts[1].dim, 4);
	assert_true(p->steps.parts[0].weight[3] == 4e-3f);
	assert_true(p->steps.parts[1].weight[1] == .25f);
	assert_int_equal(p->steps.parts[0].factor[5], 0x83);
	assert_int_equal(p->steps.parts[0].factor[11], 0xff);
	assert_null(p->steps.parts[1].factor);
	assert_true(p->steps.scale[SSV_TIER_HIGH] == .01f);
	assert_true(p->steps.scale[SSV_TIER_STANDARD] == 0);
	assert_true(p->steps.error[SSV_TIER_COMPACT][3] == .4f);
	assert_null(p->steps.error[SSV_TIER_TINY]);
	assert_true(p->steps.error_margin == 1.5f);
	assert_true(p->tiers[SSV_TIER_HIGH].ratio == 3.8);
	assert_int_equal(p->tiers[SSV_TIER_HIGH].measured[1].tokens, 6144);
	assert_int_equal(p->references[PROFILE_FP8].measured_count, 2);
	profile_free(p);
}

static void the_hash_is_of_every_byte(void **state)
{
	char error[SSV_ERROR_TEXT_MAX], text[TEXT_BYTES];
	struct profile *a, *b;

	(void)state;
	snprintf(text, sizeof(text), "%s\n", valid);
	assert_int_equal(profile_parse(valid, strlen(valid), &a, error), 0);
	assert_int_equal(profile_parse(text, strlen(text), &b, error), 0);
	assert_memory_not_equal(a->steps.hash, b->steps.hash, 8);
	profile_free(a);
	profile_free(b);
}

/* ---- refusals ---------------------------------------------------------------------------------
 */

static const struct {
	const char *from, *to, *error; /* error: what its text begins with */
} mistakes[] = {
    {"shadowserve-profile-1", "shadowserve-profile-2", "schema: \"shadowserve-profile-2\""},
    {"\"schema\"", "\"scheme\"", "schema is missing"},
    {"\"a model\"", "17", "model.name is no string"},
    {"a model", "a\\nmodel", "model.name: expected printable ASCII"},
    {"\"00112233", "\"0011223", "model.digest: 63 characters, expected 64"},
    {"\"00112233", "\"0011223G", "model.digest: expected hexadecimal digits"},
    {"\"documents\": 24", "\"documents\": 0", "text.documents: 0, expected 1"},
    {"\"documents\": 24", "\"documents\": 2.5", "text.documents: 2.5, expected a whole number"},
    {"bf16", "bf17", "dtype: \"bf17\", expected bf16"},
    {"\"layers\": 2", "\"layers\": 0", "layers: 0, expected 1"},
    {"\"layers\": 2", "\"layers\": -1e300", "layers: -1e+300"},
    {"\"layers\": 2", "\"layers\": 1024", "1024 layers of 2 parts are more than 1024 tensors"},
    {"\"layers\": 2", "\"layers\": 3", "parts[].weight: 2 values, expected 3"},
    {"\"layers\": 2", "\"layers\": \"2\"", "layers is no number"},
    {"\"error_margin\": 1.5", "\"error_margin\": 0.5", "error_margin: 0.5, expected 1 to 100"},
    {"\"role\": \"V\"", "\"role\": \"Q\"", "parts[].role: \"Q\", expected K, V or latent"},
    {"\"heads\": 1", "\"heads\": 0", "parts[].heads: 0"},
    {"\"heads\": 1", "\"heads\": 1024.0", "parts[].weight: 1 values, expected 1024"},
    {"\"dim\": 4", "\"dim\": 9000", "parts[].dim: 9000, expected 1 to 8192"},
    {"\"heads\": 2, \"dim\": 3", "\"heads\": 1000, \"dim\": 9",
     "parts[]: 1000 heads of 9 are more"},
    {"[[1, 2], ", "[[1], ", "parts[].weight: 1 values, expected 2"},
    {"[[1, 2], ", "[{}, ", "parts[].weight is no array"},
    {"[[1, 2], ", "[[1, 0], ", "parts[].weight: 0, expected 1e-12"},
    {"[[1, 2], ", "[[1, -2], ", "parts[].weight: -2"},
    {"[[1, 2], ", "[[1, 1e999], ", "parts[].weight: inf"},
    {"[[1, 2], ", "[[1, null], ", "parts[].weight is no number"},
    {"80807f818283", "80807f8182", "parts[].factor: 10 characters, expected 12"},
    {", \"000102fdfeff\"", "", "parts[].factor: 1 values, expected 2"},
    {"\"scale\": 0.3", "\"scale\": 0", "tiers.*.scale: 0, expected"},
    {"\"compact\": {", "\"high\": {", "tiers.high: there are two"},
    {"[0.03, 0]", "[0.03]", "tiers.*.error: 1 values, expected 2"},
    {"[0.03, 0]", "[0.03, -1]", "tiers.*.error: -1"},
    {"\"tokens\": 6144, \"kl\": 2e-5", "\"tokens\": 512, \"kl\": 2e-5",
     "measured[].tokens: 512 after 1536"},
    {"\"bound\": 0.9,", "", "measured[].bound is missing"},
    {"\"top1\": 0.9}]}}", "\"top1\": 1.9}]}}", "measured[].top1: 1.9, expected 0 to 1"},
    {"\"int4\"", "\"int5\"", "references.int4 is missing, which tiers.compact is measured by"},
    {"\"tiers\": {", "\"tiers\": 3, \"x\": {", "tiers is no object"},
    {"\"parts\": [", "\"parts\": 1, \"x\": [", "parts: expected an array of 1 to 4"},
    {"null}]}", "null}]", "it is no JSON: a mistake at byte"},
    {"null}]}\n", "null}]} {}", "it is no JSON: a mistake at byte"},
};

/* valid with the first `from` replaced. */
static size_t replaced(const char *from, const char *to, char text[TEXT_BYTES])
{
	const char *at = strstr(valid, from);

	assert_non_null(at);
	return (size_t)snprintf(text, TEXT_BYTES, "%.*s%s%s", (int)(at - valid), valid, to,
				at + strlen(from));
}

static void mistakes_are_named(void **state)
{
	char error[SSV_ERROR_TEXT_MAX], text[TEXT_BYTES];

	(void)state;
	for (size_t i = 0; i < sizeof(mistakes) / sizeof(mistakes[0]); i++) {
		size_t bytes = replaced(mistakes[i].from, mistakes[i].to, text);
		struct profile *profile = NULL;

		assert_int_equal(profile_parse(text, bytes, &profile, error), -EBADMSG);
		if (strncmp(error, mistakes[i].error, strlen(mistakes[i].error)) != 0)
			fail_msg("\"%s\", expected \"%s\"", error, mistakes[i].error);
	}
}

/* Whatever it is, it is refused, or read; nothing else happens (the sanitizers watch). */
static void try_text(const char *text, size_t bytes)
{
	char error[SSV_ERROR_TEXT_MAX] = "", why[SSV_ERROR_TEXT_MAX],
	     *copy = malloc(bytes ? bytes : 1);
	struct profile *profile;
	int err;

	assert_non_null(copy);
	memcpy(copy, text, bytes); /* without a byte behind it */
	err = profile_parse(copy, bytes, &profile, error);
	if (err) {
		assert_true(err == -EBADMSG || err == -E2BIG);
		assert_true(error[0]);
	} else {
		for (uint8_t t = SSV_TIER_LOSSLESS; t <= SSV_TIER_TINY; t++)
			(void)profile_keeps(profile, t, why);
		profile_free(profile);
	}
	free(copy);
}

static void hostile_text_does_no_harm(void **state)
{
	const char *seed_text = getenv("SSV_SEED");
	uint64_t seed = seed_text ? strtoull(seed_text, NULL, 0) : 7, x = seed * 2 + 1;
	char text[TEXT_BYTES];

	(void)state;
	print_message("SSV_SEED=%llu\n", (unsigned long long)seed);
	for (size_t bytes = 0; bytes < strlen(valid); bytes++)
		try_text(valid, bytes);
	for (int i = 0; i < 20000; i++) {
		memcpy(text, valid, sizeof(valid));
		for (int k = 0; k <= i % 4; k++) {
			static const char sharp[] = "{}[],:\"\\0-9eE.u\xff\x00\x7f";

			x = x * 6364136223846793005u + 1442695040888963407u;
			text[(x >> 33) % strlen(valid)] = sharp[(x >> 20) % (sizeof(sharp) - 1)];
		}
		try_text(text, strlen(valid));
	}
}

static void too_much_is_refused_before_it_is_parsed(void **state)
{
	char error[SSV_ERROR_TEXT_MAX], *text = malloc(PROFILE_BYTES_MAX + 1);
	struct profile *profile;

	(void)state;
	assert_non_null(text);
	memset(text, '[', PROFILE_BYTES_MAX + 1);
	assert_int_equal(profile_parse(text, PROFILE_BYTES_MAX, &profile, error), -E2BIG);
	assert_int_equal(profile_parse(text, 100000, &profile, error), -EBADMSG); /* too deep */
	memset(text, ' ', PROFILE_BYTES_MAX + 1);
	assert_int_equal(profile_parse(text, PROFILE_BYTES_MAX + 1, &profile, error), -E2BIG);
	assert_int_equal(profile_parse(text, PROFILE_BYTES_MAX, &profile, error), -EBADMSG);
	free(text);
}

static void a_file_that_is_not_there_is_said_to_be(void **state)
{
	char error[SSV_ERROR_TEXT_MAX];
	struct profile *profile;

	(void)state;
	assert_int_equal(profile_read("/nonexistent/x.json", &profile, error), -ENOENT);
	assert_string_equal(error, "No such file or directory");
}

/* ---- promises ---------------------------------------------------------------------------------
 */

static struct profile *profile_with(const char *from, const char *to)
{
	char error[SSV_ERROR_TEXT_MAX], text[TEXT_BYTES];
	struct profile *profile = NULL;
	size_t bytes = replaced(from, to, text);

	if (profile_parse(text, bytes, &profile, error))
		fail_msg("%s", error);
	return profile;
}

static void promises_are_kept_or_not_with_numbers(void **state)
{
	struct profile *p = profile_with("", "");
	char why[SSV_ERROR_TEXT_MAX];

	(void)state;
	assert_true(profile_keeps(p, SSV_TIER_LOSSLESS, why));
	assert_true(profile_keeps(p, SSV_TIER_HIGH, why));
	assert_false(profile_keeps(p, SSV_TIER_STANDARD, why));
	assert_string_equal(why, "it was not measured");
	assert_false(profile_keeps(p, SSV_TIER_COMPACT, why));
	assert_string_equal(why, "KL at 1536 tokens is 0.003, promised 0.004 (1 of int4's); bound "
				 "1.020 (at most 1), p99 1.000 (at most 1.25)");
	assert_int_equal(profile_allowed(p, SSV_TIER_TINY), SSV_TIER_HIGH);
	assert_int_equal(profile_allowed(p, SSV_TIER_LOSSLESS), SSV_TIER_LOSSLESS);
	profile_free(p);
}

static void every_length_and_figure_counts(void **state)
{
	static const char *const broken[][2] = {
	    {"\"bound\": 0.95", "\"bound\": 1.01"},
	    {"\"p99\": 1.2,", "\"p99\": 1.26,"},
	    {"\"kl\": 2e-5", "\"kl\": 4e-5"}, /* an eighth of 3e-4 is 3.75e-5 */
	    {"\"tokens\": 6144, \"kl\": 2e-5", "\"tokens\": 6145, \"kl\": 2e-5"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(broken) / sizeof(broken[0]); i++) {
		struct profile *p = profile_with(broken[i][0], broken[i][1]);

		assert_false(profile_keeps(p, SSV_TIER_HIGH, NULL));
		assert_int_equal(profile_allowed(p, SSV_TIER_TINY), SSV_TIER_LOSSLESS);
		profile_free(p);
	}
}

static void a_set_finds_by_model_and_type(void **state)
{
	struct profile *a = profile_with("", ""), *same = profile_with("24", "25");
	struct profile *other = profile_with("\"bf16\"", "\"e4m3\"");
	struct profile_set set = {.count = 0};
	uint8_t model[8] = {0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77};

	(void)state;
	assert_null(profile_set_find(NULL, model, SSV_DTYPE_BF16));
	assert_int_equal(profile_set_add(&set, a), 0);
	assert_int_equal(profile_set_add(&set, other), 0);
	assert_int_equal(profile_set_add(&set, same), -EEXIST);
	assert_ptr_equal(profile_set_find(&set, model, SSV_DTYPE_BF16), a);
	assert_ptr_equal(profile_set_find(&set, model, SSV_DTYPE_E4M3), other);
	assert_null(profile_set_find(&set, model, SSV_DTYPE_FP16));
	model[7]++;
	assert_null(profile_set_find(&set, model, SSV_DTYPE_BF16));
	profile_free(same);
	profile_set_clear(&set);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_valid_one_is_read),
	    cmocka_unit_test(the_hash_is_of_every_byte),
	    cmocka_unit_test(mistakes_are_named),
	    cmocka_unit_test(hostile_text_does_no_harm),
	    cmocka_unit_test(too_much_is_refused_before_it_is_parsed),
	    cmocka_unit_test(a_file_that_is_not_there_is_said_to_be),
	    cmocka_unit_test(promises_are_kept_or_not_with_numbers),
	    cmocka_unit_test(every_length_and_figure_counts),
	    cmocka_unit_test(a_set_finds_by_model_and_type),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
