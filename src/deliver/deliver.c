/* SPDX-License-Identifier: Apache-2.0 */
/* deliver.c - the one visible list of delivery ways, attaching regions, canonical order. */
#include "deliver/deliver.h"

#include <errno.h>
#include <string.h>

#include "base/tally.h"

extern const struct deliver_ops deliver_memory, deliver_cma, deliver_cuda_ipc, deliver_cuda_fd,
    deliver_tcp, deliver_rdma;

static const struct deliver_ops *const ways[] = {
    &deliver_memory, &deliver_cma, &deliver_cuda_ipc, &deliver_cuda_fd, &deliver_tcp,
    &deliver_rdma,   NULL};

const struct deliver_ops *deliver_way(uint8_t memory)
{
	for (uint32_t i = 0; ways[i]; i++) {
		if (ways[i]->memory == memory)
			return ways[i];
	}
	return NULL;
}

int region_attach(const struct ssv_region *offer, const struct ssv_layout *layout,
		  const struct deliver_owner *owner, const struct deliver_host *host,
		  struct region **ret_region, char *error)
{
	const struct deliver_ops *ops;
	struct region *region;
	int err;

	ops = offer->memory <= UINT8_MAX ? deliver_way((uint8_t)offer->memory) : NULL;
	if (!ops) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "memory kind %u is not known", offer->memory);
		return -ENOTSUP;
	}
	region = calloc(1, sizeof(*region));
	if (!region) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "no memory for a region");
		return -ENOMEM;
	}
	region->ops = ops;
	region->bytes = offer->bytes;
	region->pid = owner->pid;
	region->pidfd = -1;
	err = layout_create(layout, offer->bytes, &region->layout, error);
	if (err)
		goto free_region;
	err = ops->attach(region, offer, owner, host, error);
	if (err)
		goto destroy_layout;
	*ret_region = region;
	return 0;

destroy_layout:
	layout_destroy(region->layout);
free_region:
	free(region);
	return err;
}

void region_detach(struct region *region)
{
	if (!region)
		return;
	region->ops->detach(region);
	layout_destroy(region->layout);
	free(region);
}

uint64_t deliver_stage_bytes(const struct region *region, uint32_t first, uint32_t count,
			     uint32_t blocks_count)
{
	uint64_t bytes = 0;

	for (uint32_t k = 0; k < count; k++)
		bytes += region->ops->stage_bytes(region, first + k, blocks_count);
	return bytes;
}

void deliver_open(struct deliver_job *jobs, uint32_t count, const struct deliver_job *like,
		  int joined)
{
	const struct region *region = like->region;
	uint8_t *stage = like->stage;

	for (uint32_t k = 0; k < count; k++) {
		jobs[k] = *like;
		jobs[k].tensor = like->tensor + k;
		jobs[k].token = like->token + (size_t)k * SSV_CHUNK_TOKENS;
		jobs[k].stage = stage;
		jobs[k].joined = joined ? (uint8_t)count : 1;
		jobs[k].joint = joined ? (uint8_t)k : 0;
		region->ops->open(&jobs[k]);
		if (stage && !joined)
			stage +=
			    region->ops->stage_bytes(region, jobs[k].tensor, like->blocks_count);
	}
}

void deliver_open_packed(struct deliver_job *job)
{
	const struct layout *layout = job->region->layout;
	const struct layout_map *map = &layout_tensor_part(layout, job->tensor)->packed;
	uint8_t **token = job->token;

	job->map = map;
	for (uint32_t i = 0; i < job->blocks_count; i++) {
		uint8_t *block = job->stage + (size_t)map->block_bytes * i;

		for (uint32_t t = 0; t < layout->block_tokens; t++)
			*token++ = block + map->token[t];
	}
}

void deliver_queue_push(struct deliver_queue *queue, struct deliver_job *job)
{
	job->next = NULL;
	if (queue->last)
		queue->last->next = job;
	else
		queue->first = job;
	queue->last = job;
}

uint32_t deliver_queue_poll(struct deliver_queue *queue, struct deliver_job **done, uint32_t max)
{
	uint32_t n = 0;

	while (n < max && queue->first) {
		done[n] = queue->first;
		queue->first = done[n]->next;
		done[n++]->next = NULL;
	}
	if (!queue->first)
		queue->last = NULL;
	return n;
}

/* Token by token, in runs of adjacent channels. */
void deliver_gather(const struct deliver_job *job, uint32_t tokens_count, uint8_t *canonical)
{
	const struct layout *layout = job->region->layout;
	const uint32_t channels = part_channels(&layout_tensor_part(layout, job->tensor)->shape);
	const uint32_t element = layout->element_bytes;
	const uint32_t run = job->map->run_channels;
	const uint32_t *channel = job->map->channel;

	tally_add(TALLY_BYTES_GATHERED, (uint64_t)tokens_count * channels * element);

	for (uint32_t t = 0; t < tokens_count; t++) {
		const uint8_t *token = job->token[t];

		if (run == 1 && element == 2) { /* transposed, the common 16-bit case */
			for (uint32_t c = 0; c < channels; c++, canonical += 2)
				memcpy(canonical, token + channel[c], 2);
			continue;
		}
		for (uint32_t c = 0; c < channels; c += run) {
			memcpy(canonical, token + channel[c], (size_t)run * element);
			canonical += (size_t)run * element;
		}
	}
}
