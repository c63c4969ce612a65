/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cluster_map.c - reading a Redis Cluster's map; slots of keys; addresses.
 *
 * A reply is a list of ranges: [first, last, master, replica...], a node being
 * [host, port, id, {"ip": ..., "hostname": ...}]. Only masters are kept. Work is bounded by the
 * number of slots, since none may be told twice.
 */
#include "store/cluster_map.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

enum word_for {
	WORD_NOTHING = 0,
	WORD_HOST = 1,
	WORD_LABEL = 2,
	WORD_VALUE = 3,
};

/* ---- slots ---------------------------------------------------------------------------------- */

static uint16_t crc16_add(uint16_t crc, uint8_t byte)
{
	static const uint16_t table[16] = {
	    0x0000, 0x1021, 0x2042, 0x3063, 0x4084, 0x50a5, 0x60c6, 0x70e7,
	    0x8108, 0x9129, 0xa14a, 0xb16b, 0xc18c, 0xd1ad, 0xe1ce, 0xf1ef,
	};

	crc = (uint16_t)(crc << 4 ^ table[crc >> 12 ^ byte >> 4]);
	return (uint16_t)(crc << 4 ^ table[crc >> 12 ^ (byte & 15)]);
}

uint16_t cluster_crc16(uint16_t crc, const char *text, size_t bytes)
{
	size_t i;

	for (i = 0; i < bytes; i++)
		crc = crc16_add(crc, (uint8_t)text[i]);
	return crc;
}

uint32_t cluster_slot(uint16_t prefix_crc, const struct ssv_key *key)
{
	static const char hex[] = "0123456789abcdef";
	uint16_t crc = prefix_crc;
	size_t i;

	for (i = 0; i < sizeof(key->bytes); i++) {
		crc = crc16_add(crc, (uint8_t)hex[key->bytes[i] >> 4]);
		crc = crc16_add(crc, (uint8_t)hex[key->bytes[i] & 15]);
	}
	return crc % CLUSTER_SLOTS;
}

/* ---- addresses ------------------------------------------------------------------------------ */

static struct sockaddr_in *v4_of(struct redis_address *address)
{
	return (struct sockaddr_in *)(void *)&address->address;
}

static struct sockaddr_in6 *v6_of(struct redis_address *address)
{
	return (struct sockaddr_in6 *)(void *)&address->address;
}

static void set_port(struct redis_address *address, uint32_t port)
{
	if (address->address.ss_family == AF_INET6)
		v6_of(address)->sin6_port = htons((uint16_t)port);
	else
		v4_of(address)->sin_port = htons((uint16_t)port);
}

int cluster_address(const char *host, uint32_t port, const struct redis_address *from,
		    const struct cluster_hosts *known, struct redis_address *ret_address)
{
	struct redis_address address = {0};
	uint32_t i;

	if (port == 0 || port > 65535)
		return -EINVAL;
	if (!host || !host[0]) {
		address = *from;
	} else if (inet_pton(AF_INET, host, &v4_of(&address)->sin_addr) == 1) {
		v4_of(&address)->sin_family = AF_INET;
		address.bytes = sizeof(struct sockaddr_in);
	} else if (inet_pton(AF_INET6, host, &v6_of(&address)->sin6_addr) == 1) {
		v6_of(&address)->sin6_family = AF_INET6;
		address.bytes = sizeof(struct sockaddr_in6);
	} else {
		for (i = 0; i < known->count && !address.bytes; i++) {
			if (!strcmp(known->hosts[i].host, host))
				address = known->hosts[i].address;
		}
	}
	if (!address.bytes)
		return -ENOENT;
	set_port(&address, port);
	*ret_address = address;
	return 0;
}

bool cluster_same_address(const struct redis_address *a, const struct redis_address *b)
{
	struct redis_address x = *a, y = *b;

	if (x.address.ss_family != y.address.ss_family)
		return false;
	if (x.address.ss_family == AF_INET6)
		return v6_of(&x)->sin6_port == v6_of(&y)->sin6_port &&
		       !memcmp(&v6_of(&x)->sin6_addr, &v6_of(&y)->sin6_addr,
			       sizeof(struct in6_addr));
	return v4_of(&x)->sin_port == v4_of(&y)->sin_port &&
	       v4_of(&x)->sin_addr.s_addr == v4_of(&y)->sin_addr.s_addr;
}

void cluster_name(const char *host, const struct redis_address *address, char *name)
{
	struct redis_address copy = *address;
	bool v6 = copy.address.ss_family == AF_INET6;
	char text[INET6_ADDRSTRLEN] = "";
	uint32_t port = ntohs(v6 ? v6_of(&copy)->sin6_port : v4_of(&copy)->sin_port);

	if (!host || !host[0]) {
		(void)inet_ntop(copy.address.ss_family,
				v6 ? (void *)&v6_of(&copy)->sin6_addr
				   : (void *)&v4_of(&copy)->sin_addr,
				text, sizeof(text));
		host = text;
	}
	(void)snprintf(name, CLUSTER_NAME_MAX, "%.70s:%u", host, port);
}

/* Names and addresses end up in log lines: nothing but what they are made of. */
static bool is_host(const char *text, size_t bytes)
{
	static const char others[] = ".:-_?";
	size_t i;

	for (i = 0; i < bytes; i++) {
		bool letter = (text[i] | 32) >= 'a' && (text[i] | 32) <= 'z';

		if (!letter && !(text[i] >= '0' && text[i] <= '9') &&
		    !memchr(others, text[i], sizeof(others) - 1))
			return false;
	}
	return bytes < CLUSTER_HOST_MAX;
}

/* Digits up to a mark; -EPROTO: none, more than five, or another mark behind them. */
static int read_number(const char **text, char mark, uint32_t *ret_number)
{
	uint32_t number = 0, digits = 0;
	const char *c;

	for (c = *text; *c >= '0' && *c <= '9' && digits < 6; c++, digits++)
		number = number * 10 + (uint32_t)(*c - '0');
	if (digits == 0 || digits > 5 || *c != mark)
		return -EPROTO;
	*text = c + 1;
	*ret_number = number;
	return 0;
}

int cluster_read_redirect(const char *text, struct cluster_redirect *ret_redirect)
{
	const char *at = strchr(text, ' ');
	const char *colon;
	size_t bytes;

	if (!at)
		return -EPROTO;
	at++;
	if (read_number(&at, ' ', &ret_redirect->slot) || ret_redirect->slot >= CLUSTER_SLOTS)
		return -EPROTO;
	colon = strrchr(at, ':'); /* an IPv6 address has more of them */
	if (!colon)
		return -EPROTO;
	bytes = (size_t)(colon - at);
	if (!is_host(at, bytes))
		return -EPROTO;
	memcpy(ret_redirect->host, at, bytes);
	ret_redirect->host[bytes] = '\0';
	colon++;
	if (read_number(&colon, '\0', &ret_redirect->port) || ret_redirect->port == 0 ||
	    ret_redirect->port > 65535)
		return -EPROTO;
	return 0;
}

/* ---- the map -------------------------------------------------------------------------------- */

void cluster_map_begin(struct cluster_map_reader *reader, struct cluster_map *map,
		       uint32_t members_max, const struct redis_address *from,
		       const struct cluster_hosts *known)
{
	memset(reader, 0, sizeof(*reader));
	reader->map = map;
	reader->from = from;
	reader->known = known;
	memset(map->owner, CLUSTER_NO_NODE, sizeof(map->owner));
	map->members_count = map->slots_placed = map->slots_homeless = 0;
	map->members_max = (uint32_t)u64_min(members_max, CLUSTER_NODES_MAX);
}

/* The member at an address, entered if it is new; CLUSTER_NO_NODE: there are too many. */
static uint32_t enter_member(struct cluster_map *map, const char *host,
			     const struct redis_address *address)
{
	struct cluster_member *member;
	uint32_t i;

	for (i = 0; i < map->members_count; i++) {
		if (cluster_same_address(&map->members[i].address, address))
			return i;
	}
	if (i == map->members_max)
		return CLUSTER_NO_NODE;
	member = &map->members[map->members_count++];
	member->address = *address;
	cluster_name(host, address, member->name);
	return i;
}

/* The range's master is read to its end: it owns the range's slots. */
static int enter_range(struct cluster_map_reader *reader)
{
	struct cluster_map *map = reader->map;
	uint32_t slots = reader->end - reader->start + 1, i;
	uint32_t owner = CLUSTER_NO_NODE;
	struct redis_address address;
	int err;

	if (!reader->has_master)
		return 0;
	reader->has_master = false;
	for (i = reader->start; i <= reader->end; i++) {
		if (map->owner[i] != CLUSTER_NO_NODE)
			return -EPROTO;
	}
	err = cluster_address(reader->host, reader->port, reader->from, reader->known, &address);
	if (err == -ENOENT && reader->ip[0]) /* a name, or "?" for one that is not set */
		err = cluster_address(reader->ip, reader->port, reader->from, reader->known,
				      &address);
	if (!err)
		owner = enter_member(map, reader->host[0] == '?' ? "" : reader->host, &address);
	if (owner == CLUSTER_NO_NODE) {
		map->slots_homeless += slots;
		return map->slots_homeless > CLUSTER_SLOTS ? -EPROTO : 0;
	}
	memset(map->owner + reader->start, (int)owner, slots);
	map->slots_placed += slots;
	return 0;
}

/* An element of a range, depth 2. */
static int take_range_field(struct cluster_map_reader *reader, const struct resp_item *item)
{
	uint32_t field = reader->field++;
	int err;

	if (field > 1) {
		err = enter_range(reader);
		if (err || item->type != RESP_AGGREGATE || item->number < 2)
			return -EPROTO;
		reader->has_master = field == 2;
		reader->node_field = reader->pair = 0;
		if (field == 2) {
			reader->port = 0;
			reader->host[0] = reader->ip[0] = '\0';
		}
		return 0;
	}
	if (item->type != RESP_INTEGER || item->number < 0 || item->number >= CLUSTER_SLOTS)
		return -EPROTO;
	if (field == 0)
		reader->start = (uint32_t)item->number;
	else
		reader->end = (uint32_t)item->number;
	return field == 1 && reader->end < reader->start ? -EPROTO : 0;
}

/* An element of a node, depth 3: host, port, id, more. */
static int take_node_field(struct cluster_map_reader *reader, const struct resp_item *item)
{
	uint32_t field = reader->node_field++;

	if (reader->field <= 2)
		return -EPROTO;
	if (field == 0) {
		if (item->type != RESP_BULK && item->type != RESP_NULL)
			return -EPROTO;
		reader->word_for = item->type == RESP_BULK ? WORD_HOST : WORD_NOTHING;
		return 0;
	}
	if (field == 1) {
		if (item->type != RESP_INTEGER || item->number < 0 || item->number > 65535)
			return -EPROTO;
		if (reader->has_master)
			reader->port = (uint32_t)item->number; /* 0: TLS alone; no address then */
	}
	return 0;
}

static void take_word(struct cluster_map_reader *reader)
{
	char *to = NULL;

	if (reader->word_for == WORD_HOST)
		to = reader->host;
	else if (reader->word_for == WORD_LABEL)
		to = reader->label;
	else if (reader->word_for == WORD_VALUE && !strcmp(reader->label, "ip"))
		to = reader->ip;
	if (to && reader->has_master) {
		/* One that is none is nobody's: not "", which would be the teller's own. */
		bool whole = !reader->too_long && is_host(reader->word, reader->word_bytes);

		reader->word[whole ? reader->word_bytes : 0] = '\0';
		(void)snprintf(to, CLUSTER_HOST_MAX, "%s", whole ? reader->word : "?");
	}
	reader->word_for = WORD_NOTHING;
}

/* Bytes of a bulk string, and its end. */
static void take_payload(struct cluster_map_reader *reader, const struct resp_item *item)
{
	if (item->type == RESP_PAYLOAD_END) {
		take_word(reader);
		return;
	}
	if (item->text_bytes >= sizeof(reader->word) - reader->word_bytes) {
		reader->too_long = true;
		return;
	}
	memcpy(reader->word + reader->word_bytes, item->text, item->text_bytes);
	reader->word_bytes += item->text_bytes;
}

/* What begins an element: everything but a payload. */
static int take_element(struct cluster_map_reader *reader, const struct resp_item *item)
{
	int err;

	reader->word_for = WORD_NOTHING;
	reader->word_bytes = 0;
	reader->too_long = false;
	switch (item->depth) {
	case 0:
		return item->type == RESP_AGGREGATE ? 0 : -EPROTO;
	case 1:
		err = enter_range(reader);
		reader->field = 0;
		return err || item->type != RESP_AGGREGATE || item->number < 3 ? -EPROTO : 0;
	case 2:
		return take_range_field(reader, item);
	case 3:
		return take_node_field(reader, item);
	default:
		if (item->depth == 4 && item->type == RESP_BULK)
			reader->word_for = reader->pair++ % 2 ? WORD_VALUE : WORD_LABEL;
		return 0;
	}
}

int cluster_map_item(struct cluster_map_reader *reader, const struct resp_item *item)
{
	int err = 0;

	if (item->type == RESP_PAYLOAD || item->type == RESP_PAYLOAD_END)
		take_payload(reader, item);
	else
		err = take_element(reader, item);
	if (!err && item->ends_reply) {
		err = enter_range(reader);
		return err ? err : 1;
	}
	return err;
}
