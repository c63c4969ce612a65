/* SPDX-License-Identifier: Apache-2.0 */
/*
 * standin_internal.h - what the stand-in's two files share: standin_memory.c (ranges of memory) and
 * standin_cuda.c (devices, streams, copies). One lock guards all of it.
 */
#ifndef STANDIN_INTERNAL_H
#define STANDIN_INTERNAL_H

#include <pthread.h>
#include <stddef.h>

#include "standin_cuda.h"

#define CALL        __attribute__((visibility("default"))) int
#define OK          0
#define BAD_VALUE   1
#define BAD_CONTEXT 201
#define NOT_READY   600
#define LOST        700
#define NOT_PINNED  712

struct context {
	int device, references, lost;
};

enum range_kind { RANGE_FREE, RANGE_HOST, RANGE_DEVICE, RANGE_RESERVED };

extern pthread_mutex_t standin_lock;
extern struct standin standin_state;
extern _Thread_local struct context *standin_context; /* current */

/* With the lock held. fails: is this the call that was told to fail? covers: does one range of
 * this kind hold all of these bytes? */
int standin_fails(const char *call);
int standin_covers(enum range_kind kind, const void *address, size_t bytes);

#endif
