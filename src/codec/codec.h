/* SPDX-License-Identifier: Apache-2.0 */
/*
 * codec.h - between a chunk's KV in canonical order and its container.
 *
 * Quantiser, class planes and lossless back ends are described in docs/codec.md (normative). The
 * same input gives the same bytes on every machine. Nothing allocates but codec_scratch_init(): the
 * caller brings scratch memory of codec_scratch_bytes(), and every `scratch` below is such memory.
 *
 * Threads: functions are pure; one scratch memory is used by one thread at a time.
 */
#ifndef SSV_CODEC_H
#define SSV_CODEC_H

#include "chunk/builder.h"
#include "chunk/container.h"
#include "codec/profile.h"

/* Scratch for encoding and decoding chunks whose parts have up to channels_max channels each. */
uint64_t codec_scratch_bytes(uint32_t channels_max);

/**
 * Prepare scratch memory, once, before anything is encoded or decoded with it.
 *
 * Ownership: memory is embedded, 64-byte aligned, until codec_scratch_fini(). One small object of
 *            libdeflate is allocated here; nothing is allocated later.
 * Errors:    -EINVAL channels_max or alignment; -E2BIG bytes below codec_scratch_bytes(); -ENOMEM.
 */
SSV_MUST_CHECK int codec_scratch_init(void *memory, uint64_t bytes, uint32_t channels_max);
void codec_scratch_fini(void *memory); /* takes NULL and zeroed memory */

/* ---- decoding ------------------------------------------------------------------------------- */

/**
 * Where one tensor goes: element (t, c) is written to token[t] + channel[c]. token[t] == NULL: the
 * token is not wanted and nothing is written for it. Shape: token[tokens], channel[channels].
 */
struct decode_target {
	uint8_t *const *token;
	const uint32_t *channel; /* byte offsets */
	uint32_t run_channels;   /* channels per run of adjacent elements: c..c+run-1 contiguous */
	uint32_t token_stride;   /* bytes between tokens of one block if constant and small (a
				  * transposed layout), else 0; informative, for tile writers */
	uint8_t is_staged;       /* what is written is read again at once: keep it in the caches */
};

/**
 * Verify and decode entry `index` of an opened container; its wire data must have arrived.
 *
 * Shape:  targets[entry.tensors_count].
 * Errors: -EBADMSG with *ret_fault; targets may then hold partial output, but nothing outside
 *         them is ever written.
 */
SSV_MUST_CHECK int segment_decode(const struct container *container, uint32_t index,
				  const struct decode_target *targets, void *scratch,
				  enum container_fault *ret_fault);

/* One raw Deflate stream of known length: what an inflate engine needs of a `deflate` entry. */
struct segment_stream {
	const uint8_t *in; /* readable for CONTAINER_SLACK_BYTES past the end */
	uint32_t in_bytes, out_bytes;
};

/* The stream of entry `index`: 1, or 0 when its codec is another. */
int segment_stream(const struct container *container, uint32_t index,
		   struct segment_stream *ret_stream);

/**
 * segment_decode() of an entry whose stream was inflated elsewhere, to pairs[out_bytes]. Its wire
 * data must have passed container_segment_check(). Nothing is believed of pairs: unless their
 * checksum is the entry's, -EBADMSG and nothing is written.
 */
SSV_MUST_CHECK int segment_decode_inflated(const struct container *container, uint32_t index,
					   const uint8_t *pairs,
					   const struct decode_target *targets, void *scratch,
					   enum container_fault *ret_fault);

/* ---- encoding ------------------------------------------------------------------------------- */

struct encode_options {
	uint8_t tier;            /* enum ssv_tier, not DEFAULT */
	uint8_t codec;           /* enum ssv_codec, not DEFAULT */
	uint8_t verbatim_tokens; /* leading tokens kept exact; 0 except at position 0 */
	uint8_t trellis;         /* 1: lossy tiers in fewer bytes, encoded slowly; r16 alone */
	/* Over it: the next finer tier. 0: what the profile expects, or the tier's default. */
	float error_max[SSV_PARTS_MAX];
	const struct encode_profile
	    *profile; /* borrowed until encoder_finish(); NULL: uniform steps */
};

struct chunk_identity {
	struct ssv_key key;
	uint8_t model[8];
	uint32_t first_token;
};

/* A chunk being encoded, tensor by tensor, so that the caller can do other work in between. */
struct encoder {
	struct builder builder;
	struct encode_options options;
	void *scratch;
	double error_sum[SSV_PARTS_MAX], norm_sum[SSV_PARTS_MAX];
	uint32_t next_tensor;   /* layer * parts_count + part */
	uint32_t finer_tensors; /* coded finer than asked for, because of their error */
	float last_error;       /* relative L2 error of the last tensor */
};

/* Begin a chunk in out, which holds shape_container_bytes_max() + CONTAINER_SLACK_BYTES. -EINVAL:
 * options, shape, or a profile that does not fit it. */
SSV_MUST_CHECK int encoder_begin(struct encoder *encoder, const struct chunk_identity *identity,
				 const struct chunk_shape *shape,
				 const struct encode_options *options, uint8_t *out,
				 uint64_t out_capacity, void *scratch);

/* Encode the next tensor (layer-major, then part) from canonical order. */
SSV_MUST_CHECK int encoder_tensor(struct encoder *encoder, const uint8_t *elements);

/* Finish after the last tensor. */
SSV_MUST_CHECK int encoder_finish(struct encoder *encoder, uint64_t *ret_bytes);

/* ---- names and capabilities ----------------------------------------------------------------- */

const char *tier_name(uint8_t tier);             /* "lossless" ...; NULL: no such tier */
uint8_t tier_parse(const char *name);            /* 0: no such tier */
const char *codec_name(uint8_t codec);           /* enum ssv_codec; NULL: no such codec */
const char *wire_codec_name(uint8_t wire_codec); /* of an entry; NULL: unknown to this build */
uint8_t codec_parse(const char *name);           /* 0: no such codec */

#endif
