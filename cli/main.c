/* SPDX-License-Identifier: Apache-2.0 */
/* main.c - finds the command, explains it, hands it its options. */
#include <errno.h>
#include <string.h>

#include "cli.h"
#include "codec/kernels.h"

#define COMMANDS_MAX 32u

static int option_help;

static const struct arg common_args[] = {
    {"json", NULL, "answer with one JSON object", ARG_FLAG, &option_json, 0, 0},
    {"help", NULL, "explain this command", ARG_FLAG, &option_help, 0, 0},
    ARG_END,
};

static const struct command *commands[COMMANDS_MAX];
static uint32_t commands_count;

static void add(const struct command *command)
{
	commands[commands_count++] = command;
}

static void add_all(void)
{
	for (const struct command *c = daemon_commands; c->name; c++)
		add(c);
	add(&stat_command);
	add(&trace_command);
	add(&inspect_command);
	add(&verify_command);
	add(&transcode_command);
	for (const struct command *c = profile_commands; c->name; c++)
		add(c);
	add(&calibrate_command);
	add(&bench_codec_command);
	add(&bench_fetch_command);
	add(&bench_plan_command);
	add(&doctor_command);
}

static void print_overview(FILE *out)
{
	fputs("usage: shadowserve COMMAND [OPTIONS]\n\n"
	      "Look at ShadowServe's daemon, at stores and at the chunks in them.\n\n",
	      out);
	for (uint32_t i = 0; i < commands_count; i++)
		fprintf(out, "  %-14s %s\n", commands[i]->name, commands[i]->summary);
	fputs(
	    "\nEvery command takes --json and --help; `shadowserve COMMAND --help` has examples.\n"
	    "\nexit codes:\n"
	    "  0  fine\n"
	    "  1  the answer is not good: a miss, damage, a failed check\n"
	    "  2  a mistake in the command line or in a file that it names\n"
	    "  3  no daemon, or no store, to be reached\n"
	    "  4  anything else that went wrong\n"
	    "\nenvironment:\n"
	    "  SHADOWSERVE_SOCKET  the daemon's socket, for --socket\n"
	    "  SHADOWSERVE_STORE   a store's URI, for --store\n"
	    "  SHADOWSERVE_PYTHON  the Python of calibrate\n"
	    "  SHADOWSERVE_SIMD    avx512, avx2, neon or scalar: what the codec uses\n",
	    out);
}

static void print_help(const struct command *command)
{
	printf("usage: shadowserve %s%s%s [OPTIONS]\n\n%s\n\noptions:\n", command->name,
	       command->operands[0] ? " " : "", command->operands, command->text);
	args_print(command->args);
	args_print(common_args);
}

/* The command that argv names, by one word or two; *ret_words says how many. */
static const struct command *find_command(int argc, char **argv, int *ret_words)
{
	for (uint32_t i = 0; i < commands_count; i++) {
		const char *name = commands[i]->name, *space = strchr(name, ' ');

		if (!space && !strcmp(argv[0], name)) {
			*ret_words = 1;
			return commands[i];
		}
		if (space && argc > 1 && strlen(argv[0]) == (size_t)(space - name) &&
		    !strncmp(argv[0], name, (size_t)(space - name)) &&
		    !strcmp(argv[1], space + 1)) {
			*ret_words = 2;
			return commands[i];
		}
	}
	return NULL;
}

static int unknown_command(int argc, char **argv)
{
	const char *names[COMMANDS_MAX], *nearest;
	char text[64];

	for (uint32_t i = 0; i < commands_count; i++)
		names[i] = commands[i]->name;
	/* "bench" alone, or with a word behind it, looks most like one of its two commands. */
	snprintf(text, sizeof(text), "%.28s%s%.28s", argv[0],
		 argc > 1 && argv[1][0] != '-' ? " " : "",
		 argc > 1 && argv[1][0] != '-' ? argv[1] : "");
	nearest = args_nearest(text, names, commands_count);
	if (!nearest)
		nearest = args_nearest(argv[0], names, commands_count);
	if (nearest)
		return cli_fail(EXIT_USAGE, "unknown command \"%s\"; did you mean \"%s\"?", text,
				nearest);
	return cli_fail(EXIT_USAGE, "unknown command \"%s\"; `shadowserve --help` lists them",
			text);
}

static int run_command(const struct command *command, int argc, char **argv)
{
	char error[256];
	int operands;

	if (command->passes_on)
		return command->run(argc, argv);
	if (kernels_check(error, sizeof(error)))
		return cli_fail(EXIT_USAGE, "%s", error);
	operands = args_parse(command->args, common_args, argc, argv, error, sizeof(error));
	if (operands < 0)
		return cli_fail(EXIT_USAGE, "%s: %s", command->name, error);
	if (option_help) {
		print_help(command);
		return EXIT_OK;
	}
	if (operands < command->operands_min)
		return cli_fail(EXIT_USAGE, "%s: %s is missing; see `shadowserve %s --help`",
				command->name, command->operands, command->name);
	if (command->operands_max >= 0 && operands > command->operands_max)
		return cli_fail(EXIT_USAGE, "%s: \"%s\" is one operand too many", command->name,
				argv[command->operands_max]);
	return command->run(operands, argv);
}

/* An error before the options are parsed is still JSON when asked for. */
static void look_for_json(int argc, char **argv)
{
	for (int i = 1; i < argc && strcmp(argv[i], "--"); i++) {
		if (!strcmp(argv[i], "--json"))
			option_json = 1;
	}
}

int main(int argc, char **argv)
{
	const struct command *command;
	int words;

	add_all();
	look_for_json(argc, argv);
	if (argc < 2) {
		print_overview(stderr);
		return EXIT_USAGE;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
		if (argc > 2 && (command = find_command(argc - 2, argv + 2, &words)))
			print_help(command);
		else
			print_overview(stdout);
		return EXIT_OK;
	}
	if (!strcmp(argv[1], "--version")) {
		printf("shadowserve %s\n", ssv_version());
		return EXIT_OK;
	}
	command = find_command(argc - 1, argv + 1, &words);
	if (!command)
		return unknown_command(argc - 1, argv + 1);
	return run_command(command, argc - 1 - words, argv + 1 + words);
}
