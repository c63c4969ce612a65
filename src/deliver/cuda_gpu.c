/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_gpu.c - opens and closes a GPU: primary context, pinned arena, streams and events.
 *
 * A GPU is named by its UUID, because ordinals differ between processes (CUDA_VISIBLE_DEVICES).
 * Nothing here waits for a GPU that hangs: it is left as it is, and refused.
 * Control thread only; workers meet a lane only through a region that was attached before.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "deliver/cuda.h"

static struct cuda_gpu *gpus[CUDA_GPUS_MAX];

static int SSV_PRINTF(4, 5) refuse(char *error, const struct cuda_driver *driver,
				   cuda_result result, const char *format, ...)
{
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(error, SSV_ERROR_TEXT_MAX, format, args);
	va_end(args);
	if (n >= 0 && n < SSV_ERROR_TEXT_MAX && result)
		snprintf(error + n, (size_t)(SSV_ERROR_TEXT_MAX - n), ": %s (%d)",
			 cuda_text(driver, result), result);
	return -EIO;
}

static int device_find(const struct cuda_driver *driver, const struct cuda_uuid *uuid,
		       cuda_device *ret_device, char *error)
{
	cuda_result result;
	int count = 0;

	result = driver->device_count(&count);
	if (result)
		return refuse(error, driver, result, "the GPUs cannot be counted");
	for (int i = 0; i < count; i++) {
		struct cuda_uuid found;

		if (driver->device_get(ret_device, i) || driver->device_uuid(&found, *ret_device))
			continue;
		if (memcmp(&found, uuid, sizeof(found)) == 0)
			return 0;
	}
	refuse(error, driver, 0,
	       "the region's GPU is none of the %d that this daemon sees (CUDA_VISIBLE_DEVICES?)",
	       count);
	return -ENODEV;
}

/* ---- lanes ---------------------------------------------------------------------------------- */

static void lane_close(struct cuda_lane *lane)
{
	const struct cuda_driver *driver = lane->driver;

	if (lane->stream) {
		(void)driver->stream_wait(lane->stream);
		(void)driver->stream_destroy(lane->stream);
	}
	for (uint32_t i = 0; i < CUDA_FLIGHTS; i++) {
		if (lane->flights[i].event)
			(void)driver->event_destroy(lane->flights[i].event);
	}
}

/* The lowest priority: where the engine's work and ours meet, the engine's goes first. */
static int lane_open(struct cuda_lane *lane, struct cuda_gpu *gpu, int priority, char *error)
{
	const struct cuda_driver *driver = gpu->driver;
	cuda_result result;

	lane->gpu = gpu;
	lane->driver = driver;
	lane->context = gpu->context;
	result = driver->stream_create(&lane->stream, CUDA_STREAM_NON_BLOCKING, priority);
	if (result)
		return refuse(error, driver, result, "a stream cannot be made");
	for (uint32_t i = 0; i < CUDA_FLIGHTS; i++) {
		result = driver->event_create(&lane->flights[i].event, CUDA_EVENT_DISABLE_TIMING);
		if (result)
			return refuse(error, driver, result, "an event cannot be made");
	}
	return 0;
}

static void lanes_close(struct cuda_gpu *gpu)
{
	for (uint32_t i = 0; i < gpu->lanes_count; i++)
		lane_close(&gpu->lanes[i]);
	free(gpu->lanes);
}

static int lanes_open(struct cuda_gpu *gpu, char *error)
{
	int least = 0, greatest = 0, err = 0;

	gpu->lanes = calloc(2ul * gpu->host.workers_count, sizeof(gpu->lanes[0]));
	if (!gpu->lanes) {
		refuse(error, gpu->driver, 0, "no memory for the streams of %u workers",
		       gpu->host.workers_count);
		return -ENOMEM;
	}
	(void)gpu->driver->stream_priorities(&least, &greatest);
	while (!err && gpu->lanes_count < 2 * gpu->host.workers_count)
		err = lane_open(&gpu->lanes[gpu->lanes_count++], gpu, least, error);
	if (err)
		lanes_close(gpu);
	return err;
}

/* ---- a GPU ---------------------------------------------------------------------------------- */

static int gpu_open(struct cuda_gpu *gpu, char *error)
{
	const struct cuda_driver *driver = gpu->driver;
	cuda_result result;
	int err;

	err = device_find(driver, &gpu->uuid, &gpu->device, error);
	if (err)
		return err;
	result = driver->context_retain(&gpu->context, gpu->device);
	if (result)
		return refuse(error, driver, result, "the GPU's context cannot be had");
	result = driver->context_set(gpu->context);
	if (result) {
		err = refuse(error, driver, result, "the GPU's context cannot be used");
		goto release;
	}
	result =
	    driver->host_register(gpu->host.memory, gpu->host.bytes, CUDA_HOST_REGISTER_PORTABLE);
	if (result) {
		err = refuse(error, driver, result,
			     "the arena of %llu bytes cannot be pinned for the GPU (ulimit -l?)",
			     (unsigned long long)gpu->host.bytes);
		goto release;
	}
	err = lanes_open(gpu, error);
	if (err)
		goto unregister;
	return 0;

unregister:
	(void)driver->host_unregister(gpu->host.memory);
release:
	(void)driver->context_release(gpu->device);
	return err;
}

static void gpu_close(struct cuda_gpu *gpu)
{
	(void)gpu->driver->context_set(gpu->context);
	lanes_close(gpu);
	(void)gpu->driver->host_unregister(gpu->host.memory);
	(void)gpu->driver->context_release(gpu->device);
}

static struct cuda_gpu **slot_find(const uint8_t uuid[16])
{
	struct cuda_gpu **free_slot = NULL;

	for (uint32_t i = 0; i < CUDA_GPUS_MAX; i++) {
		if (gpus[i] && memcmp(&gpus[i]->uuid, uuid, sizeof(gpus[i]->uuid)) == 0)
			return &gpus[i];
		if (!gpus[i] && !free_slot)
			free_slot = &gpus[i];
	}
	return free_slot;
}

int cuda_gpu_get(const uint8_t uuid[16], const struct deliver_host *host, struct cuda_gpu **ret_gpu,
		 char *error)
{
	struct cuda_gpu **slot = slot_find(uuid);
	const struct cuda_driver *driver;
	int err;

	err = cuda_driver_get(&driver, error);
	if (err)
		return err;
	if (!slot) {
		refuse(error, driver, 0, "%d GPUs are in use already", CUDA_GPUS_MAX);
		return -E2BIG;
	}
	if (!*slot) {
		struct cuda_gpu *gpu = calloc(1, sizeof(*gpu));

		if (!gpu) {
			refuse(error, driver, 0, "no memory for a GPU");
			return -ENOMEM;
		}
		gpu->driver = driver;
		gpu->host = *host;
		memcpy(&gpu->uuid, uuid, sizeof(gpu->uuid));
		err = gpu_open(gpu, error);
		if (err) {
			free(gpu);
			return err;
		}
		*slot = gpu;
	}
	if (cuda_gpu_hangs(*slot)) {
		refuse(error, driver, 0,
		       "the GPU does not end copies that were begun: the daemon must be restarted");
		return -EIO;
	}
	(*slot)->regions_count++;
	*ret_gpu = *slot;
	return 0;
}

void cuda_gpu_put(struct cuda_gpu *gpu)
{
	struct cuda_gpu **slot;

	/* Kept as it is, for ever: closing it would wait for its copies. */
	if (--gpu->regions_count || cuda_gpu_hangs(gpu))
		return;
	slot = slot_find(gpu->uuid.bytes);
	gpu_close(gpu);
	*slot = NULL;
	free(gpu);
}
