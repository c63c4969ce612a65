/* SPDX-License-Identifier: Apache-2.0 */
/* standin_cuda.c - see standin_cuda.h. Own declarations: it must not need CUDA to be built. */
#include "standin_cuda.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CALL        __attribute__((visibility("default"))) int
#define OK          0
#define BAD_VALUE   1
#define BAD_CONTEXT 201
#define NOT_READY   600
#define LOST        700
#define NOT_PINNED  712
#define RANGES      256
#define PAGE        (2ul << 20)

struct context {
	int device, references, lost;
};

struct event {
	uint64_t recorded, reached;
	struct context *context;
};

struct op {
	void *to;
	const void *from;
	size_t bytes;
	struct event *event; /* or this */
	uint64_t number;
	struct op *next;
};

struct stream {
	struct op *first, *last;
	struct context *context;
	struct stream *next;
};

enum range_kind { RANGE_FREE, RANGE_HOST, RANGE_DEVICE, RANGE_RESERVED };

struct range {
	enum range_kind kind;
	uint8_t *start;
	size_t bytes;
	int references;
	char name[64]; /* IPC: of the shared memory */
	int owned;     /* allocated here */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER;
static pthread_t mover;
static int started;
static struct standin state;
static struct context contexts[STANDIN_GPUS];
static struct stream *streams;
static struct range ranges[RANGES];
static uint64_t random_state = 88172645463325252ull;
static _Thread_local struct context *current;

__attribute__((visibility("default"))) struct standin *standin_get(void);
struct standin *standin_get(void)
{
	return &state;
}

static uint64_t random_next(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

/* With the lock held: is this the call that was told to fail? */
static int fails(const char *call)
{
	if (!state.fail_after || strcmp(call, state.fail_call) != 0)
		return 0;
	return --state.fail_after == 0;
}

/* ---- memory --------------------------------------------------------------------------------- */

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

CALL cuMemHostRegister_v2(void *memory, size_t bytes, unsigned int flags);
CALL cuMemHostRegister_v2(void *memory, size_t bytes, unsigned int flags)
{
	struct range *range;
	int result = OK;

	(void)flags;
	pthread_mutex_lock(&lock);
	range = range_free();
	if (!current)
		result = BAD_CONTEXT;
	else if (fails("cuMemHostRegister") || !range || range_of(RANGE_HOST, memory, bytes))
		result = BAD_VALUE;
	else {
		*range = (struct range){.kind = RANGE_HOST, .start = memory, .bytes = bytes};
		state.registrations++;
	}
	pthread_mutex_unlock(&lock);
	return result;
}

CALL cuMemHostUnregister(void *memory);
CALL cuMemHostUnregister(void *memory)
{
	struct range *range;

	pthread_mutex_lock(&lock);
	range = range_of(RANGE_HOST, memory, 1);
	if (range) {
		range->kind = RANGE_FREE;
		state.registrations--;
	}
	pthread_mutex_unlock(&lock);
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

	pthread_mutex_lock(&lock);
	range = range_free();
	if (range) {
		snprintf(range->name, sizeof(range->name), "/ssv-standin-%d-%d", (int)getpid(),
			 number++);
		range->start = share(range->name, &bytes, 1);
	}
	if (!range || !range->start) {
		pthread_mutex_unlock(&lock);
		return BAD_VALUE;
	}
	range->kind = RANGE_DEVICE;
	range->bytes = bytes;
	range->references = 1;
	range->owned = 1;
	state.allocations++;
	*pointer = (uintptr_t)range->start;
	pthread_mutex_unlock(&lock);
	return OK;
}

CALL cuMemFree_v2(uint64_t pointer);
CALL cuMemFree_v2(uint64_t pointer)
{
	struct range *range;

	pthread_mutex_lock(&lock);
	range = range_of(RANGE_DEVICE, (void *)(uintptr_t)pointer, 1);
	if (range && range->owned) {
		shm_unlink(range->name);
		munmap(range->start, range->bytes);
		range->kind = RANGE_FREE;
		state.allocations--;
	}
	pthread_mutex_unlock(&lock);
	return range ? OK : BAD_VALUE;
}

struct handle {
	char name[64];
};

CALL cuIpcGetMemHandle(struct handle *handle, uint64_t pointer);
CALL cuIpcGetMemHandle(struct handle *handle, uint64_t pointer)
{
	struct range *range;

	pthread_mutex_lock(&lock);
	range = range_of(RANGE_DEVICE, (void *)(uintptr_t)pointer, 1);
	if (range)
		memcpy(handle->name, range->name, sizeof(handle->name));
	pthread_mutex_unlock(&lock);
	return range ? OK : BAD_VALUE;
}

CALL cuIpcOpenMemHandle_v2(uint64_t *pointer, struct handle handle, unsigned int flags);
CALL cuIpcOpenMemHandle_v2(uint64_t *pointer, struct handle handle, unsigned int flags)
{
	struct range *range;
	int result = BAD_VALUE;

	(void)flags;
	handle.name[sizeof(handle.name) - 1] = 0;
	pthread_mutex_lock(&lock);
	range = range_free();
	if (!current)
		result = BAD_CONTEXT;
	else if (range && !fails("cuIpcOpenMemHandle")) {
		range->owned = 0;
		range->start = handle.name[0] == '/' ? share(handle.name, &range->bytes, 0) : NULL;
		if (range->start) {
			range->kind = RANGE_DEVICE;
			state.mappings++;
			*pointer = (uintptr_t)range->start;
			result = OK;
		}
	}
	pthread_mutex_unlock(&lock);
	return result;
}

CALL cuIpcCloseMemHandle(uint64_t pointer);
CALL cuIpcCloseMemHandle(uint64_t pointer)
{
	struct range *range;

	pthread_mutex_lock(&lock);
	range = range_of(RANGE_DEVICE, (void *)(uintptr_t)pointer, 1);
	if (range && !range->owned) {
		munmap(range->start, range->bytes);
		range->kind = RANGE_FREE;
		state.mappings--;
	}
	pthread_mutex_unlock(&lock);
	return range ? OK : BAD_VALUE;
}

CALL cuMemGetAddressRange_v2(uint64_t *base, size_t *bytes, uint64_t pointer);
CALL cuMemGetAddressRange_v2(uint64_t *base, size_t *bytes, uint64_t pointer)
{
	struct range *range;

	pthread_mutex_lock(&lock);
	range = range_of(RANGE_DEVICE, (void *)(uintptr_t)pointer, 1);
	if (range && !fails("cuMemGetAddressRange")) {
		*base = (uintptr_t)range->start;
		*bytes = range->bytes;
	} else {
		range = NULL;
	}
	pthread_mutex_unlock(&lock);
	return range ? OK : BAD_VALUE;
}

CALL cuMemImportFromShareableHandle(uint64_t *allocation, void *handle, int type);
CALL cuMemImportFromShareableHandle(uint64_t *allocation, void *handle, int type)
{
	int fd = type == 1 ? dup((int)(intptr_t)handle) : -1;

	if (fd < 0)
		return BAD_VALUE;
	*allocation = (uint64_t)fd;
	pthread_mutex_lock(&lock);
	state.allocations++;
	pthread_mutex_unlock(&lock);
	return OK;
}

CALL cuMemRelease(uint64_t allocation);
CALL cuMemRelease(uint64_t allocation)
{
	close((int)allocation);
	pthread_mutex_lock(&lock);
	state.allocations--;
	pthread_mutex_unlock(&lock);
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
	pthread_mutex_lock(&lock);
	range = range_free();
	memory = range && bytes % PAGE == 0
		     ? mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
		     : MAP_FAILED;
	if (memory != MAP_FAILED) {
		*range = (struct range){.kind = RANGE_RESERVED, .start = memory, .bytes = bytes};
		*pointer = (uintptr_t)memory;
	}
	pthread_mutex_unlock(&lock);
	return memory == MAP_FAILED ? BAD_VALUE : OK;
}

CALL cuMemAddressFree(uint64_t pointer, size_t bytes);
CALL cuMemAddressFree(uint64_t pointer, size_t bytes)
{
	struct range *range;

	pthread_mutex_lock(&lock);
	range = range_of(RANGE_RESERVED, (void *)(uintptr_t)pointer, bytes);
	if (range) {
		munmap(range->start, range->bytes);
		range->kind = RANGE_FREE;
	}
	pthread_mutex_unlock(&lock);
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
	pthread_mutex_lock(&lock);
	range = range_of(RANGE_RESERVED, (void *)(uintptr_t)pointer, bytes);
	if (range && offset == 0 && fstat((int)allocation, &st) == 0 &&
	    (size_t)st.st_size >= bytes && !fails("cuMemMap"))
		memory = mmap(range->start, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			      (int)allocation, 0);
	if (memory != MAP_FAILED)
		state.mappings++;
	pthread_mutex_unlock(&lock);
	return memory == MAP_FAILED ? BAD_VALUE : OK;
}

CALL cuMemUnmap(uint64_t pointer, size_t bytes);
CALL cuMemUnmap(uint64_t pointer, size_t bytes)
{
	struct range *range;

	pthread_mutex_lock(&lock);
	range = range_of(RANGE_DEVICE, (void *)(uintptr_t)pointer, bytes);
	if (!range)
		range = range_of(RANGE_RESERVED, (void *)(uintptr_t)pointer, bytes);
	if (range) {
		range->kind = RANGE_RESERVED;
		state.mappings--;
	}
	pthread_mutex_unlock(&lock);
	return range ? OK : BAD_VALUE;
}

/* Before it, a mapping cannot be used. */
CALL cuMemSetAccess(uint64_t pointer, size_t bytes, const void *access, size_t count);
CALL cuMemSetAccess(uint64_t pointer, size_t bytes, const void *access, size_t count)
{
	struct range *range;

	(void)access;
	pthread_mutex_lock(&lock);
	range = range_of(RANGE_RESERVED, (void *)(uintptr_t)pointer, bytes);
	if (range && count == 1 && !fails("cuMemSetAccess"))
		range->kind = RANGE_DEVICE;
	else
		range = NULL;
	pthread_mutex_unlock(&lock);
	return range ? OK : BAD_VALUE;
}

/* ---- streams -------------------------------------------------------------------------------- */

static struct stream *stream_with_work(void)
{
	uint64_t count = 0, turn;

	for (struct stream *s = streams; s; s = s->next)
		count += s->first != NULL;
	if (!count)
		return NULL;
	turn = random_next() % count;
	for (struct stream *s = streams; s; s = s->next) {
		if (s->first && turn-- == 0)
			return s;
	}
	return NULL;
}

static void *move(void *argument)
{
	(void)argument;
	pthread_mutex_lock(&lock);
	for (;;) {
		struct stream *stream = stream_with_work();
		struct timespec delay = {0};
		struct op *op;

		if (!stream) {
			pthread_cond_wait(&work, &lock);
			continue;
		}
		if (state.delay_us_max) {
			delay.tv_nsec = (long)(random_next() % state.delay_us_max * 1000);
			pthread_mutex_unlock(&lock);
			nanosleep(&delay, NULL);
			pthread_mutex_lock(&lock);
		}
		op = stream->first;
		if (op->event) {
			op->event->reached = op->number;
		} else {
			if (state.lose_context) {
				state.lose_context = 0;
				stream->context->lost = 1;
			}
			if (!stream->context->lost)
				memcpy(op->to, op->from, op->bytes);
			state.flight_bytes -= op->bytes;
		}
		stream->first = op->next;
		if (!stream->first)
			stream->last = NULL;
		free(op);
		pthread_cond_broadcast(&work);
	}
	return NULL;
}

static void stream_push(struct stream *stream, const struct op *source)
{
	struct op *op = malloc(sizeof(*op));

	if (!op)
		abort();
	*op = *source;
	op->next = NULL;
	if (stream->last)
		stream->last->next = op;
	else
		stream->first = op;
	stream->last = op;
	pthread_cond_broadcast(&work);
}

/* With the lock held. */
static int copy(struct stream *stream, uint64_t to, uint64_t from, size_t bytes, int in)
{
	void *device = (void *)(uintptr_t)(in ? to : from),
	     *host = (void *)(uintptr_t)(in ? from : to);

	if (!current || current != stream->context)
		return BAD_CONTEXT;
	if (current->lost)
		return LOST;
	if (!range_of(RANGE_DEVICE, device, bytes) || bytes == 0)
		return BAD_VALUE;
	if (!range_of(RANGE_HOST, host, bytes))
		return NOT_PINNED;
	state.copies++;
	state.copied_bytes += bytes;
	if (!state.shortest_copy || bytes < state.shortest_copy)
		state.shortest_copy = bytes;
	state.flight_bytes += bytes;
	if (state.flight_bytes > state.flight_bytes_max)
		state.flight_bytes_max = state.flight_bytes;
	stream_push(stream, &(struct op){.to = (void *)(uintptr_t)to,
					 .from = (void *)(uintptr_t)from,
					 .bytes = bytes});
	return OK;
}

CALL cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, struct stream *stream);
CALL cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, struct stream *stream)
{
	int result;

	pthread_mutex_lock(&lock);
	result = fails("cuMemcpyHtoDAsync") ? LOST : copy(stream, to, (uintptr_t)from, bytes, 1);
	pthread_mutex_unlock(&lock);
	return result;
}

CALL cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, struct stream *stream);
CALL cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, struct stream *stream)
{
	int result;

	pthread_mutex_lock(&lock);
	result = copy(stream, (uintptr_t)to, from, bytes, 0);
	pthread_mutex_unlock(&lock);
	return result;
}

static int copy_batch(uint64_t *to, uint64_t *from, size_t *bytes, size_t count, void *attributes,
		      size_t *first, size_t attributes_count, size_t *failed, struct stream *stream)
{
	int result = OK;

	pthread_mutex_lock(&lock);
	if (!attributes || attributes_count != 1 || *first != 0 || count == 0)
		result = BAD_VALUE;
	else if (fails("cuMemcpyBatchAsync"))
		result = LOST;
	for (size_t i = 0; i < count && !result; i++) {
		int in = range_of(RANGE_DEVICE, (void *)(uintptr_t)to[i], bytes[i]) != NULL;

		result = copy(stream, to[i], from[i], bytes[i], in);
		*failed = i;
	}
	pthread_mutex_unlock(&lock);
	return result;
}

CALL cuGetProcAddress_v2(const char *symbol, void **function, int version, unsigned long long flags,
			 int *status);
CALL cuGetProcAddress_v2(const char *symbol, void **function, int version, unsigned long long flags,
			 int *status)
{
	int (*batch)(uint64_t *, uint64_t *, size_t *, size_t, void *, size_t *, size_t, size_t *,
		     struct stream *) = copy_batch;

	(void)flags;
	*status = 0;
	if (strcmp(symbol, "cuMemcpyBatchAsync") != 0 || version != 12080)
		return BAD_VALUE;
	memcpy(function, &batch, sizeof(*function));
	return OK;
}

CALL cuStreamCreateWithPriority(struct stream **ret_stream, unsigned int flags, int priority);
CALL cuStreamCreateWithPriority(struct stream **ret_stream, unsigned int flags, int priority)
{
	struct stream *stream;
	int result = BAD_VALUE;

	(void)priority;
	pthread_mutex_lock(&lock);
	stream = current && flags == 1 && !fails("cuStreamCreateWithPriority")
		     ? calloc(1, sizeof(*stream))
		     : NULL;
	if (stream) {
		stream->context = current;
		stream->next = streams;
		streams = stream;
		state.streams++;
		*ret_stream = stream;
		result = OK;
		if (!started)
			started = pthread_create(&mover, NULL, move, NULL) == 0;
	}
	pthread_mutex_unlock(&lock);
	return result;
}

CALL cuStreamSynchronize(struct stream *stream);
CALL cuStreamSynchronize(struct stream *stream)
{
	pthread_mutex_lock(&lock);
	while (stream->first)
		pthread_cond_wait(&work, &lock);
	pthread_mutex_unlock(&lock);
	return OK;
}

CALL cuStreamQuery(struct stream *stream);
CALL cuStreamQuery(struct stream *stream)
{
	int result;

	pthread_mutex_lock(&lock);
	result = stream->context->lost ? LOST : stream->first ? NOT_READY : OK;
	pthread_mutex_unlock(&lock);
	return result;
}

CALL cuStreamDestroy_v2(struct stream *stream);
CALL cuStreamDestroy_v2(struct stream *stream)
{
	cuStreamSynchronize(stream);
	pthread_mutex_lock(&lock);
	for (struct stream **at = &streams; *at; at = &(*at)->next) {
		if (*at == stream) {
			*at = stream->next;
			break;
		}
	}
	free(stream);
	state.streams--;
	pthread_mutex_unlock(&lock);
	return OK;
}

CALL cuEventCreate(struct event **ret_event, unsigned int flags);
CALL cuEventCreate(struct event **ret_event, unsigned int flags)
{
	int result = BAD_VALUE;

	(void)flags;
	pthread_mutex_lock(&lock);
	if (current && !fails("cuEventCreate")) {
		*ret_event = calloc(1, sizeof(**ret_event));
		(*ret_event)->context = current;
		state.events++;
		result = OK;
	}
	pthread_mutex_unlock(&lock);
	return result;
}

CALL cuEventDestroy_v2(struct event *event);
CALL cuEventDestroy_v2(struct event *event)
{
	pthread_mutex_lock(&lock);
	free(event);
	state.events--;
	pthread_mutex_unlock(&lock);
	return OK;
}

CALL cuEventRecord(struct event *event, struct stream *stream);
CALL cuEventRecord(struct event *event, struct stream *stream)
{
	int result = OK;

	pthread_mutex_lock(&lock);
	if (fails("cuEventRecord"))
		result = LOST;
	else
		stream_push(stream, &(struct op){.event = event, .number = ++event->recorded});
	pthread_mutex_unlock(&lock);
	return result;
}

CALL cuEventQuery(struct event *event);
CALL cuEventQuery(struct event *event)
{
	int result;

	pthread_mutex_lock(&lock);
	if (event->context->lost || fails("cuEventQuery"))
		result = LOST;
	else
		result = event->reached == event->recorded ? OK : NOT_READY;
	pthread_mutex_unlock(&lock);
	return result;
}

/* ---- devices and contexts ------------------------------------------------------------------- */

CALL cuInit(unsigned int flags);
CALL cuInit(unsigned int flags)
{
	(void)flags;
	return OK;
}

CALL cuDriverGetVersion(int *version);
CALL cuDriverGetVersion(int *version)
{
	*version = getenv("STANDIN_CUDA_OLD") ? 12020 : 13000;
	return OK;
}

CALL cuGetErrorString(int result, const char **text);
CALL cuGetErrorString(int result, const char **text)
{
	*text = result == LOST ? "context lost" : result == NOT_PINNED ? "not pinned" : "bad value";
	return OK;
}

CALL cuDeviceGetCount(int *count);
CALL cuDeviceGetCount(int *count)
{
	*count = STANDIN_GPUS;
	return OK;
}

CALL cuDeviceGet(int *device, int ordinal);
CALL cuDeviceGet(int *device, int ordinal)
{
	*device = ordinal;
	return ordinal < STANDIN_GPUS ? OK : BAD_VALUE;
}

CALL cuDeviceGetUuid_v2(uint8_t *uuid, int device);
CALL cuDeviceGetUuid_v2(uint8_t *uuid, int device)
{
	memset(uuid, STANDIN_UUID_BYTE(device), 16);
	return OK;
}

/* A context that was lost is new once nobody holds it. */
CALL cuDevicePrimaryCtxRetain(struct context **context, int device);
CALL cuDevicePrimaryCtxRetain(struct context **context, int device)
{
	int result = OK;

	pthread_mutex_lock(&lock);
	if (fails("cuDevicePrimaryCtxRetain")) {
		result = BAD_VALUE;
	} else {
		if (contexts[device].references++ == 0)
			contexts[device].lost = 0;
		state.contexts++;
		*context = &contexts[device];
	}
	pthread_mutex_unlock(&lock);
	return result;
}

CALL cuDevicePrimaryCtxRelease_v2(int device);
CALL cuDevicePrimaryCtxRelease_v2(int device)
{
	pthread_mutex_lock(&lock);
	contexts[device].references--;
	state.contexts--;
	pthread_mutex_unlock(&lock);
	return OK;
}

CALL cuCtxSetCurrent(struct context *context);
CALL cuCtxSetCurrent(struct context *context)
{
	current = context;
	return OK;
}

CALL cuCtxGetStreamPriorityRange(int *least, int *greatest);
CALL cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
	*least = 0;
	*greatest = -5;
	return OK;
}
