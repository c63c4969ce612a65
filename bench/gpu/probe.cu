/* SPDX-License-Identifier: Apache-2.0 */
/*
 * probe.cu - what the copy engines give by themselves: batches of 16 MiB of copies of one length from
 * pinned memory to random places. The yardstick for delivery, with no store and no decoder.
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
