/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory.c - the "memory" way: the region is a memfd that the daemon maps, so the decoder writes
 * the engine's pages and nothing has to be moved afterwards.
 *
 * The memfd must be sealed against shrinking: a client that could shrink it could end the daemon
 * with SIGBUS.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "deliver/deliver.h"
#include "deliver/prefault.h"

extern const struct deliver_ops deliver_memory;

static int memory_attach(struct region *region, const struct ssv_region *offer,
			 const struct deliver_owner *owner, const struct deliver_host *host,
			 char *error)
{
	struct stat st;
	int seals;

	(void)owner;
	(void)host;
	/* Seals before the size: a size that was read earlier may have shrunk before the seal. */
	seals = offer->fd < 0 ? -1 : fcntl(offer->fd, F_GET_SEALS);
	if (seals < 0 && (offer->fd < 0 || errno == EBADF)) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "memfd: no usable descriptor (%d)", offer->fd);
		return -EINVAL;
	}
	if (seals < 0 || !(seals & F_SEAL_SHRINK)) {
		snprintf(error, SSV_ERROR_TEXT_MAX,
			 "memfd: %s, expected a memfd sealed with F_SEAL_SHRINK",
			 seals < 0 ? "the descriptor cannot be sealed" : "not sealed");
		return -EPERM;
	}
	if (fstat(offer->fd, &st) != 0) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "memfd: its size cannot be read (%d)", errno);
		return -EINVAL;
	}
	if (offer->bytes == 0 || (uint64_t)st.st_size < offer->bytes) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "memfd: has %llu bytes, the region says %llu",
			 (unsigned long long)st.st_size, (unsigned long long)offer->bytes);
		return -ERANGE;
	}
	region->map = mmap(NULL, offer->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, offer->fd, 0);
	if (region->map == MAP_FAILED) {
		int err = -errno;

		region->map = NULL;
		snprintf(error, SSV_ERROR_TEXT_MAX, "memfd: mapping %llu bytes failed: %s",
			 (unsigned long long)offer->bytes, strerror(-err));
		return err == -EACCES ? -EPERM : err;
	}
	(void)madvise(region->map, offer->bytes, MADV_DONTFORK);
	region->way = prefault_begin(region->map, offer->bytes, offer->fd);
	return 0;
}

static void memory_detach(struct region *region)
{
	prefault_end(region->way);
	region->way = NULL;
	munmap(region->map, region->bytes);
	region->map = NULL;
}

static uint64_t memory_stage_bytes(const struct region *region, uint32_t tensor,
				   uint32_t blocks_count)
{
	(void)region;
	(void)tensor;
	(void)blocks_count;
	return 0;
}

static void memory_open(struct deliver_job *job)
{
	const struct layout *layout = job->region->layout;
	const struct layout_map *map = &layout_tensor_part(layout, job->tensor)->place;
	uint8_t **token = job->token;

	job->map = map;
	for (uint32_t i = 0; i < job->blocks_count; i++) {
		uint8_t *block =
		    job->region->map + layout_block_offset(layout, job->tensor, job->blocks[i]);

		for (uint32_t t = 0; t < layout->block_tokens; t++)
			*token++ = block + map->token[t];
	}
}

static void memory_submit(struct deliver_queue *queue, struct deliver_job *job)
{
	job->status = 0;
	deliver_queue_push(queue, job);
}

const struct deliver_ops deliver_memory = {
    .name = "memory",
    .memory = SSV_MEMORY_MEMFD,
    .attach = memory_attach,
    .detach = memory_detach,
    .stage_bytes = memory_stage_bytes,
    .open = memory_open,
    .submit = memory_submit,
    .poll = deliver_queue_poll,
};
