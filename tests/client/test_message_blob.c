/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_message_blob.c - REGISTER and REGISTERED with a blob beside them: what comes back, and which
 * lies about its length are refused.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/message.h"

#define ROOM      8192
#define BLOB_AT   (MESSAGE_HEADER_BYTES + sizeof(struct wire_register))
#define ANSWER_AT (MESSAGE_HEADER_BYTES + sizeof(struct wire_region))

static struct blob blob_of(uint32_t bytes)
{
	struct blob blob = {.bytes = bytes};

	for (uint32_t i = 0; i < bytes; i++)
		blob.data[i] = (uint8_t)(i * 7 + 1);
	return blob;
}

static size_t register_make(uint8_t *out, uint32_t memory, const struct blob *blob)
{
	static const struct ssv_tensor tensors[2] = {{.block_stride = 64}, {.layer = 1}};
	const struct ssv_region region = {.memory = memory, .bytes = 4096};
	const struct ssv_layout layout = {
	    .parts_count = 1, .tensors_count = 2, .blocks_count = 9, .tensors = tensors};

	return message_encode_register(out, ROOM, 3, &region, &layout, blob);
}

/* Decode a copy of exactly its bytes, so that the address sanitizer sees any read beyond them. */
static int decode(const uint8_t *in, size_t bytes, struct blob *ret_blob)
{
	static struct ssv_tensor tensors[SSV_TENSORS_MAX];
	enum message_sender sender = MESSAGE_FROM_CLIENT;
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct ssv_region region;
	struct ssv_layout layout;
	struct message message;
	uint32_t number;
	uint8_t *copy = malloc(bytes);
	size_t needed;
	int err;

	memcpy(copy, in, bytes);
	if (((struct wire_header *)(void *)copy)->type == MESSAGE_REGISTERED)
		sender = MESSAGE_FROM_DAEMON;
	err = message_find(copy, bytes, sender, &message, &needed, error);
	if (err == 1 && message.type == MESSAGE_REGISTERED)
		err = message_decode_registered(&message, &number, ret_blob, error);
	else if (err == 1)
		err = message_decode_register(&message, &region, &layout, tensors, ret_blob, error);
	assert_true(err == 0 || error[0]);
	if (!err && message.type == MESSAGE_REGISTER)
		assert_int_equal(layout.blocks_count, 9);
	free(copy);
	return err;
}

static void a_blob_of_every_length_comes_back(void **unused)
{
	static uint8_t buffer[ROOM] __attribute__((aligned(8)));

	(void)unused;
	for (uint32_t n = 1; n <= BLOB_BYTES_MAX; n++) {
		struct blob in = blob_of(n), out;
		size_t bytes = register_make(buffer, SSV_MEMORY_TCP + n % 2, &in);

		assert_int_equal(decode(buffer, bytes, &out), 0);
		assert_memory_equal(&out, &in, sizeof(in));
		bytes = message_encode_registered(buffer, ROOM, 3, 77, &in);
		assert_int_equal(decode(buffer, bytes, &out), 0);
		assert_memory_equal(&out, &in, sizeof(in));
		assert_int_equal(message_encode_registered(buffer, bytes - 1, 3, 77, &in), 0);
	}
}

static void other_kinds_and_plain_answers_carry_none(void **unused)
{
	static uint8_t buffer[ROOM] __attribute__((aligned(8)));
	struct blob in = blob_of(9), out;
	size_t plain = register_make(buffer, SSV_MEMORY_MEMFD, &in);

	(void)unused;
	assert_int_equal(decode(buffer, plain, &out), 0);
	assert_int_equal(out.bytes, 0);
	assert_int_equal(register_make(buffer, SSV_MEMORY_TCP, &in) - plain,
			 sizeof(struct wire_blob));
	/* A kind of a relay without the bytes of a blob, and the other way round. */
	plain = register_make(buffer, SSV_MEMORY_MEMFD, &in);
	buffer[MESSAGE_HEADER_BYTES] = SSV_MEMORY_TCP;
	assert_int_equal(decode(buffer, plain, &out), -EPROTO);
	plain = register_make(buffer, SSV_MEMORY_RDMA, &in);
	buffer[MESSAGE_HEADER_BYTES] = SSV_MEMORY_ADDRESS;
	assert_int_equal(decode(buffer, plain, &out), -EPROTO);
	plain = message_encode_registered(buffer, ROOM, 3, 77, NULL);
	assert_int_equal(decode(buffer, plain, &out), 0);
	assert_int_equal(out.bytes, 0);
}

/* The blob at `at` of a message lies about itself. */
static void lies_are_refused(uint8_t *buffer, size_t bytes, size_t at)
{
	static const uint32_t lengths[] = {0, 12, BLOB_BYTES_MAX + 1, 1u << 31, UINT32_MAX};
	struct wire_blob *wire = (struct wire_blob *)(void *)(buffer + at);
	const uint32_t honest = wire->bytes;
	struct blob out;

	for (size_t i = 0; i < ARRAY_COUNT(lengths); i++) {
		wire->bytes = lengths[i];
		assert_int_equal(decode(buffer, bytes, &out), -EPROTO);
	}
	wire->bytes = honest;
	assert_int_equal(decode(buffer, bytes, &out), 0);
	wire->reserved = 1;
	assert_int_equal(decode(buffer, bytes, &out), -EPROTO);
	wire->reserved = 0;
	wire->data[BLOB_BYTES_MAX - 1] = 1;
	assert_int_equal(decode(buffer, bytes, &out), -EPROTO);
}

static void blobs_that_lie_are_refused(void **unused)
{
	static uint8_t buffer[ROOM] __attribute__((aligned(8)));
	struct blob in = blob_of(20);
	size_t bytes;

	(void)unused;
	bytes = register_make(buffer, SSV_MEMORY_TCP, &in);
	lies_are_refused(buffer, bytes, BLOB_AT);
	bytes = message_encode_registered(buffer, ROOM, 3, 77, &in);
	lies_are_refused(buffer, bytes, ANSWER_AT);
}

/* Between "no blob" and "a blob" there is no length that an answer may have. */
static void answers_of_other_lengths_are_refused(void **unused)
{
	static uint8_t buffer[ROOM] __attribute__((aligned(8)));
	struct blob in = blob_of(20), out;
	uint32_t whole = (uint32_t)message_encode_registered(buffer, ROOM, 3, 77, &in);

	(void)unused;
	for (uint32_t lie = MESSAGE_HEADER_BYTES; lie <= whole; lie += 8) {
		((struct wire_header *)(void *)buffer)->bytes = lie;
		assert_int_equal(decode(buffer, lie, &out),
				 lie == whole || lie == ANSWER_AT ? 0 : -EPROTO);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_blob_of_every_length_comes_back),
	    cmocka_unit_test(other_kinds_and_plain_answers_carry_none),
	    cmocka_unit_test(blobs_that_lie_are_refused),
	    cmocka_unit_test(answers_of_other_lengths_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
