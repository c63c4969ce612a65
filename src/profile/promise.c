/* SPDX-License-Identifier: Apache-2.0 */
/* promise.c - what a tier promises, and whether a profile keeps it. */
#include <string.h>

#include "codec/codec.h"
#include "profile/profile.h"

static const char *const reference_names[] = {[PROFILE_FP8] = "FP8", [PROFILE_INT4] = "int4"};

static const struct profile_promise promises[TIERS_COUNT] = {
    [SSV_TIER_LOSSLESS] = {.words = "bit-exact"},
    [SSV_TIER_HIGH] = {PROFILE_FP8, 1.0 / 8, "at most an eighth of an FP8 cache's KL"},
    [SSV_TIER_STANDARD] = {PROFILE_FP8, 1, "no more than an FP8 cache's KL"},
    [SSV_TIER_COMPACT] = {PROFILE_INT4, 1, "no more than an int4 cache's KL"},
    [SSV_TIER_TINY] = {PROFILE_INT4, 4, "at most four times an int4 cache's KL"},
};

const struct profile_promise *profile_promise(uint8_t tier)
{
	return &promises[tier < TIERS_COUNT ? tier : 0];
}

const char *profile_reference_name(enum profile_reference reference)
{
	return reference_names[reference];
}

static const struct profile_measure *measured_at(const struct profile_figures *figures,
						 uint32_t tokens)
{
	for (uint32_t i = 0; i < figures->measured_count; i++)
		if (figures->measured[i].tokens == tokens)
			return &figures->measured[i];
	return NULL;
}

/* At one length. */
static int length_keeps(const struct profile *profile, uint8_t tier,
			const struct profile_measure *m, char *why)
{
	const struct profile_promise *promise = profile_promise(tier);
	const char *name = profile_reference_name(promise->reference);
	const struct profile_measure *theirs =
	    measured_at(&profile->references[promise->reference], m->tokens);

	if (!theirs) {
		snprintf(why, SSV_ERROR_TEXT_MAX, "%s was not measured at %u tokens", name,
			 m->tokens);
		return 0;
	}
	if (m->bound <= 1 && m->p99 <= PROFILE_P99_MAX && m->kl <= promise->share * theirs->kl)
		return 1;
	snprintf(why, SSV_ERROR_TEXT_MAX,
		 "KL at %u tokens is %.3g, promised %.3g (%g of %s's); bound %.3f (at most 1), p99 "
		 "%.3f (at most %g)",
		 m->tokens, m->kl, promise->share * theirs->kl, promise->share, name, m->bound,
		 m->p99, PROFILE_P99_MAX);
	return 0;
}

int profile_keeps(const struct profile *profile, uint8_t tier, char *why)
{
	const struct profile_figures *figures = &profile->tiers[tier < TIERS_COUNT ? tier : 0];
	char text[SSV_ERROR_TEXT_MAX];

	if (!why)
		why = text;
	why[0] = 0;
	if (tier == SSV_TIER_LOSSLESS)
		return 1;
	if (!figures->measured_count) {
		snprintf(why, SSV_ERROR_TEXT_MAX, "it was not measured");
		return 0;
	}
	for (uint32_t i = 0; i < figures->measured_count; i++)
		if (!length_keeps(profile, tier, &figures->measured[i], why))
			return 0;
	return 1;
}

uint8_t profile_allowed(const struct profile *profile, uint8_t tier)
{
	while (tier > SSV_TIER_LOSSLESS && !profile_keeps(profile, tier, NULL))
		tier--;
	return tier;
}
