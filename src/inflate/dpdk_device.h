/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dpdk_device.h - DPDK's environment and its compression devices, which belong to the process: one
 * environment, begun at the first open and never ended; a device is begun with its first queue pair
 * and given up with its last.
 */
#ifndef SSV_INFLATE_DPDK_DEVICE_H
#define SSV_INFLATE_DPDK_DEVICE_H

#include "inflate/inflate.h"

/* A queue pair of a device: what one handle has to itself. */
struct dpdk_queue {
	struct dpdk_device *device;
	uint16_t queue;
	uint8_t device_id;
	uint8_t pads_source; /* a chained source must be followed by zeros (docs/inflate.md) */
	uint8_t is_lenient;  /* INFLATE_CAP_LENIENT */
	uint8_t is_beside;
	uint32_t depth;
	uint32_t record_bytes_max;
	const char *driver;
};

/**
 * Take a queue pair. device: "compress_isal", "compress_zlib" or a PCI address.
 * Control path only. Errors: -ENODEV, -ENOTSUP, -EBUSY, -ENOMEM, -EIO with one line in error.
 */
SSV_MUST_CHECK int dpdk_queue_open(const struct inflate_config *config, const char *device,
				   struct dpdk_queue *ret_queue, char *error);
void dpdk_queue_close(struct dpdk_queue *queue);

#endif
