/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_tcp.c - the card's side of the tcp way: blocks in and out through a real relay's receiver,
 * and relays that lie, fall silent or go. test_tcp_relay.c has the other side.
 */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "blocks.h"
#include "tcp_rig.h"

#define RIG_BYTES (align_up(REGION, 4096))

static struct region *attach(const struct blob *blob)
{
	const struct ssv_region offer = {.memory = SSV_MEMORY_TCP, .bytes = REGION};
	const struct ssv_layout layout = blocks_layout();
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct blob answer = {0};
	struct deliver_owner owner = {.offered = blob, .answer = &answer};
	struct region *region = NULL;

	assert_int_equal(region_attach(&offer, &layout, &owner, &blocks_host, &region, error), 0);
	assert_int_equal(answer.bytes, 0);
	return region;
}

static void blocks_travel_in_and_out(void **state)
{
	struct tcp_rig rig;
	struct region *region;
	uint64_t one_way, moved = 0;

	(void)state;
	tcp_rig_open(&rig, RIG_BYTES);
	region = attach(&rig.blob);
	one_way = region->ops->stage_bytes(region, 0, 2) + region->ops->stage_bytes(region, 1, 2);
	for (uint32_t round = 0; round < 50; round++) {
		memset(rig.map, RIG_CANARY, rig.bytes);
		for (uint32_t tensor = 0; tensor < 2; tensor++)
			assert_int_equal(blocks_move(region, tensor, DELIVER_IN), 0);
		tcp_rig_await_moved(&rig, moved += one_way);
		blocks_check(rig.map);
		for (uint32_t tensor = 0; tensor < 2; tensor++)
			assert_int_equal(blocks_move(region, tensor, DELIVER_OUT), 0);
		tcp_rig_await_moved(&rig, moved += one_way);
	}
	for (uint64_t i = REGION; i < rig.bytes; i++)
		assert_int_equal(rig.map[i], RIG_CANARY);
	assert_false(region_is_severed(region));
	region_detach(region);
	tcp_rig_close(&rig);
}

/* The relay takes the memory back: the card's next job fails, and nothing is written. */
static void revoked_memory_is_not_reached(void **state)
{
	struct tcp_rig rig;
	struct region *region, *late;

	(void)state;
	tcp_rig_open(&rig, RIG_BYTES);
	region = attach(&rig.blob);
	assert_int_equal(blocks_move(region, 0, DELIVER_IN), 0);
	tcp_rig_revoke(&rig);
	memset(rig.map, RIG_CANARY, rig.bytes);
	assert_int_equal(blocks_move(region, 1, DELIVER_IN), -EIO);
	assert_true(region_is_severed(region));
	assert_int_equal(blocks_move(region, 0, DELIVER_OUT), -EIO);
	late = attach(&rig.blob);
	assert_int_equal(blocks_move(late, 0, DELIVER_IN), -EIO);
	assert_true(tcp_rig_is_untouched(&rig));
	region_detach(region);
	region_detach(late);
	tcp_rig_close(&rig);
}

static void offers_that_mean_nothing_are_refused(void **state)
{
	const struct ssv_region offer = {.memory = SSV_MEMORY_TCP, .bytes = REGION};
	const struct ssv_layout layout = blocks_layout();
	struct tcp_offer good = {
	    .version = htole16(TCP_VERSION), .family = htole16(4), .port = htole16(9)};
	struct tcp_offer bad[5];
	struct blob blob = {.bytes = sizeof(good)};
	struct deliver_owner owner = {.offered = &blob};
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct region *region;

	(void)state;
	memcpy(good.magic, TCP_MAGIC, sizeof(good.magic));
	for (size_t i = 0; i < ARRAY_COUNT(bad); i++)
		bad[i] = good;
	bad[0].magic[3] ^= 1;
	bad[1].version = htole16(TCP_VERSION + 1);
	bad[2].family = htole16(5);
	bad[3].port = 0;
	bad[4].reserved = 1;
	for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
		memcpy(blob.data, &bad[i], sizeof(bad[i]));
		assert_int_equal(
		    region_attach(&offer, &layout, &owner, &blocks_host, &region, error), -EINVAL);
		assert_true(error[0]);
	}
	blob.bytes = sizeof(good) - 1;
	assert_int_equal(region_attach(&offer, &layout, &owner, &blocks_host, &region, error),
			 -EINVAL);
	owner.offered = NULL;
	assert_int_equal(region_attach(&offer, &layout, &owner, &blocks_host, &region, error),
			 -EINVAL);
}

/* ---- relays that lie ------------------------------------------------------------------------ */

struct liar {
	int listener, fd;
	struct blob blob;
};

static void liar_open(struct liar *liar)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t bytes = sizeof(address);
	struct tcp_offer offer = {.version = htole16(TCP_VERSION), .family = htole16(4)};

	liar->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(liar->listener, (struct sockaddr *)&address, bytes), 0);
	assert_int_equal(listen(liar->listener, 8), 0);
	assert_int_equal(getsockname(liar->listener, (struct sockaddr *)&address, &bytes), 0);
	memcpy(offer.magic, TCP_MAGIC, sizeof(offer.magic));
	memcpy(offer.address, &address.sin_addr, 4);
	offer.port = htole16(ntohs(address.sin_port));
	liar->blob.bytes = sizeof(offer);
	memcpy(liar->blob.data, &offer, sizeof(offer));
}

/* Submit a job, let the relay say `words` (or close, if there are none), and see what becomes of
 * it. `later_ns`: how much later poll is called. */
static int job_against(const struct tcp_answer *words, size_t words_count,
		       enum deliver_direction direction, uint64_t later_ns)
{
	static uint8_t stage[2 * ONE];
	const uint32_t blocks[2] = {0, 5};
	uint8_t *token[2 * BLOCK_TOKENS];
	struct deliver_queue queue = {.now_ns = clock_now_ns()};
	const uint64_t end_ns = queue.now_ns + RIG_LIMIT_NS;
	struct deliver_job *done[1];
	struct liar liar;
	struct region *region;
	struct deliver_job job = {
	    .direction = (uint8_t)direction,
	    .blocks = blocks,
	    .blocks_count = 2,
	    .stage = stage,
	    .token = token,
	};

	liar_open(&liar);
	job.region = region = attach(&liar.blob);
	region->ops->open(&job);
	region->ops->submit(&queue, &job);
	liar.fd = accept(liar.listener, NULL, NULL);
	assert_true(liar.fd >= 0);
	tcp_rig_send(liar.fd, words, words_count * sizeof(*words));
	if (!words_count && !later_ns)
		close(liar.fd);
	queue.now_ns += later_ns;
	while (!region->ops->poll(&queue, done, 1))
		assert_true(clock_now_ns() < end_ns);
	assert_ptr_equal(done[0], &job);
	assert_int_equal(region_is_severed(region), job.status != 0);
	if (words_count || later_ns)
		close(liar.fd);
	close(liar.listener);
	region_detach(region);
	return job.status;
}

static struct tcp_answer answer(uint32_t kind, uint64_t sequence, uint64_t bytes)
{
	return (struct tcp_answer){
	    .kind = htole32(kind), .sequence = htole64(sequence), .bytes = htole64(bytes)};
}

static void lies_of_a_relay_end_the_region(void **state)
{
	const struct tcp_answer lies[] = {
	    answer(TCP_ACK, 2, 0), answer(TCP_ACK, UINT64_MAX, 0), answer(TCP_ACK, 0, 0),
	    answer(TCP_ACK, 1, 8), answer(TCP_DATA, 1, 2 * ONE),   answer(TCP_WRITE, 1, 0),
	    answer(77, 1, 0),
	};
	const struct tcp_answer reads[] = {answer(TCP_ACK, 1, 0), answer(TCP_DATA, 1, 2 * ONE + 1),
					   answer(TCP_DATA, 1, 0), answer(TCP_DATA, 2, 2 * ONE),
					   answer(TCP_DATA, 0, 2 * ONE)};
	const struct tcp_answer honest = answer(TCP_ACK, 1, 0);

	(void)state;
	assert_int_equal(job_against(&honest, 1, DELIVER_IN, 0), 0);
	for (size_t i = 0; i < ARRAY_COUNT(lies); i++)
		assert_int_equal(job_against(&lies[i], 1, DELIVER_IN, 0), -EIO);
	for (size_t i = 0; i < ARRAY_COUNT(reads); i++)
		assert_int_equal(job_against(&reads[i], 1, DELIVER_OUT, 0), -EIO);
}

static void a_relay_that_goes_or_is_silent_ends_the_region(void **state)
{
	(void)state;
	assert_int_equal(job_against(NULL, 0, DELIVER_IN, 0), -EIO);
	assert_int_equal(job_against(NULL, 0, DELIVER_OUT, 0), -EIO);
	assert_int_equal(job_against(NULL, 0, DELIVER_IN, TCP_STALL_NS + 1), -EIO);
	assert_int_equal(job_against(NULL, 0, DELIVER_OUT, TCP_STALL_NS + 1), -EIO);
}

static void a_relay_that_cannot_be_reached_ends_the_region(void **state)
{
	struct liar liar;
	struct region *region;

	(void)state;
	liar_open(&liar);
	close(liar.listener);
	region = attach(&liar.blob);
	assert_false(region_is_severed(region));
	assert_int_equal(blocks_move(region, 0, DELIVER_IN), -EIO);
	assert_true(region_is_severed(region));
	assert_int_equal(blocks_move(region, 0, DELIVER_OUT), -EIO);
	region_detach(region);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(blocks_travel_in_and_out),
	    cmocka_unit_test(revoked_memory_is_not_reached),
	    cmocka_unit_test(offers_that_mean_nothing_are_refused),
	    cmocka_unit_test(lies_of_a_relay_end_the_region),
	    cmocka_unit_test(a_relay_that_goes_or_is_silent_ends_the_region),
	    cmocka_unit_test(a_relay_that_cannot_be_reached_ends_the_region),
	};
	int failed = cmocka_run_group_tests(tests, NULL, NULL);

	return failed + test_tcp_relay();
}
