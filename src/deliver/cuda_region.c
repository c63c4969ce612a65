/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_region.c - attaches GPU memory that an engine exported: by the driver's IPC handle
 * (cudaMalloc) or by a descriptor (virtual memory management), and decides which tensors travel
 * together.
 *
 * The mapping keeps the memory alive in the driver, so a copy that is out when the engine dies ends
 * in memory that nobody uses; it never reaches memory given to somebody else.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "deliver/cuda.h"

/* Granularity of virtual memory management on every GPU so far. */
#define CUDA_PAGE_BYTES (2 * MIB)

static int refuse_result(char *error, const struct cuda_driver *driver, cuda_result result,
			 const char *what)
{
	snprintf(error, SSV_ERROR_TEXT_MAX, "GPU memory: %s: %s (%d)", what,
		 cuda_text(driver, result), result);
	return -EINVAL;
}

static int refuse_range(char *error, const struct ssv_region *offer, uint64_t found)
{
	snprintf(error, SSV_ERROR_TEXT_MAX,
		 "GPU memory: the region ends at %llu + %llu, the exported allocation has %llu "
		 "bytes",
		 (unsigned long long)offer->gpu_offset, (unsigned long long)offer->bytes,
		 (unsigned long long)found);
	return -ERANGE;
}

static int open_ipc(struct cuda_region *way, const struct ssv_region *offer, char *error)
{
	const struct cuda_driver *driver = way->gpu->driver;
	struct cuda_ipc_handle handle;
	cuda_pointer base = 0;
	cuda_result result;
	size_t bytes = 0;

	memcpy(&handle, offer->gpu_handle, sizeof(handle));
	result = driver->ipc_open(&way->mapped, handle, CUDA_IPC_LAZY_PEER_ACCESS);
	if (result)
		return refuse_result(error, driver, result, "the IPC handle cannot be opened");
	result = driver->range_of(&base, &bytes, way->mapped);
	if (result || offer->gpu_offset > bytes || offer->bytes > bytes - offer->gpu_offset) {
		(void)driver->ipc_close(way->mapped);
		return result ? refuse_result(error, driver, result, "its size cannot be read")
			      : refuse_range(error, offer, bytes);
	}
	way->mapped_bytes = bytes;
	return 0;
}

static int map_allocation(struct cuda_region *way, cuda_allocation allocation, char *error)
{
	const struct cuda_driver *driver = way->gpu->driver;
	const struct cuda_access access = {
	    .location = {.type = CUDA_LOCATION_DEVICE, .id = way->gpu->device},
	    .flags = CUDA_ACCESS_READ_WRITE,
	};
	cuda_result result;

	result = driver->reserve(&way->mapped, way->mapped_bytes, 0, 0, 0);
	if (result)
		return refuse_result(error, driver, result, "no addresses for the mapping");
	result = driver->map(way->mapped, way->mapped_bytes, 0, allocation, 0);
	if (result) {
		(void)driver->reserve_free(way->mapped, way->mapped_bytes);
		return refuse_result(error, driver, result, "the allocation cannot be mapped");
	}
	result = driver->set_access(way->mapped, way->mapped_bytes, &access, 1);
	if (result) {
		(void)driver->unmap(way->mapped, way->mapped_bytes);
		(void)driver->reserve_free(way->mapped, way->mapped_bytes);
		return refuse_result(error, driver, result, "the mapping cannot be written");
	}
	return 0;
}

static int open_fd(struct cuda_region *way, const struct ssv_region *offer, char *error)
{
	const struct cuda_driver *driver = way->gpu->driver;
	cuda_allocation allocation = 0;
	cuda_result result;
	int err;

	if (offer->gpu_offset > UINT64_MAX / 4 || offer->bytes > UINT64_MAX / 4)
		return refuse_range(error, offer, 0);
	way->mapped_bytes = align_up(offer->gpu_offset + offer->bytes, CUDA_PAGE_BYTES);
	result = driver->import(&allocation, (void *)(intptr_t)offer->fd, CUDA_HANDLE_POSIX_FD);
	if (result)
		return refuse_result(error, driver, result, "the descriptor cannot be imported");
	err = map_allocation(way, allocation, error);
	/* The mapping holds the memory from here on. */
	(void)driver->allocation_release(allocation);
	return err;
}

static void close_memory(const struct cuda_region *way)
{
	const struct cuda_driver *driver = way->gpu->driver;

	if (!way->by_fd) {
		(void)driver->ipc_close(way->mapped);
		return;
	}
	(void)driver->unmap(way->mapped, way->mapped_bytes);
	(void)driver->reserve_free(way->mapped, way->mapped_bytes);
}

/* ---- which tensors travel together ---------------------------------------------------------- */

/* What tensors first .. first + n - 1 take of a block: returns 1 when it is one run, which then is
 * all theirs, because no two elements share a byte. K and V that take turns head by head are one,
 * too. */
static int is_one_run(const struct layout *layout, uint32_t first, uint32_t n, uint64_t *ret_offset,
		      uint64_t *ret_bytes)
{
	uint64_t low = UINT64_MAX, high = 0, bytes = 0;

	for (uint32_t i = first; i < first + n; i++) {
		const struct layout_part *part = layout_tensor_part(layout, i);
		const struct ssv_tensor *tensor = &layout->tensors[i];

		if (tensor->block_stride != layout->tensors[first].block_stride)
			return 0;
		low = u64_min(low, tensor->offset);
		high = u64_max(high, tensor->offset + part->place.block_bytes);
		bytes += part->packed.block_bytes;
	}
	*ret_offset = low;
	*ret_bytes = bytes;
	return high - low == bytes;
}

/* The group that begins at a tensor: the shortest that reaches the goal, else the longest. */
static void plan_group(struct cuda_region *way, const struct layout *layout, uint32_t first)
{
	const uint32_t left = layout->tensors_count - first;

	way->join[first] = 1;
	for (uint32_t n = 1; n <= DELIVER_JOIN_MAX && n <= left; n++) {
		uint64_t offset, bytes;

		if (!is_one_run(layout, first, n, &offset, &bytes))
			continue;
		way->join[first] = (uint8_t)n;
		way->group_bytes[first] = bytes;
		way->group_offset[first] = offset;
		if (bytes >= CUDA_RUN_BYTES_GOAL)
			return;
	}
}

static uint32_t shortest_run(const struct layout_part *part)
{
	uint32_t shortest = UINT32_MAX;

	for (uint32_t i = 0; i < part->runs_count; i++)
		shortest = (uint32_t)u64_min(shortest, part->runs[i].bytes);
	return shortest;
}

static int plan_groups(struct cuda_region *way, const struct layout *layout, char *error)
{
	way->join = calloc(layout->tensors_count, sizeof(way->join[0]));
	way->group_bytes = calloc(layout->tensors_count, sizeof(way->group_bytes[0]));
	way->group_offset = calloc(layout->tensors_count, sizeof(way->group_offset[0]));
	if (!way->join || !way->group_bytes || !way->group_offset) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "no memory for %u tensors",
			 layout->tensors_count);
		return -ENOMEM;
	}
	way->run_bytes = UINT32_MAX;
	for (uint32_t tensor = 0; tensor < layout->tensors_count; tensor += way->join[tensor]) {
		uint64_t run;

		plan_group(way, layout, tensor);
		run = way->group_bytes[tensor];
		if (!run)
			run = shortest_run(layout_tensor_part(layout, tensor));
		way->run_bytes = (uint32_t)u64_min(way->run_bytes, run);
	}
	if (way->run_bytes >= CUDA_RUN_BYTES_MIN)
		return 0;
	snprintf(error, SSV_ERROR_TEXT_MAX,
		 "GPU memory: this layout's copies would be of %u bytes; below %llu the driver "
		 "makes kernels of them, which slow the engine: use a layout whose blocks hold "
		 "all layers (block outermost)",
		 way->run_bytes, (unsigned long long)CUDA_RUN_BYTES_MIN);
	return -ENOTSUP;
}

/* ---- attach and detach ---------------------------------------------------------------------- */

static void way_free(struct cuda_region *way)
{
	free(way->join);
	free(way->group_bytes);
	free(way->group_offset);
	free(way);
}

static int attach_memory(struct region *region, const struct ssv_region *offer,
			 const struct deliver_host *host, char *error)
{
	struct cuda_region *way = region->way;
	int err;

	err = plan_groups(way, region->layout, error);
	if (err)
		return err;
	err = cuda_gpu_get(offer->gpu_uuid, host, &way->gpu, error);
	if (err)
		return err;
	way->by_fd = offer->memory == SSV_MEMORY_GPU_FD;
	if (way->gpu->driver->context_set(way->gpu->context)) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "GPU memory: the GPU's context is lost");
		err = -EIO;
	} else {
		err = way->by_fd ? open_fd(way, offer, error) : open_ipc(way, offer, error);
	}
	if (err)
		cuda_gpu_put(way->gpu);
	return err;
}

int cuda_attach(struct region *region, const struct ssv_region *offer,
		const struct deliver_owner *owner, const struct deliver_host *host, char *error)
{
	struct cuda_region *way;
	int err;

	(void)owner;
	if (!host || !host->memory || host->workers_count == 0) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "GPU memory: no staging memory to pin");
		return -ENOTSUP;
	}
	way = calloc(1, sizeof(*way));
	if (!way) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "no memory for a region");
		return -ENOMEM;
	}
	region->way = way;
	err = attach_memory(region, offer, host, error);
	if (err) {
		way_free(way);
		region->way = NULL;
		return err;
	}
	way->start = way->mapped + offer->gpu_offset;
	return 0;
}

void cuda_detach(struct region *region)
{
	struct cuda_region *way = region->way;

	if (!cuda_gpu_hangs(way->gpu)) {
		(void)way->gpu->driver->context_set(way->gpu->context);
		close_memory(way);
	}
	cuda_gpu_put(way->gpu);
	way_free(way);
	region->way = NULL;
}
