/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_rdma_blob.c - an offer and an answer come back from their bytes as they went in; bytes that
 * lie are refused with a reason; a region of RDMA memory is refused where it cannot be had. Needs
 * no device.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "deliver/deliver.h"
#include "deliver/rdma_blob.h"
#include "deliver/rdma_owner.h"

#define ROUNDS 200000u

static uint64_t seed;

static uint64_t random_next(void)
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return seed >> 33;
}

static struct rdma_words words_make(enum rdma_kind kind, uint32_t lanes)
{
	struct rdma_words words = {.kind = (uint8_t)kind,
				   .link = RDMA_LINK_ETHERNET,
				   .mtu = 3,
				   .reads = 16,
				   .gid = {[10] = 0xff, [11] = 0xff, [12] = 10, [15] = 1},
				   .lanes_count = lanes};

	if (kind == RDMA_OFFER) {
		words.rkey = 0x12345678;
		words.address = 0x7f0012345000;
		words.bytes = 1ull << 40;
	}
	for (uint32_t i = 0; i < lanes; i++)
		words.lanes[i] = (struct rdma_end){.qp = 17 + 997 * i, .psn = 0xffffff - i};
	return words;
}

static void words_come_back_from_their_bytes(void **state)
{
	(void)state;
	for (uint32_t lanes = 1; lanes <= RDMA_LANES_MAX; lanes++) {
		for (int kind = RDMA_OFFER; kind <= RDMA_ANSWER; kind++) {
			const struct rdma_words words = words_make((enum rdma_kind)kind, lanes);
			char error[SSV_ERROR_TEXT_MAX] = "";
			struct rdma_words back;
			struct blob blob;

			rdma_blob_encode(&words, &blob);
			assert_true(blob.bytes <= BLOB_BYTES_MAX);
			assert_int_equal(
			    rdma_blob_decode(&blob, (enum rdma_kind)kind, &back, error), 0);
			assert_memory_equal(&words, &back, sizeof(words));
			assert_int_equal(
			    rdma_blob_decode(&blob,
					     (enum rdma_kind)(RDMA_OFFER + RDMA_ANSWER - kind),
					     &back, error),
			    -EPROTO);
		}
	}
}

struct lie {
	uint32_t at;
	uint8_t byte;
	const char *reason;
};

static void each_lie_has_its_reason(void **state)
{
	static const struct lie lies[] = {
	    {0, 0, "begins with"},
	    {4, 2, "version"},
	    {6, 3, "kind"},
	    {7, 0, "link"},
	    {7, 3, "link"},
	    {7, 1, "no address"},
	    {8, 0, "mtu"},
	    {8, 6, "mtu"},
	    {9, 0, "READs"},
	    {9, 17, "READs"},
	    {48, 0, "lanes"},
	    {48, 4, "lanes"},
	    {48, RDMA_LANES_MAX + 1, "lanes"},
	    {51, 1, "lanes"},
	    {52, 1, "reserved"},
	};
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct rdma_words words = words_make(RDMA_OFFER, 3), back;
	struct blob blob, lying;

	(void)state;
	rdma_blob_encode(&words, &blob);
	for (uint32_t i = 0; i < ARRAY_COUNT(lies); i++) {
		lying = blob;
		lying.data[lies[i].at] = lies[i].byte;
		assert_int_equal(rdma_blob_decode(&lying, RDMA_OFFER, &back, error), -EPROTO);
		if (!strstr(error, lies[i].reason))
			fail_msg("lie %u: \"%s\", expected \"%s\"", i, error, lies[i].reason);
	}
	for (uint32_t bytes = 0; bytes <= BLOB_BYTES_MAX + 1; bytes++) {
		lying = blob;
		lying.bytes = bytes;
		assert_int_equal(rdma_blob_decode(&lying, RDMA_OFFER, &back, error),
				 bytes == blob.bytes ? 0 : -EPROTO);
	}
	words.address = UINT64_MAX - words.bytes + 1;
	rdma_blob_encode(&words, &lying);
	assert_int_equal(rdma_blob_decode(&lying, RDMA_OFFER, &back, error), -EPROTO);
	assert_non_null(strstr(error, "no range"));
	words = words_make(RDMA_ANSWER, 1);
	words.rkey = 1;
	rdma_blob_encode(&words, &lying);
	assert_int_equal(rdma_blob_decode(&lying, RDMA_ANSWER, &back, error), -EPROTO);
	words.rkey = 0;
	words.lanes[0].qp = 1;
	rdma_blob_encode(&words, &lying);
	assert_int_equal(rdma_blob_decode(&lying, RDMA_ANSWER, &back, error), -EPROTO);
	assert_non_null(strstr(error, "queue pair"));
}

/* Whatever is let through is within its limits. */
static void random_bytes_are_refused_or_within_limits(void **state)
{
	uint32_t taken = 0;

	(void)state;
	for (uint32_t round = 0; round < ROUNDS; round++) {
		const enum rdma_kind kind = random_next() & 1 ? RDMA_OFFER : RDMA_ANSWER;
		struct rdma_words words = words_make(kind, 1 + (uint32_t)random_next() % 64), back;
		char error[SSV_ERROR_TEXT_MAX] = "";
		struct blob blob;

		rdma_blob_encode(&words, &blob);
		for (uint64_t n = random_next() % 4; n; n--)
			blob.data[random_next() % blob.bytes] = (uint8_t)random_next();
		if (rdma_blob_decode(&blob, kind, &back, error)) {
			assert_true(strlen(error) > 10);
			continue;
		}
		taken++;
		assert_true(back.lanes_count >= 1 && back.lanes_count <= RDMA_LANES_MAX);
		assert_true(back.address <= UINT64_MAX - back.bytes);
		assert_true(back.mtu >= 1 && back.mtu <= 5);
		for (uint32_t i = 0; i < back.lanes_count; i++)
			assert_true(back.lanes[i].qp >= 2 && back.lanes[i].qp < 0xffffff &&
				    back.lanes[i].psn <= 0xffffff);
	}
	assert_true(taken > ROUNDS / 8 && taken < ROUNDS);
}

/* ---- attaching without a device ------------------------------------------------------------- */

static int attach(const struct blob *offered, uint64_t bytes, char *error)
{
	static _Alignas(4096) uint8_t stage[4096];
	const struct deliver_host host = {
	    .memory = stage, .bytes = sizeof(stage), .workers_count = 1, .rdma = "no_such_device"};
	struct ssv_tensor tensor = {.block_stride = 64};
	struct ssv_layout layout = {
	    .struct_size = sizeof(layout),
	    .dtype = SSV_DTYPE_BF16,
	    .parts_count = 1,
	    .layers_count = 1,
	    .layers_total = 1,
	    .ranks_count = 1,
	    .block_tokens = 16,
	    .blocks_count = 4,
	    .tensors_count = 1,
	    .tensors = &tensor,
	    .parts[0] = {.role = SSV_ROLE_K,
			 .heads = 1,
			 .dim = 2,
			 .digits_count = 2,
			 .digits = {{.axis = SSV_AXIS_TOKEN, .extent = 16, .stride = 2},
				    {.axis = SSV_AXIS_DIM, .extent = 2, .stride = 1}}},
	};
	struct ssv_region offer = {.memory = SSV_MEMORY_RDMA, .fd = -1, .bytes = bytes};
	struct blob answer = {0};
	struct deliver_owner owner = {.offered = offered, .answer = &answer};
	struct region *region = NULL;
	int err = region_attach(&offer, &layout, &owner, &host, &region, error);

	assert_int_not_equal(err, 0);
	assert_null(region);
	assert_int_equal(answer.bytes, 0);
	return err;
}

static void a_region_that_cannot_be_reached_is_refused(void **state)
{
	struct rdma_words words = words_make(RDMA_OFFER, 4);
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct blob blob;
	int err;

	(void)state;
	words.bytes = 4096;
	rdma_blob_encode(&words, &blob);
	err = attach(&blob, 4096, error);
	if (err == -ENOTSUP) { /* a build without the library */
		assert_non_null(strstr(error, "libibverbs"));
		return;
	}
	assert_int_equal(err, -ENODEV);
	assert_non_null(strstr(error, "RDMA device"));
	assert_int_equal(attach(&blob, 4095, error), -ERANGE);
	assert_non_null(strstr(error, "4095"));
	assert_int_equal(attach(NULL, 4096, error), -EINVAL);
	blob.data[0] ^= 1;
	assert_int_equal(attach(&blob, 4096, error), -EINVAL);
	assert_non_null(strstr(error, "begins with"));
}

static void memory_is_not_offered_without_a_device(void **state)
{
	static uint8_t memory[4096];
	const char *names[] = {"no_such_device", "no:such:device", "",     "a:1:2:3", ":1", "a:0",
			       "a:256",          "a:1:",           "a:1:x"};
	const int expected[] = {-ENODEV, -EINVAL, 0,       -EINVAL, -EINVAL,
				-EINVAL, -EINVAL, -EINVAL, -EINVAL};

	(void)state;
	for (uint32_t i = 0; i < ARRAY_COUNT(names); i++) {
		struct rdma_owner_config config = {
		    .device = names[i], .memory = memory, .bytes = sizeof(memory)};
		char error[SSV_ERROR_TEXT_MAX] = "";
		struct rdma_owner *owner = NULL;
		struct blob blob;
		int err = rdma_owner_open(&config, &owner, &blob, error);

		if (expected[i] && err != -ENOTSUP && err != expected[i])
			fail_msg("\"%s\": %d (%s), expected %d", names[i], err, error, expected[i]);
		assert_true(!err || strstr(error, "RDMA"));
		assert_int_equal(rdma_owner_close(owner), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(words_come_back_from_their_bytes),
	    cmocka_unit_test(each_lie_has_its_reason),
	    cmocka_unit_test(random_bytes_are_refused_or_within_limits),
	    cmocka_unit_test(a_region_that_cannot_be_reached_is_refused),
	    cmocka_unit_test(memory_is_not_offered_without_a_device),
	};
	const char *text = getenv("SSV_SEED");

	seed = text ? strtoull(text, NULL, 0) : 1;
	print_message("SSV_SEED=%llu\n", (unsigned long long)seed);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
