/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_damage.c - class data and exceptions that lie, under checksums that are right: the verdict
 * is -EBADMSG, nothing outside the targets is written (guard bytes; ASan sees the rest), and reads
 * stay within the value and its slack.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "craft.h"

static struct test_chunk sample(struct test_codec *codec, uint8_t backend, uint64_t seed)
{
	struct craft craft = {.shape = test_shape(SSV_DTYPE_BF16, 2, 96, 64),
			      .codec = backend,
			      .flags = TENSOR_OFFSET_I8 | TENSOR_DELTA | TENSOR_ORDER,
			      .exceptions = 50,
			      .verbatim_tokens = 2,
			      .tensors_an_entry = backend == SSV_CODEC_DEFLATE ? 4 : 1,
			      .seed = seed};
	struct test_chunk chunk;
	uint8_t *expected;

	chunk = craft_chunk(codec, &craft, &expected);
	free(expected);
	return chunk;
}

/* Decode what may be damaged. 0, -EBADMSG, or -EBADMSG already on opening. */
static int decode(struct test_codec *codec, const struct test_chunk *chunk,
		  enum container_fault *ret_fault)
{
	struct container container;
	struct container_expect expect = {
	    .value_bytes = chunk->bytes_count, .first_token = -1, .any_key = 1};
	uint8_t *out;
	int err = container_open(&container, chunk->bytes, chunk->bytes_count, &expect, ret_fault);

	if (err)
		return err;
	out = calloc(1, shape_kv_bytes(&container.header.shape));
	err = test_decode(codec, &container, out, ret_fault);
	free(out);
	return err;
}

static void first_entry(const struct test_chunk *chunk, struct container_entry *ret_entry)
{
	struct container container;

	test_open(chunk, &container);
	container_entry(&container, 0, ret_entry);
}

static int refusal(struct test_codec *codec, struct test_chunk *chunk,
		   enum container_fault *ret_fault)
{
	craft_reseal(chunk, 0);
	return decode(codec, chunk, ret_fault);
}

static void assert_refused(struct test_codec *codec, struct test_chunk *chunk,
			   enum container_fault expected)
{
	enum container_fault fault;

	assert_int_equal(refusal(codec, chunk, &fault), -EBADMSG);
	assert_int_equal(fault, expected);
}

static void any_byte_may_change(void **state)
{
	struct random random = {test_seed()};
	uint32_t refused = 0, accepted = 0;

	for (uint32_t i = 0; i < 1200; i++) {
		uint8_t backend = lossless_at(1 + i % 3)->codec;
		struct test_chunk chunk = sample(*state, backend, i / 300);
		struct container_entry entry;
		enum container_fault fault;
		uint32_t edits = 1 + random_below(&random, 4);
		int err;

		first_entry(&chunk, &entry);
		for (uint32_t k = 0; k < edits; k++) {
			/* table, meta or the first entry's wire data */
			uint64_t from = random_below(&random, 3) ? entry.offset : 256;
			uint64_t to = entry.offset + entry.wire_bytes;

			chunk.bytes[from + random_below(&random, (uint32_t)(to - from))] ^=
			    (uint8_t)(1 + random_below(&random, 255));
		}
		craft_reseal(&chunk, 0);
		err = decode(*state, &chunk, &fault);
		assert_true(!err || err == -EBADMSG || err == -ENOTSUP);
		refused += err != 0;
		accepted += !err;
		free(chunk.bytes);
	}
	/* raw bits and exceptions' values may change unnoticed, classes may not */
	assert_true(refused > 100 && accepted > 100);
}

static void r16_streams_may_lie(void **state)
{
	struct random random = {test_seed()};
	uint32_t refused = 0;

	for (uint32_t i = 0; i < 400; i++) {
		struct test_chunk chunk = sample(*state, SSV_CODEC_R16, i);
		struct container_entry entry;
		uint8_t *wire;
		enum container_fault fault;
		uint32_t length, at;
		int err;

		first_entry(&chunk, &entry);
		assert_int_equal(entry.streams_count, 2);
		wire = chunk.bytes + entry.offset;
		length = load_le32(wire);
		switch (i % 8) {
		case 0: /* a byte more for the first stream, one less for the second */
			store_le32(wire, length + 1);
			store_le32(wire + 4, load_le32(wire + 4) - 1);
			break;
		case 1: /* longer than the class data */
			store_le32(wire, UINT32_MAX - random_below(&random, 200));
			break;
		case 2: /* too short for its states */
			store_le32(wire, random_below(&random, 128));
			break;
		case 3: /* states that only ever ask for bytes */
			memset(wire + 8, 0, 128);
			memset(wire + 136, 0, length - 128);
			break;
		case 4:
			memset(wire + 8, 0xff, length);
			break;
		case 5: /* one state: its lane may fall into step again, unnoticed */
			wire[8 + random_below(&random, 128)] ^= (uint8_t)(1 + i % 255);
			break;
		case 6: /* one byte */
			at = 136 + random_below(&random, length - 128);
			wire[at] ^= (uint8_t)(1 + i % 255);
			break;
		default: /* noise */
			for (uint32_t k = 8; k < entry.class_bytes; k++)
				wire[k] = (uint8_t)random_next(&random);
			break;
		}
		err = refusal(*state, &chunk, &fault);
		assert_true(err == -EBADMSG || (!err && (i % 8 == 5 || i % 8 == 6)));
		assert_true(!err || fault == CONTAINER_FAULT_SEGMENT);
		refused += err != 0;
		free(chunk.bytes);
	}
	assert_true(refused > 350);
}

/* Every shorter prefix of a stream, as the whole stream. */
static void r16_streams_may_be_cut(void **state)
{
	struct test_chunk chunk = sample(*state, SSV_CODEC_R16, 3);
	struct container_entry entry;
	uint32_t first, second;

	first_entry(&chunk, &entry);
	first = load_le32(chunk.bytes + entry.offset);
	second = load_le32(chunk.bytes + entry.offset + 4);
	for (uint32_t cut = 1; cut < first - 128; cut += 1 + cut / 3) {
		store_le32(chunk.bytes + entry.offset, first - cut);
		store_le32(chunk.bytes + entry.offset + 4, second + cut);
		assert_refused(*state, &chunk, CONTAINER_FAULT_SEGMENT);
	}
	free(chunk.bytes);
}

/* A stream of zeros, one thousand times smaller than what it inflates to. */
static uint32_t make_bomb(uint8_t *out, uint32_t room)
{
	uint8_t *zeros = calloc(1, 4 << 20);
	z_stream z = {0};

	assert_non_null(zeros);
	assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY), Z_OK);
	z.next_in = zeros;
	z.avail_in = 4 << 20;
	z.next_out = out;
	z.avail_out = room;
	(void)deflate(&z, Z_FINISH);
	deflateEnd(&z);
	free(zeros);
	return (uint32_t)z.total_out;
}

static void deflate_streams_may_lie(void **state)
{
	struct random random = {test_seed()};

	for (uint32_t i = 0; i < 60; i++) {
		struct test_chunk chunk = sample(*state, SSV_CODEC_DEFLATE, i);
		struct container_entry entry;
		uint8_t *wire, pairs[300] = {0};

		first_entry(&chunk, &entry);
		assert_int_equal(entry.tensors_count, 4);
		wire = chunk.bytes + entry.offset;
		switch (i % 5) {
		case 0:
			make_bomb(wire, entry.class_bytes);
			break;
		case 1: /* too little, then rubbish */
			craft_deflate(pairs, sizeof(pairs), wire, entry.class_bytes);
			break;
		case 2:
			memset(wire, 0, entry.class_bytes);
			break;
		case 3:
			wire[random_below(&random, entry.class_bytes - 1)] ^=
			    (uint8_t)(1 << random_below(&random, 8));
			break;
		default:
			for (uint32_t k = 0; k < entry.class_bytes; k++)
				wire[k] = (uint8_t)random_next(&random);
			break;
		}
		assert_refused(*state, &chunk, CONTAINER_FAULT_SEGMENT);
		free(chunk.bytes);
	}
}

static void inflated_classes_have_a_checksum_too(void **state)
{
	for (uint32_t b = 1; lossless_at(b); b++) {
		struct test_chunk chunk = sample(*state, lossless_at(b)->codec, 9);
		struct container_entry entry;

		if (lossless_at(b)->codec == SSV_CODEC_R16) {
			free(chunk.bytes);
			continue;
		}
		first_entry(&chunk, &entry);
		chunk.bytes[256 + 44] ^= 1; /* class_crc of the first entry */
		assert_refused(*state, &chunk, CONTAINER_FAULT_SEGMENT);
		free(chunk.bytes);
	}
}

static void put_index(uint8_t *exception, uint32_t index)
{
	exception[0] = (uint8_t)index;
	exception[1] = (uint8_t)(index >> 8);
	exception[2] = (uint8_t)(index >> 16);
}

static void exceptions_may_lie(void **state)
{
	for (uint32_t i = 0; i < 5; i++) {
		struct test_chunk chunk = sample(*state, SSV_CODEC_R16, 40 + i);
		struct container_entry entry;
		uint8_t *exceptions, swap[5];

		first_entry(&chunk, &entry);
		exceptions = chunk.bytes + entry.offset + entry.class_bytes + entry.raw_bytes;
		assert_true(entry.exceptions_count > 8);
		switch (i) {
		case 0: /* just beyond the tensor */
			put_index(exceptions + 5 * (entry.exceptions_count - 1), 64 * 2 * 96);
			break;
		case 1: /* far beyond */
			put_index(exceptions, 0xffffff);
			break;
		case 2: /* twice */
			memcpy(exceptions + 5, exceptions, 5);
			break;
		case 3: /* in a verbatim token */
			put_index(exceptions, 2 * 96 + 5);
			break;
		default: /* out of turn */
			memcpy(swap, exceptions, 5);
			memcpy(exceptions, exceptions + 5, 5);
			memcpy(exceptions + 5, swap, 5);
			break;
		}
		assert_refused(*state, &chunk, CONTAINER_FAULT_EXCEPTION);
		free(chunk.bytes);
	}
}

static void a_changed_byte_is_seen_before_decoding(void **state)
{
	struct test_chunk chunk = sample(*state, SSV_CODEC_R16, 1);
	struct container_entry entry;
	enum container_fault fault;

	first_entry(&chunk, &entry);
	for (uint32_t at = 0; at < entry.wire_bytes; at += 211) {
		chunk.bytes[entry.offset + at] ^= 0x10;
		assert_int_equal(decode(*state, &chunk, &fault), -EBADMSG);
		assert_int_equal(fault, CONTAINER_FAULT_SEGMENT_CRC);
		chunk.bytes[entry.offset + at] ^= 0x10;
	}
	assert_int_equal(decode(*state, &chunk, &fault), 0);
	free(chunk.bytes);
}

/* Scratch made for narrower chunks refuses wider ones. */
static void a_wider_chunk_is_refused(void **state)
{
	uint64_t bytes = codec_scratch_bytes(128);
	struct test_codec narrow = {.scratch = aligned_alloc(CACHE_LINE_BYTES, bytes)};
	struct test_chunk chunk = sample(*state, SSV_CODEC_R16, 1);
	enum container_fault fault;

	assert_int_equal(codec_scratch_init(narrow.scratch, bytes - 1, 128), -E2BIG);
	assert_int_equal(codec_scratch_init(narrow.scratch, bytes, 0), -EINVAL);
	assert_int_equal(codec_scratch_init(narrow.scratch, bytes, 128), 0);
	assert_int_equal(decode(&narrow, &chunk, &fault), -EBADMSG);
	assert_int_equal(fault, CONTAINER_FAULT_SHAPE);
	test_codec_close(&narrow);
	free(chunk.bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(any_byte_may_change),
	    cmocka_unit_test(r16_streams_may_lie),
	    cmocka_unit_test(r16_streams_may_be_cut),
	    cmocka_unit_test(deflate_streams_may_lie),
	    cmocka_unit_test(inflated_classes_have_a_checksum_too),
	    cmocka_unit_test(exceptions_may_lie),
	    cmocka_unit_test(a_changed_byte_is_seen_before_decoding),
	    cmocka_unit_test(a_wider_chunk_is_refused),
	};

	return cmocka_run_group_tests(tests, test_scratch_open, test_scratch_close);
}
