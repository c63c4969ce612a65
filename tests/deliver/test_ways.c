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

#include "blocks.h"

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
	struct ssv_layout layout = blocks_layout();
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
		assert_int_equal(blocks_move(region, tensor, DELIVER_IN), 0);
		assert_int_equal(blocks_move(region, tensor, DELIVER_OUT), 0);
	}
	blocks_check(memory);
	region_detach(region);
	munmap(memory, REGION);
}

/* What would be written next to the mapping ends in a fault: the kernel is asked to read there. */
static void memfd_is_mapped_between_guards(void **state)
{
	const uint64_t mapped = align_up(REGION, 4096);
	struct ssv_layout layout = blocks_layout();
	struct ssv_region offer = {.memory = SSV_MEMORY_MEMFD, .bytes = REGION};
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct region *region = NULL;
	int pipe_fds[2];

	(void)state;
	munmap(shared_memory(&offer.fd, F_SEAL_SHRINK), REGION);
	assert_int_equal(region_attach(&offer, &layout, &(struct deliver_owner){.pid = getpid()},
				       NULL, &region, error),
			 0);
	close(offer.fd);
	assert_int_equal(pipe(pipe_fds), 0);
	assert_int_equal(write(pipe_fds[1], region->map, 1), 1);
	assert_int_equal(write(pipe_fds[1], region->map + mapped - 1, 1), 1);
	assert_int_equal(write(pipe_fds[1], region->map - 1, 1), -1);
	assert_int_equal(errno, EFAULT);
	assert_int_equal(write(pipe_fds[1], region->map + mapped, 1), -1);
	assert_int_equal(errno, EFAULT);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	region_detach(region);
}

static void memfd_that_could_shrink_or_is_short_is_refused(void **state)
{
	struct ssv_layout layout = blocks_layout();
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
	struct ssv_layout layout = blocks_layout();
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
	struct ssv_layout layout = blocks_layout();
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
		assert_int_equal(blocks_move(region, tensor, DELIVER_IN), 0);
		assert_int_equal(blocks_move(region, tensor, DELIVER_OUT), 0);
	}
	assert_int_equal(write(owner.to, "?", 1), 1);
	while (got < REGION) {
		ssize_t n = read(owner.from, seen + got, REGION - got);

		assert_true(n > 0);
		got += (uint64_t)n;
	}
	blocks_check(seen);
	owner_stop(&owner);
	assert_int_equal(blocks_move(region, 0, DELIVER_IN), -ESRCH);
	assert_int_equal(blocks_move(region, 1, DELIVER_OUT), -ESRCH);
	region_detach(region);
	assert_int_not_equal(region_attach(&offer, &layout,
					   &(struct deliver_owner){.pid = owner.pid}, NULL, &region,
					   error),
			     0);
}

static void unreachable_address_or_process_is_explained(void **state)
{
	struct ssv_layout layout = blocks_layout();
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
	    cmocka_unit_test(memfd_is_mapped_between_guards),
	    cmocka_unit_test(memfd_that_could_shrink_or_is_short_is_refused),
	    cmocka_unit_test(memfd_that_shrinks_before_its_seal_is_refused),
	    cmocka_unit_test(another_process_is_reached_until_it_dies),
	    cmocka_unit_test(unreachable_address_or_process_is_explained),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
