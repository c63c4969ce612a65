/* SPDX-License-Identifier: Apache-2.0 */
/*
 * inflate.h - who decompresses: the contract of every inflate engine.
 *
 * An engine turns raw Deflate streams (RFC 1951) whose inflated length is known into bytes. The
 * length is the promise: a job succeeds only when exactly out_bytes were produced, and nothing past
 * out[out_bytes) is ever written, whatever the stream holds. What the bytes are is not checked: the
 * caller has their checksum, and an engine may be broken.
 *
 * Two-phase and polled, as stores and delivery ways are: submit takes jobs from the front and says
 * how many; poll makes progress, hands finished ones back, in any order, each exactly once. A job's
 * memory is the engine's from submit until then. An engine that works on the caller's core (no
 * INFLATE_CAP_BESIDE) inflates one job a submit or a poll, so both are bounded.
 *
 * Threads: open and close on the control thread; the data path on the one thread that owns the
 * handle. Nothing on the data path allocates, waits or reads a clock.
 */
#ifndef SSV_INFLATE_H
#define SSV_INFLATE_H

#include "base/base.h"
#include "shadowserve.h"

#define INFLATE_NAME_MAX  256u /* of an engine with its options, with its end */
#define INFLATE_DEPTH_MAX 1024u
#define INFLATE_IN_SLACK  64u /* bytes past a stream's end that may be read */

struct inflate_job {
	const uint8_t *in; /* one whole stream, and readable for INFLATE_IN_SLACK more */
	uint8_t *out;
	uint32_t in_bytes, out_bytes; /* within the engine's limits; none is 0 */
	void *owner;                  /* the caller's */
	int status; /* when handed back: 0; -EBADMSG the stream is not one of out_bytes; -EIO the
		     * engine failed; -EINVAL a length is 0 or over a limit */
	/* The engine's while it holds the job. */
	struct inflate_job *next;
	uint32_t mark;
};

enum inflate_cap_flags {
	INFLATE_CAP_BESIDE = 1,  /* works beside the caller's core */
	INFLATE_CAP_NOTHING = 2, /* writes nothing: measures what is around it */
	INFLATE_CAP_LENIENT = 4, /* a stream that ends early or late may succeed, with any bytes */
};

struct inflate_caps {
	uint32_t flags; /* enum inflate_cap_flags */
	uint32_t depth; /* jobs in flight at once */
	uint32_t in_bytes_max, out_bytes_max;
	const char *device; /* for the operator; lent until close */
};

struct inflate_stats {
	uint64_t jobs, failed, bytes_in, bytes_out;
};

struct inflate_config {
	const char *name; /* "cpu", "dpdk:compress_isal", "fault+cpu?error=1%" ... */
	uint64_t seed;    /* of faults */
	uint32_t depth;   /* jobs in flight that are wanted, 1..INFLATE_DEPTH_MAX */
	uint32_t handles; /* that will be opened of this engine in all */
	/* What jobs point into, page aligned: a device must know it beforehand. NULL: anything. */
	void *memory;
	uint64_t memory_bytes;
};

struct inflate; /* an engine's own structure; its first member is const struct inflate_ops *ops */

struct inflate_ops {
	const char *name;
	/* Control path. One line in error (SSV_ERROR_TEXT_MAX bytes) on failure. rest: what
	 * config->name says behind the engine's own name. */
	int (*open)(const struct inflate_config *config, const char *rest,
		    struct inflate **ret_inflate, char *error);
	void (*close)(struct inflate *inflate);
	/* Data path. */
	uint32_t (*submit)(struct inflate *inflate, struct inflate_job *const *jobs, uint32_t n);
	uint32_t (*poll)(struct inflate *inflate, struct inflate_job **done, uint32_t max);
	/* Any time. */
	void (*caps)(const struct inflate *inflate, struct inflate_caps *ret_caps);
	void (*stats)(const struct inflate *inflate, struct inflate_stats *ret_stats);
};

struct inflate {
	const struct inflate_ops *ops;
};

/**
 * Open the engine that a name says. Wrappers stand before it with '+'. There is no fallback.
 * Errors: -EINVAL, -ENOTSUP not in this build, -ENODEV no such device, -ENOMEM, with one line in
 *         error.
 */
SSV_MUST_CHECK int inflate_open(const struct inflate_config *config, struct inflate **ret_inflate,
				char *error);
void inflate_close(struct inflate *inflate); /* takes NULL; no job may be out */

/* Could inflate_open() be asked for this name? Looks at its text and at this build alone. */
SSV_MUST_CHECK int inflate_check(const char *name, char *error);

#endif
