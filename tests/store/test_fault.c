/* SPDX-License-Identifier: Apache-2.0 */
/* test_fault.c - the fault wrapper does what its options say, in virtual time, by its seed alone.
 */
#include "harness.h"

#include <errno.h>
#include <string.h>

#define BYTES    10000u
#define FOREVER  (1000 * NS_PER_S)
#define VALUE_ID 5u

static struct store *store;
static uint8_t data[BYTES];

static void open_store(const char *options)
{
	char uri[256];

	(void)snprintf(uri, sizeof(uri), "fault+memory:fault?%s", options);
	store = harness_open(uri);
}

/* Put the value below the wrapper; the handle keeps the table alive. */
static int setup(void **state)
{
	struct store *plain = harness_open("memory:fault");

	assert_int_equal(harness_put(plain, VALUE_ID, BYTES), 0);
	*state = plain;
	return 0;
}

static int teardown(void **state)
{
	store_close(store);
	store = NULL;
	store_close(*state);
	return 0;
}

/* Run one operation in virtual time; *now_ns moves only when nothing is to do before. */
static int run(struct store_op *op, uint64_t *now_ns)
{
	struct store_op *done = NULL;
	uint64_t seen = 0;
	int i;

	assert_int_equal(store->ops->submit(store, &op, 1, *now_ns), 1);
	for (i = 0; i < 10000; i++) {
		uint64_t next_ns;

		if (store->ops->poll(store, &done, 1, *now_ns)) {
			assert_ptr_equal(done, op);
			return op->status;
		}
		assert_true(op->received >= seen);
		seen = op->received;
		next_ns = store->ops->next_ns(store);
		assert_true(next_ns != TIME_NEVER);
		*now_ns = u64_max(*now_ns, next_ns);
	}
	fail_msg("never handed back");
	return 0;
}

static struct store_op get_op(void)
{
	memset(data, 0, sizeof(data));
	return (struct store_op){
	    .kind = STORE_OP_GET,
	    .key = harness_key(VALUE_ID),
	    .data = data,
	    .capacity = BYTES,
	    .deadline_ns = FOREVER,
	};
}

static uint32_t wrong_bits(void)
{
	static uint8_t right[BYTES];
	uint32_t bits = 0;
	size_t i;

	harness_fill(right, BYTES, VALUE_ID);
	for (i = 0; i < BYTES; i++)
		bits += (uint32_t)__builtin_popcount(data[i] ^ right[i]);
	return bits;
}

static void errors_come_at_their_rate(void **state)
{
	uint64_t now_ns = 1;
	int failed = 0, i;

	(void)state;
	open_store("get-error=25%&error=EPROTO&seed=4");
	for (i = 0; i < 1000; i++) {
		struct store_op op = get_op();
		int status = run(&op, &now_ns);

		assert_true(status == 0 || status == -EPROTO);
		failed += status != 0;
	}
	assert_in_range(failed, 200, 300);
	assert_int_equal(harness_stats(store).errors, failed);
}

static void error_hits_only_its_kind(void **state)
{
	static const char *const options[] = {
	    "get-error=100%",
	    "put-error=100%",
	    "exists-error=100%",
	    "delete-error=100%",
	};
	uint64_t now_ns = 1;
	size_t i;
	uint8_t kind;

	(void)state;
	for (i = 0; i < ARRAY_COUNT(options); i++) {
		open_store(options[i]);
		for (kind = STORE_OP_GET; kind <= STORE_OP_DELETE; kind++) {
			struct store_op op = get_op();

			op.kind = kind;
			op.value_bytes = 1;
			if (kind != STORE_OP_GET)
				op.key = harness_key(99);
			if (kind == i + 1)
				assert_int_equal(run(&op, &now_ns), -EIO);
			else
				assert_int_not_equal(run(&op, &now_ns), -EIO);
		}
		store_close(store);
		store = NULL;
	}
}

static void nth_concerns_one_operation(void **state)
{
	uint64_t now_ns = 1;
	int i;

	(void)state;
	open_store("get-error=100%&nth=3");
	for (i = 1; i <= 6; i++) {
		struct store_op op = get_op();

		assert_int_equal(run(&op, &now_ns), i == 3 ? -EIO : 0);
	}
}

static void flip_changes_one_bit_before_the_watermark(void **state)
{
	uint64_t now_ns = 1;
	int i;

	(void)state;
	open_store("get-flip=100%");
	for (i = 0; i < 50; i++) {
		struct store_op op = get_op();

		assert_int_equal(run(&op, &now_ns), 0);
		assert_int_equal(op.received, BYTES);
		assert_int_equal(wrong_bits(), 1);
	}
}

/* The bytes below the watermark are final in every step, flips included. */
static void flip_keeps_the_watermarks_promise(void **state)
{
	const uint64_t bytes = 8 * MIB;
	struct store_op *done, *pointer;
	struct store_op op = {.kind = STORE_OP_GET, .key = harness_key(6), .capacity = bytes};
	uint8_t *copy = malloc(bytes);
	uint64_t seen = 0, now_ns = 1;

	assert_int_equal(harness_put(*state, 6, bytes), 0);
	open_store("get-flip=100%&seed=9");
	op.data = malloc(bytes);
	op.deadline_ns = FOREVER;
	pointer = &op;
	assert_int_equal(store->ops->submit(store, &pointer, 1, now_ns), 1);
	while (!store->ops->poll(store, &done, 1, ++now_ns)) {
		memcpy(copy + seen, op.data + seen, op.received - seen);
		seen = op.received;
	}
	assert_int_equal(op.status, 0);
	assert_true(seen > 0);
	assert_memory_equal(copy, op.data, seen);
	assert_false(harness_is_filled(op.data, bytes, 6));
	free(copy);
	free(op.data);
}

static void short_ends_the_value_early(void **state)
{
	uint64_t now_ns = 1;
	int i;

	(void)state;
	open_store("get-short=100%");
	for (i = 0; i < 50; i++) {
		struct store_op op = get_op();

		assert_int_equal(run(&op, &now_ns), 0);
		assert_true(op.value_bytes > 0 && op.value_bytes < BYTES);
		assert_int_equal(op.received, op.value_bytes);
	}
}

static void disconnect_ends_in_the_value(void **state)
{
	uint64_t now_ns = 1;
	int i, inside = 0;

	(void)state;
	open_store("get-disconnect=100%");
	for (i = 0; i < 50; i++) {
		struct store_op op = get_op();

		assert_int_equal(run(&op, &now_ns), -ENOTCONN);
		assert_true(op.received < BYTES);
		inside += op.received > 0;
	}
	assert_true(inside > 0);
}

static void stall_lasts_until_the_deadline(void **state)
{
	uint8_t kind;

	(void)state;
	open_store("get-stall=100%&put-stall=100%&exists-stall=100%&delete-stall=100%");
	for (kind = STORE_OP_GET; kind <= STORE_OP_DELETE; kind++) {
		uint64_t now_ns = 1;
		struct store_op op = get_op();

		op.kind = kind;
		op.value_bytes = 10;
		assert_int_equal(run(&op, &now_ns), -ETIMEDOUT);
		assert_int_equal(now_ns, FOREVER);
		assert_true(op.received < BYTES);
	}
}

static void stalled_operation_can_be_cancelled(void **state)
{
	struct store_op op = get_op();
	struct store_op *pointer = &op, *done = NULL;
	int i;

	(void)state;
	open_store("get-stall=100%");
	assert_int_equal(store->ops->submit(store, &pointer, 1, 1), 1);
	for (i = 0; i < 100; i++)
		assert_int_equal(store->ops->poll(store, &done, 1, 1), 0);
	op.deadline_ns = 0;
	for (i = 0; i < 3 && !done; i++)
		(void)store->ops->poll(store, &done, 1, 1);
	assert_ptr_equal(done, &op);
	assert_int_equal(op.status, -ETIMEDOUT);
}

static void delay_passes_before_the_operation(void **state)
{
	uint64_t now_ns = 1;
	struct store_op op = get_op();

	(void)state;
	open_store("get-delay-ms=250");
	assert_int_equal(run(&op, &now_ns), 0);
	assert_true(now_ns >= 250 * NS_PER_MS);
	assert_true(now_ns < 251 * NS_PER_MS);
	assert_int_equal(wrong_bits(), 0);
}

/* What happened, as one number an operation. */
static void record(const char *options, uint64_t *history, uint32_t n)
{
	uint64_t now_ns = 1;
	uint32_t i;

	open_store(options);
	for (i = 0; i < n; i++) {
		struct store_op op = get_op();
		int status = run(&op, &now_ns);

		history[i] = (uint64_t)-status << 48 | (uint64_t)wrong_bits() << 32 | op.received;
	}
	store_close(store);
	store = NULL;
}

static void same_seed_same_faults(void **state)
{
	uint64_t first[200], second[200], other[200];
	const char *all = "get-error=10%&get-flip=10%&get-short=10%&get-disconnect=10%&seed=77";

	(void)state;
	record(all, first, 200);
	record(all, second, 200);
	assert_memory_equal(first, second, sizeof(first));
	record("get-error=10%&get-flip=10%&get-short=10%&get-disconnect=10%&seed=78", other, 200);
	assert_memory_not_equal(first, other, sizeof(first));
}

static void wrappers_stack(void **state)
{
	uint64_t now_ns = 1;
	struct store_op op = get_op();

	(void)state;
	store = harness_open("fault+fault+memory:fault?get-delay-ms=5");
	assert_int_equal(run(&op, &now_ns), 0);
	assert_int_equal(wrong_bits(), 0);
}

/* Everything at once, many operations: each is handed back once, nothing but statuses that the
 * options name comes out, and no buffer changes after it was handed back. */
static void run_many(const char *below)
{
	static struct store_op ops[300];
	static uint8_t buffers[300][BYTES], copies[300][BYTES];
	char uri[400];
	uint32_t i;

	(void)snprintf(uri, sizeof(uri),
		       "fault+%sget-error=20%%&get-stall=5%%&get-short=20%%&get-disconnect=20%%&"
		       "get-flip=20%%&get-delay-ms=1&put-error=20%%&put-delay-ms=1",
		       below);
	store = harness_open(uri);
	while (harness_put(store, VALUE_ID, BYTES))
		;
	memset(ops, 0, sizeof(ops));
	for (i = 0; i < ARRAY_COUNT(ops); i++) {
		ops[i] = get_op();
		ops[i].data = buffers[i];
		ops[i].deadline_ns = clock_now_ns() + NS_PER_S;
	}
	harness_run_all(store, ops, ARRAY_COUNT(ops) / 2);
	memcpy(copies, buffers, sizeof(copies));
	harness_run_all(store, ops + ARRAY_COUNT(ops) / 2, ARRAY_COUNT(ops) / 2);
	assert_memory_equal(copies, buffers, sizeof(copies) / 2);
	for (i = 0; i < ARRAY_COUNT(ops); i++)
		assert_true(ops[i].status == 0 || ops[i].status == -EIO ||
			    ops[i].status == -ENOTCONN || ops[i].status == -ETIMEDOUT);
}

static void many_faults_over_memory(void **state)
{
	(void)state;
	run_many("memory:fault?");
}

static void many_faults_over_files(void **state)
{
	char *folder = harness_folder();
	char below[300];

	(void)state;
	(void)snprintf(below, sizeof(below), "file:%s?", folder);
	run_many(below);
	harness_remove_folder(folder);
}

static void many_faults_over_redis(void **state)
{
	struct harness_redis *redis = harness_redis_start(NULL);
	char below[100];

	(void)state;
	if (!redis)
		skip();
	(void)snprintf(below, sizeof(below), "redis://127.0.0.1:%u?lanes=2&", redis->port);
	run_many(below);
	harness_redis_stop(redis);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(errors_come_at_their_rate, setup, teardown),
	    cmocka_unit_test_setup_teardown(error_hits_only_its_kind, setup, teardown),
	    cmocka_unit_test_setup_teardown(nth_concerns_one_operation, setup, teardown),
	    cmocka_unit_test_setup_teardown(flip_changes_one_bit_before_the_watermark, setup,
					    teardown),
	    cmocka_unit_test_setup_teardown(flip_keeps_the_watermarks_promise, setup, teardown),
	    cmocka_unit_test_setup_teardown(short_ends_the_value_early, setup, teardown),
	    cmocka_unit_test_setup_teardown(disconnect_ends_in_the_value, setup, teardown),
	    cmocka_unit_test_setup_teardown(stall_lasts_until_the_deadline, setup, teardown),
	    cmocka_unit_test_setup_teardown(stalled_operation_can_be_cancelled, setup, teardown),
	    cmocka_unit_test_setup_teardown(delay_passes_before_the_operation, setup, teardown),
	    cmocka_unit_test_setup_teardown(same_seed_same_faults, setup, teardown),
	    cmocka_unit_test_setup_teardown(wrappers_stack, setup, teardown),
	    cmocka_unit_test_setup_teardown(many_faults_over_memory, setup, teardown),
	    cmocka_unit_test_setup_teardown(many_faults_over_files, setup, teardown),
	    cmocka_unit_test_setup_teardown(many_faults_over_redis, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
