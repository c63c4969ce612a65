/* SPDX-License-Identifier: Apache-2.0 */
/* arena.c - mmap, madvise and mlock of the one arena; see arena.h. */
#include "base/arena.h"

#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14; the C library's header may be older */
#endif

#define ARENA_ALIGN (2 * MIB) /* a huge page, where the kernel gives them */

/* Take every page now: what was printed at start is what is used, and no page is missing later. */
static void arena_populate(uint8_t *base, uint64_t bytes)
{
	if (madvise(base, bytes, MADV_POPULATE_WRITE) == 0)
		return;
	for (uint64_t i = 0; i < bytes; i += 4 * KIB) /* kernels before 5.14 */
		((volatile uint8_t *)base)[i] = 0;
}

/* From huge pages that were set aside; NULL: there are too few. */
static uint8_t *map_reserved(uint64_t bytes)
{
	void *mapping = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);

	return mapping == MAP_FAILED ? NULL : mapping;
}

/* On a boundary of huge pages, so that the kernel can give transparent ones. */
static uint8_t *map_aligned(uint64_t bytes)
{
	const uint64_t mapped = bytes + ARENA_ALIGN;
	uint8_t *mapping, *base;
	uint64_t lead, tail;

	mapping = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mapping == MAP_FAILED)
		return NULL;
	base = (uint8_t *)align_up((uintptr_t)mapping, ARENA_ALIGN);
	lead = (uint64_t)(base - mapping);
	tail = mapped - lead - bytes;
	if (lead)
		munmap(mapping, lead);
	if (tail)
		munmap(base + bytes, tail);
	/* Advice only: without huge pages it is slower, not wrong. */
	(void)madvise(base, bytes, MADV_HUGEPAGE);
	return base;
}

/* What the kernel gave: the sum over the arena's mappings. 0 where it does not say. */
static uint64_t transparent_bytes(const uint8_t *base, uint64_t bytes)
{
	const uintptr_t from = (uintptr_t)base, to = from + bytes;
	FILE *file = fopen("/proc/self/smaps", "re");
	unsigned long begin = 0, end = 0, kib;
	uint64_t sum = 0;
	char line[512];

	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &begin, &end) == 2)
			continue;
		if (begin >= from && end <= to && sscanf(line, "AnonHugePages: %lu kB", &kib) == 1)
			sum += kib * KIB;
	}
	if (file)
		(void)fclose(file);
	return sum;
}

int arena_create(struct arena *arena, uint64_t bytes, int pin, int reserve)
{
	uint8_t *base = NULL;

	if (bytes == 0 || bytes > UINT64_MAX / 2)
		return -EINVAL;
	if (reserve)
		base = map_reserved(align_up(bytes, ARENA_ALIGN));
	arena->reserved = base != NULL;
	bytes = align_up(bytes, base ? ARENA_ALIGN : 4 * KIB);
	if (!base)
		base = map_aligned(bytes);
	if (!base)
		return -ENOMEM;
	(void)madvise(base, bytes, MADV_DONTFORK);
	arena_populate(base, bytes);
	arena->base = base;
	arena->bytes = bytes;
	arena->used = 0;
	arena->huge_bytes = arena->reserved ? bytes : transparent_bytes(base, bytes);
	arena->pinned = pin && mlock(base, bytes) == 0;
	return 0;
}

void arena_destroy(struct arena *arena)
{
	if (arena->base)
		munmap(arena->base, arena->bytes);
	arena->base = NULL;
	arena->bytes = 0;
	arena->used = 0;
}

void *arena_carve(struct arena *arena, uint64_t bytes, uint64_t alignment)
{
	uint64_t start = align_up(arena->used, alignment);

	ssv_assert(alignment && (alignment & (alignment - 1)) == 0 && alignment <= ARENA_ALIGN);
	if (start > arena->bytes || bytes > arena->bytes - start)
		return NULL;
	arena->used = start + bytes;
	return arena->base + start;
}
