/* SPDX-License-Identifier: Apache-2.0 */
/* test_uri.c - taking a store's URI apart, its options, its errors, and hiding its password. */
#include "harness.h"

#include <errno.h>
#include <string.h>

#include "store/uri.h"

static const struct uri_option table[] = {
    {.name = "bytes",
     .kind = URI_BYTES,
     .fallback = 7,
     .min = MIB,
     .max = GIB,
     .zero_means = "no limit"},
    {.name = "lanes", .kind = URI_NUMBER, .fallback = 2, .min = 1, .max = 64},
    {.name = "sync", .kind = URI_WORD, .words = "none|data|full"},
    {.name = "rate", .kind = URI_RATE},
    {.name = "prefix", .kind = URI_TEXT},
};

static void parts_are_found(void **state)
{
	struct uri uri;
	char error[SSV_ERROR_TEXT_MAX] = "";

	(void)state;
	assert_int_equal(uri_parse("redis://us%40r:p%3Ass@host:6379/3?a=b&c=d%20e", &uri, error),
			 0);
	assert_string_equal(uri.scheme, "redis");
	assert_string_equal(uri.user, "us@r");
	assert_string_equal(uri.password, "p:ss");
	assert_string_equal(uri.host, "host");
	assert_string_equal(uri.port, "6379");
	assert_string_equal(uri.path, "/3");
	assert_int_equal(uri.options_count, 2);
	assert_string_equal(uri.options[1].name, "c");
	assert_string_equal(uri.options[1].value, "d e");

	assert_int_equal(uri_parse("redis://secret@[::1]:7", &uri, error), 0);
	assert_null(uri.user);
	assert_string_equal(uri.password, "secret");
	assert_string_equal(uri.host, "::1");
	assert_string_equal(uri.port, "7");
	assert_string_equal(uri.path, "");

	assert_int_equal(uri_parse("fault+file:/a%20b?x=1%", &uri, error), 0);
	assert_string_equal(uri.scheme, "fault+file");
	assert_null(uri.host);
	assert_string_equal(uri.path, "/a b");
	assert_string_equal(uri.options[0].value, "1%");

	assert_int_equal(uri_parse("file:///var/x", &uri, error), 0);
	assert_string_equal(uri.host, "");
	assert_string_equal(uri.path, "/var/x");
}

static void wrong_uris_are_refused_with_words(void **state)
{
	static const struct {
		const char *uri;
		int err;
		const char *words;
	} cases[] = {
	    {"", -EINVAL, "no scheme"},
	    {"/var/cache", -EINVAL, "no scheme"},
	    {"FILE:/x", -EINVAL, "character 'F'"},
	    {"fiel:/x", -ENOTSUP, "did you mean \"file\"?"},
	    {"fault+fiel:/x", -ENOTSUP, "did you mean"},
	    {"file:relative", -EINVAL, "absolute path"},
	    {"file://host/x", -EINVAL, "host \"host\""},
	    {"file:/x?byts=3M", -EINVAL, "did you mean \"bytes\"?"},
	    {"file:/x?bytes", -EINVAL, "expected name=value"},
	    {"file:/x?=3", -EINVAL, "expected name=value"},
	    {"file:/x?bytes=3M&bytes=3M", -EINVAL, "twice"},
	    {"file:/x?bytes=3Q", -EINVAL, "bytes=3Q: expected 0 (no limit) or 1M to"},
	    {"file:/x?bytes=1", -EINVAL, "expected 0 (no limit)"},
	    {"file:/x?bytes=99999999999999999999", -EINVAL, "expected 0 (no limit)"},
	    {"file:/x?sync=maybe", -EINVAL, "expected none|data|full"},
	    {"file:/x%zz", -EINVAL, "two hex digits"},
	    {"null:?a=1", -EINVAL, "expected no options"},
	    {"memory:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
	     -EINVAL, "at most 63 bytes"},
	    {"file:/proc/version/x", -EINVAL, "Not a directory"},
	};
	struct store_config config = {.value_bytes_max = 1, .ops_max = 1};
	char error[SSV_ERROR_TEXT_MAX];
	struct store *store;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_COUNT(cases); i++) {
		config.uri = cases[i].uri;
		assert_int_equal(store_open(&config, &store, error), cases[i].err);
		if (!strstr(error, cases[i].words))
			fail_msg("%s: \"%s\" does not say \"%s\"", cases[i].uri, error,
				 cases[i].words);
	}
	config.uri = "null:";
	config.ops_max = 0;
	assert_int_equal(store_open(&config, &store, error), -EINVAL);
}

static void options_have_defaults_and_units(void **state)
{
	struct uri_value values[ARRAY_COUNT(table)];
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct uri uri;

	(void)state;
	assert_int_equal(uri_parse("x:", &uri, error), 0);
	assert_int_equal(uri_read_options(&uri, table, ARRAY_COUNT(table), values, error), 0);
	assert_int_equal(values[0].number, 7);
	assert_int_equal(values[1].number, 2);
	assert_null(values[4].text);

	assert_int_equal(
	    uri_parse("x:?bytes=3M&lanes=64&sync=full&rate=0.25%&prefix=a", &uri, error), 0);
	assert_int_equal(uri_read_options(&uri, table, ARRAY_COUNT(table), values, error), 0);
	assert_int_equal(values[0].number, 3 * MIB);
	assert_int_equal(values[1].number, 64);
	assert_int_equal(values[2].number, 2);
	assert_int_equal(values[3].number, 2500);
	assert_string_equal(values[4].text, "a");

	assert_int_equal(uri_parse("x:?bytes=0&rate=100%", &uri, error), 0);
	assert_int_equal(uri_read_options(&uri, table, ARRAY_COUNT(table), values, error), 0);
	assert_int_equal(values[0].number, 0);
	assert_int_equal(values[3].number, 1000000);
}

static void wrong_values_are_refused(void **state)
{
	static const char *const wrong[] = {
	    "x:?lanes=0",     "x:?lanes=65",        "x:?lanes=",    "x:?lanes=-1", "x:?lanes=1x",
	    "x:?bytes=1025G", "x:?bytes=1KK",       "x:?rate=101%", "x:?rate=5",   "x:?rate=100.5%",
	    "x:?rate=%",      "x:?rate=0.1234567%", "x:?sync=",     "x:?sync=non", "x:?prefix=",
	};
	struct uri_value values[ARRAY_COUNT(table)];
	char error[SSV_ERROR_TEXT_MAX];
	struct uri uri;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_COUNT(wrong); i++) {
		error[0] = '\0';
		assert_int_equal(uri_parse(wrong[i], &uri, error), 0);
		if (!uri_read_options(&uri, table, ARRAY_COUNT(table), values, error))
			fail_msg("%s was taken", wrong[i]);
		assert_non_null(strstr(error, "expected"));
	}
}

static void passwords_are_hidden(void **state)
{
	static const char *const cases[][2] = {
	    {"redis://user:secret@host:1/0?lanes=2", "redis://user:***@host:1/0?lanes=2"},
	    {"redis://:secret@host", "redis://:***@host"},
	    {"redis://secret@host", "redis://***@host"},
	    {"redis://u:se/cret@host/0", "redis://u:***@host/0"},
	    {"redis://u:se?cret@host/0", "redis://u:***@host/0"},
	    {"redis://u:se@cret@host/0", "redis://u:***@host/0"},
	    {"fault+redis://u:secret@host?seed=1", "fault+redis://u:***@host?seed=1"},
	    {"redis://host:6379/0", "redis://host:6379/0"},
	    {"file:/a@b", "file:/a@b"},
	    {"", ""},
	};
	char text[STORE_URI_MAX];
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_COUNT(cases); i++) {
		store_uri_redact(cases[i][0], text, sizeof(text));
		assert_string_equal(text, cases[i][1]);
	}
	store_uri_redact(cases[0][0], text, 5); /* cut, not overrun */
	assert_string_equal(text, "redi");
}

static void no_error_tells_a_password(void **state)
{
	static const char *const wrong[] = {
	    "redis://u:secret%zz@host",
	    "redis://u:sec?ret@host/0",
	    "redis://u:secret@host:99999",
	    "redis://u:secret@host/a",
	    "redis://u:secret@host?x=1",
	    "rediss1://u:secret@host",
	    "redis://u:secret@[host",
	    "redis://u:secret@host?lanes=0",
	    "null:?secret",
	    "redis://u:secret@host?a",
	};
	struct store_config config = {.value_bytes_max = 1, .ops_max = 1};
	char error[SSV_ERROR_TEXT_MAX];
	struct store *store;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_COUNT(wrong) - 2; i++) {
		config.uri = wrong[i];
		assert_true(store_open(&config, &store, error) < 0);
		assert_true(error[0] != '\0');
		if (strstr(error, "sec") || strstr(error, "ret@"))
			fail_msg("%s: \"%s\"", wrong[i], error);
	}
}

static void distance_counts_edits(void **state)
{
	(void)state;
	assert_int_equal(uri_distance("bytes", "bytes"), 0);
	assert_int_equal(uri_distance("byts", "bytes"), 1);
	assert_int_equal(uri_distance("kitten", "sitting"), 3);
	assert_int_equal(uri_distance("", "abc"), 3);
}

static const char *document_path;

/* docs/stores.md names every scheme and option of this build. */
static void document_is_complete(void **state)
{
	const struct store_ops *const *ops;
	static char text[65536];
	char word[80];
	FILE *file;
	uint32_t i;

	(void)state;
	if (!document_path)
		skip();
	file = fopen(document_path, "r");
	assert_non_null(file);
	text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
	(void)fclose(file);
	for (ops = store_backends(); *ops; ops++) {
		(void)snprintf(word, sizeof(word), "%s%s", (*ops)->scheme,
			       (*ops)->caps & STORE_CAP_WRAPPER ? "+" : ":");
		if (!strstr(text, word))
			fail_msg("%s is not in %s", word, document_path);
		for (i = 0; i < (*ops)->options_count; i++) {
			(void)snprintf(word, sizeof(word), "`%s`", (*ops)->options[i].name);
			if (!strstr(text, word))
				fail_msg("option %s of %s is not in %s", word, (*ops)->scheme,
					 document_path);
			assert_non_null((*ops)->options[i].help);
		}
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(parts_are_found),
	    cmocka_unit_test(wrong_uris_are_refused_with_words),
	    cmocka_unit_test(options_have_defaults_and_units),
	    cmocka_unit_test(wrong_values_are_refused),
	    cmocka_unit_test(passwords_are_hidden),
	    cmocka_unit_test(no_error_tells_a_password),
	    cmocka_unit_test(distance_counts_edits),
	    cmocka_unit_test(document_is_complete),
	};

	document_path = argc > 1 ? argv[1] : NULL;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
