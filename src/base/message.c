/* SPDX-License-Identifier: Apache-2.0 */
/*
 * message.c - framing and the small messages of the protocol. REGISTER, REQUEST and COMPLETION,
 * which carry arrays, are in message_body.c.
 *
 * Every decoder checks the exact length before it reads a field.
 */
#include "base/message.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

#define PROTO(error, ...) (snprintf(error, SSV_ERROR_TEXT_MAX, __VA_ARGS__), -EPROTO)

/* What a message of each type may be: who sends it and how long its body is. */
static const struct type_row {
	const char *name;
	uint8_t sender; /* enum message_sender */
	uint32_t body_min, body_max;
} types[MESSAGE_TYPES_COUNT] = {
    [MESSAGE_HELLO] = {"HELLO", MESSAGE_FROM_CLIENT, sizeof(struct wire_hello),
		       sizeof(struct wire_hello)},
    [MESSAGE_WELCOME] = {"WELCOME", MESSAGE_FROM_DAEMON, sizeof(struct wire_welcome),
			 sizeof(struct wire_welcome)},
    [MESSAGE_REFUSED] = {"REFUSED", MESSAGE_FROM_DAEMON, sizeof(struct wire_text),
			 sizeof(struct wire_text) + SSV_ERROR_TEXT_MAX},
    [MESSAGE_CLOSE] = {"CLOSE", MESSAGE_FROM_DAEMON, sizeof(struct wire_text),
		       sizeof(struct wire_text) + SSV_ERROR_TEXT_MAX},
    [MESSAGE_REGISTER] = {"REGISTER", MESSAGE_FROM_CLIENT, sizeof(struct wire_register),
			  sizeof(struct wire_register) + sizeof(struct wire_blob) +
			      SSV_PARTS_MAX * sizeof(struct wire_part) +
			      SSV_TENSORS_MAX * sizeof(struct wire_tensor)},
    [MESSAGE_REGISTERED] = {"REGISTERED", MESSAGE_FROM_DAEMON, sizeof(struct wire_region),
			    sizeof(struct wire_region) + sizeof(struct wire_blob)},
    [MESSAGE_UNREGISTER] = {"UNREGISTER", MESSAGE_FROM_CLIENT, sizeof(struct wire_region),
			    sizeof(struct wire_region)},
    [MESSAGE_UNREGISTERED] = {"UNREGISTERED", MESSAGE_FROM_DAEMON, sizeof(struct wire_region),
			      sizeof(struct wire_region)},
    [MESSAGE_REQUEST] = {"REQUEST", MESSAGE_FROM_CLIENT, sizeof(struct wire_request),
			 MESSAGE_REQUEST_BYTES_MAX - MESSAGE_HEADER_BYTES},
    [MESSAGE_COMPLETION] = {"COMPLETION", MESSAGE_FROM_DAEMON,
			    sizeof(struct wire_completions) + sizeof(struct wire_completion),
			    sizeof(struct wire_completions) +
				MESSAGE_COMPLETIONS_MAX * sizeof(struct wire_completion)},
    [MESSAGE_STAT] = {"STAT", MESSAGE_FROM_CLIENT, 0, 0},
    [MESSAGE_STATUS] = {"STATUS", MESSAGE_FROM_DAEMON, sizeof(struct wire_text),
			sizeof(struct wire_text) + MESSAGE_STAT_BYTES_MAX},
    [MESSAGE_RESET] = {"RESET", MESSAGE_FROM_CLIENT, 0, 0},
    [MESSAGE_TRACE] = {"TRACE", MESSAGE_FROM_CLIENT, sizeof(struct wire_trace),
		       sizeof(struct wire_trace)},
    [MESSAGE_EVENTS] = {"EVENTS", MESSAGE_FROM_DAEMON, sizeof(struct wire_events),
			sizeof(struct wire_events) +
			    MESSAGE_EVENTS_MAX * sizeof(struct trace_event)},
};

const char *message_name(uint16_t type)
{
	return type < MESSAGE_TYPES_COUNT && types[type].name ? types[type].name : "?";
}

int message_engine_id_is_good(const char *engine_id)
{
	size_t n = 0;

	while (n < SSV_ENGINE_ID_MAX && engine_id[n] >= 0x20 && engine_id[n] < 0x7f)
		n++;
	return n > 0 && n < SSV_ENGINE_ID_MAX && !engine_id[n];
}

static int header_check(const struct wire_header *header, enum message_sender sender, char *error)
{
	uint32_t bytes = le32toh(header->bytes);
	uint16_t type = le16toh(header->type);
	const struct type_row *row;

	if (type >= MESSAGE_TYPES_COUNT || !types[type].name)
		return PROTO(error, "message of type %u: no such type", type);
	row = &types[type];
	if (row->sender != sender)
		return PROTO(error, "%s is not for this side to receive", row->name);
	if (header->flags)
		return PROTO(error, "%s with flags 0x%x, expected 0", row->name,
			     le16toh(header->flags));
	if (bytes % 8 || bytes < MESSAGE_HEADER_BYTES + row->body_min ||
	    bytes > MESSAGE_HEADER_BYTES + row->body_max)
		return PROTO(error, "%s of %u bytes, expected %u to %u, a multiple of 8", row->name,
			     bytes, MESSAGE_HEADER_BYTES + row->body_min,
			     MESSAGE_HEADER_BYTES + row->body_max);
	return 0;
}

int message_find(const uint8_t *bytes, size_t available, enum message_sender sender,
		 struct message *ret_message, size_t *ret_needed, char *error)
{
	struct wire_header header;
	int err;

	*ret_needed = MESSAGE_HEADER_BYTES;
	if (available < sizeof(header))
		return 0;
	memcpy(&header, bytes, sizeof(header));
	err = header_check(&header, sender, error);
	if (err)
		return err;
	*ret_needed = le32toh(header.bytes);
	if (available < *ret_needed)
		return 0;
	ret_message->type = le16toh(header.type);
	ret_message->id = le64toh(header.id);
	ret_message->body = bytes + sizeof(header);
	ret_message->bytes = le32toh(header.bytes);
	ret_message->body_bytes = ret_message->bytes - (uint32_t)sizeof(header);
	return 1;
}

/* Write the header; returns the message's bytes, or 0 when room is too small. */
static size_t header_put(uint8_t *out, size_t room, uint16_t type, uint64_t id, size_t body_bytes)
{
	size_t bytes = align_up(MESSAGE_HEADER_BYTES + body_bytes, 8);
	const struct wire_header header = {
	    .bytes = htole32((uint32_t)bytes),
	    .type = htole16(type),
	    .id = htole64(id),
	};

	if (bytes > room)
		return 0;
	memset(out + bytes - 8, 0, 8); /* the padding; the body overwrites the rest */
	memcpy(out, &header, sizeof(header));
	return bytes;
}

size_t message_encode_hello(uint8_t *out, size_t room, uint64_t id,
			    const struct message_hello *hello)
{
	struct wire_hello wire = {
	    .version_min = htole16(hello->version_min),
	    .version_max = htole16(hello->version_max),
	    .rank = htole32(hello->rank),
	    .ranks_count = htole32(hello->ranks_count),
	};
	size_t bytes = header_put(out, room, MESSAGE_HELLO, id, sizeof(wire));

	if (!bytes)
		return 0;
	memcpy(wire.magic, MESSAGE_MAGIC, sizeof(wire.magic));
	snprintf(wire.engine_id, sizeof(wire.engine_id), "%s", hello->engine_id);
	memcpy(out + MESSAGE_HEADER_BYTES, &wire, sizeof(wire));
	return bytes;
}

int message_decode_hello(const struct message *message, struct message_hello *ret_hello,
			 char *error)
{
	struct wire_hello wire;

	if (message->body_bytes != sizeof(wire))
		return PROTO(error, "HELLO of %u bytes", message->bytes);
	memcpy(&wire, message->body, sizeof(wire));
	if (memcmp(wire.magic, MESSAGE_MAGIC, sizeof(wire.magic)) != 0)
		return PROTO(error, "HELLO without the magic bytes of this protocol");
	if (!memchr(wire.engine_id, 0, sizeof(wire.engine_id)))
		return PROTO(error, "HELLO: engine id does not end in %d bytes", SSV_ENGINE_ID_MAX);
	if (wire.reserved)
		return PROTO(error, "HELLO: reserved bytes are not zero");
	ret_hello->version_min = le16toh(wire.version_min);
	ret_hello->version_max = le16toh(wire.version_max);
	ret_hello->rank = le32toh(wire.rank);
	ret_hello->ranks_count = le32toh(wire.ranks_count);
	memcpy(ret_hello->engine_id, wire.engine_id, sizeof(wire.engine_id));
	return 0;
}

size_t message_encode_welcome(uint8_t *out, size_t room, uint64_t id,
			      const struct message_welcome *welcome)
{
	struct wire_welcome wire = {
	    .version = htole16(welcome->version),
	    .pid = htole32(welcome->pid),
	    .requests_max = htole32(welcome->requests_max),
	    .keys_max = htole32(welcome->keys_max),
	    .blocks_max = htole32(welcome->blocks_max),
	    .stat_bytes_max = htole32(welcome->stat_bytes_max),
	};
	size_t bytes = header_put(out, room, MESSAGE_WELCOME, id, sizeof(wire));

	if (!bytes)
		return 0;
	snprintf(wire.daemon_version, sizeof(wire.daemon_version), "%s", welcome->daemon_version);
	memcpy(out + MESSAGE_HEADER_BYTES, &wire, sizeof(wire));
	return bytes;
}

int message_decode_welcome(const struct message *message, struct message_welcome *ret_welcome,
			   char *error)
{
	struct wire_welcome wire;

	if (message->body_bytes != sizeof(wire))
		return PROTO(error, "WELCOME of %u bytes", message->bytes);
	memcpy(&wire, message->body, sizeof(wire));
	if (!memchr(wire.daemon_version, 0, sizeof(wire.daemon_version)))
		return PROTO(error, "WELCOME: version text does not end");
	ret_welcome->version = le16toh(wire.version);
	ret_welcome->pid = le32toh(wire.pid);
	ret_welcome->requests_max = le32toh(wire.requests_max);
	ret_welcome->keys_max = le32toh(wire.keys_max);
	ret_welcome->blocks_max = le32toh(wire.blocks_max);
	ret_welcome->stat_bytes_max = le32toh(wire.stat_bytes_max);
	memcpy(ret_welcome->daemon_version, wire.daemon_version, sizeof(wire.daemon_version));
	return 0;
}

size_t message_encode_text(uint8_t *out, size_t room, uint16_t type, uint64_t id, int32_t status,
			   const char *text, size_t text_bytes)
{
	const struct wire_text wire = {
	    .status = (int32_t)htole32((uint32_t)status),
	    .text_bytes = htole32((uint32_t)text_bytes),
	};
	size_t bytes = header_put(out, room, type, id, sizeof(wire) + text_bytes);

	if (!bytes)
		return 0;
	memcpy(out + MESSAGE_HEADER_BYTES, &wire, sizeof(wire));
	memcpy(out + MESSAGE_HEADER_BYTES + sizeof(wire), text, text_bytes);
	return bytes;
}

int message_decode_text(const struct message *message, struct message_text *ret_text, char *error)
{
	struct wire_text wire;

	if (message->body_bytes < sizeof(wire))
		return PROTO(error, "%s of %u bytes", message_name(message->type), message->bytes);
	memcpy(&wire, message->body, sizeof(wire));
	ret_text->status = (int32_t)le32toh((uint32_t)wire.status);
	ret_text->text_bytes = le32toh(wire.text_bytes);
	if (align_up((uint64_t)ret_text->text_bytes + sizeof(wire), 8) != message->body_bytes)
		return PROTO(error, "%s: text of %u bytes in a body of %u",
			     message_name(message->type), ret_text->text_bytes,
			     message->body_bytes);
	/* A refusal that says "done" would pass for what was asked for. */
	if (!message_status_is_good(ret_text->status) ||
	    (message->type == MESSAGE_REFUSED && ret_text->status == 0))
		return PROTO(error, "%s: status %d, expected %s-%d to -1",
			     message_name(message->type), ret_text->status,
			     message->type == MESSAGE_REFUSED ? "" : "0 or ", MESSAGE_ERRNO_MAX);
	ret_text->text = (const char *)message->body + sizeof(wire);
	return 0;
}

size_t message_encode_region(uint8_t *out, size_t room, uint16_t type, uint64_t id, uint32_t region)
{
	const struct wire_region wire = {.region = htole32(region)};
	size_t bytes = header_put(out, room, type, id, sizeof(wire));

	if (bytes)
		memcpy(out + MESSAGE_HEADER_BYTES, &wire, sizeof(wire));
	return bytes;
}

int message_decode_region(const struct message *message, uint32_t *ret_region, char *error)
{
	struct wire_region wire;

	if (message->body_bytes != sizeof(wire))
		return PROTO(error, "%s of %u bytes", message_name(message->type), message->bytes);
	memcpy(&wire, message->body, sizeof(wire));
	if (wire.reserved)
		return PROTO(error, "%s: reserved bytes are not zero", message_name(message->type));
	*ret_region = le32toh(wire.region);
	return 0;
}

size_t message_encode_stat(uint8_t *out, size_t room, uint64_t id)
{
	return header_put(out, room, MESSAGE_STAT, id, 0);
}

size_t message_encode_reset(uint8_t *out, size_t room, uint64_t id)
{
	return header_put(out, room, MESSAGE_RESET, id, 0);
}

int message_decode_stat(const struct message *message, char *error)
{
	return message->body_bytes
		   ? PROTO(error, "%s of %u bytes", message_name(message->type), message->bytes)
		   : 0;
}
