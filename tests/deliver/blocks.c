/* SPDX-License-Identifier: Apache-2.0 */
/* blocks.c - the blocks of blocks.h: what lies where, and moving them. */
#include "blocks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"

#define LIMIT_NS (60 * NS_PER_S) /* only ends what hangs */

static _Alignas(4096) uint8_t stage[4096];

const struct deliver_host blocks_host = {
    .memory = stage, .bytes = sizeof(stage), .workers_count = 2};

static struct ssv_tensor tensors[2];

struct ssv_layout blocks_layout(void)
{
	const uint32_t half = BLOCK_TOKENS * DIM;
	struct ssv_layout layout = {
	    .struct_size = sizeof(layout),
	    .dtype = SSV_DTYPE_BF16,
	    .parts_count = 2,
	    .layers_count = 1,
	    .layers_total = 1,
	    .ranks_count = 1,
	    .block_tokens = BLOCK_TOKENS,
	    .blocks_count = BLOCKS,
	    .tensors_count = 2,
	    .tensors = tensors,
	};

	for (uint32_t i = 0; i < 2; i++) {
		struct ssv_part *part = &layout.parts[i];

		part->role = (uint8_t)(SSV_ROLE_K + i);
		part->heads = HEADS;
		part->dim = DIM;
		part->digits_count = 3;
		part->digits[0] = (struct ssv_digit){
		    .axis = SSV_AXIS_TOKEN, .extent = BLOCK_TOKENS, .stride = i ? DIM : 1};
		part->digits[1] = (struct ssv_digit){
		    .axis = SSV_AXIS_DIM, .extent = DIM, .stride = i ? 1 : BLOCK_TOKENS};
		part->digits[2] =
		    (struct ssv_digit){.axis = SSV_AXIS_HEAD, .extent = HEADS, .stride = 2 * half};
		tensors[i] = (struct ssv_tensor){
		    .part = (uint16_t)i, .offset = i * half * 2, .block_stride = 2 * ONE};
	}
	return layout;
}

static uint64_t place(uint32_t tensor, uint32_t block, uint32_t token, uint32_t channel)
{
	const uint32_t half = BLOCK_TOKENS * DIM, head = channel / DIM, dim = channel % DIM;

	return block * 2 * ONE + tensor * half * 2 +
	       2ull * (head * 2 * half + (tensor ? token * DIM + dim : dim * BLOCK_TOKENS + token));
}

static uint16_t bits_of(uint32_t tensor, uint32_t token, uint32_t channel)
{
	return (uint16_t)(tensor * 20000 + token * 100 + channel + 1);
}

/* What a decoder does: each element to its token's address plus its channel's offset. */
static void write_elements(const struct deliver_job *job, uint32_t tokens_count,
			   const uint8_t *canonical)
{
	const uint32_t element = job->region->layout->element_bytes;

	for (uint32_t i = 0; i < tokens_count * CHANNELS; i++)
		memcpy(job->token[i / CHANNELS] + job->map->channel[i % CHANNELS],
		       canonical + (size_t)i * element, element);
}

int blocks_move(const struct region *region, uint32_t tensor, enum deliver_direction direction)
{
	const uint32_t blocks[2] = {4, 1};
	uint8_t *token[2 * BLOCK_TOKENS];
	struct deliver_queue queue = {0};
	struct deliver_job *done[2];
	uint32_t n = 0;
	uint16_t canonical[2 * BLOCK_TOKENS * CHANNELS];
	struct deliver_job job = {
	    .region = region,
	    .tensor = tensor,
	    .direction = (uint8_t)direction,
	    .blocks = blocks,
	    .blocks_count = 2,
	    .stage = region->ops->stage_bytes(region, tensor, 2) ? stage : NULL,
	    .token = token,
	};

	assert_true(region->ops->stage_bytes(region, tensor, 2) <= sizeof(stage));
	region->ops->open(&job);
	for (uint32_t i = 0; i < 2 * BLOCK_TOKENS * CHANNELS; i++)
		canonical[i] = bits_of(tensor, i / CHANNELS, i % CHANNELS);
	if (direction == DELIVER_IN)
		write_elements(&job, 2 * BLOCK_TOKENS, (uint8_t *)canonical);
	region->ops->submit(&queue, &job);
	for (uint64_t end_ns = clock_now_ns() + LIMIT_NS; !n;
	     n = region->ops->poll(&queue, done, 2))
		assert_true(clock_now_ns() < end_ns);
	assert_int_equal(n, 1);
	assert_ptr_equal(done[0], &job);
	assert_int_equal(region->ops->poll(&queue, done, 2), 0);
	if (job.status || direction == DELIVER_IN)
		return job.status;
	memset(canonical, 0, sizeof(canonical));
	deliver_gather(&job, 2 * BLOCK_TOKENS, (uint8_t *)canonical);
	for (uint32_t i = 0; i < 2 * BLOCK_TOKENS * CHANNELS; i++)
		assert_int_equal(canonical[i], bits_of(tensor, i / CHANNELS, i % CHANNELS));
	return 0;
}

void blocks_check(const uint8_t *memory)
{
	for (uint32_t block = 0; block < BLOCKS; block++) {
		for (uint32_t i = 0; i < 2 * BLOCK_TOKENS * CHANNELS; i++) {
			uint32_t tensor = i / (BLOCK_TOKENS * CHANNELS);
			uint32_t token = i / CHANNELS % BLOCK_TOKENS, channel = i % CHANNELS;
			uint16_t bits, expected = 0xabab;

			memcpy(&bits, memory + place(tensor, block, token, channel), 2);
			if (block == 4)
				expected = bits_of(tensor, token, channel);
			if (block == 1)
				expected = bits_of(tensor, BLOCK_TOKENS + token, channel);
			assert_int_equal(bits, expected);
		}
	}
}
