/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stored.c - the back end that keeps elements as they are. It has no classes: segment_decode() and
 * the encoder copy its elements themselves, so the functions here only refuse.
 */
#include <errno.h>

#include "codec/lossless.h"

static int stored_encode(struct codec_scratch *scratch, const struct class_plane *plane,
			 const uint8_t *frequency, uint8_t *out, uint64_t room,
			 struct class_result *ret_result)
{
	(void)scratch;
	(void)plane;
	(void)frequency;
	(void)out;
	(void)room;
	(void)ret_result;
	return -EINVAL;
}

static int stored_decode(struct codec_scratch *scratch, const struct class_source *source,
			 const uint8_t *frequency, struct class_plane *plane)
{
	(void)scratch;
	(void)source;
	(void)frequency;
	(void)plane;
	return -EBADMSG;
}

const struct lossless_ops lossless_stored = {
    .name = "stored",
    .codec = SSV_CODEC_STORED,
    .has_classes = 0,
    .tensors_max = 1,
    .encode = stored_encode,
    .decode = stored_decode,
    .open_strips = stored_decode,
    .arena_bytes = lossless_no_arena,
    .init = lossless_no_init,
    .fini = lossless_no_fini,
};
