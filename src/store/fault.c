/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fault.c - a wrapper that makes another store fail: "fault+file:/x?seed=7&get-error=1%".
 *
 * Each operation's faults are drawn when it is submitted, always the same number of draws, so a
 * seed and an order of submission give the same faults whatever the rates of the others are. Time
 * is now_ns alone.
 *
 * The contract holds above the wrapper too: a bit is flipped before the watermark passes it, and
 * an operation is handed back only after the store below has let go of its buffer.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "store/backends.h"
#include "store/queue.h"
#include "store/uri.h"

#define PREFIX   "fault+"
#define RATE_ONE 1000000u
#define NOWHERE  UINT64_MAX

enum fault_option {
	OPTION_SEED,
	OPTION_NTH,
	OPTION_ERROR,
	OPTION_GET_ERROR, /* the four kinds in the order of enum store_op_kind */
	OPTION_PUT_ERROR,
	OPTION_EXISTS_ERROR,
	OPTION_DELETE_ERROR,
	OPTION_GET_STALL,
	OPTION_PUT_STALL,
	OPTION_EXISTS_STALL,
	OPTION_DELETE_STALL,
	OPTION_GET_DELAY,
	OPTION_PUT_DELAY,
	OPTION_EXISTS_DELAY,
	OPTION_DELETE_DELAY,
	OPTION_GET_DISCONNECT,
	OPTION_GET_SHORT,
	OPTION_GET_FLIP,
	OPTIONS_COUNT,
};

static const int errors[] = {-EIO,    -ENOENT, -ENOTCONN, -ETIMEDOUT, -EPROTO,
			     -ENOSPC, -EACCES, -EROFS,    -EMSGSIZE};

#define RATE_OPTION(text, words)                              \
	{                                                     \
		.name = text, .kind = URI_RATE, .help = words \
	}
#define DELAY_OPTION(text)                                                \
	{                                                                 \
		.name = text, .kind = URI_NUMBER, .max = 600000,          \
		.help = "milliseconds before the store below hears of it" \
	}

static const struct uri_option options[OPTIONS_COUNT] = {
    [OPTION_SEED] = {.name = "seed",
		     .kind = URI_NUMBER,
		     .max = UINT64_MAX,
		     .help = "of the faults; if not given, the daemon's"},
    [OPTION_NTH] = {.name = "nth",
		    .kind = URI_NUMBER,
		    .min = 1,
		    .max = UINT32_MAX,
		    .zero_means = "any",
		    .help = "rates concern only the n-th operation of each kind"},
    [OPTION_ERROR] = {.name = "error",
		      .kind = URI_WORD,
		      .words = "EIO|ENOENT|ENOTCONN|ETIMEDOUT|EPROTO|ENOSPC|EACCES|EROFS|"
			       "EMSGSIZE",
		      .help = "the status of *-error"},
    [OPTION_GET_ERROR] = RATE_OPTION("get-error", "fails without reaching the store below"),
    [OPTION_PUT_ERROR] = RATE_OPTION("put-error", "the same"),
    [OPTION_EXISTS_ERROR] = RATE_OPTION("exists-error", "the same"),
    [OPTION_DELETE_ERROR] = RATE_OPTION("delete-error", "the same"),
    [OPTION_GET_STALL] = RATE_OPTION("get-stall", "stops in the value until the deadline"),
    [OPTION_PUT_STALL] = RATE_OPTION("put-stall", "no answer until the deadline"),
    [OPTION_EXISTS_STALL] = RATE_OPTION("exists-stall", "the same"),
    [OPTION_DELETE_STALL] = RATE_OPTION("delete-stall", "the same"),
    [OPTION_GET_DELAY] = DELAY_OPTION("get-delay-ms"),
    [OPTION_PUT_DELAY] = DELAY_OPTION("put-delay-ms"),
    [OPTION_EXISTS_DELAY] = DELAY_OPTION("exists-delay-ms"),
    [OPTION_DELETE_DELAY] = DELAY_OPTION("delete-delay-ms"),
    [OPTION_GET_DISCONNECT] = RATE_OPTION("get-disconnect", "-ENOTCONN in the value"),
    [OPTION_GET_SHORT] = RATE_OPTION("get-short", "the value is shorter than what was put"),
    [OPTION_GET_FLIP] = RATE_OPTION("get-flip", "one bit of the value is another"),
};

enum slot_state {
	SLOT_FREE = 0,
	SLOT_WAITING = 1,  /* for its delay, or for room below */
	SLOT_BELOW = 2,    /* the store below has it */
	SLOT_ANSWERED = 3, /* the store below handed it back */
};

/* One operation: the caller's, and the one that the store below sees. */
struct slot {
	struct store_op *op;
	struct store_op below;
	uint8_t state; /* enum slot_state */
	bool stall, disconnect, shorten, flip;
	bool placed;       /* the positions below are known, because the length is */
	int error;         /* 0: none */
	uint64_t start_ns; /* when the store below may hear of it */
	uint64_t draw;     /* decides the positions */
	uint64_t stop_at;  /* the watermark does not pass it (stall, disconnect) */
	uint64_t end_at;   /* the value ends here (short) */
	uint64_t flip_at;  /* byte; NOWHERE once it is done */
};

struct fault_store {
	struct store store;
	struct store_ops ops; /* with the capabilities of the store below */
	struct store *below;
	struct uri_value values[OPTIONS_COUNT];
	uint64_t random;
	uint64_t counts[STORE_OP_DELETE + 1]; /* operations of each kind so far */
	uint32_t ops_max, held;
	struct op_queue done;
	uint64_t next_ns;
	struct store_stats stats;
	struct slot slots[];
};

static struct fault_store *fault_of(const struct store *store)
{
	return (struct fault_store *)(uintptr_t)store;
}

/* ---- open and close ------------------------------------------------------------------------- */

static bool is_own_option(const char *pair)
{
	size_t bytes = strcspn(pair, "=&");
	size_t i;

	for (i = 0; i < OPTIONS_COUNT; i++) {
		if (strlen(options[i].name) == bytes && !memcmp(options[i].name, pair, bytes))
			return true;
	}
	return false;
}

/* The URI without "fault+" and without this wrapper's options. */
static void uri_below(const char *uri, char below[STORE_URI_MAX])
{
	size_t at = strcspn(uri, "?");
	const char *pair = uri + at;
	size_t to;

	memcpy(below, uri, at);
	memmove(below, below + strlen(PREFIX), at - strlen(PREFIX));
	to = at - strlen(PREFIX);
	at = to;
	while (*pair) {
		size_t bytes;

		pair++; /* '?' or '&' */
		bytes = strcspn(pair, "&");
		if (bytes && !is_own_option(pair)) {
			below[to] = to == at ? '?' : '&';
			memcpy(below + to + 1, pair, bytes);
			to += bytes + 1;
		}
		pair += bytes;
	}
	below[to] = '\0';
}

static int fault_open(const struct store_config *config, struct store **ret_store, char *error)
{
	struct store_config config_below = *config;
	char below[STORE_URI_MAX];
	struct fault_store *fault;
	struct uri uri;
	int err;

	fault = calloc(1, sizeof(*fault) + config->ops_max * sizeof(fault->slots[0]));
	if (!fault)
		return uri_error(error, -ENOMEM, "store fault: out of memory");
	err = uri_parse(config->uri, &uri, error);
	if (!err)
		err = uri_read_options(&uri, options, OPTIONS_COUNT, fault->values, error);
	explicit_bzero(&uri, sizeof(uri));
	if (err)
		goto free_fault;
	uri_below(config->uri, below);
	config_below.uri = below;
	err = store_open(&config_below, &fault->below, error);
	explicit_bzero(below, sizeof(below));
	if (err)
		goto free_fault;
	fault->random =
	    fault->values[OPTION_SEED].text ? fault->values[OPTION_SEED].number : config->seed;
	/* Texts were lent by uri; only numbers are used from here on. */
	fault->ops_max = config->ops_max;
	fault->ops = store_fault;
	fault->ops.caps = fault->below->ops->caps;
	fault->store.ops = &fault->ops;
	*ret_store = &fault->store;
	return 0;

free_fault:
	free(fault);
	return err;
}

static void fault_close(struct store *store)
{
	struct fault_store *fault = fault_of(store);

	store_close(fault->below);
	free(fault);
}

/* ---- drawing faults ------------------------------------------------------------------------- */

static uint64_t next_random(struct fault_store *fault)
{
	uint64_t z = fault->random += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static bool draw(struct fault_store *fault, uint32_t option, bool concerned)
{
	bool hit = next_random(fault) % RATE_ONE < fault->values[option].number;

	return hit && concerned;
}

static void draw_faults(struct fault_store *fault, struct slot *slot, uint64_t now_ns)
{
	uint32_t kind = slot->op->kind - STORE_OP_GET;
	uint64_t nth = fault->values[OPTION_NTH].number;
	bool concerned = ++fault->counts[slot->op->kind] == nth || nth == 0;
	bool get = concerned && slot->op->kind == STORE_OP_GET;

	slot->error = draw(fault, OPTION_GET_ERROR + kind, concerned)
			  ? errors[fault->values[OPTION_ERROR].number]
			  : 0;
	slot->stall = draw(fault, OPTION_GET_STALL + kind, concerned);
	slot->disconnect = draw(fault, OPTION_GET_DISCONNECT, get);
	slot->shorten = draw(fault, OPTION_GET_SHORT, get);
	slot->flip = draw(fault, OPTION_GET_FLIP, get);
	slot->draw = next_random(fault);
	slot->placed = false;
	slot->start_ns = now_ns + fault->values[OPTION_GET_DELAY + kind].number * NS_PER_MS;
}

/* ---- operations ----------------------------------------------------------------------------- */

static void finish(struct fault_store *fault, struct slot *slot, int status)
{
	slot->op->status = status;
	slot->state = SLOT_FREE;
	op_count(&fault->stats, slot->op);
	op_queue_push(&fault->done, slot->op);
}

static struct slot *free_slot(struct fault_store *fault)
{
	uint32_t i;

	for (i = 0; i < fault->ops_max; i++) {
		if (fault->slots[i].state == SLOT_FREE)
			return &fault->slots[i];
	}
	return NULL;
}

static uint32_t fault_submit(struct store *store, struct store_op *const *ops, uint32_t n,
			     uint64_t now_ns)
{
	struct fault_store *fault = fault_of(store);
	uint32_t i;

	for (i = 0; i < n && fault->held < fault->ops_max; i++) {
		struct slot *slot = free_slot(fault);
		int err = op_check(ops[i], UINT64_MAX);

		ssv_assert(slot);
		op_begin(ops[i]);
		slot->op = ops[i];
		slot->state = SLOT_WAITING;
		fault->held++;
		fault->next_ns = 0;
		if (err)
			finish(fault, slot, err);
		else
			draw_faults(fault, slot, now_ns);
	}
	return i;
}

/* The length is known: choose where in the value the faults are. */
static void place_faults(struct slot *slot, uint64_t bytes)
{
	slot->placed = true;
	slot->stop_at = slot->end_at = slot->flip_at = NOWHERE;
	if (slot->stall || slot->disconnect)
		slot->stop_at = slot->draw % bytes;
	if (slot->shorten && bytes > 1)
		slot->end_at = 1 + (slot->draw >> 8) % (bytes - 1);
	if (slot->flip)
		slot->flip_at = (slot->draw >> 16) % u64_min(bytes, slot->end_at);
}

/* Show the caller what the faults let through. */
static void publish(struct slot *slot)
{
	struct store_op *op = slot->op;
	const struct store_op *below = &slot->below;

	if (op->kind != STORE_OP_GET || below->value_bytes == 0)
		return;
	if (!slot->placed)
		place_faults(slot, below->value_bytes);
	if (below->received > slot->flip_at) {
		op->data[slot->flip_at] ^= (uint8_t)(1u << (slot->draw & 7));
		slot->flip_at = NOWHERE;
	}
	op->value_bytes = u64_min(below->value_bytes, slot->end_at);
	op->received = u64_min(u64_min(below->received, slot->stop_at), slot->end_at);
}

static void submit_below(struct fault_store *fault, struct slot *slot, uint64_t now_ns)
{
	struct store_op *below = &slot->below;

	*below = *slot->op;
	below->owner = slot;
	if (fault->below->ops->submit(fault->below, &below, 1, now_ns) == 1)
		slot->state = SLOT_BELOW;
}

static void step_waiting(struct fault_store *fault, struct slot *slot, uint64_t now_ns)
{
	if (slot->op->deadline_ns <= now_ns) {
		finish(fault, slot, -ETIMEDOUT);
		return;
	}
	if (now_ns < slot->start_ns)
		return;
	if (slot->error) {
		finish(fault, slot, slot->error);
		return;
	}
	if (!slot->stall || slot->op->kind == STORE_OP_GET)
		submit_below(fault, slot, now_ns);
}

/* Before the store below is polled: pass a new deadline on, or cancel. */
static void step_deadline(struct slot *slot)
{
	bool cut = slot->placed && slot->disconnect && slot->below.received > slot->stop_at;

	slot->below.deadline_ns = cut ? 0 : slot->op->deadline_ns;
}

static void step_answered(struct fault_store *fault, struct slot *slot, uint64_t now_ns)
{
	int status = slot->below.status;

	publish(slot);
	if (slot->op->kind == STORE_OP_EXISTS)
		slot->op->value_bytes = slot->below.value_bytes;
	if (status && !(slot->disconnect && slot->placed)) {
		finish(fault, slot, status);
		return;
	}
	if (slot->disconnect)
		finish(fault, slot, slot->op->deadline_ns <= now_ns ? -ETIMEDOUT : -ENOTCONN);
	else if (!slot->stall)
		finish(fault, slot, 0);
	else if (slot->op->deadline_ns <= now_ns)
		finish(fault, slot, -ETIMEDOUT);
}

/* ---- poll ----------------------------------------------------------------------------------- */

static void poll_below(struct fault_store *fault, uint64_t now_ns)
{
	struct store_op *answered[16];
	uint32_t n, i;

	do {
		n = fault->below->ops->poll(fault->below, answered, ARRAY_COUNT(answered), now_ns);
		for (i = 0; i < n; i++)
			((struct slot *)answered[i]->owner)->state = SLOT_ANSWERED;
	} while (n == ARRAY_COUNT(answered));
}

static void plan_next(struct fault_store *fault)
{
	uint64_t next_ns = fault->below->ops->next_ns(fault->below);
	uint32_t i;

	for (i = 0; i < fault->ops_max; i++) {
		const struct slot *slot = &fault->slots[i];

		if (slot->state == SLOT_FREE)
			continue;
		next_ns = u64_min(next_ns, slot->op->deadline_ns);
		if (slot->state == SLOT_WAITING && !slot->stall)
			next_ns = u64_min(next_ns, slot->start_ns);
		if (slot->state == SLOT_BELOW && slot->placed && slot->disconnect &&
		    slot->below.received > slot->stop_at)
			next_ns = 0;
	}
	fault->next_ns = fault->done.first ? 0 : next_ns;
}

static uint32_t fault_poll(struct store *store, struct store_op **done, uint32_t max,
			   uint64_t now_ns)
{
	struct fault_store *fault = fault_of(store);
	uint32_t i, n;

	for (i = 0; i < fault->ops_max; i++) {
		struct slot *slot = &fault->slots[i];

		if (slot->state == SLOT_WAITING)
			step_waiting(fault, slot, now_ns);
		else if (slot->state == SLOT_BELOW)
			step_deadline(slot);
	}
	poll_below(fault, now_ns);
	for (i = 0; i < fault->ops_max; i++) {
		struct slot *slot = &fault->slots[i];

		if (slot->state == SLOT_BELOW)
			publish(slot);
		else if (slot->state == SLOT_ANSWERED)
			step_answered(fault, slot, now_ns);
	}
	n = op_queue_take(&fault->done, done, max);
	fault->held -= n;
	plan_next(fault);
	return n;
}

static uint64_t fault_next_ns(const struct store *store)
{
	return fault_of(store)->next_ns;
}

static uint32_t fault_pollfds(const struct store *store, void *pollfds, uint32_t max)
{
	const struct store *below = fault_of(store)->below;

	return below->ops->pollfds(below, pollfds, max);
}

static void fault_stats(const struct store *store, struct store_stats *ret_stats)
{
	const struct fault_store *fault = fault_of(store);
	const struct store *below = fault->below;

	below->ops->stats(below, ret_stats);
	/* What the caller saw; bytes and connections are those of the store below. */
	ret_stats->gets = fault->stats.gets;
	ret_stats->hits = fault->stats.hits;
	ret_stats->puts = fault->stats.puts;
	ret_stats->exists = fault->stats.exists;
	ret_stats->deletes = fault->stats.deletes;
	ret_stats->errors = fault->stats.errors;
	ret_stats->timeouts = fault->stats.timeouts;
}

static int fault_list(struct store *store,
		      int (*visit)(void *context, const struct ssv_key *key, uint64_t bytes),
		      void *context)
{
	struct store *below = fault_of(store)->below;

	return below->ops->list(below, visit, context);
}

const struct store_ops store_fault = {
    .scheme = "fault",
    .caps = STORE_CAP_WRAPPER,
    .options = options,
    .options_count = OPTIONS_COUNT,
    .open = fault_open,
    .close = fault_close,
    .submit = fault_submit,
    .poll = fault_poll,
    .next_ns = fault_next_ns,
    .pollfds = fault_pollfds,
    .stats = fault_stats,
    .list = fault_list,
};
