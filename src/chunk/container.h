/* SPDX-License-Identifier: Apache-2.0 */
/*
 * container.h - container v1, the bytes of a chunk in a store: reading and checking it.
 *
 * Format: docs/container.md (normative). 256-byte header, segment table (48 B an entry), meta,
 * then the wire data of each segment. Reading is incremental: open as soon as header, table and
 * meta have arrived, then decode each segment once the watermark has passed its end.
 *
 * Nothing here allocates, writes or trusts a length: every offset is checked against total_len
 * before it is used. Bytes must stay readable for CONTAINER_SLACK_BYTES past the value's end.
 */
#ifndef SSV_CONTAINER_H
#define SSV_CONTAINER_H

#include <stdint.h>

#include "base/base.h"
#include "chunk/shape.h"

#define CONTAINER_HEADER_BYTES 256u
#define CONTAINER_ENTRY_BYTES  48u
#define CONTAINER_SLACK_BYTES  64u
#define CONTAINER_MAJOR        1u
#define CONTAINER_MINOR        0u
#define ENTRY_TENSORS_MAX      8u
#define WIRE_ALIGN_BYTES       64u
#define META_CLASSES           16u                /* classes of a group's table */
#define RAW_BITS_MAX           6u                 /* quantised tiers; lossless: dtype_raw_bits() */
#define INFLATED_BYTES_MAX     (2u * 1024 * 1024) /* class planes of an entry of several tensors */
#define R16_STREAM_BYTES_MIN   (4u + 128u)        /* its length and its states */
#define EXCEPTION_INDEX_BYTES  3u

/* Must flags that this version reads; one that it does not know is refused. */
enum container_must_flags {
	CONTAINER_MUST_TRELLIS = 2, /* there is an entry of WIRE_CODEC_TRELLIS */
};

/*
 * Wire ids of the lossless back ends: enum ssv_codec minus one. All but STORED code the same class
 * planes, so a new one takes a new id and nothing here changes. TRELLIS is r16 with other symbols
 * (docs/codec.md, section 1.1): behind a must flag, and no back end to choose. 6 is kept for r16
 * with 32 classes, and refused.
 */
enum wire_codec {
	WIRE_CODEC_STORED = 0,
	WIRE_CODEC_DEFLATE = 1,
	WIRE_CODEC_R16 = 2,
	WIRE_CODEC_ZSTD = 5,
	WIRE_CODEC_R16_32 = 6,
	WIRE_CODEC_TRELLIS = 7,
};

/* Why a container is refused: X(symbol, text for the log). */
#define CONTAINER_FAULTS(X)                             \
	X(NONE, "no fault")                             \
	X(TRUNCATED, "shorter than its header says")    \
	X(MAGIC, "not a container (magic)")             \
	X(VERSION, "unknown major version")             \
	X(HEADER_CRC, "header checksum")                \
	X(HEADER_FIELD, "header field out of range")    \
	X(MUST_FLAG, "unknown must flag")               \
	X(LENGTH, "length differs from the value's")    \
	X(KEY, "stored under another key")              \
	X(MODEL, "another model's fingerprint")         \
	X(SHAPE, "another shape")                       \
	X(POSITION, "another position in the sequence") \
	X(TIER, "coarser than the minimum tier")        \
	X(TABLE_CRC, "segment table or meta checksum")  \
	X(TABLE, "segment table inconsistent")          \
	X(META, "meta inconsistent")                    \
	X(CODEC, "codec unknown to this build")         \
	X(SEGMENT_CRC, "segment checksum")              \
	X(SEGMENT, "segment does not decode")           \
	X(EXCEPTION, "exception out of range or repeated")

enum container_fault {
#define CONTAINER_FAULT_ENUM(symbol, text) CONTAINER_FAULT_##symbol,
	CONTAINER_FAULTS(CONTAINER_FAULT_ENUM)
#undef CONTAINER_FAULT_ENUM
};

const char *container_fault_text(enum container_fault fault);

/* The header in host order. */
struct container_header {
	uint16_t major, minor;
	uint32_t header_bytes, total_bytes, must_flags, may_flags;
	struct ssv_key key;
	uint8_t model[8], profile[8];
	uint32_t first_token; /* position of the chunk's first token in its sequence */
	uint8_t verbatim_tokens;
	uint8_t tier; /* enum ssv_tier */
	struct chunk_shape shape;
	uint32_t segments_count, table_offset, meta_offset, meta_bytes, table_crc;
	uint64_t out_bytes;
	float error[SSV_PARTS_MAX]; /* relative L2 error per part, as the encoder measured it */
};

/*
 * One segment table entry in host order.
 *
 * STORED: wire data is the elements, [token][channel of the entry]; class, raw, exceptions, meta
 * and class_crc are 0. Otherwise wire data is class data, raw planes, exceptions, verbatim tokens,
 * together never longer than STORED. streams: R16 1, 2 or 4 and at most groups_count; others 1.
 * tensors > 1: DEFLATE only; whole tensors, groups_count is the first one's.
 */
struct container_entry {
	uint64_t offset; /* of the wire data, from the container's start */
	uint32_t wire_bytes, class_bytes, raw_bytes, exceptions_count;
	uint16_t layer; /* 0-based in this chunk */
	uint8_t part, codec;
	uint16_t group0, groups_count;
	uint8_t tensors_count, streams_count;
	uint32_t meta_offset, meta_bytes, wire_crc, class_crc;
};

/* What the reader asked for; a container that differs is a miss. */
struct container_expect {
	struct ssv_key key;
	uint64_t value_bytes;            /* length that the store reported */
	const struct chunk_shape *shape; /* NULL: any */
	uint32_t tokens_min;             /* 0: as many tokens as shape has; else at least these */
	const uint8_t *model;            /* 8 bytes; NULL: any */
	int64_t first_token;             /* -1: any */
	uint8_t min_tier;                /* coarsest accepted; 0: any */
	uint8_t any_key;                 /* 1: do not compare the key (inspection of files) */
};

struct container {
	const uint8_t *bytes; /* borrowed while the container is in use */
	struct container_header header;
};

/**
 * Open a container of which `received` bytes have arrived.
 *
 * Returns 0; -EAGAIN when header, table and meta have not all arrived (call again with more);
 * -EBADMSG or -ENOTSUP with *ret_fault set. Checks 1 to 11 of docs/container.md: all up to the
 * segments' own checksums, in the order given there.
 */
SSV_MUST_CHECK int container_open(struct container *container, const uint8_t *bytes,
				  uint64_t received, const struct container_expect *expect,
				  enum container_fault *ret_fault);

/* Entry i of a container that was opened. */
void container_entry(const struct container *container, uint32_t index,
		     struct container_entry *ret_entry);

/* The bytes that must have arrived before entry i can be decoded. */
static inline uint64_t container_entry_end(const struct container_entry *entry)
{
	return entry->offset + entry->wire_bytes;
}

/*
 * The bytes of entry i are what was written: its wire data's checksum, and zero padding before it.
 * Call it when the wire data has arrived and before anything of it is used.
 * Returns CONTAINER_FAULT_NONE or CONTAINER_FAULT_SEGMENT_CRC.
 */
SSV_MUST_CHECK enum container_fault container_segment_check(const struct container *container,
							    uint32_t index);

/* What tensor `tensor` of an entry covers: channels and heads are of the part, layer and part of
 * the chunk. An entry of some groups of a tensor covers their channels and every head they touch.
 */
struct tensor_extent {
	uint32_t layer, part;
	uint32_t group0, groups_count;
	uint32_t channel0, channels_count;
	uint32_t head0, heads_count;
};

void entry_extent(const struct chunk_shape *shape, const struct container_entry *entry,
		  uint32_t tensor, struct tensor_extent *ret_extent);

/* Bytes of the covered elements as they are, [token][channel]: what a STORED entry holds, and what
 * the wire data of any other entry must not exceed. */
uint64_t entry_stored_bytes(const struct chunk_shape *shape, const struct container_entry *entry);

/* Raw bits of a lossless symbol (sign and mantissa): bf16 8, fp16 11, fp32 24, e4m3 4, e5m2 3. */
uint32_t dtype_raw_bits(uint8_t dtype);
/* Largest biased exponent: 255, 31, 255, 15, 31. */
uint32_t dtype_exponent_max(uint8_t dtype);

enum tensor_flags {
	TENSOR_OFFSET_I8 = 1,
	TENSOR_OFFSET_I16 = 2,
	TENSOR_DELTA = 4,
	TENSOR_FACTOR = 8,
	TENSOR_ORDER = 16,
};

/*
 * Meta of one tensor of an entry; pointers into the container, NULL where a field is absent (all
 * of them in a STORED entry). Multi-byte elements are unaligned little endian.
 *
 * Groups and lanes count places: place p holds channel order[p], or p without an order. steps,
 * offsets, delta and factor count heads and channels. All are relative to the extent.
 */
struct tensor_meta {
	uint8_t flags; /* enum tensor_flags */
	uint32_t groups_count, channels_count, heads_count;
	const uint8_t *steps;     /* [heads] fp16 bits; lossless: NULL */
	const uint8_t *raw_bits;  /* [groups]; lossless: NULL */
	const uint8_t *frequency; /* [groups][16] */
	const uint8_t *exponent;  /* [groups][16]; lossless only */
	const uint8_t *offsets;   /* [channels] i8 or i16 */
	const uint8_t *delta;     /* bits [channels], least significant first */
	const uint8_t *factor;    /* [channels] */
	const uint8_t *order;     /* [channels] u16 */
};

/* Bytes of one tensor's meta. */
uint32_t tensor_meta_bytes(uint8_t flags, int lossless, uint32_t heads, uint32_t groups,
			   uint32_t channels);

/* Bytes of one tensor's raw planes: ceil(w * r / 8) for each (group, token), w lanes in use. */
uint64_t tensor_raw_bytes(const struct container_header *header, const struct tensor_meta *meta);

/* Meta of tensor `tensor` (0..tensors_count-1) of an entry; checked by container_open(). */
void container_tensor_meta(const struct container *container, const struct container_entry *entry,
			   uint32_t tensor, struct tensor_meta *ret_meta);

#endif
