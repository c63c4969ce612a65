/* SPDX-License-Identifier: Apache-2.0 */
/*
 * reader.h - one entry of a container, read tensor by tensor: for decoding and for transcoding.
 *
 * entry_reader_open -> { entry_reader_strips or _classes, entry_reader_elements }* for each tensor
 * in order -> entry_reader_close. An entry that is stored has one tensor and no classes.
 */
#ifndef SSV_CODEC_READER_H
#define SSV_CODEC_READER_H

#include "codec/codec.h"
#include "codec/kernels.h"
#include "codec/lossless.h"

struct entry_reader {
	const struct container *container; /* borrowed until closed */
	struct container_entry entry;
	struct codec_scratch *scratch;
	const struct kernels *kernels;
	const struct lossless_ops *ops;
	int is_trellis; /* its symbols are of trellis.h */
	struct class_source source;
	uint32_t tokens, element_bytes, verbatim_tokens;
	uint32_t index; /* of the next tensor in the entry */

	/* The current tensor. */
	struct tensor_meta meta;
	struct tensor_extent extent;
	uint32_t dim;
	struct class_plane plane;
	uint32_t exception_base; /* exception index of its first element */

	/* The next entry's wire data, as far as no tensor of this one had it brought near. */
	const uint8_t *soon;
	uint32_t soon_bytes;

	/* Where reading stands in the wire data. */
	const uint8_t *raw, *exception, *verbatim;
	uint32_t exceptions_left;
};

/* Verify the wire data's checksum and find its parts. */
SSV_MUST_CHECK enum container_fault entry_reader_open(struct entry_reader *reader,
						      const struct container *container,
						      uint32_t index,
						      struct codec_scratch *scratch);
/* The same for a `deflate` entry that was verified and whose classes were inflated to pairs. */
SSV_MUST_CHECK enum container_fault entry_reader_open_inflated(struct entry_reader *reader,
							       const struct container *container,
							       uint32_t index, const uint8_t *pairs,
							       struct codec_scratch *scratch);
/* Go to the next tensor; unless stored, decode its classes to reader->plane. */
SSV_MUST_CHECK enum container_fault entry_reader_classes(struct entry_reader *reader);
/* The same, but the classes of r16 are decoded while the elements are written. */
SSV_MUST_CHECK enum container_fault entry_reader_strips(struct entry_reader *reader);
/* Write the tensor's elements; moves raw, exception and verbatim past its share of them. */
SSV_MUST_CHECK enum container_fault entry_reader_elements(struct entry_reader *reader,
							  const struct decode_target *target);
/* Was everything used? */
SSV_MUST_CHECK enum container_fault entry_reader_close(const struct entry_reader *reader);

#endif
