/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uri.h - a store's URI taken apart, and its options read by a table.
 *
 *	scheme:path?name=value&name=value
 *	scheme://[user[:password]@]host[:port][,host[:port]...]/path?...
 *
 * Invariant: an error text names the part, its value and what was expected, and never a password.
 * %XX is decoded everywhere but in the scheme. It does not know which schemes exist.
 */
#ifndef SSV_STORE_URI_H
#define SSV_STORE_URI_H

#include <stdbool.h>
#include <stdint.h>

#include "base/base.h"
#include "store/store.h"

#define URI_OPTIONS_MAX 32
#define URI_NAME_MAX    32 /* bytes of an option's name, with its end */

struct uri_pair {
	const char *name, *value;
};

/* Strings are lent by text[]; absent ones are NULL. */
struct uri {
	char text[STORE_URI_MAX];
	const char *scheme;
	const char *user, *password, *host, *port; /* after "//" */
	const char *hosts;                         /* "host:port,host:port" instead of host, port */
	const char *path;                          /* "" if absent */
	struct uri_pair options[URI_OPTIONS_MAX];
	uint32_t options_count;
};

enum uri_kind {
	URI_NUMBER = 1, /* decimal, min..max */
	URI_BYTES = 2,  /* decimal with K, M, G or T (powers of 1024), min..max */
	URI_RATE = 3,   /* "2.5%", in parts per million */
	URI_WORD = 4,   /* one of words ("none|data|full"); the value is its place from 0 */
	URI_TEXT = 5,   /* anything */
};

/* One row of a backend's option table: the only place where name, default and range stand. */
struct uri_option {
	const char *name;
	enum uri_kind kind;
	uint64_t fallback; /* value if absent */
	uint64_t min, max; /* NUMBER, BYTES; 0 is allowed too if zero_means is set */
	const char *words; /* WORD */
	const char *zero_means;
	const char *help; /* one line for the operator */
};

struct uri_value {
	uint64_t number;
	const char *text; /* as given, or NULL */
};

/* Split. Errors: -EINVAL, -E2BIG with one line in error. */
SSV_MUST_CHECK int uri_parse(const char *text, struct uri *ret_uri, char *error);

/* Take "host", "host:port" or "[IPv6]:port" apart, in place. -EINVAL with one line in error. */
SSV_MUST_CHECK int uri_split_host(const char *scheme, char *text, const char **ret_host,
				  const char **ret_port, char *error);

/* Read the options into values[table_count], in the table's order. Names that are not in the table
 * are left alone (see uri_check_names). Errors: -EINVAL with one line in error. */
SSV_MUST_CHECK int uri_read_options(const struct uri *uri, const struct uri_option *table,
				    uint32_t table_count, struct uri_value *values, char *error);

struct uri_table {
	const struct uri_option *options;
	uint32_t count;
};

/* Every option's name must stand in one of the tables, once; otherwise -EINVAL and the nearest. */
SSV_MUST_CHECK int uri_check_names(const struct uri *uri, const struct uri_table *tables,
				   uint32_t tables_count, char *error);

/* Edits (insert, remove, replace a character) between two names; for "did you mean". */
uint32_t uri_distance(const char *a, const char *b);

/* Write one line to error (SSV_ERROR_TEXT_MAX bytes; may be NULL) and return err. */
int uri_error(char *error, int err, const char *format, ...) SSV_PRINTF(3, 4);

#endif
