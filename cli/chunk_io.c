/* SPDX-License-Identifier: Apache-2.0 */
/* chunk_io.c - reads and decodes whole chunks. */
#include "chunk_io.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "cli.h"

void chunk_io_init(struct chunk_io *io)
{
	uint64_t bytes = align_up(codec_scratch_bytes(SSV_CHANNELS_MAX), 64);

	memset(io, 0, sizeof(*io));
	io->scratch = aligned_alloc(64, bytes);
	if (!io->scratch || codec_scratch_init(io->scratch, bytes, SSV_CHANNELS_MAX)) {
		fputs("shadowserve: out of memory\n", stderr);
		exit(EXIT_BROKEN);
	}
}

void chunk_io_fini(struct chunk_io *io)
{
	codec_scratch_fini(io->scratch);
	free(io->scratch);
	free(io->elements);
	memset(io, 0, sizeof(*io));
}

/* The target of tensor t of an entry: canonical order at out. */
static struct decode_target tensor_target(struct chunk_io *io, const struct chunk_shape *shape,
					  uint32_t t, uint32_t part, uint8_t *out)
{
	uint32_t channels = part_channels(&shape->parts[part]);
	uint64_t row_bytes = (uint64_t)channels * dtype_bytes(shape->dtype);

	for (uint32_t token = 0; token < shape->tokens; token++)
		io->tokens[t][token] = out + token * row_bytes;
	return (struct decode_target){
	    .token = io->tokens[t], .channel = io->channels, .run_channels = channels};
}

static int decode_entry(struct chunk_io *io, const struct container *container, uint32_t index,
			enum container_fault *ret_fault)
{
	const struct chunk_shape *shape = &container->header.shape;
	struct decode_target targets[ENTRY_TENSORS_MAX];
	struct container_entry entry;
	uint64_t offset = 0;
	uint32_t tensor;

	container_entry(container, index, &entry);
	tensor = (uint32_t)entry.layer * shape->parts_count + entry.part;
	for (uint32_t t = 0; t < tensor; t++)
		offset += shape_tensor_bytes(shape, t % shape->parts_count);
	for (uint32_t t = 0; t < entry.tensors_count; t++) {
		uint32_t part = (tensor + t) % shape->parts_count;

		targets[t] = tensor_target(io, shape, t, part, io->elements + offset);
		offset += shape_tensor_bytes(shape, part);
	}
	return segment_decode(container, index, targets, io->scratch, ret_fault);
}

int chunk_io_decode(struct chunk_io *io, const struct container *container,
		    enum container_fault *ret_fault)
{
	uint64_t bytes = container->header.out_bytes;
	int err = 0;

	if (bytes > io->elements_capacity) {
		free(io->elements);
		io->elements = cli_alloc(bytes);
		io->elements_capacity = bytes;
	}
	for (uint32_t c = 0; c < SSV_CHANNELS_MAX; c++)
		io->channels[c] = c * dtype_bytes(container->header.shape.dtype);
	for (uint32_t i = 0; i < container->header.segments_count && !err; i++)
		err = decode_entry(io, container, i, ret_fault);
	return err;
}

int chunk_io_open(struct container *container, const uint8_t *bytes, uint64_t bytes_count,
		  const struct ssv_key *key, enum container_fault *ret_fault)
{
	struct container_expect expect = {
	    .value_bytes = bytes_count, .first_token = -1, .any_key = !key};

	if (key)
		expect.key = *key;
	return container_open(container, bytes, bytes_count, &expect, ret_fault);
}

int chunk_io_read_file(const char *path, uint8_t **ret_bytes, uint64_t *ret_count)
{
	FILE *file = fopen(path, "rb");
	uint8_t *bytes = NULL;
	struct stat stat;
	int err = 0;

	if (!file)
		return -errno;
	if (fstat(fileno(file), &stat))
		err = -errno;
	else if (!S_ISREG(stat.st_mode))
		err = S_ISDIR(stat.st_mode) ? -EISDIR : -EINVAL;
	else if (stat.st_size > (off_t)UINT32_MAX)
		err = -EFBIG;
	if (!err) {
		bytes = cli_alloc((size_t)stat.st_size + CONTAINER_SLACK_BYTES);
		if (fread(bytes, 1, (size_t)stat.st_size, file) != (size_t)stat.st_size)
			err = -EIO;
	}
	fclose(file);
	if (err) {
		free(bytes);
		return err;
	}
	*ret_bytes = bytes;
	*ret_count = (uint64_t)stat.st_size;
	return 0;
}
