/* SPDX-License-Identifier: Apache-2.0 */
/*
 * decode.c - one entry of a container, verified and written to its targets.
 *
 * A tensor is decoded in strips, a few tokens of a few groups: classes (strips.h) -> tile of
 * elements (kernels) -> exceptions and verbatim tokens merged in -> targets. What lies between wire
 * data and targets stays in the first-level cache. container_open() has checked every length and
 * the meta; what is checked here is the class data and the exceptions.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "codec/reader.h"
#include "codec/scalar.h"
#include "codec/strips.h"
#include "codec/symbols.h"
#include "codec/trellis.h"

#define STRIP_TOKENS     32u /* of elements of 2 bytes and more: a cache line of a channel */
#define COLUMN_BYTES_MAX 8u  /* longest run that a transposed layout repeats */
#define HELD_PITCH       (R16_STREAMS_MAX / 2 * FUSED_ROW_BYTES) /* of tokens in scratch->held */

/* One group of the current round. */
struct group_work {
	uint32_t group, lanes;
	uint32_t exception, exception_end; /* its next one, counted from the tensor's first */
	struct tile_lanes lane;
	struct tile_job tile;
	struct write_job write;
	uint8_t *rows; /* its elements of the strip at hand, pitch apart */
	uint32_t pitch;
	uint32_t place[LANES];
};

/* A tensor on its way. */
struct tensor_work {
	struct entry_reader *r;
	const struct decode_target *target;
	uint64_t reciprocal; /* of channels_count: 2^40 / it, rounded up; exact below 2^24 */
	uint32_t strip_tokens;
	int has_lines; /* bf16 at aligned tokens */
	uint32_t unit; /* channels of a run, as far as groups keep them together */
	uint32_t held_place[R16_STREAMS_MAX];
	uint8_t is_held; /* rows of the last round wait in scratch->held */
	struct group_work group[R16_STREAMS_MAX];
};

/* Where channel c of the extent stands in the coded order. */
static void order_invert(const struct entry_reader *r)
{
	for (uint32_t p = 0; r->meta.order && p < r->meta.channels_count; p++)
		r->scratch->position[load_le16(r->meta.order + 2 * p)] = (uint16_t)p;
}

static uint32_t group_lanes(const struct entry_reader *r, uint32_t group)
{
	return plane_lanes(&r->plane, group);
}

/* Where each group's raw bits begin; their sum was checked. */
static void raw_find(const struct entry_reader *r)
{
	uint32_t offset = 0;

	for (uint32_t group = 0; group <= r->extent.groups_count; group++) {
		r->scratch->raw_offset[group] = offset;
		if (group < r->extent.groups_count) {
			uint32_t bits = group_raw_bits(&r->container->header, &r->meta, group);

			offset += r->tokens * ((group_lanes(r, group) * bits + 7) / 8);
		}
	}
}

struct exception {
	uint32_t token, position;
};

/* Exception `index` of the tensor; 0 when it is not of this tensor. */
static inline int exception_read(const struct tensor_work *w, uint32_t index, struct exception *x)
{
	const struct entry_reader *r = w->r;
	const uint8_t *in =
	    r->exception + (size_t)index * (EXCEPTION_INDEX_BYTES + r->element_bytes);
	uint32_t channels = r->extent.channels_count, channel;
	uint32_t at = (uint32_t)in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16;

	at -= r->exception_base; /* an earlier tensor's becomes huge */
	if (at >= r->tokens * channels)
		return 0;
	x->token = (uint32_t)(at * w->reciprocal >> 40);
	channel = at - x->token * channels;
	x->position = r->meta.order ? r->scratch->position[channel] : channel;
	return 1;
}

/*
 * Find where each group's exceptions begin. They must lie in range, outside verbatim tokens, and
 * come in decode order, each once; one that is of no turn is left, and found at the end.
 */
static int exceptions_find(const struct tensor_work *w)
{
	const struct entry_reader *r = w->r;
	uint32_t *first = r->scratch->exception_first;
	uint32_t group = 0, count;
	struct exception x;
	int64_t last = -1;

	first[0] = 0;
	for (count = 0; count < r->exceptions_left && exception_read(w, count, &x); count++) {
		uint32_t at = x.position / LANES, lane;
		int64_t turn;

		lane = channel_lane(x.position % LANES, group_lanes(r, at));
		turn = ((int64_t)at * r->tokens + x.token) * LANES + lane;
		if (turn <= last || x.token < r->verbatim_tokens)
			return -EBADMSG;
		last = turn;
		while (group < at)
			first[++group] = count;
	}
	while (group < r->extent.groups_count)
		first[++group] = count;
	return 0;
}

static inline void element_copy(uint8_t *to, const uint8_t *from, uint32_t bytes)
{
	if (bytes == 2)
		memcpy(to, from, 2);
	else if (bytes == 4)
		memcpy(to, from, 4);
	else
		*to = *from;
}

/* Merge the exceptions of a group's next tokens into its tile. */
static void strip_exceptions(const struct tensor_work *w, struct group_work *g, uint32_t token0,
			     uint32_t tokens)
{
	const struct entry_reader *r = w->r;
	uint32_t bytes = r->element_bytes;

	for (; g->exception < g->exception_end; g->exception++) {
		struct exception x;

		if (!exception_read(w, g->exception, &x) || x.token >= token0 + tokens)
			return;
		element_copy(g->rows + (x.token - token0) * g->pitch + x.position % LANES * bytes,
			     r->exception + (size_t)g->exception * (EXCEPTION_INDEX_BYTES + bytes) +
				 EXCEPTION_INDEX_BYTES,
			     bytes);
	}
}

static void strip_verbatim(const struct entry_reader *r, const struct group_work *g,
			   uint32_t token0, uint32_t tokens)
{
	uint32_t bytes = r->element_bytes, row = r->extent.channels_count * bytes;

	for (uint32_t t = token0; t < r->verbatim_tokens && t < token0 + tokens; t++) {
		for (uint32_t p = 0; p < g->lanes; p++) {
			uint32_t channel = meta_channel(&r->meta, g->group * LANES + p);

			memcpy(g->rows + (t - token0) * g->pitch + p * bytes,
			       r->verbatim + t * row + channel * bytes, bytes);
		}
	}
}

static uint32_t greatest_power(uint32_t value, uint32_t limit)
{
	uint32_t power = value & -value;

	return power && power < limit ? power : limit;
}

/* Tokens from t on, all wanted, whose places follow one another as a transposed layout's do. */
static void token_runs_find(const struct tensor_work *w)
{
	uint32_t step = w->unit * w->r->element_bytes;
	uint16_t *run = w->r->scratch->token_run;
	uint8_t *const *token = w->target->token;
	uint32_t last = w->r->tokens - 1;

	run[last] = 1;
	for (uint32_t t = last; step <= COLUMN_BYTES_MAX && t-- > 0;) {
		int follows = token[t] && token[t + 1] &&
			      (uintptr_t)token[t + 1] == (uintptr_t)token[t] + step;

		run[t] = follows ? (uint16_t)(run[t + 1] + 1) : 1;
	}
}

static void tensor_begin(struct tensor_work *w, struct entry_reader *r,
			 const struct decode_target *target)
{
	w->r = r;
	w->target = target;
	w->reciprocal = (UINT64_C(1) << 40) / r->extent.channels_count + 1;
	w->strip_tokens = r->element_bytes == 1 ? STRIP_TOKENS_MAX : STRIP_TOKENS;
	w->is_held = 0;
	w->unit = 1;
	if (!r->meta.order && target->run_channels)
		w->unit = greatest_power(target->run_channels, LANES);
	token_runs_find(w);
	w->has_lines = r->container->header.shape.dtype == SSV_DTYPE_BF16;
	for (uint32_t t = 0; t < r->tokens; t++)
		w->has_lines &= (uintptr_t)target->token[t] % CACHE_LINE_BYTES == 0;
}

/* How a group's elements lie at the target. */
static void write_begin(const struct tensor_work *w, struct group_work *g)
{
	const struct entry_reader *r = w->r;
	uint32_t channel0 = r->extent.channel0 + g->group * LANES;
	uint32_t run = w->target->run_channels;
	const uint32_t *channel = w->target->channel + r->extent.channel0;

	g->write = (struct write_job){.elements = r->scratch->tile,
				      .row_bytes = LANES * r->element_bytes,
				      .lanes = g->lanes,
				      .element_bytes = r->element_bytes,
				      .place = channel + g->group * LANES,
				      .run_bytes = w->unit * r->element_bytes,
				      .is_staged = w->target->is_staged};
	if (r->meta.order) {
		for (uint32_t p = 0; p < g->lanes; p++)
			g->place[p] = channel[meta_channel(&r->meta, g->group * LANES + p)];
		g->write.place = g->place;
	} else if (run && channel0 / run == (channel0 + g->lanes - 1) / run) {
		g->write.run_bytes = g->lanes * r->element_bytes;
	}
	if (g->lanes * r->element_bytes % g->write.run_bytes)
		g->write.run_bytes = r->element_bytes;
}

static void write_tokens(const struct tensor_work *w, struct group_work *g, uint32_t token0,
			 uint32_t tokens)
{
	const uint16_t *run = w->r->scratch->token_run + token0;
	const uint8_t *elements = g->write.elements;
	/* else token_run means nothing */
	const int by_columns = g->write.run_bytes <= COLUMN_BYTES_MAX &&
			       g->write.run_bytes == w->unit * w->r->element_bytes;
	uint32_t count = tokens;

	for (uint32_t t = 0; t < tokens; t += count) {
		if (by_columns)
			count = (uint32_t)u64_min(run[t], tokens - t);
		g->write.is_transposed = by_columns && count > 1;
		g->write.tokens = count;
		g->write.token = w->target->token + token0 + t;
		g->write.elements = elements + t * g->write.row_bytes;
		w->r->kernels->write(&g->write);
	}
	g->write.elements = elements;
}

static void group_begin(const struct tensor_work *w, struct group_work *g, uint32_t group)
{
	const struct entry_reader *r = w->r;
	const struct codec_scratch *s = r->scratch;

	g->group = group;
	g->lanes = group_lanes(r, group);
	g->exception = s->exception_first[group];
	g->exception_end = s->exception_first[group + 1];
	g->tile = (struct tile_job){
	    .raw = r->raw + s->raw_offset[group],
	    .lanes = g->lanes,
	    .raw_bits = group_raw_bits(&r->container->header, &r->meta, group),
	    .dtype = r->container->header.shape.dtype,
	    .tile = s->tile,
	};
	if (r->meta.exponent) {
		g->tile.exponent = r->meta.exponent + group * META_CLASSES;
	} else {
		group_load(&r->meta, &r->extent, r->dim, group, &g->lane);
		g->tile.lane = &g->lane;
		g->tile.is_trellis = (uint8_t)r->is_trellis;
		if (r->is_trellis)
			trellis_begin(&g->lane);
	}
	g->rows = s->tile;
	g->pitch = LANES * r->element_bytes;
	write_begin(w, g);
}

/* Merge what is kept as it is into a tile. */
static void strip_merge(const struct tensor_work *w, struct group_work *g, uint32_t token0,
			uint32_t tokens)
{
	if (token0 < w->r->verbatim_tokens)
		strip_verbatim(w->r, g, token0, tokens);
	strip_exceptions(w, g, token0, tokens);
}

static void raw_skip(struct group_work *g, uint32_t tokens)
{
	g->tile.raw += (size_t)tokens * ((g->lanes * g->tile.raw_bits + 7) / 8);
}

static void group_strip(const struct tensor_work *w, struct group_work *g, uint8_t *classes,
			uint32_t token0, uint32_t tokens)
{
	const struct kernels *kernels = w->r->kernels;

	g->tile.classes = classes;
	g->tile.tokens = tokens;
	if (g->tile.exponent)
		kernels->join(&g->tile);
	else
		kernels->dequantise(&g->tile);
	raw_skip(g, tokens);
	strip_merge(w, g, token0, tokens);
	write_tokens(w, g, token0, tokens);
}

/* Are all rows of these groups whole cache lines, and can they be made in one loop? */
static int round_is_fused(const struct tensor_work *w, const struct class_strips *strips)
{
	if (w->r->kernels->fused == scalar_fused || !strips->streams_count || !w->has_lines)
		return 0;
	for (uint32_t i = 0; i < strips->groups_count; i++) {
		const struct group_work *g = &w->group[i];
		uint32_t patches = g->exception_end - g->exception + w->r->verbatim_tokens * LANES;

		if (g->write.run_bytes != LANES * 2 || g->write.place[0] % CACHE_LINE_BYTES ||
		    patches > PATCHES_MAX)
			return 0;
	}
	return 1;
}

/* What replaces elements of a group, in the order of tokens. */
static void patches_make(const struct tensor_work *w, const struct group_work *g,
			 struct patch *patch)
{
	const struct entry_reader *r = w->r;
	uint32_t exception_bytes = EXCEPTION_INDEX_BYTES + r->element_bytes;
	const uint8_t *in = r->exception + (size_t)g->exception * exception_bytes;
	struct exception x = {0};

	for (uint32_t t = 0; t < r->verbatim_tokens; t++) {
		const uint8_t *row = r->verbatim + (size_t)t * r->extent.channels_count * 2;

		for (uint32_t p = 0; p < LANES; p++, patch++) {
			uint32_t channel = meta_channel(&r->meta, g->group * LANES + p);

			*patch = (struct patch){(uint16_t)t, (uint16_t)p,
						load_le16(row + (size_t)channel * 2)};
		}
	}
	for (uint32_t i = g->exception; i < g->exception_end; i++, in += exception_bytes) {
		(void)exception_read(w, i, &x);
		*patch++ = (struct patch){(uint16_t)x.token, (uint16_t)(x.position % LANES),
					  load_le16(in + EXCEPTION_INDEX_BYTES)};
	}
	*patch = (struct patch){.token = SSV_CHUNK_TOKENS};
}

/* Each round brings its share of the next entry's bytes near. */
static void soon_share(const struct tensor_work *w, uint32_t rounds_left, struct fused_job *job)
{
	struct entry_reader *r = w->r;
	uint32_t token_bytes = r->soon_bytes / (r->tokens * rounds_left);
	uint64_t bytes;

	job->soon = r->soon;
	job->soon_lines = (token_bytes + CACHE_LINE_BYTES - 1) / CACHE_LINE_BYTES;
	bytes = (uint64_t)job->soon_lines * r->tokens * CACHE_LINE_BYTES;
	bytes = u64_min(bytes, r->soon_bytes);
	r->soon += bytes;
	r->soon_bytes -= (uint32_t)bytes;
}

/* Rows that are held back can have their patches when the round is done: no branch of the loop is
 * mispredicted for them. */
static void held_patch(uint8_t *held, uint32_t stream, const struct patch *patch)
{
	held += stream / 2 * FUSED_ROW_BYTES;
	for (; patch->token < SSV_CHUNK_TOKENS; patch++)
		store_le16(held + (size_t)patch->token * HELD_PITCH + 2 * patch->place,
			   patch->element);
}

static void round_fused(struct tensor_work *w, struct class_strips *strips)
{
	static const struct patch none = {.token = SSV_CHUNK_TOKENS};
	const uint32_t groups = w->r->extent.groups_count, streams = strips->streams_count;
	const uint32_t rounds_left = (groups + streams - 1) / streams - strips->rounds_done + 1;
	struct fused_job job = {
	    .token = w->target->token,
	    .held = w->r->scratch->held,
	    .stores_held = w->is_held,
	    .is_staged = w->target->is_staged,
	    /* a next round, and of the same streams */
	    .holds = rounds_left > 1 && groups % streams == 0 && !w->target->is_staged,
	};

	memcpy(job.held_place, w->held_place, sizeof(job.held_place));
	soon_share(w, rounds_left, &job);
	for (uint32_t i = 0; i < strips->groups_count; i++) {
		struct patch *patches = w->r->scratch->patches + i * (PATCHES_MAX + 1);

		patches_make(w, &w->group[i], patches);
		job.patch[i] = job.holds && i % 2 ? &none : patches;
		job.tile[i] = &w->group[i].tile;
		job.place[i] = w->group[i].write.place[0];
	}
	strips_fused(strips, &job, w->r->tokens);
	for (uint32_t i = 1; job.holds && i < strips->groups_count; i += 2)
		held_patch(job.held, i, w->r->scratch->patches + i * (PATCHES_MAX + 1));
	w->is_held = job.holds;
	memcpy(w->held_place, job.place, sizeof(job.place));
}

/* Store what the last round kept back, before one that is not fused. */
static void held_store(struct tensor_work *w, uint32_t streams)
{
	const uint8_t *row = w->r->scratch->held;

	for (uint32_t t = 0; w->is_held && t < w->r->tokens; t++) {
		for (uint32_t k = 1; w->target->token[t] && k < streams; k += 2)
			memcpy(w->target->token[t] + w->held_place[k],
			       row + k / 2 * FUSED_ROW_BYTES, FUSED_ROW_BYTES);
		row += HELD_PITCH;
	}
	w->is_held = 0;
}

/* The groups of one round, strip by strip. nothing: their classes alone. */
static void round_elements(struct tensor_work *w, struct class_strips *strips, int nothing)
{
	uint8_t *classes[R16_STREAMS_MAX], *place[R16_STREAMS_MAX];
	uint32_t tokens;

	for (uint32_t i = 0; i < R16_STREAMS_MAX; i++)
		place[i] = w->r->scratch->strip_classes + (size_t)i * STRIP_TOKENS_MAX * LANES;
	for (uint32_t i = 0; !nothing && i < strips->groups_count; i++)
		group_begin(w, &w->group[i], strips->group[i]);
	if (!nothing && round_is_fused(w, strips)) {
		round_fused(w, strips);
		return;
	}
	held_store(w, strips->streams_count);
	for (uint32_t t = 0; t < w->r->tokens; t += tokens) {
		tokens = (uint32_t)u64_min(w->strip_tokens, w->r->tokens - t);
		memcpy(classes, place, sizeof(classes));
		strips_next(strips, t, tokens, classes);
		for (uint32_t i = 0; !nothing && i < strips->groups_count; i++)
			group_strip(w, &w->group[i], classes[i], t, tokens);
	}
}

/* Elements as they are: groups of rows, to be written and nothing else. */
static void stored_elements(struct entry_reader *r, const struct decode_target *target)
{
	const uint8_t *wire = r->container->bytes + r->entry.offset;
	struct tensor_work w;
	struct group_work *g = &w.group[0];

	tensor_begin(&w, r, target);
	for (uint32_t group = 0; group < r->extent.groups_count; group++) {
		g->group = group;
		g->lanes = group_lanes(r, group);
		write_begin(&w, g);
		g->write.row_bytes = r->extent.channels_count * r->element_bytes;
		g->write.elements = wire + group * LANES * r->element_bytes;
		write_tokens(&w, g, 0, r->tokens);
	}
}

enum container_fault entry_reader_elements(struct entry_reader *r,
					   const struct decode_target *target)
{
	struct class_strips *strips = r->scratch->strips;
	struct tensor_work w;
	uint32_t count;
	int wrong, err;

	if (!r->ops->has_classes) {
		stored_elements(r, target);
		return CONTAINER_FAULT_NONE;
	}
	if (!strips->streams_count)
		strips_open_plane(strips, &r->plane); /* the transcoder reads a plane twice */
	tensor_begin(&w, r, target);
	order_invert(r);
	raw_find(r);
	wrong = exceptions_find(&w);
	while ((err = strips_round(strips)) > 0)
		round_elements(&w, strips, wrong);
	if (err || strips_close(strips))
		return CONTAINER_FAULT_SEGMENT;
	if (wrong)
		return CONTAINER_FAULT_EXCEPTION;
	count = r->scratch->exception_first[r->extent.groups_count];
	r->exceptions_left -= count;
	r->exception += (size_t)count * (EXCEPTION_INDEX_BYTES + r->element_bytes);
	r->raw += r->scratch->raw_offset[r->extent.groups_count];
	r->verbatim += (size_t)r->verbatim_tokens * r->extent.channels_count * r->element_bytes;
	return CONTAINER_FAULT_NONE;
}

static int entry_decode(struct entry_reader *reader, enum container_fault fault,
			const struct decode_target *targets, enum container_fault *ret_fault)
{
	for (uint32_t t = 0; !fault && t < reader->entry.tensors_count; t++) {
		fault = entry_reader_strips(reader);
		if (!fault)
			fault = entry_reader_elements(reader, &targets[t]);
	}
	if (!fault)
		fault = entry_reader_close(reader);
	kernels_get()->write_end();
	*ret_fault = fault;
	return fault ? -EBADMSG : 0;
}

int segment_decode(const struct container *container, uint32_t index,
		   const struct decode_target *targets, void *scratch,
		   enum container_fault *ret_fault)
{
	struct entry_reader reader;

	return entry_decode(&reader, entry_reader_open(&reader, container, index, scratch), targets,
			    ret_fault);
}

int segment_stream(const struct container *container, uint32_t index,
		   struct segment_stream *ret_stream)
{
	struct container_entry entry;
	struct class_source source;

	container_entry(container, index, &entry);
	if (entry.codec != WIRE_CODEC_DEFLATE)
		return 0;
	class_source_open(container, &entry, &source);
	*ret_stream = (struct segment_stream){source.bytes, source.bytes_count, source.pairs_bytes};
	return 1;
}

int segment_decode_inflated(const struct container *container, uint32_t index, const uint8_t *pairs,
			    const struct decode_target *targets, void *scratch,
			    enum container_fault *ret_fault)
{
	struct entry_reader reader;

	return entry_decode(&reader,
			    entry_reader_open_inflated(&reader, container, index, pairs, scratch),
			    targets, ret_fault);
}
