/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shadowserve.h - talk to shadowserved, the data plane that keeps KV caches in a store.
 *
 * The model. An engine process connects, registers its paged KV memory (a region and its layout)
 * and submits requests. The daemon moves the bytes; this library only passes messages over a Unix
 * socket. Every accepted request has exactly one completion, taken with ssv_poll().
 *
 *	ssv_connect -> ssv_region_register -> { ssv_submit, ssv_poll }* -> ssv_close
 *
 * Words: a chunk is the KV of SSV_CHUNK_TOKENS consecutive tokens of one tensor-parallel rank, all
 * its layers. A block is the engine's page of block_tokens tokens. A part is K, V or a latent; a
 * tensor is one (layer, part).
 *
 * Errors: every function returns 0 (or a count >= 0) or a negative errno; errno is no output.
 * Completions carry the same values in status:
 *
 *	-ENOENT     miss: compute the KV yourself
 *	-EAGAIN     a queue is full: poll, then submit again (nothing was accepted)
 *	-ETIMEDOUT  the deadline passed; the request is over
 *	-ECANCELED  cancelled by the caller
 *	-EBADMSG    stored data failed a check: counts as a miss
 *	-ENOTCONN   no daemon: it died (proven), or the session is closed
 *	-EPROTO     the peer broke the protocol or speaks another version
 *	-ENOTSUP    not supported by this daemon, store or region
 *	-EIO        a store or transport failed below the daemon
 *	-EINVAL, -ENOMEM, -E2BIG, -ENOSPC  the caller's mistake or a stated limit
 *
 * Threads: one handle is used by one thread at a time; different handles may be used at the same
 * time. The library starts no threads and installs no signal handlers.
 * Fork: a handle is invalid in the child, where every call returns -ENOTCONN; its descriptors are
 * close-on-exec.
 * Numbers are little endian on the wire; structs below are host order. Zero means "default" in
 * every options field; reserved fields must be zero.
 */
#ifndef SHADOWSERVE_H
#define SHADOWSERVE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SSV_API __attribute__((visibility("default")))

#define SSV_VERSION_MAJOR 0
#define SSV_VERSION_MINOR 1
#define SSV_VERSION_PATCH 0

/* Limits. A request beyond one is refused with -E2BIG. */
#define SSV_CHUNK_TOKENS     256   /* tokens a chunk */
#define SSV_KEYS_MAX         4096  /* keys a request, all ranks together */
#define SSV_BLOCKS_MAX       65536 /* blocks a request */
#define SSV_RANKS_MAX        64    /* tensor-parallel ranks of one engine */
#define SSV_PARTS_MAX        4     /* parts (K, V, latent ...) of a layout */
#define SSV_DIGITS_MAX       24    /* digits of one part */
#define SSV_TENSORS_MAX      1024  /* tensors (layers x parts) of a region */
#define SSV_BLOCK_TOKENS_MAX 256   /* must divide SSV_CHUNK_TOKENS */
#define SSV_HEADS_MAX        1024
#define SSV_CHANNELS_MAX     8192 /* heads x dim of a part */
#define SSV_REQUESTS_MAX     1024 /* requests in flight a session */
#define SSV_ENGINE_ID_MAX    64   /* bytes of an engine id, with its end */
#define SSV_ERROR_TEXT_MAX   256  /* bytes of a refusal's text, with its end */

struct ssv; /* one session with a daemon */

/** A chunk's key: 32 bytes of SHA-256 (see ssv_key_chain). */
struct ssv_key {
	uint8_t bytes[32];
};

enum ssv_dtype {
	SSV_DTYPE_BF16 = 0,
	SSV_DTYPE_FP16 = 1,
	SSV_DTYPE_FP32 = 2,
	SSV_DTYPE_E4M3 = 3, /* fp8 e4m3fn */
	SSV_DTYPE_E5M2 = 4, /* fp8 e5m2 */
};

/** Ratio against fidelity; a finer tier has a smaller number. */
enum ssv_tier {
	SSV_TIER_DEFAULT = 0, /* the daemon's configuration */
	SSV_TIER_LOSSLESS = 1,
	SSV_TIER_HIGH = 2,
	SSV_TIER_STANDARD = 3,
	SSV_TIER_COMPACT = 4,
	SSV_TIER_TINY = 5,
};

/** Lossless back end. The wire id in the container is this value minus one. */
enum ssv_codec {
	SSV_CODEC_DEFAULT = 0,
	SSV_CODEC_STORED = 1,
	SSV_CODEC_DEFLATE = 2,
	SSV_CODEC_R16 = 3,
	SSV_CODEC_ZSTD = 6,
};

enum ssv_role {
	SSV_ROLE_K = 1,
	SSV_ROLE_V = 2,
	SSV_ROLE_LATENT = 3,
};

enum ssv_axis {
	SSV_AXIS_TOKEN = 0,
	SSV_AXIS_HEAD = 1,
	SSV_AXIS_DIM = 2,
};

/* ---- connecting ---------------------------------------------------------------------------- */

/** Set struct_size = sizeof(struct ssv_options) and zero the rest; the library reads no further. */
struct ssv_options {
	uint32_t struct_size;
	uint32_t connect_timeout_ms; /* 0: 1000 */
	const char *socket_path;     /* NULL: $SHADOWSERVE_SOCKET, else ssv_default_socket() */
	const char *engine_id;       /* sessions of one engine share it; printable ASCII;
				      * NULL: "pid-<pid>" */
	uint32_t rank;               /* tensor-parallel rank of this session's regions */
	uint32_t ranks_count;        /* 0: 1 */
	uint32_t flags;              /* must be 0 */
	uint32_t reserved;
};

/**
 * Connect to a daemon and agree on the protocol version.
 *
 * Ownership: *ret_ssv is owned, end it with ssv_close(). error (may be NULL) receives one line that
 *            says what is wrong, in SSV_ERROR_TEXT_MAX bytes.
 * Threads:   blocks up to connect_timeout_ms.
 * Errors:    -ENOTCONN nobody listens; -EPROTO another version; -EACCES another user's socket;
 *            -ETIMEDOUT; -EINVAL; -ENOMEM.
 */
SSV_API int ssv_connect(const struct ssv_options *options, struct ssv **ret_ssv, char *error);

/** End the session. Requests in flight lose their completions; the daemon stops them before it
 *  forgets the regions. Returns at once; takes NULL. To be sure that nothing touches the memory
 *  any more, take all completions first, or call ssv_region_unregister(). */
SSV_API void ssv_close(struct ssv *ssv);

/** A descriptor that polls readable when ssv_poll() has something to do. Lent until ssv_close(). */
SSV_API int ssv_fd(const struct ssv *ssv);

/** A pidfd of the daemon: readable means that the daemon is dead, the only proof short of a
 *  completion that nothing writes any more. Lent until ssv_close(). */
SSV_API int ssv_daemon_pidfd(const struct ssv *ssv);

/** 1 while requests can be submitted, 0 once the session is closed or the daemon is gone. */
SSV_API int ssv_is_open(const struct ssv *ssv);

/** Write the default socket's path: $XDG_RUNTIME_DIR or /tmp, with uid and protocol version in
 *  the name. Errors: -E2BIG the path does not fit. */
SSV_API int ssv_default_socket(char *path, size_t path_bytes);

/* ---- regions ------------------------------------------------------------------------------- */

/**
 * One digit of an index. A token, head or dim index is written in mixed radix, its least
 * significant digit first in the list; an element's place in its block is the sum of digit x
 * stride over all digits. Example, K[dim][token] of a head, block of 32, dim 64:
 * {TOKEN,32,1}, {DIM,64,32}, {HEAD,heads,2*64*32}.
 */
struct ssv_digit {
	uint8_t axis; /* enum ssv_axis */
	uint8_t reserved;
	uint16_t extent; /* 2 or more, or 1 for an axis of one element */
	uint32_t reserved2;
	int64_t stride; /* elements, >= 0 */
};

/** K, V or a latent: what it is and how a block holds it. Extents of an axis multiply to
 *  block_tokens, heads and dim. */
struct ssv_part {
	uint8_t role; /* enum ssv_role */
	uint8_t reserved;
	uint16_t head0; /* first head of this rank */
	uint16_t heads; /* heads of this rank */
	uint16_t dim;
	uint32_t digits_count;
	struct ssv_digit digits[SSV_DIGITS_MAX];
};

/** One (layer, part): element (block b, index i) lies at offset + b * block_stride + place(i). */
struct ssv_tensor {
	uint16_t layer; /* 0-based within this region; the model's layer is layer0 + layer */
	uint16_t part;  /* index in parts */
	uint32_t reserved;
	uint64_t offset;       /* bytes from the region's start */
	uint64_t block_stride; /* bytes from block to block */
};

struct ssv_layout {
	uint32_t struct_size;
	uint8_t dtype; /* enum ssv_dtype */
	uint8_t parts_count;
	uint16_t layer0, layers_count, layers_total; /* this region's layers among the model's */
	uint16_t rank, ranks_count;                  /* tensor parallel */
	uint32_t block_tokens;                       /* divides SSV_CHUNK_TOKENS */
	uint32_t blocks_count;
	uint32_t tensors_count; /* layers_count x parts_count */
	uint8_t model[8];       /* fingerprint of the model, goes into the container */
	struct ssv_part parts[SSV_PARTS_MAX];
	const struct ssv_tensor *tensors; /* borrowed for the call */
};

enum ssv_memory {
	SSV_MEMORY_MEMFD = 1,   /* fd, sealed with F_SEAL_SHRINK; mapped by the daemon */
	SSV_MEMORY_ADDRESS = 2, /* an address range of this process; cross-memory attach */
	SSV_MEMORY_GPU_IPC = 3, /* memory of an NVIDIA GPU by cuIpcGetMemHandle() (cudaMalloc) */
	SSV_MEMORY_GPU_FD = 4,  /* the same by cuMemExportToShareableHandle(), POSIX descriptor */
	SSV_MEMORY_TCP = 5,     /* of a relay, never an engine's: memory behind its data port */
	SSV_MEMORY_RDMA = 6,    /* of a relay, never an engine's: memory registered for RDMA */
};

struct ssv_region {
	uint32_t struct_size;
	uint32_t memory; /* enum ssv_memory */
	int32_t fd;      /* MEMFD, GPU_FD: borrowed for the call */
	uint32_t reserved;
	uint64_t address; /* ADDRESS: start in this process; else 0 */
	uint64_t bytes;
	/* GPU_IPC, GPU_FD; else 0 */
	uint8_t gpu_uuid[16];   /* cuDeviceGetUuid_v2() */
	uint8_t gpu_handle[64]; /* GPU_IPC: of the allocation that holds the region */
	uint64_t gpu_offset;    /* bytes from the allocation's start to the region's */
};

/**
 * Register KV memory. The daemon checks that every tensor lies inside the region, that no two
 * elements share a byte, and that its arena can serve this shape; a refusal names the numbers.
 *
 * Ownership: the memory stays the caller's; the daemon touches it only inside requests.
 * Threads:   blocks up to 5 s.
 * Errors:    -EINVAL layout wrong; -ERANGE outside the region; -ENOSPC the arena is too small;
 *            -EPERM memfd not sealed, or cross-memory attach not permitted; -ENODEV the daemon
 *            does not see this GPU; -ENOTSUP copies too short for copy engines; -E2BIG; -ENOTCONN.
 * A STORE from GPU memory is submitted after the kernels that write its blocks have ended; a
 * FETCH's completion means that the bytes are in the GPU's memory, for kernels enqueued later.
 */
SSV_API int ssv_region_register(struct ssv *ssv, const struct ssv_region *region,
				const struct ssv_layout *layout, uint32_t *ret_region_id,
				char *error);

/** Unregister: cancels what is in flight on the region and returns when nothing touches it any
 *  more. Completions of those requests can still be polled. Errors: -ENOENT, -ETIMEDOUT (the
 *  region must then be kept alive until the daemon's death is proven), -ENOTCONN. */
SSV_API int ssv_region_unregister(struct ssv *ssv, uint32_t region_id, uint32_t timeout_ms);

/* ---- requests ------------------------------------------------------------------------------ */

enum ssv_op {
	SSV_OP_LOOKUP = 1,
	SSV_OP_FETCH = 2,
	SSV_OP_STORE = 3,
	SSV_OP_CANCEL = 4,
	SSV_OP_FLUSH = 5,
};

/**
 * One request. Fields that an operation does not name must be zero.
 *
 * LOOKUP keys, ranks_count, min_tier. keys is [ranks_count][keys_count / ranks_count]: how many
 *        leading chunks are stored for every rank? 0 until each rank of this engine has a region.
 *        Chunks that a FETCH was refused lately (coarser than min_tier, say) are not counted.
 *        Completion: tokens, estimate_us.
 * FETCH  keys, region, blocks, first_token, position, deadline_ms, min_tier. Blocks hold the tokens
 *        first_token, first_token + block_tokens, ... counted from the start of keys[0]'s chunk;
 *        first_token is a multiple of block_tokens below SSV_CHUNK_TOKENS, and the blocks end
 *        inside the last key's chunk. No other block is written. Completion: tokens in place,
 *        a whole number of blocks counted from first_token; status says why it stopped short.
 *        The completion promises that nothing will touch these blocks again.
 * STORE  keys, region, blocks, position, tier, codec. Blocks hold whole chunks, the last one may be
 *        short (a whole number of blocks; its key is that of ssv_key_chain() with chunk_tokens so
 *        short). Completes when the source blocks are captured: no longer read. tokens: how many
 *        were captured; status -EAGAIN when dropped for overload. Whether the store took them shows
 *        in ssv_stat().
 * CANCEL target: the user_data of a FETCH, STORE or LOOKUP in flight. The target completes (with
 *        -ECANCELED, unless it was done before) once it is quiescent, then this one completes.
 * FLUSH  deadline_ms. Completes when every STORE of this session accepted before it has been put,
 *        or dropped.
 */
struct ssv_request {
	uint8_t op;       /* enum ssv_op */
	uint8_t tier;     /* STORE: enum ssv_tier */
	uint8_t codec;    /* STORE: enum ssv_codec */
	uint8_t min_tier; /* FETCH, LOOKUP: coarsest tier accepted; 0: any */
	uint32_t region;
	uint64_t user_data; /* unique among this session's requests in flight */
	uint64_t target;
	const struct ssv_key *keys; /* borrowed for the call */
	const uint32_t *blocks;     /* borrowed for the call; numbers below blocks_count */
	uint32_t keys_count;
	uint32_t blocks_count;
	uint32_t ranks_count; /* LOOKUP; 0: 1 */
	uint32_t first_token;
	uint32_t position;    /* token position of keys[0]'s chunk in its sequence */
	uint32_t deadline_ms; /* FETCH, FLUSH; 0: the daemon's default */
};

struct ssv_completion {
	uint64_t user_data;
	uint8_t op; /* enum ssv_op */
	uint8_t reserved[3];
	int32_t status; /* 0, or why it stopped short */
	uint32_t tokens;
	uint32_t estimate_us; /* LOOKUP: expected time of a FETCH of these tokens; 0: unknown */
	uint64_t wire_bytes;  /* FETCH: compressed bytes received for the tokens in place */
	uint64_t kv_bytes;    /* FETCH, STORE: bytes of KV written or read */
	uint64_t elapsed_us;  /* in the daemon */
};

/**
 * Submit a batch, in order.
 *
 * Returns how many were accepted, from the front; less than count when a queue is full or a
 * request is bad. If the first one is not accepted: -EAGAIN, -EINVAL, -E2BIG, -ENOENT (region) or
 * -ENOTCONN. Accepted means that exactly one completion will follow, whatever happens.
 * Threads: does not block.
 */
SSV_API int ssv_submit(struct ssv *ssv, const struct ssv_request *requests, uint32_t count);

/**
 * Take completions.
 *
 * Returns how many were written, 0 when none came within timeout_ms (0: do not wait, -1: no limit)
 * or a signal interrupted the wait.
 * When the daemon's death is proven, or it closed the session after quiescence, every request in
 * flight completes with -ENOTCONN; when all are taken, or the socket ended with none in flight:
 * -ENOTCONN. The library never completes a request by its own clock, nor because the socket ended
 * while the daemon lives.
 */
SSV_API int ssv_poll(struct ssv *ssv, struct ssv_completion *completions, uint32_t max,
		     int timeout_ms);

/** Requests accepted and not yet polled. */
SSV_API uint32_t ssv_in_flight(const struct ssv *ssv);

/** One line that says why the session ended, or "" while it is open. Lent until ssv_close(). */
SSV_API const char *ssv_close_reason(const struct ssv *ssv);

/**
 * The daemon's state as one JSON object (sessions, regions, pools, stores, counters).
 *
 * Returns its length; -E2BIG when json_bytes is too small. Blocks up to timeout_ms.
 */
SSV_API int ssv_stat(struct ssv *ssv, char *json, size_t json_bytes, uint32_t timeout_ms);

/* ---- keys ---------------------------------------------------------------------------------- */

/** What makes a chunk's bytes what they are, apart from its tokens. Zeroed fields count too. */
struct ssv_key_root {
	uint32_t struct_size;
	uint8_t dtype;
	uint8_t parts_count;
	uint16_t layer0, layers_count, layers_total;
	uint16_t rank, ranks_count;
	uint32_t chunk_tokens;    /* 0: SSV_CHUNK_TOKENS */
	const char *name_space;   /* NULL: "" */
	const char *tenant_salt;  /* NULL: "" */
	uint8_t model_digest[32]; /* configuration, quantisation settings, sampled weight bytes */
	uint8_t rope_digest[32];  /* positional settings not in the model's files */
	struct {
		uint8_t role, reserved;
		uint16_t head0, heads, dim;
	} parts[SSV_PARTS_MAX];
};

/** The root of a key chain: SHA-256 over the fields' canonical encoding (docs/container.md).
 *  The same on every machine. Errors: -EINVAL. */
SSV_API int ssv_key_make_root(const struct ssv_key_root *root, struct ssv_key *ret_key);

/**
 * Keys of the full chunks of a token sequence:
 * key[i] = SHA-256(key[i-1] || tokens of chunk i as u32 little endian || extra[i]).
 *
 * Shape: tokens[tokens_count]; extra (may be NULL) [tokens_count / chunk_tokens] digests of what
 *        else shaped a chunk (LoRA files, multimodal content), all zero for nothing;
 *        ret_keys[tokens_count / chunk_tokens]. previous: the root, or the key before tokens[0].
 * Returns the number of keys; -EINVAL.
 */
SSV_API int ssv_key_chain(const struct ssv_key *previous, uint32_t chunk_tokens,
			  const uint32_t *tokens, size_t tokens_count, const struct ssv_key *extra,
			  struct ssv_key *ret_keys, size_t keys_max);

/** Version of the library, "0.1.0". */
SSV_API const char *ssv_version(void);

#ifdef __cplusplus
}
#endif
#endif
