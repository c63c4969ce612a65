/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dpdk_device.c - see dpdk_device.h.
 *
 * The environment is made as small as it gets: no huge pages of its own, no shared files, one core
 * that nothing runs on. rte_eal_init() binds the calling thread to that core; the thread gets its
 * cores back. A PCI device is named to the environment when that begins, so a process has either
 * one of those or virtual ones.
 */
#include "inflate/dpdk_device.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <rte_compressdev.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_log.h>
#include <rte_memory.h>
#include <rte_version.h>

#include "inflate/dpdk_limits.h"
#include "inflate/engines.h"

#define DEVICES_MAX     4u
#define DEVICE_MAX      64u
#define QUEUE_DEPTH_MIN 1u

struct dpdk_device {
	char name[DEVICE_MAX]; /* as asked for; empty: free */
	char eal_name[DEVICE_MAX + 1];
	uint8_t id;
	uint8_t is_pci;
	uint8_t queue_used[INFLATE_DEPTH_MAX / 8];
	uint32_t queues_count, queues_used, depth;
	void *memory; /* registered */
	uint64_t memory_bytes;
};

/* What is known of a driver beyond its capabilities. */
struct driver_trait {
	const char *driver;
	uint8_t pads_source, walks_chains, is_lenient, is_beside;
	uint32_t record_bytes_max;
};

static const struct driver_trait traits[] = {
    /* Loops for ever on a chained source that ends before its stream does. */
    {"compress_isal", 1, 1, 1, 0, DPDK_RECORD_BYTES_MAX},
    /* Walks chains although it does not say so. */
    {"compress_zlib", 0, 1, 0, 0, DPDK_RECORD_BYTES_MAX},
    /* Takes the first buffer's address and the whole length: a chain over one range is linear. It
       says that it used the whole source, always. */
    {"mlx5", 0, 1, 1, 1, DPDK_RECORD_BYTES_MAX},
};

/* The control thread's. */
static struct dpdk_device devices[DEVICES_MAX];
static int environment; /* 0: not begun; 1: runs; below: why it does not */
static int environment_has_pci;

static int is_pci(const char *device)
{
	return strchr(device, ':') != NULL && strchr(device, '.') != NULL;
}

/* ---- the environment ------------------------------------------------------------------------ */

static int first_core(const cpu_set_t *cores)
{
	for (int i = 0; i < CPU_SETSIZE; i++)
		if (CPU_ISSET((size_t)i, cores))
			return i;
	return 0;
}

static int environment_init(const char *device, const cpu_set_t *cores)
{
	char lcores[32], prefix[64], allowed[DEVICE_MAX + 32];
	char *argv[16];
	int argc = 0;

	snprintf(lcores, sizeof(lcores), "--lcores=0@%d", first_core(cores));
	snprintf(prefix, sizeof(prefix), "--file-prefix=shadowserve-%d", (int)getpid());
	snprintf(allowed, sizeof(allowed), "--allow=%s,class=compress", device);
	argv[argc++] = (char *)(uintptr_t) "shadowserved";
	argv[argc++] = (char *)(uintptr_t) "--no-huge";
	argv[argc++] = (char *)(uintptr_t) "--no-shconf";
	argv[argc++] = (char *)(uintptr_t) "--no-telemetry";
	argv[argc++] = (char *)(uintptr_t) "--iova-mode=va";
	argv[argc++] = (char *)(uintptr_t) "--log-level=*:error";
	argv[argc++] = (char *)(uintptr_t) "-m";
	argv[argc++] = (char *)(uintptr_t) "64";
	argv[argc++] = lcores;
	argv[argc++] = prefix;
	argv[argc++] = is_pci(device) ? allowed : (char *)(uintptr_t) "--no-pci";
	argv[argc] = NULL;
	rte_log_set_global_level(RTE_LOG_ERR);
	return rte_eal_init(argc, argv) < 0 ? -(rte_errno ? rte_errno : EIO) : 1;
}

static int environment_begin(const char *device, char *error)
{
	cpu_set_t cores;

	if (!environment) {
		if (pthread_getaffinity_np(pthread_self(), sizeof(cores), &cores))
			return inflate_refuse(error, -EIO, "DPDK: no affinity of this thread");
		environment = environment_init(device, &cores);
		/* Drivers write a line for each stream that is damaged: whoever sends those
		 * could fill the log. */
		(void)rte_log_set_level_pattern("pmd.compress*", RTE_LOG_EMERG);
		environment_has_pci = is_pci(device);
		(void)pthread_setaffinity_np(pthread_self(), sizeof(cores), &cores);
	}
	if (environment < 0)
		return inflate_refuse(error, environment, "DPDK: rte_eal_init failed: %s",
				      strerror(-environment));
	if (environment_has_pci != is_pci(device))
		return inflate_refuse(error, -EBUSY,
				      "DPDK: \"%s\": this process already has devices of the other "
				      "kind (PCI or virtual)",
				      device);
	return 0;
}

/* ---- capabilities --------------------------------------------------------------------------- */

static const struct driver_trait *trait_find(const char *driver)
{
	for (uint32_t i = 0; i < ARRAY_COUNT(traits); i++)
		if (strstr(driver, traits[i].driver))
			return &traits[i];
	return NULL;
}

/* Can the device inflate, and how much at once? */
static int capabilities_read(const char *device, uint8_t id, struct dpdk_queue *queue, char *error)
{
	const struct rte_compressdev_capabilities *cap =
	    rte_compressdev_capability_get(id, RTE_COMP_ALGO_DEFLATE);
	const struct driver_trait *trait;
	struct rte_compressdev_info info;

	rte_compressdev_info_get(id, &info);
	if (!cap)
		return inflate_refuse(error, -ENOTSUP, "DPDK: %s (%s): no deflate%s", device,
				      info.driver_name,
				      RTE_VERSION < RTE_VERSION_NUM(23, 3, 0, 0)
					  ? "; BlueField-3 needs DPDK 23.03 or newer"
					  : "");
	if (cap->window_size.max < DPDK_WINDOW_BITS)
		return inflate_refuse(error, -ENOTSUP, "DPDK: %s: window of %u bits, expected %u",
				      device, cap->window_size.max, DPDK_WINDOW_BITS);
	trait = trait_find(info.driver_name);
	queue->driver = info.driver_name;
	queue->pads_source = trait && trait->pads_source;
	queue->is_lenient = !trait || trait->is_lenient;
	queue->is_beside =
	    trait ? trait->is_beside : (info.feature_flags & RTE_COMPDEV_FF_HW_ACCELERATED) != 0;
	queue->record_bytes_max = trait ? trait->record_bytes_max : DPDK_RECORD_BYTES_MAX;
	/* A device that takes no chain gets what one buffer holds. */
	if (!(cap->comp_feature_flags & RTE_COMP_FF_OOP_SGL_IN_SGL_OUT) &&
	    !(trait && trait->walks_chains))
		queue->record_bytes_max = DPDK_SEGMENT_BYTES;
	return 0;
}

/* ---- devices -------------------------------------------------------------------------------- */

static struct rte_device *pci_find(const char *name)
{
	struct rte_dev_iterator iterator;
	struct rte_device *found = NULL, *device;

	RTE_DEV_FOREACH(device, "bus=pci", &iterator)
	{
		if (strcmp(rte_dev_name(device), name) == 0)
			found = device;
	}
	return found;
}

/* Memory that jobs point into, for devices that reach it by themselves. */
static int memory_register(struct dpdk_device *device, const struct inflate_config *config,
			   char *error)
{
	const size_t page = (size_t)sysconf(_SC_PAGESIZE);
	struct rte_device *pci;

	if (!device->is_pci || !config->memory)
		return 0;
	if (rte_extmem_register(config->memory, config->memory_bytes, NULL, 0, page) &&
	    rte_errno != EEXIST)
		return inflate_refuse(error, -rte_errno, "DPDK: %s: memory not registered: %s",
				      device->name, rte_strerror(rte_errno));
	device->memory = config->memory;
	device->memory_bytes = config->memory_bytes;
	pci = pci_find(device->name);
	if (pci &&
	    rte_dev_dma_map(pci, config->memory, (uint64_t)(uintptr_t)config->memory,
			    config->memory_bytes) &&
	    rte_errno != ENOTSUP)
		return inflate_refuse(error, -rte_errno, "DPDK: %s: memory not mapped: %s",
				      device->name, rte_strerror(rte_errno));
	return 0;
}

static uint32_t power_of_two(uint32_t n)
{
	uint32_t power = 1;

	while (power < n)
		power *= 2;
	return power;
}

static int queues_setup(struct dpdk_device *device, const struct inflate_config *config,
			char *error)
{
	struct rte_compressdev_config setup = {.socket_id = SOCKET_ID_ANY,
					       .nb_queue_pairs = (uint16_t)config->handles,
					       .max_nb_priv_xforms = (uint16_t)config->handles};
	struct rte_compressdev_info info;
	/* Drivers keep operations in rings, which hold one less than their size. */
	uint32_t depth = power_of_two(config->depth + 1);
	int err;

	rte_compressdev_info_get(device->id, &info);
	setup.socket_id = rte_compressdev_socket_id(device->id);
	if (info.max_nb_queue_pairs && info.max_nb_queue_pairs < config->handles)
		return inflate_refuse(error, -ENOSPC, "DPDK: %s has %u queue pairs, %u wanted",
				      device->name, info.max_nb_queue_pairs, config->handles);
	err = rte_compressdev_configure(device->id, &setup);
	for (uint32_t i = 0; !err && i < config->handles; i++) {
		/* How deep a queue may be is said by nothing but success. */
		err = rte_compressdev_queue_pair_setup(device->id, (uint16_t)i, depth,
						       setup.socket_id);
		while (err && i == 0 && depth / 2 >= QUEUE_DEPTH_MIN + 1) {
			depth /= 2;
			err =
			    rte_compressdev_queue_pair_setup(device->id, 0, depth, setup.socket_id);
		}
	}
	if (!err)
		err = rte_compressdev_start(device->id);
	if (err)
		return inflate_refuse(error, err < 0 ? err : -EIO,
				      "DPDK: %s: %u queue pairs of depth %u cannot be set up: %s",
				      device->name, config->handles, depth, strerror(abs(err)));
	device->queues_count = config->handles;
	device->depth = depth - 1;
	return 0;
}

static void device_end(struct dpdk_device *device)
{
	if (device->queues_count) {
		rte_compressdev_stop(device->id);
		(void)rte_compressdev_close(device->id);
	}
	if (device->memory)
		(void)rte_extmem_unregister(device->memory, device->memory_bytes);
	memset(device, 0, sizeof(*device));
}

static int device_probe(struct dpdk_device *device, char *error)
{
	int id;

	/* A virtual device has a number behind its driver's name. */
	snprintf(device->eal_name, sizeof(device->eal_name), "%s%s", device->name,
		 device->is_pci ? "" : "0");
	id = rte_compressdev_get_dev_id(device->eal_name);
	if (id < 0 && !device->is_pci && rte_dev_probe(device->eal_name) == 0)
		id = rte_compressdev_get_dev_id(device->eal_name);
	if (id < 0)
		return inflate_refuse(error, -ENODEV,
				      "DPDK: no compression device \"%s\": expected compress_isal, "
				      "compress_zlib or a PCI address whose driver is installed",
				      device->name);
	device->id = (uint8_t)id;
	return 0;
}

static int device_begin(const struct inflate_config *config, const char *name,
			struct dpdk_device **ret_device, char *error)
{
	struct dpdk_device *device = NULL;
	int err;

	for (uint32_t i = 0; i < DEVICES_MAX; i++) {
		if (strcmp(devices[i].name, name) == 0) {
			*ret_device = &devices[i];
			return 0;
		}
		if (!devices[i].name[0] && !device)
			device = &devices[i];
	}
	if (!device || strlen(name) + 2 > DEVICE_MAX)
		return inflate_refuse(error, -EBUSY, "DPDK: \"%.60s\": too many devices", name);
	snprintf(device->name, sizeof(device->name), "%s", name);
	device->is_pci = (uint8_t)is_pci(name);
	err = device_probe(device, error);
	if (!err)
		err = memory_register(device, config, error);
	if (!err)
		err = queues_setup(device, config, error);
	if (err) {
		device_end(device);
		return err;
	}
	*ret_device = device;
	return 0;
}

int dpdk_queue_open(const struct inflate_config *config, const char *name,
		    struct dpdk_queue *ret_queue, char *error)
{
	struct dpdk_queue queue = {0};
	struct dpdk_device *device = NULL;
	uint32_t i = 0;
	int err;

	err = environment_begin(name, error);
	if (!err)
		err = device_begin(config, name, &device, error);
	if (err)
		return err;
	err = capabilities_read(name, device->id, &queue, error);
	while (!err && i < device->queues_count && device->queue_used[i / 8] & 1 << i % 8)
		i++;
	if (!err && i == device->queues_count)
		err = inflate_refuse(error, -EBUSY, "DPDK: %s: all %u queue pairs are taken", name,
				     device->queues_count);
	if (err) {
		if (!device->queues_used)
			device_end(device);
		return err;
	}
	device->queue_used[i / 8] |= (uint8_t)(1u << i % 8);
	device->queues_used++;
	queue.device = device;
	queue.device_id = device->id;
	queue.queue = (uint16_t)i;
	queue.depth = (uint32_t)u64_min(device->depth, config->depth);
	*ret_queue = queue;
	return 0;
}

void dpdk_queue_close(struct dpdk_queue *queue)
{
	struct dpdk_device *device = queue->device;

	device->queue_used[queue->queue / 8] &= (uint8_t) ~(1u << queue->queue % 8);
	if (--device->queues_used == 0)
		device_end(device);
}
