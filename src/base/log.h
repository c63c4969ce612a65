/* SPDX-License-Identifier: Apache-2.0 */
/*
 * log.h - structured log lines: time, level, message, then key=value pairs in the message's text.
 *
 * Who logs: the function that first turns a fact into an error; callers pass the code on silently.
 * Threads: any; a line is one write(2). The client library does not log.
 */
#ifndef SSV_LOG_H
#define SSV_LOG_H

#include "base.h"

enum log_level {
	LOG_LEVEL_ERROR = 0,
	LOG_LEVEL_WARN = 1,
	LOG_LEVEL_INFO = 2,
	LOG_LEVEL_DEBUG = 3,
};

/* Lines of a coarser or equal level are written. Default: INFO, to stderr. */
void log_set_level(enum log_level level);
enum log_level log_get_level(void);

/* "error", "warn", "info", "debug"; -EINVAL for anything else. */
SSV_MUST_CHECK int log_level_parse(const char *text, enum log_level *ret_level);
const char *log_level_name(enum log_level level);

/* Append to a file from now on (NULL: stderr). log_reopen() opens it again, for log rotation. */
SSV_MUST_CHECK int log_open(const char *path);
SSV_MUST_CHECK int log_reopen(void);

/* One line: 2026-11-23T15:04:05.123456Z level event key=value ... ; at most 1,023 bytes. */
void log_write(enum log_level level, const char *format, ...) SSV_PRINTF(2, 3);

#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...)  log_write(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...)  log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)                                           \
	do {                                                     \
		if (log_get_level() >= LOG_LEVEL_DEBUG)          \
			log_write(LOG_LEVEL_DEBUG, __VA_ARGS__); \
	} while (0)

#endif
