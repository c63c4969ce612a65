/* SPDX-License-Identifier: Apache-2.0 */
/*
 * message_body.c - the messages that carry arrays: REGISTER, REQUEST, COMPLETION.
 *
 * A count is believed only when the message is exactly as long as the count says.
 */
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "base/message.h"

#define PROTO(error, ...) (snprintf(error, SSV_ERROR_TEXT_MAX, __VA_ARGS__), -EPROTO)

static void header_put(uint8_t *out, uint16_t type, uint64_t id, size_t bytes)
{
	const struct wire_header header = {
	    .bytes = htole32((uint32_t)bytes),
	    .type = htole16(type),
	    .id = htole64(id),
	};

	memcpy(out, &header, sizeof(header));
}

/* ---- REGISTER ------------------------------------------------------------------------------- */

static void part_put(uint8_t *out, const struct ssv_part *part)
{
	struct wire_part wire = {
	    .role = part->role,
	    .head0 = htole16(part->head0),
	    .heads = htole16(part->heads),
	    .dim = htole16(part->dim),
	    .digits_count = htole32(part->digits_count),
	};

	for (uint32_t i = 0; i < part->digits_count; i++) {
		wire.digits[i].axis = part->digits[i].axis;
		wire.digits[i].extent = htole16(part->digits[i].extent);
		wire.digits[i].stride = (int64_t)htole64((uint64_t)part->digits[i].stride);
	}
	memcpy(out, &wire, sizeof(wire));
}

static void tensor_put(uint8_t *out, const struct ssv_tensor *tensor)
{
	const struct wire_tensor wire = {
	    .layer = htole16(tensor->layer),
	    .part = htole16(tensor->part),
	    .offset = htole64(tensor->offset),
	    .block_stride = htole64(tensor->block_stride),
	};

	memcpy(out, &wire, sizeof(wire));
}

size_t message_register_bytes(const struct ssv_region *region, const struct ssv_layout *layout)
{
	return MESSAGE_HEADER_BYTES + sizeof(struct wire_register) +
	       (memory_is_gpu(region->memory) ? sizeof(struct wire_gpu) : 0) +
	       (memory_is_remote(region->memory) ? sizeof(struct wire_blob) : 0) +
	       layout->parts_count * sizeof(struct wire_part) +
	       layout->tensors_count * sizeof(struct wire_tensor);
}

static void gpu_put(uint8_t *out, const struct ssv_region *region)
{
	struct wire_gpu wire = {.offset = htole64(region->gpu_offset)};

	memcpy(wire.uuid, region->gpu_uuid, sizeof(wire.uuid));
	memcpy(wire.handle, region->gpu_handle, sizeof(wire.handle));
	memcpy(out, &wire, sizeof(wire));
}

static void gpu_get(const uint8_t *in, struct ssv_region *ret_region)
{
	struct wire_gpu wire;

	memcpy(&wire, in, sizeof(wire));
	memcpy(ret_region->gpu_uuid, wire.uuid, sizeof(wire.uuid));
	memcpy(ret_region->gpu_handle, wire.handle, sizeof(wire.handle));
	ret_region->gpu_offset = le64toh(wire.offset);
}

static void blob_put(uint8_t *out, const struct blob *blob)
{
	struct wire_blob wire = {.bytes = htole32(blob->bytes)};

	ssv_assert(blob->bytes <= BLOB_BYTES_MAX);
	memcpy(wire.data, blob->data, blob->bytes);
	memcpy(out, &wire, sizeof(wire));
}

static int blob_get(const uint8_t *in, struct blob *ret_blob, const char *name, char *error)
{
	struct wire_blob wire;

	memcpy(&wire, in, sizeof(wire));
	ret_blob->bytes = le32toh(wire.bytes);
	if (ret_blob->bytes == 0 || ret_blob->bytes > BLOB_BYTES_MAX || wire.reserved)
		return PROTO(error, "%s: a blob of %u bytes, expected 1 to %d and reserved 0", name,
			     ret_blob->bytes, BLOB_BYTES_MAX);
	for (uint32_t i = ret_blob->bytes; i < BLOB_BYTES_MAX; i++) {
		if (wire.data[i])
			return PROTO(error, "%s: bytes beyond its blob are not zero", name);
	}
	memcpy(ret_blob->data, wire.data, sizeof(ret_blob->data));
	return 0;
}

size_t message_encode_register(uint8_t *out, size_t room, uint64_t id,
			       const struct ssv_region *region, const struct ssv_layout *layout,
			       const struct blob *blob)
{
	size_t bytes = message_register_bytes(region, layout);
	struct wire_register wire = {
	    .memory = htole32(region->memory),
	    .dtype = layout->dtype,
	    .parts_count = layout->parts_count,
	    .layer0 = htole16(layout->layer0),
	    .layers_count = htole16(layout->layers_count),
	    .layers_total = htole16(layout->layers_total),
	    .rank = htole16(layout->rank),
	    .ranks_count = htole16(layout->ranks_count),
	    .block_tokens = htole32(layout->block_tokens),
	    .blocks_count = htole32(layout->blocks_count),
	    .tensors_count = htole32(layout->tensors_count),
	    .address = htole64(region->address),
	    .bytes = htole64(region->bytes),
	};

	if (bytes > room)
		return 0;
	memcpy(wire.model, layout->model, sizeof(wire.model));
	header_put(out, MESSAGE_REGISTER, id, bytes);
	out += MESSAGE_HEADER_BYTES;
	memcpy(out, &wire, sizeof(wire));
	out += sizeof(wire);
	if (memory_is_gpu(region->memory)) {
		gpu_put(out, region);
		out += sizeof(struct wire_gpu);
	}
	if (memory_is_remote(region->memory)) {
		blob_put(out, blob);
		out += sizeof(struct wire_blob);
	}
	for (uint32_t i = 0; i < layout->parts_count; i++, out += sizeof(struct wire_part))
		part_put(out, &layout->parts[i]);
	for (uint32_t i = 0; i < layout->tensors_count; i++, out += sizeof(struct wire_tensor))
		tensor_put(out, &layout->tensors[i]);
	return bytes;
}

static int part_get(const uint8_t *in, struct ssv_part *ret_part, char *error)
{
	struct wire_part wire;

	memcpy(&wire, in, sizeof(wire));
	*ret_part = (struct ssv_part){
	    .role = wire.role,
	    .head0 = le16toh(wire.head0),
	    .heads = le16toh(wire.heads),
	    .dim = le16toh(wire.dim),
	    .digits_count = le32toh(wire.digits_count),
	};
	if (ret_part->digits_count > SSV_DIGITS_MAX)
		return PROTO(error, "REGISTER: a part of %u digits, at most %d",
			     ret_part->digits_count, SSV_DIGITS_MAX);
	if (wire.reserved || wire.reserved2)
		return PROTO(error, "REGISTER: reserved bytes of a part are not zero");
	for (uint32_t i = 0; i < ret_part->digits_count; i++) {
		if (wire.digits[i].reserved || wire.digits[i].reserved2)
			return PROTO(error, "REGISTER: reserved bytes of a digit are not zero");
		ret_part->digits[i].axis = wire.digits[i].axis;
		ret_part->digits[i].extent = le16toh(wire.digits[i].extent);
		ret_part->digits[i].stride = (int64_t)le64toh((uint64_t)wire.digits[i].stride);
	}
	return 0;
}

static void tensor_get(const uint8_t *in, struct ssv_tensor *ret_tensor)
{
	struct wire_tensor wire;

	memcpy(&wire, in, sizeof(wire));
	*ret_tensor = (struct ssv_tensor){
	    .layer = le16toh(wire.layer),
	    .part = le16toh(wire.part),
	    .offset = le64toh(wire.offset),
	    .block_stride = le64toh(wire.block_stride),
	};
}

static void register_get(const struct wire_register *wire, struct ssv_region *ret_region,
			 struct ssv_layout *ret_layout)
{
	*ret_region = (struct ssv_region){
	    .struct_size = sizeof(*ret_region),
	    .memory = le32toh(wire->memory),
	    .fd = -1,
	    .address = le64toh(wire->address),
	    .bytes = le64toh(wire->bytes),
	};
	*ret_layout = (struct ssv_layout){
	    .struct_size = sizeof(*ret_layout),
	    .dtype = wire->dtype,
	    .parts_count = wire->parts_count,
	    .layer0 = le16toh(wire->layer0),
	    .layers_count = le16toh(wire->layers_count),
	    .layers_total = le16toh(wire->layers_total),
	    .rank = le16toh(wire->rank),
	    .ranks_count = le16toh(wire->ranks_count),
	    .block_tokens = le32toh(wire->block_tokens),
	    .blocks_count = le32toh(wire->blocks_count),
	    .tensors_count = le32toh(wire->tensors_count),
	};
	memcpy(ret_layout->model, wire->model, sizeof(wire->model));
}

int message_decode_register(const struct message *message, struct ssv_region *ret_region,
			    struct ssv_layout *ret_layout, struct ssv_tensor *tensors,
			    struct blob *ret_blob, char *error)
{
	const uint8_t *in = message->body;
	struct wire_register wire;
	size_t expected;
	int err;

	if (message->body_bytes < sizeof(wire))
		return PROTO(error, "REGISTER of %u bytes", message->bytes);
	memcpy(&wire, in, sizeof(wire));
	if (wire.reserved || wire.reserved2)
		return PROTO(error, "REGISTER: reserved bytes are not zero");
	register_get(&wire, ret_region, ret_layout);
	if (ret_layout->parts_count > SSV_PARTS_MAX || ret_layout->tensors_count > SSV_TENSORS_MAX)
		return PROTO(error, "REGISTER: %u parts and %u tensors, at most %d and %d",
			     ret_layout->parts_count, ret_layout->tensors_count, SSV_PARTS_MAX,
			     SSV_TENSORS_MAX);
	expected = message_register_bytes(ret_region, ret_layout);
	if (message->bytes != expected)
		return PROTO(error, "REGISTER of %u bytes, its counts make %u", message->bytes,
			     (uint32_t)expected);
	in += sizeof(wire);
	if (memory_is_gpu(ret_region->memory)) {
		gpu_get(in, ret_region);
		in += sizeof(struct wire_gpu);
	}
	*ret_blob = (struct blob){0};
	if (memory_is_remote(ret_region->memory)) {
		err = blob_get(in, ret_blob, "REGISTER", error);
		if (err)
			return err;
		in += sizeof(struct wire_blob);
	}
	for (uint32_t i = 0; i < ret_layout->parts_count; i++, in += sizeof(struct wire_part)) {
		err = part_get(in, &ret_layout->parts[i], error);
		if (err)
			return err;
	}
	for (uint32_t i = 0; i < ret_layout->tensors_count; i++, in += sizeof(struct wire_tensor))
		tensor_get(in, &tensors[i]);
	ret_layout->tensors = tensors;
	return 0;
}

/* ---- REGISTERED ----------------------------------------------------------------------------- */

size_t message_encode_registered(uint8_t *out, size_t room, uint64_t id, uint32_t region,
				 const struct blob *blob)
{
	const struct wire_region wire = {.region = htole32(region)};
	size_t bytes = MESSAGE_HEADER_BYTES + sizeof(wire) + (blob ? sizeof(struct wire_blob) : 0);

	if (bytes > room)
		return 0;
	header_put(out, MESSAGE_REGISTERED, id, bytes);
	memcpy(out + MESSAGE_HEADER_BYTES, &wire, sizeof(wire));
	if (blob)
		blob_put(out + MESSAGE_HEADER_BYTES + sizeof(wire), blob);
	return bytes;
}

int message_decode_registered(const struct message *message, uint32_t *ret_region,
			      struct blob *ret_blob, char *error)
{
	struct wire_region wire;

	*ret_blob = (struct blob){0};
	if (message->body_bytes != sizeof(wire) &&
	    message->body_bytes != sizeof(wire) + sizeof(struct wire_blob))
		return PROTO(error, "REGISTERED of %u bytes", message->bytes);
	memcpy(&wire, message->body, sizeof(wire));
	if (wire.reserved)
		return PROTO(error, "REGISTERED: reserved bytes are not zero");
	*ret_region = le32toh(wire.region);
	if (message->body_bytes == sizeof(wire))
		return 0;
	return blob_get(message->body + sizeof(wire), ret_blob, "REGISTERED", error);
}

/* ---- REQUEST -------------------------------------------------------------------------------- */

size_t message_request_bytes(const struct ssv_request *request)
{
	return align_up(MESSAGE_HEADER_BYTES + sizeof(struct wire_request) +
			    (size_t)request->keys_count * sizeof(struct ssv_key) +
			    (size_t)request->blocks_count * sizeof(uint32_t),
			8);
}

size_t message_encode_request(uint8_t *out, size_t room, const struct ssv_request *request)
{
	size_t bytes = message_request_bytes(request);
	size_t keys_bytes = (size_t)request->keys_count * sizeof(struct ssv_key);
	const struct wire_request wire = {
	    .op = request->op,
	    .tier = request->tier,
	    .codec = request->codec,
	    .min_tier = request->min_tier,
	    .region = htole32(request->region),
	    .target = htole64(request->target),
	    .keys_count = htole32(request->keys_count),
	    .blocks_count = htole32(request->blocks_count),
	    .ranks_count = htole32(request->ranks_count),
	    .first_token = htole32(request->first_token),
	    .position = htole32(request->position),
	    .deadline_ms = htole32(request->deadline_ms),
	};

	if (bytes > room)
		return 0;
	memset(out + bytes - 8, 0, 8); /* the padding; blocks overwrite the rest */
	header_put(out, MESSAGE_REQUEST, request->user_data, bytes);
	out += MESSAGE_HEADER_BYTES;
	memcpy(out, &wire, sizeof(wire));
	out += sizeof(wire);
	if (keys_bytes)
		memcpy(out, request->keys, keys_bytes);
	out += keys_bytes;
	for (uint32_t i = 0; i < request->blocks_count; i++) {
		uint32_t block = htole32(request->blocks[i]);

		memcpy(out + i * sizeof(block), &block, sizeof(block));
	}
	return bytes;
}

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
static void blocks_to_host(uint32_t *blocks, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		blocks[i] = le32toh(blocks[i]);
}
#endif

int message_decode_request(const struct message *message, struct ssv_request *ret_request,
			   char *error)
{
	const uint8_t *in = message->body;
	struct wire_request wire;

	if (message->body_bytes < sizeof(wire))
		return PROTO(error, "REQUEST of %u bytes", message->bytes);
	memcpy(&wire, in, sizeof(wire));
	*ret_request = (struct ssv_request){
	    .op = wire.op,
	    .tier = wire.tier,
	    .codec = wire.codec,
	    .min_tier = wire.min_tier,
	    .region = le32toh(wire.region),
	    .user_data = message->id,
	    .target = le64toh(wire.target),
	    .keys_count = le32toh(wire.keys_count),
	    .blocks_count = le32toh(wire.blocks_count),
	    .ranks_count = le32toh(wire.ranks_count),
	    .first_token = le32toh(wire.first_token),
	    .position = le32toh(wire.position),
	    .deadline_ms = le32toh(wire.deadline_ms),
	};
	if (ret_request->keys_count > SSV_KEYS_MAX || ret_request->blocks_count > SSV_BLOCKS_MAX)
		return PROTO(error, "REQUEST: %u keys and %u blocks, at most %d and %d",
			     ret_request->keys_count, ret_request->blocks_count, SSV_KEYS_MAX,
			     SSV_BLOCKS_MAX);
	if (message->bytes != message_request_bytes(ret_request))
		return PROTO(error, "REQUEST of %u bytes, its counts make %zu", message->bytes,
			     message_request_bytes(ret_request));
	in += sizeof(wire);
	ret_request->keys = (const struct ssv_key *)in;
	in += ret_request->keys_count * sizeof(struct ssv_key);
	ret_request->blocks = (const uint32_t *)(const void *)in;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	blocks_to_host((uint32_t *)(void *)in, ret_request->blocks_count);
#endif
	return 0;
}

/* ---- COMPLETION ----------------------------------------------------------------------------- */

size_t message_completions_begin(uint8_t *out, size_t room)
{
	const struct wire_completions wire = {0};
	size_t bytes = MESSAGE_HEADER_BYTES + sizeof(wire);

	if (bytes > room)
		return 0;
	header_put(out, MESSAGE_COMPLETION, 0, bytes);
	memcpy(out + MESSAGE_HEADER_BYTES, &wire, sizeof(wire));
	return bytes;
}

size_t message_completions_append(uint8_t *out, size_t room,
				  const struct ssv_completion *completion)
{
	const struct wire_completion wire = {
	    .user_data = htole64(completion->user_data),
	    .op = completion->op,
	    .status = (int32_t)htole32((uint32_t)completion->status),
	    .tokens = htole32(completion->tokens),
	    .estimate_us = htole32(completion->estimate_us),
	    .wire_bytes = htole64(completion->wire_bytes),
	    .kv_bytes = htole64(completion->kv_bytes),
	    .elapsed_us = htole64(completion->elapsed_us),
	};
	struct wire_completions head;
	size_t bytes;
	uint32_t count;

	memcpy(&head, out + MESSAGE_HEADER_BYTES, sizeof(head));
	count = le32toh(head.count);
	bytes = MESSAGE_HEADER_BYTES + sizeof(head) + count * sizeof(wire);
	if (count == MESSAGE_COMPLETIONS_MAX || bytes + sizeof(wire) > room)
		return 0;
	memcpy(out + bytes, &wire, sizeof(wire));
	head.count = htole32(count + 1);
	memcpy(out + MESSAGE_HEADER_BYTES, &head, sizeof(head));
	header_put(out, MESSAGE_COMPLETION, 0, bytes + sizeof(wire));
	return bytes + sizeof(wire);
}

int message_decode_completions(const struct message *message, uint32_t *ret_count, char *error)
{
	struct wire_completions wire;

	if (message->body_bytes < sizeof(wire))
		return PROTO(error, "COMPLETION of %u bytes", message->bytes);
	memcpy(&wire, message->body, sizeof(wire));
	*ret_count = le32toh(wire.count);
	if (wire.reserved || *ret_count > MESSAGE_COMPLETIONS_MAX ||
	    message->body_bytes != sizeof(wire) + *ret_count * sizeof(struct wire_completion))
		return PROTO(error, "COMPLETION: %u completions in %u bytes", *ret_count,
			     message->bytes);
	for (uint32_t i = 0; i < *ret_count; i++) {
		struct ssv_completion completion;

		message_completion_at(message, i, &completion);
		if (!message_status_is_good(completion.status))
			return PROTO(error, "COMPLETION: status %d, expected 0 or -%d to -1",
				     completion.status, MESSAGE_ERRNO_MAX);
	}
	return 0;
}

void message_completion_at(const struct message *message, uint32_t index,
			   struct ssv_completion *ret_completion)
{
	struct wire_completion wire;

	memcpy(&wire,
	       message->body + sizeof(struct wire_completions) +
		   (size_t)index * sizeof(struct wire_completion),
	       sizeof(wire));
	*ret_completion = (struct ssv_completion){
	    .user_data = le64toh(wire.user_data),
	    .op = wire.op,
	    .status = (int32_t)le32toh((uint32_t)wire.status),
	    .tokens = le32toh(wire.tokens),
	    .estimate_us = le32toh(wire.estimate_us),
	    .wire_bytes = le64toh(wire.wire_bytes),
	    .kv_bytes = le64toh(wire.kv_bytes),
	    .elapsed_us = le64toh(wire.elapsed_us),
	};
}

/* ---- TRACE and EVENTS ----------------------------------------------------------------------- */

size_t message_encode_trace(uint8_t *out, size_t room, uint64_t id, uint32_t track, uint64_t from)
{
	const struct wire_trace wire = {.track = htole32(track), .from = htole64(from)};
	size_t bytes = MESSAGE_HEADER_BYTES + sizeof(wire);

	if (bytes > room)
		return 0;
	header_put(out, MESSAGE_TRACE, id, bytes);
	memcpy(out + MESSAGE_HEADER_BYTES, &wire, sizeof(wire));
	return bytes;
}

int message_decode_trace(const struct message *message, uint32_t *ret_track, uint64_t *ret_from,
			 char *error)
{
	struct wire_trace wire;

	if (message->body_bytes != sizeof(wire))
		return PROTO(error, "TRACE of %u bytes", message->bytes);
	memcpy(&wire, message->body, sizeof(wire));
	if (wire.reserved)
		return PROTO(error, "TRACE: reserved bytes are not zero");
	*ret_track = le32toh(wire.track);
	*ret_from = le64toh(wire.from);
	return 0;
}

static void event_put(uint8_t *out, const struct trace_event *event)
{
	const struct trace_event wire = {
	    .start_ns = htole64(event->start_ns),
	    .span = htole64(event->span),
	    .request = htole32(event->request),
	    .piece = htole16(event->piece),
	    .detail = htole16(event->detail),
	    .value = htole64(event->value),
	};

	memcpy(out, &wire, sizeof(wire));
}

size_t message_encode_events(uint8_t *out, size_t room, uint64_t id,
			     const struct message_events *head, const struct trace_event *events)
{
	const struct wire_events wire = {
	    .track = htole32(head->track),
	    .tracks_count = htole32(head->tracks_count),
	    .count = htole32(head->count),
	    .slots_count = htole64(head->slots_count),
	    .first = htole64(head->first),
	    .head = htole64(head->head),
	    .now_ns = htole64(head->now_ns),
	};
	size_t bytes =
	    MESSAGE_HEADER_BYTES + sizeof(wire) + head->count * sizeof(struct trace_event);

	if (bytes > room || head->count > MESSAGE_EVENTS_MAX)
		return 0;
	header_put(out, MESSAGE_EVENTS, id, bytes);
	out += MESSAGE_HEADER_BYTES;
	memcpy(out, &wire, sizeof(wire));
	for (uint32_t i = 0; i < head->count; i++)
		event_put(out + sizeof(wire) + i * sizeof(struct trace_event), &events[i]);
	return bytes;
}

int message_decode_events(const struct message *message, struct message_events *ret_head,
			  char *error)
{
	struct wire_events wire;

	if (message->body_bytes < sizeof(wire))
		return PROTO(error, "EVENTS of %u bytes", message->bytes);
	memcpy(&wire, message->body, sizeof(wire));
	*ret_head = (struct message_events){
	    .track = le32toh(wire.track),
	    .tracks_count = le32toh(wire.tracks_count),
	    .count = le32toh(wire.count),
	    .slots_count = le64toh(wire.slots_count),
	    .first = le64toh(wire.first),
	    .head = le64toh(wire.head),
	    .now_ns = le64toh(wire.now_ns),
	};
	if (wire.reserved || ret_head->count > MESSAGE_EVENTS_MAX ||
	    message->body_bytes != sizeof(wire) + ret_head->count * sizeof(struct trace_event))
		return PROTO(error, "EVENTS: %u events in %u bytes", ret_head->count,
			     message->bytes);
	return 0;
}

void message_event_at(const struct message *message, uint32_t index, struct trace_event *ret_event)
{
	struct trace_event wire;

	memcpy(&wire,
	       message->body + sizeof(struct wire_events) +
		   (size_t)index * sizeof(struct trace_event),
	       sizeof(wire));
	*ret_event = (struct trace_event){
	    .start_ns = le64toh(wire.start_ns),
	    .span = le64toh(wire.span),
	    .request = le32toh(wire.request),
	    .piece = le16toh(wire.piece),
	    .detail = le16toh(wire.detail),
	    .value = le64toh(wire.value),
	};
}
