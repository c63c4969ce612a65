/* SPDX-License-Identifier: Apache-2.0 */
/*
 * calibrate.c - `shadowserve calibrate`: hands over to the Python package, which has the model.
 *
 * Options are not looked at here, so that the two cannot disagree about them; the process becomes
 * Python's, exit code included.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

static const struct arg calibrate_args[] = {ARG_END};

static int calibrate_run(int argc, char **argv)
{
	const char *python = getenv("SHADOWSERVE_PYTHON");
	char **command = cli_alloc(((size_t)argc + 4) * sizeof(*command));
	int count = 0;

	if (!python || !python[0])
		python = "python3";
	command[count++] = (char *)python;
	command[count++] = (char *)"-m";
	command[count++] = (char *)"shadowserve.calibrate";
	for (int i = 0; i < argc; i++)
		command[count++] = argv[i];
	command[count] = NULL;
	execvp(python, command);
	return cli_fail(EXIT_BROKEN,
			"calibrate: %s cannot be run: %s; SHADOWSERVE_PYTHON names the Python that "
			"has shadowserve[calibrate]",
			python, strerror(errno));
}

const struct command calibrate_command = {
    .name = "calibrate",
    .operands = "MODEL",
    .summary = "measure on a model how coarse its KV may be; write its profile",
    .text = "Measures, through the model's own attention and this codec, the coarsest steps that\n"
	    "keep each tier's promise, and writes them as a profile (docs/profile.md).\n"
	    "Runs Python with torch and transformers: $SHADOWSERVE_PYTHON, else python3.\n"
	    "\n"
	    "  shadowserve calibrate MODEL --text prompts.txt --out profile.json\n"
	    "  shadowserve calibrate --help      every option",
    .args = calibrate_args,
    .operands_max = -1,
    .passes_on = true,
    .run = calibrate_run,
};
