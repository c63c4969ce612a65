/* SPDX-License-Identifier: Apache-2.0 */
/*
 * transcode.c - a container's classes through another back end; symbols, raw bits, exceptions and
 * meta are copied as they are, so every value stays.
 *
 * What cannot be moved: a stored tensor of a quantised chunk has no symbols and stays stored, and a
 * tensor that would not be smaller with the new back end becomes stored, with the values that the
 * old one decodes to. A trellis tensor keeps its codec (r16 with states) unless it is to be stored.
 */
#include "codec/transcode.h"

#include <errno.h>
#include <string.h>

#include "codec/draft.h"
#include "codec/reader.h"

struct transcoder {
	struct encoder encoder; /* its builder, and tensors that are coded anew */
	const struct lossless_ops *ops;
	struct entry_reader reader;
	enum container_fault fault;
};

/* The current tensor's meta as it stands in the container. */
static const uint8_t *tensor_meta_at(const struct entry_reader *r, uint32_t *ret_bytes)
{
	int lossless = r->container->header.tier == SSV_TIER_LOSSLESS;
	const uint8_t *meta = r->container->bytes + r->entry.meta_offset;

	for (uint32_t t = 0;; t++) {
		struct tensor_extent x;

		entry_extent(&r->container->header.shape, &r->entry, t, &x);
		*ret_bytes = tensor_meta_bytes(*meta, lossless, x.heads_count, x.groups_count,
					       x.channels_count);
		if (t + 1 == r->index)
			return meta;
		meta += *ret_bytes;
	}
}

static void entry_begin(const struct entry_reader *r, struct container_entry *entry)
{
	memset(entry, 0, sizeof(*entry));
	entry->layer = (uint16_t)r->extent.layer;
	entry->part = (uint8_t)r->extent.part;
	entry->group0 = (uint16_t)r->extent.group0;
	entry->groups_count = (uint16_t)r->extent.groups_count;
	entry->tensors_count = 1;
	entry->streams_count = 1;
}

static uint32_t extent_bytes(const struct entry_reader *r)
{
	return r->tokens * r->extent.channels_count * r->element_bytes;
}

/* Write the tensor's elements, in canonical order, as a stored entry. */
static int append_elements(struct transcoder *t, struct entry_reader *r)
{
	/* a row of the tensor holds the extent's channels alone */
	uint32_t row_bytes = r->extent.channels_count * r->element_bytes;
	struct decode_target target = {.token = r->scratch->rows,
				       .channel = r->scratch->row_offset,
				       .run_channels = r->extent.channels_count};
	struct container_entry entry;
	uint64_t room;
	uint8_t *wire = builder_wire(&t->encoder.builder, &room);

	entry_begin(r, &entry);
	entry.codec = WIRE_CODEC_STORED;
	entry.wire_bytes = extent_bytes(r);
	if (room < entry.wire_bytes)
		return -E2BIG;
	for (uint32_t i = 0; i < r->tokens; i++)
		r->scratch->rows[i] = wire + (size_t)i * row_bytes;
	for (uint32_t c = 0; c < r->extent.channels_count; c++)
		r->scratch->row_offset[r->extent.channel0 + c] = c * r->element_bytes;
	t->fault = entry_reader_elements(r, &target);
	if (t->fault)
		return -EBADMSG;
	return builder_append(&t->encoder.builder, &entry);
}

/* Copy the tensor's exceptions, counted from its own first element. */
static uint8_t *copy_exceptions(const struct entry_reader *before, uint32_t count, uint8_t *out)
{
	uint32_t bytes = EXCEPTION_INDEX_BYTES + before->element_bytes;
	const uint8_t *in = before->exception;

	for (uint32_t i = 0; i < count; i++, in += bytes, out += bytes) {
		uint32_t index = (uint32_t)in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16;

		memcpy(out, in, bytes);
		index -= before->exception_base;
		out[0] = (uint8_t)index;
		out[1] = (uint8_t)(index >> 8);
		out[2] = (uint8_t)(index >> 16);
	}
	return out;
}

/* Code the classes anew and copy the rest. before, after: the reader around the tensor's share of
 * the wire data. -E2BIG: not smaller than its elements. */
static int append_classes(struct transcoder *t, const struct entry_reader *before,
			  const struct entry_reader *after)
{
	uint32_t exceptions = before->exceptions_left - after->exceptions_left;
	uint64_t raw = (uint64_t)(after->raw - before->raw);
	uint64_t verbatim = (uint64_t)(after->verbatim - before->verbatim);
	uint64_t fixed =
	    raw + verbatim + (uint64_t)exceptions * (EXCEPTION_INDEX_BYTES + before->element_bytes);
	uint64_t limit = extent_bytes(before), wire_room, meta_room;
	uint8_t *wire = builder_wire(&t->encoder.builder, &wire_room), *out;
	uint8_t *meta = builder_meta(&t->encoder.builder, &meta_room);
	const struct lossless_ops *ops;
	struct container_entry entry;
	struct class_result result;
	const uint8_t *old_meta;
	int err;

	entry_begin(before, &entry);
	old_meta = tensor_meta_at(before, &entry.meta_bytes);
	limit = u64_min(limit, wire_room);
	if (fixed + entry.meta_bytes >= limit || entry.meta_bytes > meta_room)
		return -E2BIG;
	/* no other back end's entries have such symbols */
	ops = before->is_trellis ? &lossless_r16 : t->ops;
	err = ops->encode(before->scratch, &before->plane, before->meta.frequency, wire,
			  limit - fixed - entry.meta_bytes, &result);
	if (err)
		return err;
	entry.codec = before->is_trellis ? WIRE_CODEC_TRELLIS : (uint8_t)(ops->codec - 1);
	entry.class_bytes = result.bytes_count;
	entry.streams_count = (uint8_t)result.streams_count;
	entry.class_crc = result.class_crc;
	entry.raw_bytes = (uint32_t)raw;
	entry.exceptions_count = exceptions;
	entry.wire_bytes = (uint32_t)(entry.class_bytes + fixed);
	memcpy(meta, old_meta, entry.meta_bytes);
	memcpy(wire + entry.class_bytes, before->raw, raw);
	out = copy_exceptions(before, exceptions, wire + entry.class_bytes + raw);
	memcpy(out, before->verbatim, verbatim);
	return builder_append(&t->encoder.builder, &entry);
}

/* A tensor with classes. Decoding it to nowhere first checks it and finds where its share ends. */
static int transcode_classes(struct transcoder *t)
{
	struct entry_reader before = t->reader;
	struct decode_target nowhere = {.token = t->reader.scratch->rows,
					.channel = t->reader.scratch->row_offset};
	int err = -E2BIG;

	memset(t->reader.scratch->rows, 0, t->reader.tokens * sizeof(*t->reader.scratch->rows));
	memset(t->reader.scratch->row_offset, 0,
	       t->reader.scratch->channels_max * sizeof(*t->reader.scratch->row_offset));
	t->fault = entry_reader_elements(&t->reader, &nowhere);
	if (t->fault)
		return -EBADMSG;
	if (t->ops->has_classes)
		err = append_classes(t, &before, &t->reader);
	if (err == -E2BIG)
		err = append_elements(t, &before);
	return err;
}

static int transcode_tensor(struct transcoder *t)
{
	struct entry_reader *r = &t->reader;
	const struct chunk_part *part;

	t->fault = entry_reader_classes(r);
	if (t->fault)
		return -EBADMSG;
	part = &r->container->header.shape.parts[r->extent.part];
	if (r->ops->has_classes)
		return transcode_classes(t);
	t->encoder.next_tensor =
	    r->extent.layer * r->container->header.shape.parts_count + r->extent.part;
	if (r->container->header.tier == SSV_TIER_LOSSLESS &&
	    r->extent.groups_count == part_groups(part))
		return encoder_tensor(&t->encoder, r->container->bytes + r->entry.offset);
	return append_elements(t, r);
}

static int transcode_entry(struct transcoder *t, const struct container *container, uint32_t index,
			   struct codec_scratch *scratch)
{
	int err = 0;

	t->fault = entry_reader_open(&t->reader, container, index, scratch);
	if (t->fault)
		return -EBADMSG;
	for (uint32_t i = 0; !err && i < t->reader.entry.tensors_count; i++)
		err = transcode_tensor(t);
	if (err)
		return err;
	t->fault = entry_reader_close(&t->reader);
	return t->fault ? -EBADMSG : 0;
}

int chunk_transcode(const struct container *container, uint8_t codec, uint8_t *out,
		    uint64_t out_capacity, void *scratch, uint64_t *ret_bytes,
		    enum container_fault *ret_fault)
{
	struct transcoder t = {.ops = lossless_find(codec)};
	int err;

	*ret_fault = CONTAINER_FAULT_NONE;
	if (!t.ops)
		return -EINVAL;
	t.encoder.options.codec = codec;
	t.encoder.options.tier = container->header.tier;
	t.encoder.options.verbatim_tokens = container->header.verbatim_tokens;
	t.encoder.scratch = scratch;
	err = builder_begin(&t.encoder.builder, &container->header, out, out_capacity);
	for (uint32_t i = 0; !err && i < container->header.segments_count; i++)
		err = transcode_entry(&t, container, i, scratch);
	if (!err)
		err = builder_finish(&t.encoder.builder, container->header.error, ret_bytes);
	*ret_fault = t.fault;
	return err;
}
