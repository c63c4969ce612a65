/* SPDX-License-Identifier: Apache-2.0 */
/*
 * overlap.h - do any two elements of a region share a byte?
 *
 * The elements of a tensor over all its blocks are a sum of digits: offset + sum of digit x stride,
 * each element_bytes wide. Billions of elements are compared by arithmetic on their digits, largest
 * stride first; only packings that interleave irregularly are enumerated, up to a limit.
 *
 * "No overlap" is always true. A layout that is refused either has an overlap (both tensors are
 * named) or is too irregular to be checked within the limit.
 */
#ifndef SSV_OVERLAP_H
#define SSV_OVERLAP_H

#include "base/base.h"
#include "shadowserve.h"

#define OVERLAP_DIGITS_MAX (SSV_DIGITS_MAX + 1) /* a part's and the block's */

struct overlap_digit {
	uint64_t stride; /* bytes */
	uint32_t extent;
};

/* One tensor over all blocks. overlap_prepare() sorts, joins and measures the digits. */
struct overlap_tensor {
	uint64_t offset;
	uint32_t digits_count;
	struct overlap_digit digits[OVERLAP_DIGITS_MAX];
	/* Filled by overlap_prepare(). From level k on: bytes from first to last, and whether the
	 * rest is nested, each stride past the span of what is below it. */
	uint64_t span[OVERLAP_DIGITS_MAX + 1];
	uint8_t nested[OVERLAP_DIGITS_MAX + 1];
};

enum overlap_result {
	OVERLAP_NONE = 0,
	OVERLAP_FOUND = 1,
	OVERLAP_UNKNOWN = 2, /* too irregular */
};

/* Joins and sorts the digits of one tensor. No sum may pass UINT64_MAX / 2 (checked before). */
void overlap_prepare(struct overlap_tensor *tensor, uint32_t element_bytes);

/**
 * Compare all elements of prepared tensors. ret_a, ret_b: the tensors that overlap (may be equal).
 * Returns enum overlap_result or -ENOMEM. Control path: allocates.
 */
SSV_MUST_CHECK int overlap_check(const struct overlap_tensor *tensors, uint32_t tensors_count,
				 uint32_t *ret_a, uint32_t *ret_b);

#endif
