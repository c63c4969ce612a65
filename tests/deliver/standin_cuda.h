/* SPDX-License-Identifier: Apache-2.0 */
/*
 * standin_cuda.h - a libcuda.so.1 for machines without a GPU: the driver calls that ShadowServe
 * uses, over host memory.
 *
 * Two GPUs. Copies and events go through streams that a thread works off in random turns, with
 * delays, so that nothing is done when a call returns. It is stricter than the driver: host memory
 * must be registered, device memory mapped, contexts current. IPC handles name shared memory, so
 * another process can open them.
 *
 * The functions below are found by dlsym() in the library. Counts are of what is alive.
 */
#ifndef STANDIN_CUDA_H
#define STANDIN_CUDA_H

#include <stdint.h>

struct standin {
	/* Knobs. Atomic: a test turns them while other threads work. */
	_Atomic uint32_t delay_us_max; /* before each copy or event */
	char fail_call[64];            /* written before fail_after, which tells of it */
	_Atomic uint32_t fail_after;   /* 0: never; n: the n-th call of fail_call fails, once */
	_Atomic uint32_t
	    lose_context; /* the next copy ends the context: everything on it fails from now on */
	_Atomic uint32_t hang; /* nothing is done any more while set */

	/* Alive. */
	_Atomic int32_t contexts, streams, events, registrations, mappings, allocations;
	/* Seen. */
	_Atomic uint64_t copies, copied_bytes, shortest_copy, flight_bytes, flight_bytes_max;
};

/* The library's one instance; lent for ever. */
typedef struct standin *(*standin_get_function)(void);

#define STANDIN_GPUS         2
#define STANDIN_UUID_BYTE(i) (0xa0 + (i)) /* all 16 bytes of GPU i's UUID */

#endif
