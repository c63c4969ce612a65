/* SPDX-License-Identifier: Apache-2.0 */
/*
 * encode.c - a chunk's tensors to a container, one entry a tensor.
 *
 * A tensor is stored as it is whenever coding it would not be smaller, so that no entry exceeds its
 * elements' size.
 */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "codec/codec.h"
#include "codec/draft.h"
#include "codec/lossless.h"
#include "codec/tier.h"

int encoder_begin(struct encoder *encoder, const struct chunk_identity *identity,
		  const struct chunk_shape *shape, const struct encode_options *options,
		  uint8_t *out, uint64_t out_capacity, void *scratch)
{
	const struct codec_scratch *s = scratch;
	struct container_header header = {.key = identity->key,
					  .first_token = identity->first_token,
					  .tier = options->tier,
					  .shape = *shape};

	if (!tier_find(options->tier) || !lossless_find(options->codec))
		return -EINVAL;
	if (options->trellis && options->codec != SSV_CODEC_R16)
		return -EINVAL;
	if (options->profile && !profile_fits(options->profile, shape, NULL))
		return -EINVAL;
	memset(encoder, 0, sizeof(*encoder));
	encoder->options = *options;
	encoder->scratch = scratch;
	memcpy(header.model, identity->model, sizeof(header.model));
	if (!lossless_find(options->codec)->has_classes)
		encoder->options.tier = header.tier = SSV_TIER_LOSSLESS;
	if (header.tier == SSV_TIER_LOSSLESS)
		encoder->options.verbatim_tokens = 0;
	if (encoder->options.verbatim_tokens > shape->tokens)
		encoder->options.verbatim_tokens = (uint8_t)shape->tokens;
	header.verbatim_tokens = encoder->options.verbatim_tokens;
	if (profile_has_tier(options->profile, header.tier))
		memcpy(header.profile, options->profile->hash, sizeof(header.profile));
	for (uint32_t p = 0; p < shape->parts_count && p < SSV_PARTS_MAX; p++)
		if (part_channels(&shape->parts[p]) > s->channels_max)
			return -EINVAL;
	return builder_begin(&encoder->builder, &header, out, out_capacity);
}

/* The entry of the next tensor, as far as it does not depend on how it is coded. */
static void entry_begin(const struct encoder *encoder, struct container_entry *entry)
{
	const struct chunk_shape *shape = &encoder->builder.header.shape;

	memset(entry, 0, sizeof(*entry));
	entry->layer = (uint16_t)(encoder->next_tensor / shape->parts_count);
	entry->part = (uint8_t)(encoder->next_tensor % shape->parts_count);
	entry->groups_count = (uint16_t)part_groups(&shape->parts[entry->part]);
	entry->tensors_count = 1;
	entry->streams_count = 1;
}

static int append_stored(struct encoder *encoder, const uint8_t *elements)
{
	const struct chunk_shape *shape = &encoder->builder.header.shape;
	struct container_entry entry;
	uint64_t room;
	uint8_t *wire = builder_wire(&encoder->builder, &room);

	entry_begin(encoder, &entry);
	entry.codec = WIRE_CODEC_STORED;
	entry.wire_bytes = (uint32_t)shape_tensor_bytes(shape, entry.part);
	if (room < entry.wire_bytes)
		return -E2BIG;
	memcpy(wire, elements, entry.wire_bytes);
	return builder_append(&encoder->builder, &entry);
}

static void draft_open(struct encoder *encoder, const uint8_t *elements, struct draft *draft)
{
	const struct container_header *header = &encoder->builder.header;
	struct codec_scratch *s = encoder->scratch;

	memset(draft, 0, sizeof(*draft));
	draft->elements = elements;
	draft->part = &header->shape.parts[encoder->next_tensor % header->shape.parts_count];
	draft->dtype = header->shape.dtype;
	draft->element_bytes = dtype_bytes(draft->dtype);
	draft->tokens = header->shape.tokens;
	draft->channels = part_channels(draft->part);
	draft->groups = part_groups(draft->part);
	draft->verbatim = header->verbatim_tokens;
	draft->scratch = s;
	draft->kernels = kernels_get();
	draft->is_trellis = encoder->options.trellis;
	draft->is_followed = encoder->next_tensor + 1 < shape_tensors(&header->shape);
	draft->plane.classes = s->classes;
	draft->plane.groups_count = draft->groups;
	draft->plane.tokens = draft->tokens;
	draft->plane.last_lanes = draft->channels - (draft->groups - 1) * LANES;
}

/* The most raw bytes that any choice of raw bits gives; always less than the elements. */
static uint64_t raw_bytes_max(const struct draft *draft, int lossless)
{
	uint32_t bits = lossless ? dtype_raw_bits(draft->dtype) : RAW_BITS_MAX;
	uint64_t bytes = 0;

	for (uint32_t g = 0; g < draft->groups; g++)
		bytes += (draft_lanes(draft, g) * bits + 7) / 8;
	return bytes * draft->tokens;
}

/* The relative error above which a tensor is not what its tier means; 0: none is. */
static double error_limit(const struct encoder *encoder)
{
	const struct encode_profile *profile = encoder->options.profile;
	const struct chunk_shape *shape = &encoder->builder.header.shape;
	uint8_t tier = encoder->options.tier;
	uint32_t tensor = shape->layer0 * shape->parts_count + encoder->next_tensor;
	double limit = encoder->options.error_max[encoder->next_tensor % shape->parts_count];

	if (limit > 0)
		return limit;
	if (!profile_has_tier(profile, tier))
		return tier_find(tier)->error_max;
	return profile->error[tier] ? profile->error[tier][tensor] * profile->error_margin : 0;
}

/* What the profile says of the draft's steps in a tier. */
static void draft_weigh(const struct encoder *encoder, struct draft *draft, uint8_t tier)
{
	const struct encode_profile *profile = encoder->options.profile;
	const struct chunk_shape *shape = &encoder->builder.header.shape;
	uint32_t layer = shape->layer0 + encoder->next_tensor / shape->parts_count;
	uint32_t part = encoder->next_tensor % shape->parts_count;
	const struct profile_part *model;
	size_t head;

	draft->weight = NULL;
	draft->factor = NULL;
	if (!profile_has_tier(profile, tier))
		return;
	model = &profile->parts[part];
	head = (size_t)layer * model->heads + shape->parts[part].head0;
	draft->scale = profile->scale[tier];
	draft->weight = model->weight + head;
	if (model->factor)
		draft->factor = model->factor + head * model->dim;
}

/* Fill the draft by the tier, or by a finer one if its error is too large. -E2BIG: store it. */
static int draft_fill(struct encoder *encoder, struct draft *draft)
{
	double limit = error_limit(encoder);
	uint8_t tier = encoder->options.tier;
	int err;

	if (tier == SSV_TIER_LOSSLESS)
		return draft_split(draft);
	for (; tier > SSV_TIER_LOSSLESS; tier--) {
		draft_weigh(encoder, draft, tier);
		err = draft_quantise(draft, tier_find(tier));
		if (err || !(limit > 0) || draft->error_sum <= limit * limit * draft->norm_sum)
			return err;
		if (tier == encoder->options.tier)
			encoder->finer_tensors++;
	}
	return -E2BIG;
}

/* Code the draft's classes and put its wire data and meta together. -E2BIG: no smaller. */
static int draft_append(struct encoder *encoder, struct draft *draft, uint8_t *wire, uint64_t limit)
{
	const struct lossless_ops *ops = lossless_find(encoder->options.codec);
	uint64_t verbatim = (uint64_t)draft->verbatim * draft->channels * draft->element_bytes;
	uint64_t fixed = draft->raw_bytes + draft->exceptions_bytes + verbatim, room, between;
	int lossless = encoder->options.tier == SSV_TIER_LOSSLESS, err;
	uint8_t *meta = builder_meta(&encoder->builder, &room), *out;
	struct container_entry entry;
	struct class_result result;

	entry_begin(encoder, &entry);
	entry.meta_bytes = tensor_meta_bytes(draft->flags, lossless, draft->part->heads,
					     draft->groups, draft->channels);
	if (room < entry.meta_bytes || fixed + entry.meta_bytes >= limit)
		return -E2BIG;
	/* class data must leave room for the rest, and must not reach the raw bits: they make way
	 * if they have to */
	room = limit - fixed - entry.meta_bytes;
	between = (uint64_t)(draft->raw - wire);
	err = ops->encode(draft->scratch, &draft->plane, draft->scratch->frequency, wire,
			  u64_min(room, between), &result);
	if (err == -E2BIG && between < room) {
		memmove(wire + limit - draft->raw_bytes, draft->raw, draft->raw_bytes);
		draft->raw = wire + limit - draft->raw_bytes;
		err = ops->encode(draft->scratch, &draft->plane, draft->scratch->frequency, wire,
				  room, &result);
	}
	if (err)
		return err;
	entry.codec =
	    draft->is_trellis && !lossless ? WIRE_CODEC_TRELLIS : (uint8_t)(ops->codec - 1);
	entry.class_bytes = result.bytes_count;
	entry.streams_count = (uint8_t)result.streams_count;
	entry.class_crc = result.class_crc;
	entry.raw_bytes = draft->raw_bytes;
	entry.exceptions_count = draft->exceptions_count;
	entry.wire_bytes = (uint32_t)(entry.class_bytes + fixed);
	(void)draft_meta(draft, lossless, meta);
	out = wire + entry.class_bytes;
	memmove(out, draft->raw, draft->raw_bytes);
	out += draft->raw_bytes;
	memcpy(out, draft->scratch->exceptions, draft->exceptions_bytes);
	memcpy(out + draft->exceptions_bytes, draft->elements, verbatim);
	return builder_append(&encoder->builder, &entry);
}

static int append_coded(struct encoder *encoder, const uint8_t *elements)
{
	const struct chunk_shape *shape = &encoder->builder.header.shape;
	uint32_t part = encoder->next_tensor % shape->parts_count;
	uint64_t room, limit = shape_tensor_bytes(shape, part);
	uint8_t *wire = builder_wire(&encoder->builder, &room);
	struct draft draft;
	int err;

	if (room < limit)
		return -E2BIG;
	draft_open(encoder, elements, &draft);
	draft.raw =
	    wire + limit - raw_bytes_max(&draft, encoder->options.tier == SSV_TIER_LOSSLESS);
	err = draft_fill(encoder, &draft);
	if (!err)
		err = draft_append(encoder, &draft, wire, limit);
	if (err)
		return err;
	if (draft.norm_sum > 0)
		encoder->last_error = (float)sqrt(draft.error_sum / draft.norm_sum);
	encoder->error_sum[part] += draft.error_sum;
	encoder->norm_sum[part] += draft.norm_sum;
	return 0;
}

int encoder_tensor(struct encoder *encoder, const uint8_t *elements)
{
	int err = -E2BIG;

	if (encoder->next_tensor >= shape_tensors(&encoder->builder.header.shape))
		return -EINVAL;
	encoder->last_error = 0;
	if (lossless_find(encoder->options.codec)->has_classes)
		err = append_coded(encoder, elements);
	if (err == -E2BIG)
		err = append_stored(encoder, elements);
	if (!err)
		encoder->next_tensor++;
	return err;
}

int encoder_finish(struct encoder *encoder, uint64_t *ret_bytes)
{
	float error[SSV_PARTS_MAX] = {0};

	for (uint32_t p = 0; p < encoder->builder.header.shape.parts_count; p++)
		if (encoder->norm_sum[p] > 0)
			error[p] = (float)sqrt(encoder->error_sum[p] / encoder->norm_sum[p]);
	return builder_finish(&encoder->builder, error, ret_bytes);
}
