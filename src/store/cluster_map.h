/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cluster_map.h - which node of a Redis Cluster has which slot. Pure: no socket, no memory.
 *
 * A map is read from the items of one reply to CLUSTER SLOTS. A reply that cannot be right (a slot
 * out of range or owned twice, a port beyond 65535, another shape) is refused as a whole. Every
 * member has a numeric address: a name counts only if the reply gives its address too, or if it is
 * one of the names that were resolved when the store was opened.
 *
 * Source: https://redis.io/docs/latest/commands/cluster-slots/ and the cluster specification.
 */
#ifndef SSV_STORE_CLUSTER_MAP_H
#define SSV_STORE_CLUSTER_MAP_H

#include "shadowserve.h"
#include "store/redis.h"

#define CLUSTER_SLOTS     16384u
#define CLUSTER_NODES_MAX 128u
#define CLUSTER_NO_NODE   UINT8_MAX
#define CLUSTER_HOST_MAX  64u /* bytes of a host's name or address, with its end */
#define CLUSTER_NAME_MAX  REDIS_NAME_MAX

/* CRC16 (XMODEM) of a text, going on from crc (0 at the begin). */
uint16_t cluster_crc16(uint16_t crc, const char *text, size_t bytes);
/* Slot of the key's text: prefix_crc is the CRC16 of what stands before its 64 hex digits. The
 * prefix has no '{': there are no hash tags. */
uint32_t cluster_slot(uint16_t prefix_crc, const struct ssv_key *key);

/* A host that is known by name, and its address (the port does not matter). */
struct cluster_host {
	char host[CLUSTER_HOST_MAX];
	struct redis_address address;
};

struct cluster_hosts {
	const struct cluster_host *hosts;
	uint32_t count;
};

/* The numeric address of host:port. No host (NULL or "") is that of the node that said so: from.
 * -ENOENT: a name that is not known; -EINVAL: no port. */
SSV_MUST_CHECK int cluster_address(const char *host, uint32_t port,
				   const struct redis_address *from,
				   const struct cluster_hosts *known,
				   struct redis_address *ret_address);
bool cluster_same_address(const struct redis_address *a, const struct redis_address *b);
/* "host:port" as it is shown, from a host's name or, without one, from the address. */
void cluster_name(const char *host, const struct redis_address *address, char *name);

/* MOVED and ASK: "WORD slot host:port". -EPROTO: anything else, or a slot that is none. */
struct cluster_redirect {
	uint32_t slot, port;
	char host[CLUSTER_HOST_MAX]; /* "": the node that said so */
};

SSV_MUST_CHECK int cluster_read_redirect(const char *text, struct cluster_redirect *ret_redirect);

struct cluster_member {
	struct redis_address address;
	char name[CLUSTER_NAME_MAX];
};

struct cluster_map {
	uint8_t owner[CLUSTER_SLOTS]; /* member, or CLUSTER_NO_NODE */
	struct cluster_member members[CLUSTER_NODES_MAX];
	uint32_t members_count, members_max;
	uint32_t slots_placed;   /* slots with an owner */
	uint32_t slots_homeless; /* told, but their node has no address, or is one too many */
};

struct cluster_map_reader {
	struct cluster_map *map;
	const struct redis_address *from;
	const struct cluster_hosts *known;
	uint32_t field, node_field, pair; /* elements seen at depths 2, 3 and 4 */
	uint32_t start, end, port;
	bool has_master; /* a range's master was begun and is not entered yet */
	bool too_long;
	uint8_t word_for;
	uint32_t word_bytes;
	char word[CLUSTER_HOST_MAX];
	char label[CLUSTER_HOST_MAX]; /* of a pair in the master's description */
	char host[CLUSTER_HOST_MAX], ip[CLUSTER_HOST_MAX];
};

/* Begin a reply of the node at `from`; map is emptied. What is lent must outlive the reading. */
void cluster_map_begin(struct cluster_map_reader *reader, struct cluster_map *map,
		       uint32_t members_max, const struct redis_address *from,
		       const struct cluster_hosts *known);
/* One item. 1: the map is complete; 0: go on; -EPROTO: the reply cannot be right. */
SSV_MUST_CHECK int cluster_map_item(struct cluster_map_reader *reader,
				    const struct resp_item *item);

#endif
