/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tally.h - what a thread asks of the kernel and how many bytes it copies, counted where it does.
 *
 * A thread names the tally that it counts into (tally_use); any room may then count with one line,
 * whatever handle it has. A thread without a tally counts nothing. The counters have one writer,
 * the thread, and are read relaxed by control (counter.h). Calls at start are not counted: only the
 * data path's.
 */
#ifndef SSV_TALLY_H
#define SSV_TALLY_H

#include "base/counter.h"

/* X(symbol, name in stat): system calls by kind. */
#define TALLY_CALLS(X)                                                            \
	X(CALL_WAIT, "wait")       /* poll or epoll that may sleep */             \
	X(CALL_POLL, "poll")       /* poll that only looks */                     \
	X(CALL_RECEIVE, "receive") /* recv, recvmsg */                            \
	X(CALL_SEND, "send")       /* send, sendmsg */                            \
	X(CALL_READ, "read")       /* pread and its kin, of a store's files */    \
	X(CALL_WRITE, "write")     /* pwrite and its kin, of a store's files */   \
	X(CALL_FILE, "file")       /* open, stat, rename, close ... of a store */ \
	X(CALL_SOCKET, "socket")   /* socket, connect, close ... of a store */    \
	X(CALL_EVENT, "event")     /* read and write of an eventfd */             \
	X(CALL_MOVE, "move")       /* process_vm_readv and _writev, and their checks */

/* Bytes by the copy that moved them. */
#define TALLY_BYTES(X)                                                                       \
	X(BYTES_RECEIVED, "received") /* kernel to wire slots: the socket's own copy */      \
	X(BYTES_HEADER, "header")     /* came with a reply's header, copied from there */    \
	X(BYTES_STORE, "store")       /* out of a store in this process: memory: */          \
	X(BYTES_INFLATED, "inflated") /* written by an inflate engine */                     \
	X(BYTES_DECODED, "decoded")   /* written by the decoder, wherever to */              \
	X(BYTES_STAGED, "staged")     /* of these: into staging memory */                    \
	X(BYTES_MOVED, "moved")       /* between staging memory and a process or a GPU */    \
	X(BYTES_GATHERED, "gathered") /* a region's or staging's bytes into capture slots */ \
	X(BYTES_SENT, "sent")         /* put slots to the kernel */

enum tally_kind {
#define TALLY_ENUM(symbol, name) TALLY_##symbol,
	TALLY_CALLS(TALLY_ENUM) TALLY_CALLS_COUNT,
	TALLY_BYTES_BEFORE = TALLY_CALLS_COUNT - 1, /* bytes go on where calls end */
	TALLY_BYTES(TALLY_ENUM)
#undef TALLY_ENUM
	    TALLIES_COUNT
};

struct tally {
	struct counter counters[TALLIES_COUNT];
};

extern _Thread_local struct tally *tally_of_thread;

/* From now on this thread counts here; NULL: nowhere. */
static inline void tally_use(struct tally *tally)
{
	tally_of_thread = tally;
}

static inline void tally_add(enum tally_kind kind, uint64_t n)
{
	struct tally *tally = tally_of_thread;

	if (tally)
		counter_add(&tally->counters[kind], n);
}

/* Bytes that came out of a store, whatever its kind. */
static inline uint64_t tally_received(const struct tally *tally)
{
	return counter_read(&tally->counters[TALLY_BYTES_RECEIVED]) +
	       counter_read(&tally->counters[TALLY_BYTES_STORE]);
}

#endif
