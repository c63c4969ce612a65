/* SPDX-License-Identifier: Apache-2.0 */
/* draft.c - what the two ways to fill a draft share. */
#include "codec/draft.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "codec/float.h"

void draft_reset(struct draft *draft)
{
	draft->raw_bytes = 0;
	draft->exceptions_count = 0;
	draft->exceptions_bytes = 0;
	draft->flags = 0;
	draft->error_sum = 0;
	draft->norm_sum = 0;
}

static int exception_append(struct draft *draft, uint32_t index)
{
	struct codec_scratch *s = draft->scratch;
	uint32_t bytes = EXCEPTION_INDEX_BYTES + draft->element_bytes;
	uint8_t *out = s->exceptions + draft->exceptions_bytes;

	if (draft->exceptions_bytes + bytes > s->exceptions_bytes)
		return -E2BIG;
	out[0] = (uint8_t)index;
	out[1] = (uint8_t)(index >> 8);
	out[2] = (uint8_t)(index >> 16);
	if (draft->element_bytes == 2)
		memcpy(out + EXCEPTION_INDEX_BYTES, draft->elements + 2 * (size_t)index, 2);
	else
		memcpy(out + EXCEPTION_INDEX_BYTES,
		       draft->elements + (size_t)index * draft->element_bytes,
		       draft->element_bytes);
	draft->exceptions_bytes += bytes;
	draft->exceptions_count++;
	return 0;
}

/* A set of channels of a full group as a set of lanes: pairs of its halves take turns. */
static uint64_t channels_to_lanes(uint64_t channels)
{
	uint64_t half[2] = {channels & UINT32_MAX, channels >> 32};

	for (uint32_t k = 0; k < 2; k++) {
		half[k] = (half[k] | half[k] << 16) & 0x0000ffff0000ffffu;
		half[k] = (half[k] | half[k] << 8) & 0x00ff00ff00ff00ffu;
		half[k] = (half[k] | half[k] << 4) & 0x0f0f0f0f0f0f0f0fu;
		half[k] = (half[k] | half[k] << 2) & 0x3333333333333333u;
	}
	return half[0] | half[1] << 2;
}

static double square_at(const struct draft *draft, uint32_t index)
{
	float x = f32_from_bf16(load_le16(draft->elements + 2 * (size_t)index));

	return (double)(x * x);
}

/* Which of 64 coded tokens from `token` on have something outside. Most have nothing. */
static uint64_t tokens_outside(const struct draft *draft, uint32_t token)
{
	const uint64_t *outside = draft->scratch->outside;
	uint32_t end = (uint32_t)u64_min(token + 64, draft->tokens);
	uint64_t some = 0;

	for (uint32_t t = (uint32_t)u64_max(token, draft->verbatim); t < end; t++)
		some |= (uint64_t)(outside[t] != 0) << (t - token);
	return some;
}

static int token_exceptions(struct draft *draft, uint32_t group, uint32_t token, int with_norm)
{
	uint32_t lanes = draft_lanes(draft, group);
	uint64_t left = draft->scratch->outside[token];

	if (lanes == LANES)
		left = channels_to_lanes(left);
	for (; left; left &= left - 1) {
		uint32_t lane = (uint32_t)__builtin_ctzll(left);
		uint32_t channel = group * LANES + lane_channel(lane, lanes);
		uint32_t index = token * draft->channels + channel;
		int err = exception_append(draft, index);

		if (err)
			return err;
		if (with_norm)
			draft->norm_sum -= square_at(draft, index);
	}
	return 0;
}

int draft_exceptions(struct draft *draft, uint32_t group, const uint64_t *some, int with_norm)
{
	int err = 0;

	for (uint32_t token = 0; token < draft->tokens; token += 64) {
		uint64_t left = some ? some[token / 64] : tokens_outside(draft, token);

		/* from one to the next: a branch at each token could not be predicted */
		for (; left && !err; left &= left - 1)
			err = token_exceptions(draft, group,
					       token + (uint32_t)__builtin_ctzll(left), with_norm);
	}
	return err;
}

static uint8_t *put(uint8_t *out, const void *bytes, uint32_t count)
{
	memcpy(out, bytes, count);
	return out + count;
}

/* A bit of each byte, which is 0 or 1. */
static uint8_t *put_bits(uint8_t *out, const uint8_t *bytes, uint32_t count)
{
	uint32_t i = 0;

	/* the product's upper byte has the eight bytes side by side */
	for (; i + 8 <= count; i += 8)
		*out++ = (uint8_t)(load_le64(bytes + i) * 0x0102040810204080u >> 56);
	if (i == count)
		return out;
	*out = 0;
	for (; i < count; i++)
		*out |= (uint8_t)(bytes[i] << i % 8);
	return out + 1;
}

uint32_t draft_meta(const struct draft *draft, int lossless, uint8_t *meta)
{
	const struct codec_scratch *s = draft->scratch;
	uint8_t *out = meta;

	*out++ = draft->flags;
	if (!lossless) {
		for (uint32_t h = 0; h < draft->part->heads; h++, out += 2)
			store_le16(out, s->steps[h]);
		out = put(out, s->raw_bits, draft->groups);
	}
	out = put(out, s->frequency, draft->groups * META_CLASSES);
	if (lossless)
		out = put(out, s->exponent, draft->groups * META_CLASSES);
	if (draft->flags & TENSOR_OFFSET_I8) {
		for (uint32_t c = 0; c < draft->channels; c++)
			out[c] = (uint8_t)s->offset[c];
		out += draft->channels;
	} else if (draft->flags & TENSOR_OFFSET_I16) {
		for (uint32_t c = 0; c < draft->channels; c++, out += 2)
			store_le16(out, (uint16_t)s->offset[c]);
	}
	if (draft->flags & TENSOR_DELTA) {
		out = put_bits(out, s->delta, draft->channels);
	}
	if (draft->flags & TENSOR_FACTOR)
		out = put(out, s->factor, draft->channels);
	return (uint32_t)(out - meta);
}
