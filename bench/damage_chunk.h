/* SPDX-License-Identifier: Apache-2.0 */
/*
 * damage_chunk.h - sound chunks from a seed, and a dozen ways to damage one.
 *
 * The same seed and number give the same chunk and the same damage. Shapes, types, tiers and back
 * ends change from chunk to chunk; with `uniform` the shape does not, for readers that have one.
 */
#ifndef SSV_BENCH_DAMAGE_CHUNK_H
#define SSV_BENCH_DAMAGE_CHUNK_H

#include "codec/codec.h"

enum damage {
	DAMAGE_BITS = 0, /* 1 to 8 flipped bits */
	DAMAGE_TRUNCATED,
	DAMAGE_LONGER,
	DAMAGE_ZEROED,   /* a range */
	DAMAGE_NOISE,    /* random bytes over a range */
	DAMAGE_SHIFTED,  /* bytes lost in the middle, the length kept */
	DAMAGE_SWAPPED,  /* another key's sound value */
	DAMAGE_FOREIGN,  /* the key in the header, checksums written again */
	DAMAGE_MODEL,    /* the model in the header, checksums written again */
	DAMAGE_LENGTHS,  /* a length or offset in header or table, checksums written again */
	DAMAGE_VERSION,  /* an older major version, checksums written again */
	DAMAGE_POSITION, /* another first token, checksums written again */
	DAMAGES_COUNT,
};

extern const char *const damage_names[DAMAGES_COUNT];

struct maker {
	uint64_t seed, chunks;
	int uniform;
	void *scratch;
	uint8_t *value, *sound, *elements;
	uint64_t value_bytes, value_capacity, kv_bytes_max;
};

void maker_init(struct maker *maker, uint64_t seed, uint64_t chunks, int uniform);
void maker_fini(struct maker *maker);

struct ssv_key maker_key(const struct maker *maker, uint64_t n);
struct chunk_shape maker_shape(const struct maker *maker, uint64_t n);
void maker_model(uint8_t model[8]);

/* Chunk n, sound or damaged, into value[0..value_bytes). */
int maker_make(struct maker *maker, uint64_t n);
int maker_damage(struct maker *maker, uint64_t n, enum damage damage);

#endif
