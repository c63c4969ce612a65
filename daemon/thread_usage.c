/* SPDX-License-Identifier: Apache-2.0 */
/* thread_usage.c - /proc/self/task and the thread's processor clock; see thread_usage.h. */
#include "thread_usage.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

/* The kernel's clock id of a thread: its number, "one thread" and "all its time" (clock_gettime(2),
 * pthread_getcpuclockid(3), which wants a pthread_t that still lives). */
static clockid_t thread_clock(pid_t thread)
{
	return (clockid_t)((~(unsigned)thread << 3) | 6);
}

static size_t file_read(pid_t thread, const char *name, char *text, size_t text_bytes)
{
	char path[64];
	size_t n = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/task/%d/%s", (int)thread, name);
	file = fopen(path, "re");
	if (file) {
		n = fread(text, 1, text_bytes - 1, file);
		fclose(file);
	}
	text[n] = 0;
	return n;
}

static uint64_t line_number(const char *text, const char *name)
{
	const char *line = strstr(text, name);
	unsigned long long number = 0;

	if (line)
		sscanf(line + strlen(name), " %llu", &number);
	return number;
}

void thread_usage_read(pid_t thread, struct thread_usage *ret_usage)
{
	const uint64_t tick_us = 1000000 / (uint64_t)sysconf(_SC_CLK_TCK);
	unsigned long long user = 0, system = 0;
	struct timespec time = {0};
	const char *end;
	char text[4096];

	*ret_usage = (struct thread_usage){0};
	if (clock_gettime(thread_clock(thread), &time) == 0)
		ret_usage->cpu_us =
		    (uint64_t)time.tv_sec * 1000000 + (uint64_t)time.tv_nsec / NS_PER_US;
	file_read(thread, "status", text, sizeof(text));
	ret_usage->voluntary = line_number(text, "\nvoluntary_ctxt_switches:");
	ret_usage->involuntary = line_number(text, "\nnonvoluntary_ctxt_switches:");
	file_read(thread, "stat", text, sizeof(text));
	end = strrchr(text, ')'); /* the name before it may hold anything */
	if (end && sscanf(end + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user,
			  &system) == 2) {
		ret_usage->user_us = user * tick_us;
		ret_usage->system_us = system * tick_us;
	}
}

static void add(cJSON *object, const char *name, uint64_t now, uint64_t before)
{
	cJSON_AddNumberToObject(object, name, now > before ? (double)(now - before) : 0);
}

void thread_usage_add(void *array, const char *name, const struct thread_usage *usage,
		      const struct thread_usage *before, uint64_t chunks)
{
	uint64_t switches =
	    usage->voluntary - before->voluntary + usage->involuntary - before->involuntary;
	cJSON *thread = cJSON_CreateObject();

	cJSON_AddItemToArray(array, thread);
	cJSON_AddStringToObject(thread, "thread", name);
	add(thread, "cpu_us", usage->cpu_us, before->cpu_us);
	add(thread, "user_us", usage->user_us, before->user_us);
	add(thread, "system_us", usage->system_us, before->system_us);
	add(thread, "switches_voluntary", usage->voluntary, before->voluntary);
	add(thread, "switches_involuntary", usage->involuntary, before->involuntary);
	if (chunks)
		cJSON_AddNumberToObject(thread, "switches_per_chunk",
					(double)switches / (double)chunks);
	else
		cJSON_AddNullToObject(thread, "switches_per_chunk");
}
