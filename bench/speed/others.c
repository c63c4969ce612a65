/* SPDX-License-Identifier: Apache-2.0 */
/*
 * others.c - what systems built on a general compressor do: bytes through a library, tensor by
 * tensor, then dequantising. No checksum is asked of them.
 *
 * Forms of the bytes that the library sees:
 *	bf16      the elements as they are (lossless)
 *	TIER      a byte a symbol, uniform steps of that tier, K with an offset a channel
 *	int8      8 bits between minimum and maximum, K per channel, V per token and head
 * Libraries: isal, libdeflate (raw Deflate written by libdeflate's level 6; pack: level 1 of each),
 * isal-huffman, libdeflate-huffman (the same without matches: faster and smaller here), zstd
 * (level 1) and lz4. Steps, offsets and ranges count into the ratio as 2, 1 and 4 bytes.
 */
#include <isa-l/igzip_lib.h>
#include <libdeflate.h>
#include <lz4.h>
#include <math.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "codec/tier.h"
#include "speed.h"

#define SYMBOL_MIDDLE 128

struct library {
	const char *name;
	uint64_t (*pack)(const uint8_t *in, uint64_t bytes, uint8_t *out, uint64_t room);
	int (*unpack)(const uint8_t *in, uint64_t bytes, uint8_t *out, uint64_t out_bytes);
};

/* x = (symbol + bias) * scale, a pair for each channel, or for each token and head. */
struct form {
	float *bias, *scale;
	uint32_t by_token;
};

struct tensor_packed {
	uint8_t *bytes;
	uint64_t bytes_count;
	struct form form;
};

struct other {
	const struct library *library;
	const char *form;
	float alpha_k, alpha_v;       /* form TIER */
	uint64_t meta_bytes;          /* of all chunks */
	uint32_t raw;                 /* form bf16 */
	struct tensor_packed *packed; /* [chunk][tensor] */
	uint8_t *symbols, *out;       /* of a tensor */
	struct form form_now;
};

/* ---- libraries ------------------------------------------------------------------------------- */

static uint64_t deflate_level(const uint8_t *in, uint64_t bytes, uint8_t *out, uint64_t room,
			      int level)
{
	static struct libdeflate_compressor *compressor[13];

	if (!compressor[level])
		compressor[level] = libdeflate_alloc_compressor(level);
	return libdeflate_deflate_compress(compressor[level], in, bytes, out, room);
}

static uint64_t deflate_6(const uint8_t *in, uint64_t bytes, uint8_t *out, uint64_t room)
{
	return deflate_level(in, bytes, out, room, 6);
}

static uint64_t deflate_huffman(const uint8_t *in, uint64_t bytes, uint8_t *out, uint64_t room)
{
	z_stream stream = {.next_in = (Bytef *)(uintptr_t)in,
			   .avail_in = (uInt)bytes,
			   .next_out = out,
			   .avail_out = (uInt)room};

	if (deflateInit2(&stream, 1, Z_DEFLATED, -15, 9, Z_HUFFMAN_ONLY) != Z_OK ||
	    deflate(&stream, Z_FINISH) != Z_STREAM_END)
		return 0;
	deflateEnd(&stream);
	return stream.total_out;
}

static int inflate_isal(const uint8_t *in, uint64_t bytes, uint8_t *out, uint64_t out_bytes)
{
	static struct inflate_state state;

	isal_inflate_init(&state);
	state.crc_flag = ISAL_DEFLATE;
	state.next_in = (uint8_t *)(uintptr_t)in;
	state.avail_in = (uint32_t)bytes;
	state.next_out = out;
	state.avail_out = (uint32_t)out_bytes;
	return isal_inflate_stateless(&state) == ISAL_DECOMP_OK && state.total_out == out_bytes;
}

static int inflate_libdeflate(const uint8_t *in, uint64_t bytes, uint8_t *out, uint64_t out_bytes)
{
	static struct libdeflate_decompressor *decompressor;

	if (!decompressor)
		decompressor = libdeflate_alloc_decompressor();
	return !libdeflate_deflate_decompress(decompressor, in, bytes, out, out_bytes, NULL);
}

static uint64_t zstd_pack(const uint8_t *in, uint64_t bytes, uint8_t *out, uint64_t room)
{
	static ZSTD_CCtx *context;
	size_t count;

	if (!context)
		context = ZSTD_createCCtx();
	count = ZSTD_compressCCtx(context, out, room, in, bytes, 1);
	return ZSTD_isError(count) ? 0 : count;
}

static int zstd_unpack(const uint8_t *in, uint64_t bytes, uint8_t *out, uint64_t out_bytes)
{
	static ZSTD_DCtx *context;

	if (!context)
		context = ZSTD_createDCtx();
	return ZSTD_decompressDCtx(context, out, out_bytes, in, bytes) == out_bytes;
}

static uint64_t lz4_pack(const uint8_t *in, uint64_t bytes, uint8_t *out, uint64_t room)
{
	int count = LZ4_compress_default((const char *)in, (char *)out, (int)bytes, (int)room);

	return count > 0 ? (uint64_t)count : 0;
}

static int lz4_unpack(const uint8_t *in, uint64_t bytes, uint8_t *out, uint64_t out_bytes)
{
	return LZ4_decompress_safe((const char *)in, (char *)out, (int)bytes, (int)out_bytes) ==
	       (int)out_bytes;
}

/* When packing is timed, each library's own fast level. */
static uint64_t isal_fast(const uint8_t *in, uint64_t bytes, uint8_t *out, uint64_t room)
{
	static uint8_t level_buffer[ISAL_DEF_LVL1_DEFAULT];
	struct isal_zstream stream;

	isal_deflate_stateless_init(&stream);
	stream.next_in = (uint8_t *)(uintptr_t)in;
	stream.avail_in = (uint32_t)bytes;
	stream.next_out = out;
	stream.avail_out = (uint32_t)room;
	stream.end_of_stream = 1;
	stream.level = 1;
	stream.level_buf = level_buffer;
	stream.level_buf_size = sizeof(level_buffer);
	return isal_deflate_stateless(&stream) == COMP_OK ? stream.total_out : 0;
}

static uint64_t libdeflate_fast(const uint8_t *in, uint64_t bytes, uint8_t *out, uint64_t room)
{
	return deflate_level(in, bytes, out, room, 1);
}

static const struct library unpackers[] = {
    {"isal", deflate_6, inflate_isal},
    {"isal-huffman", deflate_huffman, inflate_isal},
    {"libdeflate", deflate_6, inflate_libdeflate},
    {"libdeflate-huffman", deflate_huffman, inflate_libdeflate},
    {"zstd", zstd_pack, zstd_unpack},
    {"lz4", lz4_pack, lz4_unpack},
};

static const struct library packers[] = {
    {"isal", isal_fast, inflate_isal},
    {"libdeflate", libdeflate_fast, inflate_libdeflate},
    {"zstd", zstd_pack, zstd_unpack},
    {"lz4", lz4_pack, lz4_unpack},
};

/* ---- symbols --------------------------------------------------------------------------------- */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EACH_LEVEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_LEVEL
#endif

static inline float f32_from_bf16(uint16_t x)
{
	uint32_t bits = (uint32_t)x << 16;
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

EACH_LEVEL
static void row_dequantise(const uint8_t *symbol, const float *bias, const float *scale,
			   uint16_t *out, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		float x = ((float)symbol[i] + bias[i]) * scale[i];
		uint32_t bits;

		memcpy(&bits, &x, sizeof(bits));
		out[i] = (uint16_t)((bits + 0x8000) >> 16);
	}
}

EACH_LEVEL
static void run_dequantise(const uint8_t *symbol, float bias, float scale, uint16_t *out,
			   uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		float x = ((float)symbol[i] + bias) * scale;
		uint32_t bits;

		memcpy(&bits, &x, sizeof(bits));
		out[i] = (uint16_t)((bits + 0x8000) >> 16);
	}
}

static void tensor_dequantise(const struct kv *kv, const struct form *form, const uint8_t *symbols,
			      uint8_t *to)
{
	uint32_t heads = kv->shape.parts[0].heads, dim = kv->shape.parts[0].dim;

	for (uint32_t t = 0; t < SSV_CHUNK_TOKENS; t++) {
		const uint8_t *symbol = symbols + t * kv->channels;
		uint16_t *out = (uint16_t *)(void *)to + t * kv->channels;

		if (!form->by_token) {
			row_dequantise(symbol, form->bias, form->scale, out, kv->channels);
			continue;
		}
		for (uint32_t h = 0; h < heads; h++)
			run_dequantise(symbol + h * dim, form->bias[t * heads + h],
				       form->scale[t * heads + h], out + h * dim, dim);
	}
}

/* To the nearest by the carry of a float addition, which vectorises: 1.5 * 2^23. */
static inline uint8_t symbol_of(float x, float bias, float inverse)
{
	float q = x * inverse - bias;

	q = q < 0 ? 0 : q > 255 ? 255 : q;
	return (uint8_t)(int32_t)(q + 12582912.0f - 12582912.0f);
}

EACH_LEVEL
static void row_quantise(const uint16_t *in, const float *bias, const float *scale, uint8_t *symbol,
			 uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		symbol[i] = symbol_of(f32_from_bf16(in[i]), bias[i], 1 / scale[i]);
}

EACH_LEVEL
static void run_quantise(const uint16_t *in, float bias, float scale, uint8_t *symbol,
			 uint32_t count)
{
	float inverse = 1 / scale;

	for (uint32_t i = 0; i < count; i++)
		symbol[i] = symbol_of(f32_from_bf16(in[i]), bias, inverse);
}

static void symbols_write(const struct kv *kv, const struct form *form, const uint16_t *in,
			  uint8_t *symbols)
{
	uint32_t heads = kv->shape.parts[0].heads, dim = kv->shape.parts[0].dim;

	for (uint32_t t = 0; t < SSV_CHUNK_TOKENS; t++) {
		uint64_t at = (uint64_t)t * kv->channels;

		if (!form->by_token) {
			row_quantise(in + at, form->bias, form->scale, symbols + at, kv->channels);
			continue;
		}
		for (uint32_t h = 0; h < heads; h++)
			run_quantise(in + at + h * dim, form->bias[t * heads + h],
				     form->scale[t * heads + h], symbols + at + h * dim, dim);
	}
}

/* Sums of each channel and of its squares. */
EACH_LEVEL
static void channel_sums(const uint16_t *in, uint32_t channels, float *sum, float *square)
{
	memset(sum, 0, channels * sizeof(*sum));
	memset(square, 0, channels * sizeof(*square));
	for (uint32_t t = 0; t < SSV_CHUNK_TOKENS; t++, in += channels)
		for (uint32_t c = 0; c < channels; c++) {
			float x = f32_from_bf16(in[c]);

			sum[c] += x;
			square[c] += x * x;
		}
}

/* A step for each head from the spread of its values, K's around the channels' means. */
static void form_steps(const struct kv *kv, const uint16_t *in, float alpha, int is_k,
		       struct form *form)
{
	static float sum[SSV_CHANNELS_MAX], square[SSV_CHANNELS_MAX];
	uint32_t dim = kv->shape.parts[0].dim;

	form->by_token = 0;
	channel_sums(in, kv->channels, sum, square);
	for (uint32_t first = 0; first < kv->channels; first += dim) {
		float power = 0, step;

		for (uint32_t c = first; c < first + dim; c++) {
			sum[c] = is_k ? sum[c] / SSV_CHUNK_TOKENS : 0;
			power += square[c] / SSV_CHUNK_TOKENS - sum[c] * sum[c];
		}
		step = alpha * sqrtf(power > 0 ? power / (float)dim : 0);
		for (uint32_t c = first; c < first + dim; c++) {
			form->scale[c] = step > 0 ? step : 1;
			form->bias[c] = rintf(sum[c] / form->scale[c]) - SYMBOL_MIDDLE;
		}
	}
}

static inline void range_widen(float x, float *low, float *high)
{
	*low = x < *low ? x : *low;
	*high = x > *high ? x : *high;
}

EACH_LEVEL
static void channel_ranges(const uint16_t *in, uint32_t channels, float *low, float *high)
{
	for (uint32_t c = 0; c < channels; c++)
		low[c] = high[c] = f32_from_bf16(in[c]);
	for (uint32_t t = 1; t < SSV_CHUNK_TOKENS; t++)
		for (uint32_t c = 0; c < channels; c++)
			range_widen(f32_from_bf16(in[t * channels + c]), &low[c], &high[c]);
}

/* Minimum and maximum: K of a channel over its tokens, V of a token's head. */
static void form_ranges(const struct kv *kv, const uint16_t *in, int is_k, struct form *form)
{
	uint32_t heads = kv->shape.parts[0].heads, dim = kv->shape.parts[0].dim;
	uint32_t pairs = is_k ? kv->channels : SSV_CHUNK_TOKENS * heads;
	float *low = form->bias, *high = form->scale;

	form->by_token = !is_k;
	if (is_k)
		channel_ranges(in, kv->channels, low, high);
	for (uint32_t i = 0; !is_k && i < pairs; i++, in += dim) {
		low[i] = high[i] = f32_from_bf16(in[0]);
		for (uint32_t k = 1; k < dim; k++)
			range_widen(f32_from_bf16(in[k]), &low[i], &high[i]);
	}
	for (uint32_t i = 0; i < pairs; i++) {
		form->scale[i] = high[i] > low[i] ? (high[i] - low[i]) / 255 : 1;
		form->bias[i] = low[i] / form->scale[i];
	}
}

/* ---- contenders ------------------------------------------------------------------------------ */

static struct form form_alloc(const struct kv *kv)
{
	uint32_t pairs = kv->channels > SSV_CHUNK_TOKENS * kv->shape.parts[0].heads
			     ? kv->channels
			     : SSV_CHUNK_TOKENS * kv->shape.parts[0].heads;

	return (struct form){.bias = speed_alloc(pairs * sizeof(float)),
			     .scale = speed_alloc(pairs * sizeof(float))};
}

/* What the library is to compress; into o->symbols unless the elements themselves. */
static const uint8_t *tensor_symbols(struct other *o, const struct kv *kv, uint32_t chunk,
				     uint32_t tensor, struct form *form, uint64_t *ret_bytes)
{
	const uint16_t *in = (const uint16_t *)(const void *)kv_tensor(kv, chunk, tensor);
	int is_k = tensor % 2 == 0;

	*ret_bytes = kv->tensor_bytes;
	if (o->raw)
		return (const uint8_t *)in;
	*ret_bytes = kv->tensor_bytes / 2;
	if (o->alpha_k > 0)
		form_steps(kv, in, is_k ? o->alpha_k : o->alpha_v, is_k, form);
	else
		form_ranges(kv, in, is_k, form);
	symbols_write(kv, form, in, o->symbols);
	return o->symbols;
}

static struct other *other_open(struct contender *c, const struct kv *kv,
				const struct library *libraries, uint32_t count)
{
	struct other *o = speed_alloc(sizeof(*o));
	uint8_t tier = tier_parse(c->field[2]);
	uint32_t heads = kv->shape.parts[0].heads, tensor_meta = 0;

	*o = (struct other){.form = c->field[2], .raw = !strcmp(c->field[2], "bf16")};
	for (uint32_t i = 0; i < count; i++)
		if (!strcmp(libraries[i].name, c->field[1]))
			o->library = &libraries[i];
	if (tier > SSV_TIER_LOSSLESS) {
		o->alpha_k = tier_find(tier)->alpha_k;
		o->alpha_v = tier_find(tier)->alpha_v;
		tensor_meta = 4 * heads + kv->channels; /* of K and V together */
	} else if (!strcmp(c->field[2], "int8")) {
		tensor_meta = 4 * (kv->channels + SSV_CHUNK_TOKENS * heads);
	} else if (!o->raw) {
		speed_die("FORM: expected bf16, int8 or a quantised tier", c->spec);
	}
	if (!o->library)
		speed_die("no such library", c->spec);
	o->meta_bytes = (uint64_t)tensor_meta * kv->tensors_count / 2 * kv->chunks_count;
	o->symbols = speed_alloc(kv->tensor_bytes);
	o->out = speed_alloc(2 * kv->tensor_bytes);
	o->form_now = form_alloc(kv);
	c->state = o;
	return o;
}

static void unpack_prepare(struct contender *c, const struct kv *kv, const struct destination *to)
{
	struct other *o = other_open(c, kv, unpackers, ARRAY_COUNT(unpackers));
	uint32_t count = kv->chunks_count * kv->tensors_count;

	(void)to;
	c->wire_bytes = o->meta_bytes;
	o->packed = speed_alloc(count * sizeof(*o->packed));
	for (uint32_t i = 0; i < count; i++) {
		struct tensor_packed *packed = &o->packed[i];
		const uint8_t *bytes;
		uint64_t plain;

		packed->form = o->raw ? (struct form){0} : form_alloc(kv);
		bytes = tensor_symbols(o, kv, i / kv->tensors_count, i % kv->tensors_count,
				       &packed->form, &plain);
		packed->bytes_count = o->library->pack(bytes, plain, o->out, 2 * kv->tensor_bytes);
		packed->bytes = speed_alloc(packed->bytes_count);
		memcpy(packed->bytes, o->out, packed->bytes_count);
		c->wire_bytes += packed->bytes_count;
		if (!packed->bytes_count ||
		    !o->library->unpack(packed->bytes, packed->bytes_count, o->out, plain) ||
		    memcmp(o->out, bytes, plain))
			speed_die("WRONG: a library does not give back its input", c->spec);
	}
}

static void unpack_chunk(struct contender *c, const struct kv *kv, uint32_t chunk,
			 const struct destination *to, uint32_t slot)
{
	struct other *o = c->state;

	for (uint32_t t = 0; t < kv->tensors_count; t++) {
		const struct tensor_packed *packed = &o->packed[chunk * kv->tensors_count + t];
		uint8_t *out = slot_tensor(kv, to, t, slot);

		if (!o->library->unpack(packed->bytes, packed->bytes_count,
					o->raw ? out : o->symbols,
					o->raw ? kv->tensor_bytes : kv->tensor_bytes / 2))
			speed_die("a library refuses its own bytes", c->spec);
		if (!o->raw)
			tensor_dequantise(kv, &packed->form, o->symbols, out);
	}
}

static void pack_prepare(struct contender *c, const struct kv *kv, const struct destination *to)
{
	(void)to;
	other_open(c, kv, packers, ARRAY_COUNT(packers));
}

static void pack_chunk(struct contender *c, const struct kv *kv, uint32_t chunk,
		       const struct destination *to, uint32_t slot)
{
	struct other *o = c->state;

	(void)to;
	(void)slot;
	for (uint32_t t = 0; t < kv->tensors_count; t++) {
		uint64_t plain;
		const uint8_t *bytes = tensor_symbols(o, kv, chunk, t, &o->form_now, &plain);

		if (!o->library->pack(bytes, plain, o->out, 2 * kv->tensor_bytes))
			speed_die("a library does not compress", c->spec);
	}
}

const struct contender_ops speed_unpack = {
    .name = "unpack", .fields_count = 3, .prepare = unpack_prepare, .chunk = unpack_chunk};
const struct contender_ops speed_pack = {
    .name = "pack", .fields_count = 3, .prepare = pack_prepare, .chunk = pack_chunk};
