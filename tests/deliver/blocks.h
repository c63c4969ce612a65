/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blocks.h - the blocks that every delivery way moves in its tests: a small layout of short runs,
 * a job on two of its blocks carried to its end, and what memory must then look like.
 */
#ifndef TESTS_DELIVER_BLOCKS_H
#define TESTS_DELIVER_BLOCKS_H

#include "deliver/deliver.h"

#define BLOCKS       6u
#define BLOCK_TOKENS 16u
#define HEADS        3u
#define DIM          8u
#define CHANNELS     (HEADS * DIM)
#define ONE          (BLOCK_TOKENS * CHANNELS * 2u) /* bytes of a tensor in a block */
#define REGION       (BLOCKS * 2u * ONE)

/* One layer; [block][head][part]; K as [dim][token], V as [token][dim]: runs of 16 bytes for V. */
struct ssv_layout blocks_layout(void);

/* A daemon's side: staging memory and two workers. */
extern const struct deliver_host blocks_host;

/* Run a job on two blocks to its end, on worker 0; returns its status. IN: writes what
 * blocks_check() expects; OUT: checks it. */
int blocks_move(const struct region *region, uint32_t tensor, enum deliver_direction direction);

/* Memory that was 0xab everywhere, after both tensors were moved in. */
void blocks_check(const uint8_t *memory);

#endif
