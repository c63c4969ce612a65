/* SPDX-License-Identifier: Apache-2.0 */
/* profile.c - whether a profile is one for a chunk's shape; step factors by their size. */
#include "codec/profile.h"

#include "codec/float.h"

int profile_fits(const struct encode_profile *profile, const struct chunk_shape *shape,
		 const char **ret_why)
{
	const char *why = NULL;

	if (profile->dtype != shape->dtype)
		why = "it is for elements of another type";
	else if (profile->layers_count != shape->layers_total)
		why = "its model has another number of layers";
	else if (profile->parts_count != shape->parts_count)
		why = "its model has other parts (K, V, latent)";
	for (uint32_t p = 0; !why && p < shape->parts_count; p++) {
		const struct chunk_part *part = &shape->parts[p];

		if (profile->parts[p].role != part->role)
			why = "its model has other parts (K, V, latent)";
		else if (profile->parts[p].dim != part->dim)
			why = "its model's heads have another size";
		else if ((uint32_t)part->head0 + part->heads > profile->parts[p].heads)
			why = "its model has fewer heads";
	}
	if (ret_why)
		*ret_why = why;
	return !why;
}

uint8_t factor_below(float ratio)
{
	static const uint8_t mantissa[8] = {128, 140, 152, 166, 181, 197, 215, 235};
	uint32_t bits = f32_bits(ratio), low = 128 | (bits >> 16 & 127), k = 7;
	int32_t power = (int32_t)(bits >> 23) - 127 + 16; /* factor 0 is 2^-16 */

	if (power < 0)
		return 0;
	if (power > 31)
		return UINT8_MAX;
	while (mantissa[k] > low)
		k--;
	return (uint8_t)((uint32_t)power << 3 | k);
}
