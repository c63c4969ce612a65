/* SPDX-License-Identifier: Apache-2.0 */
/*
 * message.h - the messages between libshadowserve and shadowserved (docs/protocol.md).
 *
 * A message is a 16-byte header and a body, little endian, a multiple of 8 bytes long. The structs
 * wire_* are the bytes themselves; everything else here is host order. Decoding trusts nothing: it
 * checks every length, count and reserved byte against the message before it reads, and says in
 * one line what is wrong. It does not judge what a request means; that is the plane's.
 */
#ifndef SSV_MESSAGE_H
#define SSV_MESSAGE_H

#include <assert.h>

#include "base/base.h"
#include "base/blob.h"
#include "base/trace.h"
#include "shadowserve.h"

#define MESSAGE_MAGIC           "ssv-kv\r\n" /* the end shows a transport that rewrites text */
#define MESSAGE_VERSION_MIN     1
#define MESSAGE_VERSION_MAX     1
#define MESSAGE_HEADER_BYTES    16
#define MESSAGE_STAT_BYTES_MAX  (1 * MIB)
#define MESSAGE_COMPLETIONS_MAX 64 /* in one message */
#define MESSAGE_EVENTS_MAX      2048
#define MESSAGE_ERRNO_MAX       4095 /* as the kernel's */

/* Long enough for every message that a daemon receives. */
#define MESSAGE_REQUEST_BYTES_MAX \
	(MESSAGE_HEADER_BYTES + 40 + 32 * SSV_KEYS_MAX + 4 * SSV_BLOCKS_MAX)

enum message_type {
	MESSAGE_HELLO = 1,        /* client: first of a session */
	MESSAGE_WELCOME = 2,      /* daemon: answers HELLO */
	MESSAGE_REFUSED = 3,      /* daemon: answers HELLO, REGISTER or UNREGISTER */
	MESSAGE_CLOSE = 4,        /* daemon: last of a session; its jobs are quiescent */
	MESSAGE_REGISTER = 5,     /* client: a region, with its descriptor */
	MESSAGE_REGISTERED = 6,   /* daemon */
	MESSAGE_UNREGISTER = 7,   /* client */
	MESSAGE_UNREGISTERED = 8, /* daemon: nothing touches the region any more */
	MESSAGE_REQUEST = 9,      /* client: id is the request's user_data */
	MESSAGE_COMPLETION = 10,  /* daemon: one or more */
	MESSAGE_STAT = 11,        /* client */
	MESSAGE_STATUS = 12,      /* daemon: JSON */
	MESSAGE_RESET = 13,       /* client: STATUS, then count anew */
	MESSAGE_TRACE = 14,       /* client: what did a thread do lately? */
	MESSAGE_EVENTS = 15,      /* daemon */
};
#define MESSAGE_TYPES_COUNT 16

struct wire_header {
	uint32_t bytes; /* of the whole message, header included; a multiple of 8 */
	uint16_t type;  /* enum message_type */
	uint16_t flags; /* 0 */
	uint64_t id;    /* an answer carries its question's; REQUEST: user_data */
};

struct wire_hello {
	uint8_t magic[8];
	uint16_t version_min, version_max;
	uint32_t rank, ranks_count;
	uint32_t reserved;
	char engine_id[SSV_ENGINE_ID_MAX]; /* ends with 0 */
};

struct wire_welcome {
	uint16_t version;
	uint16_t reserved;
	uint32_t pid;
	uint32_t requests_max, keys_max, blocks_max, stat_bytes_max;
	char daemon_version[16]; /* ends with 0 */
};

struct wire_text { /* REFUSED, CLOSE, STATUS; then text_bytes of text and zeros up to 8 */
	int32_t status;
	uint32_t text_bytes;
};

struct wire_region { /* REGISTERED (then perhaps wire_blob), UNREGISTER, UNREGISTERED */
	uint32_t region;
	uint32_t reserved;
};

struct wire_register { /* then wire_gpu or wire_blob, if so; then parts, then tensors */
	uint32_t memory;
	uint8_t dtype, parts_count;
	uint16_t layer0, layers_count, layers_total;
	uint16_t rank, ranks_count;
	uint32_t block_tokens, blocks_count, tensors_count;
	uint8_t model[8];
	uint32_t reserved;
	uint64_t address, bytes;
	uint64_t reserved2;
};

struct wire_gpu {
	uint8_t uuid[16], handle[64];
	uint64_t offset;
};

struct wire_blob { /* beside memory on another machine: SSV_MEMORY_TCP, SSV_MEMORY_RDMA */
	uint32_t bytes;
	uint32_t reserved;
	uint8_t data[BLOB_BYTES_MAX]; /* zero beyond bytes */
};

struct wire_digit {
	uint8_t axis, reserved;
	uint16_t extent;
	uint32_t reserved2;
	int64_t stride;
};

struct wire_part {
	uint8_t role, reserved;
	uint16_t head0, heads, dim;
	uint32_t digits_count;
	uint32_t reserved2;
	struct wire_digit digits[SSV_DIGITS_MAX]; /* zero beyond digits_count */
};

struct wire_tensor {
	uint16_t layer, part;
	uint32_t reserved;
	uint64_t offset, block_stride;
};

struct wire_request { /* then keys of 32 bytes, then blocks of 4, then zeros up to 8 */
	uint8_t op, tier, codec, min_tier;
	uint32_t region;
	uint64_t target;
	uint32_t keys_count, blocks_count, ranks_count;
	uint32_t first_token, position, deadline_ms;
};

struct wire_completions { /* then completions */
	uint32_t count;
	uint32_t reserved;
};

struct wire_completion {
	uint64_t user_data;
	uint8_t op, reserved[3];
	int32_t status;
	uint32_t tokens, estimate_us;
	uint64_t wire_bytes, kv_bytes, elapsed_us;
};

struct wire_trace { /* TRACE */
	uint32_t track;
	uint32_t reserved;
	uint64_t from;
};

struct wire_events { /* EVENTS; then count x struct trace_event, little endian */
	uint32_t track, tracks_count;
	uint32_t count;
	uint32_t reserved;
	uint64_t slots_count, first, head, now_ns;
};

static_assert(sizeof(struct wire_trace) == 16, "wire format");
static_assert(sizeof(struct wire_events) == 48, "wire format");
static_assert(offsetof(struct wire_events, first) == 24, "wire format");
static_assert(sizeof(struct wire_header) == MESSAGE_HEADER_BYTES, "wire format");
static_assert(offsetof(struct wire_header, id) == 8, "wire format");
static_assert(sizeof(struct wire_hello) == 88, "wire format");
static_assert(offsetof(struct wire_hello, engine_id) == 24, "wire format");
static_assert(sizeof(struct wire_welcome) == 40, "wire format");
static_assert(offsetof(struct wire_welcome, daemon_version) == 24, "wire format");
static_assert(sizeof(struct wire_text) == 8, "wire format");
static_assert(sizeof(struct wire_region) == 8, "wire format");
static_assert(sizeof(struct wire_register) == 64, "wire format");
static_assert(offsetof(struct wire_register, block_tokens) == 16, "wire format");
static_assert(offsetof(struct wire_register, address) == 40, "wire format");
static_assert(sizeof(struct wire_gpu) == 88, "wire format");
static_assert(sizeof(struct wire_blob) == 8 + BLOB_BYTES_MAX, "wire format");
static_assert(sizeof(struct wire_digit) == 16, "wire format");
static_assert(sizeof(struct wire_part) == 16 + 16 * SSV_DIGITS_MAX, "wire format");
static_assert(sizeof(struct wire_tensor) == 24, "wire format");
static_assert(sizeof(struct wire_request) == 40, "wire format");
static_assert(offsetof(struct wire_request, keys_count) == 16, "wire format");
static_assert(sizeof(struct wire_completions) == 8, "wire format");
static_assert(sizeof(struct wire_completion) == 48, "wire format");
static_assert(offsetof(struct wire_completion, status) == 12, "wire format");

/* A message found in received bytes; lent until those bytes move. */
struct message {
	uint16_t type;
	uint64_t id;
	const uint8_t *body;
	uint32_t body_bytes;
	uint32_t bytes;
};

struct message_hello {
	uint16_t version_min, version_max;
	uint32_t rank, ranks_count;
	char engine_id[SSV_ENGINE_ID_MAX];
};

struct message_welcome {
	uint16_t version;
	uint32_t pid, requests_max, keys_max, blocks_max, stat_bytes_max;
	char daemon_version[16];
};

struct message_text {
	int32_t status;
	uint32_t text_bytes;
	const char *text; /* not ended by 0; lent with the message */
};

/* A thread's events and where they stand in its ring. */
struct message_events {
	uint32_t track;        /* a worker's index; the control thread's is the last */
	uint32_t tracks_count; /* of the daemon */
	uint32_t count;        /* events in this message */
	uint64_t slots_count;  /* of the ring; 0: no trace is kept, or no such track */
	uint64_t first;        /* number of the first event here; those before it are gone, or were
				* not asked for */
	uint64_t head;         /* events so far */
	uint64_t now_ns;       /* the daemon's clock, which the events tell too */
};

/* Who sent the bytes: each side refuses the other side's words from its peer. */
enum message_sender { MESSAGE_FROM_CLIENT = 1, MESSAGE_FROM_DAEMON = 2 };

/**
 * Find the first message in bytes[0..available).
 *
 * Returns 1 and *ret_message; 0 when more bytes are needed (*ret_needed: how many in all, at least
 * a header); -EPROTO with one line in error (SSV_ERROR_TEXT_MAX bytes).
 * bytes must be aligned to 8.
 */
SSV_MUST_CHECK int message_find(const uint8_t *bytes, size_t available, enum message_sender sender,
				struct message *ret_message, size_t *ret_needed, char *error);

const char *message_name(uint16_t type); /* "HELLO" ...; "?" for no such type */

/* 1 for an engine id: 1 to SSV_ENGINE_ID_MAX - 1 bytes of printable ASCII, so that it can stand in
 * a log line and in JSON as it is. */
int message_engine_id_is_good(const char *engine_id);

/* 0 or a negative errno: what a status of a peer's must be, since it becomes a result here. */
static inline int message_status_is_good(int32_t status)
{
	return status <= 0 && status >= -MESSAGE_ERRNO_MAX;
}

/*
 * Encoders write a whole message to out, which is aligned to 8, and return its bytes, or 0 when
 * room is too small. What they are given must be within the limits of shadowserve.h.
 */
size_t message_encode_hello(uint8_t *out, size_t room, uint64_t id,
			    const struct message_hello *hello);
size_t message_encode_welcome(uint8_t *out, size_t room, uint64_t id,
			      const struct message_welcome *welcome);
size_t message_encode_text(uint8_t *out, size_t room, uint16_t type, uint64_t id, int32_t status,
			   const char *text, size_t text_bytes);
size_t message_encode_region(uint8_t *out, size_t room, uint16_t type, uint64_t id,
			     uint32_t region);
/* blob: 1 byte or more if memory_is_remote(), else not looked at. */
size_t message_encode_register(uint8_t *out, size_t room, uint64_t id,
			       const struct ssv_region *region, const struct ssv_layout *layout,
			       const struct blob *blob);
/* blob: what the way answers, 1 byte or more, or NULL. */
size_t message_encode_registered(uint8_t *out, size_t room, uint64_t id, uint32_t region,
				 const struct blob *blob);
size_t message_encode_request(uint8_t *out, size_t room, const struct ssv_request *request);
size_t message_encode_stat(uint8_t *out, size_t room, uint64_t id);

size_t message_encode_reset(uint8_t *out, size_t room, uint64_t id);
size_t message_encode_trace(uint8_t *out, size_t room, uint64_t id, uint32_t track, uint64_t from);
size_t message_encode_events(uint8_t *out, size_t room, uint64_t id,
			     const struct message_events *head, const struct trace_event *events);

/* Does this kind of memory travel with a descriptor? Does it lie on a GPU? */
static inline int memory_has_fd(uint32_t memory)
{
	return memory == SSV_MEMORY_MEMFD || memory == SSV_MEMORY_GPU_FD;
}

static inline int memory_is_gpu(uint32_t memory)
{
	return memory == SSV_MEMORY_GPU_IPC || memory == SSV_MEMORY_GPU_FD;
}

/* Is it memory of another machine, which a relay offers for its engine? */
static inline int memory_is_remote(uint32_t memory)
{
	return memory == SSV_MEMORY_TCP || memory == SSV_MEMORY_RDMA;
}

/* Bytes of a REGISTER and of a REQUEST message. */
size_t message_register_bytes(const struct ssv_region *region, const struct ssv_layout *layout);
size_t message_request_bytes(const struct ssv_request *request);

/* Completions grow: begin once, then append up to MESSAGE_COMPLETIONS_MAX to the same message.
 * Both return the message's bytes so far, or 0 when it is full or room is too small. */
size_t message_completions_begin(uint8_t *out, size_t room);
size_t message_completions_append(uint8_t *out, size_t room,
				  const struct ssv_completion *completion);

/* Decoders: 0, or -EPROTO with one line in error. The message's type is the caller's to check. */
SSV_MUST_CHECK int message_decode_hello(const struct message *message,
					struct message_hello *ret_hello, char *error);
SSV_MUST_CHECK int message_decode_welcome(const struct message *message,
					  struct message_welcome *ret_welcome, char *error);
SSV_MUST_CHECK int message_decode_text(const struct message *message, struct message_text *ret_text,
				       char *error);
SSV_MUST_CHECK int message_decode_region(const struct message *message, uint32_t *ret_region,
					 char *error);
/* A REGISTERED that may carry a blob; without one ret_blob->bytes is 0. */
SSV_MUST_CHECK int message_decode_registered(const struct message *message, uint32_t *ret_region,
					     struct blob *ret_blob, char *error);
/* tensors[SSV_TENSORS_MAX] is the caller's and *ret_layout points to it. ret_region->fd = -1.
 * ret_blob is filled for memory_is_remote(). */
SSV_MUST_CHECK int message_decode_register(const struct message *message,
					   struct ssv_region *ret_region,
					   struct ssv_layout *ret_layout,
					   struct ssv_tensor *tensors, struct blob *ret_blob,
					   char *error);
/* keys and blocks of *ret_request point into the message. */
SSV_MUST_CHECK int message_decode_request(const struct message *message,
					  struct ssv_request *ret_request, char *error);
/* STAT and RESET. */
SSV_MUST_CHECK int message_decode_stat(const struct message *message, char *error);
SSV_MUST_CHECK int message_decode_trace(const struct message *message, uint32_t *ret_track,
					uint64_t *ret_from, char *error);
SSV_MUST_CHECK int message_decode_events(const struct message *message,
					 struct message_events *ret_head, char *error);
/* index below the count that message_decode_events() gave. */
void message_event_at(const struct message *message, uint32_t index, struct trace_event *ret_event);
SSV_MUST_CHECK int message_decode_completions(const struct message *message, uint32_t *ret_count,
					      char *error);
/* index below the count that message_decode_completions() gave. */
void message_completion_at(const struct message *message, uint32_t index,
			   struct ssv_completion *ret_completion);

#endif
