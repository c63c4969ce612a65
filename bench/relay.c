/* SPDX-License-Identifier: Apache-2.0 */
/*
 * relay.c - bench_relay: what receiving for an engine costs its host, as JSON.
 *
 *	bench_relay ROUND_MIB ROUNDS RECEIVE_CORE SEND_CORE [TENSOR_KIB]
 *
 * A card's tcp way sends tensors of TENSOR_KIB (512) in blocks of 32 KiB at random places of 256
 *MiB to a relay's receiver; beside it, in turns, a thread sends the same bytes plainly to a loop of
 * poll and recv that puts them into the same memory and does nothing else. Reported is the
 * processor time of the receiving thread; both cross the loopback, so what the kernel does for the
 * sender is in neither.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "deliver/deliver.h"
#include "receiver.h"

#define REGION_BYTES (256 * MIB)
#define BLOCK_BYTES  (32 * KIB)
#define BLOCKS       ((uint32_t)(REGION_BYTES / BLOCK_BYTES))
#define JOBS         8u
#define TOKENS       16u

struct bench {
	uint8_t *map, *stage;
	uint64_t round_bytes, tensor_bytes;
	int receive_core, send_core;
	uint64_t random;
	struct receiver *receiver;
	struct region *region;
	struct deliver_queue queue;
};

static void die(const char *what, const char *why)
{
	fprintf(stderr, "bench_relay: %s: %s\n", what, why);
	exit(2);
}

static void pin(int core)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((size_t)core, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("core", strerror(errno));
}

static uint32_t next_block(struct bench *bench)
{
	bench->random = bench->random * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(bench->random >> 33) % BLOCKS;
}

static struct sockaddr_storage loopback(void)
{
	struct sockaddr_storage address = {0};

	((struct sockaddr_in *)&address)->sin_family = AF_INET;
	((struct sockaddr_in *)&address)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return address;
}

/* ---- the way -------------------------------------------------------------------------------- */

static void way_open(struct bench *bench)
{
	static const struct ssv_tensor tensor = {.block_stride = BLOCK_BYTES};
	const struct ssv_layout layout = {
	    .struct_size = sizeof(layout),
	    .dtype = SSV_DTYPE_BF16,
	    .parts_count = 1,
	    .layers_count = 1,
	    .layers_total = 1,
	    .ranks_count = 1,
	    .block_tokens = TOKENS,
	    .blocks_count = BLOCKS,
	    .tensors_count = 1,
	    .tensors = &tensor,
	    .parts = {{.role = SSV_ROLE_LATENT,
		       .heads = 1,
		       .dim = 1024,
		       .digits_count = 3,
		       .digits = {{SSV_AXIS_TOKEN, 0, TOKENS, 0, 1024},
				  {SSV_AXIS_HEAD, 0, 1, 0, 1024},
				  {SSV_AXIS_DIM, 0, 1024, 0, 1}}}}};
	const struct ssv_region offer = {.memory = SSV_MEMORY_TCP, .bytes = REGION_BYTES};
	const struct deliver_host host = {.workers_count = 1};
	struct sockaddr_storage address = loopback();
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct blob blob, answer = {0};
	const struct deliver_owner owner = {.offered = &blob, .answer = &answer};
	struct grant *grant;

	if (receiver_open(&address, bench->receive_core, &bench->receiver, error) ||
	    relay_way_tcp.grant(bench->receiver, bench->map, REGION_BYTES, &address, &blob, &grant,
				error) ||
	    region_attach(&offer, &layout, &owner, &host, &bench->region, error))
		die("way", error);
}

static void way_round(struct bench *bench)
{
	static uint32_t blocks[JOBS][SSV_CHUNK_TOKENS / TOKENS];
	static uint8_t *token[JOBS][SSV_CHUNK_TOKENS];
	struct deliver_job jobs[JOBS], *done[JOBS];
	const uint32_t count = (uint32_t)(bench->tensor_bytes / BLOCK_BYTES);
	uint64_t submitted = 0, finished = 0;
	uint32_t free_jobs = JOBS, idle[JOBS];

	for (uint32_t i = 0; i < JOBS; i++)
		idle[i] = i;
	while (finished < bench->round_bytes) {
		uint32_t n;

		bench->queue.now_ns = clock_now_ns();
		while (free_jobs && submitted < bench->round_bytes) {
			uint32_t i = idle[--free_jobs];

			for (uint32_t b = 0; b < count; b++)
				blocks[i][b] = next_block(bench);
			jobs[i] =
			    (struct deliver_job){.region = bench->region,
						 .direction = DELIVER_IN,
						 .blocks = blocks[i],
						 .blocks_count = count,
						 .stage = bench->stage + i * bench->tensor_bytes,
						 .token = token[i]};
			bench->region->ops->submit(&bench->queue, &jobs[i]);
			submitted += bench->tensor_bytes;
		}
		n = bench->region->ops->poll(&bench->queue, done, JOBS);
		for (uint32_t i = 0; i < n; i++) {
			if (done[i]->status)
				die("job", strerror(-done[i]->status));
			idle[free_jobs++] = (uint32_t)(done[i] - jobs);
			finished += bench->tensor_bytes;
		}
		if (!n) {
			struct pollfd fd;

			if (bench->region->ops->pollfds(&bench->queue, &fd, 1))
				(void)!poll(&fd, 1, 100);
		}
	}
}

/* ---- the bare loop -------------------------------------------------------------------------- */

struct bare {
	struct bench *bench;
	int fd;
	uint64_t cpu_ns;
};

static void *bare_main(void *context)
{
	struct bare *bare = context;
	uint64_t received = 0, at = 0;
	struct timespec used;

	pin(bare->bench->receive_core);
	while (received < bare->bench->round_bytes) {
		struct pollfd wait = {.fd = bare->fd, .events = POLLIN};
		uint64_t room = u64_min(bare->bench->tensor_bytes, REGION_BYTES - at);
		ssize_t n;

		(void)!poll(&wait, 1, 1000);
		n = recv(bare->fd, bare->bench->map + at, room, MSG_DONTWAIT);
		if (n < 0 && errno == EAGAIN)
			continue;
		if (n <= 0)
			die("recv", n ? strerror(errno) : "closed");
		received += (uint64_t)n;
		at = (at + (uint64_t)n) % REGION_BYTES;
	}
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
	bare->cpu_ns = (uint64_t)used.tv_sec * NS_PER_S + (uint64_t)used.tv_nsec;
	return NULL;
}

/* Returns the receiving thread's processor time. */
static uint64_t bare_round(struct bench *bench)
{
	struct sockaddr_storage address = loopback();
	socklen_t bytes = sizeof(struct sockaddr_in);
	struct bare bare = {.bench = bench};
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	uint64_t sent = 0;
	pthread_t thread;

	if (bind(listener, (struct sockaddr *)&address, bytes) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&address, &bytes) ||
	    connect(fd, (struct sockaddr *)&address, bytes))
		die("loopback", strerror(errno));
	bare.fd = accept(listener, NULL, NULL);
	if (bare.fd < 0 || pthread_create(&thread, NULL, bare_main, &bare))
		die("thread", strerror(errno));
	while (sent < bench->round_bytes) {
		uint64_t at = sent % (JOBS * bench->tensor_bytes);
		uint64_t n = u64_min(bench->tensor_bytes - at % bench->tensor_bytes,
				     bench->round_bytes - sent);
		ssize_t done = send(fd, bench->stage + at, n, MSG_NOSIGNAL);

		if (done <= 0)
			die("send", strerror(errno));
		sent += (uint64_t)done;
	}
	pthread_join(thread, NULL);
	close(fd);
	close(bare.fd);
	close(listener);
	return bare.cpu_ns;
}

static uint64_t number(const char *text, uint64_t min, uint64_t max)
{
	char *end;
	unsigned long long value = strtoull(text, &end, 10);

	if (*end || value < min || value > max)
		die(text, "not a number in range");
	return value;
}

int main(int argc, char **argv)
{
	struct bench bench = {.random = 1};
	uint32_t rounds;

	if (argc != 5 && argc != 6)
		die("usage", "ROUND_MIB ROUNDS RECEIVE_CORE SEND_CORE [TENSOR_KIB]");
	bench.tensor_bytes =
	    (argc == 6 ? number(argv[5], 32, 512) : 512) * KIB / BLOCK_BYTES * BLOCK_BYTES;
	bench.round_bytes =
	    number(argv[1], 1, 1 << 20) * MIB / bench.tensor_bytes * bench.tensor_bytes;
	rounds = (uint32_t)number(argv[2], 1, 1000);
	bench.receive_core = (int)number(argv[3], 0, 1023);
	bench.send_core = (int)number(argv[4], 0, 1023);
	bench.map = mmap(NULL, REGION_BYTES, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	bench.stage = malloc(JOBS * bench.tensor_bytes);
	if (bench.map == MAP_FAILED || !bench.stage)
		die("memory", strerror(errno));
	memset(bench.stage, 7, JOBS * bench.tensor_bytes);
	way_open(&bench);
	pin(bench.send_core);
	way_round(&bench);
	(void)bare_round(&bench);
	printf("{\"round_bytes\": %llu, \"tensor_bytes\": %llu, \"rounds\": [",
	       (unsigned long long)bench.round_bytes, (unsigned long long)bench.tensor_bytes);
	for (uint32_t i = 0; i < rounds; i++) {
		uint64_t begin_ns = clock_now_ns(), before = receiver_cpu_ns(bench.receiver);
		uint64_t way_ns, way_wall, bare_ns;

		way_round(&bench);
		way_ns = receiver_cpu_ns(bench.receiver) - before;
		way_wall = clock_now_ns() - begin_ns;
		begin_ns = clock_now_ns();
		bare_ns = bare_round(&bench);
		printf("%s\n{\"tcp_cpu_ns\": %llu, \"tcp_ns\": %llu, \"bare_cpu_ns\": %llu, "
		       "\"bare_ns\": %llu}",
		       i ? "," : "", (unsigned long long)way_ns, (unsigned long long)way_wall,
		       (unsigned long long)bare_ns,
		       (unsigned long long)(clock_now_ns() - begin_ns));
		fflush(stdout);
	}
	printf("]}\n");
	return 0;
}
