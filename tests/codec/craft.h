/* SPDX-License-Identifier: Apache-2.0 */
/*
 * craft.h - containers built by hand: meta that our encoder does not write (step factors, channel
 * orders, several tensors or only some groups an entry), and what they must decode to, worked out
 * element by element from docs/codec.md, without the codec's code.
 */
#ifndef SSV_TEST_CODEC_CRAFT_H
#define SSV_TEST_CODEC_CRAFT_H

#include "codec/lossless.h"
#include "fixture.h"

/* What a crafted chunk is made of. */
struct craft {
	struct chunk_shape shape;
	uint8_t codec; /* enum ssv_codec */
	uint8_t flags; /* enum tensor_flags, of every tensor */
	uint8_t verbatim_tokens;
	uint8_t is_trellis;       /* of codec r16: entries of WIRE_CODEC_TRELLIS */
	uint32_t groups_an_entry; /* 0: all */
	uint32_t tensors_an_entry;
	uint32_t exceptions; /* an entry */
	uint64_t seed;
};

/* Build it; *ret_elements (free() it) is what it decodes to, in canonical order. */
struct test_chunk craft_chunk(struct test_codec *codec, const struct craft *craft,
			      uint8_t **ret_elements);

/* Recompute the checksums of entry `index`, the table and the header after bytes were changed. */
void craft_reseal(struct test_chunk *chunk, uint32_t index);

/* A raw Deflate stream of bytes; returns its length. */
uint32_t craft_deflate(const uint8_t *bytes, uint32_t count, uint8_t *out, uint32_t room);

#endif
