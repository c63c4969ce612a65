/* SPDX-License-Identifier: Apache-2.0 */
/*
 * strips.h - a tensor's classes in small pieces: a round is one group, or one group of each r16
 * stream side by side; a strip is a few tokens of a round's groups. So classes go from the coder to
 * the elements within the first-level cache.
 *
 * open -> { strips_round -> strips_next for each strip of its tokens }* -> strips_close. Nothing is
 * known about damage before strips_close.
 */
#ifndef SSV_CODEC_STRIPS_H
#define SSV_CODEC_STRIPS_H

#include "codec/kernels.h"

struct class_strips {
	const struct kernels *kernels;
	const struct class_plane *plane;
	const uint8_t *frequency; /* [groups][16] */
	uint32_t streams_count;   /* 0: the plane holds the classes */
	uint32_t rounds_done;

	/* The current round. */
	uint32_t groups_count;
	uint32_t group[R16_STREAMS_MAX];

	struct r16_strip strip;
	struct r16_stream stream[R16_STREAMS_MAX];
	struct r16_table table[R16_STREAMS_MAX];
};

/* The classes of a plane that was decoded; its groups one by one. */
void strips_open_plane(struct class_strips *strips, const struct class_plane *plane);

/* The r16 streams of a tensor; of the plane only its shape is used. bytes: the entry's class data.
 * -EBADMSG: the streams do not fill it. */
SSV_MUST_CHECK int strips_open_r16(struct class_strips *strips, const struct class_plane *plane,
				   const uint8_t *frequency, const uint8_t *bytes,
				   uint32_t bytes_count, uint32_t streams_count);

/* Go to the next round: how many groups it has, 0 after the last, -EBADMSG. */
SSV_MUST_CHECK int strips_round(struct class_strips *strips);

/* The classes of the round's next tokens, at most STRIP_TOKENS_MAX: classes[i] is what group[i] has
 * for them. They are decoded to the places that classes names, or stay where the plane has them. */
void strips_next(struct class_strips *strips, uint32_t token0, uint32_t tokens,
		 uint8_t *classes[R16_STREAMS_MAX]);

/* All of the round's tokens, from r16 streams to their targets at once. */
void strips_fused(struct class_strips *strips, struct fused_job *job, uint32_t tokens);

/* After the last round: -EBADMSG unless all streams were used up exactly. */
SSV_MUST_CHECK int strips_close(const struct class_strips *strips);

#endif
