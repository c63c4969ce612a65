/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_made.c - KV of Llama-3-8B's shape (8 KV heads of 128) that no model computed.
 *
 * What is known of such caches, made by a generator with a fixed seed: keys have channels of
 * unequal spread around means of their own, a few pairs of channels a head stand far out, tokens
 * resemble their predecessors, some vary in strength, a few values fall out of line; then rotary
 * embedding turns each pair by its token's position. Values are centred, their layers grow with
 * depth, tokens differ in norm. The same on every machine but for the last bit of sines.
 */
#include <math.h>
#include <string.h>

#include "speed.h"

#define HEADS   8u
#define DIM     128u
#define PAIRS   (DIM / 2)
#define THETA   500000.0
#define TAIL_OF 100u /* one value in so many is stretched */

struct head {
	float spread[DIM], mean[DIM], state[DIM], memory;
};

static uint64_t random_state;

static uint64_t random_u64(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static float random_unit(void)
{
	return (float)(random_u64() >> 40) * 0x1p-24f;
}

/* Nearly normal: four 16-bit parts of one number, scaled to variance 1. */
static float random_normal(void)
{
	uint64_t r = random_u64();
	int32_t sum = 0;

	for (uint32_t i = 0; i < 4; i++, r >>= 16)
		sum += (int32_t)(r & 0xffff) - 32768;
	return (float)sum * (1.7320508f / 65536.0f);
}

static void head_make_k(struct head *h)
{
	h->memory = 0.3f + 0.1f * random_normal();
	for (uint32_t c = 0; c < DIM; c++) {
		h->spread[c] = expf(0.35f * random_normal());
		h->mean[c] = 0.6f * h->spread[c] * random_normal();
		h->state[c] = random_normal();
	}
	for (uint32_t i = 0; i < 3; i++) { /* outlying pairs, mostly slow ones */
		uint32_t slow = random_unit() < 0.8f ? PAIRS / 2 : 0;
		uint32_t pair = slow + (uint32_t)(random_unit() * (PAIRS / 2));
		float size = 4 + 8 * random_unit();

		h->mean[pair] = h->spread[pair] * (random_unit() < 0.5f ? size : -size);
		h->mean[pair + PAIRS] = h->spread[pair + PAIRS] * size * random_normal() * 0.5f;
	}
}

static void head_make_v(struct head *h, float scale)
{
	h->memory = 0.15f;
	for (uint32_t c = 0; c < DIM; c++) {
		h->spread[c] = scale * expf(0.25f * random_normal());
		h->mean[c] = 0;
		h->state[c] = random_normal();
	}
}

/* The next token of a head, before rotation. gain: how much token norms vary. */
static void head_token(struct head *h, float gain, float *row)
{
	float fresh = sqrtf(1 - h->memory * h->memory), strength = expf(gain * random_normal());

	for (uint32_t c = 0; c < DIM; c++) {
		float x;

		h->state[c] = h->memory * h->state[c] + fresh * random_normal();
		x = h->state[c] * h->spread[c];
		if (random_u64() % TAIL_OF == 0)
			x *= 1 + 2.5f * random_unit();
		row[c] = h->mean[c] + x * strength;
	}
}

/* As Llama's code pairs them: channel i with i + DIM / 2. */
static void rotate(float *row, const float *cosine, const float *sine)
{
	for (uint32_t i = 0; i < PAIRS; i++) {
		float a = row[i], b = row[i + PAIRS];

		row[i] = a * cosine[i] - b * sine[i];
		row[i + PAIRS] = b * cosine[i] + a * sine[i];
	}
}

static uint16_t bf16_of(float x)
{
	uint32_t bits;

	memcpy(&bits, &x, sizeof(bits));
	return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

struct rotation {
	float cosine[PAIRS], sine[PAIRS];
};

static struct rotation *rotations_make(uint32_t tokens)
{
	struct rotation *rotation = speed_alloc(tokens * sizeof(*rotation));

	for (uint32_t t = 0; t < tokens; t++)
		for (uint32_t i = 0; i < PAIRS; i++) {
			double angle = t * pow(THETA, -(double)i / PAIRS);

			rotation[t].cosine[i] = (float)cos(angle);
			rotation[t].sine[i] = (float)sin(angle);
		}
	return rotation;
}

static void head_write(struct kv *kv, struct head *h, uint32_t tensor, uint32_t head,
		       const struct rotation *rotation)
{
	float row[DIM];

	for (uint32_t t = 0; t < kv->chunks_count * SSV_CHUNK_TOKENS; t++) {
		uint8_t *to = kv->elements + t / SSV_CHUNK_TOKENS * kv->chunk_bytes +
			      tensor * kv->tensor_bytes;
		uint16_t element[DIM];

		head_token(h, tensor % 2 ? 0.35f : 0.10f, row);
		if (tensor % 2 == 0)
			rotate(row, rotation[t].cosine, rotation[t].sine);
		for (uint32_t c = 0; c < DIM; c++)
			element[c] = bf16_of(row[c]);
		to += ((uint64_t)(t % SSV_CHUNK_TOKENS) * kv->channels + head * DIM) * 2;
		memcpy(to, element, sizeof(element));
	}
}

void kv_make(struct kv *kv, uint32_t layers, uint32_t chunks)
{
	struct rotation *rotation;
	struct head head;

	if (!layers || layers > 32 || !chunks || chunks > SPEED_CHUNKS_MAX)
		speed_die("--made-up", "expected 1..32 layers and 1..64 chunks");
	kv->shape = (struct chunk_shape){
	    .dtype = SSV_DTYPE_BF16,
	    .parts_count = 2,
	    .tokens = SSV_CHUNK_TOKENS,
	    .layers_count = (uint16_t)layers,
	    .layers_total = (uint16_t)layers,
	    .ranks_count = 1,
	    .parts = {{SSV_ROLE_K, 0, HEADS, DIM}, {SSV_ROLE_V, 0, HEADS, DIM}},
	};
	kv->chunks_count = chunks;
	kv->channels = HEADS * DIM;
	kv->chunk_bytes = shape_kv_bytes(&kv->shape);
	kv->tensor_bytes = shape_tensor_bytes(&kv->shape, 0);
	kv->tensors_count = shape_tensors(&kv->shape);
	kv->elements = speed_alloc(kv->chunk_bytes * chunks);
	for (uint32_t i = 0; i < chunks; i++)
		kv->first_token[i] = (i + 1) * SSV_CHUNK_TOKENS; /* no sink token among them */
	rotation = rotations_make(chunks * SSV_CHUNK_TOKENS);
	random_state = 88172645463325252ull;
	for (uint32_t tensor = 0; tensor < kv->tensors_count; tensor++) {
		float depth = layers > 1 ? (float)(tensor / 2) / (float)(layers - 1) : 0;

		for (uint32_t i = 0; i < HEADS; i++) {
			if (tensor % 2)
				head_make_v(&head, 0.03f * powf(20, depth));
			else
				head_make_k(&head);
			head_write(kv, &head, tensor, i, rotation);
		}
	}
	free(rotation);
}
