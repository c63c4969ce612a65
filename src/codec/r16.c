/* SPDX-License-Identifier: Apache-2.0 */
/*
 * r16.c - the r16 back end: class data is u32 length[S], then S streams, each coding its share of
 * the plane's groups with 64 lanes. The coder itself is a kernel (scalar_r16.c is the reference).
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "codec/kernels.h"
#include "codec/lossless.h"

#define LENGTH_BYTES 4u

/* More streams decode faster and cost R16_STATES_BYTES + LENGTH_BYTES each. */
static uint32_t choose_streams(uint32_t groups)
{
	if (groups >= 4)
		return 4;
	return groups >= 2 ? 2 : 1;
}

static int r16_encode(struct codec_scratch *scratch, const struct class_plane *plane,
		      const uint8_t *frequency, uint8_t *out, uint64_t room,
		      struct class_result *ret_result)
{
	uint32_t streams = choose_streams(plane->groups_count);
	uint8_t *next = out + (size_t)streams * LENGTH_BYTES, *end = out + room;

	(void)scratch;
	if (room < streams * LENGTH_BYTES)
		return -E2BIG;
	for (uint32_t k = 0; k < streams; k++) {
		struct r16_encode_job job = {.plane = plane,
					     .frequency = frequency,
					     .group0 = k * plane->groups_count / streams,
					     .group_end = (k + 1) * plane->groups_count / streams,
					     .begin = next,
					     .end = end};
		const uint8_t *stream = kernels_get()->r16_encode(&job);
		uint32_t bytes;

		if (!stream)
			return -E2BIG;
		bytes = (uint32_t)(end - stream);
		memmove(next, stream, bytes);
		store_le32(out + (size_t)k * LENGTH_BYTES, bytes);
		next += bytes;
	}
	ret_result->bytes_count = (uint32_t)(next - out);
	ret_result->streams_count = streams;
	ret_result->class_crc = 0;
	return 0;
}

static int r16_decode(struct codec_scratch *scratch, const struct class_source *source,
		      const uint8_t *frequency, struct class_plane *plane)
{
	struct r16_job job = {
	    .streams_count = source->streams_count, .frequency = frequency, .plane = plane};
	uint32_t offset = source->streams_count * LENGTH_BYTES;

	(void)scratch;
	if (source->streams_count > R16_STREAMS_MAX || source->bytes_count < offset)
		return -EBADMSG;
	for (uint32_t k = 0; k < source->streams_count; k++) {
		uint32_t bytes = load_le32(source->bytes + (size_t)k * LENGTH_BYTES);

		if (bytes < R16_STATES_BYTES || bytes > source->bytes_count - offset)
			return -EBADMSG;
		job.stream[k] = source->bytes + offset;
		job.stream_bytes[k] = bytes;
		offset += bytes;
	}
	if (offset != source->bytes_count)
		return -EBADMSG;
	return kernels_get()->r16_decode(&job);
}

const struct lossless_ops lossless_r16 = {
    .name = "r16",
    .codec = SSV_CODEC_R16,
    .has_classes = 1,
    .tensors_max = 1,
    .encode = r16_encode,
    .decode = r16_decode,
    .arena_bytes = lossless_no_arena,
    .init = lossless_no_init,
    .fini = lossless_no_fini,
};
