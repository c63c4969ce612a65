/* SPDX-License-Identifier: Apache-2.0 */
/* made_up.c - seeded KV. */
#include "made_up.h"

#include <math.h>

#include "base/bytes.h"
#include "cli.h"
#include "codec/float.h"

#define OUTLIER_EVERY 43u /* channels */

/* About normal: the sum of four 16-bit uniforms, with variance 1. */
static double normal(uint64_t *seed)
{
	uint32_t sum;

	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	sum = (uint32_t)((*seed & 0xffff) + (*seed >> 16 & 0xffff) + (*seed >> 32 & 0xffff) +
			 (*seed >> 48));
	return ((double)sum / 65535 - 2) * 1.7320508;
}

static void store_element(uint8_t dtype, uint8_t *out, float value)
{
	switch (dtype) {
	case SSV_DTYPE_BF16:
		store_le16(out, bf16_from_f32(value));
		break;
	case SSV_DTYPE_FP16:
		store_le16(out, fp16_from_f32(value));
		break;
	case SSV_DTYPE_FP32:
		store_le32(out, f32_bits(value));
		break;
	case SSV_DTYPE_E4M3:
		*out = e4m3_from_f32(value);
		break;
	default:
		*out = e5m2_from_f32(value);
		break;
	}
}

void made_up_tensor(const struct chunk_shape *shape, uint32_t tensor, uint64_t seed, uint8_t *out)
{
	const struct chunk_part *part = &shape->parts[tensor % shape->parts_count];
	uint32_t channels = part_channels(part), element = dtype_bytes(shape->dtype);
	float *mean = cli_alloc(channels * sizeof(*mean));
	float *spread = cli_alloc(channels * sizeof(*spread));
	int is_value = part->role == SSV_ROLE_V;

	seed = (seed * SSV_TENSORS_MAX + tensor) * 2 + 1;
	for (uint32_t c = 0; c < channels; c++) {
		spread[c] = (float)exp(0.3 * normal(&seed));
		mean[c] = is_value ? 0 : (float)(0.6 * normal(&seed));
		if (c % OUTLIER_EVERY == 7)
			mean[c] *= 10;
	}
	for (uint32_t t = 0; t < shape->tokens; t++) {
		float gain = is_value ? (float)exp(0.35 * normal(&seed)) : 1;

		for (uint32_t c = 0; c < channels; c++, out += element)
			store_element(shape->dtype, out,
				      mean[c] + spread[c] * gain * (float)normal(&seed));
	}
	free(mean);
	free(spread);
}
