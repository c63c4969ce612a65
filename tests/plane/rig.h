/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rig.h - a plane with regions in real memfds, stepped by hand in virtual time, and the reference
 * KV of any chunk, so that a test can say "these blocks hold chunk 3, all others are untouched".
 */
#ifndef SSV_TEST_RIG_H
#define SSV_TEST_RIG_H

#include "layouts.h"
#include "plane/plane.h"

struct rig {
	struct plane *plane;
	struct plane_config config;
	uint64_t now_ns;
	struct plane_event event; /* the last completion taken by rig_wait() */
};

struct test_region {
	struct test_layout made;
	struct test_shape shape;
	int fd;
	uint8_t *memory;  /* the test's own mapping */
	uint64_t *places; /* [tensors][block_tokens][channels], in block 0 */
	uint64_t session;
	uint32_t region;
};

/* The configuration of most tests: one worker, an arena of 16 MiB a worker, lossless r16. */
struct plane_config rig_config(const char *store_uri);

void rig_create(struct rig *rig, const struct plane_config *config);
void rig_destroy(struct rig *rig);

/* Step control and all workers once at the present time; 1 when something was done. */
int rig_step(struct rig *rig);

/* Step, moving time on when all are idle, until an event of `kind` is taken; fails the test after
 * `limit_ms` of virtual time. */
const struct plane_event *rig_wait(struct rig *rig, enum plane_event_kind kind, uint64_t limit_ms);
uint64_t rig_session(struct rig *rig, const char *engine_id, uint32_t rank, uint32_t ranks_count);

/* A region in a sealed memfd filled with a pattern of its own. session: 0 makes one. */
void region_create(struct rig *rig, struct test_region *region, enum packing packing,
		   const struct test_shape *shape, uint64_t session);
/* The same memory, registered as an address range of this process; as a memfd after all where a
 * sandbox forbids cross-memory attach. Returns enum ssv_memory. */
uint32_t region_create_address(struct rig *rig, struct test_region *region, enum packing packing,
			       const struct test_shape *shape, uint64_t session);
/* The same memory as that of a GPU, by descriptor; needs the stand-in driver. */
void region_create_gpu(struct rig *rig, struct test_region *region, enum packing packing,
		       const struct test_shape *shape, uint64_t session);
void region_destroy(struct test_region *region);

/* Submit and wait for the completion. */
const struct ssv_completion *rig_request(struct rig *rig, uint64_t session,
					 const struct ssv_request *request);
const struct ssv_completion *rig_lookup(struct rig *rig, uint64_t session,
					const struct ssv_key *keys, uint32_t count);
const struct ssv_completion *rig_store(struct rig *rig, const struct test_region *region,
				       const struct ssv_key *keys, uint32_t count,
				       const uint32_t *blocks, uint32_t position);
const struct ssv_completion *rig_fetch(struct rig *rig, const struct test_region *region,
				       const struct ssv_key *keys, uint32_t count,
				       const uint32_t *blocks, uint32_t blocks_count,
				       uint32_t first_token, uint32_t position);
void rig_flush(struct rig *rig, uint64_t session);

/* A key, and the KV that belongs to it: element bits depend on (chunk, tensor, token, channel). */
struct ssv_key chunk_key(uint32_t chunk);
uint32_t element_bits(uint8_t dtype, uint32_t chunk, uint32_t tensor, uint32_t token,
		      uint32_t channel);

/* Write the reference KV of a chunk's tokens into blocks, from first_token on. */
void region_fill(const struct test_region *region, uint32_t chunk, uint32_t first_token,
		 const uint32_t *blocks, uint32_t blocks_count);
/* Compare with the reference; the number of wrong elements. */
uint64_t region_wrong(const struct test_region *region, uint32_t chunk, uint32_t first_token,
		      const uint32_t *blocks, uint32_t blocks_count);
/* Fill everything with a pattern, and count the blocks that differ from it, except named ones. */
void region_paint(const struct test_region *region);
uint64_t region_painted_over(const struct test_region *region, const uint32_t *blocks,
			     uint32_t blocks_count);

/* A number of plane_stat's JSON: path like "counters.heals". */
double rig_stat(struct rig *rig, const char *path);

#endif
