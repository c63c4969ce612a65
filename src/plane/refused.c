/* SPDX-License-Identifier: Apache-2.0 */
/*
 * refused.c - chunks that a fetch refused and that stay stored, because they may be right for
 * others: coarser than asked, of another position, shape or model, of a newer format.
 *
 * The store answers "there" for such a key for ever. So the control thread remembers it for a
 * while: a LOOKUP counts it as absent, and a STORE replaces the chunk without asking. A fixed
 * table of small sets, the oldest of a set replaced: what is forgotten costs one more short fetch.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "plane/internal.h"

#define REFUSED_WAYS   8u
#define REFUSED_AGE_NS (5 * 60 * NS_PER_S)

/* Keys are hashes: any of their bits choose a set. */
static struct refused *refused_set(struct plane *plane, const struct ssv_key *key)
{
	return &plane->refused[load_le32(key->bytes) % (REFUSED_MAX / REFUSED_WAYS) * REFUSED_WAYS];
}

static struct refused *refused_find(struct plane *plane, const struct ssv_key *key)
{
	struct refused *set = refused_set(plane, key);

	for (uint32_t i = 0; i < REFUSED_WAYS; i++) {
		if (set[i].until_ns > plane->now_ns && memcmp(&set[i].key, key, sizeof(*key)) == 0)
			return &set[i];
	}
	return NULL;
}

/* A fetch that asked for min_tier refused the chunk: what the task says of it. */
void refused_note(struct plane *plane, const struct ssv_key *key, const struct task *task)
{
	struct refused *oldest = refused_set(plane, key);
	struct refused *entry = refused_find(plane, key);

	for (uint32_t i = 1; i < REFUSED_WAYS; i++) {
		struct refused *other = &refused_set(plane, key)[i];

		if (other->until_ns < oldest->until_ns)
			oldest = other;
	}
	if (!entry)
		entry = oldest;
	*entry = (struct refused){
	    .key = *key,
	    .until_ns = plane->now_ns + REFUSED_AGE_NS,
	    .fault = task->kept_fault,
	    .tier = task->kept_tier,
	    .min_tier = task->min_tier,
	};
}

/* Would a fetch that asks for min_tier (0: any) be refused again? */
int refused_hides(struct plane *plane, const struct ssv_key *key, uint8_t min_tier)
{
	const struct refused *entry = refused_find(plane, key);

	if (!entry)
		return 0;
	return entry->fault != CONTAINER_FAULT_TIER || (min_tier && entry->tier > min_tier);
}

/* Does a chunk of this tier help whoever was refused? */
int refused_is_replaced(struct plane *plane, const struct ssv_key *key, uint8_t tier)
{
	const struct refused *entry = refused_find(plane, key);

	return entry && (entry->fault != CONTAINER_FAULT_TIER || tier <= entry->min_tier);
}

/* Another chunk was put under the key. */
void refused_forget(struct plane *plane, const struct ssv_key *key)
{
	struct refused *entry = refused_find(plane, key);

	if (entry)
		entry->until_ns = 0;
}
