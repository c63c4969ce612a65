/* SPDX-License-Identifier: Apache-2.0 */
/*
 * evict.c - the account of a folder, sweeps and removals.
 *
 * The account is a handful of counters that several worker threads add to; nothing is published
 * through them, so their order among other memory does not matter. The victims are kept in a binary
 * heap with the most recently used on top while a sweep runs (so that an older one can replace it),
 * and are sorted by popping the heap at its end: no allocation.
 */
#include "store/evict.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"

#define SWEEP_EVERY_NS (600 * NS_PER_S)
#define RETRY_NS       (5 * NS_PER_S) /* after a victim could not be removed */
#define TEMP_AGE_S     600 /* a temporary file that was not written for so long is left over */
#define HEADROOM       64  /* keeps limit/64 free, so that a put seldom waits */

/* ---- the account ---------------------------------------------------------------------------- */

struct evict_account {
	struct evict_account *next;
	dev_t device;
	ino_t inode;
	uint32_t handles; /* guarded by accounts_lock */
	_Atomic int64_t used;
	_Atomic int64_t put_since_sweep;
	_Atomic bool known; /* a sweep has ended */
};

/* Guards the list of accounts and their handle counts; control path only; taken alone. */
static pthread_mutex_t accounts_lock = PTHREAD_MUTEX_INITIALIZER;
static struct evict_account *accounts;

/* Counters alone: pairs with account_get() of any thread, which may see it a little later. */
static void account_add(_Atomic int64_t *counter, int64_t n)
{
	(void)atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* Pairs with account_add() of any thread. */
static int64_t account_get(const _Atomic int64_t *counter)
{
	return atomic_load_explicit(counter, memory_order_relaxed);
}

/* Pairs with account_set_known(): no other datum depends on it. */
static bool account_known(const struct evict_account *account)
{
	return atomic_load_explicit(&account->known, memory_order_relaxed);
}

/* Pairs with account_known(). */
static void account_set_known(struct evict_account *account)
{
	atomic_store_explicit(&account->known, true, memory_order_relaxed);
}

static struct evict_account *account_acquire(const struct folder *folder)
{
	struct evict_account *account;
	struct stat st = {0};

	(void)fstat(folder->fd, &st);
	(void)pthread_mutex_lock(&accounts_lock);
	for (account = accounts; account; account = account->next) {
		if (account->device == st.st_dev && account->inode == st.st_ino)
			break;
	}
	if (!account)
		account = calloc(1, sizeof(*account));
	if (account && !account->handles++) {
		account->device = st.st_dev;
		account->inode = st.st_ino;
		account->next = accounts;
		accounts = account;
	}
	(void)pthread_mutex_unlock(&accounts_lock);
	return account;
}

static void account_release(struct evict_account *account)
{
	struct evict_account **link;

	(void)pthread_mutex_lock(&accounts_lock);
	if (--account->handles == 0) {
		for (link = &accounts; *link != account;)
			link = &(*link)->next;
		*link = account->next;
		free(account);
	}
	(void)pthread_mutex_unlock(&accounts_lock);
}

int evict_init(struct evict *evict, struct folder *folder, uint64_t limit)
{
	memset(evict, 0, sizeof(*evict));
	evict->folder = folder;
	evict->limit = limit;
	evict->limit_configured = limit;
	folder_walk_init(&evict->walk);
	evict->account = account_acquire(folder);
	return evict->account ? 0 : -ENOMEM;
}

void evict_fini(struct evict *evict)
{
	folder_walk_fini(&evict->walk);
	if (evict->account)
		account_release(evict->account);
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

/* ---- room ----------------------------------------------------------------------------------- */

uint64_t evict_used(const struct evict *evict)
{
	int64_t used = account_get(&evict->account->used);

	return used > 0 ? (uint64_t)used : 0;
}

/* limit/64 was put since somebody began a sweep. */
static bool much_was_put(const struct evict *evict)
{
	return (uint64_t)account_get(&evict->account->put_since_sweep) > evict->limit / HEADROOM;
}

int evict_reserve(struct evict *evict, uint64_t bytes)
{
	evict->wanted = 0;
	if (!evict->limit)
		return 0;
	if (bytes > evict->limit)
		return -ENOSPC;
	if (account_known(evict->account) && !(evict->state != EVICT_IDLE && much_was_put(evict))) {
		account_add(&evict->account->used, (int64_t)bytes);
		if (evict_used(evict) <= evict->limit) {
			account_add(&evict->account->put_since_sweep, (int64_t)bytes);
			return 0;
		}
		account_add(&evict->account->used, -(int64_t)bytes);
	}
	if (evict->last_error && evict->victims_next == evict->victims_count)
		return evict->last_error;
	evict->wanted = bytes;
	return -EAGAIN;
}

void evict_free(struct evict *evict, uint64_t bytes)
{
	if (evict->limit)
		account_add(&evict->account->used, -(int64_t)bytes);
}

void evict_disk_full(struct evict *evict, uint64_t bytes)
{
	uint64_t used = evict_used(evict);

	if (evict->limit && account_known(evict->account))
		evict->limit = u64_max(bytes, used - u64_min(bytes, used));
}

static bool too_full(const struct evict *evict)
{
	uint64_t used = evict_used(evict);

	return evict->limit && account_known(evict->account) &&
	       (used > evict->limit - evict->limit / HEADROOM ||
		used + evict->wanted > evict->limit);
}

static bool sweep_due(const struct evict *evict, uint64_t now_ns)
{
	if (now_ns >= evict->sweep_ns)
		return true;
	if (!evict->limit)
		return false;
	return !account_known(evict->account) || much_was_put(evict) ||
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
	int64_t put = account_get(&evict->account->put_since_sweep);

	evict->state = EVICT_CLEANING;
	if (now_ns >= evict->sweep_ns) /* others may have made room on the disk */
		evict->limit = evict->limit_configured;
	evict->sweep_ns = now_ns + SWEEP_EVERY_NS;
	account_add(&evict->account->put_since_sweep, -put);
	evict->last_error = folder_heal(evict->folder);
	folder_walk_init(&evict->walk);
}

/* Correct the account. What was put meanwhile may be in the sum or not: count it, since the limit
 * is to be kept; what was removed meanwhile may be in it too. The next sweep knows better. */
static void sweep_end(struct evict *evict)
{
	int64_t used = account_get(&evict->account->used);
	int64_t put = used - (int64_t)evict->used_at_begin;
	int64_t right = (int64_t)evict->sum + (put > 0 ? put : 0);

	sort_victims(evict);
	account_add(&evict->account->used, right - used);
	account_set_known(evict->account);
	evict->state = EVICT_IDLE;
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
	if (end)
		sweep_end(evict);
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
	evict->used_at_begin = evict_used(evict);
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
	evict_free(evict, victim->bytes);
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
