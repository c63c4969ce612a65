/* SPDX-License-Identifier: Apache-2.0 */
/*
 * roof.c - what no decoder can pass: a copy, stores that bypass the caches, a plain read.
 *
 * Same destination and same order of chunks as the decoders. The copy is libc's; the fill stores
 * whole lines and reads nothing; the read sums 64-bit words.
 */
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "speed.h"

static void nothing(struct contender *c, const struct kv *kv, const struct destination *to)
{
	(void)c;
	(void)kv;
	(void)to;
}

static void copy_chunk(struct contender *c, const struct kv *kv, uint32_t chunk,
		       const struct destination *to, uint32_t slot)
{
	(void)c;
	for (uint32_t t = 0; t < kv->tensors_count; t++)
		memcpy(slot_tensor(kv, to, t, slot), kv_tensor(kv, chunk, t), kv->tensor_bytes);
}

static void fill_bytes(uint8_t *to, uint64_t bytes)
{
#if defined(__x86_64__)
	const __m128i value = _mm_set1_epi32(0x3f803f80);

	for (uint64_t i = 0; i < bytes; i += 64)
		for (uint32_t k = 0; k < 4; k++)
			_mm_stream_si128((__m128i *)(void *)(to + i) + k, value);
#else
	memset(to, 0x3f, bytes);
#endif
}

static void fill_chunk(struct contender *c, const struct kv *kv, uint32_t chunk,
		       const struct destination *to, uint32_t slot)
{
	(void)c;
	(void)chunk;
	for (uint32_t t = 0; t < kv->tensors_count; t++)
		fill_bytes(slot_tensor(kv, to, t, slot), kv->tensor_bytes);
#if defined(__x86_64__)
	_mm_sfence();
#endif
}

static void read_chunk(struct contender *c, const struct kv *kv, uint32_t chunk,
		       const struct destination *to, uint32_t slot)
{
	const uint64_t *words = (const uint64_t *)(const void *)(kv_tensor(kv, chunk, 0));
	uint64_t sum[8] = {0};

	(void)to;
	(void)slot;
	for (uint64_t i = 0; i < kv->chunk_bytes / 8; i += 8)
		for (uint32_t k = 0; k < 8; k++)
			sum[k] += words[i + k];
	c->state = (void *)(uintptr_t)(sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^
				       sum[6] ^ sum[7]); /* used, so that the loop stays */
}

const struct contender_ops speed_copy = {
    .name = "copy", .fields_count = 1, .prepare = nothing, .chunk = copy_chunk};
const struct contender_ops speed_fill = {
    .name = "fill", .fields_count = 1, .prepare = nothing, .chunk = fill_chunk};
const struct contender_ops speed_read = {
    .name = "read", .fields_count = 1, .prepare = nothing, .chunk = read_chunk};
