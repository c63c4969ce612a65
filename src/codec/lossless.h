/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lossless.h - the back ends: how a tensor's class plane becomes bytes and comes back.
 *
 * One table (lossless.c), one file a back end. Quantiser, raw bits and exceptions are the same for
 * all of them, so a container can be moved from one to another without changing a value. To add
 * one: docs/codec.md, "Adding a back end".
 */
#ifndef SSV_CODEC_LOSSLESS_H
#define SSV_CODEC_LOSSLESS_H

#include "chunk/container.h"
#include "codec/lanes.h"
#include "codec/scratch.h"

/* The class data of one entry, as it arrived. */
struct class_source {
	const uint8_t *bytes; /* readable for CONTAINER_SLACK_BYTES past the end */
	uint32_t bytes_count;
	uint32_t streams_count;
	uint32_t class_crc;
	uint32_t pairs_bytes;  /* of all its tensors together (class_pairs_bytes) */
	uint32_t pairs_offset; /* where the tensor asked for begins in them */
	const uint8_t *pairs;  /* inflated elsewhere, to be checked; NULL: not inflated yet */
};

/* What encode() says about the class data that it wrote. */
struct class_result {
	uint32_t bytes_count;
	uint32_t streams_count;
	uint32_t class_crc;
};

struct lossless_ops {
	const char *name;
	uint8_t codec;       /* enum ssv_codec */
	uint8_t has_classes; /* 0: keeps elements, encode and decode are never called */
	uint8_t tensors_max; /* tensors that one entry may hold */

	/* Write a plane's classes to out. frequency: [groups][16], as in the meta.
	 * -E2BIG: they need more than room; out is then garbage. The same plane gives the same
	 * bytes with the same version of the library behind it. */
	int (*encode)(struct codec_scratch *scratch, const struct class_plane *plane,
		      const uint8_t *frequency, uint8_t *out, uint64_t room,
		      struct class_result *ret_result);

	/* Read the classes of tensor 0, 1, ... of an entry, in this order, one call a tensor.
	 * Source is from outside: -EBADMSG unless it is exactly what encode() can write. Every
	 * active lane of the plane is then below 16. */
	int (*decode)(struct codec_scratch *scratch, const struct class_source *source,
		      const uint8_t *frequency, struct class_plane *plane);

	/* The same, but to be read in strips (strips.h) from scratch->strips: back ends that
	 * decode whole planes do so here. */
	int (*open_strips)(struct codec_scratch *scratch, const struct class_source *source,
			   const uint8_t *frequency, struct class_plane *plane);

	/* Called once, at start and end. Memory comes from scratch->arena. */
	uint64_t (*arena_bytes)(void);
	int (*init)(struct codec_scratch *scratch);
	void (*fini)(struct codec_scratch *scratch);
};

extern const struct lossless_ops lossless_stored, lossless_deflate, lossless_r16, lossless_zstd;

/* The back end of an enum ssv_codec, or NULL. */
const struct lossless_ops *lossless_find(uint8_t codec);
/* The back end that codes the classes of a wire codec's entries, or NULL. */
const struct lossless_ops *lossless_of_wire(uint8_t wire_codec);
/* The i-th row of the table, or NULL past its end. */
const struct lossless_ops *lossless_at(uint32_t index);

/* For back ends without state of their own. */
uint64_t lossless_no_arena(void);
int lossless_no_init(struct codec_scratch *scratch);
void lossless_no_fini(struct codec_scratch *scratch);

/* Aligned memory from scratch->arena; NULL when it is used up. */
void *arena_take(struct arena *arena, uint64_t bytes);

#endif
