/* SPDX-License-Identifier: Apache-2.0 */
/*
 * plan_rig.h - a plane in stages inside this process, for `bench plan`: one thread a stage, chunks
 * in a memory: store, and a region that must be delivered to. Threads can be moved between cores
 * from one run to the next, so every split of the stages over cores is measured with the same ones.
 */
#ifndef SSV_CLI_PLAN_RIG_H
#define SSV_CLI_PLAN_RIG_H

#include <pthread.h>
#include <stdatomic.h>

#include "plane/plane.h"

/* In the order of a chunk's way. A stage is a thread of the plane: the worker, then its stations.
 */
enum plan_stage {
	PLAN_RECEIVE = 0, /* and verify */
	PLAN_INFLATE,
	PLAN_DEQUANTISE,
	PLAN_DELIVER,
	PLAN_STAGES,
};

struct plan_options {
	const char *inflate; /* engine */
	uint8_t tier;
	uint32_t layers, chunks;
};

/* What one run took, in ns per byte of KV delivered. */
struct plan_run {
	double cpu_ns[PLAN_STAGES]; /* processor time of each stage's thread */
	double wall_ns;
};

/* What fetching has moved so far, in bytes per byte of KV delivered, and the most memory of each
 * kind that was in use at once, in bytes. */
struct plan_bytes {
	double wire, inflated, decoded, moved;
	double wire_most, inflated_most, staged_most;
};

struct plan_rig;

/* Make chunks up and store them. One line in error (SSV_ERROR_TEXT_MAX bytes). */
SSV_MUST_CHECK int plan_rig_open(const struct plan_options *options, struct plan_rig **ret_rig,
				 char *error);
void plan_rig_close(struct plan_rig *rig); /* takes NULL */

/* Fetch all chunks `times` times with each stage's thread on its core. */
SSV_MUST_CHECK int plan_rig_run(struct plan_rig *rig, const uint32_t core[PLAN_STAGES],
				uint32_t times, struct plan_run *ret_run);

void plan_rig_bytes(struct plan_rig *rig, struct plan_bytes *ret_bytes);

/* What is delivered to: "cma", or "memory": then delivering is part of dequantising. */
const char *plan_rig_way(const struct plan_rig *rig);

#endif
