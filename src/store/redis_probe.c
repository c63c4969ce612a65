/* SPDX-License-Identifier: Apache-2.0 */
/*
 * redis_probe.c - the control path of a redis: store, on blocking sockets with time-outs.
 *
 * Opening a store tells at once whether the server is there and lets us in, with the server's own
 * words; listing keys takes a connection of its own. The data path's lanes are not involved.
 */
#include <errno.h>
#include <netdb.h>
#include <string.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "store/redis.h"

#define SCAN_COUNT "512"

/* A blocking connection and what was read from it. */
struct probe {
	int fd;
	struct resp_reader reader;
	char data[4096];
	size_t at, bytes;
};

static int resolve_unix(struct redis_store *redis, const struct uri *uri, char *error)
{
	struct sockaddr_un *address = (struct sockaddr_un *)&redis->addresses[0].address;
	size_t bytes = strlen(uri->path);

	if (uri->path[0] != '/' || bytes >= sizeof(address->sun_path))
		return uri_error(error, -EINVAL,
				 "store redis+unix: path \"%.64s\": expected an absolute path of "
				 "at most %zu bytes, as in redis+unix:///run/redis.sock",
				 uri->path, sizeof(address->sun_path) - 1);
	address->sun_family = AF_UNIX;
	memcpy(address->sun_path, uri->path, bytes + 1);
	redis->addresses[0].bytes = sizeof(*address);
	redis->addresses_count = 1;
	(void)snprintf(redis->name, sizeof(redis->name), "%.90s", uri->path);
	return 0;
}

int redis_resolve_host(const char *scheme, const char *host, const char *port,
		       struct redis_address *addresses, uint32_t *count, char *name, char *error)
{
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
	uint32_t count_max = *count;
	struct addrinfo *found, *at;
	char *end;
	long number;
	int err;

	*count = 0;
	if (!port || !port[0])
		port = "6379";
	number = strtol(port, &end, 10);
	if (*end || number < 1 || number > 65535)
		return uri_error(error, -EINVAL, "store %s: port \"%.16s\": expected 1 to 65535",
				 scheme, port);
	(void)snprintf(name, REDIS_NAME_MAX, "%.80s:%ld", host, number);
	err = getaddrinfo(host, port, &hints, &found);
	if (err)
		return uri_error(error, -ENOTCONN,
				 "store %s: host \"%.64s\": %s; expected a "
				 "name or address that resolves",
				 scheme, host, gai_strerror(err));
	for (at = found; at && *count < count_max; at = at->ai_next) {
		struct redis_address *to = &addresses[*count];

		if (at->ai_addrlen > sizeof(to->address))
			continue;
		memcpy(&to->address, at->ai_addr, at->ai_addrlen);
		to->bytes = at->ai_addrlen;
		++*count;
	}
	freeaddrinfo(found);
	return *count ? 0 : -ENOTCONN;
}

int redis_resolve(struct redis_store *redis, const struct uri *uri, char *error)
{
	if (!strcmp(uri->scheme + strlen(uri->scheme) - 4, "unix"))
		return resolve_unix(redis, uri, error);
	if (!uri->host || !uri->host[0])
		return uri_error(error, -EINVAL,
				 "store redis: no host; expected redis://host:port/db");
	redis->addresses_count = REDIS_ADDRESSES_MAX;
	return redis_resolve_host(uri->scheme, uri->host, uri->port, redis->addresses,
				  &redis->addresses_count, redis->name, error);
}

/* ---- a blocking connection ------------------------------------------------------------------ */

static int probe_connect(struct redis_store *redis, struct probe *probe)
{
	struct timeval timeout = {
	    .tv_sec = (time_t)(redis->connect_timeout_ns / NS_PER_S),
	    .tv_usec = (suseconds_t)(redis->connect_timeout_ns % NS_PER_S / NS_PER_US),
	};
	int err = -ENOTCONN;
	uint32_t i;

	memset(probe, 0, sizeof(*probe));
	resp_init(&probe->reader, MIB);
	for (i = 0; i < redis->addresses_count; i++) {
		const struct redis_address *to = &redis->addresses[i];

		probe->fd = socket(to->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (probe->fd < 0)
			return -errno;
		(void)setsockopt(probe->fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
		(void)setsockopt(probe->fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
		if (!connect(probe->fd, (const struct sockaddr *)&to->address, to->bytes)) {
			redis->address_first = i;
			return 0;
		}
		err = errno == EINPROGRESS || errno == EAGAIN ? -ETIMEDOUT : -errno;
		(void)close(probe->fd);
	}
	return err;
}

static int probe_send(struct probe *probe, const char *data, size_t bytes)
{
	while (bytes) {
		ssize_t n = send(probe->fd, data, bytes, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? -ETIMEDOUT : -ENOTCONN;
		data += n;
		bytes -= (size_t)n;
	}
	return 0;
}

/* The next item that is no push or attribute. */
static int probe_read(struct probe *probe, struct resp_item *item)
{
	for (;;) {
		size_t used;
		ssize_t n;
		int got;

		while (probe->at < probe->bytes) {
			got = resp_read(&probe->reader, probe->data + probe->at,
					probe->bytes - probe->at, &used, item);
			probe->at += used;
			if (got < 0)
				return got;
			if (got && !item->aside)
				return 0;
		}
		n = recv(probe->fd, probe->data, sizeof(probe->data), 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 && errno == EAGAIN ? -ETIMEDOUT : -ENOTCONN;
		probe->at = 0;
		probe->bytes = (size_t)n;
	}
}

/* Send the log-in and read its replies. text: the server's words if it refused. */
static int probe_hello(const struct redis_store *redis, struct probe *probe, char *text,
		       size_t text_bytes)
{
	uint32_t replies = redis->hello_replies;
	struct resp_item item;
	int err = probe_send(probe, redis->hello, redis->hello_bytes);

	while (!err && replies) {
		err = probe_read(probe, &item);
		if (err)
			break;
		if (item.type == RESP_ERROR) {
			(void)snprintf(text, text_bytes, "%s", item.text);
			return redis_error(item.text);
		}
		replies -= item.ends_reply;
	}
	return err;
}

int redis_probe(struct redis_store *redis, char *error)
{
	char text[128] = "";
	struct probe probe;
	int err = probe_connect(redis, &probe);

	if (err)
		return uri_error(error, err == -ETIMEDOUT ? err : -ENOTCONN,
				 "store redis: %s: %s; expected a server that accepts connections",
				 redis->name, strerror(-err));
	err = probe_hello(redis, &probe, text, sizeof(text));
	(void)close(probe.fd);
	if (!err)
		return 0;
	return uri_error(error, err,
			 "store redis: %s: log-in failed: %s; expected Redis 7 or Valkey, and an "
			 "account that may use GET SET STRLEN UNLINK",
			 redis->name, text[0] ? text : strerror(-err));
}

/* ---- listing -------------------------------------------------------------------------------- */

struct listing {
	struct redis_store *redis;
	struct probe probe, sizes; /* sizes: a second connection, so that replies do not mix */
	char cursor[32];
	char word[REDIS_PREFIX_MAX + 80]; /* the bulk string that is being read */
	size_t word_bytes;
};

static int parse_key(const struct redis_store *redis, const char *word, size_t bytes,
		     struct ssv_key *key)
{
	static const char hex[] = "0123456789abcdef";
	size_t prefix_bytes = strlen(redis->prefix);
	size_t i;

	if (bytes != prefix_bytes + 2 * sizeof(key->bytes) ||
	    memcmp(word, redis->prefix, prefix_bytes))
		return -EINVAL;
	for (i = 0; i < sizeof(key->bytes); i++) {
		const char *high = memchr(hex, word[prefix_bytes + 2 * i], 16);
		const char *low = memchr(hex, word[prefix_bytes + 2 * i + 1], 16);

		if (!high || !low)
			return -EINVAL;
		key->bytes[i] = (uint8_t)((high - hex) * 16 + (low - hex));
	}
	return 0;
}

static int ask_bytes(struct listing *listing, uint64_t *ret_bytes)
{
	char command[LANE_COMMAND_MAX];
	struct resp_writer writer = {.text = command, .bytes_max = sizeof(command)};
	struct resp_item item;
	int err;

	resp_write_array(&writer, 2);
	resp_write_text(&writer, "STRLEN");
	resp_write_bulk(&writer, listing->word, listing->word_bytes);
	err = probe_send(&listing->sizes, command, writer.bytes);
	if (!err)
		err = probe_read(&listing->sizes, &item);
	if (err)
		return err;
	*ret_bytes = item.type == RESP_INTEGER && item.number > 0 ? (uint64_t)item.number : 0;
	return item.ends_reply ? 0 : -EPROTO;
}

static int send_scan(struct listing *listing)
{
	char command[2 * LANE_COMMAND_MAX], match[2 * REDIS_PREFIX_MAX + 2];
	struct resp_writer writer = {.text = command, .bytes_max = sizeof(command)};
	const char *from;
	char *to = match;

	for (from = listing->redis->prefix; *from; from++) {
		if (strchr("*?[]\\^", *from))
			*to++ = '\\';
		*to++ = *from;
	}
	*to++ = '*';
	resp_write_array(&writer, 6);
	resp_write_text(&writer, "SCAN");
	resp_write_text(&writer, listing->cursor);
	resp_write_text(&writer, "MATCH");
	resp_write_bulk(&writer, match, (size_t)(to - match));
	resp_write_text(&writer, "COUNT");
	resp_write_text(&writer, SCAN_COUNT);
	return writer.overflow ? -EINVAL : probe_send(&listing->probe, command, writer.bytes);
}

/* One bulk string of a SCAN reply: the cursor at depth 1, keys at depth 2. */
static int take_word(struct listing *listing, const struct resp_item *item, int *ret_stop,
		     int (*visit)(void *context, const struct ssv_key *key, uint64_t bytes),
		     void *context)
{
	struct ssv_key key;
	uint64_t bytes;
	int err;

	if (item->depth == 1) {
		if (listing->word_bytes >= sizeof(listing->cursor))
			return -EPROTO;
		memcpy(listing->cursor, listing->word, listing->word_bytes);
		listing->cursor[listing->word_bytes] = '\0';
		return 0;
	}
	if (*ret_stop || parse_key(listing->redis, listing->word, listing->word_bytes, &key))
		return 0;
	err = ask_bytes(listing, &bytes);
	if (!err && bytes)
		*ret_stop = visit(context, &key, bytes);
	return err;
}

static int scan_once(struct listing *listing, int *ret_stop,
		     int (*visit)(void *context, const struct ssv_key *key, uint64_t bytes),
		     void *context)
{
	struct resp_item item = {0};
	int err = send_scan(listing);

	while (!err && !item.ends_reply) {
		err = probe_read(&listing->probe, &item);
		if (err)
			break;
		if (item.type == RESP_ERROR)
			return redis_error(item.text);
		if (item.type == RESP_BULK)
			listing->word_bytes = 0;
		if (item.type == RESP_PAYLOAD) {
			if (item.text_bytes > sizeof(listing->word) - listing->word_bytes)
				item.text_bytes = 0; /* too long for one of ours */
			memcpy(listing->word + listing->word_bytes, item.text, item.text_bytes);
			listing->word_bytes += item.text_bytes;
		}
		if (item.type == RESP_PAYLOAD_END)
			err = take_word(listing, &item, ret_stop, visit, context);
	}
	return err;
}

int redis_list(struct store *store,
	       int (*visit)(void *context, const struct ssv_key *key, uint64_t bytes),
	       void *context)
{
	struct listing *listing = calloc(1, sizeof(*listing));
	char text[128];
	int stop = 0;
	int err;

	if (!listing)
		return -ENOMEM;
	listing->redis = (struct redis_store *)(void *)store;
	listing->cursor[0] = '0';
	err = probe_connect(listing->redis, &listing->probe);
	if (err)
		goto free_listing;
	err = probe_connect(listing->redis, &listing->sizes);
	if (err)
		goto close_probe;
	err = probe_hello(listing->redis, &listing->probe, text, sizeof(text));
	if (!err)
		err = probe_hello(listing->redis, &listing->sizes, text, sizeof(text));
	while (!err && !stop) {
		err = scan_once(listing, &stop, visit, context);
		if (!strcmp(listing->cursor, "0"))
			break;
	}
	(void)close(listing->sizes.fd);
close_probe:
	(void)close(listing->probe.fd);
free_listing:
	free(listing);
	return err;
}
