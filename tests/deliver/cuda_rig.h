/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_rig.h - the stand-in driver (standin_cuda.h), and regions in the memory of its GPUs: what
 * the tests of the "cuda" way begin with.
 */
#ifndef CUDA_RIG_H
#define CUDA_RIG_H

#include "deliver/deliver.h"
#include "standin_cuda.h"

#define BLOCKS       12u
#define BLOCK_TOKENS 16u
#define LAYERS       3u
#define HEADS        8u
#define DIM          128u
#define CHANNELS     (HEADS * DIM)
#define ONE          (BLOCK_TOKENS * CHANNELS * 2u) /* 32 KiB: bytes of a tensor in a block */
#define TENSORS      (2u * LAYERS)
#define BLOCK        (TENSORS * ONE)
#define REGION       (BLOCKS * BLOCK)
#define STAGE        (16u * MIB)
#define GPU_OFFSET   (2u * ONE)

struct handle {
	uint8_t bytes[64];
};

struct gpu {
	uint64_t pointer;
	struct ssv_region offer;
};

extern struct standin *standin;
extern int (*gpu_alloc)(uint64_t *pointer, size_t bytes);
extern int (*gpu_free)(uint64_t pointer);
extern int (*gpu_export)(struct handle *handle, uint64_t pointer);
extern uint8_t *stage; /* STAGE bytes */
extern struct ssv_tensor tensors[TENSORS]; /* of make_layout() */

/* Find the stand-in; -1: the driver is another one, or there is none. */
int rig_open(void);
void rig_close(void);

/* Block outermost: [block][layer][part][token][head][dim]. Its tensors are the rig's. */
struct ssv_layout make_layout(void);

/* What element i of a tensor's block is. */
uint16_t bits_of(uint32_t tensor, uint32_t block, uint32_t i);

struct gpu gpu_make(uint32_t device);
const uint8_t *gpu_memory(const struct gpu *gpu);
struct region *attach(const struct ssv_region *offer);

/* Of contexts, streams, events, memory. */
void nothing_is_left(void);

#endif
