/* SPDX-License-Identifier: Apache-2.0 */
/* tier.h - what a tier means for the encoder; the decoder needs none of it. */
#ifndef SSV_CODEC_TIER_H
#define SSV_CODEC_TIER_H

#include <stdint.h>

struct tier {
	const char *name;
	/* Step over the spread: of the median channel for K, over the rms for V. 0: lossless. */
	float alpha_k, alpha_v;
	/* Relative L2 error of one tensor above which the next finer tier is used for it. */
	float error_max;
};

/* NULL: no such tier. */
const struct tier *tier_find(uint8_t tier);

#endif
