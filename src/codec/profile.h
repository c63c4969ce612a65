/* SPDX-License-Identifier: Apache-2.0 */
/*
 * profile.h - what a model's profile gives the encoder: a step for each head, a factor for each
 * channel, and the error to expect. docs/profile.md says where the numbers come from.
 *
 * Flat and immutable: whoever owns the arrays keeps them for as long as an encoder may read them.
 * A decoder needs none of it: a container carries its steps.
 */
#ifndef SSV_CODEC_PROFILE_H
#define SSV_CODEC_PROFILE_H

#include "chunk/shape.h"

#define TIERS_COUNT 6u /* places by enum ssv_tier; the first two stay empty */

/* One part of the whole model: all its layers, the heads of all ranks. */
struct profile_part {
	uint8_t role; /* enum ssv_role */
	uint16_t heads, dim;
	const float *weight;   /* [layers][heads], positive */
	const uint8_t *factor; /* [layers][heads x dim], factors of docs/codec.md; NULL: none */
};

struct encode_profile {
	uint8_t hash[8]; /* goes into the container */
	uint8_t dtype;   /* enum ssv_dtype: of the KV that it was made for */
	uint8_t parts_count;
	uint16_t layers_count;
	struct profile_part parts[SSV_PARTS_MAX];
	float scale[TIERS_COUNT];        /* a head's step is scale x weight; 0: uniform steps */
	const float *error[TIERS_COUNT]; /* [layers][parts]: a tensor's relative error, as it was
					  * measured; NULL or 0: not known */
	float error_margin;              /* so many times that is taken for another content */
};

/* Is this the profile of a model that such chunks are of? *ret_why (may be NULL) says why not. */
int profile_fits(const struct encode_profile *profile, const struct chunk_shape *shape,
		 const char **ret_why);

/* Does the profile give this tier steps? NULL has none. */
static inline int profile_has_tier(const struct encode_profile *profile, uint8_t tier)
{
	return profile && tier < TIERS_COUNT && profile->scale[tier] > 0;
}

/* The largest factor byte that is not beyond a positive ratio; 0 if all are. */
uint8_t factor_below(float ratio);

#endif
