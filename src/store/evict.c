/* SPDX-License-Identifier: Apache-2.0 */
/*
 * evict.c - sweeps and removals of a file: store.
 *
 * The victims are kept in a binary heap with the most recently used on top while a sweep runs (so
 * that an older one can replace it), and are sorted by popping the heap at its end: no allocation.
 */
#include "store/evict.h"

#include <errno.h>
#include <string.h>

#include "base/clock.h"

#define SWEEP_EVERY_NS (600 * NS_PER_S)
#define TEMP_AGE_S     600 /* a temporary file that was not written for so long is left over */
#define HEADROOM       64  /* keeps limit/64 free, so that a put seldom waits */
#define RETRY_NS       (5 * NS_PER_S) /* after a victim could not be removed */

void evict_init(struct evict *evict, struct folder *folder, uint64_t limit)
{
	memset(evict, 0, sizeof(*evict));
	evict->folder = folder;
	evict->limit = limit;
	folder_walk_init(&evict->walk);
}

void evict_fini(struct evict *evict)
{
	folder_walk_fini(&evict->walk);
}

/* ---- victims -------------------------------------------------------------------------------- */

static void swap_victims(struct evict *evict, uint32_t a, uint32_t b)
{
	struct folder_entry entry = evict->victims[a];

	evict->victims[a] = evict->victims[b];
	evict->victims[b] = entry;
}

static void sift_down(struct evict *evict, uint32_t count)
{
	uint32_t at = 0;

	for (;;) {
		uint32_t child = 2 * at + 1;

		if (child >= count)
			return;
		if (child + 1 < count &&
		    evict->victims[child + 1].used_s > evict->victims[child].used_s)
			child++;
		if (evict->victims[at].used_s >= evict->victims[child].used_s)
			return;
		swap_victims(evict, at, child);
		at = child;
	}
}

static void collect_victim(struct evict *evict, const struct folder_entry *entry)
{
	uint32_t at = evict->victims_count;

	if (at == EVICT_VICTIMS_MAX) {
		if (entry->used_s >= evict->victims[0].used_s)
			return;
		evict->victims[0] = *entry;
		sift_down(evict, at);
		return;
	}
	evict->victims[at] = *entry;
	evict->victims_count++;
	while (at && evict->victims[at].used_s > evict->victims[(at - 1) / 2].used_s) {
		swap_victims(evict, at, (at - 1) / 2);
		at = (at - 1) / 2;
	}
}

static void sort_victims(struct evict *evict)
{
	uint32_t count;

	for (count = evict->victims_count; count > 1; count--) {
		swap_victims(evict, 0, count - 1);
		sift_down(evict, count - 1);
	}
}

/* ---- accounting ----------------------------------------------------------------------------- */

int evict_admit(struct evict *evict, uint64_t bytes)
{
	evict->wanted = 0;
	if (!evict->limit)
		return 0;
	if (bytes > evict->limit)
		return -ENOSPC;
	if (evict->known && evict->used + bytes <= evict->limit)
		return 0;
	if (evict->last_error && evict->victims_next == evict->victims_count)
		return evict->last_error;
	evict->wanted = bytes;
	return -EAGAIN;
}

void evict_added(struct evict *evict, const struct ssv_key *key, uint64_t bytes,
		 uint64_t replaced_bytes)
{
	evict_removed(evict, replaced_bytes);
	evict->used += bytes;
	evict->put_since_sweep += bytes;
	/* The running sweep has passed this shard: it will not see the value. */
	if (evict->state == EVICT_SWEEPING && key->bytes[0] <= evict->walk.shard)
		evict->sum += bytes;
}

void evict_removed(struct evict *evict, uint64_t bytes)
{
	evict->used -= u64_min(bytes, evict->used);
}

static bool too_full(const struct evict *evict)
{
	return evict->limit && evict->known &&
	       (evict->used > evict->limit - evict->limit / HEADROOM ||
		evict->used + evict->wanted > evict->limit);
}

static bool sweep_due(const struct evict *evict, uint64_t now_ns)
{
	if (now_ns >= evict->sweep_ns)
		return true;
	if (!evict->limit)
		return false;
	return !evict->known || evict->put_since_sweep > evict->limit / HEADROOM ||
	       (too_full(evict) && !evict->last_error &&
		evict->victims_next == evict->victims_count);
}

bool evict_pending(const struct evict *evict, uint64_t now_ns)
{
	return evict->state != EVICT_IDLE || sweep_due(evict, now_ns) ||
	       (too_full(evict) && evict->victims_next < evict->victims_count);
}

/* ---- steps ---------------------------------------------------------------------------------- */

static void sweep_begin(struct evict *evict, uint64_t now_ns)
{
	evict->state = EVICT_CLEANING;
	evict->sweep_ns = now_ns + SWEEP_EVERY_NS;
	evict->put_since_sweep = 0;
	evict->last_error = folder_heal(evict->folder);
	folder_walk_init(&evict->walk);
}

static void sweep_step(struct evict *evict)
{
	struct folder_entry entries[FOLDER_BATCH];
	bool end;
	uint32_t n = folder_walk_step(evict->folder, &evict->walk, entries, &end);
	uint32_t i;

	for (i = 0; i < n; i++) {
		evict->sum += entries[i].bytes;
		collect_victim(evict, &entries[i]);
	}
	if (!end)
		return;
	sort_victims(evict);
	evict->used = evict->sum;
	evict->known = true;
	evict->state = EVICT_IDLE;
}

static void clean_step(struct evict *evict, int64_t wall_s)
{
	if (!folder_clean_step(evict->folder, &evict->walk, wall_s - TEMP_AGE_S))
		return;
	evict->state = EVICT_IDLE;
	if (!evict->limit)
		return;
	evict->state = EVICT_SWEEPING;
	evict->sum = 0;
	evict->victims_count = 0;
	evict->victims_next = 0;
	folder_walk_init(&evict->walk);
}

/* Remove the next victim, unless it was used since the sweep. */
static void remove_step(struct evict *evict, uint64_t now_ns)
{
	const struct folder_entry *victim = &evict->victims[evict->victims_next++];
	struct folder_entry now;
	int err = folder_find(evict->folder, &victim->key, &now);

	if (!err && now.used_s > victim->used_s)
		return;
	if (!err)
		err = folder_remove(evict->folder, &victim->key);
	if (err && err != -ENOENT) {
		evict->last_error = err;
		evict->sweep_ns = u64_min(evict->sweep_ns, now_ns + RETRY_NS);
		return;
	}
	evict->evictions += err == 0;
	evict_removed(evict, victim->bytes);
}

void evict_step(struct evict *evict, uint64_t now_ns, int64_t wall_s)
{
	if (evict->state == EVICT_CLEANING) {
		clean_step(evict, wall_s);
		return;
	}
	if (evict->state == EVICT_SWEEPING) {
		sweep_step(evict);
		return;
	}
	if (too_full(evict) && evict->victims_next < evict->victims_count)
		remove_step(evict, now_ns);
	else if (sweep_due(evict, now_ns))
		sweep_begin(evict, now_ns);
}
