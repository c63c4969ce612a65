/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uri.c - splitting a store's URI and reading its options.
 *
 * All pieces are cut in place in one copy of the text, so nothing here allocates and nothing
 * outlives struct uri. What stands before '@' is never quoted in an error.
 */
#include "store/uri.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "base/hex.h"

#define RATE_ONE 1000000u /* 100 % */

int uri_error(char *error, int err, const char *format, ...)
{
	va_list args;

	if (!error)
		return err;
	va_start(args, format);
	(void)vsnprintf(error, SSV_ERROR_TEXT_MAX, format, args);
	va_end(args);
	return err;
}

/* Decode %XX in place. -EINVAL: a '%' without two hex digits, or %00. */
static int percent_decode(char *text)
{
	char *to = text;

	for (; *text; text++) {
		int high, low;

		if (*text != '%') {
			*to++ = *text;
			continue;
		}
		high = hex_digit(text[1]);
		low = high < 0 ? -1 : hex_digit(text[2]);
		if (low < 0 || high + low == 0)
			return -EINVAL;
		*to++ = (char)(high * 16 + low);
		text += 2;
	}
	*to = '\0';
	return 0;
}

/* In option values a '%' that is no escape stays, so that "get-error=1%" can be written as it is.
 */
static void percent_decode_lenient(char *text)
{
	char *to = text;

	for (; *text; text++) {
		int high = *text == '%' ? hex_digit(text[1]) : -1;
		int low = high < 0 ? -1 : hex_digit(text[2]);

		if (low < 0 || high + low == 0) {
			*to++ = *text;
			continue;
		}
		*to++ = (char)(high * 16 + low);
		text += 2;
	}
	*to = '\0';
}

static int split_scheme(struct uri *uri, char **ret_rest, char *error)
{
	char *colon = strchr(uri->text, ':');
	char *c;

	if (!colon || colon == uri->text)
		return uri_error(error, -EINVAL,
				 "store URI: no scheme; expected scheme:..., such as "
				 "file:/var/cache/kv or redis://host:6379");
	for (c = uri->text; c < colon; c++) {
		if ((*c >= 'a' && *c <= 'z') || (*c >= '0' && *c <= '9') || *c == '+' || *c == '-')
			continue;
		return uri_error(error, -EINVAL,
				 "store URI: scheme has the character '%c'; expected a-z, 0-9, '+' "
				 "and '-' before the first ':'",
				 *c >= ' ' && *c < 127 ? *c : '?');
	}
	*colon = '\0';
	uri->scheme = uri->text;
	*ret_rest = colon + 1;
	return 0;
}

/* user[:password]@ ; a lone word is the password, as redis-cli has it. */
static int split_user(struct uri *uri, char *text, char *error)
{
	char *colon = strchr(text, ':');

	if (colon) {
		*colon = '\0';
		uri->user = text;
		uri->password = colon + 1;
	} else {
		uri->password = text;
	}
	if (percent_decode(text) || (colon && percent_decode(colon + 1)))
		return uri_error(error, -EINVAL,
				 "store %s: user or password has a '%%' without two hex digits; "
				 "expected %%25 for '%%'",
				 uri->scheme);
	return 0;
}

int uri_split_host(const char *scheme, char *text, const char **ret_host, const char **ret_port,
		   char *error)
{
	char *end;

	*ret_host = text;
	*ret_port = NULL;
	if (*text == '[') { /* IPv6 */
		end = strchr(text, ']');
		if (!end || (end[1] && end[1] != ':'))
			return uri_error(error, -EINVAL,
					 "store %s: host \"%.64s\": expected [IPv6 address]:port",
					 scheme, text);
		*ret_host = text + 1;
		*end++ = '\0';
	} else {
		end = strchr(text, ':');
	}
	if (end && *end == ':') {
		*end = '\0';
		*ret_port = end + 1;
	}
	return 0;
}

static int split_options(struct uri *uri, char *query, char *error)
{
	char *save = NULL;
	char *pair;

	for (pair = strtok_r(query, "&", &save); pair; pair = strtok_r(NULL, "&", &save)) {
		struct uri_pair *option = &uri->options[uri->options_count];
		char *equals = strchr(pair, '=');

		if (!equals || equals == pair)
			return uri_error(error, -EINVAL,
					 "store %s: option \"%.64s\": expected name=value",
					 uri->scheme, pair);
		if (uri->options_count == URI_OPTIONS_MAX)
			return uri_error(error, -E2BIG, "store %s: more than %d options",
					 uri->scheme, URI_OPTIONS_MAX);
		*equals = '\0';
		option->name = pair;
		option->value = equals + 1;
		percent_decode_lenient(equals + 1);
		uri->options_count++;
	}
	return 0;
}

int uri_parse(const char *text, struct uri *ret_uri, char *error)
{
	struct uri *uri = ret_uri;
	char *rest = NULL, *query, *path, *at;
	int err;

	memset(uri, 0, sizeof(*uri));
	if (strlen(text) >= sizeof(uri->text))
		return uri_error(error, -E2BIG, "store URI: %zu bytes; expected at most %d",
				 strlen(text), STORE_URI_MAX - 1);
	memcpy(uri->text, text, strlen(text) + 1);
	uri->path = "";
	err = split_scheme(uri, &rest, error);
	if (err)
		return err;

	query = strchr(rest, '?');
	if (query && rest[0] == '/' && rest[1] == '/' && strchr(query, '@'))
		return uri_error(error, -EINVAL,
				 "store %s: '@' behind '?'; expected %%3F for '?' in a password "
				 "and %%40 for '@' in an option",
				 uri->scheme);
	if (query) {
		*query++ = '\0';
		err = split_options(uri, query, error);
		if (err)
			return err;
	}
	path = rest;
	if (rest[0] == '/' && rest[1] == '/') {
		rest += 2;
		path = strchr(rest, '/');
		if (path) {
			/* Make room for the end of the host: move it over the "//". */
			memmove(rest - 1, rest, (size_t)(path - rest));
			path[-1] = '\0';
			rest--;
		}
		at = strrchr(rest, '@');
		if (at) {
			*at = '\0';
			err = split_user(uri, rest, error);
			if (err)
				return err;
			rest = at + 1;
		}
		if (strchr(rest, ','))
			uri->hosts = rest;
		else
			err = uri_split_host(uri->scheme, rest, &uri->host, &uri->port, error);
		if (err)
			return err;
	}
	if (path) {
		uri->path = path;
		if (percent_decode(path))
			return uri_error(error, -EINVAL,
					 "store %s: path has a '%%' without two hex digits; "
					 "expected %%25 for '%%'",
					 uri->scheme);
	}
	return 0;
}

/* ---- options -------------------------------------------------------------------------------- */

/* Decimal digits, then whatever follows in *ret_end. -ERANGE: more than 64 bits. */
static int read_digits(const char *text, uint64_t *ret_number, const char **ret_end)
{
	uint64_t number = 0;
	const char *c = text;

	for (; *c >= '0' && *c <= '9'; c++) {
		if (__builtin_mul_overflow(number, 10, &number) ||
		    __builtin_add_overflow(number, (uint64_t)(*c - '0'), &number))
			return -ERANGE;
	}
	*ret_number = number;
	*ret_end = c;
	return c == text ? -EINVAL : 0;
}

static int read_bytes(const char *text, uint64_t *ret_number)
{
	static const char units[] = "KMGT";
	const char *end, *unit;
	uint64_t number;
	int err = read_digits(text, &number, &end);

	if (err)
		return err;
	if (*end) {
		unit = strchr(units, *end);
		if (!unit || end[1])
			return -EINVAL;
		if (__builtin_mul_overflow(number, KIB << (10 * (unit - units)), &number))
			return -ERANGE;
	}
	*ret_number = number;
	return 0;
}

/* "12%", "0.5%", at most four digits behind the point. */
static int read_rate(const char *text, uint64_t *ret_number)
{
	uint64_t whole, part = 0, scale = RATE_ONE / 100;
	const char *end;

	if (read_digits(text, &whole, &end) || whole > 100)
		return -EINVAL;
	if (*end == '.') {
		for (end++; *end >= '0' && *end <= '9' && scale > 1; end++) {
			scale /= 10;
			part += (uint64_t)(*end - '0') * scale;
		}
	}
	if (end[0] != '%' || end[1])
		return -EINVAL;
	*ret_number = whole * (RATE_ONE / 100) + part;
	return *ret_number > RATE_ONE ? -EINVAL : 0;
}

static int read_word(const char *words, const char *text, uint64_t *ret_number)
{
	size_t bytes = strlen(text);
	uint64_t place = 0;

	for (; words; place++) {
		const char *bar = strchr(words, '|');
		size_t word_bytes = bar ? (size_t)(bar - words) : strlen(words);

		if (word_bytes == bytes && !memcmp(words, text, bytes)) {
			*ret_number = place;
			return 0;
		}
		words = bar ? bar + 1 : NULL;
	}
	return -EINVAL;
}

static void format_bytes(uint64_t bytes, char *text, size_t text_bytes)
{
	static const char units[] = "KMGT";
	int unit = -1;

	while (unit < 3 && bytes >= 1024 && bytes % 1024 == 0) {
		bytes /= 1024;
		unit++;
	}
	(void)snprintf(text, text_bytes, "%llu%.*s", (unsigned long long)bytes, unit >= 0,
		       unit >= 0 ? units + unit : "");
}

static void format_expectation(const struct uri_option *option, char *text, size_t text_bytes)
{
	char low[32], high[32];
	const char *zero = option->zero_means;
	const char *prefix = zero ? "0 (" : "";
	const char *suffix = zero ? ") or " : "";

	if (option->kind == URI_WORD) {
		(void)snprintf(text, text_bytes, "%s", option->words);
		return;
	}
	if (option->kind == URI_RATE) {
		(void)snprintf(text, text_bytes, "0%% to 100%%, such as 2.5%%");
		return;
	}
	if (option->kind == URI_BYTES) {
		format_bytes(option->min, low, sizeof(low));
		format_bytes(option->max, high, sizeof(high));
	} else {
		(void)snprintf(low, sizeof(low), "%llu", (unsigned long long)option->min);
		(void)snprintf(high, sizeof(high), "%llu", (unsigned long long)option->max);
	}
	(void)snprintf(text, text_bytes, "%s%s%s%s to %s", prefix, zero ? zero : "", suffix, low,
		       high);
}

static int read_value(const struct uri_option *option, const char *text, uint64_t *ret_number)
{
	const char *end;
	int err = 0;

	switch (option->kind) {
	case URI_NUMBER:
		err = read_digits(text, ret_number, &end);
		if (!err && *end)
			err = -EINVAL;
		break;
	case URI_BYTES:
		err = read_bytes(text, ret_number);
		break;
	case URI_RATE:
		return read_rate(text, ret_number);
	case URI_WORD:
		return read_word(option->words, text, ret_number);
	case URI_TEXT:
		*ret_number = 0;
		return *text ? 0 : -EINVAL;
	}
	if (err || (option->zero_means && *ret_number == 0))
		return err;
	return *ret_number < option->min || *ret_number > option->max ? -ERANGE : 0;
}

int uri_read_options(const struct uri *uri, const struct uri_option *table, uint32_t table_count,
		     struct uri_value *values, char *error)
{
	uint32_t i, j;

	for (i = 0; i < table_count; i++) {
		values[i] = (struct uri_value){.number = table[i].fallback};
		for (j = 0; j < uri->options_count; j++) {
			const struct uri_pair *pair = &uri->options[j];
			char expected[128];

			if (strcmp(pair->name, table[i].name))
				continue;
			values[i].text = pair->value;
			if (!read_value(&table[i], pair->value, &values[i].number))
				continue;
			format_expectation(&table[i], expected, sizeof(expected));
			return uri_error(error, -EINVAL, "store %s: option %s=%.48s: expected %s",
					 uri->scheme, pair->name, pair->value, expected);
		}
	}
	return 0;
}

uint32_t uri_distance(const char *a, const char *b)
{
	uint32_t row[URI_NAME_MAX + 1];
	size_t a_bytes = strnlen(a, URI_NAME_MAX), b_bytes = strnlen(b, URI_NAME_MAX);
	size_t i, j;

	for (j = 0; j <= b_bytes; j++)
		row[j] = (uint32_t)j;
	for (i = 1; i <= a_bytes; i++) {
		uint32_t diagonal = row[0];

		row[0] = (uint32_t)i;
		for (j = 1; j <= b_bytes; j++) {
			uint32_t replace = diagonal + (a[i - 1] != b[j - 1]);
			uint32_t edit = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;

			diagonal = row[j];
			row[j] = replace < edit ? replace : edit;
		}
	}
	return row[b_bytes];
}

static bool find_name(const char *name, const struct uri_table *tables, uint32_t tables_count,
		      const char **ret_nearest)
{
	uint32_t nearest = UINT32_MAX;
	uint32_t i, j;

	*ret_nearest = NULL;
	for (i = 0; i < tables_count; i++) {
		for (j = 0; j < tables[i].count; j++) {
			uint32_t distance = uri_distance(name, tables[i].options[j].name);

			if (distance == 0)
				return true;
			if (distance < nearest) {
				nearest = distance;
				*ret_nearest = tables[i].options[j].name;
			}
		}
	}
	return false;
}

int uri_check_names(const struct uri *uri, const struct uri_table *tables, uint32_t tables_count,
		    char *error)
{
	uint32_t i, j;

	for (i = 0; i < uri->options_count; i++) {
		const char *name = uri->options[i].name;
		const char *nearest;

		if (!find_name(name, tables, tables_count, &nearest)) {
			if (!nearest)
				return uri_error(error, -EINVAL,
						 "store %s: option \"%.32s\": expected no options",
						 uri->scheme, name);
			return uri_error(error, -EINVAL,
					 "store %s: option \"%.32s\" is unknown; did you mean "
					 "\"%s\"?",
					 uri->scheme, name, nearest);
		}
		for (j = 0; j < i; j++) {
			if (!strcmp(name, uri->options[j].name))
				return uri_error(error, -EINVAL,
						 "store %s: option \"%.32s\" is given twice; "
						 "expected once",
						 uri->scheme, name);
		}
	}
	return 0;
}
