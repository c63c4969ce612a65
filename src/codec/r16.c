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
#include "codec/strips.h"

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
	uint64_t bytes_count = (uint64_t)streams * LENGTH_BYTES;
	struct r16_encode_job job = {
	    .plane = plane, .frequency = frequency, .streams_count = streams};
	uint8_t *place = scratch->streams;

	for (uint32_t k = 0; k < streams; k++) {
		uint32_t group0 = stream_group0(k, streams, plane->groups_count);
		uint32_t groups = stream_group0(k + 1, streams, plane->groups_count) - group0;

		place += (size_t)groups * plane->tokens * LANES + STREAM_EXTRA_BYTES;
		job.end[k] = place;
	}
	kernels_get()->r16_encode(&job);
	for (uint32_t k = 0; k < streams; k++)
		bytes_count += (uint64_t)(job.end[k] - job.begin[k]);
	if (bytes_count > room)
		return -E2BIG;
	place = out + (size_t)streams * LENGTH_BYTES;
	for (uint32_t k = 0; k < streams; k++) {
		uint32_t bytes = (uint32_t)(job.end[k] - job.begin[k]);

		memcpy(place, job.begin[k], bytes);
		store_le32(out + (size_t)k * LENGTH_BYTES, bytes);
		place += bytes;
	}
	ret_result->bytes_count = (uint32_t)bytes_count;
	ret_result->streams_count = streams;
	ret_result->class_crc = 0;
	return 0;
}

static int r16_open_strips(struct codec_scratch *scratch, const struct class_source *source,
			   const uint8_t *frequency, struct class_plane *plane)
{
	return strips_open_r16(scratch->strips, plane, frequency, source->bytes,
			       source->bytes_count, source->streams_count);
}

static int r16_decode(struct codec_scratch *scratch, const struct class_source *source,
		      const uint8_t *frequency, struct class_plane *plane)
{
	struct class_strips *strips = scratch->strips;
	int err = r16_open_strips(scratch, source, frequency, plane);

	while (!err && (err = strips_round(strips)) > 0) {
		uint8_t *classes[R16_STREAMS_MAX] = {0};
		uint32_t tokens;

		err = 0;
		for (uint32_t t = 0; t < plane->tokens; t += tokens) {
			tokens = (uint32_t)u64_min(plane->tokens - t, STRIP_TOKENS_MAX);
			for (uint32_t i = 0; i < strips->groups_count; i++)
				classes[i] = plane_group(plane, strips->group[i]) + t * LANES;
			strips_next(strips, t, tokens, classes);
		}
	}
	return err ? err : strips_close(strips);
}

const struct lossless_ops lossless_r16 = {
    .name = "r16",
    .codec = SSV_CODEC_R16,
    .has_classes = 1,
    .tensors_max = 1,
    .encode = r16_encode,
    .decode = r16_decode,
    .open_strips = r16_open_strips,
    .arena_bytes = lossless_no_arena,
    .init = lossless_no_init,
    .fini = lossless_no_fini,
};
