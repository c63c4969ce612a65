/* SPDX-License-Identifier: Apache-2.0 */
/* args.c - parses options by their table; suggests the nearest name by edit distance. */
#include "args.h"

#include <errno.h>
#include <string.h>

#include "store/uri.h"

#define NAME_MAX_BYTES 32u
#define NAMES_MAX      64u

const char *args_nearest(const char *text, const char *const *candidates, uint32_t count)
{
	uint32_t best = UINT32_MAX, limit = strlen(text) > 5 ? 3 : 2;
	const char *nearest = NULL;

	for (uint32_t i = 0; i < count; i++) {
		uint32_t distance = uri_distance(text, candidates[i]);

		/* The beginning of a name is as near as one edit. */
		if (strlen(text) > 1 && !strncmp(text, candidates[i], strlen(text)))
			distance = 1;
		if (distance < best) {
			best = distance;
			nearest = candidates[i];
		}
	}
	return best <= limit && nearest && best < strlen(nearest) ? nearest : NULL;
}

static uint32_t collect_names(const struct arg *args, const char **names, uint32_t count)
{
	for (; args && args->name && count < NAMES_MAX; args++)
		names[count++] = args->name;
	return count;
}

static int unknown_option(const struct arg *args, const struct arg *more, const char *name,
			  char *error, size_t error_bytes)
{
	const char *names[NAMES_MAX];
	uint32_t count = collect_names(more, names, collect_names(args, names, 0));
	const char *nearest = args_nearest(name, names, count);

	if (nearest)
		snprintf(error, error_bytes, "unknown option --%.40s; did you mean --%s?", name,
			 nearest);
	else
		snprintf(error, error_bytes, "unknown option --%.40s; see --help", name);
	return -EINVAL;
}

static const struct arg *find(const struct arg *args, const char *name)
{
	for (; args && args->name; args++) {
		if (!strcmp(args->name, name))
			return args;
	}
	return NULL;
}

static int take_number(const struct arg *arg, const char *value, char *error, size_t error_bytes)
{
	unsigned long long number;
	char *end;

	errno = 0;
	number = strtoull(value, &end, 0);
	if (end == value || *end || errno || value[0] == '-' || number < arg->min ||
	    number > arg->max) {
		snprintf(error, error_bytes, "option --%s: \"%.40s\" is no number in %llu..%llu",
			 arg->name, value, (unsigned long long)arg->min,
			 (unsigned long long)arg->max);
		return -EINVAL;
	}
	*(uint64_t *)arg->target = number;
	return 0;
}

static int take_value(const struct arg *arg, const char *value, char *error, size_t error_bytes)
{
	if (arg->kind == ARG_FLAG) {
		if (value) {
			snprintf(error, error_bytes, "option --%s takes no value", arg->name);
			return -EINVAL;
		}
		*(int *)arg->target = 1;
		return 0;
	}
	if (!value) {
		snprintf(error, error_bytes, "option --%s needs a value: --%s %s", arg->name,
			 arg->name, arg->value);
		return -EINVAL;
	}
	if (arg->kind == ARG_NUMBER)
		return take_number(arg, value, error, error_bytes);
	*(const char **)arg->target = value;
	return 0;
}

/* One option at argv[i]; returns how many words it took. */
static int take_option(const struct arg *args, const struct arg *more, int left, char **argv,
		       char *error, size_t error_bytes)
{
	const char *text = argv[0] + 2, *equals = strchr(text, '=');
	char name[2 * NAME_MAX_BYTES];
	const struct arg *arg;
	int words = 1, err;

	snprintf(name, sizeof(name), "%.*s", equals ? (int)(equals - text) : (int)strlen(text),
		 text);
	if (!strcmp(argv[0], "-h"))
		snprintf(name, sizeof(name), "help");
	arg = find(args, name);
	if (!arg)
		arg = find(more, name);
	if (!arg)
		return unknown_option(args, more, name, error, error_bytes);
	if (arg->kind != ARG_FLAG && !equals && left > 1)
		words = 2;
	err = take_value(arg,
			 equals       ? equals + 1
			 : words == 2 ? argv[1]
				      : NULL,
			 error, error_bytes);
	return err ? err : words;
}

int args_parse(const struct arg *args, const struct arg *more, int argc, char **argv, char *error,
	       size_t error_bytes)
{
	int operands = 0, words;

	for (int i = 0; i < argc; i += words) {
		words = 1;
		if (!strcmp(argv[i], "--")) {
			while (++i < argc)
				argv[operands++] = argv[i];
			break;
		}
		if (argv[i][0] != '-' || !argv[i][1]) {
			argv[operands++] = argv[i];
			continue;
		}
		if (argv[i][1] != '-' && strcmp(argv[i], "-h")) {
			snprintf(error, error_bytes, "unknown option %.40s; see --help", argv[i]);
			return -EINVAL;
		}
		words = take_option(args, more, argc - i, argv + i, error, error_bytes);
		if (words < 0)
			return words;
	}
	return operands;
}

void args_print(const struct arg *args)
{
	for (; args && args->name; args++) {
		char left[64];

		snprintf(left, sizeof(left), "--%s%s%s", args->name, args->value ? " " : "",
			 args->value ? args->value : "");
		printf("  %-22s %s\n", left, args->help);
	}
}
