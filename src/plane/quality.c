/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quality.c - which tiers the chunks of a region may have: by the model's profile, where there is
 * one (docs/profile.md), and which tier a STORE that names none takes.
 *
 * Settled when the region is registered and not changed after. Tiers that break their promise on
 * this model are never used: the configured one refuses the registration, one that a STORE names is
 * replaced by the nearest finer one that keeps it.
 */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "codec/codec.h"
#include "plane/internal.h"

void plane_hex(const uint8_t bytes[8], char text[17])
{
	for (uint32_t i = 0; i < 8; i++)
		snprintf(text + 2 * i, 3, "%02x", bytes[i]);
}

static int is_fp8(uint8_t dtype)
{
	return dtype == SSV_DTYPE_E4M3 || dtype == SSV_DTYPE_E5M2;
}

/* The model's profile, if it is what its fingerprint says. */
static const struct profile *profile_of(const struct plane *plane, const struct layout *layout)
{
	const struct profile *profile =
	    profile_set_find(plane->config.profiles, layout->model, layout->shape.dtype);
	char model[17];
	const char *why;

	if (!profile || profile_fits(&profile->steps, &layout->shape, &why))
		return profile;
	plane_hex(layout->model, model);
	log_warn("profile refused model=%s name=\"%s\" reason=\"%s\"", model, profile->name, why);
	return NULL;
}

static void quality_log(const struct region_quality *q, const struct layout *layout)
{
	char model[17], profile[17] = "none", refused[64] = "";
	const char *steps = "uniform";
	size_t n = 0;

	plane_hex(layout->model, model);
	if (q->profile) {
		plane_hex(q->profile->steps.hash, profile);
		steps = "profile";
	}
	for (uint8_t t = SSV_TIER_HIGH; t <= SSV_TIER_TINY && n < sizeof(refused); t++)
		if (q->allowed[t] != t)
			n += (size_t)snprintf(refused + n, sizeof(refused) - n, "%s%s",
					      n ? "," : "", tier_name(t));
	log_info("region quality model=%s profile=%s tier=%s steps=%s refused=%s", model, profile,
		 tier_name(q->tier), q->tier == SSV_TIER_LOSSLESS ? "none" : steps,
		 refused[0] ? refused : "none");
}

int region_quality(const struct plane *plane, const struct layout *layout, struct region_quality *q,
		   char *error)
{
	const uint8_t configured = plane->config.tier, min_tier = plane->config.min_tier;
	char why[SSV_ERROR_TEXT_MAX];

	memset(q, 0, sizeof(*q));
	q->profile = profile_of(plane, layout);
	for (uint8_t t = SSV_TIER_LOSSLESS; t <= SSV_TIER_TINY; t++) {
		q->allowed[t] = t;
		if (q->profile)
			q->allowed[t] = profile_allowed(q->profile, t);
		else if (is_fp8(layout->shape.dtype))
			q->allowed[t] = SSV_TIER_LOSSLESS;
	}
	if (q->profile && configured && q->allowed[configured] != configured) {
		(void)profile_keeps(q->profile, configured, why);
		return plane_refuse(error, -ENOTSUP,
				    "tier %s breaks its promise on %.40s: %s; nearest allowed: %s",
				    tier_name(configured), q->profile->name, why,
				    tier_name(q->allowed[configured]));
	}
	q->tier = configured ? q->allowed[configured] : SSV_TIER_LOSSLESS;
	if (!configured && q->profile) {
		/* what is stored must be fine enough to be read again */
		q->tier = min_tier && min_tier < SSV_TIER_STANDARD ? min_tier : SSV_TIER_STANDARD;
		q->tier = q->allowed[q->tier];
	}
	quality_log(q, layout);
	return 0;
}

uint8_t quality_tier(struct plane *plane, const struct region_quality *q, uint8_t asked)
{
	uint8_t tier = asked ? q->allowed[asked] : q->tier;

	plane->counters[PLANE_STORES_FINER] += asked && tier != asked;
	return tier;
}
