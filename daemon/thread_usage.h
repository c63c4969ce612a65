/* SPDX-License-Identifier: Apache-2.0 */
/*
 * thread_usage.h - processor time and context switches of another thread of this process, as the
 * kernel counts them. Read when somebody asks, by who asks: it costs the thread nothing.
 */
#ifndef SSV_DAEMON_THREAD_USAGE_H
#define SSV_DAEMON_THREAD_USAGE_H

#include <stdint.h>
#include <sys/types.h>

struct thread_usage {
	uint64_t cpu_us;                 /* exact */
	uint64_t user_us, system_us;     /* the kernel's split, in ticks of 10 ms */
	uint64_t voluntary, involuntary; /* context switches: slept; was pre-empted */
};

/* What the thread has used so far; zeros where the kernel does not say. */
void thread_usage_read(pid_t thread, struct thread_usage *ret_usage);

/* Append "usage - before" and its share a chunk to a JSON array (struct cJSON *). */
void thread_usage_add(void *array, const char *name, const struct thread_usage *usage,
		      const struct thread_usage *before, uint64_t chunks);

#endif
