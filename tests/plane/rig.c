/* SPDX-License-Identifier: Apache-2.0 */
/* rig.c - see rig.h. */
#include "rig.h"
#include "../deliver/standin_cuda.h"

#include <cjson/cJSON.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "chunk/shape.h"

struct plane_config rig_config(const char *store_uri)
{
	return (struct plane_config){
	    .store_uri = store_uri,
	    .arena_bytes = 16 * MIB,
	    .workers_count = 1,
	    .sessions_max = 8,
	    .regions_max = 8,
	    .jobs_max = 32,
	    .lanes = 4,
	    .captures_max = 4,
	    .channels_max = 512,
	    .fetch_deadline_ms = 2000,
	    .store_deadline_ms = 5000,
	    .lookup_deadline_ms = 1000,
	    .tier = SSV_TIER_LOSSLESS,
	    .codec = SSV_CODEC_R16,
	    .seed = 1,
	};
}

void rig_create(struct rig *rig, const struct plane_config *config)
{
	char error[SSV_ERROR_TEXT_MAX] = "";
	int err;

	memset(rig, 0, sizeof(*rig));
	rig->config = *config;
	rig->now_ns = NS_PER_S;
	err = plane_create(config, &rig->plane, error);
	if (err)
		fail_msg("plane_create: %d: %s", err, error);
}

void rig_destroy(struct rig *rig)
{
	plane_destroy(rig->plane);
}

int rig_step(struct rig *rig)
{
	int did = plane_step(rig->plane, rig->now_ns);

	for (uint32_t i = 0; i < plane_threads(rig->plane); i++) {
		uint64_t wake_ns;

		did |= plane_worker_step(rig->plane, i, rig->now_ns, &wake_ns);
	}
	return did;
}

const struct plane_event *rig_wait(struct rig *rig, enum plane_event_kind kind, uint64_t limit_ms)
{
	const uint64_t limit_ns = rig->now_ns + limit_ms * NS_PER_MS;

	while (rig->now_ns <= limit_ns) {
		while (plane_poll(rig->plane, &rig->event, 1)) {
			if (rig->event.kind == kind)
				return &rig->event;
		}
		rig->now_ns += rig_step(rig) ? 10 * NS_PER_US : NS_PER_MS;
	}
	fail_msg("no event of kind %d within %llu ms", (int)kind, (unsigned long long)limit_ms);
	return NULL;
}

uint64_t rig_session(struct rig *rig, const char *engine_id, uint32_t rank, uint32_t ranks_count)
{
	char error[SSV_ERROR_TEXT_MAX] = "";
	uint64_t session = 0;

	if (plane_session_add(rig->plane, engine_id, rank, ranks_count, getpid(), &session, error))
		fail_msg("plane_session_add: %s", error);
	return session;
}

static void make_places(struct test_region *region)
{
	const struct ssv_layout *layout = &region->made.layout;
	const uint32_t dim = region->shape.dim, channels = (uint32_t)region->shape.heads * dim;
	const uint32_t elements = layout->block_tokens * channels;

	region->places = calloc((size_t)layout->tensors_count * elements, sizeof(uint64_t));
	assert_non_null(region->places);
	for (uint32_t i = 0; i < layout->tensors_count * elements; i++) {
		uint32_t rest = i % elements;

		region->places[i] = element_place(layout, i / elements, 0, rest / channels,
						  rest % channels / dim, rest % dim);
	}
}

static void region_create_memory(struct rig *rig, struct test_region *region, enum packing packing,
				 const struct test_shape *shape, uint64_t session, uint32_t memory)
{
	char error[SSV_ERROR_TEXT_MAX] = "";
	struct ssv_region offer = {.struct_size = sizeof(offer), .memory = memory};

	region->shape = *shape;
	make_layout(packing, shape, &region->made);
	make_places(region);
	region->fd = memfd_create("region", MFD_ALLOW_SEALING | MFD_CLOEXEC);
	assert_true(region->fd >= 0);
	assert_int_equal(ftruncate(region->fd, (off_t)align_up(region->made.bytes, 2 * MIB)), 0);
	assert_int_equal(fcntl(region->fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	region->memory =
	    mmap(NULL, region->made.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, region->fd, 0);
	assert_true(region->memory != MAP_FAILED);
	region_paint(region);
	region->session = session ? session : rig_session(rig, "engine", 0, 1);
	offer.fd = memory == SSV_MEMORY_ADDRESS ? -1 : region->fd;
	if (memory == SSV_MEMORY_GPU_FD)
		memset(offer.gpu_uuid, STANDIN_UUID_BYTE(0), sizeof(offer.gpu_uuid));
	offer.address = memory == SSV_MEMORY_ADDRESS ? (uintptr_t)region->memory : 0;
	offer.bytes = region->made.bytes;
	if (plane_region_add(rig->plane, region->session, &offer, &region->made.layout, NULL, NULL,
			     &region->region, error))
		fail_msg("plane_region_add %s: %s", packing_names[packing], error);
}

void region_create(struct rig *rig, struct test_region *region, enum packing packing,
		   const struct test_shape *shape, uint64_t session)
{
	region_create_memory(rig, region, packing, shape, session, SSV_MEMORY_MEMFD);
}

uint32_t region_create_address(struct rig *rig, struct test_region *region, enum packing packing,
			       const struct test_shape *shape, uint64_t session)
{
	char from = 1, to = 0;
	struct iovec local = {&to, 1}, remote = {&from, 1};
	uint32_t memory = SSV_MEMORY_ADDRESS;

	if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) != 1)
		memory = SSV_MEMORY_MEMFD;
	region_create_memory(rig, region, packing, shape, session, memory);
	return memory;
}

void region_create_gpu(struct rig *rig, struct test_region *region, enum packing packing,
		       const struct test_shape *shape, uint64_t session)
{
	region_create_memory(rig, region, packing, shape, session, SSV_MEMORY_GPU_FD);
}

void region_destroy(struct test_region *region)
{
	free(region->places);
	munmap(region->memory, region->made.bytes);
	close(region->fd);
}

const struct ssv_completion *rig_request(struct rig *rig, uint64_t session,
					 const struct ssv_request *request)
{
	static uint64_t number;
	struct ssv_request copy = *request;
	char error[SSV_ERROR_TEXT_MAX] = "";
	int err;

	copy.user_data = ++number;
	err = plane_submit(rig->plane, session, &copy, rig->now_ns, error);
	if (err)
		fail_msg("plane_submit: %d: %s", err, error);
	for (;;) {
		const struct plane_event *event = rig_wait(rig, PLANE_EVENT_COMPLETION, 30000);

		if (event->completion.user_data == copy.user_data)
			return &event->completion;
	}
}

const struct ssv_completion *rig_lookup(struct rig *rig, uint64_t session,
					const struct ssv_key *keys, uint32_t count)
{
	const struct ssv_request request = {.op = SSV_OP_LOOKUP, .keys = keys, .keys_count = count};

	return rig_request(rig, session, &request);
}

const struct ssv_completion *rig_store(struct rig *rig, const struct test_region *region,
				       const struct ssv_key *keys, uint32_t count,
				       const uint32_t *blocks, uint32_t position)
{
	const struct ssv_request request = {
	    .op = SSV_OP_STORE,
	    .region = region->region,
	    .keys = keys,
	    .keys_count = count,
	    .blocks = blocks,
	    .blocks_count = count * SSV_CHUNK_TOKENS / region->shape.block_tokens,
	    .position = position,
	};

	return rig_request(rig, region->session, &request);
}

const struct ssv_completion *rig_fetch(struct rig *rig, const struct test_region *region,
				       const struct ssv_key *keys, uint32_t count,
				       const uint32_t *blocks, uint32_t blocks_count,
				       uint32_t first_token, uint32_t position)
{
	const struct ssv_request request = {
	    .op = SSV_OP_FETCH,
	    .region = region->region,
	    .keys = keys,
	    .keys_count = count,
	    .blocks = blocks,
	    .blocks_count = blocks_count,
	    .first_token = first_token,
	    .position = position,
	};

	return rig_request(rig, region->session, &request);
}

void rig_flush(struct rig *rig, uint64_t session)
{
	const struct ssv_request request = {.op = SSV_OP_FLUSH};

	assert_int_equal(rig_request(rig, session, &request)->status, 0);
}

struct ssv_key chunk_key(uint32_t chunk)
{
	uint64_t state = chunk * 77ull + 5;
	struct ssv_key key;

	for (uint32_t i = 0; i < sizeof(key.bytes); i++)
		key.bytes[i] = (uint8_t)next_random(&state);
	return key;
}

/* Finite numbers of a few binades, as KV is; with a zero and some outliers among them. */
uint32_t element_bits(uint8_t dtype, uint32_t chunk, uint32_t tensor, uint32_t token,
		      uint32_t channel)
{
	uint64_t state =
	    (uint64_t)chunk << 40 ^ (uint64_t)tensor << 28 ^ (uint64_t)token << 16 ^ channel;
	uint32_t random = (uint32_t)next_random(&state);
	uint32_t sign = random >> 31, mantissa = random & 0x7fffff;
	uint32_t spread = (random >> 23 & 3) + (random >> 25 & 3);

	if (random % 1021 == 0)
		spread = 9;
	switch (dtype) {
	case SSV_DTYPE_BF16:
		return sign << 15 | (120 + spread) << 7 | mantissa >> 16;
	case SSV_DTYPE_FP16:
		return sign << 15 | (10 + spread) << 10 | mantissa >> 13;
	case SSV_DTYPE_FP32:
		return sign << 31 | (120 + spread) << 23 | mantissa;
	case SSV_DTYPE_E4M3:
		return sign << 7 | (2 + spread) << 3 | mantissa >> 20;
	default:
		return sign << 7 | (10 + spread) << 2 | mantissa >> 21;
	}
}

/* Visit the elements of tokens in blocks; write them, or count those that differ. */
static uint64_t region_visit(const struct test_region *region, uint32_t chunk, uint32_t first_token,
			     const uint32_t *blocks, uint32_t blocks_count, int write)
{
	const struct ssv_layout *layout = &region->made.layout;
	const uint32_t bytes = dtype_bytes(layout->dtype), per_block = layout->block_tokens;
	const uint32_t channels = (uint32_t)region->shape.heads * region->shape.dim;
	uint64_t wrong = 0;

	for (uint32_t i = 0; i < layout->tensors_count * blocks_count * per_block; i++) {
		uint32_t tensor = i / (blocks_count * per_block),
			 t = i % (blocks_count * per_block);
		const uint64_t *places =
		    region->places + ((size_t)tensor * per_block + t % per_block) * channels;
		uint8_t *block =
		    region->memory + layout->tensors[tensor].block_stride * blocks[t / per_block];

		for (uint32_t c = 0; c < channels; c++) {
			uint32_t bits =
			    element_bits(layout->dtype, chunk, tensor, first_token + t, c);

			if (write)
				memcpy(block + places[c], &bits, bytes);
			else
				wrong += memcmp(block + places[c], &bits, bytes) != 0;
		}
	}
	return wrong;
}

void region_fill(const struct test_region *region, uint32_t chunk, uint32_t first_token,
		 const uint32_t *blocks, uint32_t blocks_count)
{
	region_visit(region, chunk, first_token, blocks, blocks_count, 1);
}

uint64_t region_wrong(const struct test_region *region, uint32_t chunk, uint32_t first_token,
		      const uint32_t *blocks, uint32_t blocks_count)
{
	return region_visit(region, chunk, first_token, blocks, blocks_count, 0);
}

static uint8_t paint(uint64_t i)
{
	return (uint8_t)(i * 151 + (i >> 8) * 13 + 7);
}

void region_paint(const struct test_region *region)
{
	for (uint64_t i = 0; i < region->made.bytes; i++)
		region->memory[i] = paint(i);
}

static int is_named(uint32_t block, const uint32_t *blocks, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		if (blocks[i] == block)
			return 1;
	}
	return 0;
}

uint64_t region_painted_over(const struct test_region *region, const uint32_t *blocks,
			     uint32_t blocks_count)
{
	const struct ssv_layout *layout = &region->made.layout;
	const uint32_t bytes = dtype_bytes(layout->dtype), dim = region->shape.dim;
	const uint32_t channels = (uint32_t)region->shape.heads * dim;
	uint64_t changed = 0;

	for (uint32_t block = 0; block < layout->blocks_count; block++) {
		if (is_named(block, blocks, blocks_count))
			continue;
		for (uint32_t i = 0; i < layout->tensors_count * layout->block_tokens * channels;
		     i++) {
			uint32_t tensor = i / (layout->block_tokens * channels);
			uint32_t rest = i % (layout->block_tokens * channels);
			uint64_t at = element_place(layout, tensor, block, rest / channels,
						    rest % channels / dim, rest % dim);

			for (uint32_t k = 0; k < bytes; k++)
				changed += region->memory[at + k] != paint(at + k);
		}
	}
	return changed;
}

double rig_stat(struct rig *rig, const char *path)
{
	cJSON *json = cJSON_CreateObject(), *item = json;
	char name[64];
	double value;

	assert_int_equal(plane_stat(rig->plane, rig->now_ns, json), 0);
	while (*path) {
		size_t length = strcspn(path, ".");

		snprintf(name, sizeof(name), "%.*s", (int)length, path);
		item = cJSON_IsArray(item) ? cJSON_GetArrayItem(item, atoi(name))
					   : cJSON_GetObjectItem(item, name);
		if (!item)
			fail_msg("plane_stat has no \"%s\"", name);
		path += length + (path[length] == '.');
	}
	value = item->valuedouble;
	cJSON_Delete(json);
	return value;
}
