/* SPDX-License-Identifier: Apache-2.0 */
/* tier.c - the tiers: names, steps, limits of error. */
#include "codec/tier.h"

#include <stddef.h>
#include <string.h>

#include "codec/codec.h"

static const struct tier tiers[] = {
    [SSV_TIER_LOSSLESS] = {.name = "lossless"},
    [SSV_TIER_HIGH] = {"high", .12f, .12f, .08f},
    [SSV_TIER_STANDARD] = {"standard", .25f, .35f, .16f},
    [SSV_TIER_COMPACT] = {"compact", .50f, .70f, .30f},
    [SSV_TIER_TINY] = {"tiny", 1.0f, 1.4f, .60f},
};

const struct tier *tier_find(uint8_t tier)
{
	return tier && tier < ARRAY_COUNT(tiers) ? &tiers[tier] : NULL;
}

const char *tier_name(uint8_t tier)
{
	return tier_find(tier) ? tiers[tier].name : NULL;
}

uint8_t tier_parse(const char *name)
{
	for (uint8_t i = SSV_TIER_LOSSLESS; i < ARRAY_COUNT(tiers); i++)
		if (!strcmp(tiers[i].name, name))
			return i;
	return SSV_TIER_DEFAULT;
}
