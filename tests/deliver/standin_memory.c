/* SPDX-License-Identifier: Apache-2.0 */
/* standin_memory.c - the stand-in's memory: pinned host ranges, device memory, IPC, mappings. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "standin_internal.h"

#define RANGES 256
#define PAGE   (2ul << 20)

struct range {
	enum range_kind kind;
	uint8_t *start;
	size_t bytes;
	int references;
	char name[64]; /* IPC: of the shared memory */
	int owned;     /* allocated here */
};

static struct range ranges[RANGES];

static struct range *range_free(void)
{
	for (int i = 0; i < RANGES; i++) {
		if (ranges[i].kind == RANGE_FREE)
			return &ranges[i];
	}
	return NULL;
}

static struct range *range_of(enum range_kind kind, const void *address, size_t bytes)
{
	const uint8_t *start = address;

	for (int i = 0; i < RANGES; i++) {
		struct range *range = &ranges[i];

		if (range->kind == kind && start >= range->start &&
		    start + bytes <= range->start + range->bytes)
			return range;
	}
	return NULL;
}

int standin_covers(enum range_kind kind, const void *address, size_t bytes)
{
	return range_of(kind, address, bytes) != NULL;
}

CALL cuMemHostRegister_v2(void *memory, size_t bytes, unsigned int flags);
CALL cuMemHostRegister_v2(void *memory, size_t bytes, unsigned int flags)
{
	struct range *range;
	int result = OK;

	(void)flags;
	pthread_mutex_lock(&standin_lock);
	range = range_free();
	if (!standin_context)
		result = BAD_CONTEXT;
	else if (standin_fails("cuMemHostRegister") || !range ||
		 range_of(RANGE_HOST, memory, bytes))
		result = BAD_VALUE;
	else {
		*range = (struct range){.kind = RANGE_HOST, .start = memory, .bytes = bytes};
		standin_state.registrations++;
	}
	pthread_mutex_unlock(&standin_lock);
	return result;
}

CALL cuMemHostUnregister(void *memory);
CALL cuMemHostUnregister(void *memory)
{
	struct range *range;

	pthread_mutex_lock(&standin_lock);
	range = range_of(RANGE_HOST, memory, 1);
	if (range) {
		range->kind = RANGE_FREE;
		standin_state.registrations--;
	}
	pthread_mutex_unlock(&standin_lock);
	return range ? OK : BAD_VALUE;
}

static uint8_t *share(const char *name, size_t *bytes, int create)
{
	int fd = shm_open(name, create ? O_RDWR | O_CREAT | O_EXCL : O_RDWR, 0600);
	uint8_t *memory = MAP_FAILED;
	struct stat st;

	if (fd < 0)
		return NULL;
	if (create ? ftruncate(fd, (off_t)*bytes) == 0 : fstat(fd, &st) == 0) {
		if (!create)
			*bytes = (size_t)st.st_size;
		memory = mmap(NULL, *bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	}
	close(fd);
	return memory == MAP_FAILED ? NULL : memory;
}

CALL cuMemAlloc_v2(uint64_t *pointer, size_t bytes);
CALL cuMemAlloc_v2(uint64_t *pointer, size_t bytes)
{
	static int number;
	struct range *range;

	pthread_mutex_lock(&standin_lock);
	range = range_free();
	if (range) {
		snprintf(range->name, sizeof(range->name), "/ssv-standin-%d-%d", (int)getpid(),
			 number++);
		range->start = share(range->name, &bytes, 1);
	}
	if (!range || !range->start) {
		pthread_mutex_unlock(&standin_lock);
		return BAD_VALUE;
	}
	range->kind = RANGE_DEVICE;
	range->bytes = bytes;
	range->references = 1;
	range->owned = 1;
	standin_state.allocations++;
	*pointer = (uintptr_t)range->start;
	pthread_mutex_unlock(&standin_lock);
	return OK;
}

CALL cuMemFree_v2(uint64_t pointer);
CALL cuMemFree_v2(uint64_t pointer)
{
	struct range *range;

	pthread_mutex_lock(&standin_lock);
	range = range_of(RANGE_DEVICE, (void *)(uintptr_t)pointer, 1);
	if (range && range->owned) {
		shm_unlink(range->name);
		munmap(range->start, range->bytes);
		range->kind = RANGE_FREE;
		standin_state.allocations--;
	}
	pthread_mutex_unlock(&standin_lock);
	return range ? OK : BAD_VALUE;
}

struct handle {
	char name[64];
};

CALL cuIpcGetMemHandle(struct handle *handle, uint64_t pointer);
CALL cuIpcGetMemHandle(struct handle *handle, uint64_t pointer)
{
	struct range *range;

	pthread_mutex_lock(&standin_lock);
	range = range_of(RANGE_DEVICE, (void *)(uintptr_t)pointer, 1);
	if (range)
		memcpy(handle->name, range->name, sizeof(handle->name));
	pthread_mutex_unlock(&standin_lock);
	return range ? OK : BAD_VALUE;
}

CALL cuIpcOpenMemHandle_v2(uint64_t *pointer, struct handle handle, unsigned int flags);
CALL cuIpcOpenMemHandle_v2(uint64_t *pointer, struct handle handle, unsigned int flags)
{
	struct range *range;
	int result = BAD_VALUE;

	(void)flags;
	handle.name[sizeof(handle.name) - 1] = 0;
	pthread_mutex_lock(&standin_lock);
	range = range_free();
	if (!standin_context)
		result = BAD_CONTEXT;
	else if (range && !standin_fails("cuIpcOpenMemHandle")) {
		range->owned = 0;
		range->start = handle.name[0] == '/' ? share(handle.name, &range->bytes, 0) : NULL;
		if (range->start) {
			range->kind = RANGE_DEVICE;
			standin_state.mappings++;
			*pointer = (uintptr_t)range->start;
			result = OK;
		}
	}
	pthread_mutex_unlock(&standin_lock);
	return result;
}

CALL cuIpcCloseMemHandle(uint64_t pointer);
CALL cuIpcCloseMemHandle(uint64_t pointer)
{
	struct range *range;

	pthread_mutex_lock(&standin_lock);
	range = range_of(RANGE_DEVICE, (void *)(uintptr_t)pointer, 1);
	if (range && !range->owned) {
		munmap(range->start, range->bytes);
		range->kind = RANGE_FREE;
		standin_state.mappings--;
	}
	pthread_mutex_unlock(&standin_lock);
	return range ? OK : BAD_VALUE;
}

CALL cuMemGetAddressRange_v2(uint64_t *base, size_t *bytes, uint64_t pointer);
CALL cuMemGetAddressRange_v2(uint64_t *base, size_t *bytes, uint64_t pointer)
{
	struct range *range;

	pthread_mutex_lock(&standin_lock);
	range = range_of(RANGE_DEVICE, (void *)(uintptr_t)pointer, 1);
	if (range && !standin_fails("cuMemGetAddressRange")) {
		*base = (uintptr_t)range->start;
		*bytes = range->bytes;
	} else {
		range = NULL;
	}
	pthread_mutex_unlock(&standin_lock);
	return range ? OK : BAD_VALUE;
}

CALL cuMemImportFromShareableHandle(uint64_t *allocation, void *handle, int type);
CALL cuMemImportFromShareableHandle(uint64_t *allocation, void *handle, int type)
{
	int fd = type == 1 ? dup((int)(intptr_t)handle) : -1;

	if (fd < 0)
		return BAD_VALUE;
	*allocation = (uint64_t)fd;
	pthread_mutex_lock(&standin_lock);
	standin_state.allocations++;
	pthread_mutex_unlock(&standin_lock);
	return OK;
}

CALL cuMemRelease(uint64_t allocation);
CALL cuMemRelease(uint64_t allocation)
{
	close((int)allocation);
	pthread_mutex_lock(&standin_lock);
	standin_state.allocations--;
	pthread_mutex_unlock(&standin_lock);
	return OK;
}

CALL cuMemAddressReserve(uint64_t *pointer, size_t bytes, size_t alignment, uint64_t wish,
			 unsigned long long flags);
CALL cuMemAddressReserve(uint64_t *pointer, size_t bytes, size_t alignment, uint64_t wish,
			 unsigned long long flags)
{
	struct range *range;
	void *memory;

	(void)alignment;
	(void)wish;
	(void)flags;
	pthread_mutex_lock(&standin_lock);
	range = range_free();
	memory = range && bytes % PAGE == 0
		     ? mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
		     : MAP_FAILED;
	if (memory != MAP_FAILED) {
		*range = (struct range){.kind = RANGE_RESERVED, .start = memory, .bytes = bytes};
		*pointer = (uintptr_t)memory;
	}
	pthread_mutex_unlock(&standin_lock);
	return memory == MAP_FAILED ? BAD_VALUE : OK;
}

CALL cuMemAddressFree(uint64_t pointer, size_t bytes);
CALL cuMemAddressFree(uint64_t pointer, size_t bytes)
{
	struct range *range;

	pthread_mutex_lock(&standin_lock);
	range = range_of(RANGE_RESERVED, (void *)(uintptr_t)pointer, bytes);
	if (range) {
		munmap(range->start, range->bytes);
		range->kind = RANGE_FREE;
	}
	pthread_mutex_unlock(&standin_lock);
	return range ? OK : BAD_VALUE;
}

CALL cuMemMap(uint64_t pointer, size_t bytes, size_t offset, uint64_t allocation,
	      unsigned long long flags);
CALL cuMemMap(uint64_t pointer, size_t bytes, size_t offset, uint64_t allocation,
	      unsigned long long flags)
{
	struct range *range;
	struct stat st;
	void *memory = MAP_FAILED;

	(void)flags;
	pthread_mutex_lock(&standin_lock);
	range = range_of(RANGE_RESERVED, (void *)(uintptr_t)pointer, bytes);
	if (range && offset == 0 && fstat((int)allocation, &st) == 0 &&
	    (size_t)st.st_size >= bytes && !standin_fails("cuMemMap"))
		memory = mmap(range->start, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			      (int)allocation, 0);
	if (memory != MAP_FAILED)
		standin_state.mappings++;
	pthread_mutex_unlock(&standin_lock);
	return memory == MAP_FAILED ? BAD_VALUE : OK;
}

CALL cuMemUnmap(uint64_t pointer, size_t bytes);
CALL cuMemUnmap(uint64_t pointer, size_t bytes)
{
	struct range *range;

	pthread_mutex_lock(&standin_lock);
	range = range_of(RANGE_DEVICE, (void *)(uintptr_t)pointer, bytes);
	if (!range)
		range = range_of(RANGE_RESERVED, (void *)(uintptr_t)pointer, bytes);
	if (range) {
		range->kind = RANGE_RESERVED;
		standin_state.mappings--;
	}
	pthread_mutex_unlock(&standin_lock);
	return range ? OK : BAD_VALUE;
}

/* Before it, a mapping cannot be used. */
CALL cuMemSetAccess(uint64_t pointer, size_t bytes, const void *access, size_t count);
CALL cuMemSetAccess(uint64_t pointer, size_t bytes, const void *access, size_t count)
{
	struct range *range;

	(void)access;
	pthread_mutex_lock(&standin_lock);
	range = range_of(RANGE_RESERVED, (void *)(uintptr_t)pointer, bytes);
	if (range && count == 1 && !standin_fails("cuMemSetAccess"))
		range->kind = RANGE_DEVICE;
	else
		range = NULL;
	pthread_mutex_unlock(&standin_lock);
	return range ? OK : BAD_VALUE;
}
