/* SPDX-License-Identifier: Apache-2.0 */
/* standin_cuda.c - see standin_cuda.h. Own declarations: it must not need CUDA to be built. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "standin_internal.h"

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

pthread_mutex_t standin_lock = PTHREAD_MUTEX_INITIALIZER;
struct standin standin_state;
_Thread_local struct context *standin_context;

static pthread_cond_t work = PTHREAD_COND_INITIALIZER;
static pthread_t mover;
static int started;
static struct context contexts[STANDIN_GPUS];
static struct stream *streams;
static uint64_t random_state = 88172645463325252ull;

__attribute__((visibility("default"))) struct standin *standin_get(void);
struct standin *standin_get(void)
{
	return &standin_state;
}

static uint64_t random_next(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

int standin_fails(const char *call)
{
	if (!standin_state.fail_after || strcmp(call, standin_state.fail_call) != 0)
		return 0;
	return --standin_state.fail_after == 0;
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
	pthread_mutex_lock(&standin_lock);
	for (;;) {
		struct stream *stream = stream_with_work();
		struct timespec delay = {0};
		uint32_t delay_us_max;
		struct op *op;

		if (!stream || standin_state.hang) {
			pthread_cond_wait(&work, &standin_lock);
			continue;
		}
		delay_us_max = standin_state.delay_us_max;
		if (delay_us_max) {
			delay.tv_nsec = (long)(random_next() % delay_us_max * 1000);
			pthread_mutex_unlock(&standin_lock);
			nanosleep(&delay, NULL);
			pthread_mutex_lock(&standin_lock);
		}
		op = stream->first;
		if (op->event) {
			op->event->reached = op->number;
		} else {
			if (standin_state.lose_context) {
				standin_state.lose_context = 0;
				stream->context->lost = 1;
			}
			if (!stream->context->lost)
				memcpy(op->to, op->from, op->bytes);
			standin_state.flight_bytes -= op->bytes;
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

	if (!standin_context || standin_context != stream->context)
		return BAD_CONTEXT;
	if (standin_context->lost)
		return LOST;
	if (!standin_covers(RANGE_DEVICE, device, bytes) || bytes == 0)
		return BAD_VALUE;
	if (!standin_covers(RANGE_HOST, host, bytes))
		return NOT_PINNED;
	standin_state.copies++;
	standin_state.copied_bytes += bytes;
	if (!standin_state.shortest_copy || bytes < standin_state.shortest_copy)
		standin_state.shortest_copy = bytes;
	standin_state.flight_bytes += bytes;
	if (standin_state.flight_bytes > standin_state.flight_bytes_max)
		standin_state.flight_bytes_max = standin_state.flight_bytes;
	stream_push(stream, &(struct op){.to = (void *)(uintptr_t)to,
					 .from = (void *)(uintptr_t)from,
					 .bytes = bytes});
	return OK;
}

CALL cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, struct stream *stream);
CALL cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, struct stream *stream)
{
	int result;

	pthread_mutex_lock(&standin_lock);
	result =
	    standin_fails("cuMemcpyHtoDAsync") ? LOST : copy(stream, to, (uintptr_t)from, bytes, 1);
	pthread_mutex_unlock(&standin_lock);
	return result;
}

CALL cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, struct stream *stream);
CALL cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, struct stream *stream)
{
	int result;

	pthread_mutex_lock(&standin_lock);
	result = copy(stream, (uintptr_t)to, from, bytes, 0);
	pthread_mutex_unlock(&standin_lock);
	return result;
}

static int copy_batch(uint64_t *to, uint64_t *from, size_t *bytes, size_t count, void *attributes,
		      size_t *first, size_t attributes_count, size_t *failed, struct stream *stream)
{
	int result = OK;

	pthread_mutex_lock(&standin_lock);
	if (!attributes || attributes_count != 1 || *first != 0 || count == 0)
		result = BAD_VALUE;
	else if (standin_fails("cuMemcpyBatchAsync"))
		result = LOST;
	for (size_t i = 0; i < count && !result; i++) {
		int in = standin_covers(RANGE_DEVICE, (void *)(uintptr_t)to[i], bytes[i]);

		result = copy(stream, to[i], from[i], bytes[i], in);
		*failed = i;
	}
	pthread_mutex_unlock(&standin_lock);
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
	pthread_mutex_lock(&standin_lock);
	stream = standin_context && flags == 1 && !standin_fails("cuStreamCreateWithPriority")
		     ? calloc(1, sizeof(*stream))
		     : NULL;
	if (stream) {
		stream->context = standin_context;
		stream->next = streams;
		streams = stream;
		standin_state.streams++;
		*ret_stream = stream;
		result = OK;
		if (!started)
			started = pthread_create(&mover, NULL, move, NULL) == 0;
	}
	pthread_mutex_unlock(&standin_lock);
	return result;
}

CALL cuStreamSynchronize(struct stream *stream);
CALL cuStreamSynchronize(struct stream *stream)
{
	pthread_mutex_lock(&standin_lock);
	while (stream->first)
		pthread_cond_wait(&work, &standin_lock);
	pthread_mutex_unlock(&standin_lock);
	return OK;
}

CALL cuStreamQuery(struct stream *stream);
CALL cuStreamQuery(struct stream *stream)
{
	int result;

	pthread_mutex_lock(&standin_lock);
	result = stream->context->lost ? LOST : stream->first ? NOT_READY : OK;
	pthread_mutex_unlock(&standin_lock);
	return result;
}

CALL cuStreamDestroy_v2(struct stream *stream);
CALL cuStreamDestroy_v2(struct stream *stream)
{
	cuStreamSynchronize(stream);
	pthread_mutex_lock(&standin_lock);
	for (struct stream **at = &streams; *at; at = &(*at)->next) {
		if (*at == stream) {
			*at = stream->next;
			break;
		}
	}
	free(stream);
	standin_state.streams--;
	pthread_mutex_unlock(&standin_lock);
	return OK;
}

CALL cuEventCreate(struct event **ret_event, unsigned int flags);
CALL cuEventCreate(struct event **ret_event, unsigned int flags)
{
	int result = BAD_VALUE;

	(void)flags;
	pthread_mutex_lock(&standin_lock);
	if (standin_context && !standin_fails("cuEventCreate")) {
		*ret_event = calloc(1, sizeof(**ret_event));
		(*ret_event)->context = standin_context;
		standin_state.events++;
		result = OK;
	}
	pthread_mutex_unlock(&standin_lock);
	return result;
}

CALL cuEventDestroy_v2(struct event *event);
CALL cuEventDestroy_v2(struct event *event)
{
	pthread_mutex_lock(&standin_lock);
	free(event);
	standin_state.events--;
	pthread_mutex_unlock(&standin_lock);
	return OK;
}

CALL cuEventRecord(struct event *event, struct stream *stream);
CALL cuEventRecord(struct event *event, struct stream *stream)
{
	int result = OK;

	pthread_mutex_lock(&standin_lock);
	if (standin_fails("cuEventRecord"))
		result = LOST;
	else
		stream_push(stream, &(struct op){.event = event, .number = ++event->recorded});
	pthread_mutex_unlock(&standin_lock);
	return result;
}

CALL cuEventQuery(struct event *event);
CALL cuEventQuery(struct event *event)
{
	int result;

	pthread_mutex_lock(&standin_lock);
	if (event->context->lost || standin_fails("cuEventQuery"))
		result = LOST;
	else
		result = event->reached == event->recorded ? OK : NOT_READY;
	pthread_mutex_unlock(&standin_lock);
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

	pthread_mutex_lock(&standin_lock);
	if (standin_fails("cuDevicePrimaryCtxRetain")) {
		result = BAD_VALUE;
	} else {
		if (contexts[device].references++ == 0)
			contexts[device].lost = 0;
		standin_state.contexts++;
		*context = &contexts[device];
	}
	pthread_mutex_unlock(&standin_lock);
	return result;
}

CALL cuDevicePrimaryCtxRelease_v2(int device);
CALL cuDevicePrimaryCtxRelease_v2(int device)
{
	pthread_mutex_lock(&standin_lock);
	contexts[device].references--;
	standin_state.contexts--;
	pthread_mutex_unlock(&standin_lock);
	return OK;
}

CALL cuCtxSetCurrent(struct context *context);
CALL cuCtxSetCurrent(struct context *context)
{
	standin_context = context;
	return OK;
}

CALL cuCtxGetStreamPriorityRange(int *least, int *greatest);
CALL cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
	*least = 0;
	*greatest = -5;
	return OK;
}
