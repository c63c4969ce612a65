/* SPDX-License-Identifier: Apache-2.0 */
/*
 * malloc_count.c - preloaded into the daemon: counts allocations in a file that a test maps.
 *
 * It forwards to glibc's own entry points, so it needs no lookup that could allocate itself.
 * Freeing is not counted: what is never allocated is never freed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t bytes);
extern void *__libc_realloc(void *old, size_t bytes);
extern void *__libc_memalign(size_t alignment, size_t bytes);

EXPORT void *malloc(size_t bytes);
EXPORT void *calloc(size_t count, size_t bytes);
EXPORT void *realloc(void *old, size_t bytes);
EXPORT int posix_memalign(void **ret, size_t alignment, size_t bytes);
EXPORT void *aligned_alloc(size_t alignment, size_t bytes);

static _Atomic uint64_t none;
static _Atomic uint64_t *counter = &none;

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("MALLOC_COUNT_FILE");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	void *map;

	if (fd < 0)
		return;
	map = mmap(NULL, sizeof(*counter), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (map != MAP_FAILED)
		counter = map;
}

/* Initial-exec: reaching it must not allocate. */
static _Thread_local uint64_t of_thread __attribute__((tls_model("initial-exec")));

EXPORT uint64_t shadowserve_allocations_of_thread(void);

/* The daemon looks for this name and shows the number (stat, "allocations"). */
EXPORT uint64_t shadowserve_allocations_of_thread(void)
{
	return of_thread;
}

static void count(void)
{
	of_thread++;
	/* Relaxed: only the sum is read, by another process. */
	atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

void *malloc(size_t bytes)
{
	count();
	return __libc_malloc(bytes);
}

void *calloc(size_t n, size_t bytes)
{
	count();
	return __libc_calloc(n, bytes);
}

void *realloc(void *old, size_t bytes)
{
	count();
	return __libc_realloc(old, bytes);
}

int posix_memalign(void **ret, size_t alignment, size_t bytes)
{
	count();
	*ret = __libc_memalign(alignment, bytes);
	return *ret ? 0 : ENOMEM;
}

void *aligned_alloc(size_t alignment, size_t bytes)
{
	count();
	return __libc_memalign(alignment, bytes);
}
