/* SPDX-License-Identifier: Apache-2.0 */
/* test_key.c - keys against vectors that key_vectors.py computes from the document alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/base.h"
#include "shadowserve.h"

#define TOKENS 700u

static uint32_t tokens[TOKENS];

static struct ssv_key_root sample_root(void)
{
	struct ssv_key_root root = {
	    .struct_size = sizeof(root),
	    .dtype = SSV_DTYPE_BF16,
	    .parts_count = 2,
	    .layer0 = 4,
	    .layers_count = 16,
	    .layers_total = 32,
	    .rank = 1,
	    .ranks_count = 2,
	    .parts = {{.role = SSV_ROLE_K, .heads = 8, .dim = 128},
		      {.role = SSV_ROLE_V, .heads = 8, .dim = 128}},
	};

	for (uint8_t i = 0; i < sizeof(root.model_digest); i++)
		root.model_digest[i] = i;
	return root;
}

static void expect_key(const struct ssv_key *key, const char *hex)
{
	char text[65];

	for (uint32_t i = 0; i < sizeof(key->bytes); i++)
		snprintf(text + 2 * i, 3, "%02x", key->bytes[i]);
	assert_string_equal(text, hex);
}

static int setup(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < TOKENS; i++)
		tokens[i] = i * 2654435761u;
	return 0;
}

static void root_matches_the_vectors(void **state)
{
	struct ssv_key_root root = sample_root();
	struct ssv_key key;

	(void)state;
	assert_int_equal(ssv_key_make_root(&root, &key), 0);
	expect_key(&key, "4383eae481b8f673eb68402117069ee8a1faae741e12afda413efbfab80e3c1a");
	root.chunk_tokens = SSV_CHUNK_TOKENS; /* the default, spelled out */
	root.name_space = "";
	assert_int_equal(ssv_key_make_root(&root, &key), 0);
	expect_key(&key, "4383eae481b8f673eb68402117069ee8a1faae741e12afda413efbfab80e3c1a");
	root.name_space = "prod";
	root.tenant_salt = "tenant-7";
	assert_int_equal(ssv_key_make_root(&root, &key), 0);
	expect_key(&key, "d9d76d4346b01a5601a8b1ad2e558cadff7c8bb2b9604c4bd99dfc4e08490010");
	root.name_space = "prodt";
	root.tenant_salt = "enant-7";
	assert_int_equal(ssv_key_make_root(&root, &key), 0);
	expect_key(&key, "b030de4180ca5b7248b8bb343ea8ead5eb5ee5f9ffb8995e9ca0f506ccf33e15");
}

static void chain_matches_the_vectors(void **state)
{
	struct ssv_key_root root = sample_root();
	struct ssv_key previous, keys[64], extra[2];

	(void)state;
	memset(extra, 0, sizeof(extra));
	memset(extra[1].bytes, 7, sizeof(extra[1].bytes));
	assert_int_equal(ssv_key_make_root(&root, &previous), 0);
	assert_int_equal(ssv_key_chain(&previous, 256, tokens, TOKENS, NULL, keys, 64), 2);
	expect_key(&keys[0], "111988bb9a53d8f9e81a0e4176b1b146f1803ee10c72e0e10d10d92829b21620");
	expect_key(&keys[1], "14928b41690ccad7ed43291b390da6a108d92fe402e50a1fe8fab93c9fb0b0a4");
	assert_int_equal(ssv_key_chain(&previous, 0, tokens, TOKENS, extra, keys, 64), 2);
	expect_key(&keys[0], "111988bb9a53d8f9e81a0e4176b1b146f1803ee10c72e0e10d10d92829b21620");
	expect_key(&keys[1], "ef3c788e650decf3d17c105c547678b74536bf363ca66263d6e7cbaa78dea29d");
	assert_int_equal(ssv_key_chain(&previous, 16, tokens, TOKENS, NULL, keys, 64), 43);
	expect_key(&keys[42], "d8336476d3638b2dd1a4faba49e0d870b7ee7f6688a020f764ae1aca6c707c85");
}

static void chain_continues_from_any_key(void **state)
{
	struct ssv_key previous = {{9}}, whole[43], rest[43];

	(void)state;
	assert_int_equal(ssv_key_chain(&previous, 16, tokens, TOKENS, NULL, whole, 43), 43);
	for (uint32_t at = 1; at < 43; at++) {
		assert_int_equal(ssv_key_chain(&whole[at - 1], 16, tokens + 16 * at,
					       TOKENS - 16 * at, NULL, rest, 43),
				 43 - at);
		assert_memory_equal(rest, whole + at, (43 - at) * sizeof(*rest));
	}
}

static void chain_writes_no_more_than_asked(void **state)
{
	struct ssv_key previous = {{1}}, keys[3], untouched;

	(void)state;
	memset(keys, 0xa5, sizeof(keys));
	memset(&untouched, 0xa5, sizeof(untouched));
	assert_int_equal(ssv_key_chain(&previous, 16, tokens, TOKENS, NULL, keys, 2), 2);
	assert_memory_equal(&keys[2], &untouched, sizeof(untouched));
	assert_int_equal(ssv_key_chain(&previous, 256, tokens, 255, NULL, keys, 2), 0);
	assert_int_equal(ssv_key_chain(&previous, 256, NULL, 0, NULL, NULL, 0), 0);
}

/* Any field that shapes the bytes of a chunk must move the key. */
static void every_field_moves_the_root(void **state)
{
	struct ssv_key seen[32];
	uint32_t count = 0;

	(void)state;
	for (uint32_t field = 0; field < 17; field++) {
		struct ssv_key_root root = sample_root();

		switch (field) {
		case 1:
			root.dtype = SSV_DTYPE_FP16;
			break;
		case 2:
			root.parts_count = 1;
			break;
		case 3:
			root.layer0++;
			break;
		case 4:
			root.layers_count++;
			break;
		case 5:
			root.layers_total++;
			break;
		case 6:
			root.rank = 0;
			break;
		case 7:
			root.ranks_count++;
			break;
		case 8:
			root.chunk_tokens = 128;
			break;
		case 9:
			root.name_space = "a";
			break;
		case 10:
			root.tenant_salt = "a";
			break;
		case 11:
			root.model_digest[31] ^= 1;
			break;
		case 12:
			root.rope_digest[0] ^= 1;
			break;
		case 13:
			root.parts[0].role = SSV_ROLE_LATENT;
			break;
		case 14:
			root.parts[1].head0 = 8;
			break;
		case 15:
			root.parts[1].heads = 4;
			break;
		case 16:
			root.parts[1].dim = 64;
			break;
		}
		assert_int_equal(ssv_key_make_root(&root, &seen[count]), 0);
		for (uint32_t i = 0; i < count; i++)
			assert_memory_not_equal(&seen[i], &seen[count], sizeof(seen[0]));
		count++;
	}
}

static void bad_arguments_are_refused(void **state)
{
	struct ssv_key_root root = sample_root();
	struct ssv_key key;

	(void)state;
	root.struct_size--;
	assert_int_equal(ssv_key_make_root(&root, &key), -EINVAL);
	root = sample_root();
	root.dtype = SSV_DTYPE_E5M2 + 1;
	assert_int_equal(ssv_key_make_root(&root, &key), -EINVAL);
	root = sample_root();
	root.parts_count = SSV_PARTS_MAX + 1;
	assert_int_equal(ssv_key_make_root(&root, &key), -EINVAL);
	root = sample_root();
	root.parts[3].reserved = 1;
	assert_int_equal(ssv_key_make_root(&root, &key), -EINVAL);
	assert_int_equal(ssv_key_make_root(NULL, &key), -EINVAL);
	assert_int_equal(ssv_key_chain(NULL, 16, tokens, 16, NULL, &key, 1), -EINVAL);
	assert_int_equal(ssv_key_chain(&key, 16, NULL, 16, NULL, &key, 1), -EINVAL);
	assert_int_equal(ssv_key_chain(&key, 16, tokens, 16, NULL, NULL, 1), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(root_matches_the_vectors),
	    cmocka_unit_test(chain_matches_the_vectors),
	    cmocka_unit_test(chain_continues_from_any_key),
	    cmocka_unit_test(chain_writes_no_more_than_asked),
	    cmocka_unit_test(every_field_moves_the_root),
	    cmocka_unit_test(bad_arguments_are_refused),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
