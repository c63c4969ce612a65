/* SPDX-License-Identifier: Apache-2.0 */
/*
 * probe.cu - what the copy engines give by themselves: copies of one length from pinned memory that
 * nobody writes to random places, in batches. The yardstick for delivery, with no store and no decoder.
 * probe_run() is as fast as it can be; mover_move() keeps to a rate, from a process of its own, so that
 * what it costs a decoding engine can be compared with what the daemon costs.
 */
#include <cuda_runtime.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BATCH_BYTES (16u << 20)
#define BATCHES     4

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* GB/s over so many seconds; negative: CUDA's error. */
extern "C" __attribute__((visibility("default"))) double
probe_run(char *to, uint64_t to_bytes, uint64_t copy_bytes, double seconds)
{
	const size_t n = BATCH_BYTES / copy_bytes, places = to_bytes / copy_bytes;
	struct cudaMemcpyAttributes attributes;
	const void **from = (const void **)malloc(n * sizeof(*from));
	void **at = (void **)malloc(n * sizeof(*at));
	size_t *bytes = (size_t *)malloc(n * sizeof(*bytes)), first = 0;
	uint64_t random = 88172645463325252ull;
	cudaEvent_t done[BATCHES];
	cudaStream_t stream;
	cudaError_t error;
	double begin, moved = 0;
	char *host;

	memset(&attributes, 0, sizeof(attributes));
	attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
	attributes.flags = cudaMemcpyFlagPreferOverlapWithCompute;
	error = cudaHostAlloc((void **)&host, (size_t)BATCH_BYTES * BATCHES, cudaHostAllocDefault);
	if (!error)
		error = cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, 0);
	for (int i = 0; i < BATCHES && !error; i++)
		error = cudaEventCreateWithFlags(&done[i], cudaEventDisableTiming);
	begin = now();
	for (size_t k = 0; !error && now() - begin < seconds; k++) {
		error = cudaEventSynchronize(done[k % BATCHES]);
		for (size_t i = 0; i < n; i++) {
			random ^= random << 13;
			random ^= random >> 7;
			random ^= random << 17;
			at[i] = to + random % places * copy_bytes;
			from[i] = host + k % BATCHES * BATCH_BYTES + i * copy_bytes;
			bytes[i] = copy_bytes;
		}
		if (!error)
			error = cudaMemcpyBatchAsync((void *const *)at, (const void *const *)from, bytes, n,
						     &attributes, &first, 1, stream);
		if (!error)
			error = cudaEventRecord(done[k % BATCHES], stream);
		moved += BATCH_BYTES;
	}
	cudaStreamSynchronize(stream);
	moved /= now() - begin;
	cudaFreeHost(host);
	cudaStreamDestroy(stream);
	free(from);
	free(at);
	free(bytes);
	return error ? -(double)error : moved / 1e9;
}

/* ---- the bare mover, from another process ---------------------------------------------------- */

#define RING_BYTES  (128ull << 20)
#define STREAMS_MAX 16
#define RING_MAX    256

static char *mover_to, *mover_host;

/* Opens what the engine exported: the base of its memory. 0, or CUDA's error. */
extern "C" __attribute__((visibility("default"))) int mover_open(const unsigned char *handle, uint64_t offset)
{
	cudaIpcMemHandle_t exported;
	cudaError_t error;
	void *base = NULL;

	memcpy(&exported, handle, sizeof(exported));
	error = cudaIpcOpenMemHandle(&base, exported, cudaIpcMemLazyEnablePeerAccess);
	if (!error)
		error = cudaHostAlloc((void **)&mover_host, RING_BYTES, cudaHostAllocDefault);
	mover_to = (char *)base + offset;
	return (int)error;
}

struct mover_asked {
	uint64_t to_bytes, copy_bytes, batch_bytes;
	uint32_t streams_count;
	double rate, seconds; /* bytes a second, 0: no limit */
};

struct mover_got {
	double bytes_a_second, call_seconds; /* a call: a batch's submission and its event */
};

/* Batches on the streams in turn, each when it is due; a late one is begun at once. */
extern "C" __attribute__((visibility("default"))) int mover_move(const struct mover_asked *asked,
								  struct mover_got *got)
{
	const size_t n = asked->batch_bytes / asked->copy_bytes, places = asked->to_bytes / asked->copy_bytes;
	const uint32_t ring = RING_BYTES / asked->batch_bytes < RING_MAX ? RING_BYTES / asked->batch_bytes : RING_MAX;
	struct cudaMemcpyAttributes attributes;
	const void **from = (const void **)malloc(n * sizeof(*from));
	void **at = (void **)malloc(n * sizeof(*at));
	size_t *bytes = (size_t *)malloc(n * sizeof(*bytes)), first = 0, k;
	uint64_t random = 88172645463325252ull;
	cudaStream_t streams[STREAMS_MAX];
	cudaError_t error = cudaSuccess;
	cudaEvent_t done[RING_MAX];
	double begin, calls = 0;

	memset(&attributes, 0, sizeof(attributes));
	attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
	attributes.flags = cudaMemcpyFlagPreferOverlapWithCompute;
	for (uint32_t i = 0; i < asked->streams_count && !error; i++)
		error = cudaStreamCreateWithPriority(&streams[i], cudaStreamNonBlocking, 0);
	for (uint32_t i = 0; i < ring && !error; i++)
		error = cudaEventCreateWithFlags(&done[i], cudaEventDisableTiming);
	begin = now();
	for (k = 0; !error && now() - begin < asked->seconds; k++) {
		const cudaStream_t stream = streams[k % asked->streams_count];
		char *host = mover_host + k % ring * asked->batch_bytes;

		error = cudaEventSynchronize(done[k % ring]);
		for (size_t i = 0; i < n; i++) {
			random ^= random << 13;
			random ^= random >> 7;
			random ^= random << 17;
			at[i] = mover_to + random % places * asked->copy_bytes;
			from[i] = host + i * asked->copy_bytes;
			bytes[i] = asked->copy_bytes;
		}
		while (asked->rate > 0 && (double)(k * asked->batch_bytes) / asked->rate > now() - begin)
			;
		calls -= now();
		if (!error)
			error = cudaMemcpyBatchAsync((void *const *)at, (const void *const *)from, bytes, n,
						     &attributes, &first, 1, stream);
		if (!error)
			error = cudaEventRecord(done[k % ring], stream);
		calls += now();
	}
	cudaDeviceSynchronize();
	got->bytes_a_second = (double)(k * asked->batch_bytes) / (now() - begin);
	got->call_seconds = calls / (double)k;
	free(from);
	free(at);
	free(bytes);
	return (int)error;
}
