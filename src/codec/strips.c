/* SPDX-License-Identifier: Apache-2.0 */
/* strips.c - rounds of groups and strips of tokens (strips.h); where r16's streams begin and how
 * they must end (docs/codec.md, "r16"). The coder itself is a kernel. */
#include "codec/strips.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"

#define LENGTH_BYTES 4u

void strips_open_plane(struct class_strips *strips, const struct class_plane *plane)
{
	strips->kernels = kernels_get();
	strips->plane = plane;
	strips->streams_count = 0;
	strips->rounds_done = 0;
}

int strips_open_r16(struct class_strips *strips, const struct class_plane *plane,
		    const uint8_t *frequency, const uint8_t *bytes, uint32_t bytes_count,
		    uint32_t streams_count)
{
	uint32_t offset = streams_count * LENGTH_BYTES;

	if (!streams_count || streams_count > R16_STREAMS_MAX || bytes_count < offset)
		return -EBADMSG;
	strips_open_plane(strips, plane);
	strips->frequency = frequency;
	strips->streams_count = streams_count;
	for (uint32_t k = 0; k < streams_count; k++) {
		uint32_t length = load_le32(bytes + (size_t)k * LENGTH_BYTES);
		struct r16_stream *stream = &strips->stream[k];

		if (length < R16_STATES_BYTES || length > bytes_count - offset)
			return -EBADMSG;
		memcpy(stream->low, bytes + offset, LANES);
		memcpy(stream->high, bytes + offset + LANES, LANES);
		stream->next = bytes + offset + R16_STATES_BYTES;
		stream->end = bytes + offset + length;
		stream->over = 0;
		offset += length;
	}
	return offset == bytes_count ? 0 : -EBADMSG;
}

static int round_of_plane(struct class_strips *strips)
{
	strips->groups_count = strips->rounds_done < strips->plane->groups_count;
	strips->group[0] = strips->rounds_done++;
	return (int)strips->groups_count;
}

int strips_round(struct class_strips *strips)
{
	const struct class_plane *plane = strips->plane;
	struct r16_strip *strip = &strips->strip;
	uint32_t streams = strips->streams_count, count = 0;

	if (!streams)
		return round_of_plane(strips);
	for (uint32_t k = 0; k < streams; k++) {
		uint32_t group = k * plane->groups_count / streams + strips->rounds_done;

		if (group >= (k + 1) * plane->groups_count / streams)
			continue;
		if (strips->kernels->r16_table(&strips->table[count],
					       strips->frequency + (size_t)group * META_CLASSES))
			return -EBADMSG;
		strips->group[count] = group;
		strip->stream[count] = &strips->stream[k];
		strip->lanes[count] = plane_lanes(plane, group);
		count++;
	}
	strips->rounds_done++;
	strips->groups_count = count;
	strip->streams_count = count;
	strip->table = strips->table;
	return (int)count;
}

void strips_next(struct class_strips *strips, uint32_t token0, uint32_t tokens,
		 uint8_t *classes[R16_STREAMS_MAX])
{
	if (!strips->streams_count) {
		classes[0] = plane_group(strips->plane, strips->group[0]) + token0 * LANES;
		return;
	}
	memcpy(strips->strip.classes, classes, sizeof(strips->strip.classes));
	strips->strip.tokens = tokens;
	strips->kernels->r16_strip(&strips->strip);
}

void strips_fused(struct class_strips *strips, struct fused_job *job, uint32_t tokens)
{
	job->r16 = strips->strip;
	job->r16.tokens = tokens;
	strips->kernels->fused(job);
}

/* A lane ends where every lane's encoder began. */
static uint32_t lane_differs(const struct r16_stream *stream, uint32_t lane)
{
	return (uint32_t)(stream->low[lane] ^ (lane * 37 & 255)) |
	       (uint32_t)(stream->high[lane] ^ 1);
}

int strips_close(const struct class_strips *strips)
{
	uint32_t wrong = 0;

	for (uint32_t k = 0; k < strips->streams_count; k++) {
		const struct r16_stream *stream = &strips->stream[k];

		wrong |= stream->over | (stream->next != stream->end);
		for (uint32_t lane = 0; lane < LANES; lane++)
			wrong |= lane_differs(stream, lane);
	}
	return wrong ? -EBADMSG : 0;
}
