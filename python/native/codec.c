/* SPDX-License-Identifier: Apache-2.0 */
/*
 * codec.c - the codec for Python (python/shadowserve/codec.py): whole chunks to containers and
 * back, with the steps of a profile given as arrays. libshadowserve-codec.so is private to the
 * package: its functions change with it.
 *
 * A context is used by one thread at a time. Everything is canonical order: [layer][part][token]
 * [channel].
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "codec/codec.h"

#define CODEC_API __attribute__((visibility("default")))

struct codec_part {
	uint8_t role, reserved;
	uint16_t heads, dim, reserved2;
	const float *weight;   /* [layers][heads] */
	const uint8_t *factor; /* [layers][heads x dim], or NULL */
};

struct codec_job {
	uint32_t struct_size;
	uint8_t dtype, parts_count, tier, codec;
	uint16_t layers_count, tokens;
	uint8_t verbatim_tokens, trellis, reserved[2];
	struct codec_part parts[SSV_PARTS_MAX];
	float scale; /* of the tier's steps; 0: uniform steps */
	float error_margin;
	const float *expected; /* [layers][parts]: errors to expect, or NULL */
	uint8_t hash[8];
};

struct codec_context {
	void *scratch;
	uint8_t *container;
	uint64_t capacity;
	uint32_t channel[SSV_CHANNELS_MAX];
};

CODEC_API int codec_open(struct codec_context **ret_context);
CODEC_API void codec_close(struct codec_context *context);
CODEC_API int codec_encode(struct codec_context *context, const struct codec_job *job,
			   const uint8_t *elements, uint64_t elements_bytes,
			   const uint8_t **ret_container, uint64_t *ret_bytes, float *ret_errors);
CODEC_API int codec_decode(struct codec_context *context, const uint8_t *bytes,
			   uint64_t bytes_count, uint8_t *elements, uint64_t elements_bytes,
			   const char **ret_why);

int codec_open(struct codec_context **ret_context)
{
	struct codec_context *context = calloc(1, sizeof(*context));
	uint64_t bytes = codec_scratch_bytes(SSV_CHANNELS_MAX);
	int err = -ENOMEM;

	if (!context)
		return -ENOMEM;
	context->scratch = aligned_alloc(CACHE_LINE_BYTES, align_up(bytes, CACHE_LINE_BYTES));
	if (context->scratch)
		err = codec_scratch_init(context->scratch, bytes, SSV_CHANNELS_MAX);
	if (err) {
		free(context->scratch);
		free(context);
		return err;
	}
	*ret_context = context;
	return 0;
}

void codec_close(struct codec_context *context)
{
	if (!context)
		return;
	codec_scratch_fini(context->scratch);
	free(context->scratch);
	free(context->container);
	free(context);
}

static int grow(struct codec_context *context, uint64_t bytes)
{
	uint8_t *container;

	if (bytes <= context->capacity)
		return 0;
	container = realloc(context->container, bytes);
	if (!container)
		return -ENOMEM;
	context->container = container;
	context->capacity = bytes;
	return 0;
}

static void shape_of(const struct codec_job *job, struct chunk_shape *shape)
{
	*shape = (struct chunk_shape){.dtype = job->dtype,
				      .parts_count = job->parts_count,
				      .tokens = job->tokens,
				      .layers_count = job->layers_count,
				      .layers_total = job->layers_count,
				      .ranks_count = 1};
	for (uint32_t p = 0; p < job->parts_count && p < SSV_PARTS_MAX; p++)
		shape->parts[p] = (struct chunk_part){.role = job->parts[p].role,
						      .heads = job->parts[p].heads,
						      .dim = job->parts[p].dim};
}

static void profile_of(const struct codec_job *job, struct encode_profile *profile)
{
	*profile = (struct encode_profile){.dtype = job->dtype,
					   .parts_count = job->parts_count,
					   .layers_count = job->layers_count,
					   .error_margin = job->error_margin};
	memcpy(profile->hash, job->hash, sizeof(profile->hash));
	for (uint32_t p = 0; p < job->parts_count; p++)
		profile->parts[p] = (struct profile_part){.role = job->parts[p].role,
							  .heads = job->parts[p].heads,
							  .dim = job->parts[p].dim,
							  .weight = job->parts[p].weight,
							  .factor = job->parts[p].factor};
	if (job->tier < TIERS_COUNT) {
		profile->scale[job->tier] = job->scale;
		profile->error[job->tier] = job->expected;
	}
}

/* The container is lent until the next call. ret_errors: [layers][parts], or NULL. */
int codec_encode(struct codec_context *context, const struct codec_job *job,
		 const uint8_t *elements, uint64_t elements_bytes, const uint8_t **ret_container,
		 uint64_t *ret_bytes, float *ret_errors)
{
	const struct chunk_identity identity = {.key = {{1}}};
	struct encode_options options = {.tier = job->tier,
					 .codec = job->codec,
					 .verbatim_tokens = job->verbatim_tokens,
					 .trellis = job->trellis};
	struct encode_profile profile;
	struct chunk_shape shape;
	struct encoder encoder;
	int err;

	shape_of(job, &shape);
	if (job->struct_size != sizeof(*job) || shape_check(&shape, NULL) ||
	    shape_kv_bytes(&shape) != elements_bytes)
		return -EINVAL;
	if (job->scale > 0) {
		profile_of(job, &profile);
		options.profile = &profile;
	}
	err = grow(context, shape_container_bytes_max(&shape) + CONTAINER_SLACK_BYTES);
	if (!err)
		err = encoder_begin(&encoder, &identity, &shape, &options, context->container,
				    context->capacity, context->scratch);
	for (uint32_t t = 0; !err && t < shape_tensors(&shape); t++) {
		err = encoder_tensor(&encoder, elements);
		elements += shape_tensor_bytes(&shape, t % shape.parts_count);
		if (ret_errors)
			ret_errors[t] = encoder.last_error;
	}
	if (!err)
		err = encoder_finish(&encoder, ret_bytes);
	*ret_container = context->container;
	return err;
}

/* Where the tensor `index`, layer x parts + part, begins. */
static uint64_t tensor_offset(const struct chunk_shape *shape, uint32_t index)
{
	uint64_t layer_bytes = 0, bytes = 0;

	for (uint32_t p = 0; p < shape->parts_count; p++)
		layer_bytes += shape_tensor_bytes(shape, p);
	for (uint32_t p = 0; p < index % shape->parts_count; p++)
		bytes += shape_tensor_bytes(shape, p);
	return index / shape->parts_count * layer_bytes + bytes;
}

static int entry_decode(struct codec_context *context, const struct container *container,
			uint32_t index, uint8_t *elements, enum container_fault *ret_fault)
{
	const struct chunk_shape *shape = &container->header.shape;
	uint8_t *token[ENTRY_TENSORS_MAX][SSV_CHUNK_TOKENS];
	struct decode_target targets[ENTRY_TENSORS_MAX];
	struct container_entry entry;

	*ret_fault = container_segment_check(container, index);
	if (*ret_fault)
		return -EBADMSG;
	container_entry(container, index, &entry);
	for (uint32_t t = 0; t < entry.tensors_count; t++) {
		uint32_t tensor = entry.layer * shape->parts_count + entry.part + t;
		uint32_t channels = part_channels(&shape->parts[tensor % shape->parts_count]);
		uint8_t *first = elements + tensor_offset(shape, tensor);

		for (uint32_t i = 0; i < shape->tokens; i++)
			token[t][i] = first + (size_t)i * channels * dtype_bytes(shape->dtype);
		targets[t] = (struct decode_target){
		    .token = token[t], .channel = context->channel, .run_channels = channels};
	}
	return segment_decode(container, index, targets, context->scratch, ret_fault);
}

/* bytes: a container, whole. elements: as many bytes as its header says. */
int codec_decode(struct codec_context *context, const uint8_t *bytes, uint64_t bytes_count,
		 uint8_t *elements, uint64_t elements_bytes, const char **ret_why)
{
	struct container_expect expect = {
	    .value_bytes = bytes_count, .first_token = -1, .any_key = 1};
	enum container_fault fault = CONTAINER_FAULT_NONE;
	struct container container;
	uint8_t *copy = NULL;
	int err = 0;

	*ret_why = "";
	if (bytes != context->container) { /* the reader looks past the end */
		copy = calloc(1, bytes_count + CONTAINER_SLACK_BYTES);
		if (!copy)
			return -ENOMEM;
		memcpy(copy, bytes, bytes_count);
		bytes = copy;
	}
	err = container_open(&container, bytes, bytes_count, &expect, &fault);
	if (err == -EAGAIN)
		err = -EBADMSG;
	if (!err && container.header.out_bytes != elements_bytes)
		err = -EINVAL;
	for (uint32_t c = 0; !err && c < SSV_CHANNELS_MAX; c++)
		context->channel[c] = c * dtype_bytes(container.header.shape.dtype);
	for (uint32_t i = 0; !err && i < container.header.segments_count; i++)
		err = entry_decode(context, &container, i, elements, &fault);
	if (err == -EBADMSG)
		*ret_why = container_fault_text(fault);
	free(copy);
	return err;
}
