/* SPDX-License-Identifier: Apache-2.0 */
/*
 * trellis.c - a group of a trellis-coded tensor on its way into a draft: the search is a kernel
 * (trellis.h), what it found goes the way of plain symbols.
 */
#include "codec/trellis.h"

#include "codec/draft.h"
#include "codec/scalar.h"

/* Which channels need an exception, by token. */
static void outside_find(const struct draft *d, uint32_t lanes)
{
	const int16_t *integers = d->scratch->integers;

	for (uint32_t t = d->verbatim; t < d->tokens; t++) {
		uint64_t outside = 0;

		for (uint32_t i = 0; i < lanes; i++)
			outside |= (uint64_t)(integers[t * LANES + i] == INTEGER_NONE) << i;
		d->scratch->outside[t] = outside;
	}
}

void trellis_symbols(const struct draft *d, struct code_job *job, int16_t offset[LANES])
{
	static const int16_t nothing[LANES];
	int16_t base[LANES];
	struct trellis_job trellis = {
	    .view = job->measure.view,
	    .inverse = job->measure.inverse,
	    .base = base,
	    .delta = job->pack.delta,
	    .raw_bits = job->pack.raw_bits,
	    .is_shaped = job->is_shaped,
	    .targets = d->scratch->targets,
	    .symbols = d->scratch->symbols,
	    .integers = d->scratch->integers,
	};

	for (uint32_t i = 0; i < LANES; i++) {
		if (offset[i] > INTEGER_MAX / 2 || offset[i] < -INTEGER_MAX / 2)
			offset[i] = 0;
		base[i] = (int16_t)(2 * offset[i]);
	}
	d->kernels->trellis(&trellis);
	job->pack.integers = d->scratch->symbols;
	job->pack.offset = job->pack.delta = nothing;
	d->kernels->pack(&job->pack);
	outside_find(d, job->pack.lanes);
	/* errors may be larger than other levels' sums have room for */
	scalar_measure(&job->measure);
}
