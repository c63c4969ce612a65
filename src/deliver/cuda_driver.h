/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_driver.h - the few calls of NVIDIA's driver API that delivery needs, loaded at run time.
 *
 * There is no dependency on CUDA when building or linking: libcuda.so.1 is opened when the first
 * GPU region is registered. Types and constants are those of the CUDA driver API reference (12.x
 * and 13.x agree on all that is used here); each symbol is asked for by the name of its ABI
 * version, so a newer header's renaming does not matter.
 *
 * Threads: cuda_driver_get() on the control thread; the table is then read by everybody.
 */
#ifndef SSV_DELIVER_CUDA_DRIVER_H
#define SSV_DELIVER_CUDA_DRIVER_H

#include "base/base.h"

typedef int cuda_result; /* CUresult */
typedef int cuda_device; /* CUdevice: an ordinal of this process */
typedef uint64_t cuda_pointer;
typedef uint64_t cuda_allocation; /* CUmemGenericAllocationHandle */

struct cuda_context_object;
struct cuda_stream_object;
struct cuda_event_object;
typedef struct cuda_context_object *cuda_context;
typedef struct cuda_stream_object *cuda_stream;
typedef struct cuda_event_object *cuda_event;

struct cuda_uuid {
	uint8_t bytes[16];
};

struct cuda_ipc_handle {
	uint8_t bytes[64];
};

struct cuda_location {
	int type, id;
};

struct cuda_access {
	struct cuda_location location;
	int flags;
};

/* CUmemcpyAttributes: how one range of copies of a batch is ordered. */
struct cuda_copy_attributes {
	int source_order;
	struct cuda_location source_hint, destination_hint; /* for managed memory alone */
	unsigned int flags;
};

enum {
	CUDA_SUCCESS = 0,
	CUDA_NOT_READY = 600,
	CUDA_STREAM_NON_BLOCKING = 1,
	CUDA_EVENT_DISABLE_TIMING = 2,
	CUDA_IPC_LAZY_PEER_ACCESS = 1,
	CUDA_HOST_REGISTER_PORTABLE = 1,
	CUDA_HANDLE_POSIX_FD = 1,
	CUDA_ACCESS_READ_WRITE = 3,
	CUDA_LOCATION_DEVICE = 1,
	CUDA_SOURCE_ORDER_STREAM = 1,
	CUDA_COPY_OVERLAP_COMPUTE = 1,
};

/* Calls, in the order X(member, symbol, parameters). */
#define CUDA_CALLS(X)                                                                              \
	X(init, "cuInit", (unsigned int flags))                                                    \
	X(driver_version, "cuDriverGetVersion", (int *version))                                    \
	X(error_string, "cuGetErrorString", (cuda_result result, const char **text))               \
	X(device_count, "cuDeviceGetCount", (int *count))                                          \
	X(device_get, "cuDeviceGet", (cuda_device * device, int ordinal))                          \
	X(device_uuid, "cuDeviceGetUuid_v2", (struct cuda_uuid * uuid, cuda_device device))        \
	X(context_retain, "cuDevicePrimaryCtxRetain",                                              \
	  (cuda_context * context, cuda_device device))                                            \
	X(context_release, "cuDevicePrimaryCtxRelease_v2", (cuda_device device))                   \
	X(context_set, "cuCtxSetCurrent", (cuda_context context))                                  \
	X(stream_priorities, "cuCtxGetStreamPriorityRange", (int *least, int *greatest))           \
	X(stream_create, "cuStreamCreateWithPriority",                                             \
	  (cuda_stream * stream, unsigned int flags, int priority))                                \
	X(stream_destroy, "cuStreamDestroy_v2", (cuda_stream stream))                              \
	X(stream_wait, "cuStreamSynchronize", (cuda_stream stream))                                \
	X(stream_query, "cuStreamQuery", (cuda_stream stream))                                     \
	X(event_create, "cuEventCreate", (cuda_event * event, unsigned int flags))                 \
	X(event_destroy, "cuEventDestroy_v2", (cuda_event event))                                  \
	X(event_record, "cuEventRecord", (cuda_event event, cuda_stream stream))                   \
	X(event_query, "cuEventQuery", (cuda_event event))                                         \
	X(host_register, "cuMemHostRegister_v2", (void *memory, size_t bytes, unsigned int flags)) \
	X(host_unregister, "cuMemHostUnregister", (void *memory))                                  \
	X(ipc_open, "cuIpcOpenMemHandle_v2",                                                       \
	  (cuda_pointer * pointer, struct cuda_ipc_handle handle, unsigned int flags))             \
	X(ipc_close, "cuIpcCloseMemHandle", (cuda_pointer pointer))                                \
	X(range_of, "cuMemGetAddressRange_v2",                                                     \
	  (cuda_pointer * base, size_t * bytes, cuda_pointer pointer))                             \
	X(import, "cuMemImportFromShareableHandle",                                                \
	  (cuda_allocation * allocation, void *handle, int handle_type))                           \
	X(allocation_release, "cuMemRelease", (cuda_allocation allocation))                        \
	X(reserve, "cuMemAddressReserve",                                                          \
	  (cuda_pointer * pointer, size_t bytes, size_t alignment, cuda_pointer wish,              \
	   unsigned long long flags))                                                              \
	X(reserve_free, "cuMemAddressFree", (cuda_pointer pointer, size_t bytes))                  \
	X(map, "cuMemMap",                                                                         \
	  (cuda_pointer pointer, size_t bytes, size_t offset, cuda_allocation allocation,          \
	   unsigned long long flags))                                                              \
	X(unmap, "cuMemUnmap", (cuda_pointer pointer, size_t bytes))                               \
	X(set_access, "cuMemSetAccess",                                                            \
	  (cuda_pointer pointer, size_t bytes, const struct cuda_access *access, size_t count))    \
	X(copy_in, "cuMemcpyHtoDAsync_v2",                                                         \
	  (cuda_pointer to, const void *from, size_t bytes, cuda_stream stream))                   \
	X(copy_out, "cuMemcpyDtoHAsync_v2",                                                        \
	  (void *to, cuda_pointer from, size_t bytes, cuda_stream stream))

struct cuda_driver {
#define CUDA_CALL_MEMBER(member, symbol, parameters) cuda_result(*member) parameters;
	CUDA_CALLS(CUDA_CALL_MEMBER)
#undef CUDA_CALL_MEMBER

	/* cuMemcpyBatchAsync as of 12.8 (nine parameters); NULL with an older driver. */
	cuda_result (*copy_batch)(cuda_pointer *to, cuda_pointer *from, size_t *bytes, size_t count,
				  struct cuda_copy_attributes *attributes, size_t *attribute_first,
				  size_t attributes_count, size_t *failed, cuda_stream stream);
};

/**
 * Load the driver once; later calls give the same answer.
 * Errors: -ENODEV there is no driver or no GPU; -ENOTSUP it is too old; one line in error
 *         (SSV_ERROR_TEXT_MAX bytes).
 */
SSV_MUST_CHECK int cuda_driver_get(const struct cuda_driver **ret_driver, char *error);

/* The driver's own words for a result; never NULL. */
const char *cuda_text(const struct cuda_driver *driver, cuda_result result);

#endif
