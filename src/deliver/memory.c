/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory.c - the "memory" way: the region is a memfd that the daemon maps, so the decoder writes
 * the engine's pages and nothing has to be moved afterwards.
 *
 * The memfd must be sealed against shrinking: a client that could shrink it could end the daemon
 * with SIGBUS. The mapping lies between pages that nobody may touch: what would be written next to
 * it ends this process instead.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "deliver/deliver.h"
#include "deliver/prefault.h"

#define GUARD_BYTES (2 * MIB) /* also the alignment: huge pages stay possible */

extern const struct deliver_ops deliver_memory;

struct memory {
	struct prefault *prefault;
	uint8_t *reserved; /* guard, mapping, guard */
	uint64_t reserved_bytes;
};

/* Maps the file between guards. page is what its file system deals in. */
static int memory_map(struct memory *memory, const struct ssv_region *offer, uint64_t page,
		      uint8_t **ret_map)
{
	const uint64_t unit = page > GUARD_BYTES ? page : GUARD_BYTES;
	uint8_t *at;

	if (offer->bytes > (uint64_t)PTRDIFF_MAX - 4 * unit)
		return -ENOMEM;
	memory->reserved_bytes = align_up(offer->bytes, page) + 3 * unit;
	memory->reserved = mmap(NULL, memory->reserved_bytes, PROT_NONE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory->reserved == MAP_FAILED)
		return -errno;
	at = memory->reserved + unit;
	at += align_up((uintptr_t)at, unit) - (uintptr_t)at;
	*ret_map =
	    mmap(at, offer->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, offer->fd, 0);
	if (*ret_map == MAP_FAILED) {
		int err = -errno;

		*ret_map = NULL;
		munmap(memory->reserved, memory->reserved_bytes);
		return err;
	}
	return 0;
}

static int memory_make(struct region *region, const struct ssv_region *offer, uint64_t page,
		       char *error)
{
	struct memory *memory = calloc(1, sizeof(*memory));
	int err = memory ? memory_map(memory, offer, page, &region->map) : -ENOMEM;

	if (err) {
		free(memory);
		snprintf(error, SSV_ERROR_TEXT_MAX, "memfd: mapping %llu bytes failed: %s",
			 (unsigned long long)offer->bytes, strerror(-err));
		return err == -EACCES ? -EPERM : err;
	}
	(void)madvise(region->map, offer->bytes, MADV_DONTFORK);
	memory->prefault = prefault_begin(region->map, offer->bytes, offer->fd);
	region->way = memory;
	return 0;
}

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
	return memory_make(region, offer, (uint64_t)st.st_blksize, error);
}

static void memory_detach(struct region *region)
{
	struct memory *memory = region->way;

	prefault_end(memory->prefault);
	munmap(memory->reserved, memory->reserved_bytes);
	free(memory);
	region->way = NULL;
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
