/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_digest.c - runs `python -m shadowserve.model FOLDER DTYPE`: $SHADOWSERVE_PYTHON, which the
 * pip package sets, else python3. There is one definition of a model's identity, and it is there.
 */
#include "model_digest.h"

#include <errno.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "chunk/shape.h"
#include "cli.h"

extern char **environ;

static int run(const char *python, char *const *argv, char *out, size_t room)
{
	posix_spawn_file_actions_t actions;
	int ends[2], status = -1, err;
	ssize_t n = 1;
	size_t count = 0;
	pid_t child;

	if (pipe(ends) < 0)
		return -errno;
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
	posix_spawn_file_actions_addclose(&actions, ends[0]);
	err = -posix_spawnp(&child, python, &actions, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	close(ends[1]);
	while (!err && n > 0 && count < room - 1) {
		n = read(ends[0], out + count, room - 1 - count);
		if (n > 0)
			count += (size_t)n;
	}
	close(ends[0]);
	out[count] = 0;
	if (!err && (waitpid(child, &status, 0) < 0 || status))
		err = -ECHILD;
	return err;
}

int model_digest(const char *command, const char *folder, uint8_t dtype, char digest[65])
{
	static const char *const dtypes[] = {"bfloat16", "float16", "float32", "bfloat16",
					     "bfloat16"};
	const char *python = getenv("SHADOWSERVE_PYTHON");
	char option[] = "-m", module[] = "shadowserve.model";
	char name[16], out[256], *argv[6], path[4096];
	int err;

	snprintf(name, sizeof(name), "%s", dtypes[dtype]);
	snprintf(path, sizeof(path), "%s", folder);
	if (!python || !python[0])
		python = "python3";
	argv[0] = (char *)(uintptr_t)python;
	argv[1] = option;
	argv[2] = module;
	argv[3] = path;
	argv[4] = name;
	argv[5] = NULL;
	err = run(python, argv, out, sizeof(out));
	if (err && err != -ECHILD)
		return cli_fail(EXIT_BROKEN, "%s: --model: %s: %s", command, python,
				strerror(-err));
	if (err || strspn(out, "0123456789abcdef") != 64)
		return cli_fail(EXIT_BROKEN,
				"%s: --model \"%s\": %s could not tell its digest (is the package "
				"shadowserve installed for it?); --digest names one",
				command, folder, python);
	memcpy(digest, out, 64);
	digest[64] = 0;
	return 0;
}
