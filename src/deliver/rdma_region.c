/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rdma_region.c - attaches memory of another host that its owner registered with an RDMA device:
 * the device here, the arena's registration, a lane for each worker.
 *
 * The lanes are ready when attach returns; the owner's ends become so when the answer has reached
 * it, which is before it hands any request on.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "deliver/rdma.h"

/* One device a daemon: its arena is registered with it once. */
static struct rdma_device *device_open;

static int device_get(const struct deliver_host *host, struct rdma_device **ret_device, char *error)
{
	struct rdma_device *device = device_open;
	int err;

	if (device) {
		ssv_assert(device->host.memory == host->memory);
		device->regions_count++;
		*ret_device = device;
		return 0;
	}
	device = calloc(1, sizeof(*device));
	if (!device) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "no memory for an RDMA device");
		return -ENOMEM;
	}
	err = rdma_port_open(host->rdma, &device->port, error);
	if (err)
		goto free_device;
	device->host = *host;
	device->arena =
	    ibv_reg_mr(device->port.pd, host->memory, host->bytes, IBV_ACCESS_LOCAL_WRITE);
	if (!device->arena) {
		err = -errno;
		snprintf(error, SSV_ERROR_TEXT_MAX,
			 "the arena of %llu bytes cannot be registered with RDMA device %s: %s "
			 "(ulimit -l?)",
			 (unsigned long long)host->bytes,
			 ibv_get_device_name(device->port.context->device), strerror(-err));
		goto close_port;
	}
	device->regions_count = 1;
	device_open = device;
	*ret_device = device;
	return 0;

close_port:
	rdma_port_close(&device->port);
free_device:
	free(device);
	return err;
}

static void device_put(struct rdma_device *device)
{
	if (--device->regions_count)
		return;
	(void)ibv_dereg_mr(device->arena);
	rdma_port_close(&device->port);
	free(device);
	device_open = NULL;
}

/* ---- lanes ---------------------------------------------------------------------------------- */

static int lane_open(struct rdma_lane *lane, struct region *region, const struct rdma_words *offer,
		     uint32_t index, char *error)
{
	struct rdma_region *way = region->way;
	const struct rdma_device *device = way->device;
	const struct rdma_port *port = &device->port;
	int err;

	lane->region = region;
	lane->depth = (uint32_t)u64_min(RDMA_DEPTH, port->depth_max);
	lane->inline_bytes = RDMA_INLINE;
	lane->psn = rdma_psn();
	lane->sink = (uintptr_t)way->sinks + (uint64_t)index * RDMA_SINK_BYTES;
	lane->sink_key = way->sink->lkey;
	lane->arena_key = device->arena->lkey;
	lane->rkey = offer->rkey;
	lane->address = offer->address;
	err = rdma_pair_create(port, lane->depth, &lane->inline_bytes, &lane->cq, &lane->qp, error);
	if (err)
		return err;
	err = rdma_pair_init(port, lane->qp, 0, error);
	if (!err)
		err = rdma_pair_receive(port, lane->qp, offer, index, 1, error);
	if (!err)
		err = rdma_pair_send(lane->qp, lane->psn,
				     (uint8_t)u64_min(port->asks, offer->reads), error);
	if (err)
		rdma_pair_destroy(lane->cq, lane->qp);
	return err;
}

static void lanes_close(struct rdma_region *way)
{
	for (uint32_t i = 0; i < way->lanes_count; i++) {
		struct rdma_lane *lane = &way->lanes[i];

		ssv_assert(!lane->count && !lane->waiting.first);
		rdma_pair_destroy(lane->cq, lane->qp);
	}
	way->lanes_count = 0;
}

static int lanes_open(struct region *region, const struct rdma_words *offer, char *error)
{
	struct rdma_region *way = region->way;
	const uint32_t count = way->device->host.workers_count;
	int err = 0;

	if (offer->lanes_count < count) {
		snprintf(error, SSV_ERROR_TEXT_MAX,
			 "RDMA: the owner offers %u lanes, this daemon has %u workers",
			 offer->lanes_count, count);
		return -E2BIG;
	}
	for (uint32_t i = 0; i < count && !err; i++) {
		err = lane_open(&way->lanes[i], region, offer, i, error);
		way->lanes_count += !err;
	}
	if (err)
		lanes_close(way);
	return err;
}

/* Memory for the confirming READs. */
static int sinks_open(struct rdma_region *way, char *error)
{
	const size_t bytes = (size_t)way->device->host.workers_count * RDMA_SINK_BYTES;

	way->sinks = aligned_alloc(RDMA_SINK_BYTES, bytes);
	if (!way->sinks)
		return rdma_refuse(error, "no memory for a region", ENOMEM);
	memset(way->sinks, 0, bytes);
	way->sink = ibv_reg_mr(way->device->port.pd, way->sinks, bytes, IBV_ACCESS_LOCAL_WRITE);
	if (!way->sink) {
		int err = rdma_refuse(error, "memory cannot be registered", errno);

		free(way->sinks);
		return err;
	}
	return 0;
}

static void sinks_close(struct rdma_region *way)
{
	(void)ibv_dereg_mr(way->sink);
	free(way->sinks);
}

/* ---- attach and detach ---------------------------------------------------------------------- */

static void answer_put(const struct rdma_region *way, struct blob *answer)
{
	struct rdma_words words = {.kind = RDMA_ANSWER, .lanes_count = way->lanes_count};

	rdma_port_describe(&way->device->port, &words);
	words.reads = (uint8_t)u64_max(way->device->port.asks, 1);
	for (uint32_t i = 0; i < way->lanes_count; i++)
		words.lanes[i] =
		    (struct rdma_end){.qp = way->lanes[i].qp->qp_num, .psn = way->lanes[i].psn};
	rdma_blob_encode(&words, answer);
}

static int offer_check(const struct ssv_region *offer, const struct deliver_owner *owner,
		       const struct deliver_host *host, struct rdma_words *ret_words, char *error)
{
	int err;

	if (!host || !host->memory || !host->workers_count) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "RDMA: no staging memory to register");
		return -ENOTSUP;
	}
	if (!owner->offered || !owner->answer) {
		snprintf(error, SSV_ERROR_TEXT_MAX,
			 "RDMA memory: without an offer; only a relay registers it");
		return -EINVAL;
	}
	err = rdma_blob_decode(owner->offered, RDMA_OFFER, ret_words, error);
	if (err)
		return -EINVAL;
	if (ret_words->bytes != offer->bytes) {
		snprintf(error, SSV_ERROR_TEXT_MAX,
			 "RDMA memory: %llu bytes are offered, the region says %llu",
			 (unsigned long long)ret_words->bytes, (unsigned long long)offer->bytes);
		return -ERANGE;
	}
	return 0;
}

static int way_create(const struct deliver_host *host, struct rdma_region **ret_way, char *error)
{
	struct rdma_region *way = calloc(1, sizeof(*way));

	if (way)
		way->lanes = calloc(host->workers_count, sizeof(way->lanes[0]));
	if (!way || !way->lanes) {
		free(way);
		return rdma_refuse(error, "no memory for a region", ENOMEM);
	}
	*ret_way = way;
	return 0;
}

static void way_destroy(struct rdma_region *way)
{
	free(way->lanes);
	free(way);
}

int rdma_attach(struct region *region, const struct ssv_region *offer,
		const struct deliver_owner *owner, const struct deliver_host *host, char *error)
{
	struct rdma_words words;
	struct rdma_region *way = NULL;
	int err;

	err = offer_check(offer, owner, host, &words, error);
	if (err)
		return err;
	err = way_create(host, &way, error);
	if (err)
		return err;
	region->way = way;
	err = device_get(host, &way->device, error);
	if (err)
		goto destroy_way;
	err = sinks_open(way, error);
	if (err)
		goto put_device;
	err = lanes_open(region, &words, error);
	if (err)
		goto close_sinks;
	answer_put(way, owner->answer);
	return 0;

close_sinks:
	sinks_close(way);
put_device:
	device_put(way->device);
destroy_way:
	way_destroy(way);
	region->way = NULL;
	return err;
}

void rdma_detach(struct region *region)
{
	struct rdma_region *way = region->way;

	lanes_close(way);
	sinks_close(way);
	device_put(way->device);
	way_destroy(way);
	region->way = NULL;
}
