/* SPDX-License-Identifier: Apache-2.0 */
/* set.c - the profiles of a daemon. Filled before workers run; not changed while they do. */
#include <errno.h>
#include <string.h>

#include "profile/profile.h"

const struct profile *profile_set_find(const struct profile_set *set, const uint8_t model[8],
				       uint8_t dtype)
{
	for (uint32_t i = 0; set && i < set->count; i++)
		if (!memcmp(set->profiles[i]->digest, model, 8) &&
		    set->profiles[i]->steps.dtype == dtype)
			return set->profiles[i];
	return NULL;
}

int profile_set_add(struct profile_set *set, struct profile *profile)
{
	if (profile_set_find(set, profile->digest, profile->steps.dtype))
		return -EEXIST;
	if (set->count == PROFILES_MAX)
		return -E2BIG;
	set->profiles[set->count++] = profile;
	return 0;
}

void profile_set_clear(struct profile_set *set)
{
	for (uint32_t i = 0; i < set->count; i++)
		profile_free(set->profiles[i]);
	set->count = 0;
}
