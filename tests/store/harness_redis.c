/* SPDX-License-Identifier: Apache-2.0 */
/*
 * harness_redis.c - a real redis-server as a child of the test.
 *
 * It dies with the test whatever happens (PR_SET_PDEATHSIG), and is ended by its pid.
 */
#include "harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARGUMENTS_MAX 40

static struct sockaddr_in local_address(unsigned int port)
{
	return (struct sockaddr_in){
	    .sin_family = AF_INET,
	    .sin_port = htons((uint16_t)port),
	    .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
}

unsigned int harness_port(int *ret_fd)
{
	struct sockaddr_in address = local_address(0);
	socklen_t bytes = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &bytes), 0);
	if (ret_fd) {
		assert_int_equal(listen(fd, 16), 0);
		*ret_fd = fd;
	} else {
		(void)close(fd);
	}
	return ntohs(address.sin_port);
}

int harness_connect(unsigned int port)
{
	const struct timeval timeout = {.tv_sec = 5};
	struct sockaddr_in address = local_address(port);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address))) {
		(void)close(fd);
		return -1;
	}
	if (fd >= 0)
		(void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	return fd;
}

void harness_redis_command(const struct harness_redis *redis, const char *line, char *answer,
			   size_t answer_bytes)
{
	int fd = harness_connect(redis->port);
	size_t at = 0;

	answer[0] = '\0';
	if (fd < 0)
		return;
	if (send(fd, line, strlen(line), MSG_NOSIGNAL) < 0 || send(fd, "\r\n", 2, MSG_NOSIGNAL) < 0)
		goto close_fd;
	while (at + 1 < answer_bytes && recv(fd, answer + at, 1, 0) == 1 && answer[at] != '\n')
		at++;
	answer[at] = '\0';
	answer[strcspn(answer, "\r")] = '\0';
close_fd:
	(void)close(fd);
}

static void run_server(const struct harness_redis *redis, const char *const *extra)
{
	char port[16], socket_path[128];
	const char *arguments[ARGUMENTS_MAX] = {
	    "redis-server",
	    "--port",
	    port,
	    "--bind",
	    "127.0.0.1",
	    "--unixsocket",
	    socket_path,
	    "--save",
	    "",
	    "--appendonly",
	    "no",
	    "--dir",
	    redis->folder,
	    "--enable-debug-command",
	    "yes",
	};
	size_t n = 15;
	int null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);

	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	(void)snprintf(port, sizeof(port), "%u", redis->port);
	(void)snprintf(socket_path, sizeof(socket_path), "%s/redis.sock", redis->folder);
	while (extra && *extra && n + 1 < ARGUMENTS_MAX)
		arguments[n++] = *extra++;
	(void)dup2(null_fd, STDOUT_FILENO);
	(void)execvp(arguments[0], (char *const *)(uintptr_t)arguments);
	_exit(127);
}

static bool start(struct harness_redis *redis, const char *const *extra)
{
	uint64_t end_ns = clock_now_ns() + HARNESS_PATIENCE;
	char answer[128];
	int status;

	(void)fflush(NULL);
	redis->pid = fork();
	assert_true(redis->pid >= 0);
	if (redis->pid == 0)
		run_server(redis, extra);
	for (;;) {
		harness_redis_command(redis, "PING", answer, sizeof(answer));
		if (answer[0] == '+' || !strncmp(answer, "-NOAUTH", 7))
			return true;
		if (waitpid(redis->pid, &status, WNOHANG) == redis->pid)
			return false;
		assert_true(clock_now_ns() < end_ns);
		(void)usleep(2000);
	}
}

static bool is_installed(void)
{
	const char *at = getenv("PATH");

	while (at && *at) {
		size_t bytes = strcspn(at, ":");
		char path[512];

		(void)snprintf(path, sizeof(path), "%.*s/redis-server", (int)bytes, at);
		if (!access(path, X_OK))
			return true;
		at += bytes + (at[bytes] == ':');
	}
	return false;
}

struct harness_redis *harness_redis_start(const char *const *extra)
{
	struct harness_redis *redis;
	int attempt;

	if (!is_installed()) {
		printf("skipped: redis-server is not installed\n");
		return NULL;
	}
	redis = calloc(1, sizeof(*redis));
	assert_non_null(redis);
	redis->folder = harness_folder();
	/* The port was free a moment ago; if somebody was quicker, take another. */
	for (attempt = 0; attempt < 5; attempt++) {
		redis->port = harness_port(NULL);
		if (start(redis, extra))
			return redis;
	}
	fail_msg("redis-server does not start");
	return NULL;
}

void harness_redis_kill(struct harness_redis *redis)
{
	if (redis->pid <= 0)
		return;
	(void)kill(redis->pid, SIGKILL);
	(void)waitpid(redis->pid, NULL, 0);
	redis->pid = 0;
}

void harness_redis_restart(struct harness_redis *redis, const char *const *extra)
{
	harness_redis_kill(redis);
	assert_true(start(redis, extra));
}

void harness_redis_stop(struct harness_redis *redis)
{
	if (!redis)
		return;
	harness_redis_kill(redis);
	harness_remove_folder(redis->folder);
	free(redis);
}
