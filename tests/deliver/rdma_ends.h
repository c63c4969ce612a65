/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rdma_ends.h - both ends of the "rdma" way for its tests: an owner with memory between canaries, a
 * card that attaches it, and a worker's jobs on it whose bytes tell where they belong.
 */
#ifndef TESTS_DELIVER_RDMA_ENDS_H
#define TESTS_DELIVER_RDMA_ENDS_H

#include "blocks.h"
#include "deliver/rdma_owner.h"

/* Large memory: [block][K, V][token][head][dim], 8 KiB a tensor. */
#define LARGE_BLOCKS 256u
#define LARGE_HEADS  4u
#define LARGE_DIM    64u
#define LARGE_ONE    (BLOCK_TOKENS * LARGE_HEADS * LARGE_DIM * 2u)
#define LARGE_REGION (LARGE_BLOCKS * 2ull * LARGE_ONE)
#define JOB_BLOCKS   16u
#define JOBS         24u /* of one worker at once */
#define JOB_BYTES    (JOB_BLOCKS * LARGE_ONE)
#define WORKERS      2u
#define STAGE_BYTES  (WORKERS * JOBS * JOB_BYTES)
#define CANARY       4096u
#define CANARY_BYTE  0xc7
#define LIMIT_NS     (90 * NS_PER_S) /* only ends what hangs */

/* Returns 0, or what the program should end with: 77 without a device. Reads SSV_SEED. */
int ends_begin(void);
/* From SSV_SEED, for one thread; others have numbers of their own. */
uint64_t random_next(void);

/* Memory between two canaries, shared with children. */
struct memory {
	uint8_t *map, *region;
	uint64_t bytes;
};

struct memory memory_make(uint64_t bytes);
void memory_free(struct memory *memory); /* the canaries live */

struct rdma_owner *owner_open(const struct memory *memory, uint64_t bytes, struct blob *ret_offer);
void owner_connect(struct rdma_owner *owner, const struct blob *answer);

/* large: LARGE_REGION, else the small memory of blocks.h. */
int card_try(const struct blob *offered, int large, struct blob *ret_answer,
	     struct region **ret_region, char *error);
struct region *card_attach(const struct blob *offered, int large, struct blob *ret_answer);

/* Both ends in this process. */
struct pair {
	struct memory memory;
	struct rdma_owner *owner;
	struct region *region;
};

struct pair pair_make(int large);
void pair_end(struct pair *pair);

/* A worker's jobs: each on blocks of the worker's own half. */
struct work {
	const struct region *region;
	struct deliver_queue queue;
	struct deliver_job jobs[JOBS];
	uint8_t *tokens[JOBS][JOB_BLOCKS * BLOCK_TOKENS];
	uint32_t blocks[JOBS][JOB_BLOCKS];
	uint32_t jobs_count, done_count, failed_count, round;
	uint64_t random; /* a worker may have a thread of its own */
	int status; /* of the first that failed */
};

struct work *work_make(const struct region *region, uint32_t worker); /* by free() */
/* ordered: blocks that follow one another, else in any order. IN: the round's bytes. */
void work_submit(struct work *work, enum deliver_direction direction, int ordered);
uint32_t work_poll(struct work *work);
void work_finish(struct work *work); /* all are back */
void work_again(struct work *work);  /* none submitted, the next round */
/* Every job's blocks are in place: IN in memory, OUT in staging memory. */
void work_check(const struct work *work, const struct memory *memory, uint32_t round);

#endif
