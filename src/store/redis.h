/* SPDX-License-Identifier: Apache-2.0 */
/*
 * redis.h - what the files of the redis: store share. No other file includes it.
 *
 *	redis.c         one server: queues, which lane gets which operation, deadlines
 *	redis_options.c options, log-in
 *	redis_lane.c    one connection: connect, log in, send, receive, time-outs
 *	redis_receive.c receiving: values into their places, the rest to the reader of replies
 *	redis_range.c   a long value in pieces
 *	redis_reply.c   what a reply means for the operation it answers
 *	redis_probe.c   control path: is the server there, does it let us in, listing keys
 *
 * An operation stands either in one of the store's queues or in one lane's requests or in done. A
 * request whose operation is gone (cancelled, or answered already) stays as an orphan until its
 * reply has passed, because replies come in order.
 */
#ifndef SSV_STORE_REDIS_H
#define SSV_STORE_REDIS_H

#include <stdbool.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/clock.h"
#include "store/queue.h"
#include "store/resp.h"
#include "store/store.h"
#include "store/uri.h"

#define REDIS_LANES_MAX     64u /* reading lanes */
#define REDIS_LANES_FIXED   2u  /* the writing and the quick one */
#define REDIS_ADDRESSES_MAX 4u  /* of a host name, tried in turn */
#define REDIS_PREFIX_MAX    64u /* bytes before the key's 64 hex digits */
#define REDIS_HELLO_MAX     1024u
#define REDIS_NAME_MAX      96u  /* host:port or a path */
#define LANE_REQUESTS_MAX   64u  /* power of two */
#define LANE_COMMAND_MAX    256u /* a command without its value */
#define LANE_HEAD_BYTES     2048u
#define LANE_SCRATCH_BYTES  (64 * KIB)
#define REDIS_GRACE_NS      (50 * NS_PER_MS) /* after a loss: the other lanes may be lost too */
#define LANE_DRAIN_MAX      (4 * MIB) /* more of an unwanted value: a new connection is quicker */

enum lane_role {
	LANE_READ = 0,  /* GET: a few values behind one another */
	LANE_WRITE = 1, /* PUT: never in the way of a GET */
	LANE_QUICK = 2, /* EXISTS, DELETE: many small replies */
	LANE_ROLES = 3,
};

enum lane_state {
	LANE_CLOSED = 0, /* until retry_ns */
	LANE_CONNECTING = 1,
	LANE_HELLO = 2, /* connected; logging in */
	LANE_UP = 3,
};

#define REQUEST_HELLO 0 /* beside enum store_op_kind */
#define REQUEST_MAP   5 /* CLUSTER SLOTS; its reply goes to hooks->map_item() */
/* Of a GET in pieces (redis_range.c). */
#define REQUEST_WATCH     6
#define REQUEST_LENGTH    7
#define REQUEST_PIECE     8
#define REQUEST_UNCHANGED 9

#define RANGES_AHEAD   4u                  /* pieces asked for and not yet there, a lane */
#define RANGE_REQUESTS (RANGES_AHEAD + 4u) /* a GET in pieces has so many at once, at most */

#define OP_ASKING 0x80000000u /* store_op.mark: ASKING stands before the command */

/* One command on its way. Sent is command, then data, then trailer. */
struct lane_request {
	struct store_op *op; /* NULL: orphan, its reply is discarded */
	uint8_t kind;        /* enum store_op_kind or REQUEST_... */
	bool again;          /* the second attempt: a lost lane is the end */
	bool withdrawn;      /* never sent: no reply comes */
	uint32_t replies;    /* still to come */
	uint32_t command_bytes, trailer_bytes;
	const char *command, *trailer;
	const uint8_t *data;
	uint64_t data_bytes;
	uint64_t sent;
	uint64_t same;      /* GET again: bytes received before, which must come the same */
	uint64_t at, bytes; /* PIECE: of the value */
	char text[LANE_COMMAND_MAX];
};

/* The GET whose pieces are still being asked for. It has a request on the lane at any time. */
struct lane_asking {
	struct store_op *op; /* NULL: none */
	uint64_t next;       /* where the next piece begins */
	uint64_t same;
	bool again, known; /* known: the value's length */
};

struct lane {
	int fd;
	uint8_t role, state;
	uint8_t address; /* index */
	uint8_t tried;   /* addresses in a row that did not answer */
	bool was_up,
	    refused; /* refused: the last round of attempts found no address that answers */
	uint64_t retry_ns, backoff_ns;
	uint64_t up_ns;       /* since when it is up */
	uint64_t progress_ns; /* last byte moved, or begin of the step */
	uint64_t heard_ns;    /* last found empty and open: nothing sent before is left */

	struct lane_request requests[LANE_REQUESTS_MAX]; /* ring */
	uint32_t first, count;
	uint32_t sent_count; /* of count: completely sent */
	uint32_t ops;        /* operations that stand in requests */
	uint64_t asked;      /* bytes of pieces that stand in requests */
	struct lane_asking asking;

	struct resp_reader reader;
	uint32_t watched;  /* events that the owner's epoll knows of this connection; 0: none */
	int wake_bytes;    /* as many make the connection readable */
	bool in_map;       /* the bulk string being read belongs to the front request's map */
	bool in_value;     /* the bulk string being read is the front GET's value */
	uint64_t value_at; /* position in it */
	uint32_t head_at, head_bytes;
	char head[LANE_HEAD_BYTES]; /* replies, and the few bytes of a value behind its length */
};

struct redis_address {
	struct sockaddr_storage address;
	socklen_t bytes;
};

struct redis_store;

/* What the owner of several servers wants to hear of each. */
struct redis_hooks {
	/* The server refused an operation in these words. True: the owner has it now. */
	bool (*refused)(struct redis_store *redis, struct store_op *op, const char *text);
	/* The next item of the reply to lane_add_map(); NULL: none comes, the lane was lost. */
	void (*map_item)(struct redis_store *redis, const struct resp_item *item);
};

struct redis_store {
	struct store store;
	const struct redis_hooks *hooks; /* NULL: one server alone */
	void *owner;
	uint64_t value_bytes_max;
	uint32_t ops_max, held;
	uint32_t lanes_count, pipeline;
	uint64_t range_bytes; /* of a piece; 0: values are asked for whole */
	uint64_t timeout_ns, connect_timeout_ns, backoff_max_ns;
	uint64_t random; /* state of the jitter */

	struct redis_address addresses[REDIS_ADDRESSES_MAX];
	uint32_t addresses_count, address_first; /* first: where lanes begin */
	char name[REDIS_NAME_MAX];               /* host:port or path, for log lines */

	char prefix[REDIS_PREFIX_MAX + 1];
	char hello[REDIS_HELLO_MAX]; /* has the password: wiped at close */
	uint32_t hello_bytes, hello_replies;
	char trailer[48]; /* behind a PUT's value: line end, EX seconds */
	uint32_t trailer_bytes;

	struct op_queue waiting[LANE_ROLES];
	struct op_queue again[LANE_ROLES]; /* lost a lane once */
	struct op_queue done;
	uint64_t lost_ns; /* when a lane that was up was lost last */
	bool more;        /* the last poll stopped at its budget */
	uint32_t hot;     /* the lane where it did */
	uint32_t hot_rounds, turn;
	uint64_t next_ns;
	uint64_t logged_ns; /* at most one line a second */
	struct store_stats stats;
	uint8_t scratch[LANE_SCRATCH_BYTES];
	struct lane lanes[];
};

/* ---- redis_options.c ------------------------------------------------------------------------ */

/* Rows of redis_options[]: one server has those before REDIS_OPTIONS_ONE. */
enum redis_option {
	REDIS_OPTION_DB,
	REDIS_OPTION_LANES,
	REDIS_OPTION_PIPELINE,
	REDIS_OPTION_RANGE,
	REDIS_OPTION_TTL,
	REDIS_OPTION_TIMEOUT,
	REDIS_OPTION_CONNECT_TIMEOUT,
	REDIS_OPTION_BACKOFF_MAX,
	REDIS_OPTION_PREFIX,
	REDIS_OPTION_PROTOCOL,
	REDIS_OPTION_PASSWORD_FILE,
	REDIS_OPTION_CONNECT,
	REDIS_OPTIONS_ONE, /* those of a cluster are all but db */
	REDIS_OPTION_NODES = REDIS_OPTIONS_ONE,
	REDIS_OPTION_REFRESH,
	REDIS_OPTIONS_ALL,
};

extern const struct uri_option redis_options[REDIS_OPTIONS_ALL];

/* Looks at the URI's text alone: -EINVAL with one line in error. */
SSV_MUST_CHECK int redis_check(const struct uri *uri, char *error);
/* Set what the options and the account say. -EINVAL, -EACCES, -E2BIG with one line in error. */
SSV_MUST_CHECK int redis_configure(struct redis_store *redis, const struct uri *uri,
				   const struct uri_value *values, char *error);

/* ---- redis.c -------------------------------------------------------------------------------- */

/* Lanes of a server whose lanes_count is set: one writes, one looks up, the rest reads. */
void redis_init_lanes(struct redis_store *redis);
void redis_fini_lanes(struct redis_store *redis);
/* Take a submitted operation; it waits for a lane. */
void redis_enqueue(struct redis_store *redis, struct store_op *op);
/* Take more from the lane that had more than could be taken; true: it still has. */
bool redis_step_hot(struct redis_store *redis, uint64_t now_ns);
/* After bytes were moved: reconnect, expire, hand waiting operations to lanes, give up. Returns
 * when it has to be called again. */
uint64_t redis_settle(struct redis_store *redis, uint64_t now_ns);
/* An operation that no lane has, out of its queue; NULL: none. */
struct store_op *redis_pop_waiting(struct redis_store *redis);
/* No operation is here. */
bool redis_is_idle(const struct redis_store *redis);
/* No lane is up, and none could be made: operations end at once. */
bool redis_is_gone(const struct redis_store *redis);
uint32_t redis_lanes_up(const struct redis_store *redis);
void redis_finish(struct redis_store *redis, struct store_op *op, int status);
/* May a line be logged now? At most one a second. */
bool redis_may_log(struct redis_store *redis, uint64_t now_ns);

/* ---- redis_lane.c --------------------------------------------------------------------------- */

static inline struct lane_request *lane_request_at(struct lane *lane, uint32_t index)
{
	return &lane->requests[(lane->first + index) % LANE_REQUESTS_MAX];
}

void redis_write_key(struct resp_writer *writer, const struct redis_store *redis,
		     const struct ssv_key *key);
enum lane_role redis_role(const struct store_op *op);
void lane_init(struct lane *lane, enum lane_role role);
void lane_fini(struct lane *lane);
/* Connect when it is time; give up what takes too long. */
void lane_step_timers(struct redis_store *redis, struct lane *lane, uint64_t now_ns);
/* Move bytes after poll(2) said revents. */
void lane_step_io(struct redis_store *redis, struct lane *lane, short revents, uint64_t now_ns);
/* Receive a bounded amount; redis->more says that there may be more. */
void lane_receive(struct redis_store *redis, struct lane *lane, uint64_t now_ns);
/* Add a request for an operation. The lane is up and has room. */
void lane_add(struct redis_store *redis, struct lane *lane, struct store_op *op, bool again,
	      uint64_t now_ns);
/* Add the question for a cluster's map. */
void lane_add_map(struct lane *lane, uint64_t now_ns);
void lane_send(struct redis_store *redis, struct lane *lane, uint64_t now_ns);
/* Take an operation away from the lane; it does not touch op->data any more. */
void lane_withdraw(struct redis_store *redis, struct lane *lane, struct store_op *op,
		   uint64_t now_ns);
/* The operation's requests are orphans from now on, or not sent at all. True: half of a value is
 * out, and the lane of no more use. */
bool lane_forget(struct redis_store *redis, struct lane *lane, const struct store_op *op);
/* A new request at the end, for one reply; the caller sets its command. */
struct lane_request *lane_push(struct lane *lane);
/* Close. err: why (0: on purpose, reconnect at once). The operations wait for another lane if this
 * was their first, else they end with -ENOTCONN. */
void lane_drop(struct redis_store *redis, struct lane *lane, int err, const char *why,
	       uint64_t now_ns);
void lane_pop(struct lane *lane);
short lane_events(const struct lane *lane);
/* When lane_step_timers() has to be called at the latest. */
uint64_t lane_next_ns(const struct redis_store *redis, const struct lane *lane);

/* ---- redis_range.c -------------------------------------------------------------------------- */

bool range_serves(const struct redis_store *redis, const struct store_op *op);
void range_begin(struct redis_store *redis, struct lane *lane, struct store_op *op, bool again);
/* Ask for as many pieces as may be ahead. */
void range_ask_ahead(struct redis_store *redis, struct lane *lane);
/* The GET that is being asked for is not wanted any more. */
void range_abandon(struct redis_store *redis, struct lane *lane);
/* One item of a reply. 0, or why the lane must be dropped. */
SSV_MUST_CHECK int range_take(struct redis_store *redis, struct lane *lane,
			      const struct resp_item *item);

/* ---- redis_reply.c -------------------------------------------------------------------------- */

/* Status of an error reply: -EACCES, -ENOSPC, -ENOTCONN ... */
int redis_error(const char *text);
/* The front request is answered: hand its operation back, unless it is an orphan. */
void lane_answer(struct redis_store *redis, struct lane *lane, int status);
/* One item of a reply. 0, or why the lane must be dropped. */
SSV_MUST_CHECK int lane_take_item(struct redis_store *redis, struct lane *lane,
				  const struct resp_item *item, uint64_t now_ns);
/* bytes more of a bulk string are here; data NULL: in their place already. 0, or -EIO: the second
 * attempt's bytes differ from the first's. */
SSV_MUST_CHECK int lane_take_value(struct redis_store *redis, struct lane *lane,
				   const uint8_t *data, uint64_t bytes);
/* Where the next bytes of the value may be received directly; NULL: nowhere (discard, compare). */
uint8_t *lane_value_place(struct lane *lane);

/* ---- redis_probe.c -------------------------------------------------------------------------- */

/* Resolve a host's name, with up to *count addresses; -EINVAL, -ENOTCONN with one line in error.
 * No port is 6379. name: host:port as it is shown (96 bytes). */
SSV_MUST_CHECK int redis_resolve_host(const char *scheme, const char *host, const char *port,
				      struct redis_address *addresses, uint32_t *count, char *name,
				      char *error);
/* Resolve the URI's host; -EINVAL, -ENOTCONN with one line in error. */
SSV_MUST_CHECK int redis_resolve(struct redis_store *redis, const struct uri *uri, char *error);
/* Connect, log in, leave. -ENOTCONN, -EACCES, -ETIMEDOUT, -EPROTO with one line in error. */
SSV_MUST_CHECK int redis_probe(struct redis_store *redis, char *error);
SSV_MUST_CHECK int
redis_list(struct store *store,
	   int (*visit)(void *context, const struct ssv_key *key, uint64_t bytes), void *context);

#endif
