/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_ways.c - attaching regions, and moving blocks into and out of another process's memory by
 * every way; what a way says when the memory is not what was promised or its owner is gone.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "deliver/deliver.h"

#define BLOCKS       6u
#define BLOCK_TOKENS 16u
#define HEADS        3u
#define DIM          8u
#define CHANNELS     (HEADS * DIM)
#define ONE          (BLOCK_TOKENS * CHANNELS * 2u) /* bytes of a tensor in a block */
#define REGION       (BLOCKS * 2u * ONE)

/* One layer; [block][head][part]; K as [dim][token], V as [token][dim]: runs of 16 bytes for V. */
static struct ssv_tensor tensors[2];

static struct ssv_layout make_layout(void)
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

/* Run a job on two blocks to its end; returns its status. IN: writes bits_of; OUT: checks it. */
static int move(const struct region *region, uint32_t tensor, enum deliver_direction direction)
{
	static uint8_t stage[2 * ONE];
	const uint32_t blocks[2] = {4, 1};
	uint8_t *token[2 * BLOCK_TOKENS];
	struct deliver_queue queue = {0};
	struct deliver_job *done[2];
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
	assert_int_equal(region->ops->poll(&queue, done, 2), 1);
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

static void check_memory(const uint8_t *memory)
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

static uint8_t *shared_memory(int *ret_fd, int seals)
{
	int fd = memfd_create("region", MFD_ALLOW_SEALING | MFD_CLOEXEC);
	uint8_t *memory;

	assert_true(fd >= 0 && ftruncate(fd, REGION) == 0);
	if (seals)
		assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	memory = mmap(NULL, REGION, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(memory != MAP_FAILED);
	memset(memory, 0xab, REGION);
	*ret_fd = fd;
	return memory;
}

static void memfd_is_written_and_read_in_place(void **state)
{
	struct ssv_layout layout = make_layout();
	struct ssv_region offer = {.memory = SSV_MEMORY_MEMFD, .bytes = REGION};
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct region *region = NULL;
	uint8_t *memory;
	int fd;

	(void)state;
	memory = shared_memory(&fd, F_SEAL_SHRINK);
	offer.fd = fd;
	assert_int_equal(region_attach(&offer, &layout, &(struct deliver_owner){.pid = getpid()},
				       NULL, &region, error),
			 0);
	close(fd);
	for (uint32_t tensor = 0; tensor < 2; tensor++) {
		assert_int_equal(region->ops->stage_bytes(region, tensor, 2), 0);
		assert_int_equal(move(region, tensor, DELIVER_IN), 0);
		assert_int_equal(move(region, tensor, DELIVER_OUT), 0);
	}
	check_memory(memory);
	region_detach(region);
	munmap(memory, REGION);
}

static void memfd_that_could_shrink_or_is_short_is_refused(void **state)
{
	struct ssv_layout layout = make_layout();
	struct ssv_region offer = {.memory = SSV_MEMORY_MEMFD, .bytes = REGION};
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct region *region = NULL;
	int fd, pipe_fds[2];

	(void)state;
	munmap(shared_memory(&fd, 0), REGION);
	offer.fd = fd;
	assert_int_equal(region_attach(&offer, &layout, &(struct deliver_owner){.pid = getpid()},
				       NULL, &region, error),
			 -EPERM);
	assert_non_null(strstr(error, "F_SEAL_SHRINK"));
	assert_int_equal(ftruncate(fd, REGION - 1), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	assert_int_equal(region_attach(&offer, &layout, &(struct deliver_owner){.pid = getpid()},
				       NULL, &region, error),
			 -ERANGE);
	close(fd);
	assert_int_equal(pipe(pipe_fds), 0);
	offer.fd = pipe_fds[0];
	assert_int_equal(region_attach(&offer, &layout, &(struct deliver_owner){.pid = getpid()},
				       NULL, &region, error),
			 -EPERM);
	offer.fd = -1;
	assert_int_equal(region_attach(&offer, &layout, &(struct deliver_owner){.pid = getpid()},
				       NULL, &region, error),
			 -EINVAL);
	offer.memory = 99;
	assert_int_equal(region_attach(&offer, &layout, &(struct deliver_owner){.pid = getpid()},
				       NULL, &region, error),
			 -ENOTSUP);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
}

/* The linker puts these before the C library's fcntl(), under both names that it may have. */
int __real_fcntl64(int fd, int command, ...);
int __wrap_fcntl(int fd, int command, ...);
int __wrap_fcntl64(int fd, int command, ...);

static int shrinks_late; /* the owner shrinks its memfd, then seals it, as seals are asked for */

int __wrap_fcntl64(int fd, int command, ...)
{
	long argument;
	va_list arguments;

	va_start(arguments, command);
	argument = va_arg(arguments, long);
	va_end(arguments);
	if (command == F_GET_SEALS && shrinks_late) {
		assert_int_equal(ftruncate(fd, 1), 0);
		assert_int_equal(__real_fcntl64(fd, F_ADD_SEALS, (long)F_SEAL_SHRINK), 0);
	}
	return __real_fcntl64(fd, command, argument);
}

int __wrap_fcntl(int fd, int command, ...)
{
	long argument;
	va_list arguments;

	va_start(arguments, command);
	argument = va_arg(arguments, long);
	va_end(arguments);
	return __wrap_fcntl64(fd, command, argument);
}

static void memfd_that_shrinks_before_its_seal_is_refused(void **state)
{
	struct ssv_layout layout = make_layout();
	struct ssv_region offer = {.memory = SSV_MEMORY_MEMFD, .bytes = REGION};
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct region *region = NULL;
	int fd;

	(void)state;
	munmap(shared_memory(&fd, 0), REGION);
	offer.fd = fd;
	shrinks_late = 1;
	assert_int_equal(region_attach(&offer, &layout, &(struct deliver_owner){.pid = getpid()},
				       NULL, &region, error),
			 -ERANGE);
	shrinks_late = 0;
	close(fd);
}

/* A process that owns memory, lets its parent reach it, and on a byte says what it finds there. */
struct owner {
	pid_t pid;
	int to, from;
	uint64_t address;
};

static void owner_run(int from, int to, int allow)
{
	uint8_t *memory =
	    mmap(NULL, REGION, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t address = (uintptr_t)memory;
	char command;

	memset(memory, 0xab, REGION);
	if (allow)
		prctl(PR_SET_PTRACER, getppid(), 0, 0, 0);
	else
		prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	if (write(to, &address, sizeof(address)) != sizeof(address))
		_exit(1);
	while (read(from, &command, 1) == 1) {
		if (write(to, memory, REGION) != REGION)
			_exit(1);
	}
	_exit(0);
}

static struct owner owner_start(int allow)
{
	struct owner owner;
	int to[2], from[2];

	assert_true(pipe(to) == 0 && pipe(from) == 0);
	owner.pid = fork();
	if (owner.pid == 0) {
		close(to[1]);
		close(from[0]);
		owner_run(to[0], from[1], allow);
	}
	close(to[0]);
	close(from[1]);
	owner.to = to[1];
	owner.from = from[0];
	assert_int_equal(read(owner.from, &owner.address, sizeof(owner.address)),
			 sizeof(owner.address));
	return owner;
}

static void owner_stop(const struct owner *owner)
{
	kill(owner->pid, SIGKILL);
	waitpid(owner->pid, NULL, 0);
	close(owner->to);
	close(owner->from);
}

static void another_process_is_reached_until_it_dies(void **state)
{
	struct ssv_layout layout = make_layout();
	struct ssv_region offer = {.memory = SSV_MEMORY_ADDRESS, .bytes = REGION};
	static uint8_t seen[REGION];
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct region *region = NULL;
	struct owner owner = owner_start(1);
	uint64_t got = 0;
	int err;

	(void)state;
	offer.address = owner.address;
	err = region_attach(&offer, &layout, &(struct deliver_owner){.pid = owner.pid}, NULL,
			    &region, error);
	if (err == -EPERM || err == -ENOTSUP) { /* a sandbox that forbids it altogether */
		print_message("skipped: %s\n", error);
		owner_stop(&owner);
		skip();
	}
	assert_int_equal(err, 0);
	for (uint32_t tensor = 0; tensor < 2; tensor++) {
		assert_int_equal(move(region, tensor, DELIVER_IN), 0);
		assert_int_equal(move(region, tensor, DELIVER_OUT), 0);
	}
	assert_int_equal(write(owner.to, "?", 1), 1);
	while (got < REGION) {
		ssize_t n = read(owner.from, seen + got, REGION - got);

		assert_true(n > 0);
		got += (uint64_t)n;
	}
	check_memory(seen);
	owner_stop(&owner);
	assert_int_equal(move(region, 0, DELIVER_IN), -ESRCH);
	assert_int_equal(move(region, 1, DELIVER_OUT), -ESRCH);
	region_detach(region);
	assert_int_not_equal(region_attach(&offer, &layout,
					   &(struct deliver_owner){.pid = owner.pid}, NULL, &region,
					   error),
			     0);
}

static void unreachable_address_or_process_is_explained(void **state)
{
	struct ssv_layout layout = make_layout();
	struct ssv_region offer = {.memory = SSV_MEMORY_ADDRESS, .bytes = REGION};
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct region *region = NULL;
	struct owner owner = owner_start(0);
	int err;

	(void)state;
	offer.address = 4096; /* never mapped */
	err = region_attach(&offer, &layout, &(struct deliver_owner){.pid = getpid()}, NULL,
			    &region, error);
	assert_true(err == -ERANGE || err == -ENOTSUP || err == -EPERM);
	offer.address = UINT64_MAX - 8;
	assert_int_equal(region_attach(&offer, &layout, &(struct deliver_owner){.pid = getpid()},
				       NULL, &region, error),
			 -EINVAL);
	offer.address = owner.address;
	err = region_attach(&offer, &layout, &(struct deliver_owner){.pid = owner.pid}, NULL,
			    &region, error);
	if (err == 0) { /* this test runs with CAP_SYS_PTRACE */
		region_detach(region);
	} else {
		assert_true(err == -EPERM || err == -ENOTSUP);
		assert_true(err != -EPERM || strstr(error, "PR_SET_PTRACER"));
	}
	owner_stop(&owner);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(memfd_is_written_and_read_in_place),
	    cmocka_unit_test(memfd_that_could_shrink_or_is_short_is_refused),
	    cmocka_unit_test(memfd_that_shrinks_before_its_seal_is_refused),
	    cmocka_unit_test(another_process_is_reached_until_it_dies),
	    cmocka_unit_test(unreachable_address_or_process_is_explained),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
