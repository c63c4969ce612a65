/* SPDX-License-Identifier: Apache-2.0 */
/*
 * decode_r16.cu - the other way, to compare with: containers are copied to the GPU as they are and
 * decoded there by a kernel, which is what ShadowServe exists to avoid.
 *
 * A warp decodes a stream of 64 lanes, two a thread, and writes bf16 into the engine's pages. It does
 * less than the product: no checksum, no check of damage, no exceptions, and the tables below are
 * prepared beforehand, outside the time that is measured. docs/codec.md says what it computes.
 */
#include <cuda_runtime.h>
#include <stdint.h>

struct stream {
	uint32_t bytes;   /* where it begins in the container: 64 low bytes, 64 high ones, the rest */
	uint32_t group;   /* first of its groups, among all groups of the chunk */
	uint32_t groups;
};

struct group {
	uint8_t frequency[16];
	uint32_t raw;      /* where its raw bits begin in the container */
	uint32_t raw_bits;
	uint32_t place;    /* element of the block where its first channel lies */
	uint32_t channel;  /* of its first channel in scale, offset and delta */
};

#define WARPS 4

extern "C" __global__ void decode(const uint8_t *container, const struct stream *streams,
				  uint32_t streams_count, const struct group *groups,
				  const float *scale, const int16_t *offset, const int16_t *delta,
				  const uint32_t *blocks, uint32_t tokens, uint32_t block_tokens,
				  uint64_t block_elements, uint32_t token_elements, uint16_t *kv)
{
	__shared__ uint8_t owner[WARPS][256];
	__shared__ uint16_t frequency[WARPS][16], begin[WARPS][16];
	const uint32_t warp = threadIdx.x / 32, t = threadIdx.x % 32;
	const uint32_t below = (1u << t) - 1, s = blockIdx.x * WARPS + warp;

	if (s >= streams_count)
		return;
	const struct stream stream = streams[s];
	const uint8_t *in = container + stream.bytes;
	uint32_t x[2] = {(uint32_t)in[t] | (uint32_t)in[64 + t] << 8,
			 (uint32_t)in[t + 32] | (uint32_t)in[96 + t] << 8};
	in += 128;
	for (uint32_t g = stream.group; g < stream.group + stream.groups; g++) {
		const struct group group = groups[g];
		const uint32_t row_bytes = 8 * group.raw_bits, mask = (1u << group.raw_bits) - 1;
		const uint8_t *raw = container + group.raw;
		int16_t n[2], base[2], keep[2];
		uint32_t channel[2];
		float step[2];

		__syncwarp();
		if (t < 16) {
			uint32_t sum = 0;

			for (uint32_t k = 0; k < t; k++)
				sum += group.frequency[k];
			frequency[warp][t] = group.frequency[t];
			begin[warp][t] = (uint16_t)sum;
			for (uint32_t k = 0; k < group.frequency[t]; k++)
				owner[warp][sum + k] = (uint8_t)t;
		}
		__syncwarp();
		for (uint32_t k = 0; k < 2; k++) {
			const uint32_t lane = t + 32 * k;

			channel[k] = (lane >> 2) * 2 + (lane & 1) + (lane & 2) * 16;
			step[k] = scale[group.channel + channel[k]];
			base[k] = offset[group.channel + channel[k]];
			keep[k] = delta[group.channel + channel[k]];
			n[k] = base[k];
		}
		for (uint32_t token = 0; token < tokens; token++, raw += row_bytes) {
			const uint32_t block = blocks[token / block_tokens];
			uint16_t *out = kv + block * block_elements + group.place +
					(uint64_t)(token % block_tokens) * token_elements;
			uint32_t symbol[2], wants[2];

			for (uint32_t k = 0; k < 2; k++) {
				const uint32_t slot = x[k] & 255;

				symbol[k] = owner[warp][slot];
				x[k] = frequency[warp][symbol[k]] * (x[k] >> 8) + slot -
				       begin[warp][symbol[k]];
			}
			wants[0] = __ballot_sync(~0u, x[0] < 256);
			wants[1] = __ballot_sync(~0u, x[1] < 256);
			if (x[0] < 256)
				x[0] = x[0] << 8 | in[__popc(wants[0] & below)];
			if (x[1] < 256)
				x[1] = x[1] << 8 | in[__popc(wants[0]) + __popc(wants[1] & below)];
			in += __popc(wants[0]) + __popc(wants[1]);
			for (uint32_t k = 0; k < 2; k++) {
				const uint32_t bit = (t + 32 * k) * group.raw_bits;
				const uint32_t bits = group.raw_bits
							  ? ((uint32_t)raw[bit / 8] |
							     (uint32_t)raw[bit / 8 + 1] << 8) >>
								    (bit % 8) &
								mask
							  : 0;
				const int16_t from = keep[k] ? n[k] : base[k];

				n[k] = (int16_t)(from + (int)(symbol[k] << group.raw_bits | bits) -
						 (8 << group.raw_bits));
				out[channel[k]] =
				    (uint16_t)((__float_as_uint((float)n[k] * step[k]) + 0x8000) >> 16);
			}
		}
	}
}

struct job {
	const uint8_t *host; /* pinned container */
	uint64_t host_bytes;
	uint8_t *container; /* the same on the GPU */
	const struct stream *streams;
	const struct group *groups;
	const float *scale;
	const int16_t *offset, *delta;
	const uint32_t *blocks;
	uint32_t streams_count, tokens, block_tokens, token_elements;
	uint64_t block_elements;
	uint16_t *kv;
};

/* Copy and decode one container on a stream; returns CUDA's result. */
extern "C" __attribute__((visibility("default"))) int decode_run(const struct job *job, void *stream)
{
	cudaStream_t on = (cudaStream_t)stream;

	cudaMemcpyAsync(job->container, job->host, job->host_bytes, cudaMemcpyHostToDevice, on);
	decode<<<(job->streams_count + WARPS - 1) / WARPS, 32 * WARPS, 0, on>>>(
	    job->container, job->streams, job->streams_count, job->groups, job->scale, job->offset,
	    job->delta, job->blocks, job->tokens, job->block_tokens, job->block_elements,
	    job->token_elements, job->kv);
	return (int)cudaGetLastError();
}
