/* SPDX-License-Identifier: Apache-2.0 */
/* rdma_ends.c - owner, card and jobs of rdma_ends.h. */
#include "rdma_ends.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "base/clock.h"

static uint8_t *large_stage;
static uint64_t seed;

static uint64_t random_step(uint64_t *state)
{
	*state = *state * 6364136223846793005ull + 1442695040888963407ull;
	return *state >> 33;
}

uint64_t random_next(void)
{
	return random_step(&seed);
}

static int has_device(void)
{
	static uint8_t memory[4096];
	const struct rdma_owner_config config = {
	    .memory = memory, .bytes = sizeof(memory), .lanes_count = 1};
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct rdma_owner *owner = NULL;
	struct blob offer;

	if (rdma_owner_open(&config, &owner, &offer, error)) {
		printf("skip: %s\n", error);
		return 0;
	}
	return rdma_owner_close(owner) == 0;
}

int ends_begin(void)
{
	const char *text = getenv("SSV_SEED");

	if (!has_device())
		return 77;
	seed = text ? strtoull(text, NULL, 0) : 1;
	print_message("SSV_SEED=%llu\n", (unsigned long long)seed);
	large_stage = aligned_alloc(4096, STAGE_BYTES);
	if (!large_stage)
		return 1;
	memset(large_stage, 0, STAGE_BYTES);
	signal(SIGPIPE, SIG_IGN);
	return 0;
}

/* ---- both ends ------------------------------------------------------------------------------ */

struct memory memory_make(uint64_t bytes)
{
	struct memory memory = {.bytes = align_up(bytes, CANARY)};

	memory.map = mmap(NULL, memory.bytes + 2 * CANARY, PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(memory.map != MAP_FAILED);
	memset(memory.map, CANARY_BYTE, memory.bytes + 2 * CANARY);
	memory.region = memory.map + CANARY;
	return memory;
}

static void canaries_live(const struct memory *memory)
{
	for (uint32_t i = 0; i < CANARY; i++) {
		assert_int_equal(memory->map[i], CANARY_BYTE);
		assert_int_equal(memory->map[CANARY + memory->bytes + i], CANARY_BYTE);
	}
}

void memory_free(struct memory *memory)
{
	canaries_live(memory);
	munmap(memory->map, memory->bytes + 2 * CANARY);
}

struct rdma_owner *owner_open(const struct memory *memory, uint64_t bytes, struct blob *ret_offer)
{
	const struct rdma_owner_config config = {
	    .memory = memory->region, .bytes = bytes, .lanes_count = 4};
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct rdma_owner *owner = NULL;

	if (rdma_owner_open(&config, &owner, ret_offer, error))
		fail_msg("%s", error);
	return owner;
}

static struct ssv_layout large_layout(void)
{
	static struct ssv_tensor tensors[2];
	struct ssv_layout layout = {
	    .struct_size = sizeof(layout),
	    .dtype = SSV_DTYPE_BF16,
	    .parts_count = 2,
	    .layers_count = 1,
	    .layers_total = 1,
	    .ranks_count = 1,
	    .block_tokens = BLOCK_TOKENS,
	    .blocks_count = LARGE_BLOCKS,
	    .tensors_count = 2,
	    .tensors = tensors,
	};

	for (uint32_t i = 0; i < 2; i++) {
		struct ssv_part *part = &layout.parts[i];

		*part = (struct ssv_part){
		    .role = (uint8_t)(SSV_ROLE_K + i),
		    .heads = LARGE_HEADS,
		    .dim = LARGE_DIM,
		    .digits_count = 3,
		    .digits = {{.axis = SSV_AXIS_TOKEN,
				.extent = BLOCK_TOKENS,
				.stride = LARGE_HEADS * LARGE_DIM},
			       {.axis = SSV_AXIS_HEAD, .extent = LARGE_HEADS, .stride = LARGE_DIM},
			       {.axis = SSV_AXIS_DIM, .extent = LARGE_DIM, .stride = 1}},
		};
		tensors[i] = (struct ssv_tensor){
		    .part = (uint16_t)i, .offset = i * LARGE_ONE, .block_stride = 2 * LARGE_ONE};
	}
	return layout;
}

int card_try(const struct blob *offered, int large, struct blob *ret_answer,
	     struct region **ret_region, char *error)
{
	const struct deliver_host large_host = {
	    .memory = large_stage, .bytes = STAGE_BYTES, .workers_count = WORKERS};
	const struct ssv_layout layout = large ? large_layout() : blocks_layout();
	const struct ssv_region offer = {
	    .memory = SSV_MEMORY_RDMA, .fd = -1, .bytes = large ? LARGE_REGION : REGION};
	const struct deliver_owner owner = {.offered = offered, .answer = ret_answer};

	return region_attach(&offer, &layout, &owner, large ? &large_host : &blocks_host,
			     ret_region, error);
}

struct region *card_attach(const struct blob *offered, int large, struct blob *ret_answer)
{
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct region *region = NULL;

	if (card_try(offered, large, ret_answer, &region, error))
		fail_msg("%s", error);
	return region;
}

void owner_connect(struct rdma_owner *owner, const struct blob *answer)
{
	char error[SSV_ERROR_TEXT_MAX] = "";

	if (rdma_owner_connect(owner, answer, error))
		fail_msg("%s", error);
}

struct pair pair_make(int large)
{
	const uint64_t bytes = large ? LARGE_REGION : REGION;
	struct pair pair = {.memory = memory_make(bytes)};
	struct blob offer, answer;

	pair.owner = owner_open(&pair.memory, bytes, &offer);
	pair.region = card_attach(&offer, large, &answer);
	owner_connect(pair.owner, &answer);
	return pair;
}

void pair_end(struct pair *pair)
{
	region_detach(pair->region);
	assert_int_equal(rdma_owner_close(pair->owner), 0);
	memory_free(&pair->memory);
}

/* ---- jobs on the large memory --------------------------------------------------------------- */

static uint32_t word_of(uint32_t tensor, uint32_t block, uint32_t round, uint32_t i)
{
	return (tensor << 31 ^ block << 16) + round * 2654435761u + i * 40503u + 1;
}

static void fill(uint8_t *to, uint32_t tensor, uint32_t block, uint32_t round)
{
	for (uint32_t i = 0; i < LARGE_ONE / 4; i++) {
		uint32_t word = word_of(tensor, block, round, i);

		memcpy(to + i * 4, &word, 4);
	}
}

static int is_filled(const uint8_t *from, uint32_t tensor, uint32_t block, uint32_t round)
{
	for (uint32_t i = 0; i < LARGE_ONE / 4; i++) {
		uint32_t word;

		memcpy(&word, from + i * 4, 4);
		if (word != word_of(tensor, block, round, i))
			return 0;
	}
	return 1;
}

struct work *work_make(const struct region *region, uint32_t worker)
{
	struct work *work = calloc(1, sizeof(*work));

	assert_non_null(work);
	work->region = region;
	work->queue.worker = worker;
	work->random = random_next();
	return work;
}

/* Blocks of a job: of the worker's half, one after another or in any order. */
static void blocks_choose(struct work *work, uint32_t k, int ordered)
{
	const uint32_t half = LARGE_BLOCKS / WORKERS, base = work->queue.worker * half;
	/* Jobs of a pair share blocks, not tensors; a pair's blocks are its own. */
	const uint32_t first = k / 2 * JOB_BLOCKS % half;

	for (uint32_t i = 0; i < JOB_BLOCKS; i++)
		work->blocks[k][i] = base + first + i;
	for (uint32_t i = JOB_BLOCKS - 1; i && !ordered; i--) {
		uint32_t other = (uint32_t)(random_step(&work->random) % (i + 1)),
			 kept = work->blocks[k][i];

		work->blocks[k][i] = work->blocks[k][other];
		work->blocks[k][other] = kept;
	}
}

void work_submit(struct work *work, enum deliver_direction direction, int ordered)
{
	const uint32_t k = work->jobs_count++;
	struct deliver_job *job = &work->jobs[k];
	uint8_t *stage = large_stage + (work->queue.worker * JOBS + k) * (uint64_t)JOB_BYTES;

	blocks_choose(work, k, ordered);
	*job = (struct deliver_job){.region = work->region,
				    .tensor = k % 2,
				    .direction = (uint8_t)direction,
				    .blocks = work->blocks[k],
				    .blocks_count = JOB_BLOCKS,
				    .stage = stage,
				    .token = work->tokens[k]};
	assert_int_equal(work->region->ops->stage_bytes(work->region, k % 2, JOB_BLOCKS),
			 JOB_BYTES);
	work->region->ops->open(job);
	for (uint32_t i = 0; i < JOB_BLOCKS && direction == DELIVER_IN; i++)
		fill(stage + i * LARGE_ONE, k % 2, work->blocks[k][i], work->round);
	work->region->ops->submit(&work->queue, job);
}

uint32_t work_poll(struct work *work)
{
	struct deliver_job *done[4];
	uint32_t n = work->region->ops->poll(&work->queue, done, 4);

	for (uint32_t i = 0; i < n; i++) {
		work->done_count++;
		if (done[i]->status && !work->failed_count++)
			work->status = done[i]->status;
	}
	return n;
}

void work_finish(struct work *work)
{
	const uint64_t end_ns = clock_now_ns() + LIMIT_NS;

	while (work->done_count < work->jobs_count) {
		work_poll(work);
		assert_true(clock_now_ns() < end_ns);
	}
	assert_int_equal(work_poll(work), 0);
	assert_null(work->queue.lanes[DELIVER_LANES_RDMA]);
}

void work_again(struct work *work)
{
	work->jobs_count = 0;
	work->done_count = 0;
	work->failed_count = 0;
	work->round++;
}

static const uint8_t *place_of(const struct memory *memory, uint32_t tensor, uint32_t block)
{
	return memory->region + (2ull * block + tensor) * LARGE_ONE;
}

/* Every job's blocks are in place: IN in memory, OUT in staging memory. */
void work_check(const struct work *work, const struct memory *memory, uint32_t round)
{
	for (uint32_t k = 0; k < work->jobs_count; k++) {
		const struct deliver_job *job = &work->jobs[k];

		for (uint32_t i = 0; i < JOB_BLOCKS; i++) {
			const uint32_t block = work->blocks[k][i];
			const uint8_t *at = job->direction == DELIVER_IN
						? place_of(memory, job->tensor, block)
						: job->stage + i * LARGE_ONE;

			assert_true(is_filled(at, job->tensor, block, round));
		}
	}
}
