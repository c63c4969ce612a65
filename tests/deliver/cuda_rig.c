/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_rig.c - see cuda_rig.h. */
#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cuda_rig.h"

struct standin *standin;
int (*gpu_alloc)(uint64_t *pointer, size_t bytes);
int (*gpu_free)(uint64_t pointer);
int (*gpu_export)(struct handle *handle, uint64_t pointer);
struct ssv_tensor tensors[TENSORS];
uint8_t *stage;
struct ssv_layout make_layout(void)
{
	struct ssv_layout layout = {
	    .struct_size = sizeof(layout),
	    .dtype = SSV_DTYPE_BF16,
	    .parts_count = 2,
	    .layers_count = LAYERS,
	    .layers_total = LAYERS,
	    .ranks_count = 1,
	    .block_tokens = BLOCK_TOKENS,
	    .blocks_count = BLOCKS,
	    .tensors_count = TENSORS,
	    .tensors = tensors,
	};

	for (uint32_t i = 0; i < 2; i++) {
		struct ssv_part *part = &layout.parts[i];

		part->role = (uint8_t)(SSV_ROLE_K + i);
		part->heads = HEADS;
		part->dim = DIM;
		part->digits_count = 3;
		part->digits[0] = (struct ssv_digit){
		    .axis = SSV_AXIS_TOKEN, .extent = BLOCK_TOKENS, .stride = CHANNELS};
		part->digits[1] =
		    (struct ssv_digit){.axis = SSV_AXIS_HEAD, .extent = HEADS, .stride = DIM};
		part->digits[2] =
		    (struct ssv_digit){.axis = SSV_AXIS_DIM, .extent = DIM, .stride = 1};
	}
	for (uint32_t i = 0; i < TENSORS; i++)
		tensors[i] = (struct ssv_tensor){.layer = (uint16_t)(i / 2),
						 .part = (uint16_t)(i % 2),
						 .offset = i * ONE,
						 .block_stride = BLOCK};
	return layout;
}

uint16_t bits_of(uint32_t tensor, uint32_t block, uint32_t i)
{
	return (uint16_t)(tensor * 9973 + block * 331 + i * 7 + 1);
}

struct gpu gpu_make(uint32_t device)
{
	struct gpu gpu = {
	    .offer = {
		.memory = SSV_MEMORY_GPU_IPC, .fd = -1, .bytes = REGION, .gpu_offset = GPU_OFFSET}};
	struct handle handle;

	assert_int_equal(gpu_alloc(&gpu.pointer, GPU_OFFSET + REGION), 0);
	memset((void *)(uintptr_t)gpu.pointer, 0xab, GPU_OFFSET + REGION);
	assert_int_equal(gpu_export(&handle, gpu.pointer), 0);
	memcpy(gpu.offer.gpu_handle, &handle, sizeof(handle));
	memset(gpu.offer.gpu_uuid, STANDIN_UUID_BYTE(device), sizeof(gpu.offer.gpu_uuid));
	return gpu;
}

const uint8_t *gpu_memory(const struct gpu *gpu)
{
	return (const uint8_t *)(uintptr_t)gpu->pointer;
}

struct region *attach(const struct ssv_region *offer)
{
	const struct deliver_host host = {.memory = stage, .bytes = STAGE, .workers_count = 2};
	struct ssv_layout layout = make_layout();
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct region *region = NULL;
	int err = region_attach(offer, &layout, &(struct deliver_owner){.pid = getpid()}, &host,
				&region, error);

	if (err)
		fail_msg("%s", error);
	return region;
}

void nothing_is_left(void)
{
	assert_int_equal(standin->contexts, 0);
	assert_int_equal(standin->streams, 0);
	assert_int_equal(standin->events, 0);
	assert_int_equal(standin->registrations, 0);
	assert_int_equal(standin->mappings, 0);
	assert_int_equal(standin->allocations, 0);
	assert_int_equal(standin->flight_bytes, 0);
}

static void symbol(void *library, const char *name, void *ret_function)
{
	void *address = dlsym(library, name);

	assert_non_null(address);
	memcpy(ret_function, &address, sizeof(address));
}

int rig_open(void)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW);
	standin_get_function get;

	if (!library || !dlsym(library, "standin_get")) {
		print_message("libcuda.so.1 is not the stand-in: run through meson test\n");
		return -1;
	}
	symbol(library, "standin_get", &get);
	symbol(library, "cuMemAlloc_v2", &gpu_alloc);
	symbol(library, "cuMemFree_v2", &gpu_free);
	symbol(library, "cuIpcGetMemHandle", &gpu_export);
	standin = get();
	stage = aligned_alloc(4096, STAGE);
	return stage ? 0 : -1;
}

void rig_close(void)
{
	free(stage);
}
