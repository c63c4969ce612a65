/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rdma_blob.c - the bytes of an RDMA offer and its answer, both ways.
 *
 * One form for both kinds: 56 bytes, then 6 for each lane. Fields that a kind does not use are
 * zero and checked to be, so that a later version can give them a meaning.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "deliver/rdma_blob.h"

#define BLOB_MAGIC   0x616d6472u /* "rdma" */
#define BLOB_VERSION 1u

/* Places of the fields. */
enum {
	AT_MAGIC = 0,
	AT_VERSION = 4,
	AT_KIND = 6,
	AT_LINK = 7,
	AT_MTU = 8,
	AT_READS = 9,
	AT_LID = 10,
	AT_RKEY = 12,
	AT_ADDRESS = 16,
	AT_BYTES = 24,
	AT_GID = 32,
	AT_LANES_COUNT = 48,
	AT_RESERVED = 52,
	AT_LANES = 56,
	LANE_BYTES = 6,
};

_Static_assert(AT_LANES + LANE_BYTES * RDMA_LANES_MAX <= BLOB_BYTES_MAX, "a blob's limit");

static void store_le24(uint8_t *p, uint32_t v)
{
	p[0] = (uint8_t)v;
	p[1] = (uint8_t)(v >> 8);
	p[2] = (uint8_t)(v >> 16);
}

static uint32_t load_le24(const uint8_t *p)
{
	return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16;
}

void rdma_blob_encode(const struct rdma_words *words, struct blob *ret_blob)
{
	uint8_t *out = ret_blob->data;

	ssv_assert(words->lanes_count <= RDMA_LANES_MAX);
	memset(out, 0, AT_LANES);
	store_le32(out + AT_MAGIC, BLOB_MAGIC);
	store_le16(out + AT_VERSION, BLOB_VERSION);
	out[AT_KIND] = words->kind;
	out[AT_LINK] = words->link;
	out[AT_MTU] = words->mtu;
	out[AT_READS] = words->reads;
	store_le16(out + AT_LID, words->lid);
	store_le32(out + AT_RKEY, words->rkey);
	store_le64(out + AT_ADDRESS, words->address);
	store_le64(out + AT_BYTES, words->bytes);
	memcpy(out + AT_GID, words->gid, sizeof(words->gid));
	store_le32(out + AT_LANES_COUNT, words->lanes_count);
	for (uint32_t i = 0; i < words->lanes_count; i++) {
		store_le24(out + AT_LANES + LANE_BYTES * i, words->lanes[i].qp);
		store_le24(out + AT_LANES + LANE_BYTES * i + 3, words->lanes[i].psn);
	}
	ret_blob->bytes = AT_LANES + LANE_BYTES * words->lanes_count;
}

#define REFUSE(error, ...) (snprintf(error, SSV_ERROR_TEXT_MAX, "RDMA blob: " __VA_ARGS__), -EPROTO)

/* Everything but the lanes. */
static int head_check(const uint8_t *in, uint32_t in_bytes, enum rdma_kind kind, char *error)
{
	uint32_t lanes;

	if (in_bytes < AT_LANES || in_bytes > BLOB_BYTES_MAX)
		return REFUSE(error, "%u bytes, expected %u to %u", in_bytes, (unsigned)AT_LANES,
			      BLOB_BYTES_MAX);
	if (load_le32(in + AT_MAGIC) != BLOB_MAGIC)
		return REFUSE(error, "begins with 0x%08x, expected 0x%08x",
			      load_le32(in + AT_MAGIC), BLOB_MAGIC);
	if (load_le16(in + AT_VERSION) != BLOB_VERSION)
		return REFUSE(error, "version %u, this side speaks %u", load_le16(in + AT_VERSION),
			      BLOB_VERSION);
	if (in[AT_KIND] != kind)
		return REFUSE(error, "kind %u, expected %u", in[AT_KIND], (unsigned)kind);
	lanes = load_le32(in + AT_LANES_COUNT);
	if (lanes < 1 || lanes > RDMA_LANES_MAX || in_bytes != AT_LANES + LANE_BYTES * lanes)
		return REFUSE(error, "%u lanes in %u bytes, expected 1 to %u of %u bytes each",
			      lanes, in_bytes, RDMA_LANES_MAX, (unsigned)LANE_BYTES);
	if (load_le32(in + AT_RESERVED))
		return REFUSE(error, "reserved bytes are not zero");
	return 0;
}

static int fields_check(const struct rdma_words *words, char *error)
{
	static const uint8_t no_gid[16];
	const int has_gid = memcmp(words->gid, no_gid, sizeof(no_gid)) != 0;
	const int offers = words->kind == RDMA_OFFER;

	if (words->link != RDMA_LINK_INFINIBAND && words->link != RDMA_LINK_ETHERNET)
		return REFUSE(error, "link %u, expected 1 (InfiniBand) or 2 (Ethernet)",
			      words->link);
	if (words->link == RDMA_LINK_ETHERNET ? !has_gid : !words->lid)
		return REFUSE(error, "no address of the port (gid or lid)");
	if (words->mtu < 1 || words->mtu > 5)
		return REFUSE(error, "mtu %u, expected 1 (256 bytes) to 5 (4096)", words->mtu);
	if (words->reads < 1 || words->reads > RDMA_READS_MAX)
		return REFUSE(error, "%u READs at once, expected 1 to %u", words->reads,
			      RDMA_READS_MAX);
	if (!offers && (words->rkey || words->address || words->bytes))
		return REFUSE(error, "an answer with a key, an address or bytes");
	if (offers && (!words->bytes || words->address > UINT64_MAX - words->bytes))
		return REFUSE(error, "address 0x%llx + %llu bytes is no range",
			      (unsigned long long)words->address, (unsigned long long)words->bytes);
	return 0;
}

int rdma_blob_decode(const struct blob *blob, enum rdma_kind kind, struct rdma_words *ret_words,
		     char *error)
{
	const uint8_t *in = blob->data;
	struct rdma_words words = {0};
	int err = head_check(in, blob->bytes, kind, error);

	if (err)
		return err;
	words.kind = in[AT_KIND];
	words.link = in[AT_LINK];
	words.mtu = in[AT_MTU];
	words.reads = in[AT_READS];
	words.lid = load_le16(in + AT_LID);
	memcpy(words.gid, in + AT_GID, sizeof(words.gid));
	words.rkey = load_le32(in + AT_RKEY);
	words.address = load_le64(in + AT_ADDRESS);
	words.bytes = load_le64(in + AT_BYTES);
	words.lanes_count = load_le32(in + AT_LANES_COUNT);
	err = fields_check(&words, error);
	if (err)
		return err;
	for (uint32_t i = 0; i < words.lanes_count; i++) {
		words.lanes[i].qp = load_le24(in + AT_LANES + LANE_BYTES * i);
		words.lanes[i].psn = load_le24(in + AT_LANES + LANE_BYTES * i + 3);
		/* 0 and 1 are the port's own; the last is multicast's. */
		if (words.lanes[i].qp < 2 || words.lanes[i].qp == 0xffffff)
			return REFUSE(error, "lane %u: queue pair %u is no queue pair", i,
				      words.lanes[i].qp);
	}
	*ret_words = words;
	return 0;
}
