/* SPDX-License-Identifier: Apache-2.0 */
/*
 * exponents.c - the lossless tier: a group's 16 most frequent exponents become classes, sign and
 * mantissa raw bits; elements with another exponent are exceptions.
 */
#include <string.h>

#include "codec/draft.h"
#include "codec/frequency.h"

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

static int group_split(struct draft *draft, uint32_t group)
{
	struct codec_scratch *s = draft->scratch;
	uint32_t bits = dtype_raw_bits(draft->dtype), best = 0;
	uint8_t class_of[256], *exponent = s->exponent + group * META_CLASSES;
	struct exponent_job exponents = {.view = draft_view(draft, group)};
	struct split_job job = {.view = exponents.view,
				.class_of = class_of,
				.classes = plane_group(&draft->plane, group),
				.raw = draft->raw + draft->raw_bytes,
				.outside = s->outside};

	draft->kernels->exponents(&exponents);
	choose_exponents(exponents.count, exponent, class_of);
	for (uint32_t i = 1; i < META_CLASSES; i++)
		if (exponents.count[exponent[i]] > exponents.count[exponent[best]])
			best = i;
	job.other_class = (uint8_t)best;
	draft->kernels->split(&job);
	draft->raw_bytes += draft->tokens * ((job.view.lanes * bits + 7) / 8);
	frequency_fit(job.count, s->frequency + group * META_CLASSES);
	return draft_exceptions(draft, group, NULL, 0);
}

int draft_split(struct draft *draft)
{
	int err = 0;

	draft_reset(draft);
	for (uint32_t group = 0; !err && group < draft->groups; group++)
		err = group_split(draft, group);
	return err;
}
