/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layout.c - checks a layout that an engine offered and makes its tables; see layout.h.
 *
 * The source comes from outside: every number is checked before it is used, sums with overflow
 * checks, and each refusal says which number is wrong and what was expected.
 */
#include "deliver/layout.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "deliver/overlap.h"

static int SSV_PRINTF(3, 4) refuse(char *error, int code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(error, SSV_ERROR_TEXT_MAX, format, args);
	va_end(args);
	return code;
}

static const char *const axis_names[] = {"token", "head", "dim"};

/* The digits of one axis must make its extent. */
static int check_axis(const struct ssv_part *part, uint32_t index, uint32_t axis, uint32_t extent,
		      char *error)
{
	uint64_t product = 1;

	for (uint32_t i = 0; i < part->digits_count; i++) {
		if (part->digits[i].axis == axis)
			product *= part->digits[i].extent;
		if (product > extent)
			break;
	}
	if (product != extent)
		return refuse(error, -EINVAL,
			      "part %u: the %s digits multiply to %llu, expected %u", index,
			      axis_names[axis], (unsigned long long)product, extent);
	return 0;
}

static int check_part(const struct ssv_layout *source, uint32_t index, uint32_t element_bytes,
		      char *error)
{
	const struct ssv_part *part = &source->parts[index];
	uint64_t span = element_bytes;
	int err;

	if (part->digits_count > SSV_DIGITS_MAX)
		return refuse(error, -E2BIG, "part %u: %u digits, at most %u", index,
			      part->digits_count, SSV_DIGITS_MAX);
	for (uint32_t i = 0; i < part->digits_count; i++) {
		const struct ssv_digit *digit = &part->digits[i];
		uint64_t reach;

		if (digit->axis > SSV_AXIS_DIM || digit->extent == 0)
			return refuse(error, -EINVAL, "part %u digit %u: axis %u, extent %u", index,
				      i, digit->axis, digit->extent);
		if (digit->stride < 0 || (digit->stride == 0 && digit->extent > 1))
			return refuse(error, -EINVAL,
				      "part %u digit %u: stride %lld, expected 1 or more", index, i,
				      (long long)digit->stride);
		if (__builtin_mul_overflow((uint64_t)digit->stride * (digit->extent > 1),
					   (uint64_t)(digit->extent - 1u) * element_bytes,
					   &reach) ||
		    __builtin_add_overflow(span, reach, &span) || span > UINT32_MAX)
			return refuse(error, -E2BIG,
				      "part %u digit %u: stride %lld of extent %u makes a block "
				      "span 4 GiB or more",
				      index, i, (long long)digit->stride, digit->extent);
	}
	err = check_axis(part, index, SSV_AXIS_TOKEN, source->block_tokens, error);
	if (!err)
		err = check_axis(part, index, SSV_AXIS_HEAD, part->heads, error);
	if (!err)
		err = check_axis(part, index, SSV_AXIS_DIM, part->dim, error);
	return err;
}

/* Shape of a whole chunk of this layout. */
static int check_shape(const struct ssv_layout *source, struct chunk_shape *shape, char *error)
{
	const char *why = NULL;
	int err;

	memset(shape, 0, sizeof(*shape));
	if (source->parts_count == 0 || source->parts_count > SSV_PARTS_MAX)
		return refuse(error, -EINVAL, "%u parts, expected 1..%u", source->parts_count,
			      SSV_PARTS_MAX);
	shape->dtype = source->dtype;
	shape->parts_count = source->parts_count;
	shape->tokens = SSV_CHUNK_TOKENS;
	shape->layer0 = source->layer0;
	shape->layers_count = source->layers_count;
	shape->layers_total = source->layers_total;
	shape->rank = source->rank;
	shape->ranks_count = source->ranks_count;
	for (uint32_t i = 0; i < source->parts_count; i++) {
		shape->parts[i].role = source->parts[i].role;
		shape->parts[i].head0 = source->parts[i].head0;
		shape->parts[i].heads = source->parts[i].heads;
		shape->parts[i].dim = source->parts[i].dim;
	}
	err = shape_check(shape, &why);
	if (err)
		return refuse(error, err, "shape refused: %s", why ? why : "out of range");
	return 0;
}

static int check_source(const struct ssv_layout *source, const struct chunk_shape *shape,
			char *error)
{
	uint32_t tensors = shape_tensors(shape);
	int err;

	if (source->block_tokens == 0 || source->block_tokens > SSV_BLOCK_TOKENS_MAX ||
	    SSV_CHUNK_TOKENS % source->block_tokens)
		return refuse(error, -EINVAL, "block_tokens %u does not divide %u",
			      source->block_tokens, SSV_CHUNK_TOKENS);
	if (source->blocks_count == 0)
		return refuse(error, -EINVAL, "blocks_count is 0");
	if (tensors > SSV_TENSORS_MAX)
		return refuse(error, -E2BIG, "%u tensors, at most %u", tensors, SSV_TENSORS_MAX);
	if (source->tensors_count != tensors || !source->tensors)
		return refuse(error, -EINVAL, "%u tensors, expected %u layers x %u parts = %u",
			      source->tensors_count, shape->layers_count, shape->parts_count,
			      tensors);
	for (uint32_t i = 0; i < source->parts_count; i++) {
		err = check_part(source, i, dtype_bytes(shape->dtype), error);
		if (err)
			return err;
	}
	return 0;
}

/* Places of one axis value: the sum of its digits x stride, in bytes. */
static uint64_t axis_place(const struct ssv_part *part, uint32_t axis, uint32_t value,
			   const uint64_t *strides)
{
	uint64_t place = 0;

	for (uint32_t i = 0; i < part->digits_count; i++) {
		if (part->digits[i].axis != axis)
			continue;
		place += strides[i] * (value % part->digits[i].extent);
		value /= part->digits[i].extent;
	}
	return place;
}

static uint32_t greatest_divisor(uint32_t a, uint32_t b)
{
	while (b) {
		uint32_t rest = a % b;

		a = b;
		b = rest;
	}
	return a;
}

/* The longest run length that divides every run of adjacent channels. */
static uint32_t run_channels(const uint32_t *channel, uint32_t channels, uint32_t element_bytes)
{
	uint32_t run = channels;

	for (uint32_t c = 1; c < channels; c++) {
		if (channel[c] != channel[c - 1] + element_bytes)
			run = greatest_divisor(run, c);
	}
	return run;
}

static int make_map(const struct ssv_part *part, uint32_t tokens, uint32_t element_bytes,
		    const uint64_t *strides, struct layout_map *map)
{
	const uint32_t channels = (uint32_t)part->heads * part->dim;
	uint64_t last = 0;
	uint32_t stride = 0;

	map->channel = calloc(channels, sizeof(map->channel[0]));
	if (!map->channel)
		return -ENOMEM;
	for (uint32_t t = 0; t < tokens; t++)
		map->token[t] = (uint32_t)axis_place(part, SSV_AXIS_TOKEN, t, strides);
	for (uint32_t c = 0; c < channels; c++)
		map->channel[c] =
		    (uint32_t)(axis_place(part, SSV_AXIS_HEAD, c / part->dim, strides) +
			       axis_place(part, SSV_AXIS_DIM, c % part->dim, strides));
	for (uint32_t i = 0; i < part->digits_count; i++)
		last += strides[i] * (part->digits[i].extent - 1u);
	map->block_bytes = (uint32_t)last + element_bytes;
	map->run_channels = run_channels(map->channel, channels, element_bytes);
	if (tokens > 1 && map->token[1] > map->token[0])
		stride = map->token[1] - map->token[0];
	for (uint32_t t = 1; t < tokens && stride; t++) {
		if (map->token[t] != stride * t)
			stride = 0;
	}
	if (channels < 2 || stride >= map->channel[1] - map->channel[0])
		stride = 0;
	map->token_stride = stride;
	return 0;
}

/* Digits in ascending order of stride: order[k] is an index in part->digits. */
static void sort_digits(const struct ssv_part *part, uint32_t *order)
{
	for (uint32_t i = 0; i < part->digits_count; i++) {
		uint32_t k = i;

		while (k > 0 && part->digits[order[k - 1]].stride > part->digits[i].stride) {
			order[k] = order[k - 1];
			k--;
		}
		order[k] = i;
	}
}

/* Walk all elements of a block in packed order; fill runs unless NULL; returns their number. */
static uint32_t walk_runs(const struct ssv_part *part, const uint32_t *order, uint32_t elements,
			  uint32_t element_bytes, struct layout_run *runs)
{
	uint16_t digit[SSV_DIGITS_MAX] = {0};
	uint64_t place = 0, expected = UINT64_MAX;
	uint32_t count = 0;

	for (uint32_t i = 0; i < elements; i++) {
		if (place != expected) {
			if (runs)
				runs[count] = (struct layout_run){.offset = (uint32_t)place};
			count++;
		}
		if (runs)
			runs[count - 1].bytes += element_bytes;
		expected = place + element_bytes;
		for (uint32_t k = 0; k < part->digits_count; k++) {
			const struct ssv_digit *d = &part->digits[order[k]];
			uint64_t stride = (uint64_t)d->stride * element_bytes;

			if (++digit[k] < d->extent) {
				place += stride;
				break;
			}
			place -= stride * (d->extent - 1u);
			digit[k] = 0;
		}
	}
	return count;
}

static int make_part(const struct ssv_part *source, uint32_t tokens, uint32_t element_bytes,
		     struct layout_part *part)
{
	const uint32_t elements = tokens * source->heads * source->dim;
	uint64_t strides[SSV_DIGITS_MAX], packed[SSV_DIGITS_MAX];
	uint32_t order[SSV_DIGITS_MAX] = {0};
	uint64_t dense = element_bytes;
	int err;

	sort_digits(source, order);
	for (uint32_t k = 0; k < source->digits_count; k++) {
		const struct ssv_digit *digit = &source->digits[order[k]];

		strides[order[k]] = digit->extent > 1 ? (uint64_t)digit->stride * element_bytes : 0;
		packed[order[k]] = dense;
		dense *= digit->extent;
	}
	err = make_map(source, tokens, element_bytes, strides, &part->place);
	if (!err)
		err = make_map(source, tokens, element_bytes, packed, &part->packed);
	if (err)
		return err;
	/* A run of the packed form may be broken in the region: the writers use the shorter. */
	part->packed.run_channels =
	    greatest_divisor(part->place.run_channels, part->packed.run_channels);
	part->runs_count = walk_runs(source, order, elements, element_bytes, NULL);
	part->runs = calloc(part->runs_count, sizeof(part->runs[0]));
	if (!part->runs)
		return -ENOMEM;
	walk_runs(source, order, elements, element_bytes, part->runs);
	return 0;
}

/* Copy the tensors in index order; each (layer, part) must come exactly once. */
static int take_tensors(const struct ssv_layout *source, struct layout *layout,
			uint64_t region_bytes, char *error)
{
	for (uint32_t i = 0; i < source->tensors_count; i++) {
		const struct ssv_tensor *tensor = &source->tensors[i];
		uint32_t index = (uint32_t)tensor->layer * layout->parts_count + tensor->part;
		uint64_t end, span;

		if (tensor->layer >= layout->shape.layers_count ||
		    tensor->part >= layout->parts_count)
			return refuse(error, -EINVAL,
				      "tensor %u: layer %u part %u, expected below %u and %u", i,
				      tensor->layer, tensor->part, layout->shape.layers_count,
				      layout->parts_count);
		if (layout->tensors[index].reserved)
			return refuse(error, -EINVAL, "tensor %u: layer %u part %u comes twice", i,
				      tensor->layer, tensor->part);
		if (tensor->offset % layout->element_bytes ||
		    tensor->block_stride % layout->element_bytes)
			return refuse(error, -EINVAL,
				      "tensor %u: offset %llu or block stride %llu is not a "
				      "multiple of %u",
				      i, (unsigned long long)tensor->offset,
				      (unsigned long long)tensor->block_stride,
				      layout->element_bytes);
		span = layout->parts[tensor->part].place.block_bytes;
		if (__builtin_mul_overflow(tensor->block_stride, layout->blocks_count - 1ull,
					   &end) ||
		    __builtin_add_overflow(end, span, &end) ||
		    __builtin_add_overflow(end, tensor->offset, &end) || end > region_bytes)
			return refuse(error, -ERANGE,
				      "tensor %u (layer %u part %u): offset %llu, %u blocks of "
				      "stride %llu and span %llu pass the region's %llu bytes",
				      i, tensor->layer, tensor->part,
				      (unsigned long long)tensor->offset, layout->blocks_count,
				      (unsigned long long)tensor->block_stride,
				      (unsigned long long)span, (unsigned long long)region_bytes);
		layout->tensors[index] = *tensor;
		layout->tensors[index].reserved = 1; /* taken */
	}
	return 0;
}

static int check_overlap(const struct ssv_layout *source, const struct layout *layout, char *error)
{
	struct overlap_tensor *tensors;
	uint32_t a = 0, b = 0;
	int result;

	tensors = calloc(layout->tensors_count, sizeof(tensors[0]));
	if (!tensors)
		return refuse(error, -ENOMEM, "no memory for the overlap check");
	for (uint32_t i = 0; i < layout->tensors_count; i++) {
		const struct ssv_part *part = &source->parts[i % layout->parts_count];
		struct overlap_tensor *tensor = &tensors[i];

		tensor->offset = layout->tensors[i].offset;
		for (uint32_t k = 0; k < part->digits_count; k++)
			tensor->digits[tensor->digits_count++] = (struct overlap_digit){
			    (uint64_t)part->digits[k].stride * layout->element_bytes,
			    part->digits[k].extent};
		tensor->digits[tensor->digits_count++] =
		    (struct overlap_digit){layout->tensors[i].block_stride, layout->blocks_count};
		overlap_prepare(tensor, layout->element_bytes);
	}
	result = overlap_check(tensors, layout->tensors_count, &a, &b);
	free(tensors);
	if (result == OVERLAP_NONE)
		return 0;
	if (result < 0)
		return refuse(error, result, "no memory for the overlap check");
	return refuse(error, -EINVAL,
		      "%s: layer %u part %u at offset %llu and layer %u part %u at offset %llu",
		      result == OVERLAP_FOUND ? "elements overlap"
					      : "too irregular to prove that nothing overlaps",
		      a / layout->parts_count, a % layout->parts_count,
		      (unsigned long long)layout->tensors[a].offset, b / layout->parts_count,
		      b % layout->parts_count, (unsigned long long)layout->tensors[b].offset);
}

static int fill_layout(const struct ssv_layout *source, struct layout *layout,
		       uint64_t region_bytes, char *error)
{
	int err;

	err = check_shape(source, &layout->shape, error);
	if (!err)
		err = check_source(source, &layout->shape, error);
	if (err)
		return err;
	memcpy(layout->model, source->model, sizeof(layout->model));
	layout->block_tokens = source->block_tokens;
	layout->blocks_count = source->blocks_count;
	layout->element_bytes = dtype_bytes(source->dtype);
	layout->parts_count = source->parts_count;
	layout->tensors_count = source->tensors_count;
	layout->tensors = calloc(layout->tensors_count, sizeof(layout->tensors[0]));
	if (!layout->tensors)
		return refuse(error, -ENOMEM, "no memory for %u tensors", layout->tensors_count);
	for (uint32_t i = 0; i < layout->parts_count; i++) {
		layout->parts[i].shape = layout->shape.parts[i];
		err = make_part(&source->parts[i], layout->block_tokens, layout->element_bytes,
				&layout->parts[i]);
		if (err)
			return refuse(error, err, "no memory for the tables of part %u", i);
	}
	err = take_tensors(source, layout, region_bytes, error);
	if (err)
		return err;
	return check_overlap(source, layout, error);
}

int layout_create(const struct ssv_layout *source, uint64_t region_bytes,
		  struct layout **ret_layout, char *error)
{
	struct layout *layout = calloc(1, sizeof(*layout));
	int err;

	if (!layout)
		return refuse(error, -ENOMEM, "no memory for a layout");
	err = fill_layout(source, layout, region_bytes, error);
	if (err) {
		layout_destroy(layout);
		return err;
	}
	*ret_layout = layout;
	return 0;
}

void layout_destroy(struct layout *layout)
{
	if (!layout)
		return;
	for (uint32_t i = 0; i < SSV_PARTS_MAX; i++) {
		free(layout->parts[i].place.channel);
		free(layout->parts[i].packed.channel);
		free(layout->parts[i].runs);
	}
	free(layout->tensors);
	free(layout);
}
