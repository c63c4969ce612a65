/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config_keys.c - every key: its kind, default, range and meaning, and how its text is read.
 */
#include "config_keys.h"

#include <assert.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <strings.h>

#include "codec/codec.h"
#include "inflate/inflate.h"
#include "plane/plane.h"
#include "store/store.h"

/* ---- names ---------------------------------------------------------------------------------- */

int key_find(const char *name, size_t name_bytes)
{
	for (uint32_t i = 0; i < config_keys_count; i++) {
		const char *key = config_keys[i].name;
		size_t n = 0;

		while (n < name_bytes && key[n] &&
		       (key[n] == name[n] || (key[n] == '_' && name[n] == '-')))
			n++;
		if (n == name_bytes && !key[n])
			return (int)i;
	}
	return -1;
}

static uint32_t min3(uint32_t a, uint32_t b, uint32_t c)
{
	return (uint32_t)u64_min(a, u64_min(b, c));
}

/* Edits (insert, delete, change, swap of neighbours) from a to b, both below 32 bytes. */
static uint32_t distance(const char *a, const char *b)
{
	uint32_t d[33][33];
	uint32_t an = (uint32_t)strnlen(a, 32), bn = (uint32_t)strnlen(b, 32);

	for (uint32_t i = 0; i <= an; i++)
		d[i][0] = i;
	for (uint32_t j = 0; j <= bn; j++)
		d[0][j] = j;
	for (uint32_t i = 1; i <= an; i++) {
		for (uint32_t j = 1; j <= bn; j++) {
			char x = a[i - 1] == '-' ? '_' : a[i - 1];

			d[i][j] = min3(d[i - 1][j] + 1, d[i][j - 1] + 1,
				       d[i - 1][j - 1] + (x != b[j - 1]));
			if (i > 1 && j > 1 && x == b[j - 2] && a[i - 2] == b[j - 1])
				d[i][j] = (uint32_t)u64_min(d[i][j], d[i - 2][j - 2] + 1);
		}
	}
	return d[an][bn];
}

const char *key_nearest(const char *name)
{
	static const char *const others[] = {"config", "print_config", "detach", "help", "version"};
	uint32_t best = UINT32_MAX;
	const char *nearest = NULL;

	for (uint32_t i = 0; i < config_keys_count + ARRAY_COUNT(others); i++) {
		const char *key =
		    i < config_keys_count ? config_keys[i].name : others[i - config_keys_count];
		uint32_t d = distance(name, key);

		if (d < best) {
			best = d;
			nearest = key;
		}
	}
	/* Farther than a third of the word is a guess, not a typing mistake. */
	return best <= 1 + strlen(name) / 3 ? nearest : NULL;
}

void key_names(char *text, size_t text_bytes)
{
	size_t n = 0;

	text[0] = 0;
	for (uint32_t i = 0; i < config_keys_count && n < text_bytes; i++)
		n += (size_t)snprintf(text + n, text_bytes - n, "%s%s", i ? ", " : "",
				      config_keys[i].name);
}

/* ---- values --------------------------------------------------------------------------------- */

static const struct {
	const char *suffix;
	uint64_t factor;
} units[] = {{"", 1},      {"B", 1},   {"KiB", KIB}, {"K", KIB},
	     {"MiB", MIB}, {"M", MIB}, {"GiB", GIB}, {"G", GIB}};

static int number_parse(const char *text, const char **ret_end, uint64_t *ret_value)
{
	char *end;

	if (text[0] < '0' || text[0] > '9')
		return -EINVAL;
	errno = 0;
	*ret_value = strtoull(text, &end, 10);
	*ret_end = end;
	return errno ? -EINVAL : 0;
}

static int size_parse(const char *text, uint64_t *ret_value)
{
	const char *end;
	uint64_t value;

	if (number_parse(text, &end, &value))
		return -EINVAL;
	while (*end == ' ')
		end++;
	for (size_t i = 0; i < ARRAY_COUNT(units); i++) {
		if (strcmp(end, units[i].suffix) == 0 &&
		    !__builtin_mul_overflow(value, units[i].factor, ret_value))
			return 0;
	}
	return -EINVAL;
}

static int core_usable(uint64_t core)
{
	cpu_set_t usable;

	return core < CPU_SETSIZE && sched_getaffinity(0, sizeof(usable), &usable) == 0 &&
	       CPU_ISSET(core, &usable);
}

static int cores_parse(const char *text, struct core_list *list)
{
	uint64_t first, last;
	uint32_t n = 0;

	while (1) {
		if (number_parse(text, &text, &first))
			return -EINVAL;
		last = first;
		if (*text == '-' && number_parse(text + 1, &text, &last))
			return -EINVAL;
		if (last < first || last >= CPU_SETSIZE)
			return -EINVAL;
		for (; first <= last; first++) {
			if (n == CONFIG_CORES_MAX || !core_usable(first))
				return -EINVAL;
			list->cores[n++] = (uint32_t)first;
		}
		if (!*text)
			break;
		if (*text++ != ',')
			return -EINVAL;
		while (*text == ' ')
			text++;
	}
	list->count = n;
	return 0;
}

static void cores_usable_text(char *text, size_t text_bytes)
{
	cpu_set_t usable;
	size_t n = 0;

	text[0] = 0;
	if (sched_getaffinity(0, sizeof(usable), &usable) < 0)
		return;
	for (int i = 0; i < CPU_SETSIZE && n < text_bytes; i++) {
		int end = i;

		if (!CPU_ISSET(i, &usable))
			continue;
		while (end + 1 < CPU_SETSIZE && CPU_ISSET(end + 1, &usable))
			end++;
		n += (size_t)snprintf(text + n, text_bytes - n, end > i ? "%s%d-%d" : "%s%d",
				      n ? "," : "", i, end);
		i = end;
	}
}

/* What stands for no tier. */
static const char *tier_word(const struct key_row *row)
{
	return row->kind == KEY_ANY_TIER ? "any" : "auto";
}

void key_allowed(const struct key_row *row, char *text, size_t text_bytes)
{
	char usable[128];

	switch (row->kind) {
	case KEY_TEXT:
	case KEY_PATH:
	case KEY_STORE:
		snprintf(text, text_bytes, "at most %d bytes", CONFIG_TEXT_MAX - 1);
		break;
	case KEY_SIZE:
		snprintf(text, text_bytes,
			 "a size such as 512MiB or 2GiB, from %" PRIu64 "MiB to %" PRIu64 "GiB",
			 row->min / MIB, row->max / GIB);
		break;
	case KEY_COUNT:
		snprintf(text, text_bytes, "%" PRIu64 " to %" PRIu64, row->min, row->max);
		break;
	case KEY_CORE:
	case KEY_CORES:
		cores_usable_text(usable, sizeof(usable));
		snprintf(text, text_bytes, "none, or %s of those this process may use: %s",
			 row->kind == KEY_CORE ? "one" : "a list such as 1 or 2-5,8", usable);
		break;
	case KEY_YES_NO:
		snprintf(text, text_bytes, "yes or no");
		break;
	case KEY_LEVEL:
		snprintf(text, text_bytes, "error, warn, info or debug");
		break;
	case KEY_AUTO_TIER:
	case KEY_ANY_TIER:
		snprintf(text, text_bytes, "%s, lossless, high, standard, compact or tiny",
			 tier_word(row));
		break;
	case KEY_CODEC:
		snprintf(text, text_bytes, "stored, deflate, r16 or zstd");
		break;
	case KEY_OVERLAP:
		snprintf(text, text_bytes, "segment, chunk or none");
		break;
	case KEY_PIPELINE:
		snprintf(text, text_bytes, "one-pass or stages");
		break;
	case KEY_INFLATE:
		snprintf(text, text_bytes, "cpu, dpdk, or dpdk: and a device");
		break;
	}
}

static int yes_no_parse(const char *text, uint32_t *ret_value)
{
	static const char *const words[] = {"no", "yes", "false", "true", "off", "on", "0", "1"};

	for (uint32_t i = 0; i < ARRAY_COUNT(words); i++) {
		if (strcasecmp(text, words[i]) == 0) {
			*ret_value = i % 2;
			return 0;
		}
	}
	return -EINVAL;
}

static int tier_read(const char *text, const char *word, uint32_t *ret_value)
{
	*ret_value = tier_parse(text);
	return *ret_value || strcmp(text, word) == 0 ? 0 : -EINVAL;
}

static const char *const overlap_names[] = {
    [PLANE_OVERLAP_SEGMENT] = "segment",
    [PLANE_OVERLAP_CHUNK] = "chunk",
    [PLANE_OVERLAP_NONE] = "none",
};

static const char *const pipeline_names[] = {
    [PLANE_ONE_PASS] = "one-pass",
    [PLANE_STAGES] = "stages",
};

static int name_read(const char *const *names, uint32_t count, const char *text,
		     uint32_t *ret_value)
{
	for (uint32_t i = 0; i < count; i++) {
		if (strcmp(text, names[i]) == 0) {
			*ret_value = i;
			return 0;
		}
	}
	return -EINVAL;
}

static int core_read(const char *text, int32_t *ret_core)
{
	const char *end;
	uint64_t core;

	*ret_core = -1;
	if (strcmp(text, "none") == 0)
		return 0;
	if (number_parse(text, &end, &core) || *end || !core_usable(core))
		return -EINVAL;
	*ret_core = (int32_t)core;
	return 0;
}

static int number_read(const struct key_row *row, const char *text, void *field)
{
	const char *end;
	uint64_t value;
	int err;

	if (row->kind == KEY_SIZE) {
		err = size_parse(text, &value);
	} else {
		err = number_parse(text, &end, &value);
		if (!err && *end)
			err = -EINVAL;
	}
	if (err || value < row->min || value > row->max)
		return -EINVAL;
	if (row->kind == KEY_SIZE)
		*(uint64_t *)field = value;
	else
		*(uint32_t *)field = (uint32_t)value;
	return 0;
}

static int value_read(const struct key_row *row, const char *text, struct config *config)
{
	void *field = (char *)config + row->offset;
	char why[SSV_ERROR_TEXT_MAX];

	switch (row->kind) {
	case KEY_TEXT:
	case KEY_PATH:
	case KEY_STORE:
		if (strlen(text) >= CONFIG_TEXT_MAX || (row->kind != KEY_PATH && !text[0]))
			return -EINVAL;
		strcpy(field, text);
		return 0;
	case KEY_SIZE:
	case KEY_COUNT:
		return number_read(row, text, field);
	case KEY_CORE:
		return core_read(text, field);
	case KEY_CORES:
		((struct core_list *)field)->count = 0;
		return strcmp(text, "none") == 0 ? 0 : cores_parse(text, field);
	case KEY_YES_NO:
		return yes_no_parse(text, field);
	case KEY_LEVEL:
		return log_level_parse(text, field);
	case KEY_AUTO_TIER:
	case KEY_ANY_TIER:
		return tier_read(text, tier_word(row), field);
	case KEY_CODEC:
		*(uint32_t *)field = codec_parse(text);
		return *(uint32_t *)field ? 0 : -EINVAL;
	case KEY_OVERLAP:
		return name_read(overlap_names, ARRAY_COUNT(overlap_names), text, field);
	case KEY_PIPELINE:
		return name_read(pipeline_names, ARRAY_COUNT(pipeline_names), text, field);
	case KEY_INFLATE:
		if (strlen(text) >= CONFIG_TEXT_MAX || inflate_check(text, why))
			return -EINVAL;
		strcpy(field, text);
		return 0;
	}
	return -EINVAL;
}

int key_parse(const struct key_row *row, const char *text, struct config *config, char *error)
{
	char allowed[256], why[SSV_ERROR_TEXT_MAX], shown[CONFIG_TEXT_MAX];

	if (value_read(row, text, config) == 0) {
		if (row->kind != KEY_STORE || store_uri_check(text, why) == 0)
			return 0;
		store_uri_redact(text, shown, sizeof(shown)); /* a log may keep this line */
		snprintf(error, CONFIG_ERROR_MAX, "%s: \"%.200s\": %.300s", row->name, shown, why);
		return -EINVAL;
	}
	key_allowed(row, allowed, sizeof(allowed));
	snprintf(error, CONFIG_ERROR_MAX, "%s: \"%.200s\": expected %s", row->name, text, allowed);
	return -EINVAL;
}

static void cores_format(const struct core_list *list, char *text, size_t text_bytes)
{
	size_t n = 0;

	snprintf(text, text_bytes, "none");
	for (uint32_t i = 0; i < list->count && n < text_bytes; i++)
		n += (size_t)snprintf(text + n, text_bytes - n, "%s%u", i ? "," : "",
				      list->cores[i]);
}

static void size_format(uint64_t bytes, char *text, size_t text_bytes)
{
	static const char *const names[] = {"", "KiB", "MiB", "GiB"};
	uint32_t unit = 0;

	while (unit < 3 && bytes && bytes % KIB == 0) {
		bytes /= KIB;
		unit++;
	}
	snprintf(text, text_bytes, "%" PRIu64 "%s", bytes, names[unit]);
}

void key_format(const struct key_row *row, const struct config *config, char *text,
		size_t text_bytes)
{
	const void *field = (const char *)config + row->offset;
	uint32_t number = 0;

	if (row->kind != KEY_TEXT && row->kind != KEY_PATH && row->kind != KEY_STORE &&
	    row->kind != KEY_INFLATE)
		memcpy(&number, field, sizeof(number));
	switch (row->kind) {
	case KEY_TEXT:
	case KEY_PATH:
	case KEY_STORE:
	case KEY_INFLATE:
		snprintf(text, text_bytes, "%s", (const char *)field);
		break;
	case KEY_SIZE:
		size_format(*(const uint64_t *)field, text, text_bytes);
		break;
	case KEY_COUNT:
		snprintf(text, text_bytes, "%u", number);
		break;
	case KEY_CORE:
		snprintf(text, text_bytes, (int32_t)number < 0 ? "none" : "%u", number);
		break;
	case KEY_CORES:
		cores_format(field, text, text_bytes);
		break;
	case KEY_YES_NO:
		snprintf(text, text_bytes, "%s", number ? "yes" : "no");
		break;
	case KEY_LEVEL:
		snprintf(text, text_bytes, "%s", log_level_name((enum log_level)number));
		break;
	case KEY_AUTO_TIER:
	case KEY_ANY_TIER:
		snprintf(text, text_bytes, "%s",
			 number ? tier_name((uint8_t)number) : tier_word(row));
		break;
	case KEY_CODEC:
		snprintf(text, text_bytes, "%s", codec_name((uint8_t)number));
		break;
	case KEY_OVERLAP:
		snprintf(text, text_bytes, "%s", overlap_names[number]);
		break;
	case KEY_PIPELINE:
		snprintf(text, text_bytes, "%s", pipeline_names[number]);
		break;
	}
}
