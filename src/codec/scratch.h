/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scratch.h - the inside of the caller's scratch memory: planes, one group's tile, and the state
 * of the library back ends, all laid out once so that nothing allocates for a segment.
 *
 * The memory belongs to one thread at a time; its content means nothing between two calls.
 */
#ifndef SSV_CODEC_SCRATCH_H
#define SSV_CODEC_SCRATCH_H

#include <zlib.h>

#include "codec/lanes.h"

#define PAIRS_BYTES_MAX    (2u << 20) /* class bytes of one entry that inflating may produce */
#define PATCHES_MAX        1024u      /* of a group that is decoded in one loop */
#define STREAM_EXTRA_BYTES 192u /* R16_STATES_BYTES, and what a vector may write before them */

struct class_strips;
struct patch;
struct libdeflate_decompressor;
struct ZSTD_CCtx_s;
struct ZSTD_DCtx_s;

/* Memory handed out from the front; what deflateInit and the zstd contexts live in. */
struct arena {
	uint8_t *bytes;
	uint64_t used, bytes_count;
};

struct codec_scratch {
	uint32_t channels_max, groups_max;
	uint8_t *classes; /* [groups_max][SSV_CHUNK_TOKENS][64] */
	uint8_t *pairs;   /* class pairs of an entry, inflated */
	uint32_t pairs_bytes;
	uint8_t *packed; /* class pairs of a tensor, to be coded */
	struct class_strips *strips;
	uint8_t *strip_classes;    /* [R16_STREAMS_MAX][STRIP_TOKENS_MAX][64] */
	uint8_t *tile;             /* a group's strip: [STRIP_TOKENS_MAX][64] elements */
	struct patch *patches;     /* [R16_STREAMS_MAX][PATCHES_MAX + 1] */
	uint8_t *held;             /* rows kept back (struct fused_job) */
	uint32_t *exception_first; /* [groups_max + 1]: of a tensor's exceptions, by group */
	uint32_t *raw_offset;      /* [groups_max + 1]: of a tensor's raw bits, by group */
	uint16_t *token_run;       /* [SSV_CHUNK_TOKENS]: tokens in step from one on */
	int16_t *integers;         /* encoding, one group: [SSV_CHUNK_TOKENS][64] */
	int16_t *symbols;          /* likewise, of a trellis */
	int32_t *targets;          /* likewise, what its integers shall come near to */
	uint8_t *exceptions;
	uint64_t exceptions_bytes;
	uint16_t *position;   /* [channels_max]: where a channel stands in the meta's order */
	uint8_t **rows;       /* transcoding: [SSV_CHUNK_TOKENS] */
	uint32_t *row_offset; /* [channels_max] */
	uint8_t *streams;     /* r16 encoding: a byte a symbol, STREAM_EXTRA_BYTES a stream */
	uint64_t *outside;    /* [SSV_CHUNK_TOKENS]: channels of the group that need an exception */
	double *sum, *square; /* [channels_max]: of a channel's values */
	uint32_t *count;      /* [channels_max]: how many they are */
	float *power;         /* [channels_max]: mean square of a channel */
	float *spread;        /* [channels_max]: its variance */
	float *mean;          /* [channels_max] */
	float *peak;          /* [channels_max]: its largest magnitude */
	uint16_t *steps;      /* [channels_max], by head */
	uint8_t *factor;      /* [channels_max]: step factors */
	uint8_t *raw_bits;    /* [groups_max] */
	uint8_t *frequency;   /* [groups_max][16] */
	uint8_t *exponent;    /* [groups_max][16] */
	int16_t *offset;      /* [channels_max] */
	uint8_t *delta;       /* [channels_max]: 0 or 1 */
	struct arena arena;
	z_stream deflate;
	struct libdeflate_decompressor *inflate; /* owned; the one thing outside the memory */
	struct ZSTD_CCtx_s *zstd_encode;
	struct ZSTD_DCtx_s *zstd_decode;
};

#endif
