/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine.c - test_rdma_fetch: an engine behind a relay whose way is rdma. It stores chunks, loses
 * them, fetches them back several times and compares; then it says how much processor time the
 * relay took meanwhile. A figure, not a condition: the machine is emulated.
 *
 *	test_rdma_fetch SOCKET RELAY_PID
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/base.h"
#include "shadowserve.h"

#define LAYERS       8u
#define HEADS        8u
#define DIM          128u
#define BLOCK_TOKENS 16u
#define CHUNKS       8u
#define BLOCKS       (CHUNKS * SSV_CHUNK_TOKENS / BLOCK_TOKENS)
#define TENSORS      (2u * LAYERS)
#define ONE          (BLOCK_TOKENS * HEADS * DIM * 2u)
#define REGION       ((uint64_t)BLOCKS * TENSORS * ONE)
#define ROUNDS       16u
#define WAIT_MS      120000

static struct ssv_tensor tensors[TENSORS];

static void die(const char *what, int status, const char *text)
{
	printf("test_rdma_fetch: %s: %d %s\n", what, status, text);
	exit(1);
}

/* Block outermost. */
static struct ssv_layout make_layout(void)
{
	struct ssv_layout layout = {
	    .struct_size = sizeof(layout),
	    .dtype = SSV_DTYPE_BF16,
	    .parts_count = 2,
	    .layers_count = LAYERS,
	    .layers_total = LAYERS,
	    .ranks_count = 1,
	    .block_tokens = BLOCK_TOKENS,
	    .blocks_count = BLOCKS,
	    .tensors_count = TENSORS,
	    .tensors = tensors,
	};

	for (uint32_t i = 0; i < 2; i++)
		layout.parts[i] = (struct ssv_part){
		    .role = (uint8_t)(SSV_ROLE_K + i),
		    .heads = HEADS,
		    .dim = DIM,
		    .digits_count = 3,
		    .digits = {{.axis = SSV_AXIS_TOKEN,
				.extent = BLOCK_TOKENS,
				.stride = HEADS * DIM},
			       {.axis = SSV_AXIS_HEAD, .extent = HEADS, .stride = DIM},
			       {.axis = SSV_AXIS_DIM, .extent = DIM, .stride = 1}},
		};
	for (uint32_t i = 0; i < TENSORS; i++)
		tensors[i] = (struct ssv_tensor){.layer = (uint16_t)(i / 2),
						 .part = (uint16_t)(i % 2),
						 .offset = (uint64_t)i * ONE,
						 .block_stride = (uint64_t)TENSORS * ONE};
	return layout;
}

struct spent {
	double user_ms;      /* in the kernel's ticks */
	double processor_ms; /* user, system, and soft interrupts of the emulated device */
	uint64_t wakeups;    /* of the thread that serves sessions */
};

/* The text of a file of /proc/PID. */
static void process_read(const char *pid, const char *name, char text[4096])
{
	char path[64];
	FILE *file;
	size_t n;

	snprintf(path, sizeof(path), "/proc/%.16s/%.16s", pid, name);
	file = fopen(path, "re");
	if (!file)
		die(path, errno, "cannot be read");
	n = fread(text, 1, 4095, file);
	text[n] = 0;
	fclose(file);
}

/* What the kernel does for the emulated device (soft interrupts) is charged to whoever runs. */
static struct spent spent_so_far(const char *pid)
{
	unsigned long long processor_ns = 0, wakeups = 0;
	unsigned long ticks = 0;
	struct spent spent;
	char text[4096], *at;

	process_read(pid, "stat", text);
	if (sscanf(text, "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu", &ticks) !=
	    1)
		die("stat", -EPROTO, text);
	process_read(pid, "schedstat", text);
	if (sscanf(text, "%llu", &processor_ns) != 1)
		die("schedstat", -EPROTO, text);
	process_read(pid, "status", text);
	at = strstr(text, "\nvoluntary_ctxt_switches:");
	if (!at || sscanf(at, "\nvoluntary_ctxt_switches: %llu", &wakeups) != 1)
		die("status", -EPROTO, text);
	spent.user_ms = (double)ticks * 1e3 / (double)sysconf(_SC_CLK_TCK);
	spent.processor_ms = (double)processor_ns / 1e6;
	spent.wakeups = wakeups;
	return spent;
}

static struct ssv_completion ask(struct ssv *ssv, const struct ssv_request *request)
{
	struct ssv_completion done = {0};
	int n = ssv_submit(ssv, request, 1);

	if (n != 1)
		die("submit", n, "");
	n = ssv_poll(ssv, &done, 1, WAIT_MS);
	if (n != 1)
		die("poll", n, ssv_close_reason(ssv));
	if (done.status)
		die("completion", done.status, request->op == SSV_OP_FETCH ? "FETCH" : "STORE");
	return done;
}

static void fill(uint8_t *memory)
{
	uint64_t random = 1;

	for (uint64_t i = 0; i < REGION; i += 8) {
		random = random * 6364136223846793005ull + 1442695040888963407ull;
		memcpy(memory + i, &random, 8);
	}
}

static void store_and_fetch(struct ssv *ssv, uint32_t region, uint8_t *memory, const char *relay)
{
	uint8_t *kept = malloc(REGION);
	struct ssv_key keys[CHUNKS];
	uint32_t blocks[BLOCKS];
	struct ssv_request request = {.op = SSV_OP_STORE,
				      .tier = SSV_TIER_LOSSLESS,
				      .codec = SSV_CODEC_STORED,
				      .region = region,
				      .user_data = 1,
				      .keys = keys,
				      .keys_count = CHUNKS,
				      .blocks = blocks,
				      .blocks_count = BLOCKS};
	const struct ssv_request flush = {
	    .op = SSV_OP_FLUSH, .user_data = 2, .deadline_ms = WAIT_MS / 2};
	const double gb = (double)(ROUNDS * REGION) / 1e9;
	struct spent before, after;

	if (!kept)
		die("memory", -ENOMEM, "");
	for (uint32_t i = 0; i < BLOCKS; i++)
		blocks[i] = (i * 37 + 5) % BLOCKS;
	memset(keys, 0, sizeof(keys));
	for (uint32_t i = 0; i < CHUNKS; i++)
		memset(&keys[i], (int)(i + 1), sizeof(keys[i]));
	fill(memory);
	memcpy(kept, memory, REGION);
	(void)ask(ssv, &request);
	(void)ask(ssv, &flush);
	request = (struct ssv_request){.op = SSV_OP_FETCH,
				       .region = region,
				       .user_data = 3,
				       .keys = keys,
				       .keys_count = CHUNKS,
				       .blocks = blocks,
				       .blocks_count = BLOCKS,
				       .deadline_ms = WAIT_MS / 2};
	before = spent_so_far(relay);
	for (uint32_t round = 0; round < ROUNDS; round++) {
		memset(memory, 0, REGION);
		if (ask(ssv, &request).tokens != CHUNKS * SSV_CHUNK_TOKENS)
			die("FETCH", 0, "is short");
		if (memcmp(memory, kept, REGION))
			die("FETCH", 0, "brought other bytes");
	}
	after = spent_so_far(relay);
	printf("{\"gb\": %.6f, \"fetches\": %u, \"relay_wakeups\": %llu, \"relay_user_ms\": %.0f, "
	       "\"relay_processor_ms\": %.1f}\n",
	       gb, ROUNDS, (unsigned long long)(after.wakeups - before.wakeups),
	       after.user_ms - before.user_ms, after.processor_ms - before.processor_ms);
	free(kept);
}

int main(int argc, char **argv)
{
	struct ssv_options options = {.struct_size = sizeof(options), .connect_timeout_ms = 20000};
	struct ssv_region offer = {
	    .struct_size = sizeof(offer), .memory = SSV_MEMORY_MEMFD, .bytes = REGION};
	const struct ssv_layout layout = make_layout();
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct ssv *ssv = NULL;
	uint32_t region = 0;
	uint8_t *memory;
	int err;

	if (argc != 3)
		die("usage: test_rdma_fetch SOCKET RELAY_PID", 0, "");
	options.socket_path = argv[1];
	offer.fd = memfd_create("kv", MFD_ALLOW_SEALING | MFD_CLOEXEC);
	if (offer.fd < 0 || ftruncate(offer.fd, (off_t)REGION) ||
	    fcntl(offer.fd, F_ADD_SEALS, F_SEAL_SHRINK))
		die("memfd", errno, strerror(errno));
	memory = mmap(NULL, REGION, PROT_READ | PROT_WRITE, MAP_SHARED, offer.fd, 0);
	if (memory == MAP_FAILED)
		die("mmap", errno, strerror(errno));
	err = ssv_connect(&options, &ssv, error);
	if (err)
		die("connect", err, error);
	err = ssv_region_register(ssv, &offer, &layout, &region, error);
	if (err)
		die("register", err, error);
	store_and_fetch(ssv, region, memory, argv[2]);
	err = ssv_region_unregister(ssv, region, 10000);
	if (err)
		die("unregister", err, "");
	ssv_close(ssv);
	printf("[  PASSED  ] 1 test(s).\n");
	return 0;
}
