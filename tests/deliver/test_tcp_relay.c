/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_tcp_relay.c - the relay's side of the tcp way: frames of every shape against a model of the
 * memory, cards that lie, and revocation in the middle of a frame. Guard pages lie around the
 * memory; SSV_SEED repeats a run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tcp_rig.h"

#define BYTES 65536u

static uint64_t state;

static uint32_t rnd(uint32_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (uint32_t)((state >> 16) % below);
}

static int seed_random(void **unused)
{
	const char *text = getenv("SSV_SEED");

	(void)unused;
	state = text ? strtoull(text, NULL, 0) : (uint64_t)time(NULL) * 2654435761u;
	state |= 1;
	print_message("SSV_SEED=%llu\n", (unsigned long long)state);
	return 0;
}

/* ---- frames of every shape ------------------------------------------------------------------ */

/* A stream of frames as a card would send it, what memory must be after it, and what it reads. */
struct script {
	uint8_t out[4 * BYTES];
	size_t out_bytes;
	uint8_t model[BYTES];
	struct tcp_answer asked[64]; /* what READs must be answered */
	uint8_t read[4 * BYTES];
	size_t read_bytes;
	uint32_t asked_count;
	uint64_t sequence;
};

static void script_add(struct script *s, const void *bytes, size_t count)
{
	memcpy(s->out + s->out_bytes, bytes, count);
	s->out_bytes += count;
}

static void script_frame(struct script *s, const struct tcp_rig *rig, enum tcp_kind kind)
{
	const uint32_t runs = 1 + rnd(rnd(4) ? 6 : TCP_RUNS_MAX);
	const uint32_t largest = runs > 16 ? 40 : 1000;
	const uint32_t from = kind == TCP_READ ? BYTES / 2 : 0;
	struct tcp_run list[TCP_RUNS_MAX];
	struct tcp_frame frame;
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < runs; i++) {
		uint32_t n = 1 + rnd(largest);

		/* A READ is not ordered before the WRITEs behind it: halves of their own. */
		list[i] = (struct tcp_run){.offset = htole64(from + rnd(BYTES / 2 - n + 1)),
					   .bytes = htole32(n)};
		bytes += n;
	}
	frame = tcp_rig_frame(rig, kind, ++s->sequence, runs, bytes);
	script_add(s, &frame, sizeof(frame));
	script_add(s, list, runs * sizeof(list[0]));
	for (uint32_t i = 0; i < runs; i++) {
		uint8_t *place = s->model + le64toh(list[i].offset);
		uint32_t n = le32toh(list[i].bytes);

		if (kind == TCP_READ) {
			memcpy(s->read + s->read_bytes, place, n);
			s->read_bytes += n;
			continue;
		}
		for (uint32_t k = 0; k < n; k++)
			place[k] = (uint8_t)rnd(256);
		script_add(s, place, n);
	}
	if (kind == TCP_READ)
		s->asked[s->asked_count++] = (struct tcp_answer){
		    .kind = htole32(TCP_DATA), .sequence = frame.sequence, .bytes = frame.bytes};
}

/* Take answers until the last frame is answered; DATA must be what was asked, in order. */
static void script_answers(const struct script *s, int fd)
{
	uint32_t asked = 0;
	size_t at = 0;
	uint64_t answered = 0;
	uint8_t data[BYTES];

	while (answered < s->sequence) {
		struct tcp_answer answer;

		tcp_rig_receive(fd, &answer, sizeof(answer));
		assert_true(le64toh(answer.sequence) > answered);
		answered = le64toh(answer.sequence);
		assert_true(answered <= s->sequence);
		if (le32toh(answer.kind) == TCP_ACK)
			continue;
		assert_true(asked < s->asked_count);
		assert_memory_equal(&answer, &s->asked[asked], sizeof(answer));
		tcp_rig_receive(fd, data, le64toh(answer.bytes));
		assert_memory_equal(data, s->read + at, le64toh(answer.bytes));
		at += le64toh(answer.bytes);
		asked++;
	}
	assert_int_equal(asked, s->asked_count);
}

static void frames_of_every_shape_land_where_they_say(void **unused)
{
	struct script *s = malloc(sizeof(*s));
	struct tcp_rig rig;

	(void)unused;
	tcp_rig_open(&rig, BYTES);
	for (uint32_t i = BYTES / 2; i < BYTES; i++)
		rig.map[i] = (uint8_t)rnd(256);
	for (uint32_t round = 0; round < 60; round++) {
		int fd = tcp_rig_greet(&rig);
		size_t sent = 0;

		memset(s, 0, sizeof(*s));
		memcpy(s->model, rig.map, BYTES);
		for (uint32_t i = 0; i < 12; i++)
			script_frame(s, &rig,
				     rnd(4) || s->asked_count == TCP_READS_MAX ? TCP_WRITE
									       : TCP_READ);
		while (sent < s->out_bytes) {
			size_t n = 1 + rnd(round % 2 ? 300 : 60000);

			n = n < s->out_bytes - sent ? n : s->out_bytes - sent;
			tcp_rig_send(fd, s->out + sent, n);
			sent += n;
		}
		script_answers(s, fd);
		assert_memory_equal(rig.map, s->model, BYTES);
		close(fd);
	}
	tcp_rig_close(&rig);
	free(s);
}

/* ---- cards that lie ------------------------------------------------------------------------- */

#define RUN(at, n)                                         \
	{                                                  \
		.offset = htole64(at), .bytes = htole32(n) \
	}

static void frames_that_reach_outside_end_the_grant(void **unused)
{
	const struct {
		const char *name;
		uint32_t kind, runs_count, sent;
		uint64_t bytes, sequence;
		struct tcp_run runs[2];
		int other_epoch;
	} lies[] = {
	    {"a byte behind", TCP_WRITE, 1, 1, 8, 1, {RUN(BYTES - 7, 8)}, 0},
	    {"far behind", TCP_WRITE, 1, 1, 8, 1, {RUN(BYTES + 4096, 8)}, 0},
	    {"round the end", TCP_WRITE, 1, 1, 8, 1, {RUN(UINT64_MAX - 3, 8)}, 0},
	    {"the second run", TCP_WRITE, 2, 2, 16, 1, {RUN(0, 8), RUN(BYTES, 8)}, 0},
	    {"a huge length", TCP_WRITE, 1, 1, 0xffffffff, 1, {RUN(0, 0xffffffff)}, 0},
	    {"nothing", TCP_WRITE, 1, 1, 0, 1, {RUN(0, 0)}, 0},
	    {"an empty run", TCP_WRITE, 2, 2, 8, 1, {RUN(0, 8), RUN(0, 0)}, 0},
	    {"more bytes than runs", TCP_WRITE, 1, 1, 9, 1, {RUN(0, 8)}, 0},
	    {"fewer bytes than runs", TCP_WRITE, 1, 1, 7, 1, {RUN(0, 8)}, 0},
	    {"no runs", TCP_WRITE, 0, 0, 8, 1, {RUN(0, 8)}, 0},
	    {"too many runs", TCP_WRITE, TCP_RUNS_MAX + 1, 0, 8, 1, {RUN(0, 8)}, 0},
	    {"runs without end", TCP_WRITE, UINT32_MAX, 0, 8, 1, {RUN(0, 8)}, 0},
	    {"another epoch", TCP_WRITE, 1, 1, 8, 1, {RUN(0, 8)}, 1},
	    {"an old frame", TCP_WRITE, 1, 1, 8, 0, {RUN(0, 8)}, 0},
	    {"a frame too far", TCP_WRITE, 1, 1, 8, 2, {RUN(0, 8)}, 0},
	    {"an answer", TCP_ACK, 1, 1, 8, 1, {RUN(0, 8)}, 0},
	    {"a read outside", TCP_READ, 1, 1, 8, 1, {RUN(BYTES - 7, 8)}, 0},
	    {"a read of everything",
	     TCP_READ,
	     1,
	     1,
	     TCP_FRAME_BYTES_MAX + 1ull,
	     1,
	     {RUN(0, TCP_FRAME_BYTES_MAX + 1u)},
	     0},
	};
	static const uint8_t payload[64] = {1, 2, 3};

	(void)unused;
	for (size_t i = 0; i < ARRAY_COUNT(lies); i++) {
		struct tcp_frame frame;
		struct tcp_rig rig;
		int fd;

		tcp_rig_open(&rig, BYTES);
		fd = tcp_rig_greet(&rig);
		frame = tcp_rig_frame(&rig, (enum tcp_kind)lies[i].kind, lies[i].sequence,
				      lies[i].runs_count, lies[i].bytes);
		if (lies[i].other_epoch)
			frame.epoch ^= htole64(1);
		tcp_rig_send(fd, &frame, sizeof(frame));
		tcp_rig_send(fd, lies[i].runs, lies[i].sent * sizeof(lies[i].runs[0]));
		tcp_rig_send(fd, payload, sizeof(payload));
		if (!tcp_rig_is_closed(fd))
			fail_msg("%s: not closed", lies[i].name);
		tcp_rig_await(&rig, GRANT_BROKEN);
		assert_true(tcp_rig_is_untouched(&rig));
		close(fd);
		tcp_rig_close(&rig);
	}
}

static void strangers_are_closed_and_change_nothing(void **unused)
{
	struct tcp_rig rig;
	struct tcp_hello hello = {.version = htole16(TCP_VERSION)};
	uint8_t garbage[512];
	int fd;

	(void)unused;
	tcp_rig_open(&rig, BYTES);
	memcpy(hello.magic, TCP_MAGIC, sizeof(hello.magic));
	memcpy(hello.token, rig.offer.token, sizeof(hello.token));
	hello.epoch = rig.offer.epoch ^ htole64(1);
	for (uint32_t i = 0; i < 40; i++) {
		fd = tcp_rig_connect(&rig);
		if (i == 1)
			hello.epoch = rig.offer.epoch;
		if (i >= 1 && i <= 32) /* one bit of the token is wrong */
			hello.token[i - 1] ^= (uint8_t)(1u << rnd(8));
		for (uint32_t k = 0; k < sizeof(garbage); k++)
			garbage[k] = (uint8_t)rnd(256);
		tcp_rig_send(fd, i <= 32 ? (void *)&hello : (void *)garbage,
			     i <= 32 ? sizeof(hello) : sizeof(garbage));
		assert_true(tcp_rig_is_closed(fd));
		close(fd);
		memcpy(hello.token, rig.offer.token, sizeof(hello.token));
	}
	/* Half a greeting, then silence: closed in time. Half a greeting, then the end: harmless.
	 */
	fd = tcp_rig_connect(&rig);
	tcp_rig_send(fd, &hello, sizeof(hello) / 2);
	assert_true(tcp_rig_is_closed(fd));
	close(fd);
	fd = tcp_rig_connect(&rig);
	tcp_rig_send(fd, &hello, sizeof(hello) / 2);
	close(fd);
	assert_int_equal(relay_way_tcp.state(rig.receiver, rig.grant), GRANT_HELD);
	assert_true(tcp_rig_is_untouched(&rig));
	tcp_rig_close(&rig);
}

/* Cards that connect before and after a crowd of silent ones, and greet while these are there. */
static void card_gets_in(uint32_t crowd_count, uint32_t crowd_hosts, int before)
{
	const struct tcp_run run = RUN(0, 8);
	struct tcp_rig rig;
	struct tcp_frame frame;
	struct tcp_answer answer;
	int crowd[200], cards[2];

	assert_true(crowd_count <= ARRAY_COUNT(crowd));
	tcp_rig_open(&rig, BYTES);
	frame = tcp_rig_frame(&rig, TCP_WRITE, 1, 1, 8);
	if (before)
		cards[0] = tcp_rig_connect(&rig);
	for (uint32_t i = 0; i < crowd_count; i++)
		crowd[i] = tcp_rig_connect_from(&rig, 1 + i % crowd_hosts);
	cards[1] = tcp_rig_connect(&rig);
	for (uint32_t i = !before; i < ARRAY_COUNT(cards); i++) {
		tcp_rig_hello(&rig, cards[i]);
		tcp_rig_send(cards[i], &frame, sizeof(frame));
		tcp_rig_send(cards[i], &run, sizeof(run));
		tcp_rig_send(cards[i], &i, 4);
		tcp_rig_send(cards[i], &i, 4);
		tcp_rig_receive(cards[i], &answer, sizeof(answer));
		assert_int_equal(le64toh(answer.sequence), 1);
		close(cards[i]);
	}
	for (uint32_t i = 0; i < crowd_count; i++) {
		assert_true(tcp_rig_is_closed(crowd[i]));
		close(crowd[i]);
	}
	assert_int_equal(relay_way_tcp.state(rig.receiver, rig.grant), GRANT_HELD);
	tcp_rig_close(&rig);
}

static void one_host_crowds_out_nobody(void **unused)
{
	(void)unused;
	card_gets_in(200, 1, 1);
	card_gets_in(200, 2, 1);
}

static void a_card_gets_past_many_silent_hosts(void **unused)
{
	(void)unused;
	card_gets_in(62, 62, 1);
	card_gets_in(200, 40, 0);
}

static void more_reads_than_allowed_end_the_grant(void **unused)
{
	const struct tcp_run run = RUN(0, BYTES);
	struct tcp_rig rig;
	int fd;

	(void)unused;
	tcp_rig_open(&rig, BYTES);
	fd = tcp_rig_greet(&rig);
	/* Nobody reads the answers: they pile up until the ring is full, and no further. */
	for (uint64_t i = 1; i < 4096; i++) {
		struct tcp_frame frame = tcp_rig_frame(&rig, TCP_READ, i, 1, BYTES);

		tcp_rig_send(fd, &frame, sizeof(frame));
		tcp_rig_send(fd, &run, sizeof(run));
	}
	tcp_rig_await(&rig, GRANT_BROKEN);
	close(fd);
	tcp_rig_close(&rig);
}

/* ---- revocation ----------------------------------------------------------------------------- */

static void the_rest_of_a_revoked_frame_is_dropped(void **unused)
{
	(void)unused;
	for (uint32_t round = 0; round < 100; round++) {
		const struct tcp_run run = RUN(0, BYTES);
		static uint8_t payload[BYTES];
		struct tcp_frame frame;
		struct tcp_rig rig;
		uint32_t cut = 1 + rnd(BYTES - 1);
		int fd;

		tcp_rig_open(&rig, BYTES);
		frame = tcp_rig_frame(&rig, TCP_WRITE, 1, 1, BYTES);
		memset(payload, 0x11, sizeof(payload));
		fd = tcp_rig_greet(&rig);
		tcp_rig_send(fd, &frame, sizeof(frame));
		tcp_rig_send(fd, &run, sizeof(run));
		tcp_rig_send(fd, payload, cut);
		tcp_rig_revoke(&rig); /* wherever the receiver is just now */
		memset(rig.map, RIG_CANARY, BYTES);
		tcp_rig_send(fd, payload + cut, BYTES - cut);
		close(fd);
		fd = tcp_rig_greet(&rig);
		tcp_rig_send(fd, &frame, sizeof(frame));
		assert_true(tcp_rig_is_closed(fd));
		close(fd);
		assert_true(tcp_rig_is_untouched(&rig));
		tcp_rig_close(&rig);
	}
}

int test_tcp_relay(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(frames_of_every_shape_land_where_they_say),
	    cmocka_unit_test(frames_that_reach_outside_end_the_grant),
	    cmocka_unit_test(strangers_are_closed_and_change_nothing),
	    cmocka_unit_test(one_host_crowds_out_nobody),
	    cmocka_unit_test(a_card_gets_past_many_silent_hosts),
	    cmocka_unit_test(more_reads_than_allowed_end_the_grant),
	    cmocka_unit_test(the_rest_of_a_revoked_frame_is_dropped),
	};

	return cmocka_run_group_tests_name("the relay's side", tests, seed_random, NULL);
}
