/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_path.c - what the hot path says of itself: exact numbers of copies, calls, stages and events
 * in virtual time, and what a reset changes and what it does not.
 */
#include <errno.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "rig.h"

#define CHUNKS 3u
#define BLOCKS (CHUNKS * 8)

static const struct test_shape small = {SSV_DTYPE_BF16, 2, 2, 32, 32, 64};
static const uint64_t kv_bytes = CHUNKS * 256 * 2 * 2 * 2 * 32 * 2;

struct stored {
	struct rig rig;
	struct test_region region;
	struct ssv_key keys[CHUNKS];
	uint32_t blocks[BLOCKS];
};

static double stat_of(struct stored *s, const char *path)
{
	return rig_stat(&s->rig, path);
}

/* A region of which CHUNKS chunks are stored; then the path counts anew. */
static void stored_create(struct stored *s, const struct plane_config *config, uint32_t memory)
{
	rig_create(&s->rig, config);
	if (memory == SSV_MEMORY_ADDRESS)
		memory = region_create_address(&s->rig, &s->region, PACKING_HND, &small, 0);
	else
		region_create(&s->rig, &s->region, PACKING_HND, &small, 0);
	for (uint32_t i = 0; i < BLOCKS; i++)
		s->blocks[i] = (i * 7 + 3) % small.blocks_count;
	for (uint32_t i = 0; i < CHUNKS; i++) {
		s->keys[i] = chunk_key(i);
		region_fill(&s->region, i, 0, s->blocks + 8 * i, 8);
	}
	rig_store(&s->rig, &s->region, s->keys, CHUNKS, s->blocks, 0);
	rig_flush(&s->rig, s->region.session);
	plane_stat_reset(s->rig.plane, s->rig.now_ns);
}

static void stored_fetch(struct stored *s)
{
	const struct ssv_completion *completion =
	    rig_fetch(&s->rig, &s->region, s->keys, CHUNKS, s->blocks, BLOCKS, 0, 0);

	assert_int_equal(completion->tokens, CHUNKS * 256);
	assert_int_equal(completion->kv_bytes, kv_bytes);
}

static void stored_destroy(struct stored *s)
{
	region_destroy(&s->region);
	rig_destroy(&s->rig);
}

static void a_memfd_is_written_in_place(void **state)
{
	struct plane_config config = rig_config("memory:path-1");
	struct stored s;
	double wire;

	(void)state;
	stored_create(&s, &config, SSV_MEMORY_MEMFD);
	stored_fetch(&s);
	wire = stat_of(&s, "path.bytes.wire");
	assert_true(wire > 0 && wire < (double)kv_bytes);
	assert_int_equal(stat_of(&s, "path.bytes.delivered"), kv_bytes);
	assert_int_equal(stat_of(&s, "path.bytes.decoded"), kv_bytes);
	assert_int_equal(stat_of(&s, "path.bytes.store"), wire);
	assert_int_equal(stat_of(&s, "path.bytes.staged"), 0);
	assert_int_equal(stat_of(&s, "path.bytes.moved"), 0);
	assert_int_equal(stat_of(&s, "path.bytes.gathered"), 0);
	assert_int_equal(stat_of(&s, "path.bytes.header"), 0);
	assert_int_equal(stat_of(&s, "path.chunks"), CHUNKS);
	assert_int_equal(stat_of(&s, "path.chunks_fetched"), CHUNKS);
	/* The store is in this process: nothing is asked of the kernel but to wake a sleeper. */
	assert_int_equal(stat_of(&s, "path.calls.all"), stat_of(&s, "path.calls.event"));
	stored_destroy(&s);
}

static void an_address_range_is_staged_and_moved_once(void **state)
{
	struct plane_config config = rig_config("memory:path-2");
	struct stored s;

	(void)state;
	stored_create(&s, &config, SSV_MEMORY_ADDRESS);
	stored_fetch(&s);
	if (stat_of(&s, "path.bytes.staged") == 0)
		skip(); /* a sandbox without cross-memory attach */
	assert_int_equal(stat_of(&s, "path.bytes.decoded"), kv_bytes);
	assert_int_equal(stat_of(&s, "path.bytes.staged"), kv_bytes);
	assert_int_equal(stat_of(&s, "path.bytes.moved"), kv_bytes);
	assert_int_equal(stat_of(&s, "path.bytes.staged_per_delivered"), 1);
	assert_true(stat_of(&s, "path.calls.move") > 0);
	assert_true(stat_of(&s, "path.stages.deliver.count") > 0);
	stored_destroy(&s);
}

static void a_store_counts_what_it_gathers(void **state)
{
	struct plane_config config = rig_config("memory:path-3");
	struct stored s;

	(void)state;
	config.overwrite = 1;
	stored_create(&s, &config, SSV_MEMORY_MEMFD);
	rig_store(&s.rig, &s.region, s.keys, CHUNKS, s.blocks, 0);
	rig_flush(&s.rig, s.region.session);
	assert_int_equal(stat_of(&s, "path.bytes.gathered"), kv_bytes);
	assert_int_equal(stat_of(&s, "path.bytes.decoded"), 0);
	assert_int_equal(stat_of(&s, "path.chunks_put"), CHUNKS);
	assert_int_equal(stat_of(&s, "path.stages.put.count"), CHUNKS);
	assert_int_equal(stat_of(&s, "path.stages.wait_capture.count"), CHUNKS);
	assert_int_equal(stat_of(&s, "path.stages.wait_encode.count"), CHUNKS);
	/* The encoder takes one at a time, a tensor a step: the others wait. */
	assert_true(stat_of(&s, "path.stages.wait_encode.max_us") > 0);
	assert_true(stat_of(&s, "workers.0.capture_slots_high") >= 1);
	stored_destroy(&s);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

static void a_file_is_opened_looked_at_read_and_closed(void **state)
{
	char folder[] = "/tmp/shadowserve-path-XXXXXX", uri[64] = "";
	struct plane_config config = rig_config(uri);
	struct stored s;

	(void)state;
	assert_non_null(mkdtemp(folder));
	snprintf(uri, sizeof(uri), "file:%s", folder);
	stored_create(&s, &config, SSV_MEMORY_MEMFD);
	stored_fetch(&s);
	assert_int_equal(stat_of(&s, "path.bytes.received"), stat_of(&s, "path.bytes.wire"));
	assert_int_equal(stat_of(&s, "path.bytes.store"), 0);
	assert_int_equal(stat_of(&s, "path.bytes.staged"), 0);
	assert_true(stat_of(&s, "path.calls.read") >= CHUNKS);
	/* open, fstat, close; the time of last use; perhaps read-ahead of all but the first. */
	assert_true(stat_of(&s, "path.calls.file") >= 3 * CHUNKS);
	assert_true(stat_of(&s, "path.calls.file") <= 6 * CHUNKS);
	assert_int_equal(stat_of(&s, "path.calls.write"), 0);
	stored_destroy(&s);
	nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static void stages_are_counted_and_priced_by_the_callers_clock(void **state)
{
	struct plane_config config = rig_config("memory:path-4");
	struct stored s;
	double segments;

	(void)state;
	stored_create(&s, &config, SSV_MEMORY_MEMFD);
	stored_fetch(&s);
	segments = stat_of(&s, "path.stages.decode.count");
	assert_true(segments >= CHUNKS * 4);
	/* Virtual time moves on by 10 us a step, and a step decodes one segment. */
	assert_int_equal(stat_of(&s, "path.stages.decode.sum_us"), 10 * segments);
	assert_int_equal(stat_of(&s, "path.stages.decode.max_us"), 10);
	assert_int_equal(stat_of(&s, "path.stages.wait_decode.count"), segments);
	assert_int_equal(stat_of(&s, "path.stages.chunk.count"), CHUNKS);
	assert_int_equal(stat_of(&s, "path.stages.get.count"), CHUNKS);
	assert_int_equal(stat_of(&s, "path.stages.wait_lane.count"), CHUNKS);
	assert_int_equal(stat_of(&s, "path.stages.wait_slots.sum_us"), 0);
	assert_int_equal(stat_of(&s, "path.stages.wait_worker.count"), CHUNKS);
	assert_int_equal(stat_of(&s, "path.stages.fetch.count"), 1);
	assert_true(stat_of(&s, "path.stages.fetch.sum_us") >=
		    stat_of(&s, "path.stages.chunk.max_us"));
	stored_destroy(&s);
}

static void a_worker_without_rest_shows_what_its_store_did(void **state)
{
	struct plane_config config = rig_config("memory:path-8");
	struct stored s;
	double before;

	(void)state;
	stored_create(&s, &config, SSV_MEMORY_MEMFD);
	before = stat_of(&s, "store.gets");
	const struct ssv_request fetch = {
	    .op = SSV_OP_FETCH,
	    .region = s.region.region,
	    .user_data = 77,
	    .keys = s.keys,
	    .keys_count = CHUNKS,
	    .blocks = s.blocks,
	    .blocks_count = BLOCKS,
	    .deadline_ms = 10000,
	};
	assert_int_equal(plane_submit(s.rig.plane, s.region.session, &fetch, s.rig.now_ns, NULL),
			 0);
	while (stat_of(&s, "path.stages.chunk.count") < CHUNKS) {
		assert_true(rig_step(&s.rig));
		s.rig.now_ns += 5 * NS_PER_MS;
	}
	assert_true(stat_of(&s, "store.gets") > before);
	(void)rig_wait(&s.rig, PLANE_EVENT_COMPLETION, 1000);
	stored_destroy(&s);
}

static void chunks_beyond_the_lanes_are_seen_to_wait(void **state)
{
	struct plane_config config = rig_config("memory:path-5");
	struct stored s;

	(void)state;
	config.lanes = 1;
	stored_create(&s, &config, SSV_MEMORY_MEMFD);
	stored_fetch(&s);
	assert_int_equal(stat_of(&s, "path.stages.wait_lane.count"), CHUNKS);
	/* The third waits for two chunks, the second for one, the first for nothing. */
	assert_true(stat_of(&s, "path.stages.wait_lane.sum_us") >=
		    3 * stat_of(&s, "path.stages.chunk.p50_us") / 2);
	stored_destroy(&s);
}

static void a_reset_takes_nothing_from_what_only_grows(void **state)
{
	struct plane_config config = rig_config("memory:path-6");
	double fetches, decodes, steps;
	struct stored s;

	(void)state;
	stored_create(&s, &config, SSV_MEMORY_MEMFD);
	assert_int_equal(stat_of(&s, "path.epoch"), 2);
	stored_fetch(&s);
	fetches = stat_of(&s, "counters.fetches");
	decodes = stat_of(&s, "stages.decode.count");
	steps = stat_of(&s, "workers.0.steps");
	assert_true(stat_of(&s, "workers.0.wire_slots_high") >= 1);
	plane_stat_reset(s.rig.plane, s.rig.now_ns);
	assert_int_equal(stat_of(&s, "path.epoch"), 3);
	assert_int_equal(stat_of(&s, "path.chunks"), 0);
	assert_int_equal(stat_of(&s, "path.stages.decode.count"), 0);
	assert_int_equal(stat_of(&s, "path.stages.decode.max_us"), 0);
	assert_int_equal(stat_of(&s, "counters.fetches"), fetches);
	assert_int_equal(stat_of(&s, "stages.decode.count"), decodes);
	assert_true(stat_of(&s, "workers.0.steps") >= steps);
	rig_step(&s.rig);
	assert_int_equal(stat_of(&s, "workers.0.wire_slots_high"), 0);
	stored_fetch(&s);
	assert_int_equal(stat_of(&s, "path.chunks_fetched"), CHUNKS);
	assert_int_equal(stat_of(&s, "counters.fetches"), fetches + CHUNKS);
	assert_true(stat_of(&s, "workers.0.wire_slots_high") >= 1);
	stored_destroy(&s);
}

/* Events of a kind among a thread's; `sum` adds their values. */
static uint32_t events_of(struct stored *s, uint32_t track, enum trace_kind kind, uint64_t *sum)
{
	static struct trace_event events[MESSAGE_EVENTS_MAX];
	struct message_events head = {.track = track};
	uint32_t found = 0;

	*sum = 0;
	plane_trace(s->rig.plane, 0, &head, events, MESSAGE_EVENTS_MAX);
	assert_int_equal(head.tracks_count, 2);
	assert_true(head.head <= head.slots_count && head.count == head.head);
	for (uint32_t i = 0; i < head.count; i++) {
		if (trace_kind(&events[i]) != kind)
			continue;
		*sum += events[i].value;
		found++;
	}
	return found;
}

static void every_chunk_and_segment_is_in_the_trace(void **state)
{
	struct plane_config config = rig_config("memory:path-7");
	uint64_t chunk_bytes, segment_bytes, value;
	struct stored s;

	(void)state;
	stored_create(&s, &config, SSV_MEMORY_MEMFD);
	stored_fetch(&s);
	assert_int_equal(events_of(&s, 0, TRACE_CHUNK, &chunk_bytes), CHUNKS);
	assert_int_equal(chunk_bytes, stat_of(&s, "path.bytes.wire"));
	assert_int_equal(events_of(&s, 0, TRACE_DECODE, &segment_bytes),
			 stat_of(&s, "path.stages.decode.count"));
	assert_true(segment_bytes > 0 && segment_bytes < chunk_bytes);
	assert_int_equal(events_of(&s, 0, TRACE_GET, &value), CHUNKS);
	assert_int_equal(events_of(&s, 0, TRACE_STORE, &value), CHUNKS);
	assert_int_equal(events_of(&s, 0, TRACE_REQUEST, &value), 0);
	/* The STORE's pieces and the FETCH's; STORE, FLUSH and FETCH. */
	assert_int_equal(events_of(&s, 1, TRACE_HAND, &value), 2 * CHUNKS);
	assert_int_equal(events_of(&s, 1, TRACE_REQUEST, &value), 3);
	assert_int_equal(value, 2 * CHUNKS * 256); /* tokens, with status 0 */
	stored_destroy(&s);
}

static void a_plane_without_trace_answers_with_nothing(void **state)
{
	struct plane_config config = rig_config("memory:path-8");
	struct message_events head = {.track = 0};
	struct trace_event event;
	struct stored s;

	(void)state;
	config.trace_off = 1;
	stored_create(&s, &config, SSV_MEMORY_MEMFD);
	stored_fetch(&s);
	for (head.track = 0; head.track < 4; head.track++) {
		plane_trace(s.rig.plane, 0, &head, &event, 1);
		assert_int_equal(head.count, 0);
		assert_int_equal(head.slots_count, 0);
	}
	assert_int_equal(stat_of(&s, "path.stages.chunk.count"), CHUNKS);
	stored_destroy(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_memfd_is_written_in_place),
	    cmocka_unit_test(an_address_range_is_staged_and_moved_once),
	    cmocka_unit_test(a_store_counts_what_it_gathers),
	    cmocka_unit_test(a_file_is_opened_looked_at_read_and_closed),
	    cmocka_unit_test(stages_are_counted_and_priced_by_the_callers_clock),
	    cmocka_unit_test(a_worker_without_rest_shows_what_its_store_did),
	    cmocka_unit_test(chunks_beyond_the_lanes_are_seen_to_wait),
	    cmocka_unit_test(a_reset_takes_nothing_from_what_only_grows),
	    cmocka_unit_test(every_chunk_and_segment_is_in_the_trace),
	    cmocka_unit_test(a_plane_without_trace_answers_with_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
