/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_cuda.c - the "cuda" way against a stand-in driver (standin_cuda.h): blocks in and out in any
 * order of completion, limits in flight, every failing call, and nothing left behind.
 *
 * SSV_SEED chooses blocks and delays; STANDIN_CUDA_OLD=1 runs it on a driver without batches.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "cuda_rig.h"

static uint64_t seed;

static uint64_t random_next(void)
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return seed >> 33;
}

/* ---- jobs ----------------------------------------------------------------------------------- */

#define JOBS_MAX 64u

/* Some jobs of one worker, each with its own staging memory and tokens. */
struct work {
	struct deliver_queue queue;
	uint8_t *stage, *stage_end;
	struct deliver_job jobs[JOBS_MAX];
	uint8_t *tokens[JOBS_MAX][BLOCK_TOKENS];
	uint32_t blocks[JOBS_MAX];
	uint32_t jobs_count, done_count, failed_count;
};

static struct work *work_make(uint32_t worker)
{
	struct work *work = calloc(1, sizeof(*work));

	work->queue.worker = worker;
	work->stage = stage + worker * (STAGE / 2);
	work->stage_end = work->stage + STAGE / 2;
	return work;
}

static void work_fill(struct deliver_job *job)
{
	for (uint32_t i = 0; i < BLOCK_TOKENS * CHANNELS; i++) {
		uint16_t bits = bits_of(job->tensor, job->blocks[0], i);

		memcpy(job->token[i / CHANNELS] + job->map->channel[i % CHANNELS], &bits, 2);
	}
}

/* Submit the group of tensors that begins at `tensor`, one block; returns the group's tensors. */
static uint32_t work_group(struct work *work, const struct region *region, uint32_t tensor,
			   uint32_t block, enum deliver_direction direction)
{
	const uint32_t n = region->ops->join(region, tensor);
	uint64_t bytes = 0;

	assert_true(work->jobs_count + n <= JOBS_MAX);
	for (uint32_t k = 0; k < n; k++) {
		const uint32_t i = work->jobs_count + k;
		struct deliver_job *job = &work->jobs[i];

		work->blocks[i] = block;
		*job = (struct deliver_job){.region = region,
					    .tensor = tensor + k,
					    .direction = (uint8_t)direction,
					    .joined = (uint8_t)n,
					    .joint = (uint8_t)k,
					    .blocks = &work->blocks[i],
					    .blocks_count = 1,
					    .stage = work->stage,
					    .token = work->tokens[i],
					    .owner = work};
		region->ops->open(job);
		bytes += region->ops->stage_bytes(region, tensor + k, 1);
		if (direction == DELIVER_IN)
			work_fill(job);
	}
	work->stage += bytes;
	assert_true(work->stage <= work->stage_end);
	for (uint32_t k = 0; k < n; k++)
		region->ops->submit(&work->queue, &work->jobs[work->jobs_count + k]);
	work->jobs_count += n;
	return n;
}

static void work_check(const struct deliver_job *job)
{
	for (uint32_t i = 0; i < BLOCK_TOKENS * CHANNELS; i++) {
		uint16_t bits;

		memcpy(&bits, job->token[i / CHANNELS] + job->map->channel[i % CHANNELS], 2);
		assert_int_equal(bits, bits_of(job->tensor, job->blocks[0], i));
	}
}

/* Poll until all are back, each once. */
static void work_finish(struct work *work, const struct region *region)
{
	uint32_t polls = 0;

	while (work->done_count < work->jobs_count) {
		struct deliver_job *done[5];
		uint32_t n = region->ops->poll(&work->queue, done, 5);

		for (uint32_t i = 0; i < n; i++) {
			assert_ptr_equal(done[i]->owner, work);
			done[i]->owner = NULL;
			assert_true(done[i]->status == 0 || done[i]->status == -EIO);
			work->failed_count += done[i]->status != 0;
			if (done[i]->direction == DELIVER_OUT && !done[i]->status)
				work_check(done[i]);
		}
		work->done_count += n;
		if (n == 0 && ++polls > 2000000)
			fail_msg("%u of %u jobs came back", work->done_count, work->jobs_count);
		if (n == 0)
			usleep(10);
	}
	assert_null(work->queue.lanes[DELIVER_LANES_CUDA]);
	free(work);
}

static void move_blocks(const struct region *region, uint32_t worker, const uint8_t wanted[BLOCKS],
			enum deliver_direction direction)
{
	for (uint32_t block = 0; block < BLOCKS; block++) {
		struct work *work;

		if (!wanted[block])
			continue;
		work = work_make(worker);
		for (uint32_t tensor = 0; tensor < TENSORS;)
			tensor += work_group(work, region, tensor, block, direction);
		work_finish(work, region);
	}
}

static void check_gpu(const struct gpu *gpu, const uint8_t wanted[BLOCKS])
{
	const uint8_t *memory = gpu_memory(gpu);

	for (uint32_t i = 0; i < GPU_OFFSET; i++)
		assert_int_equal(memory[i], 0xab);
	for (uint32_t k = 0; k < BLOCKS * TENSORS; k++) {
		const uint8_t *at = memory + GPU_OFFSET + k * ONE;

		for (uint32_t i = 0; i < BLOCK_TOKENS * CHANNELS; i++) {
			uint16_t bits;

			memcpy(&bits, at + 2ul * i, 2);
			assert_int_equal(bits, wanted[k / TENSORS]
						   ? bits_of(k % TENSORS, k / TENSORS, i)
						   : 0xabab);
		}
	}
}

/* ---- tests ---------------------------------------------------------------------------------- */

static void blocks_come_and_go_whole(void **state)
{
	struct gpu gpu = gpu_make(1);
	struct region *region = attach(&gpu.offer);
	uint8_t wanted[BLOCKS];

	(void)state;
	for (uint32_t i = 0; i < BLOCKS; i++)
		wanted[i] = random_next() % 2;
	standin->delay_us_max = 50;
	standin->shortest_copy = 0;
	move_blocks(region, 0, wanted, DELIVER_IN);
	check_gpu(&gpu, wanted);
	move_blocks(region, 1, wanted, DELIVER_OUT);
	assert_true(standin->shortest_copy == 0 || standin->shortest_copy >= 64 * KIB);
	region_detach(region);
	gpu_free(gpu.pointer);
	nothing_is_left();
}

static void neighbours_are_joined_to_64_kib(void **state)
{
	struct gpu gpu = gpu_make(0);
	struct region *region = attach(&gpu.offer);

	(void)state;
	for (uint32_t tensor = 0; tensor < TENSORS; tensor += 2)
		assert_int_equal(region->ops->join(region, tensor), 2);
	region_detach(region);
	gpu_free(gpu.pointer);
	nothing_is_left();
}

static void bytes_in_flight_have_a_limit(void **state)
{
	struct gpu gpu = gpu_make(0);
	struct region *region = attach(&gpu.offer);
	struct work *work = work_make(0);

	(void)state;
	standin->delay_us_max = 0;
	standin->flight_bytes_max = 0;
	for (uint32_t k = 0; k < JOBS_MAX / 2; k++)
		work_group(work, region, 2 * (k % LAYERS), k % BLOCKS, DELIVER_IN);
	work_finish(work, region);
	assert_true(standin->flight_bytes_max > 0);
	assert_true(standin->flight_bytes_max <= 16 * MIB + 2 * ONE);
	region_detach(region);
	gpu_free(gpu.pointer);
	nothing_is_left();
}

struct worker {
	struct region *region;
	uint32_t index;
	uint8_t wanted[BLOCKS];
};

static void *worker_run(void *argument)
{
	struct worker *worker = argument;

	for (uint32_t round = 0; round < 5; round++) {
		move_blocks(worker->region, worker->index, worker->wanted, DELIVER_IN);
		move_blocks(worker->region, worker->index, worker->wanted, DELIVER_OUT);
	}
	return NULL;
}

static void workers_do_not_meet(void **state)
{
	struct gpu gpu = gpu_make(0);
	struct region *region = attach(&gpu.offer);
	struct worker workers[2] = {{.region = region}, {.region = region, .index = 1}};
	uint8_t all[BLOCKS];
	pthread_t threads[2];

	(void)state;
	standin->delay_us_max = 20;
	for (uint32_t i = 0; i < BLOCKS; i++)
		workers[i % 2].wanted[i] = all[i] = 1;
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, worker_run, &workers[i]), 0);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	check_gpu(&gpu, all);
	region_detach(region);
	gpu_free(gpu.pointer);
	nothing_is_left();
}

/* Whatever ends the context: every job comes back once, with -EIO, later ones too; and when the
 * region was given up, a new one works. */
static void break_with(const char *call, uint32_t after, uint32_t lose)
{
	struct gpu gpu = gpu_make(0);
	struct region *region = attach(&gpu.offer);
	struct work *work = work_make(0);
	uint8_t wanted[BLOCKS] = {[3] = 1};

	standin->delay_us_max = 30;
	snprintf(standin->fail_call, sizeof(standin->fail_call), "%s", call);
	standin->fail_after = after;
	standin->lose_context = lose;
	for (uint32_t k = 0; k < 8; k++)
		work_group(work, region, 2 * (k % LAYERS), k, DELIVER_IN);
	work_finish(work, region);
	work = work_make(0);
	work_group(work, region, 0, 1, DELIVER_IN);
	assert_int_equal(work->queue.first->status, -EIO);
	work_finish(work, region);
	assert_int_equal(standin->fail_after, 0);
	region_detach(region);
	gpu_free(gpu.pointer);
	nothing_is_left();
	gpu = gpu_make(0);
	region = attach(&gpu.offer);
	move_blocks(region, 0, wanted, DELIVER_IN);
	check_gpu(&gpu, wanted);
	region_detach(region);
	gpu_free(gpu.pointer);
	nothing_is_left();
}

static void a_lost_gpu_gives_every_job_back(void **state)
{
	(void)state;
	if (getenv("STANDIN_CUDA_OLD"))
		break_with("cuMemcpyHtoDAsync", 3, 0);
	else
		break_with("cuMemcpyBatchAsync", 3, 0);
	break_with("cuEventRecord", 4, 0);
	break_with("cuEventQuery", 6, 0);
	break_with("", 0, 1);
}

/* A GPU that says "not ready" for ever: its jobs come back, with the warning that their staging
 * memory may still be used; the region's session must end; nothing waits; a new region is refused.
 * The GPU stays as it is, so that this test is the last one on it. */
static void a_gpu_that_hangs_is_given_up(void **state)
{
	const struct deliver_host host = {.memory = stage, .bytes = STAGE, .workers_count = 2};
	struct gpu gpu = gpu_make(1);
	struct region *region = attach(&gpu.offer), *other = NULL;
	struct work *work = work_make(0);
	struct ssv_layout layout = make_layout();
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct deliver_job *done[64];
	uint32_t n;

	(void)state;
	standin->hang = 1;
	work->queue.now_ns = 1000;
	for (uint32_t k = 0; k < 4; k++)
		work_group(work, region, 2 * (k % LAYERS), k, k % 2 ? DELIVER_OUT : DELIVER_IN);
	work->queue.now_ns += 9ull * 1000000000;
	assert_int_equal(region->ops->poll(&work->queue, done, 64), 0);
	assert_false(region_is_severed(region));
	work->queue.now_ns += 2ull * 1000000000;
	n = region->ops->poll(&work->queue, done, 64);
	assert_int_equal(n, work->jobs_count);
	for (uint32_t i = 0; i < n; i++)
		assert_int_equal(done[i]->status, -EBUSY);
	assert_true(region_is_severed(region));
	assert_null(work->queue.lanes[DELIVER_LANES_CUDA]);
	free(work);
	work = work_make(0);
	work_group(work, region, 0, 1, DELIVER_IN);
	assert_int_equal(work->queue.first->status, -EIO);
	work_finish(work, region);
	assert_int_equal(region_attach(&gpu.offer, &layout,
				       &(struct deliver_owner){.pid = getpid()}, &host, &other,
				       error),
			 -EIO);
	assert_non_null(strstr(error, "must be restarted"));
	region_detach(region);
	/* Left hanging, as a real one would be: what was given up must never be written again. */
}

static void refused(const struct ssv_region *offer, int expected, const char *word)
{
	const struct deliver_host host = {.memory = stage, .bytes = STAGE, .workers_count = 2};
	struct ssv_layout layout = make_layout();
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct region *region = NULL;

	assert_int_equal(region_attach(offer, &layout, &(struct deliver_owner){.pid = getpid()},
				       &host, &region, error),
			 expected);
	if (!strstr(error, word))
		fail_msg("\"%s\" does not say \"%s\"", error, word);
}

static void every_refusal_leaves_nothing(void **state)
{
	static const char *const calls[] = {"cuDevicePrimaryCtxRetain", "cuMemHostRegister",
					    "cuStreamCreateWithPriority", "cuEventCreate",
					    "cuIpcOpenMemHandle"};
	struct gpu gpu = gpu_make(0);
	struct ssv_region offer = gpu.offer;

	(void)state;
	memset(offer.gpu_uuid, 1, sizeof(offer.gpu_uuid));
	refused(&offer, -ENODEV, "none of the 2");
	offer = gpu.offer;
	memset(offer.gpu_handle, 0xff, sizeof(offer.gpu_handle));
	refused(&offer, -EINVAL, "handle");
	offer = gpu.offer;
	offer.gpu_offset += 4096;
	refused(&offer, -ERANGE, "allocation has");
	offer.gpu_offset = UINT64_MAX;
	refused(&offer, -ERANGE, "allocation has");
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		snprintf(standin->fail_call, sizeof(standin->fail_call), "%s", calls[i]);
		standin->fail_after = i == 3 ? 70 : i == 2 ? 2 : 1;
		refused(&gpu.offer, i == 4 ? -EINVAL : -EIO, "bad value");
		assert_int_equal(standin->fail_after, 0);
	}
	gpu_free(gpu.pointer);
	nothing_is_left();
}

static void short_copies_are_refused(void **state)
{
	const struct deliver_host host = {.memory = stage, .bytes = STAGE, .workers_count = 2};
	struct ssv_layout layout = make_layout();
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct gpu gpu = gpu_make(0);
	struct region *region = NULL;

	(void)state;
	/* Heads outermost in the region: runs of 16 tokens x 128 = 4 KiB. */
	for (uint32_t i = 0; i < 2; i++) {
		layout.parts[i].digits[0].stride = DIM;
		layout.parts[i].digits[1].stride = (int64_t)BLOCKS * TENSORS * BLOCK_TOKENS * DIM;
	}
	for (uint32_t i = 0; i < TENSORS; i++) {
		tensors[i].offset = (uint64_t)i * BLOCK_TOKENS * DIM * 2;
		tensors[i].block_stride = (uint64_t)TENSORS * BLOCK_TOKENS * DIM * 2;
	}
	assert_int_equal(region_attach(&gpu.offer, &layout,
				       &(struct deliver_owner){.pid = getpid()}, &host, &region,
				       error),
			 -ENOTSUP);
	assert_non_null(strstr(error, "4096 bytes"));
	gpu_free(gpu.pointer);
	nothing_is_left();
}

static void a_descriptor_is_mapped(void **state)
{
	static const char *const calls[] = {"cuMemMap", "cuMemSetAccess"};
	int fd = memfd_create("vmm", MFD_CLOEXEC);
	struct ssv_region offer = {.memory = SSV_MEMORY_GPU_FD, .bytes = REGION};
	const uint64_t bytes = align_up(REGION, 2 * MIB);
	uint8_t wanted[BLOCKS] = {1, [7] = 1};
	struct region *region;
	struct gpu gpu;
	void *memory;

	(void)state;
	assert_true(fd >= 0 && ftruncate(fd, (off_t)(bytes + 2 * MIB)) == 0);
	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(memory != MAP_FAILED);
	memset(memory, 0xab, bytes);
	memset(offer.gpu_uuid, STANDIN_UUID_BYTE(0), sizeof(offer.gpu_uuid));
	offer.fd = fd;
	offer.gpu_offset = GPU_OFFSET;
	region = attach(&offer);
	move_blocks(region, 0, wanted, DELIVER_IN);
	move_blocks(region, 0, wanted, DELIVER_OUT);
	gpu.pointer = (uintptr_t)memory;
	check_gpu(&gpu, wanted);
	region_detach(region);
	nothing_is_left();
	for (size_t i = 0; i < 2; i++) {
		snprintf(standin->fail_call, sizeof(standin->fail_call), "%s", calls[i]);
		standin->fail_after = 1;
		refused(&offer, -EINVAL, "bad value");
		nothing_is_left();
	}
	offer.fd = -1;
	refused(&offer, -EINVAL, "descriptor");
	munmap(memory, bytes);
	close(fd);
	nothing_is_left();
}

static int setup(void **state)
{
	const char *text = getenv("SSV_SEED");

	(void)state;
	if (rig_open())
		return -1;
	seed = text ? strtoull(text, NULL, 0) : (uint64_t)getpid();
	print_message("SSV_SEED=%llu\n", (unsigned long long)seed);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	rig_close();
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(blocks_come_and_go_whole),
	    cmocka_unit_test(neighbours_are_joined_to_64_kib),
	    cmocka_unit_test(bytes_in_flight_have_a_limit),
	    cmocka_unit_test(workers_do_not_meet),
	    cmocka_unit_test(a_lost_gpu_gives_every_job_back),
	    cmocka_unit_test(every_refusal_leaves_nothing),
	    cmocka_unit_test(short_copies_are_refused),
	    cmocka_unit_test(a_descriptor_is_mapped),
	    cmocka_unit_test(a_gpu_that_hangs_is_given_up),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
