/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim_store.h - a store in virtual time whose misbehaviour is drawn from a seed: latency, stalls,
 * errors, short and damaged values, wrong lengths, bytes that still arrive after a cancel.
 */
#ifndef SSV_TEST_SIM_STORE_H
#define SSV_TEST_SIM_STORE_H

#include "store/store.h"

#define SIM_VALUES_MAX 64u
#define SIM_OPS_MAX    512u

enum sim_fault {
	SIM_FINE = 0,
	SIM_STALL,    /* nothing until the deadline */
	SIM_ERROR,    /* fails at its end */
	SIM_TRUNCATE, /* a shorter value */
	SIM_FLIP,     /* a bit is wrong */
	SIM_LONGER,   /* says that it is longer */
	SIM_MISS,     /* is there, but not found */
	SIM_FAULTS
};

struct sim_value {
	struct ssv_key key;
	uint8_t *data; /* NULL: not stored */
	uint64_t bytes;
};

/* What all handles share: the values, and how bad the world is. */
struct sim_world {
	uint64_t random;
	uint32_t faults_per_mille; /* of operations */
	uint8_t forced[8];         /* by operation kind: enum sim_fault of every one */
	uint64_t slow_ns;          /* added to every operation */
	uint32_t slow_worker;      /* whose operations take slow_worker_ns longer, */
	uint64_t slow_worker_ns;   /* and whose GETs are counted here, beside the others' */
	uint32_t gets[2];          /* of all other workers, of slow_worker */
	struct ssv_key stalled;    /* GETs of this key never end by themselves */
	uint32_t damaged;          /* GETs that got wrong bytes or lengths */
	uint32_t deleted;
	struct sim_value values[SIM_VALUES_MAX];
};

/* plane_config.open_store; the context is a struct sim_world. */
int sim_store_open(void *context, uint32_t worker, const struct store_config *config,
		   struct store **ret_store, char *error);
void sim_world_clear(struct sim_world *world);
int sim_world_has(const struct sim_world *world, const struct ssv_key *key);

#endif
