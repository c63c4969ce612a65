/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lanes.h - the order of elements inside a group, and the planes that back ends code.
 *
 * A group is 64 neighbouring channels (after the channel order of the meta, if there is one). Its
 * rows are coded in lane order: lane 4i+k holds the group's channel {2i, 2i+1, 32+2i, 33+2i}[k]; a
 * partial group is the identity, with only its channels as lanes.
 */
#ifndef SSV_CODEC_LANES_H
#define SSV_CODEC_LANES_H

#include "chunk/shape.h"

#define LANES GROUP_CHANNELS

static inline uint32_t lane_channel(uint32_t lane, uint32_t lanes)
{
	if (lanes < LANES)
		return lane;
	return (lane >> 2) * 2 + (lane & 1) + (lane & 2) * 16;
}

/* The inverse of lane_channel(). */
static inline uint32_t channel_lane(uint32_t channel, uint32_t lanes)
{
	if (lanes < LANES)
		return channel;
	return (channel % 32 >> 1) * 4 + (channel & 1) + (channel >> 5) * 2;
}

/* One tensor's classes, a byte each (0..15), [group][token][64]; idle lanes hold anything. */
struct class_plane {
	uint8_t *classes;
	uint32_t groups_count, tokens;
	uint32_t last_lanes; /* active lanes of the last group, 1..64 */
};

static inline uint32_t plane_lanes(const struct class_plane *plane, uint32_t group)
{
	return group + 1 == plane->groups_count ? plane->last_lanes : LANES;
}

static inline uint8_t *plane_group(const struct class_plane *plane, uint32_t group)
{
	return plane->classes + (size_t)group * plane->tokens * LANES;
}

#endif
