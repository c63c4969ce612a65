/* SPDX-License-Identifier: Apache-2.0 */
/*
 * speed.h - what the contenders of bench_speed share.
 *
 * A contender is named by a spec ("decode:standard:r16:avx512:rows") and works chunk by chunk on
 * the same KV, reading chunk i and writing slot j of one destination that is larger than the
 * caches. bench_speed runs all of them in turns, so that what disturbs the machine disturbs all.
 * Whatever goes wrong ends the program with a line that says what; nothing here is a product.
 */
#ifndef SSV_BENCH_SPEED_H
#define SSV_BENCH_SPEED_H

#include "codec/codec.h"

#define SPEED_FIELDS_MAX   5u
#define SPEED_RUNS_MAX     101u
#define SPEED_CHUNKS_MAX   64u
#define SPEED_BLOCK_TOKENS 32u

/* KV in canonical order, [chunk][layer][part][token][channel]; bf16, two equal parts. */
struct kv {
	struct chunk_shape shape;
	uint32_t chunks_count, channels;
	uint32_t first_token[SPEED_CHUNKS_MAX];
	uint64_t chunk_bytes, tensor_bytes;
	uint32_t tensors_count; /* of a chunk */
	uint8_t *elements;
};

/* Where everything is written: slots of a chunk each. */
struct destination {
	uint8_t *bytes;
	uint32_t slots_count;
};

struct contender {
	const char *spec;
	char *field[SPEED_FIELDS_MAX];
	const struct contender_ops *ops;
	void *state;
	uint64_t wire_bytes; /* of all chunks, when that means something; else 0 */
	uint32_t chunks;     /* of a run */
	double seconds[SPEED_RUNS_MAX];
};

struct contender_ops {
	const char *name;      /* first field of a spec */
	uint32_t fields_count; /* of a spec, with its name */
	/* Makes c->state and checks that the work gives the right bytes. */
	void (*prepare)(struct contender *c, const struct kv *kv, const struct destination *to);
	/* Right before a run; may be NULL. */
	void (*begin)(struct contender *c);
	void (*chunk)(struct contender *c, const struct kv *kv, uint32_t chunk,
		      const struct destination *to, uint32_t slot);
};

extern const struct contender_ops speed_decode, speed_encode;         /* ours.c */
extern const struct contender_ops speed_unpack, speed_pack;           /* others.c */
extern const struct contender_ops speed_copy, speed_fill, speed_read; /* roof.c */

_Noreturn void speed_die(const char *what, const char *name);
void *speed_alloc(uint64_t bytes); /* 64-byte aligned, slack behind it */

/* Lossless chunks of a file: store's folder (what a real engine stored), in order of position. */
void kv_load(struct kv *kv, const char *folder);
/* KV with the shape and the statistics of a Llama-3-8B layer, `layers` of them; kv_made.c. */
void kv_make(struct kv *kv, uint32_t layers, uint32_t chunks);

static inline const uint8_t *kv_tensor(const struct kv *kv, uint32_t chunk, uint32_t tensor)
{
	return kv->elements + chunk * kv->chunk_bytes + tensor * kv->tensor_bytes;
}

/* A tensor of a slot as rows: all slots of a tensor lie side by side, as an engine's pages do. */
static inline uint8_t *slot_tensor(const struct kv *kv, const struct destination *to,
				   uint32_t tensor, uint32_t slot)
{
	return to->bytes + ((uint64_t)tensor * to->slots_count + slot) * kv->tensor_bytes;
}

#endif
