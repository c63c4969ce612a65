/* SPDX-License-Identifier: Apache-2.0 */
/*
 * overlap.c - see overlap.h.
 *
 * The unit is an item: what is left of a tensor from digit `level` on, at a fixed offset. Items
 * whose byte intervals do not touch cannot overlap. Items that interleave and step by the same
 * leading digit are compared within one step, if all of them fit in it. What remains is split
 * along its largest digit, which costs room in a bounded table.
 */
#include "deliver/overlap.h"

#include <errno.h>

#define OVERLAP_ITEMS_MAX (1u << 17)
/* Items made, in all. It bounds what a hostile layout takes from the control thread: 11 ms of an
 * otherwise idle core was the worst of those tried (two tensors of interleaved ladders of three
 * digits). A region of 1,024 tensors in steps of one block takes 33,792. */
#define OVERLAP_WORK_MAX  (1u << 18)
#define OVERLAP_DEPTH_MAX 256u

struct overlap_item {
	uint64_t offset;
	uint32_t tensor;
	uint32_t level;
};

struct overlap_search {
	const struct overlap_tensor *tensors;
	struct overlap_item *items; /* a stack of lists; the list in work lies on top */
	uint32_t used;
	uint32_t work;
	uint32_t a, b;
};

static int digit_compare(const void *left, const void *right)
{
	const struct overlap_digit *a = left, *b = right;

	return a->stride < b->stride ? 1 : a->stride > b->stride ? -1 : 0;
}

static int item_compare(const void *left, const void *right)
{
	const struct overlap_item *a = left, *b = right;

	return a->offset < b->offset ? -1 : a->offset > b->offset ? 1 : 0;
}

void overlap_prepare(struct overlap_tensor *tensor, uint32_t element_bytes)
{
	struct overlap_digit *digits = tensor->digits;
	uint32_t n = 0;

	for (uint32_t i = 0; i < tensor->digits_count; i++) {
		if (digits[i].extent > 1)
			digits[n++] = digits[i];
	}
	qsort(digits, n, sizeof(digits[0]), digit_compare);
	tensor->digits_count = n;
	n = 0;
	for (uint32_t i = 0; i < tensor->digits_count; i++) {
		/* The digit before steps over exactly this one's range: one digit. */
		if (n > 0 && digits[n - 1].stride == digits[i].stride * digits[i].extent &&
		    (uint64_t)digits[n - 1].extent * digits[i].extent <= UINT32_MAX) {
			digits[n - 1].extent *= digits[i].extent;
			digits[n - 1].stride = digits[i].stride;
		} else {
			digits[n++] = digits[i];
		}
	}
	tensor->digits_count = n;
	tensor->span[n] = element_bytes;
	tensor->nested[n] = 1;
	while (n-- > 0) {
		uint64_t below = tensor->span[n + 1];

		tensor->span[n] = below + digits[n].stride * (digits[n].extent - 1);
		tensor->nested[n] = tensor->nested[n + 1] && digits[n].stride >= below;
	}
}

static uint64_t item_span(const struct overlap_search *search, const struct overlap_item *item)
{
	return search->tensors[item->tensor].span[item->level];
}

static const struct overlap_digit *item_digit(const struct overlap_search *search,
					      const struct overlap_item *item)
{
	const struct overlap_tensor *tensor = &search->tensors[item->tensor];

	return item->level < tensor->digits_count ? &tensor->digits[item->level] : NULL;
}

static int overlap_found(struct overlap_search *search, const struct overlap_item *a,
			 const struct overlap_item *b)
{
	search->a = a->tensor;
	search->b = b->tensor;
	return OVERLAP_FOUND;
}

/* All items step by the same leading digit and fit in one step: 1. */
static int items_fit_step(const struct overlap_search *search, const struct overlap_item *items,
			  uint32_t n)
{
	const struct overlap_digit *first = item_digit(search, &items[0]);
	uint64_t end = 0;

	if (!first)
		return 0;
	for (uint32_t i = 0; i < n; i++) {
		const struct overlap_digit *digit = item_digit(search, &items[i]);

		if (!digit || digit->stride != first->stride || digit->extent != first->extent)
			return 0;
		end = u64_max(end, items[i].offset +
				       search->tensors[items[i].tensor].span[items[i].level + 1]);
	}
	return end - items[0].offset <= first->stride; /* items are sorted */
}

/* Append to the top list the items, split along the digits of the largest stride among them. */
static int items_split(struct overlap_search *search, const struct overlap_item *items, uint32_t n)
{
	uint64_t stride = 0;

	for (uint32_t i = 0; i < n; i++) {
		const struct overlap_digit *digit = item_digit(search, &items[i]);

		if (digit)
			stride = u64_max(stride, digit->stride);
	}
	for (uint32_t i = 0; i < n; i++) {
		const struct overlap_digit *digit = item_digit(search, &items[i]);
		uint32_t extent = digit && digit->stride == stride ? digit->extent : 1;

		if (extent > OVERLAP_ITEMS_MAX - search->used ||
		    extent > OVERLAP_WORK_MAX - search->work)
			return OVERLAP_UNKNOWN;
		search->work += extent;
		for (uint32_t k = 0; k < extent; k++) {
			struct overlap_item *item = &search->items[search->used++];

			*item = items[i];
			item->offset += stride * k;
			item->level += extent > 1;
		}
	}
	return OVERLAP_NONE;
}

static int overlap_list(struct overlap_search *search, uint32_t start, uint32_t n, uint32_t depth);

/* Items whose intervals touch one another, sorted by offset. */
static int overlap_cluster(struct overlap_search *search, const struct overlap_item *items,
			   uint32_t n, uint32_t depth)
{
	const uint32_t start = search->used;
	int result;

	if (n == 1 && search->tensors[items[0].tensor].nested[items[0].level])
		return OVERLAP_NONE;
	for (uint32_t i = 0; i + 1 < n; i++) {
		/* Two single elements that touch: an overlap for certain. */
		if (!item_digit(search, &items[i]) && !item_digit(search, &items[i + 1]) &&
		    items[i].offset + item_span(search, &items[i]) > items[i + 1].offset)
			return overlap_found(search, &items[i], &items[i + 1]);
	}
	overlap_found(search, &items[0], &items[n - 1]); /* named if the limit is passed */
	if (depth == OVERLAP_DEPTH_MAX || n > OVERLAP_ITEMS_MAX - search->used ||
	    n > OVERLAP_WORK_MAX - search->work)
		return OVERLAP_UNKNOWN;
	if (items_fit_step(search, items, n)) {
		search->work += n;
		for (uint32_t i = 0; i < n; i++) {
			search->items[search->used] = items[i];
			search->items[search->used++].level++;
		}
	} else {
		result = items_split(search, items, n);
		if (result)
			return result;
	}
	result = overlap_list(search, start, search->used - start, depth + 1);
	search->used = start;
	return result;
}

/* Sort items[start..start+n) and take each group of touching intervals by itself. */
static int overlap_list(struct overlap_search *search, uint32_t start, uint32_t n, uint32_t depth)
{
	struct overlap_item *items = &search->items[start];
	uint32_t first = 0;
	uint64_t end = 0;

	qsort(items, n, sizeof(items[0]), item_compare);
	for (uint32_t i = 0; i <= n; i++) {
		int result;

		if (i < n && (i == first || items[i].offset < end)) {
			end = u64_max(i == first ? 0 : end,
				      items[i].offset + item_span(search, &items[i]));
			continue;
		}
		result = n ? overlap_cluster(search, &items[first], i - first, depth) : 0;
		if (result || i == n)
			return result;
		first = i;
		end = items[i].offset + item_span(search, &items[i]);
	}
	return OVERLAP_NONE;
}

int overlap_check(const struct overlap_tensor *tensors, uint32_t tensors_count, uint32_t *ret_a,
		  uint32_t *ret_b)
{
	struct overlap_search search = {.tensors = tensors};
	int result;

	if (tensors_count > OVERLAP_ITEMS_MAX)
		return OVERLAP_UNKNOWN;
	search.items = calloc(OVERLAP_ITEMS_MAX, sizeof(search.items[0]));
	if (!search.items)
		return -ENOMEM;
	for (uint32_t i = 0; i < tensors_count; i++) {
		search.items[i].offset = tensors[i].offset;
		search.items[i].tensor = i;
	}
	search.used = tensors_count;
	result = overlap_list(&search, 0, tensors_count, 0);
	*ret_a = search.a;
	*ret_b = search.b;
	free(search.items);
	return result;
}
