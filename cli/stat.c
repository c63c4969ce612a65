/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stat.c - `shadowserve stat`: the daemon's state, for people or as its own JSON.
 *
 * --reset asks by a message of its own: the state is answered first, then the daemon begins to
 * count the hot path anew ("path", "threads"); everything else goes on counting.
 */
#include <errno.h>
#include <string.h>

#include "cli.h"
#include "daemon.h"
#include "talk.h"

static int option_reset;

static const struct arg stat_args[] = {
    SOCKET_ARG,
    {"reset", NULL, "then count the hot path anew, in a new epoch", ARG_FLAG, &option_reset, 0, 0},
    TIMEOUT_ARG,
    ARG_END,
};

static double number(const cJSON *object, const char *name)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);

	return cJSON_IsNumber(item) ? item->valuedouble : 0;
}

static bool is_scalar(const cJSON *item)
{
	return !cJSON_IsObject(item) && !cJSON_IsArray(item);
}

static void print_scalar(const cJSON *item)
{
	char *text = cJSON_IsString(item) ? NULL : cJSON_PrintUnformatted(item);

	fputs(text ? text : cJSON_GetStringValue(item), stdout);
	cJSON_free(text);
}

/* {"count", "sum_us" ...}: how often and how long. */
static bool print_times(const cJSON *item)
{
	const double count = number(item, "count"), sum_us = number(item, "sum_us");

	if (!cJSON_HasObjectItem(item, "count") || !cJSON_HasObjectItem(item, "sum_us"))
		return false;
	printf("%.0f times", count);
	if (count > 0)
		printf(", %.1f us each, %.1f ms in all", sum_us / count, sum_us / 1e3);
	if (count > 0 && cJSON_HasObjectItem(item, "p99_us"))
		printf("; p50 %.1f, p99 %.1f, max %.1f us", number(item, "p50_us"),
		       number(item, "p99_us"), number(item, "max_us"));
	putchar('\n');
	return true;
}

/* Numbers of an array in a line. */
static bool print_row(const cJSON *item)
{
	if (!cJSON_IsArray(item) || !item->child || !is_scalar(item->child))
		return false;
	for (const cJSON *value = item->child; value; value = value->next) {
		print_scalar(value);
		putchar(value->next ? ' ' : '\n');
	}
	return true;
}

/* Counters that are zero say nothing to a person. */
static bool is_silent(const cJSON *item, const char *parent)
{
	static const char *const parents[] = {"counters", "faults", "calls", "control_calls"};

	if (parent && !strcmp(parent, "stages"))
		return cJSON_HasObjectItem(item, "count") && number(item, "count") == 0;
	for (size_t i = 0; parent && i < ARRAY_COUNT(parents); i++) {
		if (!strcmp(parent, parents[i]) && cJSON_IsNumber(item) && item->valuedouble == 0)
			return true;
	}
	return false;
}

/* The members of an object as indented lines. */
static void print_tree(const cJSON *item, const char *parent, int depth)
{
	for (; item; item = item->next) {
		if (is_silent(item, parent))
			continue;
		printf("%*s%-*s ", 2 * depth, "", 26 - 2 * depth,
		       item->string ? item->string : "-");
		if (is_scalar(item)) {
			print_scalar(item);
			putchar('\n');
		} else if (!item->child) {
			puts("none");
		} else if (!print_times(item) && !print_row(item)) {
			putchar('\n');
			print_tree(item->child, item->string, depth + 1);
		}
	}
}

/* The daemon's JSON in text[STAT_BYTES_MAX]; *ret_bytes of it. 0, or the exit code. */
static int stat_ask(char *text, size_t *ret_bytes)
{
	int exit_code = EXIT_OK, length;
	struct ssv *ssv = daemon_connect("stat", &exit_code);

	if (!ssv)
		return exit_code;
	length = ssv_stat(ssv, text, STAT_BYTES_MAX, (uint32_t)option_timeout);
	ssv_close(ssv);
	if (length < 0)
		return cli_fail(EXIT_UNREACHABLE, "stat: the daemon gave no answer: %s",
				strerror(-length));
	*ret_bytes = (size_t)length;
	return EXIT_OK;
}

static int stat_ask_reset(char *text, size_t *ret_bytes)
{
	struct message_text state;
	struct talk talk;
	int exit_code = talk_open(&talk, "stat", option_socket, (uint32_t)option_timeout);

	if (exit_code)
		return exit_code;
	exit_code = talk_reset(&talk, &state);
	if (!exit_code) {
		*ret_bytes = state.text_bytes;
		memcpy(text, state.text, state.text_bytes);
	}
	talk_close(&talk);
	return exit_code;
}

static int run_stat(int argc, char **argv)
{
	char *text = cli_alloc(STAT_BYTES_MAX);
	size_t bytes = 0;
	int exit_code;
	cJSON *stat;

	(void)argc;
	(void)argv;
	exit_code = option_reset ? stat_ask_reset(text, &bytes) : stat_ask(text, &bytes);
	if (exit_code)
		goto free_text;
	stat = cJSON_ParseWithLength(text, bytes);
	if (!cJSON_IsObject(stat))
		exit_code = cli_fail(EXIT_BROKEN, "stat: the daemon's answer is no JSON object");
	else if (option_json)
		exit_code = cli_print_json(cJSON_Duplicate(stat, 1), EXIT_OK);
	else
		print_tree(stat->child, NULL, 0);
	cJSON_Delete(stat);
free_text:
	free(text);
	return exit_code;
}

const struct command stat_command = {
    .name = "stat",
    .operands = "",
    .summary = "the daemon's sessions, regions, pools, stores, counters and times",
    .text =
	"Print the daemon's state. Counters count from its start; with --json it is the\n"
	"daemon's own object, to be read by a program. \"path\" and \"threads\" say what the hot\n"
	"path cost since the last --reset: copies, system calls, switches, times, waits.\n\n"
	"  shadowserve stat\n"
	"  shadowserve stat --reset > /dev/null; run-something; shadowserve stat\n"
	"  shadowserve stat --json | jq .path.stages",
    .args = stat_args,
    .run = run_stat,
};
