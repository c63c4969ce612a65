/* SPDX-License-Identifier: Apache-2.0 */
/* fetch_io.c - a session with one region, and fetches of single chunks. */
#include "fetch_io.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli.h"

static uint64_t block_bytes(const struct fetch_io *io, uint32_t part)
{
	return shape_tensor_bytes(&io->shape, part) / io->shape.tokens * FETCH_BLOCK_TOKENS;
}

/* Where a tensor's blocks begin. */
static uint64_t tensor_offset(const struct fetch_io *io, uint32_t tensor)
{
	uint64_t offset = 0;

	for (uint32_t t = 0; t < tensor; t++)
		offset += block_bytes(io, t % io->shape.parts_count) * io->blocks_count;
	return offset;
}

uint8_t *fetch_io_token(const struct fetch_io *io, uint32_t tensor, uint32_t block, uint32_t token)
{
	uint64_t bytes = block_bytes(io, tensor % io->shape.parts_count);

	return io->memory + tensor_offset(io, tensor) + block * bytes +
	       bytes / FETCH_BLOCK_TOKENS * token;
}

static void fill_layout(const struct fetch_io *io, const uint8_t model[8],
			struct ssv_tensor *tensors, struct ssv_layout *layout)
{
	const struct chunk_shape *shape = &io->shape;

	*layout = (struct ssv_layout){.struct_size = sizeof(*layout),
				      .dtype = shape->dtype,
				      .parts_count = shape->parts_count,
				      .layer0 = shape->layer0,
				      .layers_count = shape->layers_count,
				      .layers_total = shape->layers_total,
				      .rank = shape->rank,
				      .ranks_count = shape->ranks_count,
				      .block_tokens = FETCH_BLOCK_TOKENS,
				      .blocks_count = io->blocks_count,
				      .tensors_count = shape_tensors(shape),
				      .tensors = tensors};
	memcpy(layout->model, model, sizeof(layout->model));
	for (uint32_t p = 0; p < shape->parts_count; p++) {
		const struct chunk_part *part = &shape->parts[p];

		layout->parts[p] = (struct ssv_part){
		    .role = part->role,
		    .head0 = part->head0,
		    .heads = part->heads,
		    .dim = part->dim,
		    .digits_count = 3,
		    .digits = {{.axis = SSV_AXIS_DIM, .extent = part->dim, .stride = 1},
			       {.axis = SSV_AXIS_HEAD, .extent = part->heads, .stride = part->dim},
			       {.axis = SSV_AXIS_TOKEN,
				.extent = FETCH_BLOCK_TOKENS,
				.stride = part_channels(part)}}};
	}
	for (uint32_t t = 0; t < shape_tensors(shape); t++)
		tensors[t] =
		    (struct ssv_tensor){.layer = (uint16_t)(t / shape->parts_count),
					.part = (uint16_t)(t % shape->parts_count),
					.offset = tensor_offset(io, t),
					.block_stride = block_bytes(io, t % shape->parts_count)};
}

/* A sealed memfd of memory_bytes, mapped; -errno. */
static int make_memory(struct fetch_io *io)
{
	int fd = memfd_create("shadowserve-fetch", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	void *memory;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)io->memory_bytes) ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW))
		goto close_fd;
	memory = mmap(NULL, io->memory_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED)
		goto close_fd;
	io->memory = memory;
	return fd;

close_fd:
	close(fd);
	return -errno;
}

static int register_region(struct fetch_io *io, const uint8_t model[8], char *error)
{
	struct ssv_region region = {
	    .struct_size = sizeof(region), .memory = SSV_MEMORY_MEMFD, .bytes = io->memory_bytes};
	struct ssv_tensor *tensors = cli_alloc(shape_tensors(&io->shape) * sizeof(*tensors));
	struct ssv_layout layout;
	int err;

	fill_layout(io, model, tensors, &layout);
	region.fd = make_memory(io);
	err = region.fd < 0 ? region.fd
			    : ssv_region_register(io->ssv, &region, &layout, &io->region_id, error);
	if (region.fd >= 0)
		close(region.fd);
	free(tensors);
	return err;
}

int fetch_io_open(struct fetch_io *io, const char *command, const char *socket,
		  const struct chunk_shape *shape, const uint8_t model[8], uint32_t blocks_count)
{
	struct ssv_options options = {.struct_size = sizeof(options), .socket_path = socket};
	char error[SSV_ERROR_TEXT_MAX] = "";
	int err;

	memset(io, 0, sizeof(*io));
	io->shape = *shape;
	io->blocks_count = blocks_count;
	io->memory_bytes = align_up(tensor_offset(io, shape_tensors(shape)), 4096);
	err = ssv_connect(&options, &io->ssv, error);
	if (!err)
		err = register_region(io, model, error);
	if (!err)
		return 0;
	fetch_io_close(io);
	return cli_fail(EXIT_UNREACHABLE, "%s: %s", command, error[0] ? error : strerror(-err));
}

void fetch_io_close(struct fetch_io *io)
{
	if (io->ssv)
		(void)ssv_region_unregister(io->ssv, io->region_id, 5000);
	ssv_close(io->ssv);
	if (io->memory)
		munmap(io->memory, io->memory_bytes);
	memset(io, 0, sizeof(*io));
}

static int submit_one(struct fetch_io *io, const struct ssv_request *request)
{
	int accepted = ssv_submit(io->ssv, request, 1);

	return accepted == 1 ? 0 : accepted < 0 ? accepted : -EAGAIN;
}

int fetch_io_submit(struct fetch_io *io, const struct ssv_key *keys, uint32_t keys_count,
		    uint32_t position, const uint32_t *blocks, uint64_t user_data,
		    uint32_t deadline_ms)
{
	const struct ssv_request request = {.op = SSV_OP_FETCH,
					    .region = io->region_id,
					    .user_data = user_data,
					    .keys = keys,
					    .blocks = blocks,
					    .keys_count = keys_count,
					    .blocks_count = keys_count * FETCH_CHUNK_BLOCKS,
					    .position = position,
					    .deadline_ms = deadline_ms};

	return submit_one(io, &request);
}

int fetch_io_store(struct fetch_io *io, const struct ssv_key *key, uint32_t position,
		   const uint32_t *blocks, uint64_t user_data, uint8_t tier, uint8_t codec)
{
	const struct ssv_request request = {.op = SSV_OP_STORE,
					    .tier = tier,
					    .codec = codec,
					    .region = io->region_id,
					    .user_data = user_data,
					    .keys = key,
					    .blocks = blocks,
					    .keys_count = 1,
					    .blocks_count = FETCH_CHUNK_BLOCKS,
					    .position = position};

	return submit_one(io, &request);
}

int fetch_io_flush(struct fetch_io *io, uint64_t user_data, uint32_t deadline_ms)
{
	const struct ssv_request request = {
	    .op = SSV_OP_FLUSH, .user_data = user_data, .deadline_ms = deadline_ms};

	return submit_one(io, &request);
}

int fetch_io_wait(struct ssv *ssv, struct ssv_completion *ret_completion, uint64_t timeout_ms)
{
	const uint64_t deadline_ns = clock_now_ns() + timeout_ms * NS_PER_MS;
	uint64_t now_ns;
	int n = 0;

	while (n == 0 && (now_ns = clock_now_ns()) < deadline_ns) {
		uint64_t left_ms = (deadline_ns - now_ns) / NS_PER_MS + 1;

		n = ssv_poll(ssv, ret_completion, 1, (int)u64_min(left_ms, INT_MAX));
	}
	return n == 1 ? 0 : n ? n : -ETIMEDOUT;
}
