/* SPDX-License-Identifier: Apache-2.0 */
/*
 * exponents.c - the lossless tier: a group's 16 most frequent exponents become classes, sign and
 * mantissa raw bits; elements with another exponent are exceptions.
 */
#include <string.h>

#include "base/bytes.h"
#include "codec/draft.h"

static void count_exponents(const struct draft *draft, uint32_t group, uint32_t count[256])
{
	uint32_t fraction = dtype_raw_bits(draft->dtype) - 1;
	uint32_t mask = dtype_exponent_max(draft->dtype);
	const uint8_t *row = draft_group(draft, group);
	uint32_t part[2][256] = {{0}};

	for (uint32_t t = 0; t < draft->tokens; t++) {
		for (uint32_t c = 0; c < draft_lanes(draft, group); c++) {
			uint32_t bits;

			if (draft->element_bytes == 1)
				bits = row[c];
			else if (draft->element_bytes == 2)
				bits = load_le16(row + 2 * c);
			else
				bits = load_le32(row + 4 * c);
			part[c & 1][bits >> fraction & mask]++;
		}
		row += (size_t)draft->channels * draft->element_bytes;
	}
	for (uint32_t i = 0; i < 256; i++)
		count[i] = part[0][i] + part[1][i];
}

/* The 16 most frequent, ascending; of equals the smaller. Others get class_of = 16. */
static void choose_exponents(const uint32_t count[256], uint8_t exponent[16], uint8_t class_of[256])
{
	uint8_t chosen[256] = {0};
	uint32_t n = 0;

	for (uint32_t k = 0; k < META_CLASSES; k++) {
		uint32_t best = 256;

		for (uint32_t e = 0; e < 256; e++)
			if (count[e] && !chosen[e] && (best == 256 || count[e] > count[best]))
				best = e;
		if (best < 256)
			chosen[best] = 1;
	}
	memset(exponent, 0, META_CLASSES);
	memset(class_of, META_CLASSES, 256);
	for (uint32_t e = 0; e < 256; e++) {
		if (!chosen[e])
			continue;
		class_of[e] = (uint8_t)n;
		exponent[n++] = (uint8_t)e;
	}
}

int draft_split(struct draft *draft)
{
	struct codec_scratch *s = draft->scratch;
	uint32_t bits = dtype_raw_bits(draft->dtype);

	draft_reset(draft);
	for (uint32_t group = 0; group < draft->groups; group++) {
		uint32_t lanes = draft_lanes(draft, group), count[256], best = 0;
		uint8_t class_of[256];
		uint8_t *exponent = s->exponent + group * META_CLASSES;
		struct split_job job = {.elements = draft_group(draft, group),
					.row_bytes =
					    (uint64_t)draft->channels * draft->element_bytes,
					.tokens = draft->tokens,
					.lanes = lanes,
					.dtype = draft->dtype,
					.class_of = class_of,
					.classes = plane_group(&draft->plane, group),
					.raw = draft->raw + draft->raw_bytes,
					.outside = s->outside};
		int err;

		count_exponents(draft, group, count);
		choose_exponents(count, exponent, class_of);
		for (uint32_t i = 1; i < META_CLASSES; i++)
			if (count[exponent[i]] > count[exponent[best]])
				best = i;
		job.other_class = (uint8_t)best;
		draft->kernels->split(&job);
		draft->raw_bytes += draft->tokens * ((lanes * bits + 7) / 8);
		draft_frequency(draft, group);
		err = draft_exceptions(draft, group);
		if (err)
			return err;
	}
	return 0;
}
