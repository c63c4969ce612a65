/* SPDX-License-Identifier: Apache-2.0 */
/*
 * redis.c - Redis and Valkey as a store: which lane gets which operation, and when one is over.
 *
 * N reading lanes take GETs, a few behind one another; one lane takes PUTs and one EXISTS and
 * DELETE, so that neither write-back nor a look-up waits behind large values or delays them. While
 * a role's lanes are down, another's take its work.
 *
 * An operation whose lane was lost is tried once more (all four kinds may be repeated). While no
 * connection can be made at all, operations end at once with -ENOTCONN: a cache that is gone must
 * not cost its callers a deadline each.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "store/backends.h"
#include "store/redis.h"

#define FIXED_LANES 2u /* the writing and the quick one */
#define WRITES_MAX  2u /* PUTs a lane */
#define QUICKS_MAX  (LANE_REQUESTS_MAX - 2u)
#define GRACE_NS    (50 * NS_PER_MS)

enum redis_option {
	OPTION_LANES,
	OPTION_PIPELINE,
	OPTION_TTL,
	OPTION_TIMEOUT,
	OPTION_CONNECT_TIMEOUT,
	OPTION_BACKOFF_MAX,
	OPTION_PREFIX,
	OPTION_DB,
	OPTION_PROTOCOL,
	OPTION_PASSWORD_FILE,
	OPTION_CONNECT,
	OPTIONS_COUNT,
};

static const struct uri_option options[OPTIONS_COUNT] = {
    [OPTION_LANES] = {.name = "lanes",
		      .kind = URI_NUMBER,
		      .fallback = 4,
		      .min = 1,
		      .max = REDIS_LANES_MAX,
		      .help = "connections that read values; two more write and look up"},
    [OPTION_PIPELINE] = {.name = "pipeline",
			 .kind = URI_NUMBER,
			 .fallback = 2,
			 .min = 1,
			 .max = 16,
			 .help = "GETs in flight a lane"},
    [OPTION_TTL] = {.name = "ttl",
		    .kind = URI_NUMBER,
		    .fallback = 0,
		    .min = 1,
		    .max = 315360000,
		    .zero_means = "for ever",
		    .help = "seconds until a value expires, from its PUT"},
    [OPTION_TIMEOUT] = {.name = "timeout-ms",
			.kind = URI_NUMBER,
			.fallback = 1000,
			.min = 10,
			.max = 60000,
			.help = "a lane on which nothing moves for so long is dropped"},
    [OPTION_CONNECT_TIMEOUT] = {.name = "connect-timeout-ms",
				.kind = URI_NUMBER,
				.fallback = 500,
				.min = 10,
				.max = 60000,
				.help = "for connecting and logging in, together"},
    [OPTION_BACKOFF_MAX] = {.name = "backoff-max-ms",
			    .kind = URI_NUMBER,
			    .fallback = 2000,
			    .min = 10,
			    .max = 60000,
			    .help = "longest pause between attempts to connect"},
    [OPTION_PREFIX] = {.name = "prefix",
		       .kind = URI_TEXT,
		       .help = "stands before the key's 64 hex digits; \"ssv:\" if not given"},
    [OPTION_DB] = {.name = "db",
		   .kind = URI_NUMBER,
		   .fallback = 0,
		   .min = 0,
		   .max = 65535,
		   .help = "database; the same as /N behind the host"},
    [OPTION_PROTOCOL] = {.name = "protocol",
			 .kind = URI_WORD,
			 .fallback = 1,
			 .words = "2|3",
			 .help = "RESP version"},
    [OPTION_PASSWORD_FILE] = {.name = "password-file",
			      .kind = URI_TEXT,
			      .help = "file whose first line is the password, which keeps it "
				      "out of process lists"},
    [OPTION_CONNECT] = {.name = "connect",
			.kind = URI_WORD,
			.words = "now|later",
			.help = "now: opening fails if the server is not there; later: it is "
				"waited for in the background"},
};

static struct redis_store *redis_of(const struct store *store)
{
	return (struct redis_store *)(uintptr_t)store;
}

/* ---- open and close ------------------------------------------------------------------------- */

static int read_password(const char *path, char *password, size_t password_bytes, char *error)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, password, password_bytes - 1);

	if (fd >= 0)
		(void)close(fd);
	if (n < 0)
		return uri_error(error, -EACCES,
				 "store redis: option password-file=%.64s: %s; expected a file "
				 "that can be read",
				 path, strerror(errno));
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
				 "store redis: database \"%.32s\": expected /0 to /65535",
				 uri->path);
	return 0;
}

static int redis_check(const struct uri *uri, char *error)
{
	uint64_t db;

	return read_database(uri, &db, error);
}

static int set_login(struct redis_store *redis, const struct uri *uri,
		     const struct uri_value *values, char *error)
{
	const char *path = values[OPTION_PASSWORD_FILE].text;
	/* Before '@' a lone word is the password, or the user if the password is in a file. */
	const char *user = path && !uri->user ? uri->password : uri->user;
	uint64_t db = values[OPTION_DB].number;
	char password[512];
	int err;

	err = read_database(uri, &db, error);
	if (err)
		return err;
	if (path) {
		err = read_password(path, password, sizeof(password), error);
		if (err)
			return err;
	}
	err = write_hello(redis, user, path ? password : uri->password,
			  values[OPTION_PROTOCOL].number == 1, db);
	explicit_bzero(password, sizeof(password));
	if (err)
		return uri_error(error, err,
				 "store redis: user and password: expected at most "
				 "900 bytes together");
	return 0;
}

static int set_options(struct redis_store *redis, const struct uri_value *values, char *error)
{
	const char *prefix = values[OPTION_PREFIX].text ? values[OPTION_PREFIX].text : "ssv:";
	uint64_t ttl = values[OPTION_TTL].number;
	char seconds[24];

	if (strlen(prefix) > REDIS_PREFIX_MAX)
		return uri_error(error, -EINVAL,
				 "store redis: option prefix=%.70s: expected at most %u bytes",
				 prefix, REDIS_PREFIX_MAX);
	(void)snprintf(redis->prefix, sizeof(redis->prefix), "%s", prefix);
	(void)snprintf(seconds, sizeof(seconds), "%llu", (unsigned long long)ttl);
	redis->trailer_bytes =
	    (uint32_t)snprintf(redis->trailer, sizeof(redis->trailer),
			       "\r\n$2\r\nEX\r\n$%zu\r\n%s\r\n", strlen(seconds), seconds);
	if (!ttl)
		redis->trailer_bytes = 2; /* the value's line end alone */
	redis->pipeline = (uint32_t)values[OPTION_PIPELINE].number;
	redis->timeout_ns = values[OPTION_TIMEOUT].number * NS_PER_MS;
	redis->connect_timeout_ns = values[OPTION_CONNECT_TIMEOUT].number * NS_PER_MS;
	redis->backoff_max_ns = values[OPTION_BACKOFF_MAX].number * NS_PER_MS;
	return 0;
}

static void redis_close(struct store *store)
{
	struct redis_store *redis = redis_of(store);
	uint32_t i;

	for (i = 0; i < redis->lanes_count; i++)
		lane_fini(&redis->lanes[i]);
	explicit_bzero(redis->hello, sizeof(redis->hello));
	free(redis);
}

static int redis_open(const struct store_config *config, struct store **ret_store, char *error)
{
	struct uri_value values[OPTIONS_COUNT];
	struct redis_store *redis;
	uint32_t lanes_count, i;
	struct uri uri;
	int err;

	err = uri_parse(config->uri, &uri, error);
	if (!err)
		err = uri_read_options(&uri, options, OPTIONS_COUNT, values, error);
	if (err)
		return err;
	lanes_count = (uint32_t)values[OPTION_LANES].number + FIXED_LANES;
	redis = calloc(1, sizeof(*redis) + lanes_count * sizeof(redis->lanes[0]));
	if (!redis)
		return uri_error(error, -ENOMEM, "store redis: out of memory");
	redis->store.ops = strchr(uri.scheme, '+') ? &store_redis_unix : &store_redis;
	redis->value_bytes_max = config->value_bytes_max;
	redis->ops_max = config->ops_max;
	redis->lanes_count = lanes_count;
	redis->random = config->seed;
	for (i = 0; i < lanes_count; i++)
		lane_init(&redis->lanes[i], i == 0 ? LANE_WRITE : i == 1 ? LANE_QUICK : LANE_READ);
	err = set_options(redis, values, error);
	if (!err)
		err = set_login(redis, &uri, values, error);
	if (!err)
		err = redis_resolve(redis, &uri, error);
	if (!err && values[OPTION_CONNECT].number == 0)
		err = redis_probe(redis, error);
	explicit_bzero(&uri, sizeof(uri));
	if (err) {
		redis_close(&redis->store);
		return err;
	}
	for (i = 0; i < lanes_count; i++)
		redis->lanes[i].address = (uint8_t)redis->address_first;
	*ret_store = &redis->store;
	return 0;
}

/* ---- operations ----------------------------------------------------------------------------- */

void redis_finish(struct redis_store *redis, struct store_op *op, int status)
{
	op->status = status;
	op_count(&redis->stats, op);
	op_queue_push(&redis->done, op);
}

bool redis_may_log(struct redis_store *redis, uint64_t now_ns)
{
	if (redis->logged_ns && now_ns < redis->logged_ns + NS_PER_S)
		return false;
	redis->logged_ns = now_ns;
	return true;
}

static uint32_t redis_submit(struct store *store, struct store_op *const *ops, uint32_t n,
			     uint64_t now_ns)
{
	struct redis_store *redis = redis_of(store);
	uint32_t i;

	(void)now_ns;
	for (i = 0; i < n && redis->held < redis->ops_max; i++) {
		struct store_op *op = ops[i];
		int err = op_check(op, redis->value_bytes_max);

		op_begin(op);
		redis->held++;
		redis->next_ns = 0;
		if (err)
			redis_finish(redis, op, err);
		else if (op->kind == STORE_OP_GET)
			op_queue_push(&redis->waiting[LANE_READ], op);
		else if (op->kind == STORE_OP_PUT)
			op_queue_push(&redis->waiting[LANE_WRITE], op);
		else
			op_queue_push(&redis->waiting[LANE_QUICK], op);
	}
	return i;
}

/* End what is over; returns the earliest deadline of the rest. */
static uint64_t expire_queue(struct redis_store *redis, struct op_queue *queue, uint64_t now_ns)
{
	struct store_op *previous = NULL;
	struct store_op *op = queue->first;
	uint64_t earliest = TIME_NEVER;

	while (op) {
		struct store_op *next = op->next;

		if (op->deadline_ns <= now_ns) {
			redis_finish(redis, op_queue_remove(queue, previous), -ETIMEDOUT);
		} else {
			earliest = u64_min(earliest, op->deadline_ns);
			previous = op;
		}
		op = next;
	}
	return earliest;
}

static uint64_t expire_lane(struct redis_store *redis, struct lane *lane, uint64_t now_ns)
{
	uint64_t earliest = TIME_NEVER;
	uint32_t i;

	for (i = 0; i < lane->count; i++) { /* withdrawing may drop the lane: count is 0 then */
		struct store_op *op = lane_request_at(lane, i)->op;

		if (!op)
			continue;
		if (op->deadline_ns > now_ns) {
			earliest = u64_min(earliest, op->deadline_ns);
			continue;
		}
		lane_withdraw(redis, lane, i, now_ns);
		redis_finish(redis, op, -ETIMEDOUT);
	}
	return earliest;
}

static uint64_t expire(struct redis_store *redis, uint64_t now_ns)
{
	uint64_t earliest = TIME_NEVER;
	uint32_t i;

	for (i = 0; i < redis->lanes_count; i++)
		earliest = u64_min(earliest, expire_lane(redis, &redis->lanes[i], now_ns));
	for (i = 0; i < LANE_ROLES; i++) {
		earliest = u64_min(earliest, expire_queue(redis, &redis->again[i], now_ns));
		earliest = u64_min(earliest, expire_queue(redis, &redis->waiting[i], now_ns));
	}
	return earliest;
}

/* A server that goes takes all lanes with it, but they tell one after another. A second attempt
 * must not be spent on one that is dead already: it waits for a sign of life, or GRACE_NS. */
static bool is_alive(const struct redis_store *redis, const struct lane *lane, uint64_t now_ns)
{
	return lane->up_ns > redis->lost_ns || lane->heard_ns > redis->lost_ns ||
	       now_ns >= redis->lost_ns + GRACE_NS;
}

/* The least loaded lane of the role that is up; another role's if none of it is. */
static struct lane *pick_lane(struct redis_store *redis, uint32_t role, bool again, uint64_t now_ns)
{
	const uint32_t limits[LANE_ROLES] = {redis->pipeline, WRITES_MAX, QUICKS_MAX};
	struct lane *own = NULL, *other = NULL;
	bool role_up = false;
	uint32_t i;

	for (i = 0; i < redis->lanes_count; i++) {
		struct lane *lane = &redis->lanes[i];
		struct lane **best = lane->role == role ? &own : &other;

		if (lane->state != LANE_UP || (again && !is_alive(redis, lane, now_ns)))
			continue;
		role_up |= lane->role == role;
		if (lane->count < limits[role] && (!*best || lane->count < (*best)->count))
			*best = lane;
	}
	return role_up ? own : other;
}

static void assign_queue(struct redis_store *redis, uint32_t role, bool again, uint64_t now_ns)
{
	struct op_queue *queue = again ? &redis->again[role] : &redis->waiting[role];

	while (queue->first) {
		struct lane *lane = pick_lane(redis, role, again, now_ns);

		if (!lane)
			return;
		lane_add(redis, lane, op_queue_pop(queue), again, now_ns);
	}
}

static void assign(struct redis_store *redis, uint64_t now_ns)
{
	uint32_t role;

	for (role = 0; role < LANE_ROLES; role++) {
		assign_queue(redis, role, true, now_ns);
		assign_queue(redis, role, false, now_ns);
	}
}

/* Nobody answers: end what waits for a lane. */
static void give_up(struct redis_store *redis)
{
	struct store_op *op;
	uint32_t i;

	for (i = 0; i < redis->lanes_count; i++) {
		if (redis->lanes[i].state != LANE_CLOSED || !redis->lanes[i].refused)
			return;
	}
	for (i = 0; i < LANE_ROLES; i++) {
		while ((op = op_queue_pop(&redis->again[i])))
			redis_finish(redis, op, -ENOTCONN);
		while ((op = op_queue_pop(&redis->waiting[i])))
			redis_finish(redis, op, -ENOTCONN);
	}
}

/* ---- poll ----------------------------------------------------------------------------------- */

static uint32_t fill_pollfds(const struct redis_store *redis, struct pollfd *fds,
			     uint32_t *lane_indices, uint32_t max)
{
	uint32_t i, n = 0;

	for (i = 0; i < redis->lanes_count && n < max; i++) {
		const struct lane *lane = &redis->lanes[i];

		if (lane->state == LANE_CLOSED)
			continue;
		fds[n] = (struct pollfd){.fd = lane->fd, .events = lane_events(lane)};
		if (lane_indices)
			lane_indices[n] = i;
		n++;
	}
	return n;
}

static void step_io(struct redis_store *redis, uint64_t now_ns)
{
	struct pollfd fds[REDIS_LANES_MAX + FIXED_LANES];
	uint32_t indices[REDIS_LANES_MAX + FIXED_LANES];
	uint32_t n = fill_pollfds(redis, fds, indices, ARRAY_COUNT(fds));
	uint32_t i;

	redis->more = false;
	if (!n || poll(fds, n, 0) <= 0)
		return;
	for (i = 0; i < n; i++)
		lane_step_io(redis, &redis->lanes[indices[i]], fds[i].revents, now_ns);
}

static uint32_t redis_poll(struct store *store, struct store_op **done, uint32_t max,
			   uint64_t now_ns)
{
	struct redis_store *redis = redis_of(store);
	uint64_t next_ns;
	uint32_t i, n;

	/* Bytes first: when the caller was away for long, the answer may be here already. */
	step_io(redis, now_ns);
	for (i = 0; i < redis->lanes_count; i++)
		lane_step_timers(redis, &redis->lanes[i], now_ns);
	next_ns = expire(redis, now_ns);
	assign(redis, now_ns);
	for (i = 0; i < redis->lanes_count; i++) {
		if (redis->lanes[i].state == LANE_UP)
			lane_send(redis, &redis->lanes[i], now_ns);
	}
	give_up(redis);
	n = op_queue_take(&redis->done, done, max);
	redis->held -= n;

	for (i = 0; i < redis->lanes_count; i++)
		next_ns = u64_min(next_ns, lane_next_ns(redis, &redis->lanes[i]));
	for (i = 0; i < LANE_ROLES; i++) {
		if (redis->again[i].first && now_ns < redis->lost_ns + GRACE_NS)
			next_ns = u64_min(next_ns, redis->lost_ns + GRACE_NS);
	}
	redis->next_ns = redis->done.first || redis->more ? 0 : next_ns;
	return n;
}

static uint64_t redis_next_ns(const struct store *store)
{
	return redis_of(store)->next_ns;
}

static uint32_t redis_pollfds(const struct store *store, void *pollfds, uint32_t max)
{
	return fill_pollfds(redis_of(store), pollfds, NULL, max);
}

static void redis_stats(const struct store *store, struct store_stats *ret_stats)
{
	const struct redis_store *redis = redis_of(store);
	uint32_t i;

	*ret_stats = redis->stats;
	for (i = 0; i < redis->lanes_count; i++)
		ret_stats->connected += redis->lanes[i].state == LANE_UP;
}

#define REDIS_OPS                                                                             \
	.caps = STORE_CAP_SHARED | STORE_CAP_REMOTE | STORE_CAP_LIST | STORE_CAP_PERSISTENT,  \
	.options = options, .options_count = OPTIONS_COUNT, .check = redis_check,             \
	.open = redis_open, .close = redis_close, .submit = redis_submit, .poll = redis_poll, \
	.next_ns = redis_next_ns, .pollfds = redis_pollfds, .stats = redis_stats,             \
	.list = redis_list

const struct store_ops store_redis = {.scheme = "redis", REDIS_OPS};
const struct store_ops store_redis_unix = {.scheme = "redis+unix", REDIS_OPS};
