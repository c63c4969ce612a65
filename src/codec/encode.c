/* SPDX-License-Identifier: Apache-2.0 */
/*
 * encode.c - a chunk's tensors to a container, one entry a tensor.
 *
 * A tensor is stored as it is whenever coding it would not be smaller, so that no entry exceeds its
 * elements' size.
 */
#include <errno.h>
#include <string.h>

#include "codec/codec.h"
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

int encoder_tensor(struct encoder *encoder, const uint8_t *elements)
{
	int err;

	if (encoder->next_tensor >= shape_tensors(&encoder->builder.header.shape))
		return -EINVAL;
	err = append_stored(encoder, elements);
	if (!err)
		encoder->next_tensor++;
	return err;
}

int encoder_finish(struct encoder *encoder, uint64_t *ret_bytes)
{
	float error[SSV_PARTS_MAX] = {0};

	return builder_finish(&encoder->builder, error, ret_bytes);
}
