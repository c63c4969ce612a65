/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cma.c - the "cma" way: the region is an address range of the engine's process, reached by
 * cross-memory attach. Blocks are decoded into staging memory in packed form and moved by
 * process_vm_writev in batches of runs; captures come the other way.
 *
 * The number of a process may be used again after its death, so the pidfd that was opened at
 * registration is asked before every batch: a readable one means that the owner is gone.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/tally.h"
#include "deliver/deliver.h"

#define CMA_BATCH 512 /* runs a system call; the kernel takes IOV_MAX */

extern const struct deliver_ops deliver_cma;

static ssize_t cma_move(const struct region *region, int direction, const struct iovec *local,
			const struct iovec *remote, unsigned long n)
{
	if (direction == DELIVER_IN)
		return process_vm_writev(region->pid, local, n, remote, n, 0);
	return process_vm_readv(region->pid, local, n, remote, n, 0);
}

static int owner_is_gone(const struct region *region)
{
	struct pollfd pollfd = {.fd = region->pidfd, .events = POLLIN};

	return poll(&pollfd, 1, 0) != 0;
}

/* One digit of /proc/sys/kernel/yama/ptrace_scope; '?' where there is none. */
static char ptrace_scope(void)
{
	int fd = open("/proc/sys/kernel/yama/ptrace_scope", O_RDONLY | O_CLOEXEC);
	char digit = '?';

	if (fd < 0)
		return digit;
	if (read(fd, &digit, 1) != 1)
		digit = '?';
	close(fd);
	return digit;
}

/* Read the first and the last byte: is the range there, and may this process reach it? */
static int cma_probe(struct region *region, char *error)
{
	const uint64_t places[2] = {region->address, region->address + region->bytes - 1};

	for (int i = 0; i < 2; i++) {
		uint8_t byte;
		struct iovec local = {&byte, 1};
		struct iovec remote = {(void *)(uintptr_t)places[i], 1};

		if (cma_move(region, DELIVER_OUT, &local, &remote, 1) == 1)
			continue;
		if (errno == EPERM) {
			snprintf(error, SSV_ERROR_TEXT_MAX,
				 "cross-memory attach to process %d is not permitted "
				 "(ptrace_scope %c): the engine must call prctl(PR_SET_PTRACER, "
				 "%d), or use a memfd region",
				 (int)region->pid, ptrace_scope(), (int)getpid());
			return -EPERM;
		}
		snprintf(error, SSV_ERROR_TEXT_MAX,
			 "cross-memory attach to process %d: address 0x%llx: %s", (int)region->pid,
			 (unsigned long long)places[i], strerror(errno));
		return errno == EFAULT ? -ERANGE : errno == ENOSYS ? -ENOTSUP : -errno;
	}
	return 0;
}

static int cma_attach(struct region *region, const struct ssv_region *offer,
		      const struct deliver_owner *owner, const struct deliver_host *host,
		      char *error)
{
	int err;

	(void)host;
	if (owner->pid <= 0 || offer->bytes == 0 || offer->address == 0 ||
	    offer->address > UINT64_MAX - offer->bytes) {
		snprintf(error, SSV_ERROR_TEXT_MAX,
			 "address range 0x%llx + %llu bytes of process %d is no range",
			 (unsigned long long)offer->address, (unsigned long long)offer->bytes,
			 (int)owner->pid);
		return -EINVAL;
	}
	region->address = offer->address;
	region->pidfd = (int)syscall(SYS_pidfd_open, owner->pid, 0);
	if (region->pidfd < 0) {
		err = -errno;
		snprintf(error, SSV_ERROR_TEXT_MAX, "pidfd_open of process %d: %s", (int)owner->pid,
			 strerror(-err));
		return err;
	}
	err = cma_probe(region, error);
	if (err) {
		close(region->pidfd);
		region->pidfd = -1;
	}
	return err;
}

static void cma_detach(struct region *region)
{
	if (region->pidfd >= 0)
		close(region->pidfd);
	region->pidfd = -1;
}

static uint64_t cma_stage_bytes(const struct region *region, uint32_t tensor, uint32_t blocks_count)
{
	return (uint64_t)layout_tensor_part(region->layout, tensor)->packed.block_bytes *
	       blocks_count;
}

/* Runs that wait for one system call. */
struct cma_batch {
	struct iovec local[CMA_BATCH], remote[CMA_BATCH];
	unsigned long count;
	uint64_t bytes;
};

static int cma_flush(const struct deliver_job *job, struct cma_batch *batch)
{
	ssize_t moved;

	if (batch->count == 0)
		return 0;
	if (owner_is_gone(job->region))
		return -ESRCH;
	tally_add(TALLY_CALL_MOVE, 2); /* with the look at the owner */
	moved = cma_move(job->region, job->direction, batch->local, batch->remote, batch->count);
	if (moved < 0)
		return -errno;
	tally_add(TALLY_BYTES_MOVED, (uint64_t)moved);
	/* Short: the rest of the range is not mapped any more. */
	if ((uint64_t)moved != batch->bytes)
		return -EFAULT;
	batch->count = 0;
	batch->bytes = 0;
	return 0;
}

static int cma_run(const struct deliver_job *job, struct cma_batch *batch)
{
	const struct layout *layout = job->region->layout;
	const struct layout_part *part = layout_tensor_part(layout, job->tensor);
	uint8_t *local = job->stage;
	int err;

	for (uint32_t i = 0; i < job->blocks_count; i++) {
		uint64_t block =
		    job->region->address + layout_block_offset(layout, job->tensor, job->blocks[i]);

		for (uint32_t k = 0; k < part->runs_count; k++) {
			const struct layout_run *run = &part->runs[k];
			unsigned long n = batch->count++;

			batch->local[n] = (struct iovec){local, run->bytes};
			batch->remote[n] =
			    (struct iovec){(void *)(uintptr_t)(block + run->offset), run->bytes};
			batch->bytes += run->bytes;
			local += run->bytes;
			if (batch->count < CMA_BATCH)
				continue;
			err = cma_flush(job, batch);
			if (err)
				return err;
		}
	}
	return cma_flush(job, batch);
}

static void cma_submit(struct deliver_queue *queue, struct deliver_job *job)
{
	struct cma_batch batch;

	batch.count = 0;
	batch.bytes = 0;
	job->status = cma_run(job, &batch);
	deliver_queue_push(queue, job);
}

const struct deliver_ops deliver_cma = {
    .name = "cma",
    .memory = SSV_MEMORY_ADDRESS,
    .attach = cma_attach,
    .detach = cma_detach,
    .stage_bytes = cma_stage_bytes,
    .open = deliver_open_packed,
    .submit = cma_submit,
    .poll = deliver_queue_poll,
};
