/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_driver.c - opens libcuda.so.1 and fills the table of calls.
 *
 * The library stays open until the process ends: unloading a driver that has run is not safe.
 */
#include "deliver/cuda_driver.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "shadowserve.h"

#define BATCH_VERSION 12080 /* the first driver that has cuMemcpyBatchAsync */

static struct cuda_driver driver;
static int loaded;

/* dlsym() gives an object's address; POSIX says that it is good for a function as well. */
static void symbol_get(void *library, const char *name, void *ret_function)
{
	void *address = dlsym(library, name);

	memcpy(ret_function, &address, sizeof(address));
}

/* The batch call changed its parameters in 13.0 under the same name, so it is asked for by the
 * version whose parameters are declared here. */
static void batch_get(void *library)
{
	cuda_result (*get)(const char *symbol, void **function, int version,
			   unsigned long long flags, int *status) = NULL;
	void *function = NULL;
	int version = 0, status = 0;

	driver.copy_batch = NULL;
	symbol_get(library, "cuGetProcAddress_v2", &get);
	if (!get || driver.driver_version(&version) != CUDA_SUCCESS || version < BATCH_VERSION)
		return;
	if (get("cuMemcpyBatchAsync", &function, BATCH_VERSION, 0, &status) == CUDA_SUCCESS)
		memcpy(&driver.copy_batch, &function, sizeof(function));
}

static int driver_load(char *error)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
	cuda_result result;

	if (!library) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "GPU memory needs NVIDIA's driver: %s",
			 dlerror());
		return -ENODEV;
	}
#define CUDA_CALL_LOAD(member, symbol, parameters)                                           \
	symbol_get(library, symbol, &driver.member);                                         \
	if (!driver.member) {                                                                \
		snprintf(error, SSV_ERROR_TEXT_MAX,                                          \
			 "NVIDIA's driver has no %s: too old, CUDA 11.2 or later is needed", \
			 symbol);                                                            \
		dlclose(library);                                                            \
		return -ENOTSUP;                                                             \
	}
	CUDA_CALLS(CUDA_CALL_LOAD)
#undef CUDA_CALL_LOAD
	result = driver.init(0);
	if (result != CUDA_SUCCESS) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "NVIDIA's driver does not start: %s (%d)",
			 cuda_text(&driver, result), result);
		dlclose(library);
		return -ENODEV;
	}
	batch_get(library);
	return 0;
}

int cuda_driver_get(const struct cuda_driver **ret_driver, char *error)
{
	int err = loaded ? 0 : driver_load(error);

	if (err)
		return err;
	loaded = 1;
	*ret_driver = &driver;
	return 0;
}

const char *cuda_text(const struct cuda_driver *calls, cuda_result result)
{
	const char *text = NULL;

	if (calls->error_string(result, &text) != CUDA_SUCCESS || !text)
		return "unknown error";
	return text;
}
