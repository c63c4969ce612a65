/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sample.h - containers for the tests of this room: sound header, table and meta, random wire data.
 *
 * The wire data means nothing to a codec; everything that container_open() and
 * container_segment_check() look at is right. The same options and seed give the same bytes.
 */
#ifndef SAMPLE_H
#define SAMPLE_H

#include "chunk/builder.h"

struct sample_options {
	struct chunk_shape shape;
	uint8_t tier, codec; /* enum ssv_tier, enum wire_codec */
	uint8_t flags;       /* enum tensor_flags of every tensor */
	uint8_t verbatim_tokens;
	uint8_t streams;
	uint32_t groups_each;  /* groups an entry; 0: all of the tensor */
	uint32_t tensors_each; /* tensors an entry; 0: one */
	uint32_t exceptions;   /* an entry */
	uint64_t seed;
};

struct sample {
	uint8_t *bytes; /* malloc; exactly value_bytes + CONTAINER_SLACK_BYTES */
	uint64_t value_bytes;
	struct container_header header;
};

uint64_t sample_random(uint64_t *seed);
/* $SSV_SEED, or one from the clock; printed, so that a failure can be repeated. */
uint64_t sample_seed(void);

/* K and V of `heads` heads of `dim`, `layers` layers, bf16. */
struct chunk_shape sample_shape(uint32_t layers, uint32_t heads, uint32_t dim, uint32_t tokens);

/* Fails the test when the builder refuses. */
void sample_build(const struct sample_options *options, struct sample *ret_sample);
void sample_free(struct sample *sample);

/* What container_open() needs to accept the sample, comparing everything that can be compared. */
struct container_expect sample_expect(const struct sample *sample);

/* Open, load all meta and check all segments, as a decoder does. *ret_err is what a reader would
 * return; CONTAINER_FAULT_NONE with 0. */
enum container_fault sample_verdict(const uint8_t *bytes, const struct container_expect *expect,
				    int *ret_err);

/* Write both checksums again, after an edit of header, table or meta. */
void sample_reseal(uint8_t *bytes);

#endif
