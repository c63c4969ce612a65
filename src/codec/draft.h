/* SPDX-License-Identifier: Apache-2.0 */
/*
 * draft.h - one tensor on its way into a container: classes, raw bits, exceptions and meta, before
 * a back end codes the classes. quantise.c (lossy tiers) and exponents.c (lossless) fill it.
 *
 * Everything lies in the scratch memory except the raw bits, which are written at the far end of
 * the room for the entry's wire data and moved to their place later.
 */
#ifndef SSV_CODEC_DRAFT_H
#define SSV_CODEC_DRAFT_H

#include "chunk/container.h"
#include "codec/kernels.h"
#include "codec/scratch.h"
#include "codec/tier.h"

struct draft {
	/* The tensor: set by the encoder. */
	const uint8_t *elements; /* [tokens][channels] */
	const struct chunk_part *part;
	uint8_t dtype;
	uint32_t element_bytes, tokens, channels, groups, verbatim;
	struct codec_scratch *scratch;
	const struct kernels *kernels;
	/* From a profile, for the tier at hand: steps are scale x weight. NULL: uniform steps. */
	const float *weight;   /* [heads] */
	const uint8_t *factor; /* [channels] or NULL */
	float scale;
	uint8_t is_trellis;  /* symbols of trellis.h */
	uint8_t is_followed; /* the next tensor is likely to lie behind this one */
	struct class_plane plane;
	uint8_t *raw; /* room for the most raw bits that the dtype allows, and 8 bytes */

	/* What became of it. */
	uint32_t raw_bytes;
	uint32_t exceptions_count, exceptions_bytes;
	uint8_t flags;              /* enum tensor_flags */
	double error_sum, norm_sum; /* squares, over coded elements */
};

/* -E2BIG: more exceptions than are worth keeping; the tensor is to be stored. */
SSV_MUST_CHECK int draft_quantise(struct draft *draft, const struct tier *tier);
SSV_MUST_CHECK int draft_split(struct draft *draft);

static inline uint32_t draft_lanes(const struct draft *draft, uint32_t group)
{
	return plane_lanes(&draft->plane, group);
}

/* The first element of a group's first channel. */
static inline const uint8_t *draft_group(const struct draft *draft, uint32_t group)
{
	return draft->elements + (size_t)group * LANES * draft->element_bytes;
}

static inline struct group_view draft_view(const struct draft *d, uint32_t group)
{
	return (struct group_view){.elements = draft_group(d, group),
				   .row_bytes = (uint64_t)d->channels * d->element_bytes,
				   .first = d->verbatim,
				   .tokens = d->tokens,
				   .lanes = draft_lanes(d, group),
				   .dtype = d->dtype};
}

/* Forget what an earlier attempt left. */
void draft_reset(struct draft *draft);
/* Append the elements marked in scratch->outside, in decode order. -E2BIG as above. with_norm: they
 * are finite bf16, and norm_sum counted them, which it shall not. some: a bit for each token that
 * has any; NULL: looked for here. */
SSV_MUST_CHECK int draft_exceptions(struct draft *draft, uint32_t group, const uint64_t *some,
				    int with_norm);
/* Write the meta of a finished draft; returns its length. */
uint32_t draft_meta(const struct draft *draft, int lossless, uint8_t *meta);

#endif
