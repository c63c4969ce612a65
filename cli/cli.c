/* SPDX-License-Identifier: Apache-2.0 */
/* cli.c - answers, errors and texts that all commands share. */
#include "cli.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hex.h"

#define BAR_WIDTH       30
#define BAR_INTERVAL_NS (100 * NS_PER_MS)

int option_json;

static void out_of_memory(void)
{
	fputs("shadowserve: out of memory\n", stderr);
	exit(EXIT_BROKEN);
}

void *cli_alloc(size_t bytes)
{
	void *memory = calloc(1, bytes ? bytes : 1);

	if (!memory)
		out_of_memory();
	return memory;
}

cJSON *cli_object(void)
{
	cJSON *object = cJSON_CreateObject();

	if (!object)
		out_of_memory();
	return object;
}

cJSON *cli_array(void)
{
	cJSON *array = cJSON_CreateArray();

	if (!array)
		out_of_memory();
	return array;
}

void cli_add(cJSON *object, const char *name, cJSON *item)
{
	if (!item || !cJSON_AddItemToObject(object, name, item))
		out_of_memory();
}

void cli_add_text(cJSON *object, const char *name, const char *text)
{
	cli_add(object, name, cJSON_CreateString(text));
}

void cli_add_number(cJSON *object, const char *name, double number)
{
	cli_add(object, name, cJSON_CreateNumber(number));
}

void cli_add_bool(cJSON *object, const char *name, bool value)
{
	cli_add(object, name, cJSON_CreateBool(value));
}

int cli_print_json(cJSON *object, enum exit_code code)
{
	char *text = cJSON_Print(object);

	if (!text)
		out_of_memory();
	if (puts(text) < 0 || fflush(stdout))
		code = EXIT_BROKEN;
	cJSON_free(text);
	cJSON_Delete(object);
	return (int)code;
}

int cli_fail(enum exit_code code, const char *format, ...)
{
	char text[1024];
	va_list list;

	va_start(list, format);
	vsnprintf(text, sizeof(text), format, list);
	va_end(list);
	fprintf(stderr, "shadowserve: %s\n", text);
	if (option_json) {
		cJSON *object = cli_object();

		cli_add_text(object, "error", text);
		cli_add_number(object, "exit", code);
		(void)cli_print_json(object, code);
	}
	return (int)code;
}

const char *cli_bytes(double bytes, char *text)
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
	uint32_t unit = 0;

	while (bytes >= 1024 && unit + 1 < ARRAY_COUNT(units)) {
		bytes /= 1024;
		unit++;
	}
	snprintf(text, 32, unit ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
	return text;
}

int cli_parse_key(const char *text, struct ssv_key *ret_key)
{
	if (strlen(text) != 2 * sizeof(ret_key->bytes))
		return -EINVAL;
	for (size_t i = 0; i < sizeof(ret_key->bytes); i++) {
		int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);

		if (high < 0 || low < 0)
			return -EINVAL;
		ret_key->bytes[i] = (uint8_t)(high << 4 | low);
	}
	return 0;
}

const char *cli_key_text(const struct ssv_key *key, char *text)
{
	for (size_t i = 0; i < sizeof(key->bytes); i++)
		snprintf(text + 2 * i, 3, "%02x", key->bytes[i]);
	return text;
}

void cli_progress(const char *what, uint64_t done, uint64_t total)
{
	static uint64_t shown_ns;
	uint64_t now_ns = clock_now_ns();
	int full = total ? (int)(done * BAR_WIDTH / total) : 0;

	if (!isatty(STDERR_FILENO) || (done < total && now_ns - shown_ns < BAR_INTERVAL_NS))
		return;
	shown_ns = now_ns;
	fprintf(stderr, "\r%s [%.*s%*s] %llu/%llu", what, full, "##############################",
		BAR_WIDTH - full, "", (unsigned long long)done, (unsigned long long)total);
	if (done >= total)
		fputc('\n', stderr);
	fflush(stderr);
}
