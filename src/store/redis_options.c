/* SPDX-License-Identifier: Apache-2.0 */
/*
 * redis_options.c - the options of the stores that speak to Redis, and what a lane says first.
 *
 * One table for all: a scheme takes a stretch of it. The log-in is written once, when a store is
 * opened, so that the data path has no password to look for. Nothing here connects.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "store/cluster_map.h"
#include "store/redis.h"

const struct uri_option redis_options[REDIS_OPTIONS_ALL] = {
    [REDIS_OPTION_DB] = {.name = "db",
			 .kind = URI_NUMBER,
			 .fallback = 0,
			 .min = 0,
			 .max = 65535,
			 .help = "database; the same as /N behind the host"},
    [REDIS_OPTION_LANES] = {.name = "lanes",
			    .kind = URI_NUMBER,
			    .fallback = 4,
			    .min = 1,
			    .max = REDIS_LANES_MAX,
			    .help = "connections that read values; two more write and look up"},
    [REDIS_OPTION_PIPELINE] = {.name = "pipeline",
			       .kind = URI_NUMBER,
			       .fallback = 2,
			       .min = 1,
			       .max = 16,
			       .help = "GETs in flight a lane"},
    [REDIS_OPTION_RANGE] = {.name = "range",
			    .kind = URI_BYTES,
			    .fallback = MIB,
			    .min = 4 * KIB,
			    .max = 64 * MIB,
			    .zero_means = "whole values",
			    .help = "longer values are asked for in pieces of so many bytes"},
    [REDIS_OPTION_TTL] = {.name = "ttl",
			  .kind = URI_NUMBER,
			  .fallback = 0,
			  .min = 1,
			  .max = 315360000,
			  .zero_means = "for ever",
			  .help = "seconds until a value expires, from its PUT"},
    [REDIS_OPTION_TIMEOUT] = {.name = "timeout-ms",
			      .kind = URI_NUMBER,
			      .fallback = 1000,
			      .min = 10,
			      .max = 60000,
			      .help = "a lane on which nothing moves for so long is dropped"},
    [REDIS_OPTION_CONNECT_TIMEOUT] = {.name = "connect-timeout-ms",
				      .kind = URI_NUMBER,
				      .fallback = 500,
				      .min = 10,
				      .max = 60000,
				      .help = "for connecting and logging in, together"},
    [REDIS_OPTION_BACKOFF_MAX] = {.name = "backoff-max-ms",
				  .kind = URI_NUMBER,
				  .fallback = 2000,
				  .min = 10,
				  .max = 60000,
				  .help = "longest pause between attempts to connect"},
    [REDIS_OPTION_PREFIX] = {.name = "prefix",
			     .kind = URI_TEXT,
			     .help =
				 "stands before the key's 64 hex digits; \"ssv:\" if not given"},
    [REDIS_OPTION_PROTOCOL] = {.name = "protocol",
			       .kind = URI_WORD,
			       .fallback = 1,
			       .words = "2|3",
			       .help = "RESP version"},
    [REDIS_OPTION_PASSWORD_FILE] = {.name = "password-file",
				    .kind = URI_TEXT,
				    .help = "file whose first line is the password, which keeps it "
					    "out of process lists"},
    [REDIS_OPTION_CONNECT] = {.name = "connect",
			      .kind = URI_WORD,
			      .words = "now|later",
			      .help = "now: opening fails if the server is not there; later: it is "
				      "waited for in the background"},
    [REDIS_OPTION_NODES] = {.name = "nodes",
			    .kind = URI_NUMBER,
			    .fallback = 32,
			    .min = 1,
			    .max = CLUSTER_NODES_MAX,
			    .help = "masters at most"},
    [REDIS_OPTION_REFRESH] = {.name = "refresh-ms",
			      .kind = URI_NUMBER,
			      .fallback = 10000,
			      .min = 100,
			      .max = 3600000,
			      .help = "the map is asked for again after so long, besides whenever "
				      "something tells that it changed"},
};

static int read_password(const char *scheme, const char *path, char *password,
			 size_t password_bytes, char *error)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, password, password_bytes - 1);

	if (fd >= 0)
		(void)close(fd);
	if (n < 0)
		return uri_error(error, -EACCES,
				 "store %s: option password-file=%.64s: %s; expected a file "
				 "that can be read",
				 scheme, path, strerror(errno));
	password[n] = '\0';
	password[strcspn(password, "\r\n")] = '\0';
	return 0;
}

/* What a lane says first: log-in, then the database. */
static int write_hello(struct redis_store *redis, const char *user, const char *password,
		       bool resp3, uint64_t db)
{
	struct resp_writer writer = {.text = redis->hello, .bytes_max = sizeof(redis->hello)};
	char text[24];

	if (user && !user[0])
		user = NULL;

	redis->hello_replies = 1;
	if (resp3) {
		resp_write_array(&writer, password ? 7 : 4);
		resp_write_text(&writer, "HELLO");
		resp_write_text(&writer, "3");
		if (password) {
			resp_write_text(&writer, "AUTH");
			resp_write_text(&writer, user ? user : "default");
			resp_write_text(&writer, password);
		}
		resp_write_text(&writer, "SETNAME");
		resp_write_text(&writer, "shadowserve");
	} else if (password) {
		resp_write_array(&writer, user ? 3 : 2);
		resp_write_text(&writer, "AUTH");
		if (user)
			resp_write_text(&writer, user);
		resp_write_text(&writer, password);
	} else {
		resp_write_array(&writer, 1);
		resp_write_text(&writer, "PING");
	}
	if (db) {
		redis->hello_replies++;
		(void)snprintf(text, sizeof(text), "%llu", (unsigned long long)db);
		resp_write_array(&writer, 2);
		resp_write_text(&writer, "SELECT");
		resp_write_text(&writer, text);
	}
	redis->hello_bytes = (uint32_t)writer.bytes;
	return writer.overflow ? -E2BIG : 0;
}

/* "redis://host/3": the database; *ret_db is left alone without one. */
static int read_database(const struct uri *uri, uint64_t *ret_db, char *error)
{
	char *end;

	if (!uri->host || !uri->host[0] || !uri->path[0] || !uri->path[1])
		return 0;
	*ret_db = strtoull(uri->path + 1, &end, 10);
	if (*end || uri->path[1] < '0' || uri->path[1] > '9' || *ret_db > 65535)
		return uri_error(error, -EINVAL,
				 "store %s: database \"%.32s\": expected /0 to /65535", uri->scheme,
				 uri->path);
	return 0;
}

int redis_check(const struct uri *uri, char *error)
{
	uint64_t db;

	if (uri->hosts)
		return uri_error(error, -EINVAL,
				 "store %s: hosts \"%.64s\": expected one; several are for "
				 "redis+cluster://",
				 uri->scheme, uri->hosts);
	return read_database(uri, &db, error);
}

static int set_login(struct redis_store *redis, const struct uri *uri,
		     const struct uri_value *values, char *error)
{
	const char *path = values[REDIS_OPTION_PASSWORD_FILE].text;
	/* Before '@' a lone word is the password, or the user if the password is in a file. */
	const char *user = path && !uri->user ? uri->password : uri->user;
	uint64_t db = values[REDIS_OPTION_DB].number;
	char password[512];
	int err;

	err = read_database(uri, &db, error);
	if (err)
		return err;
	if (path) {
		err = read_password(uri->scheme, path, password, sizeof(password), error);
		if (err)
			return err;
	}
	err = write_hello(redis, user, path ? password : uri->password,
			  values[REDIS_OPTION_PROTOCOL].number == 1, db);
	explicit_bzero(password, sizeof(password));
	if (err)
		return uri_error(error, err,
				 "store %s: user and password: expected at most "
				 "900 bytes together",
				 uri->scheme);
	return 0;
}

static int set_options(struct redis_store *redis, const struct uri *uri,
		       const struct uri_value *values, char *error)
{
	const char *prefix =
	    values[REDIS_OPTION_PREFIX].text ? values[REDIS_OPTION_PREFIX].text : "ssv:";
	uint64_t ttl = values[REDIS_OPTION_TTL].number;
	char seconds[24];

	if (strlen(prefix) > REDIS_PREFIX_MAX)
		return uri_error(error, -EINVAL,
				 "store %s: option prefix=%.70s: expected at most %u bytes",
				 uri->scheme, prefix, REDIS_PREFIX_MAX);
	(void)snprintf(redis->prefix, sizeof(redis->prefix), "%s", prefix);
	(void)snprintf(seconds, sizeof(seconds), "%llu", (unsigned long long)ttl);
	redis->trailer_bytes =
	    (uint32_t)snprintf(redis->trailer, sizeof(redis->trailer),
			       "\r\n$2\r\nEX\r\n$%zu\r\n%s\r\n", strlen(seconds), seconds);
	if (!ttl)
		redis->trailer_bytes = 2; /* the value's line end alone */
	redis->pipeline = (uint32_t)values[REDIS_OPTION_PIPELINE].number;
	redis->range_bytes = values[REDIS_OPTION_RANGE].number;
	redis->timeout_ns = values[REDIS_OPTION_TIMEOUT].number * NS_PER_MS;
	redis->connect_timeout_ns = values[REDIS_OPTION_CONNECT_TIMEOUT].number * NS_PER_MS;
	redis->backoff_max_ns = values[REDIS_OPTION_BACKOFF_MAX].number * NS_PER_MS;
	return 0;
}

int redis_configure(struct redis_store *redis, const struct uri *uri,
		    const struct uri_value *values, char *error)
{
	int err = set_options(redis, uri, values, error);

	return err ? err : set_login(redis, uri, values, error);
}
