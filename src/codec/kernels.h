/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernels.h - the inner loops, behind one dispatch table.
 *
 * kernels_scalar is the reference: another table must produce the same bytes from the same input,
 * and on damaged input the same verdict. Kernels trust their jobs (lengths, raw bits, frequencies
 * were checked before); what r16_strip finds wrong with a stream it notes there.
 *
 * Threads: kernels_use() before others run; everything else at any time.
 */
#ifndef SSV_CODEC_KERNELS_H
#define SSV_CODEC_KERNELS_H

#include "base/base.h"
#include "chunk/container.h"
#include "codec/float.h"
#include "codec/lanes.h"

#define R16_STREAMS_MAX  4u
#define R16_STATES_BYTES 128u
#define STRIP_TOKENS_MAX 64u /* tokens that a strip may have */

/* Where a stream stands between two strips. */
struct r16_stream {
	_Alignas(CACHE_LINE_BYTES) uint8_t low[LANES]; /* bytes of the lanes' states */
	uint8_t high[LANES];
	const uint8_t *next, *end; /* readable for 64 bytes past end */
	uint32_t over;             /* 1: it was read past its end, it is damaged */
};

/* A group's frequencies as a level wants them: each fills what it reads. */
struct r16_table {
	_Alignas(CACHE_LINE_BYTES) uint8_t symbol[256 + CACHE_LINE_BYTES]; /* owner of a slot */
	uint32_t slot[256]; /* f << 16 | (slot - c) << 8 | owner */
	uint8_t frequency[16], start[16];
	/* owner = base of the slot's upper half byte + how many of its bounds lie below it */
	uint8_t base[16], bound[16][16];
	uint32_t bounds_count;
};

/* The same tokens of one group of each of some streams. */
struct r16_strip {
	struct r16_stream *stream[R16_STREAMS_MAX];
	const struct r16_table *table;     /* [streams_count] */
	uint8_t *classes[R16_STREAMS_MAX]; /* [tokens][64], lane order */
	uint32_t lanes[R16_STREAMS_MAX];   /* of the group: less than 64 in one of them at most */
	uint32_t streams_count, tokens;
};

/* An element that takes another's place. */
struct patch {
	uint16_t token, place, element;
};

#define FUSED_ROW_BYTES (2 * LANES)

/* All tokens of full bf16 groups, one of each stream, from streams to whole cache lines at once. */
struct fused_job {
	struct r16_strip r16;                         /* without classes */
	const struct tile_job *tile[R16_STREAMS_MAX]; /* without classes and tile */
	const struct patch *patch[R16_STREAMS_MAX]; /* by token; ends with a token past the last */
	uint8_t *const *token;                      /* aligned to a line, or NULL: not wanted */
	uint32_t place[R16_STREAMS_MAX];            /* of each group in a token */
	/* Rows of every second stream, kept back for a round: fuse_template.h says what for. */
	uint8_t *held; /* [tokens][R16_STREAMS_MAX / 2][FUSED_ROW_BYTES], aligned to a line */
	uint32_t held_place[R16_STREAMS_MAX];
	uint8_t stores_held; /* `held` has rows of the round before */
	uint8_t holds;       /* rows of this round are to be left there */
	uint8_t is_staged;   /* what is stored is read again at once: not past the caches */
	/* Bytes that will be wanted soon: brought near while there is time. Need not be readable.
	 */
	const uint8_t *soon;
	uint32_t soon_lines; /* a token */
};

/* The streams of a plane, each written backwards from its end. */
struct r16_encode_job {
	const struct class_plane *plane;
	const uint8_t *frequency; /* [groups][16] */
	uint32_t streams_count;
	/* before it: R16_STATES_BYTES, a byte a symbol of the stream, 64 bytes more */
	uint8_t *end[R16_STREAMS_MAX];
	uint8_t *begin[R16_STREAMS_MAX]; /* results */
};

/* Stream k of S holds groups k*n/S .. (k+1)*n/S - 1 of the plane's n. */
static inline uint32_t stream_group0(uint32_t stream, uint32_t streams, uint32_t groups)
{
	return stream * groups / streams;
}

/*
 * Parameters of a group's lanes. Integers stand in split order (even lanes, then odd ones), scales
 * in fours (lanes 0, 4, 8 ..., then 1, 5, 9 ...): so that vectors are loaded as they are.
 */
struct tile_lanes {
	_Alignas(CACHE_LINE_BYTES) int16_t offset[LANES];
	int16_t delta[LANES];   /* -1 where the previous token is the base */
	int16_t integer[LANES]; /* the previous token's integers; before the first: offset */
	float scale[LANES];
	uint8_t has_delta;
	uint8_t has_one_scale; /* a full group inside a head, without factors */
	uint8_t is_uniform;    /* that, and no offset, no delta */
	/* trellis (trellis.h), 0 or 1: the token's quantiser, and the parity carried; split order
	 */
	int16_t is_odd[LANES], carry[LANES];
};

static inline uint32_t lane_split(uint32_t lane)
{
	return (lane & 1) * (LANES / 2) + lane / 2;
}

static inline uint32_t lane_four(uint32_t lane)
{
	return (lane & 3) * (LANES / 4) + lane / 4;
}

/* Some tokens of one group of one tensor, from classes and raw bits to elements in place order. */
struct tile_job {
	const uint8_t *classes; /* [tokens][64], lane order */
	const uint8_t *raw;     /* [tokens][ceil(lanes * raw_bits / 8)], then 64 readable bytes */
	uint32_t tokens, lanes, raw_bits;
	uint8_t dtype;
	uint8_t is_trellis;      /* symbols are of trellis.h; its lanes' state is moved on */
	const uint8_t *exponent; /* lossless: [16] */
	struct tile_lanes *lane; /* quantised; its integers are moved on */
	uint8_t *tile;           /* [tokens][64] elements, aligned to a cache line */
};

/* Elements of one group to where they belong. */
struct write_job {
	const uint8_t *elements; /* [tokens] rows of row_bytes, the group's places in order */
	uint32_t row_bytes;
	uint32_t tokens, lanes, element_bytes;
	const uint32_t *place; /* [lanes]: byte offset of each place in a token */
	uint8_t *const *token; /* [tokens]: NULL: not wanted */
	uint32_t run_bytes;    /* places lie together in runs of so many bytes; divides a row */
	/* Not 0: all tokens are wanted, and their runs lie one behind the other (a transposed
	 * layout): token[t] = token[0] + t * run_bytes, run_bytes is 1, 2, 4 or 8. */
	uint8_t is_transposed;
	uint8_t is_staged; /* what is stored is read again at once: not past the caches */
};

/*
 * One group of one tensor, as the encoder has it. All that encoding works with is in channel order;
 * only classes and raw bits come out in lane order.
 */
struct group_view {
	const uint8_t *elements; /* the group's first channel of token 0 */
	uint64_t row_bytes;
	uint32_t first, tokens; /* first: the first token that is coded */
	uint32_t lanes;
	uint8_t dtype;
};

/* Sums over tokens: runs of RUN_TOKENS (from `first` on) in fp32, the runs in fp64. */
#define RUN_TOKENS 16u

/* Sums of each channel over its finite elements. The view is of a whole tensor: lanes is all of its
 * channels. Results by channel. */
struct spread_job {
	struct group_view view;
	double *sum, *square;
	float *peak; /* largest magnitude; of the finite elements only, if count is less than all */
	uint32_t *count;
};

/*
 * Adds the squares of a token's channels to power[token], fp32: for i < 16 four squares in the
 * order of channels 2i, 2i+1, 32+2i, 33+2i, then the 16 sums by halves (i and i+8, i and i+4, ...).
 * Elements that are not finite, or no channel of the head, count as 0.
 */
struct power_job {
	struct group_view view;
	uint32_t channel0, channel_end; /* of the head, in the group */
	float *power;
};

/* One group of one tensor, lossless: how often each exponent occurs. */
struct exponent_job {
	struct group_view view;
	uint32_t count[256];
};

/* One group of one tensor, lossless: exponents to classes, sign and mantissa to raw bits. */
struct split_job {
	struct group_view view;
	uint8_t other_class;     /* for exponents without a class */
	const uint8_t *class_of; /* [256]: by exponent; 16: none */
	uint8_t *classes;        /* [tokens][64], lane order */
	uint8_t *raw;            /* and 8 writable bytes past it */
	uint64_t *outside;       /* [tokens]: channels without a class */
	uint32_t count[16];      /* result: of each class */
};

/*
 * Elements to integers: value * inverse, rounded to a multiple of 1 / FRACTIONS (nearest even),
 * then to the nearest integer (up from the middle), or INTEGER_NONE when the product is not finite
 * or beyond INTEGER_MAX either way. An inverse has 16 significant bits: a bf16's product is exact.
 *
 * is_shaped: what the last rounding of the same channel's token before left over, a number of
 * 1 / FRACTIONS, is multiplied by FEEDBACK (down to a whole number) and added before that rounding.
 * INTEGER_NONE leaves nothing, nor is there anything before the first token.
 */
struct quantise_job {
	struct group_view view;
	const float *inverse; /* [64]: 1 / scale; 0 for idle channels */
	uint8_t is_small;     /* all are finite, and none is beyond INTEGER_SMALL */
	uint8_t is_shaped;    /* not with is_sample */
	uint8_t is_sample; /* only tokens that sample_takes() takes, and the one before each run */
	int16_t *integers; /* [tokens][64]: from `first` on */
};

#define INTEGER_NONE  INT16_MIN
#define INTEGER_MAX   32000
#define INTEGER_SMALL 4095
#define FRACTIONS     128 /* of a step */

/* Of what a rounding left over (-FRACTIONS / 2 .. FRACTIONS / 2 - 1), what the next token gets.
 * With 3/8 squares of eight errors still fit 16 bits. */
#define FEEDBACK(left) ((left)*3 >> 3)

/* Choices are made from eight tokens of each 48, if there are many. */
#define SAMPLE_TOKENS_MIN 192u
#define SAMPLE_EVERY      48u
#define SAMPLE_TAKEN      8u

static inline int is_sampled(uint32_t first, uint32_t tokens)
{
	return tokens - first >= SAMPLE_TOKENS_MIN;
}

static inline int sample_takes(uint32_t first, uint32_t tokens, uint32_t token)
{
	return !is_sampled(first, tokens) || (token - first) % SAMPLE_EVERY < SAMPLE_TAKEN;
}

/*
 * Distances of each channel's integers to its offset and to the token before, where both are, in
 * some tokens (sample_takes).
 */
struct distance_job {
	const int16_t *integers;
	uint32_t first, tokens;
	uint8_t is_small;      /* none is INTEGER_NONE or beyond INTEGER_SMALL */
	const int16_t *offset; /* [64] */
	uint32_t to_offset[LANES], to_last[LANES];
};

#define RAW_CHOICES (RAW_BITS_MAX + 1)

/*
 * How often each class would occur with r raw bits, in some tokens (sample_takes), for those r that
 * can be the best (count_range).
 */
struct count_job {
	const int16_t *integers;
	uint32_t first, tokens, lanes;
	const int16_t *offset, *delta; /* [64] */
	/* results */
	uint32_t total; /* all symbols, those outside too */
	uint32_t r_first, r_last;
	uint32_t count[RAW_CHOICES][16]; /* r_first to r_last */
};

/* From the least r that leaves few symbols without a class to the least that leaves next to none.
 */
static inline void count_range(struct count_job *job, const uint32_t inside[RAW_CHOICES])
{
	job->r_first = 0;
	while (job->r_first < RAW_BITS_MAX && (job->total - inside[job->r_first]) * 16 > job->total)
		job->r_first++;
	job->r_last = job->r_first;
	while (job->r_last < RAW_BITS_MAX && (job->total - inside[job->r_last]) * 4096 > job->total)
		job->r_last++;
}

/* Of a run of tokens that a sampled quantise_job takes: the first, and one behind the last. */
static inline uint32_t quantise_run(const struct group_view *view, int is_sample, uint32_t token,
				    uint32_t *ret_end)
{
	if (!is_sample) {
		*ret_end = view->tokens;
		return token;
	}
	*ret_end = (uint32_t)u64_min(token + SAMPLE_TAKEN, view->tokens);
	return token > view->first ? token - 1 : token;
}

/*
 * Integers to classes and raw bits, each against the integer that the decoder will have. Where an
 * integer is out of reach the nearest symbol is taken, for INTEGER_NONE the middle one.
 */
struct pack_job {
	const int16_t *integers; /* [tokens][64] */
	uint32_t tokens, lanes, raw_bits;
	const int16_t *offset, *delta; /* [64]; delta: -1 where the previous token is the base */
	uint8_t *classes;              /* [tokens][64], lane order */
	uint8_t *raw;                  /* and 64 writable bytes past it */
	uint64_t *outside;             /* [tokens]: channels whose integer is not reproduced */
	uint32_t count[16];            /* result: of each class */
};

/*
 * Squares of errors and, if wanted, of values: channels as above, then added in order. bf16: errors
 * are whole FRACTIONS of a step, before what is decoded is rounded to bf16 (by 2^-9 of it at most),
 * so that their squares are added as integers. Others: of what will be decoded.
 */
struct measure_job {
	struct group_view view;
	const int16_t *integers;
	const float *scale, *inverse; /* [64]; 0 for idle channels */
	uint8_t wants_norm;
	uint64_t *outside;          /* count for neither; channels that overflow are added */
	double error_sum, norm_sum; /* results */
};

/*
 * quantise, pack and measure (without norm) at once, for a full bf16 group whose integers are small
 * (not beyond INTEGER_SMALL). What it leaves as integers means nothing.
 */
struct code_job {
	struct pack_job pack;
	struct measure_job measure;
	int16_t *integers;   /* [tokens][64]: room for them */
	uint8_t is_shaped;   /* as quantise_job's */
	const uint8_t *next; /* two cache lines a token that will be wanted soon, or NULL */
	/* result: a bit for each token with something outside; pack.outside means nothing of others
	 */
	uint64_t some_outside[SSV_CHUNK_TOKENS / 64];
};

/* Adding 1.5 * 2^16 leaves whole FRACTIONS in the low bits; half a step more, and their upper part
 * is the nearest integer. */
#define ROUND_BIAS      98304.5f
#define ROUND_BIAS_BITS 0x47c00000 /* of 98304 */
#define LIMIT_BITS      0x46fa0000 /* of (float)INTEGER_MAX */

/* One value as `quantise` makes an integer of it. */
static inline int16_t quantise_value(float x)
{
	int32_t bits = (int32_t)f32_bits(x);

	/* as integers, magnitudes beyond the limit, infinity and NaN are above */
	if ((bits & INT32_MAX) > LIMIT_BITS)
		return INTEGER_NONE;
	return (int16_t)(f32_bits(x + ROUND_BIAS) / FRACTIONS -
			 (uint32_t)ROUND_BIAS_BITS / FRACTIONS);
}
/* The last step of measure: channels in order. */
void measure_total(struct measure_job *job, const double error[LANES], const double norm[LANES]);
/* The same for bf16: squares in FRACTIONS of a step. */
void measure_fractions(struct measure_job *job, const uint32_t square[LANES],
		       const double norm[LANES]);

struct trellis_job;

struct kernels {
	const char *name;

	/* -EBADMSG: frequencies that do not sum to 256. */
	SSV_MUST_CHECK int (*r16_table)(struct r16_table *table, const uint8_t frequency[16]);
	void (*r16_strip)(const struct r16_strip *strip);
	/* scalar_fused: this level does it in parts. */
	void (*fused)(const struct fused_job *job);
	void (*dequantise)(const struct tile_job *job);
	void (*join)(const struct tile_job *job); /* lossless: exponent, sign and mantissa */
	void (*write)(const struct write_job *job);
	void (*write_end)(void); /* what was written is to be handed to another thread */

	void (*r16_encode)(struct r16_encode_job *job);
	void (*spread)(struct spread_job *job);
	void (*power)(const struct power_job *job);
	void (*quantise)(const struct quantise_job *job);
	void (*distance)(struct distance_job *job);
	void (*count)(struct count_job *job);
	void (*pack)(struct pack_job *job);
	void (*measure)(struct measure_job *job);
	/* scalar_code: this level does it in parts. */
	void (*code)(struct code_job *job);
	void (*trellis)(struct trellis_job *job); /* trellis.h */
	void (*exponents)(struct exponent_job *job);
	void (*split)(struct split_job *job);
};

extern const struct kernels kernels_scalar;

/* The table in use: the fastest that runs here, or the one that $SHADOWSERVE_SIMD names. */
const struct kernels *kernels_get(void);

/* The i-th table that runs on this machine, fastest first and kernels_scalar last; then NULL. */
const struct kernels *kernels_at(uint32_t index);
const struct kernels *kernels_find(const char *name); /* NULL: not here */
void kernels_list(char *text, size_t text_bytes);     /* their names, with commas */

/* Use this table from now on (NULL: the first choice again). For tests and benchmarks. */
void kernels_use(const struct kernels *kernels);

/* Is $SHADOWSERVE_SIMD, if set, a table that runs here? -EINVAL with a line for the user.
 * kernels_get() passes over one that does not. */
SSV_MUST_CHECK int kernels_check(char *error, size_t error_bytes);

#endif
