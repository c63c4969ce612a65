/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cli.h - what the commands of `shadowserve` share: their table, exit codes, and how they answer.
 *
 * A command answers on stdout, once: a text for people, or with --json one JSON object. Progress
 * and errors go to stderr; with --json an error is an object on stdout too.
 */
#ifndef SSV_CLI_H
#define SSV_CLI_H

#include <cJSON.h>
#include <stdbool.h>

#include "args.h"
#include "shadowserve.h"

enum exit_code {
	EXIT_OK = 0,
	EXIT_FOUND_BAD = 1, /* the answer is "not good": damage, a miss, a failed check */
	EXIT_USAGE = 2,
	EXIT_UNREACHABLE = 3, /* no daemon, no store */
	EXIT_BROKEN = 4,      /* anything else went wrong */
};

struct command {
	const char *name;     /* one word, or two: "bench codec" */
	const char *operands; /* "FILE|KEY" ..., "" for none */
	const char *summary;  /* a line in the overview */
	const char *text;     /* the rest of --help: what it answers, examples */
	const struct arg *args;
	int operands_min, operands_max; /* -1: any number */
	bool passes_on;                 /* options are another program's: run() gets all words */
	int (*run)(int argc, char **argv);
};

extern const struct command daemon_commands[]; /* ping, lookup */
extern const struct command stat_command, trace_command;
extern const struct command inspect_command, verify_command, transcode_command;
extern const struct command profile_commands[]; /* show, check, put, get */
extern const struct command bench_codec_command, bench_fetch_command, bench_plan_command;
extern const struct command calibrate_command, doctor_command;

/* Options of every command. */
extern int option_json;

/* Print "shadowserve: ..." and return code; the way every command ends that could not answer. */
int cli_fail(enum exit_code code, const char *format, ...) SSV_PRINTF(2, 3);

/* Print the object and free it; returns code, or EXIT_BROKEN when it could not be written. */
int cli_print_json(cJSON *object, enum exit_code code);

/* An object that is never NULL: out of memory ends the program. */
cJSON *cli_object(void);
cJSON *cli_array(void);
void cli_add(cJSON *object, const char *name, cJSON *item);
void cli_add_text(cJSON *object, const char *name, const char *text);
void cli_add_number(cJSON *object, const char *name, double number);
void cli_add_bool(cJSON *object, const char *name, bool value);

/* Memory that is never NULL: out of memory ends the program. */
void *cli_alloc(size_t bytes);

/* "12.3 MiB"; text has 32 bytes. */
const char *cli_bytes(double bytes, char *text);

/* 64 hexadecimal digits to a key and back; text has 65 bytes. */
int cli_parse_key(const char *text, struct ssv_key *ret_key);
const char *cli_key_text(const struct ssv_key *key, char *text);

/* A bar on stderr when it is a terminal; call with done == total to end it. */
void cli_progress(const char *what, uint64_t done, uint64_t total);

#endif
