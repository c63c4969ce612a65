/* SPDX-License-Identifier: Apache-2.0 */
/*
 * log.c - one line, one write(2), whatever the thread.
 *
 * The descriptor number never changes once a file is open: reopening replaces what is behind it
 * (dup2), so a thread that is writing meanwhile writes a whole line to the old or the new file.
 */
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_BYTES_MAX 1024

static const char *const level_names[] = {"error", "warn", "info", "debug"};

static _Atomic int log_level = LOG_LEVEL_INFO;
static _Atomic int log_fd = STDERR_FILENO;
static char log_path[PATH_MAX]; /* control thread only */

void log_set_level(enum log_level level)
{
	/* Relaxed, pairs with log_get_level(): a hint that orders nothing. */
	atomic_store_explicit(&log_level, (int)level, memory_order_relaxed);
}

enum log_level log_get_level(void)
{
	return (enum log_level)atomic_load_explicit(&log_level, memory_order_relaxed);
}

int log_level_parse(const char *text, enum log_level *ret_level)
{
	for (size_t i = 0; i < ARRAY_COUNT(level_names); i++) {
		if (strcmp(text, level_names[i]) == 0) {
			*ret_level = (enum log_level)i;
			return 0;
		}
	}
	return -EINVAL;
}

const char *log_level_name(enum log_level level)
{
	return level_names[level];
}

static int log_file_open(const char *path)
{
	int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0600);

	return fd < 0 ? -errno : fd;
}

int log_open(const char *path)
{
	int old = atomic_load_explicit(&log_fd, memory_order_relaxed);
	int fd = STDERR_FILENO;

	if (path) {
		if (strlen(path) >= sizeof(log_path))
			return -ENAMETOOLONG;
		fd = log_file_open(path);
		if (fd < 0)
			return fd;
	}
	strcpy(log_path, path ? path : "");
	/* Relaxed, pairs with log_write(): the number is all that travels. */
	atomic_store_explicit(&log_fd, fd, memory_order_relaxed);
	if (old != STDERR_FILENO)
		close(old);
	return 0;
}

int log_reopen(void)
{
	int fd;
	int err = 0;

	if (!log_path[0])
		return 0;
	fd = log_file_open(log_path);
	if (fd < 0)
		return fd;
	if (dup3(fd, atomic_load_explicit(&log_fd, memory_order_relaxed), O_CLOEXEC) < 0)
		err = -errno;
	close(fd);
	return err;
}

static size_t log_prefix(char *line, enum log_level level)
{
	struct timespec t;
	struct tm tm;
	size_t n;

	clock_gettime(CLOCK_REALTIME, &t);
	gmtime_r(&t.tv_sec, &tm);
	n = strftime(line, LINE_BYTES_MAX, "%Y-%m-%dT%H:%M:%S", &tm);
	return n + (size_t)snprintf(line + n, LINE_BYTES_MAX - n, ".%06ldZ %s ", t.tv_nsec / 1000,
				    log_level_name(level));
}

/* A full disk, a closed stderr or a pipe that nobody reads must not stop the data plane: a line
 * that cannot be written at once is lost. A pipe that polls writable takes PIPE_BUF bytes, so a
 * line. */
static void line_write(const char *line, size_t bytes)
{
	struct pollfd out = {
	    .fd = atomic_load_explicit(&log_fd, memory_order_relaxed),
	    .events = POLLOUT,
	};

	if (poll(&out, 1, 0) == 1 && out.revents & POLLOUT)
		(void)!write(out.fd, line, bytes);
}

void log_write(enum log_level level, const char *format, ...)
{
	char line[LINE_BYTES_MAX];
	size_t start, end;
	va_list list;
	int n;

	if (level > log_get_level())
		return;
	start = log_prefix(line, level);
	va_start(list, format);
	n = vsnprintf(line + start, sizeof(line) - 1 - start, format, list);
	va_end(list);
	if (n < 0)
		return;
	end = u64_min(start + (size_t)n, sizeof(line) - 2);
	/* A peer's text must not be able to forge a line of its own. */
	for (size_t i = start; i < end; i++) {
		if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
			line[i] = ' ';
	}
	line[end++] = '\n';
	line_write(line, end);
}
