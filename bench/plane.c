/* SPDX-License-Identifier: Apache-2.0 */
/*
 * plane.c - how fast one worker moves chunks between a store and a memfd region, and where the time
 * goes. One thread steps everything, so the figures are of one core.
 *
 *	bench_plane [STORE-URI] [LAYERS HEADS DIM] [TIER] [CODEC]
 */
#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "codec/codec.h"
#include "plane/plane.h"

#define CHUNKS       23u /* a prompt of 6,000 tokens */
#define BLOCK_TOKENS 32u
#define PER_CHUNK    (SSV_CHUNK_TOKENS / BLOCK_TOKENS)
#define ROUNDS       10u

struct bench {
	struct plane *plane;
	uint64_t session;
	uint32_t region;
	uint16_t layers, heads, dim;
	uint8_t *memory;
	uint64_t bytes;
	struct ssv_key keys[CHUNKS];
	uint32_t blocks[CHUNKS * PER_CHUNK];
};

static struct ssv_completion run(struct bench *bench, uint8_t op, uint8_t tier, uint8_t codec)
{
	struct ssv_request request = {.op = op, .user_data = 1, .tier = tier, .codec = codec};
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct plane_event event;
	uint64_t wake_ns;

	if (op != SSV_OP_FLUSH) {
		request.keys = bench->keys;
		request.keys_count = CHUNKS;
	}
	if (op == SSV_OP_FETCH || op == SSV_OP_STORE) {
		request.region = bench->region;
		request.blocks = bench->blocks;
		request.blocks_count = CHUNKS * PER_CHUNK;
		request.deadline_ms = 60000;
	}
	if (plane_submit(bench->plane, bench->session, &request, clock_now_ns(), error)) {
		fprintf(stderr, "bench_plane: %s\n", error);
		exit(1);
	}
	while (!plane_poll(bench->plane, &event, 1)) {
		plane_step(bench->plane, clock_now_ns());
		plane_worker_step(bench->plane, 0, clock_now_ns(), &wake_ns);
	}
	return event.completion;
}

/* Two parts; [layer][block][head][part], K as [dim][token], V as [token][dim]: vLLM on a CPU. */
static int bench_region(struct bench *b, char *error)
{
	static struct ssv_tensor tensors[SSV_TENSORS_MAX];
	const uint64_t half = (uint64_t)BLOCK_TOKENS * b->dim;
	const uint64_t block = half * b->heads * 2 * 2, blocks = CHUNKS * PER_CHUNK;
	struct ssv_layout layout = {
	    .dtype = SSV_DTYPE_BF16,
	    .parts_count = 2,
	    .layers_count = b->layers,
	    .layers_total = b->layers,
	    .ranks_count = 1,
	    .block_tokens = BLOCK_TOKENS,
	    .blocks_count = (uint32_t)blocks,
	    .tensors_count = 2u * b->layers,
	    .tensors = tensors,
	};
	struct ssv_region offer = {.memory = SSV_MEMORY_MEMFD, .bytes = block * blocks * b->layers};

	for (uint32_t i = 0; i < 2; i++) {
		struct ssv_part *part = &layout.parts[i];

		part->role = (uint8_t)(SSV_ROLE_K + i);
		part->heads = b->heads;
		part->dim = b->dim;
		part->digits_count = 3;
		part->digits[0] = (struct ssv_digit){
		    .axis = SSV_AXIS_TOKEN, .extent = BLOCK_TOKENS, .stride = i ? b->dim : 1};
		part->digits[1] = (struct ssv_digit){
		    .axis = SSV_AXIS_DIM, .extent = b->dim, .stride = i ? 1 : BLOCK_TOKENS};
		part->digits[2] = (struct ssv_digit){
		    .axis = SSV_AXIS_HEAD, .extent = b->heads, .stride = (int64_t)(2 * half)};
	}
	for (uint32_t i = 0; i < layout.tensors_count; i++)
		tensors[i] =
		    (struct ssv_tensor){.layer = (uint16_t)(i / 2),
					.part = (uint16_t)(i % 2),
					.offset = i / 2 * blocks * block + i % 2 * half * 2,
					.block_stride = block};
	offer.fd = memfd_create("bench", MFD_ALLOW_SEALING | MFD_CLOEXEC);
	if (offer.fd < 0 || ftruncate(offer.fd, (off_t)offer.bytes) ||
	    fcntl(offer.fd, F_ADD_SEALS, F_SEAL_SHRINK))
		return -errno;
	b->bytes = offer.bytes;
	b->memory = mmap(NULL, b->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, offer.fd, 0);
	if (b->memory == MAP_FAILED)
		return -errno;
	return plane_region_add(b->plane, b->session, &offer, &layout, NULL, NULL, &b->region,
				error);
}

/* Normal numbers, as KV looks to an entropy coder at first sight. */
static void bench_fill(struct bench *b)
{
	uint64_t state = 88172645463325252ull;
	uint16_t *elements = (uint16_t *)(void *)b->memory;

	for (uint64_t i = 0; i < b->bytes / 2; i++) {
		uint32_t bits;
		float sum = 0;

		for (int k = 0; k < 4; k++) {
			state ^= state << 13;
			state ^= state >> 7;
			state ^= state << 17;
			sum += (float)(int64_t)state * 0x1p-63f;
		}
		memcpy(&bits, &sum, sizeof(bits));
		elements[i] = (uint16_t)(bits >> 16);
	}
	for (uint32_t i = 0; i < CHUNKS; i++)
		memset(b->keys[i].bytes, (int)(i + 1), sizeof(b->keys[i].bytes));
	for (uint32_t i = 0; i < CHUNKS * PER_CHUNK; i++)
		b->blocks[i] = (i * 67) % (CHUNKS * PER_CHUNK);
}

static void print_stages(struct bench *b)
{
	cJSON *json = cJSON_CreateObject(), *stage;

	if (plane_stat(b->plane, clock_now_ns(), json) == 0) {
		cJSON_ArrayForEach(stage, cJSON_GetObjectItem(json, "stages"))
		    printf("  %-8s %8.0f times, %10.0f us\n", stage->string,
			   cJSON_GetObjectItem(stage, "count")->valuedouble,
			   cJSON_GetObjectItem(stage, "sum_us")->valuedouble);
	}
	cJSON_Delete(json);
}

static int bench_run(struct bench *b, uint8_t tier, uint8_t codec)
{
	uint64_t start_ns = clock_now_ns(), best_ns = UINT64_MAX;
	double megabytes = (double)b->bytes / 1e6;
	struct ssv_completion completion;

	run(b, SSV_OP_STORE, tier, codec);
	completion = run(b, SSV_OP_FLUSH, 0, 0);
	printf("store: %.1f MB in %.1f ms, %.2f GB/s\n", megabytes,
	       (double)(clock_now_ns() - start_ns) / 1e6,
	       (double)b->bytes / (double)(clock_now_ns() - start_ns));
	for (uint32_t i = 0; i < ROUNDS; i++) {
		start_ns = clock_now_ns();
		completion = run(b, SSV_OP_FETCH, 0, 0);
		best_ns = u64_min(best_ns, clock_now_ns() - start_ns);
		if (completion.status) {
			fprintf(stderr, "bench_plane: fetch: %d\n", completion.status);
			return 1;
		}
	}
	printf("fetch: %.1f MB in %.2f ms (best of %u), %.2f GB/s, ratio %.2f\n", megabytes,
	       (double)best_ns / 1e6, ROUNDS, (double)b->bytes / (double)best_ns,
	       (double)completion.kv_bytes / (double)completion.wire_bytes);
	print_stages(b);
	return 0;
}

int main(int argc, char **argv)
{
	struct plane_config config = {
	    .store_uri = argc > 1 ? argv[1] : "memory:bench",
	    .arena_bytes = 256 * MIB,
	    .workers_count = 1,
	    .sessions_max = 2,
	    .regions_max = 2,
	    .jobs_max = 8,
	    .lanes = 4,
	    .captures_max = 8,
	    .channels_max = 2048,
	    .fetch_deadline_ms = 60000,
	    .store_deadline_ms = 60000,
	    .lookup_deadline_ms = 1000,
	    .tier = SSV_TIER_LOSSLESS,
	    .codec = SSV_CODEC_R16,
	};
	struct bench bench = {.layers = (uint16_t)(argc > 2 ? atoi(argv[2]) : 6),
			      .heads = (uint16_t)(argc > 3 ? atoi(argv[3]) : 2),
			      .dim = (uint16_t)(argc > 4 ? atoi(argv[4]) : 64)};
	uint8_t tier = argc > 5 ? tier_parse(argv[5]) : SSV_TIER_LOSSLESS;
	uint8_t codec = argc > 6 ? codec_parse(argv[6]) : SSV_CODEC_R16;
	char error[SSV_ERROR_TEXT_MAX] = "";
	int err;

	err = plane_create(&config, &bench.plane, error);
	if (!err)
		err =
		    plane_session_add(bench.plane, "bench", 0, 1, getpid(), &bench.session, error);
	if (!err)
		err = bench_region(&bench, error);
	if (err) {
		fprintf(stderr, "bench_plane: %s (%d)\n", error, err);
		return 1;
	}
	bench_fill(&bench);
	err = bench_run(&bench, tier, codec);
	plane_destroy(bench.plane);
	return err;
}
