/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker_thread.h - the threads around plane_worker_step(): named, pinned, asleep when idle.
 */
#ifndef SSV_DAEMON_WORKER_THREAD_H
#define SSV_DAEMON_WORKER_THREAD_H

#include "config.h"
#include "plane/plane.h"
#include "thread_usage.h"

struct worker_threads;

/**
 * Start config->workers threads. One line in error (SSV_ERROR_TEXT_MAX * 2 bytes).
 * Errors: -ENOMEM, -EAGAIN, -EINVAL a core cannot be used.
 */
SSV_MUST_CHECK int worker_threads_start(struct plane *plane, const struct config *config,
					struct worker_threads **ret_threads, char *error);

/* What a worker's thread has used so far. */
void worker_threads_usage(const struct worker_threads *threads, uint32_t worker,
			  struct thread_usage *ret_usage);

/* Stop and join them all; takes NULL. -ETIMEDOUT: a worker hangs in a system call of its store; the
 * plane must then not be destroyed. */
SSV_MUST_CHECK int worker_threads_stop(struct worker_threads *threads, uint32_t timeout_ms);

#endif
