/* SPDX-License-Identifier: Apache-2.0 */
/*
 * detach.c - double fork, setsid, descriptors closed.
 */
#include "detach.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define REPORT_BYTES_MAX 1024
#define REPORT_WAIT_MS   60000 /* an arena of many GiB takes its time */

/* In the starter: never returns. */
static void starter_wait(int report)
{
	char text[REPORT_BYTES_MAX];
	struct pollfd fd = {.fd = report, .events = POLLIN};
	ssize_t n = -1;

	if (poll(&fd, 1, REPORT_WAIT_MS) > 0)
		n = read(report, text, sizeof(text) - 1);
	if (n < 1) {
		fprintf(stderr, "shadowserved: the background process %s\n",
			n == 0 ? "died before it served" : "did not report in time");
		_exit(1);
	}
	text[n] = 0;
	if (n > 1)
		fprintf(stderr, "shadowserved: %s\n", text + 1);
	_exit(text[0]);
}

static int descriptors_close(int *report)
{
	int null = open("/dev/null", O_RDWR);
	int fd;

	if (null < 0)
		return -errno;
	for (int i = 0; i < 3; i++) {
		if (dup2(null, i) < 0)
			return -errno;
	}
	/* The report moves to 3, everything above goes. */
	fd = *report;
	if (fd != 3 && dup3(fd, 3, O_CLOEXEC) < 0)
		return -errno;
	*report = 3;
	return close_range(4, ~0u, 0) < 0 ? -errno : 0;
}

int detach(int *ret_report)
{
	int pipes[2];
	pid_t child;
	int err;

	fflush(NULL);
	if (pipe2(pipes, O_CLOEXEC) < 0)
		return -errno;
	child = fork();
	if (child < 0)
		return -errno;
	if (child) {
		close(pipes[1]);
		waitpid(child, NULL, 0);
		starter_wait(pipes[0]);
	}
	close(pipes[0]);
	if (setsid() < 0)
		_exit(1);
	child = fork(); /* no longer a session leader: can never get a terminal */
	if (child)
		_exit(child < 0);
	err = descriptors_close(&pipes[1]);
	if (err)
		_exit(1);
	*ret_report = pipes[1];
	return 0;
}

void detach_report(int report, int status, const char *text)
{
	char bytes[REPORT_BYTES_MAX];
	int n;

	if (report < 0)
		return;
	n = snprintf(bytes, sizeof(bytes), "%c%s", (char)status, text);
	if (n > 0)
		(void)!write(report, bytes, u64_min((uint64_t)n, sizeof(bytes) - 1));
	close(report);
}
