/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_message.c - every message survives encode and decode; every truncation, wrong length and
 * random byte is refused or decoded without reading outside the message.
 *
 * Messages are decoded from heap blocks of exactly their length, so that the address sanitizer sees
 * any read beyond them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/message.h"

#define ROOM (MESSAGE_REQUEST_BYTES_MAX + 64)

static uint64_t state;

static uint64_t rnd(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static void seed_random(void)
{
	const char *text = getenv("SSV_SEED");

	state = text ? strtoull(text, NULL, 0) : (uint64_t)time(NULL) * 2654435761u;
	state |= 1;
	print_message("SSV_SEED=%llu\n", (unsigned long long)state);
}

/* Find the only message in a copy of exactly `bytes` bytes; the copy is *ret_copy. */
static struct message find_one(const uint8_t *in, size_t bytes, enum message_sender sender,
			       uint8_t **ret_copy)
{
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct message message;
	size_t needed;

	*ret_copy = malloc(bytes);
	memcpy(*ret_copy, in, bytes);
	assert_int_equal(message_find(*ret_copy, bytes, sender, &message, &needed, error), 1);
	assert_int_equal(message.bytes, bytes);
	assert_int_equal(bytes % 8, 0);
	return message;
}

static void hello_comes_back(void **unused)
{
	struct message_hello in = {1, 3, 5, 8, "engine-7"}, out;
	uint8_t *buffer = malloc(ROOM), *copy;
	char error[SSV_ERROR_TEXT_MAX];
	struct message message;
	size_t bytes;

	(void)unused;
	bytes = message_encode_hello(buffer, ROOM, 42, &in);
	message = find_one(buffer, bytes, MESSAGE_FROM_CLIENT, &copy);
	assert_int_equal(message.type, MESSAGE_HELLO);
	assert_int_equal(message.id, 42);
	assert_int_equal(message_decode_hello(&message, &out, error), 0);
	assert_int_equal(out.version_min, 1);
	assert_int_equal(out.version_max, 3);
	assert_int_equal(out.rank, 5);
	assert_int_equal(out.ranks_count, 8);
	assert_string_equal(out.engine_id, "engine-7");
	assert_int_equal(message_encode_hello(buffer, bytes - 1, 42, &in), 0);
	free(copy);
	free(buffer);
}

static void hello_without_magic_is_refused(void **unused)
{
	struct message_hello in = {1, 1, 0, 1, "e"}, out;
	uint8_t *buffer = malloc(ROOM), *copy;
	char error[SSV_ERROR_TEXT_MAX];
	struct message message;
	size_t bytes;

	(void)unused;
	bytes = message_encode_hello(buffer, ROOM, 0, &in);
	buffer[MESSAGE_HEADER_BYTES + 6] = '\n'; /* what a text-mode transport would do */
	message = find_one(buffer, bytes, MESSAGE_FROM_CLIENT, &copy);
	assert_int_equal(message_decode_hello(&message, &out, error), -EPROTO);
	assert_non_null(strstr(error, "magic"));
	free(copy);
	bytes = message_encode_hello(buffer, ROOM, 0, &in);
	memset(buffer + bytes - SSV_ENGINE_ID_MAX, 'x', SSV_ENGINE_ID_MAX);
	message = find_one(buffer, bytes, MESSAGE_FROM_CLIENT, &copy);
	assert_int_equal(message_decode_hello(&message, &out, error), -EPROTO);
	free(copy);
	free(buffer);
}

static void welcome_and_region_come_back(void **unused)
{
	struct message_welcome in = {2, 77, 1024, 4096, 65536, 1 << 20, "0.1.0"}, out;
	uint8_t *buffer = malloc(ROOM), *copy;
	char error[SSV_ERROR_TEXT_MAX];
	struct message message;
	uint32_t region;
	size_t bytes;

	(void)unused;
	bytes = message_encode_welcome(buffer, ROOM, 1, &in);
	message = find_one(buffer, bytes, MESSAGE_FROM_DAEMON, &copy);
	assert_int_equal(message_decode_welcome(&message, &out, error), 0);
	assert_int_equal(out.version, 2);
	assert_int_equal(out.pid, 77);
	assert_int_equal(out.blocks_max, 65536);
	assert_string_equal(out.daemon_version, "0.1.0");
	free(copy);
	bytes = message_encode_region(buffer, ROOM, MESSAGE_UNREGISTER, 9, 0xfeedface);
	message = find_one(buffer, bytes, MESSAGE_FROM_CLIENT, &copy);
	assert_int_equal(message_decode_region(&message, &region, error), 0);
	assert_int_equal(region, 0xfeedface);
	free(copy);
	free(buffer);
}

static void text_of_every_length_comes_back(void **unused)
{
	uint8_t *buffer = malloc(ROOM), *copy;
	char error[SSV_ERROR_TEXT_MAX], text[SSV_ERROR_TEXT_MAX];
	struct message_text out;
	struct message message;

	(void)unused;
	memset(text, 'a', sizeof(text));
	for (size_t n = 0; n < sizeof(text); n++) {
		size_t bytes =
		    message_encode_text(buffer, ROOM, MESSAGE_CLOSE, n, -EPROTO, text, n);

		message = find_one(buffer, bytes, MESSAGE_FROM_DAEMON, &copy);
		assert_int_equal(message_decode_text(&message, &out, error), 0);
		assert_int_equal(out.status, -EPROTO);
		assert_int_equal(out.text_bytes, n);
		assert_memory_equal(out.text, text, n);
		free(copy);
	}
	free(buffer);
}

static struct ssv_layout layout_make(struct ssv_tensor *tensors, uint32_t tensors_count)
{
	struct ssv_layout layout = {
	    .struct_size = sizeof(layout),
	    .dtype = SSV_DTYPE_FP16,
	    .parts_count = 2,
	    .layer0 = 3,
	    .layers_count = (uint16_t)(tensors_count / 2),
	    .layers_total = 40,
	    .rank = 1,
	    .ranks_count = 2,
	    .block_tokens = 32,
	    .blocks_count = 100,
	    .tensors_count = tensors_count,
	    .model = {1, 2, 3, 4, 5, 6, 7, 8},
	    .tensors = tensors,
	};

	for (uint32_t i = 0; i < 2; i++) {
		layout.parts[i].role = (uint8_t)(i + 1);
		layout.parts[i].heads = 4;
		layout.parts[i].dim = 64;
		layout.parts[i].digits_count = 3;
		layout.parts[i].digits[0] =
		    (struct ssv_digit){.axis = 0, .extent = 32, .stride = 1};
		layout.parts[i].digits[1] =
		    (struct ssv_digit){.axis = 2, .extent = 64, .stride = 32};
		layout.parts[i].digits[2] =
		    (struct ssv_digit){.axis = 1, .extent = 4, .stride = INT64_MAX};
	}
	for (uint32_t i = 0; i < tensors_count; i++) {
		tensors[i] = (struct ssv_tensor){.layer = (uint16_t)(i / 2),
						 .part = i % 2,
						 .offset = (uint64_t)i << 40,
						 .block_stride = 8192};
	}
	return layout;
}

static void register_comes_back(void **unused)
{
	struct ssv_tensor *tensors = calloc(SSV_TENSORS_MAX, sizeof(*tensors));
	struct ssv_tensor *tensors_out = calloc(SSV_TENSORS_MAX, sizeof(*tensors));
	struct ssv_region region = {.memory = SSV_MEMORY_ADDRESS,
				    .address = 0x7f0000000000,
				    .bytes = 1ull << 33},
			  region_out;
	struct ssv_layout layout = layout_make(tensors, SSV_TENSORS_MAX), layout_out;
	struct blob blob;
	uint8_t *buffer = malloc(ROOM), *copy;
	char error[SSV_ERROR_TEXT_MAX];
	struct message message;
	size_t bytes;

	(void)unused;
	bytes = message_encode_register(buffer, ROOM, 5, &region, &layout, NULL);
	message = find_one(buffer, bytes, MESSAGE_FROM_CLIENT, &copy);
	assert_int_equal(
	    message_decode_register(&message, &region_out, &layout_out, tensors_out, &blob, error),
	    0);
	assert_int_equal(region_out.address, region.address);
	assert_int_equal(region_out.bytes, region.bytes);
	assert_int_equal(region_out.fd, -1);
	assert_memory_equal(layout_out.parts, layout.parts, sizeof(layout.parts));
	assert_memory_equal(tensors_out, tensors, SSV_TENSORS_MAX * sizeof(*tensors));
	assert_memory_equal(layout_out.model, layout.model, 8);
	assert_int_equal(layout_out.layers_total, 40);
	assert_int_equal(message_encode_register(buffer, bytes - 1, 5, &region, &layout, NULL), 0);
	free(copy);
	free(buffer);
	free(tensors);
	free(tensors_out);
}

static void request_of_many_sizes_comes_back(void **unused)
{
	static const uint32_t sizes[][2] = {{0, 0}, {1, 0},    {0, 1},
					    {1, 1}, {24, 187}, {SSV_KEYS_MAX, SSV_BLOCKS_MAX}};
	struct ssv_key *keys = calloc(SSV_KEYS_MAX, sizeof(*keys));
	uint32_t *blocks = calloc(SSV_BLOCKS_MAX, sizeof(*blocks));
	uint8_t *buffer = malloc(ROOM), *copy;
	char error[SSV_ERROR_TEXT_MAX];
	struct message message;

	(void)unused;
	for (uint32_t i = 0; i < SSV_BLOCKS_MAX; i++)
		blocks[i] = (uint32_t)rnd();
	for (uint32_t i = 0; i < SSV_KEYS_MAX; i++)
		keys[i].bytes[i % 32] = (uint8_t)rnd();
	for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
		struct ssv_request in = {.op = SSV_OP_FETCH,
					 .min_tier = 3,
					 .region = 6,
					 .user_data = UINT64_MAX,
					 .target = 1,
					 .keys = keys,
					 .blocks = blocks,
					 .keys_count = sizes[i][0],
					 .blocks_count = sizes[i][1],
					 .ranks_count = 1,
					 .first_token = 32,
					 .position = 512,
					 .deadline_ms = 2000};
		size_t bytes = message_encode_request(buffer, ROOM, &in);
		struct ssv_request out;

		assert_int_equal(bytes, message_request_bytes(&in));
		message = find_one(buffer, bytes, MESSAGE_FROM_CLIENT, &copy);
		assert_int_equal(message_decode_request(&message, &out, error), 0);
		assert_memory_equal(out.keys, keys, sizes[i][0] * sizeof(*keys));
		assert_memory_equal(out.blocks, blocks, sizes[i][1] * sizeof(*blocks));
		out.keys = in.keys;
		out.blocks = in.blocks;
		assert_memory_equal(&in, &out, sizeof(in));
		assert_int_equal(message_encode_request(buffer, bytes - 1, &in), 0);
		free(copy);
	}
	free(buffer);
	free(keys);
	free(blocks);
}

static void request_counts_must_match_its_length(void **unused)
{
	struct ssv_key key = {{0}};
	uint32_t block = 1;
	struct ssv_request in = {
	    .op = SSV_OP_FETCH, .keys = &key, .blocks = &block, .keys_count = 1, .blocks_count = 1};
	struct wire_request *wire;
	uint8_t *buffer = malloc(ROOM), *copy;
	char error[SSV_ERROR_TEXT_MAX];
	struct ssv_request out;
	struct message message;
	size_t bytes;

	(void)unused;
	bytes = message_encode_request(buffer, ROOM, &in);
	wire = (struct wire_request *)(void *)(buffer + MESSAGE_HEADER_BYTES);
	for (uint32_t i = 0; i < 1000; i++) {
		wire->keys_count = i < 500 ? i : (uint32_t)rnd();
		wire->blocks_count = i % 2 ? 1 : (uint32_t)rnd();
		message = find_one(buffer, bytes, MESSAGE_FROM_CLIENT, &copy);
		if (wire->keys_count != 1 || wire->blocks_count != 1)
			assert_int_equal(message_decode_request(&message, &out, error), -EPROTO);
		free(copy);
	}
	free(buffer);
}

static void completions_grow_until_full(void **unused)
{
	uint8_t *buffer = malloc(ROOM), *copy;
	char error[SSV_ERROR_TEXT_MAX];
	struct ssv_completion completion = {.op = SSV_OP_FETCH, .status = -EBADMSG};
	struct message message;
	uint32_t count;
	size_t bytes;

	(void)unused;
	bytes = message_completions_begin(buffer, ROOM);
	for (uint32_t i = 0; i < MESSAGE_COMPLETIONS_MAX; i++) {
		completion.user_data = i;
		completion.wire_bytes = (uint64_t)i << 33;
		assert_int_equal(message_completions_append(buffer, bytes + 47, &completion), 0);
		bytes = message_completions_append(buffer, bytes + 48, &completion);
		assert_int_not_equal(bytes, 0);
	}
	assert_int_equal(message_completions_append(buffer, ROOM, &completion), 0);
	message = find_one(buffer, bytes, MESSAGE_FROM_DAEMON, &copy);
	assert_int_equal(message_decode_completions(&message, &count, error), 0);
	assert_int_equal(count, MESSAGE_COMPLETIONS_MAX);
	for (uint32_t i = 0; i < count; i++) {
		message_completion_at(&message, i, &completion);
		assert_int_equal(completion.user_data, i);
		assert_int_equal(completion.wire_bytes, (uint64_t)i << 33);
		assert_int_equal(completion.status, -EBADMSG);
	}
	free(copy);
	free(buffer);
}

/* Decode whatever the header says it is. */
static int decode_any(const struct message *message)
{
	static struct ssv_tensor tensors[SSV_TENSORS_MAX];
	char error[SSV_ERROR_TEXT_MAX];
	union {
		struct message_hello hello;
		struct message_welcome welcome;
		struct message_text text;
		struct ssv_request request;
		struct ssv_completion completion;
		struct message_events events;
		struct trace_event event;
		uint64_t from;
	} out;
	struct ssv_region region;
	struct ssv_layout layout;
	struct blob blob;
	uint32_t n;
	int rc;

	switch (message->type) {
	case MESSAGE_HELLO:
		return message_decode_hello(message, &out.hello, error);
	case MESSAGE_WELCOME:
		return message_decode_welcome(message, &out.welcome, error);
	case MESSAGE_REFUSED:
	case MESSAGE_CLOSE:
	case MESSAGE_STATUS:
		return message_decode_text(message, &out.text, error);
	case MESSAGE_REGISTER:
		return message_decode_register(message, &region, &layout, tensors, &blob, error);
	case MESSAGE_REGISTERED:
		return message_decode_registered(message, &n, &blob, error);
	case MESSAGE_UNREGISTER:
	case MESSAGE_UNREGISTERED:
		return message_decode_region(message, &n, error);
	case MESSAGE_REQUEST:
		return message_decode_request(message, &out.request, error);
	case MESSAGE_STAT:
	case MESSAGE_RESET:
		return message_decode_stat(message, error);
	case MESSAGE_TRACE:
		return message_decode_trace(message, &n, &out.from, error);
	case MESSAGE_EVENTS:
		rc = message_decode_events(message, &out.events, error);
		n = rc == 0 ? out.events.count : 0;
		for (uint32_t i = 0; i < n; i++)
			message_event_at(message, i, &out.event);
		return rc;
	default:
		rc = message_decode_completions(message, &n, error);
		for (uint32_t i = 0; rc == 0 && i < n; i++)
			message_completion_at(message, i, &out.completion);
		return rc;
	}
}

static size_t encode_any(uint8_t *out, uint16_t type)
{
	static struct ssv_tensor tensors[4];
	struct ssv_layout layout = layout_make(tensors, 4);
	struct ssv_region region = {.memory = SSV_MEMORY_MEMFD, .bytes = 1 << 20};
	struct message_hello hello = {1, 1, 0, 1, "e"};
	struct message_welcome welcome = {1, 1, 1, 1, 1, 1, "0.1.0"};
	struct ssv_completion completion = {.op = 1};
	struct message_events events = {.tracks_count = 3, .count = 2, .head = 9};
	struct trace_event trace[2] = {{.start_ns = 1}, {.start_ns = 2}};
	struct ssv_key keys[3] = {0};
	uint32_t blocks[5] = {0};
	struct ssv_request request = {
	    .op = 2, .keys = keys, .keys_count = 3, .blocks = blocks, .blocks_count = 5};

	switch (type) {
	case MESSAGE_HELLO:
		return message_encode_hello(out, ROOM, 1, &hello);
	case MESSAGE_WELCOME:
		return message_encode_welcome(out, ROOM, 1, &welcome);
	case MESSAGE_REFUSED:
	case MESSAGE_CLOSE:
	case MESSAGE_STATUS:
		return message_encode_text(out, ROOM, type, 1, -1, "some text", 9);
	case MESSAGE_REGISTER:
		return message_encode_register(out, ROOM, 1, &region, &layout, NULL);
	case MESSAGE_REGISTERED:
	case MESSAGE_UNREGISTER:
	case MESSAGE_UNREGISTERED:
		return message_encode_region(out, ROOM, type, 1, 7);
	case MESSAGE_REQUEST:
		return message_encode_request(out, ROOM, &request);
	case MESSAGE_STAT:
		return message_encode_stat(out, ROOM, 1);
	case MESSAGE_RESET:
		return message_encode_reset(out, ROOM, 1);
	case MESSAGE_TRACE:
		return message_encode_trace(out, ROOM, 1, 2, 3);
	case MESSAGE_EVENTS:
		return message_encode_events(out, ROOM, 1, &events, trace);
	default:
		message_completions_begin(out, ROOM);
		return message_completions_append(out, ROOM, &completion);
	}
}

static enum message_sender sender_of(uint16_t type)
{
	switch (type) {
	case MESSAGE_HELLO:
	case MESSAGE_REGISTER:
	case MESSAGE_UNREGISTER:
	case MESSAGE_REQUEST:
	case MESSAGE_STAT:
	case MESSAGE_RESET:
	case MESSAGE_TRACE:
		return MESSAGE_FROM_CLIENT;
	default:
		return MESSAGE_FROM_DAEMON;
	}
}

static void every_truncation_waits_for_more(void **unused)
{
	uint8_t *buffer = malloc(ROOM);
	char error[SSV_ERROR_TEXT_MAX];
	struct message message;
	size_t needed;

	(void)unused;
	for (uint16_t type = 1; type < MESSAGE_TYPES_COUNT; type++) {
		size_t bytes = encode_any(buffer, type);

		for (size_t n = 0; n < bytes; n++) {
			uint8_t *copy = malloc(n ? n : 1);

			memcpy(copy, buffer, n);
			assert_int_equal(
			    message_find(copy, n, sender_of(type), &message, &needed, error), 0);
			assert_int_equal(needed, n < MESSAGE_HEADER_BYTES ? 16 : bytes);
			free(copy);
		}
	}
	free(buffer);
}

/* The header lies about the length: shorter or longer by whole words than the counts say. */
static void every_wrong_length_is_refused(void **unused)
{
	uint8_t *buffer = malloc(ROOM);
	char error[SSV_ERROR_TEXT_MAX];
	struct message message;
	size_t needed;

	(void)unused;
	for (uint16_t type = 1; type < MESSAGE_TYPES_COUNT; type++) {
		size_t bytes = encode_any(buffer, type);

		for (uint32_t lie = 0; lie < bytes + 4096; lie++) {
			uint8_t *copy = calloc(1, lie < 16 ? 16 : lie);
			int rc;

			memcpy(copy, buffer, bytes < lie ? bytes : lie < 16 ? 16 : lie);
			memcpy(copy, &lie, sizeof(lie));
			rc = message_find(copy, lie < 16 ? 16 : lie, sender_of(type), &message,
					  &needed, error);
			if (rc == 1)
				rc = decode_any(&message);
			assert_int_equal(rc, lie == bytes ? 0 : -EPROTO);
			free(copy);
		}
	}
	free(buffer);
}

static void the_other_sides_words_are_refused(void **unused)
{
	uint8_t *buffer = malloc(ROOM);
	char error[SSV_ERROR_TEXT_MAX];
	struct message message;
	size_t needed;

	(void)unused;
	for (uint16_t type = 1; type < MESSAGE_TYPES_COUNT; type++) {
		size_t bytes = encode_any(buffer, type);
		enum message_sender other = sender_of(type) == MESSAGE_FROM_CLIENT
						? MESSAGE_FROM_DAEMON
						: MESSAGE_FROM_CLIENT;

		assert_int_equal(message_find(buffer, bytes, other, &message, &needed, error),
				 -EPROTO);
		assert_non_null(strstr(error, message_name(type)));
	}
	free(buffer);
}

static void random_bytes_do_no_harm(void **unused)
{
	uint8_t *buffer = malloc(ROOM);
	char error[SSV_ERROR_TEXT_MAX];

	(void)unused;
	for (uint32_t round = 0; round < 200000; round++) {
		uint16_t type = (uint16_t)(1 + rnd() % (MESSAGE_TYPES_COUNT - 1));
		size_t bytes = encode_any(buffer, type);
		uint32_t flips = 1 + (uint32_t)(rnd() % 8);
		struct message message;
		uint8_t *copy;
		size_t needed;

		for (uint32_t i = 0; i < flips; i++)
			buffer[rnd() % bytes] = (uint8_t)rnd();
		copy = malloc(bytes);
		memcpy(copy, buffer, bytes);
		if (message_find(copy, bytes, sender_of(type), &message, &needed, error) == 1)
			(void)decode_any(&message);
		free(copy);
	}
	free(buffer);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(hello_comes_back),
	    cmocka_unit_test(hello_without_magic_is_refused),
	    cmocka_unit_test(welcome_and_region_come_back),
	    cmocka_unit_test(text_of_every_length_comes_back),
	    cmocka_unit_test(register_comes_back),
	    cmocka_unit_test(request_of_many_sizes_comes_back),
	    cmocka_unit_test(request_counts_must_match_its_length),
	    cmocka_unit_test(completions_grow_until_full),
	    cmocka_unit_test(every_truncation_waits_for_more),
	    cmocka_unit_test(every_wrong_length_is_refused),
	    cmocka_unit_test(the_other_sides_words_are_refused),
	    cmocka_unit_test(random_bytes_do_no_harm),
	};

	seed_random();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
