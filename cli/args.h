/* SPDX-License-Identifier: Apache-2.0 */
/*
 * args.h - options of a command as a table: parsed, checked and explained from the same rows.
 *
 * `--name value`, `--name=value`, `-h`, `--` ends the options. Options may stand between operands.
 */
#ifndef SSV_CLI_ARGS_H
#define SSV_CLI_ARGS_H

#include "base/base.h"

enum arg_kind {
	ARG_FLAG = 0, /* target: int, set to 1 */
	ARG_TEXT,     /* target: const char * */
	ARG_NUMBER,   /* target: uint64_t, min..max */
};

struct arg {
	const char *name;  /* without dashes */
	const char *value; /* what --help calls its value; NULL for a flag */
	const char *help;
	enum arg_kind kind;
	void *target;
	uint64_t min, max;
};

#define ARG_END   \
	{         \
		0 \
	}

/**
 * Parse argv[0..argc) by one or two tables that end with ARG_END (NULL: none). Operands are moved
 * to the front.
 * Returns their number, or -EINVAL with one line in error that names the argument and the nearest
 * known one.
 */
SSV_MUST_CHECK int args_parse(const struct arg *args, const struct arg *more, int argc, char **argv,
			      char *error, size_t error_bytes);

void args_print(const struct arg *args);

/* The candidate that text most looks like; NULL when none is close. */
const char *args_nearest(const char *text, const char *const *candidates, uint32_t count);

#endif
