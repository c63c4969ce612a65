/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store.h - where chunks live: the contract that every store keeps.
 *
 * A store moves opaque values under 32-byte keys. One handle belongs to one worker thread, which
 * submits operations and polls for their end; nothing on the data path blocks beyond one bounded
 * system call, allocates, or reads a clock: time comes in as now_ns.
 *
 * An operation (struct store_op) is the caller's memory and the store's to write from submit until
 * poll hands it back. While a GET runs, value_bytes and received may be read between polls: the
 * bytes below `received` are in data[] and do not change any more (the watermark).
 *
 * Accepted means handed back exactly once, no later than shortly after deadline_ns, in any order.
 * To cancel, lower deadline_ns to 0 and poll; the status is then -ETIMEDOUT (or the result, if that
 * was already known). From then on the store does not touch data[] any more.
 *
 * A value has 1 to value_bytes_max bytes. PUT of 0 bytes: -EINVAL; of more: -EMSGSIZE. A stored
 * value longer than value_bytes_max is a lie: GET gives -EPROTO.
 */
#ifndef SSV_STORE_H
#define SSV_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/base.h"
#include "shadowserve.h"

#define STORE_URI_MAX 1024

enum store_op_kind {
	STORE_OP_GET = 1,    /* value into data[]; -EMSGSIZE if longer than capacity */
	STORE_OP_PUT = 2,    /* data[0..value_bytes) under key; replaces */
	STORE_OP_EXISTS = 3, /* 0 and value_bytes, or -ENOENT */
	STORE_OP_DELETE = 4, /* 0 whether or not it was there */
};

struct store_op {
	uint8_t kind; /* enum store_op_kind */
	struct ssv_key key;
	uint8_t *data;        /* GET, PUT */
	uint64_t capacity;    /* GET: bytes of data[] */
	uint64_t deadline_ns; /* absolute */
	void *owner;          /* the caller's */

	uint64_t value_bytes; /* PUT: in. GET: out, as soon as known (0 before). EXISTS: out */
	uint64_t received;    /* GET: out, watermark */
	int status;           /* out, when handed back: 0, -ENOENT, -EMSGSIZE, -EINVAL, -ETIMEDOUT,
			       * -ENOTCONN store or folder gone, -ENOSPC, -EACCES, -EROFS, -EPROTO, -EIO */

	/* The store's while it holds the operation. */
	struct store_op *next;
	uint32_t mark;
};

enum store_caps {
	STORE_CAP_PERSISTENT = 1, /* values outlive the process */
	STORE_CAP_SHARED = 2,     /* other handles of the same URI see them */
	STORE_CAP_REMOTE = 4,     /* bytes come over a network */
	STORE_CAP_LIST = 8,       /* list() works */
	STORE_CAP_WRAPPER = 16,   /* stands before another scheme: "fault+file:" */
};

struct store_config {
	const char *uri; /* "file:/var/cache/kv?bytes=10G", "redis://host:6379/0?lanes=4" ... */
	uint64_t seed;   /* randomness of backoff and faults */
	uint64_t value_bytes_max; /* no value is longer; a peer that says so lies */
	uint32_t ops_max;         /* operations in flight at once */
};

/* Counters a store keeps; read by its owner's thread. */
struct store_stats {
	uint64_t gets, hits, puts, exists, deletes, errors, timeouts, reconnects, evictions;
	uint64_t redirects;               /* operations that another node was named for */
	uint64_t bytes_in, bytes_out;     /* from and to the store */
	uint64_t bytes_used, bytes_limit; /* as far as the store knows; 0: unknown, none */
	uint32_t connected;               /* 1: able to serve; remote stores: lanes that are up */
	uint32_t nodes, nodes_connected;  /* of a cluster */
};

struct store; /* a backend's own structure; its first member is const struct store_ops *ops */
struct uri;
struct uri_option;

struct store_ops {
	const char *scheme;               /* "file", "redis" ... as in the URI */
	uint32_t caps;                    /* enum store_caps */
	const struct uri_option *options; /* what may stand behind '?' (store/uri.h) */
	uint32_t options_count;
	/* Is the rest of the URI of the right form? Looks at its text alone; NULL: any is. */
	int (*check)(const struct uri *uri, char *error);

	/* Control path: may allocate and block up to a second. On failure: one line in error
	 * (SSV_ERROR_TEXT_MAX bytes) names the URI's part, its value and what was expected. */
	int (*open)(const struct store_config *config, struct store **ret_store, char *error);
	void (*close)(struct store *store);

	/* Data path. submit takes operations from the front and returns how many were accepted;
	 * fewer than n means "full, poll first". poll makes progress, writes finished operations
	 * to done and returns how many. */
	uint32_t (*submit)(struct store *store, struct store_op *const *ops, uint32_t n,
			   uint64_t now_ns);
	uint32_t (*poll)(struct store *store, struct store_op **done, uint32_t max,
			 uint64_t now_ns);
	/* When poll has something to do again even if no descriptor is ready; TIME_NEVER: never. */
	uint64_t (*next_ns)(const struct store *store);
	/* Descriptors to sleep on, at most max, as struct pollfd entries with their events. */
	uint32_t (*pollfds)(const struct store *store, void *pollfds, uint32_t max);
	void (*stats)(const struct store *store, struct store_stats *ret_stats);
	/* What is wrong now, in one sentence for the operator; false: nothing that is known. NULL:
	 * opening has told all there is. */
	bool (*describe)(const struct store *store, char *text, size_t text_bytes);
	/* Control path: call visit for every key; stops when it returns non-zero. -ENOTSUP. */
	int (*list)(struct store *store,
		    int (*visit)(void *context, const struct ssv_key *key, uint64_t bytes),
		    void *context);
};

struct store {
	const struct store_ops *ops;
};

/**
 * Open the store that a URI names. Wrappers stack with '+': "fault+file:/x?seed=7&get-error=1%".
 * There is no fallback: a failed open is reported with that backend's own words.
 * Errors: -EINVAL, -ENOTSUP unknown scheme, -EACCES, -ENOTCONN ... with one line in error.
 */
SSV_MUST_CHECK int store_open(const struct store_config *config, struct store **ret_store,
			      char *error);
void store_close(struct store *store); /* takes NULL */

/* Could store_open() be asked for this URI? Looks at its text alone: scheme, options, form.
 * Errors: -EINVAL, -ENOTSUP, -E2BIG with one line in error. */
SSV_MUST_CHECK int store_uri_check(const char *uri, char *error);

/* Every backend of this build, NULL-terminated. */
const struct store_ops *const *store_backends(void);

/* Copy a URI with any password replaced by "***": the only form that may be logged or shown. */
void store_uri_redact(const char *uri, char *text, size_t text_bytes);

#endif
