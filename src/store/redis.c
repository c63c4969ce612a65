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
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/tally.h"
#include "store/backends.h"
#include "store/redis.h"

#define WRITES_MAX 2u /* PUTs a lane */
#define QUICKS_MAX (LANE_REQUESTS_MAX - RANGE_REQUESTS)
#define HOT_ROUNDS 8u /* polls that take from one lane without looking at the others */

static struct redis_store *redis_of(const struct store *store)
{
	return (struct redis_store *)(uintptr_t)store;
}

/* ---- open and close ------------------------------------------------------------------------- */

void redis_init_lanes(struct redis_store *redis)
{
	uint32_t i;

	for (i = 0; i < redis->lanes_count; i++)
		lane_init(&redis->lanes[i], i == 0 ? LANE_WRITE : i == 1 ? LANE_QUICK : LANE_READ);
}

void redis_fini_lanes(struct redis_store *redis)
{
	uint32_t i;

	for (i = 0; i < redis->lanes_count; i++)
		lane_fini(&redis->lanes[i]);
}

static void redis_close(struct store *store)
{
	struct redis_store *redis = redis_of(store);

	redis_fini_lanes(redis);
	explicit_bzero(redis->hello, sizeof(redis->hello));
	free(redis);
}

static int redis_open(const struct store_config *config, struct store **ret_store, char *error)
{
	struct uri_value values[REDIS_OPTIONS_ONE];
	struct redis_store *redis;
	uint32_t lanes_count, i;
	struct uri uri;
	int err;

	err = uri_parse(config->uri, &uri, error);
	if (!err)
		err = uri_read_options(&uri, redis_options, REDIS_OPTIONS_ONE, values, error);
	if (err)
		return err;
	lanes_count = (uint32_t)values[REDIS_OPTION_LANES].number + REDIS_LANES_FIXED;
	redis = calloc(1, sizeof(*redis) + lanes_count * sizeof(redis->lanes[0]));
	if (!redis)
		return uri_error(error, -ENOMEM, "store redis: out of memory");
	redis->store.ops = strchr(uri.scheme, '+') ? &store_redis_unix : &store_redis;
	redis->value_bytes_max = config->value_bytes_max;
	redis->ops_max = config->ops_max;
	redis->lanes_count = lanes_count;
	redis->random = config->seed;
	redis_init_lanes(redis);
	err = redis_configure(redis, &uri, values, error);
	if (!err)
		err = redis_resolve(redis, &uri, error);
	if (!err && values[REDIS_OPTION_CONNECT].number == 0)
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

void redis_enqueue(struct redis_store *redis, struct store_op *op)
{
	op_queue_push(&redis->waiting[redis_role(op)], op);
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
		else
			redis_enqueue(redis, op);
	}
	return i;
}

/* End what is over; returns the earliest deadline of the rest. */
static uint64_t expire_queue(struct redis_store *redis, struct op_queue *queue, uint64_t now_ns)
{
	struct op_queue expired = {0};
	uint64_t earliest = op_queue_expire(queue, &expired, now_ns);
	struct store_op *op;

	while ((op = op_queue_pop(&expired)))
		redis_finish(redis, op, -ETIMEDOUT);
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
		lane_withdraw(redis, lane, op, now_ns);
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
 * must not be spent on one that is dead already: it waits for a sign of life, or REDIS_GRACE_NS. */
static bool is_alive(const struct redis_store *redis, const struct lane *lane, uint64_t now_ns)
{
	return lane->up_ns > redis->lost_ns || lane->heard_ns > redis->lost_ns ||
	       now_ns >= redis->lost_ns + REDIS_GRACE_NS;
}

/* A GET is begun when all pieces of the one before it have been asked for. */
static bool has_room(const struct lane *lane, uint32_t role)
{
	return lane->count + RANGE_REQUESTS <= LANE_REQUESTS_MAX &&
	       (role != LANE_READ || !lane->asking.op);
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
		if (lane->ops >= limits[role] || !has_room(lane, role))
			continue;
		if (!*best || lane->ops < (*best)->ops)
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

bool redis_is_idle(const struct redis_store *redis)
{
	uint32_t i, j;

	for (i = 0; i < LANE_ROLES; i++) {
		if (redis->again[i].first || redis->waiting[i].first)
			return false;
	}
	for (i = 0; i < redis->lanes_count; i++) {
		const struct lane *lane = &redis->lanes[i];

		for (j = 0; j < lane->count; j++) {
			if (lane->requests[(lane->first + j) % LANE_REQUESTS_MAX].op)
				return false;
		}
	}
	return !redis->done.first;
}

uint32_t redis_lanes_up(const struct redis_store *redis)
{
	uint32_t i, n = 0;

	for (i = 0; i < redis->lanes_count; i++)
		n += redis->lanes[i].state == LANE_UP;
	return n;
}

bool redis_is_gone(const struct redis_store *redis)
{
	uint32_t i;

	for (i = 0; i < redis->lanes_count; i++) {
		if (redis->lanes[i].state == LANE_UP || !redis->lanes[i].refused)
			return false;
	}
	return true;
}

struct store_op *redis_pop_waiting(struct redis_store *redis)
{
	uint32_t i;

	for (i = 0; i < LANE_ROLES; i++) {
		if (redis->again[i].first)
			return op_queue_pop(&redis->again[i]);
		if (redis->waiting[i].first)
			return op_queue_pop(&redis->waiting[i]);
	}
	return NULL;
}

/* Nobody answers: end what waits for a lane. */
static void give_up(struct redis_store *redis)
{
	struct store_op *op;

	if (!redis_is_gone(redis))
		return;
	while ((op = redis_pop_waiting(redis)))
		redis_finish(redis, op, -ENOTCONN);
}

uint64_t redis_settle(struct redis_store *redis, uint64_t now_ns)
{
	uint64_t next_ns;
	uint32_t i;

	for (i = 0; i < redis->lanes_count; i++)
		lane_step_timers(redis, &redis->lanes[i], now_ns);
	next_ns = expire(redis, now_ns);
	assign(redis, now_ns);
	for (i = 0; i < redis->lanes_count; i++) {
		if (redis->lanes[i].state == LANE_UP)
			lane_send(redis, &redis->lanes[i], now_ns);
	}
	give_up(redis);
	for (i = 0; i < redis->lanes_count; i++)
		next_ns = u64_min(next_ns, lane_next_ns(redis, &redis->lanes[i]));
	for (i = 0; i < LANE_ROLES; i++) {
		if (redis->again[i].first && now_ns < redis->lost_ns + REDIS_GRACE_NS)
			next_ns = u64_min(next_ns, redis->lost_ns + REDIS_GRACE_NS);
	}
	return next_ns;
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
	struct pollfd fds[REDIS_LANES_MAX + REDIS_LANES_FIXED];
	uint32_t indices[REDIS_LANES_MAX + REDIS_LANES_FIXED];
	uint32_t n = fill_pollfds(redis, fds, indices, ARRAY_COUNT(fds));
	uint32_t i;

	redis->more = false;
	if (!n)
		return;
	tally_add(TALLY_CALL_POLL, 1);
	if (poll(fds, n, 0) <= 0)
		return;
	/* One lane's value at a time: what comes behind it waits in the kernel, where it is as well
	 * off. Another one is the first each time, so that none is forgotten. */
	redis->turn++;
	for (i = 0; i < n && !redis->more; i++) {
		uint32_t k = (redis->turn + i) % n;

		redis->hot = indices[k];
		lane_step_io(redis, &redis->lanes[redis->hot], fds[k].revents, now_ns);
	}
}

/* A lane that had more than could be taken has it still: it need not be asked for. For some rounds;
 * then all are looked at. */
bool redis_step_hot(struct redis_store *redis, uint64_t now_ns)
{
	struct lane *lane = &redis->lanes[redis->hot];

	if (!redis->more || lane->state != LANE_UP || redis->hot_rounds == HOT_ROUNDS) {
		redis->hot_rounds = 0;
		return false;
	}
	redis->hot_rounds++;
	redis->more = false;
	lane_step_io(redis, lane, POLLIN, now_ns);
	return redis->more;
}

static uint32_t redis_poll(struct store *store, struct store_op **done, uint32_t max,
			   uint64_t now_ns)
{
	struct redis_store *redis = redis_of(store);
	uint64_t next_ns;
	uint32_t n;

	/* Bytes first: when the caller was away for long, the answer may be here already. */
	if (!redis_step_hot(redis, now_ns))
		step_io(redis, now_ns);
	next_ns = redis_settle(redis, now_ns);
	n = op_queue_take(&redis->done, done, max);
	redis->held -= n;
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
	*ret_stats = redis_of(store)->stats;
	ret_stats->connected = redis_lanes_up(redis_of(store));
}

#define REDIS_OPS                                                                             \
	.caps = STORE_CAP_SHARED | STORE_CAP_REMOTE | STORE_CAP_LIST | STORE_CAP_PERSISTENT,  \
	.options = redis_options, .options_count = REDIS_OPTIONS_ONE, .check = redis_check,   \
	.open = redis_open, .close = redis_close, .submit = redis_submit, .poll = redis_poll, \
	.next_ns = redis_next_ns, .pollfds = redis_pollfds, .stats = redis_stats,             \
	.list = redis_list

const struct store_ops store_redis = {.scheme = "redis", REDIS_OPS};
const struct store_ops store_redis_unix = {.scheme = "redis+unix", REDIS_OPS};
