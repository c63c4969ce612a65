/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_resp.c - the RESP reader: every kind of reply, every split point, limits, random bytes.
 *
 * A reply is read into a transcript, one word an item; payload pieces are joined, so transcripts of
 * the same bytes must be equal however they were cut.
 */
#include "harness.h"

#include <errno.h>
#include <string.h>

#include "store/resp.h"

#define BULK_MAX 1000

struct transcript {
	char text[8192];
	size_t bytes;
	bool in_payload;
};

static void add(struct transcript *out, const char *text, size_t bytes)
{
	if (bytes > sizeof(out->text) - 1 - out->bytes)
		bytes = sizeof(out->text) - 1 - out->bytes;
	memcpy(out->text + out->bytes, text, bytes);
	out->bytes += bytes;
	out->text[out->bytes] = '\0';
}

static void add_item(struct transcript *out, const struct resp_item *item)
{
	static const char *const names[] = {
	    [RESP_TEXT] = "text",       [RESP_ERROR] = "error",
	    [RESP_INTEGER] = "integer", [RESP_NULL] = "null",
	    [RESP_OTHER] = "other",     [RESP_AGGREGATE] = "aggregate",
	    [RESP_BULK] = "bulk",       [RESP_BULK_ERROR] = "bulk-error",
	    [RESP_PAYLOAD] = "payload", [RESP_PAYLOAD_END] = "end",
	};
	char word[320];
	int n;

	if (item->type == RESP_PAYLOAD) {
		if (!out->in_payload)
			add(out, " \"", 2);
		out->in_payload = true;
		add(out, item->text, item->text_bytes);
		return;
	}
	if (out->in_payload)
		add(out, "\"", 1);
	out->in_payload = false;
	n = snprintf(word, sizeof(word), " %s%s%u", item->aside ? ">" : "", names[item->type],
		     item->depth);
	add(out, word, (size_t)n);
	if (item->type == RESP_INTEGER || item->type == RESP_AGGREGATE || item->type == RESP_BULK ||
	    item->type == RESP_BULK_ERROR)
		n = snprintf(word, sizeof(word), "=%lld", (long long)item->number);
	else if (item->type == RESP_TEXT || item->type == RESP_ERROR || item->type == RESP_OTHER)
		n = snprintf(word, sizeof(word), "=%s", item->text);
	else
		n = 0;
	add(out, word, (size_t)n);
	if (item->ends_reply)
		add(out, ".", 1);
}

/* Feed one piece. 0 or -EPROTO. */
static int feed(struct resp_reader *reader, const char *data, size_t bytes, struct transcript *out)
{
	size_t at = 0, used;

	while (at < bytes) {
		struct resp_item item;
		int got = resp_read(reader, data + at, bytes - at, &used, &item);

		assert_true(used <= bytes - at);
		if (got < 0) {
			add(out, " !", 2);
			return got;
		}
		at += used;
		if (!got) {
			assert_int_equal(at, bytes);
			return 0;
		}
		add_item(out, &item);
	}
	return 0;
}

/* Read data cut at two places (cuts beyond the end are none). */
static void read_cut(const char *data, size_t bytes, size_t cut1, size_t cut2,
		     struct transcript *out)
{
	struct resp_reader reader;

	memset(out, 0, sizeof(*out));
	resp_init(&reader, BULK_MAX);
	if (cut1 > bytes)
		cut1 = bytes;
	if (cut2 > bytes)
		cut2 = bytes;
	if (feed(&reader, data, cut1, out) || feed(&reader, data + cut1, cut2 - cut1, out))
		return;
	(void)feed(&reader, data + cut2, bytes - cut2, out);
}

static void assert_same_at_every_cut(const char *data, size_t bytes)
{
	static struct transcript whole, cut;
	struct resp_reader reader;
	size_t i, j;

	read_cut(data, bytes, bytes, bytes, &whole);
	for (i = 0; i <= bytes; i++) {
		for (j = i; j <= bytes && (j <= i + 3 || bytes < 80); j++) {
			read_cut(data, bytes, i, j, &cut);
			assert_string_equal(cut.text, whole.text);
		}
	}
	memset(&cut, 0, sizeof(cut));
	resp_init(&reader, BULK_MAX);
	for (i = 0; i < bytes; i++) {
		if (feed(&reader, data + i, 1, &cut))
			break;
	}
	assert_string_equal(cut.text, whole.text);
}

static const struct {
	const char *data, *transcript;
} replies[] = {
    {"+OK\r\n", " text0=OK."},
    {"+\r\n", " text0=."},
    {"-ERR no such thing\r\n", " error0=ERR no such thing."},
    {":42\r\n:-7\r\n:+9\r\n", " integer0=42. integer0=-7. integer0=9."},
    {":9223372036854775807\r\n", " integer0=9223372036854775807."},
    {"$5\r\nhello\r\n", " bulk0=5 \"hello\" end0."},
    {"$0\r\n\r\n", " bulk0=0 end0."},
    {"$4\r\n\r\n\r\n\r\n", " bulk0=4 \"\r\n\r\n\" end0."},
    {"$-1\r\n*-1\r\n_\r\n", " null0. null0. null0."},
    {"*0\r\n", " aggregate0=0."},
    {"*2\r\n$1\r\na\r\n:1\r\n", " aggregate0=2 bulk1=1 \"a\" end1 integer1=1."},
    {"*2\r\n*1\r\n*1\r\n:1\r\n+x\r\n",
     " aggregate0=2 aggregate1=1 aggregate2=1 integer3=1 text1=x."},
    {"*2\r\n*0\r\n*0\r\n+x\r\n", " aggregate0=2 aggregate1=0 aggregate1=0. text0=x."},
    {"%1\r\n+a\r\n:1\r\n", " aggregate0=2 text1=a integer1=1."},
    {"%0\r\n+a\r\n", " aggregate0=0. text0=a."},
    {"~2\r\n#t\r\n,1.5\r\n", " aggregate0=2 other1=t other1=1.5."},
    {"(123456789012345678901234567890\r\n", " other0=123456789012345678901234567890."},
    {"=7\r\ntxt:abc\r\n", " bulk0=7 \"txt:abc\" end0."},
    {"!5\r\nERR x\r\n", " bulk-error0=5 \"ERR x\" end0."},
    {">2\r\n+invalidate\r\n*1\r\n+k\r\n+OK\r\n",
     " >aggregate0=2 >text1=invalidate >aggregate1=1 >text2=k. text0=OK."},
    {">0\r\n:1\r\n", " >aggregate0=0. integer0=1."},
    {"|1\r\n+ttl\r\n:5\r\n$1\r\nv\r\n",
     " >aggregate0=2 >text1=ttl >integer1=5 bulk0=1 \"v\" end0."},
    {"|0\r\n:1\r\n", " >aggregate0=0 integer0=1."},
    {"*2\r\n|1\r\n+a\r\n+b\r\n:1\r\n:2\r\n",
     " aggregate0=2 >aggregate1=2 >text2=a >text2=b integer1=1 integer1=2."},
    /* The answer of HELLO 3. */
    {"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nmodules\r\n*0\r\n",
     " aggregate0=4 bulk1=6 \"server\" end1 bulk1=5 \"redis\" end1 bulk1=7 \"modules\" end1 "
     "aggregate1=0."},
};

static void every_kind_is_read(void **state)
{
	static struct transcript out;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_COUNT(replies); i++) {
		size_t bytes = strlen(replies[i].data);

		read_cut(replies[i].data, bytes, bytes, bytes, &out);
		assert_string_equal(out.text, replies[i].transcript);
	}
}

static void cuts_change_nothing(void **state)
{
	char all[4096] = "";
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_COUNT(replies); i++) {
		assert_same_at_every_cut(replies[i].data, strlen(replies[i].data));
		strcat(all, replies[i].data);
	}
	assert_same_at_every_cut(all, strlen(all));
}

static void wrong_bytes_are_refused(void **state)
{
	static const char *const wrong[] = {
	    "\r\n",
	    "hello\r\n",
	    "OK\r\n",
	    "+OK\n",
	    "+O\rK\r\n",
	    ":\r\n",
	    ":x\r\n",
	    ":1x\r\n",
	    ":--1\r\n",
	    ":9223372036854775808\r\n",
	    "$\r\n",
	    "$-2\r\n",
	    "$1001\r\n",
	    "$?\r\n",
	    "$99999999999999999999\r\n",
	    "$3\r\nabcd",
	    "$1\r\na\n",
	    "$1\r\na\rx",
	    "*-2\r\n",
	    "*600000\r\n",
	    "*?\r\n",
	    "%-1\r\n",
	    "_x\r\n",
	    ">-1\r\n",
	    "*1\r\n>0\r\n",
	    "!-1\r\n",
	    "%300000\r\n",
	    "*9999999999\r\n",
	    "=-1\r\n",
	    "$ 1\r\n",
	    "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
	    "*300000\r\n*300000\r\n",
	};
	static struct transcript out;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_COUNT(wrong); i++) {
		size_t bytes = strlen(wrong[i]);

		read_cut(wrong[i], bytes, bytes, bytes, &out);
		if (out.bytes < 2 || strcmp(out.text + out.bytes - 2, " !"))
			fail_msg("%s was taken: %s", wrong[i], out.text);
		assert_same_at_every_cut(wrong[i], bytes);
	}
}

static void long_lines_are_cut_then_refused(void **state)
{
	static char line[RESP_LINE_MAX + 16];
	struct resp_reader reader;
	struct resp_item item;
	size_t used;

	(void)state;
	memset(line, 'x', sizeof(line));
	line[0] = '-';
	resp_init(&reader, BULK_MAX);
	assert_int_equal(resp_read(&reader, line, 5000, &used, &item), 0);
	assert_int_equal(resp_read(&reader, "\r\n", 2, &used, &item), 1);
	assert_int_equal(item.type, RESP_ERROR);
	assert_int_equal(item.text_bytes, RESP_TEXT_MAX - 2);
	assert_int_equal(strlen(item.text), RESP_TEXT_MAX - 2);

	resp_init(&reader, BULK_MAX);
	assert_int_equal(resp_read(&reader, line, sizeof(line), &used, &item), -EPROTO);
	/* A number is never read from a part of its line. */
	memset(line, '0', sizeof(line));
	line[0] = ':';
	memcpy(line + 500, "\r\n", 2);
	resp_init(&reader, BULK_MAX);
	assert_int_equal(resp_read(&reader, line, 502, &used, &item), -EPROTO);
}

static void payload_can_be_received_elsewhere(void **state)
{
	struct resp_reader reader;
	struct resp_item item;
	size_t used;

	(void)state;
	resp_init(&reader, BULK_MAX);
	assert_int_equal(resp_payload_left(&reader), 0);
	assert_int_equal(resp_read(&reader, "$9\r\nab", 6, &used, &item), 1);
	assert_int_equal(item.type, RESP_BULK);
	assert_int_equal(used, 4);
	assert_int_equal(resp_payload_left(&reader), 9);
	assert_int_equal(resp_read(&reader, "ab", 2, &used, &item), 1);
	assert_int_equal(item.type, RESP_PAYLOAD);
	resp_payload_taken(&reader, 4);
	assert_int_equal(resp_payload_left(&reader), 3);
	resp_payload_taken(&reader, 3);
	assert_int_equal(resp_payload_left(&reader), 0);
	assert_int_equal(resp_read(&reader, "\r\n", 2, &used, &item), 1);
	assert_int_equal(item.type, RESP_PAYLOAD_END);
	assert_true(item.ends_reply);
}

/* Random bytes, mostly such as the grammar uses, never crash it and mean the same at every cut. */
static void random_bytes_change_nothing(void **state)
{
	static const char likely[] = "+-:$*_%~>|#,(=!0123459\r\n\r\n\r\nax";
	uint64_t random = harness_seed(21);
	char data[96];
	int round;

	(void)state;
	for (round = 0; round < 3000; round++) {
		size_t bytes = 1 + harness_random(&random) % sizeof(data);
		size_t i;

		for (i = 0; i < bytes; i++) {
			uint64_t r = harness_random(&random);

			data[i] =
			    r % 16 ? likely[(r >> 8) % (sizeof(likely) - 1)] : (char)(r >> 16);
		}
		/* Begin with something well formed, so that depth is reached. */
		if (round % 3 == 0 && bytes > 8)
			memcpy(data, "*3\r\n:1\r\n", 8);
		if (round % 3 == 1 && bytes > 4)
			memcpy(data, "$3\r\n", 4);
		if (bytes > 40)
			bytes = 40;
		assert_same_at_every_cut(data, bytes);
	}
}

/* One byte of a right reply changed: refused or read, never beyond the limits. */
static void mutated_replies_stay_in_bounds(void **state)
{
	uint64_t random = harness_seed(22);
	static struct transcript out;
	int round;

	(void)state;
	for (round = 0; round < 20000; round++) {
		const char *from = replies[harness_random(&random) % ARRAY_COUNT(replies)].data;
		size_t bytes = strlen(from);
		char data[128];

		memcpy(data, from, bytes);
		data[harness_random(&random) % bytes] = (char)harness_random(&random);
		read_cut(data, bytes, harness_random(&random) % bytes, bytes, &out);
	}
}

static void commands_are_written(void **state)
{
	char text[64];
	struct resp_writer writer = {.text = text, .bytes_max = sizeof(text)};
	const char *expected = "*3\r\n$3\r\nSET\r\n$2\r\n\0k\r\n$1048576\r\n";

	(void)state;
	resp_write_array(&writer, 3);
	resp_write_text(&writer, "SET");
	resp_write_bulk(&writer, "\0k", 2);
	resp_write_bulk_header(&writer, MIB);
	assert_false(writer.overflow);
	assert_int_equal(writer.bytes, 31);
	assert_memory_equal(text, expected, 31);
	resp_write_bulk(&writer, text, 40);
	assert_true(writer.overflow);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(every_kind_is_read),
	    cmocka_unit_test(cuts_change_nothing),
	    cmocka_unit_test(wrong_bytes_are_refused),
	    cmocka_unit_test(long_lines_are_cut_then_refused),
	    cmocka_unit_test(payload_can_be_received_elsewhere),
	    cmocka_unit_test(random_bytes_change_nothing),
	    cmocka_unit_test(mutated_replies_stay_in_bounds),
	    cmocka_unit_test(commands_are_written),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
