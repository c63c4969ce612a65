/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ours.c - the product's own codec as contenders: containers to engine pages, and back.
 *
 * decode does all that the data plane does with a chunk whose bytes have arrived: opening, every
 * checksum, entropy decoding, dequantising, writing to the pages of a layout. What it writes is
 * compared with the scalar kernels' rows before anything is timed.
 */
#include <string.h>

#include "codec/kernels.h"
#include "deliver/layout.h"
#include "speed.h"

#define ENCODED_MAX  32u
#define CHUNK_BLOCKS (SSV_CHUNK_TOKENS / SPEED_BLOCK_TOKENS)

/* All chunks in one tier and back end; made once, whoever decodes them. */
struct encoded {
	uint8_t tier, codec;
	uint8_t *value[SPEED_CHUNKS_MAX];
	uint64_t bytes[SPEED_CHUNKS_MAX], wire_bytes;
};

struct ours {
	const struct kernels *kernels;
	const struct encoded *encoded; /* decode */
	struct layout *layout;
	uint8_t tier, codec;
	uint8_t *value; /* encode: where each chunk goes */
};

static void *scratch_get(void)
{
	static void *scratch;
	uint64_t bytes = align_up(codec_scratch_bytes(SSV_CHANNELS_MAX), 64);

	if (scratch)
		return scratch;
	scratch = speed_alloc(bytes);
	if (codec_scratch_init(scratch, bytes, SSV_CHANNELS_MAX))
		speed_die("out of memory", "codec scratch");
	return scratch;
}

static struct ours *ours_open(struct contender *c)
{
	struct ours *ours = speed_alloc(sizeof(*ours));

	*ours = (struct ours){
	    .kernels = kernels_find(c->field[3]),
	    .tier = tier_parse(c->field[1]),
	    .codec = codec_parse(c->field[2]),
	};
	if (!ours->kernels || !ours->tier || !ours->codec)
		speed_die("no such tier, codec or SIMD level here", c->spec);
	c->state = ours;
	return ours;
}

static void ours_begin(struct contender *c)
{
	kernels_use(((struct ours *)c->state)->kernels);
}

/* ---- encoding -------------------------------------------------------------------------------- */

static uint64_t encode(const struct kv *kv, uint32_t chunk, uint8_t tier, uint8_t codec,
		       uint8_t *value)
{
	struct chunk_identity identity = {.first_token = kv->first_token[chunk]};
	struct encode_options options = {
	    .tier = tier, .codec = codec, .verbatim_tokens = kv->first_token[chunk] ? 0 : 4};
	uint64_t capacity = shape_container_bytes_max(&kv->shape) + CONTAINER_SLACK_BYTES, bytes;
	struct encoder encoder;
	int err;

	err = encoder_begin(&encoder, &identity, &kv->shape, &options, value, capacity,
			    scratch_get());
	for (uint32_t t = 0; !err && t < kv->tensors_count; t++)
		err = encoder_tensor(&encoder, kv_tensor(kv, chunk, t));
	if (!err)
		err = encoder_finish(&encoder, &bytes);
	if (err)
		speed_die("encoding failed", strerror(-err));
	return bytes;
}

static const struct encoded *encoded_get(const struct kv *kv, uint8_t tier, uint8_t codec)
{
	static struct encoded all[ENCODED_MAX];
	static uint32_t count;
	uint8_t *value;

	for (uint32_t i = 0; i < count; i++)
		if (all[i].tier == tier && all[i].codec == codec)
			return &all[i];
	if (count == ENCODED_MAX)
		speed_die("too many pairs of tier and codec", "bench_speed");
	all[count] = (struct encoded){.tier = tier, .codec = codec};
	value = speed_alloc(shape_container_bytes_max(&kv->shape) + CONTAINER_SLACK_BYTES);
	kernels_use(NULL);
	for (uint32_t i = 0; i < kv->chunks_count; i++) {
		uint64_t bytes = encode(kv, i, tier, codec, value);

		all[count].value[i] = speed_alloc(bytes);
		memcpy(all[count].value[i], value, bytes);
		memset(all[count].value[i] + bytes, 0, CONTAINER_SLACK_BYTES);
		all[count].bytes[i] = bytes;
		all[count].wire_bytes += bytes;
	}
	free(value);
	return &all[count++];
}

/* Every level must write the bytes that the scalar kernels write. */
static void encode_prepare(struct contender *c, const struct kv *kv, const struct destination *to)
{
	struct ours *ours = ours_open(c);
	const struct encoded *encoded = encoded_get(kv, ours->tier, ours->codec);
	uint64_t bytes;

	(void)to;
	c->wire_bytes = encoded->wire_bytes;
	ours->value = speed_alloc(shape_container_bytes_max(&kv->shape) + CONTAINER_SLACK_BYTES);
	kernels_use(ours->kernels);
	bytes = encode(kv, 0, ours->tier, ours->codec, ours->value);
	if (bytes != encoded->bytes[0] || memcmp(ours->value, encoded->value[0], bytes))
		speed_die("WRONG: encodes other bytes than another level", c->spec);
}

static void encode_chunk(struct contender *c, const struct kv *kv, uint32_t chunk,
			 const struct destination *to, uint32_t slot)
{
	struct ours *ours = c->state;

	(void)to;
	(void)slot;
	encode(kv, chunk, ours->tier, ours->codec, ours->value);
}

/* ---- decoding -------------------------------------------------------------------------------- */

/* Rows: [layer][part][block][token][head][dim], as CUDA back ends have it. */
static void place_rows(const struct kv *kv, uint32_t slots, struct ssv_layout *layout,
		       struct ssv_tensor *tensors)
{
	const struct chunk_part *part = &kv->shape.parts[0];

	for (uint32_t i = 0; i < 2; i++) {
		struct ssv_digit *digits = layout->parts[i].digits;

		digits[0] = (struct ssv_digit){
		    .axis = SSV_AXIS_TOKEN, .extent = SPEED_BLOCK_TOKENS, .stride = kv->channels};
		digits[1] = (struct ssv_digit){
		    .axis = SSV_AXIS_HEAD, .extent = part->heads, .stride = part->dim};
		digits[2] =
		    (struct ssv_digit){.axis = SSV_AXIS_DIM, .extent = part->dim, .stride = 1};
	}
	for (uint32_t i = 0; i < kv->tensors_count; i++) {
		tensors[i].offset = (uint64_t)i * slots * kv->tensor_bytes;
		tensors[i].block_stride = kv->tensor_bytes / CHUNK_BLOCKS;
	}
}

/* vLLM on CPUs: [layer][block][head][part], K as [dim][token], V as [token][dim]. */
static void place_transposed(const struct kv *kv, uint32_t slots, struct ssv_layout *layout,
			     struct ssv_tensor *tensors)
{
	const struct chunk_part *part = &kv->shape.parts[0];
	const int64_t half = (int64_t)SPEED_BLOCK_TOKENS * part->dim; /* elements of a head */

	for (uint32_t i = 0; i < 2; i++) {
		struct ssv_digit *digits = layout->parts[i].digits;

		digits[0] = (struct ssv_digit){.axis = SSV_AXIS_TOKEN,
					       .extent = SPEED_BLOCK_TOKENS,
					       .stride = i ? part->dim : 1};
		digits[1] = (struct ssv_digit){.axis = SSV_AXIS_DIM,
					       .extent = part->dim,
					       .stride = i ? 1 : SPEED_BLOCK_TOKENS};
		digits[2] = (struct ssv_digit){
		    .axis = SSV_AXIS_HEAD, .extent = part->heads, .stride = 2 * half};
	}
	for (uint32_t i = 0; i < kv->tensors_count; i++) {
		tensors[i].offset =
		    (uint64_t)(i / 2) * 2 * slots * kv->tensor_bytes + i % 2 * (uint64_t)half * 2;
		tensors[i].block_stride = 2 * kv->tensor_bytes / CHUNK_BLOCKS;
	}
}

static struct layout *layout_make(const struct kv *kv, uint32_t slots, const char *name)
{
	static struct ssv_tensor tensors[SSV_TENSORS_MAX];
	struct ssv_layout source = {
	    .struct_size = sizeof(source),
	    .dtype = SSV_DTYPE_BF16,
	    .parts_count = 2,
	    .layers_count = kv->shape.layers_count,
	    .layers_total = kv->shape.layers_count,
	    .ranks_count = 1,
	    .block_tokens = SPEED_BLOCK_TOKENS,
	    .blocks_count = slots * CHUNK_BLOCKS,
	    .tensors_count = kv->tensors_count,
	    .tensors = tensors,
	};
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct layout *layout = NULL;

	for (uint32_t i = 0; i < 2; i++) {
		source.parts[i].role = (uint8_t)(SSV_ROLE_K + i);
		source.parts[i].heads = kv->shape.parts[i].heads;
		source.parts[i].dim = kv->shape.parts[i].dim;
		source.parts[i].digits_count = 3;
	}
	for (uint32_t i = 0; i < kv->tensors_count; i++)
		tensors[i] =
		    (struct ssv_tensor){.layer = (uint16_t)(i / 2), .part = (uint16_t)(i % 2)};
	if (!strcmp(name, "rows"))
		place_rows(kv, slots, &source, tensors);
	else if (!strcmp(name, "transposed"))
		place_transposed(kv, slots, &source, tensors);
	else
		speed_die("LAYOUT: expected rows or transposed", name);
	if (layout_create(&source, (uint64_t)slots * kv->chunk_bytes, &layout, error))
		speed_die("layout", error);
	return layout;
}

static struct decode_target target_of(const struct layout *layout, uint32_t tensor, uint32_t slot,
				      uint8_t *bytes, uint8_t *token[SSV_CHUNK_TOKENS])
{
	const struct layout_map *map = &layout_tensor_part(layout, tensor)->place;

	for (uint32_t b = 0; b < CHUNK_BLOCKS; b++) {
		uint8_t *block =
		    bytes + layout_block_offset(layout, tensor, slot * CHUNK_BLOCKS + b);

		for (uint32_t t = 0; t < SPEED_BLOCK_TOKENS; t++)
			token[b * SPEED_BLOCK_TOKENS + t] = block + map->token[t];
	}
	return (struct decode_target){.token = token,
				      .channel = map->channel,
				      .run_channels = map->run_channels,
				      .token_stride = map->token_stride};
}

static void decode_chunk(struct contender *c, const struct kv *kv, uint32_t chunk,
			 const struct destination *to, uint32_t slot)
{
	const struct ours *ours = c->state;
	struct container_expect expect = {.value_bytes = ours->encoded->bytes[chunk],
					  .shape = &kv->shape,
					  .first_token = kv->first_token[chunk],
					  .any_key = 1};
	uint8_t *token[ENTRY_TENSORS_MAX][SSV_CHUNK_TOKENS];
	struct decode_target targets[ENTRY_TENSORS_MAX];
	enum container_fault fault = CONTAINER_FAULT_NONE;
	struct container container;
	uint32_t tensor = 0;
	int err;

	err = container_open(&container, ours->encoded->value[chunk], expect.value_bytes, &expect,
			     &fault);
	for (uint32_t i = 0; !err && i < container.header.segments_count; i++) {
		struct container_entry entry;

		container_entry(&container, i, &entry);
		for (uint32_t k = 0; k < entry.tensors_count; k++)
			targets[k] = target_of(ours->layout, tensor + k, slot, to->bytes, token[k]);
		tensor += entry.tensors_count;
		err = segment_decode(&container, i, targets, scratch_get(), &fault);
	}
	if (err)
		speed_die(container_fault_text(fault), c->spec);
}

/* Is the slot what the scalar kernels write to rows? rows: a destination of one slot. */
static void decode_check(struct contender *c, const struct kv *kv, const struct destination *to,
			 struct ours *ours, const struct destination *rows)
{
	struct ours plain = {.encoded = ours->encoded, .layout = layout_make(kv, 1, "rows")};
	struct contender scalar = {.spec = c->spec, .state = &plain};
	uint8_t *token[SSV_CHUNK_TOKENS];

	kernels_use(&kernels_scalar);
	decode_chunk(&scalar, kv, 0, rows, 0);
	kernels_use(ours->kernels);
	decode_chunk(c, kv, 0, to, to->slots_count - 1);
	for (uint32_t i = 0; i < kv->tensors_count; i++) {
		struct decode_target target =
		    target_of(ours->layout, i, to->slots_count - 1, to->bytes, token);
		const uint8_t *expected = slot_tensor(kv, rows, i, 0);

		if (ours->tier == SSV_TIER_LOSSLESS &&
		    memcmp(expected, kv_tensor(kv, 0, i), kv->tensor_bytes))
			speed_die("WRONG: not lossless", c->spec);
		for (uint32_t t = 0; t < SSV_CHUNK_TOKENS; t++)
			for (uint32_t k = 0; k < kv->channels; k++, expected += 2)
				if (memcmp(token[t] + target.channel[k], expected, 2))
					speed_die("WRONG: decodes other values than scalar",
						  c->spec);
	}
	layout_destroy(plain.layout);
}

static void decode_prepare(struct contender *c, const struct kv *kv, const struct destination *to)
{
	struct ours *ours = ours_open(c);
	struct destination rows = {.bytes = speed_alloc(kv->chunk_bytes), .slots_count = 1};

	ours->encoded = encoded_get(kv, ours->tier, ours->codec);
	ours->layout = layout_make(kv, to->slots_count, c->field[4]);
	c->wire_bytes = ours->encoded->wire_bytes;
	decode_check(c, kv, to, ours, &rows);
	free(rows.bytes);
}

const struct contender_ops speed_decode = {.name = "decode",
					   .fields_count = 5,
					   .prepare = decode_prepare,
					   .begin = ours_begin,
					   .chunk = decode_chunk};
const struct contender_ops speed_encode = {.name = "encode",
					   .fields_count = 4,
					   .prepare = encode_prepare,
					   .begin = ours_begin,
					   .chunk = encode_chunk};
