/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store.c - the one array of backends, and opening the one that a URI names.
 *
 * A wrapper ("fault+") takes its own options and opens the rest of the URI itself. Option names
 * are checked here, over all layers at once, so that a mistyped one is told its nearest neighbour
 * whichever layer it was meant for.
 */
#include "store/store.h"

#include <errno.h>
#include <string.h>

#include "store/backends.h"
#include "store/uri.h"

#define LAYERS_MAX 4 /* wrappers before a store, and the store */

/* A new store: one file, one row here. */
static const struct store_ops *const backends[] = {
    &store_fault, &store_file,          &store_memory,     &store_null,
    &store_redis, &store_redis_cluster, &store_redis_unix, NULL,
};

const struct store_ops *const *store_backends(void)
{
	return backends;
}

static const struct store_ops *find_backend(const char *scheme, size_t scheme_bytes)
{
	const struct store_ops *const *ops;

	for (ops = backends; *ops; ops++) {
		if (strlen((*ops)->scheme) == scheme_bytes &&
		    !memcmp((*ops)->scheme, scheme, scheme_bytes))
			return *ops;
	}
	return NULL;
}

static const char *nearest_scheme(const char *scheme)
{
	const struct store_ops *const *ops;
	const char *nearest = "";
	uint32_t least = UINT32_MAX;

	for (ops = backends; *ops; ops++) {
		uint32_t distance = uri_distance(scheme, (*ops)->scheme);

		if (distance < least) {
			least = distance;
			nearest = (*ops)->scheme;
		}
	}
	return nearest;
}

static void scheme_names(char *text, size_t text_bytes)
{
	const struct store_ops *const *ops;
	size_t n = 0;

	for (ops = backends; *ops && n < text_bytes; ops++)
		n += (size_t)snprintf(text + n, text_bytes - n, "%s%s%s", n ? ", " : "",
				      (*ops)->scheme, (*ops)->caps & STORE_CAP_WRAPPER ? "+" : "");
}

/* "fault+file": the wrappers from the outside, then the store. The whole word comes first, since a
 * store's own scheme may have a '+' ("redis+unix"). */
static int find_layers(const char *scheme, const struct store_ops **layers, uint32_t *ret_count,
		       char *error)
{
	uint32_t count = 0;
	char names[128];

	for (;;) {
		const struct store_ops *ops = find_backend(scheme, strlen(scheme));
		const char *plus = strchr(scheme, '+');

		if (ops) {
			if (ops->caps & STORE_CAP_WRAPPER)
				return uri_error(error, -EINVAL,
						 "store %s: a wrapper; expected %s+ and a store, "
						 "such as %s+memory:x",
						 scheme, scheme, scheme);
			layers[count++] = ops;
			*ret_count = count;
			return 0;
		}
		if (plus)
			ops = find_backend(scheme, (size_t)(plus - scheme));
		if (!ops || !(ops->caps & STORE_CAP_WRAPPER)) {
			scheme_names(names, sizeof(names));
			return uri_error(error, -ENOTSUP,
					 "store %.32s: unknown scheme; did you mean \"%s\"? "
					 "expected one of %s",
					 scheme, nearest_scheme(scheme), names);
		}
		if (count == LAYERS_MAX - 1)
			return uri_error(error, -E2BIG, "store URI: more than %d wrappers",
					 LAYERS_MAX - 1);
		layers[count++] = ops;
		scheme = plus + 1;
	}
}

/* Everything that the text says, before any layer opens anything. */
static int check_uri(const struct uri *uri, const struct store_ops **ret_outermost, char *error)
{
	const struct store_ops *layers[LAYERS_MAX];
	struct uri_value values[URI_OPTIONS_MAX];
	struct uri_table tables[LAYERS_MAX];
	uint32_t layers_count = 0, i;
	int err;

	err = find_layers(uri->scheme, layers, &layers_count, error);
	if (err)
		return err;
	for (i = 0; i < layers_count; i++)
		tables[i] = (struct uri_table){layers[i]->options, layers[i]->options_count};
	err = uri_check_names(uri, tables, layers_count, error);
	for (i = 0; i < layers_count && !err; i++) {
		ssv_assert(tables[i].count <= URI_OPTIONS_MAX);
		err = uri_read_options(uri, tables[i].options, tables[i].count, values, error);
		if (!err && layers[i]->check)
			err = layers[i]->check(uri, error);
	}
	*ret_outermost = layers[0];
	return err;
}

int store_uri_check(const char *text, char *error)
{
	const struct store_ops *outermost;
	struct uri uri;
	int err;

	error[0] = '\0';
	err = uri_parse(text, &uri, error);
	if (!err)
		err = check_uri(&uri, &outermost, error);
	explicit_bzero(&uri, sizeof(uri));
	return err;
}

int store_open(const struct store_config *config, struct store **ret_store, char *error)
{
	const struct store_ops *outermost;
	struct uri uri;
	int err;

	if (error)
		error[0] = '\0';
	if (!config->uri)
		return uri_error(error, -EINVAL, "store URI: none given");
	if (!config->ops_max || !config->value_bytes_max)
		return uri_error(error, -EINVAL,
				 "store: ops_max=%u value_bytes_max=%llu; expected 1 or more",
				 config->ops_max, (unsigned long long)config->value_bytes_max);
	err = uri_parse(config->uri, &uri, error);
	if (!err)
		err = check_uri(&uri, &outermost, error);
	explicit_bzero(&uri, sizeof(uri));
	return err ? err : outermost->open(config, ret_store, error);
}

void store_close(struct store *store)
{
	if (store)
		store->ops->close(store);
}

void store_uri_redact(const char *uri, char *text, size_t text_bytes)
{
	const char *user = strstr(uri, "://");
	/* The last '@': a password may hold '@', '/' or '?' that somebody forgot to escape. */
	const char *at = strrchr(uri, '@');
	const char *colon;

	if (!text_bytes)
		return;
	if (!user || !at || at < user + 3) {
		(void)snprintf(text, text_bytes, "%s", uri);
		return;
	}
	user += 3;
	colon = memchr(user, ':', (size_t)(at - user));
	(void)snprintf(text, text_bytes, "%.*s***%s", (int)((colon ? colon + 1 : user) - uri), uri,
		       at);
}
