/* SPDX-License-Identifier: Apache-2.0 */
/*
 * inspect.c - `shadowserve inspect FILE|KEY`: what a container holds and how well it is compressed.
 *
 * Decodes it too, so that "sound" means what it means to the data plane.
 */
#include <errno.h>
#include <string.h>

#include "chunk_io.h"
#include "cli.h"
#include "store_io.h"

static const char *option_store;
static int option_segments;
static uint64_t option_timeout = 5000;

static const struct arg inspect_args[] = {
    {"store", "URI", "the store of KEY (default: $SHADOWSERVE_STORE)", ARG_TEXT, &option_store, 0,
     0},
    {"segments", NULL, "list every segment", ARG_FLAG, &option_segments, 0, 0},
    {"timeout", "MS", "give up on the store after this long (default 5000)", ARG_NUMBER,
     &option_timeout, 1, 600000},
    ARG_END,
};

/* What the segments sum to. */
struct totals {
	uint64_t class_bytes, raw_bytes, exception_bytes, verbatim_bytes, stored_bytes;
	uint64_t exceptions;
	uint32_t by_codec[256];
};

static const char *role_name(uint8_t role)
{
	static const char *const names[] = {"?", "K", "V", "latent"};

	return role < ARRAY_COUNT(names) ? names[role] : "?";
}

static const char *entry_codec_name(uint8_t codec)
{
	const char *name = wire_codec_name(codec);

	return name ? name : "unknown";
}

static void add_up(const struct container *container, struct totals *totals)
{
	const struct container_header *h = &container->header;
	uint32_t element = dtype_bytes(h->shape.dtype);

	memset(totals, 0, sizeof(*totals));
	for (uint32_t i = 0; i < h->segments_count; i++) {
		struct container_entry e;

		container_entry(container, i, &e);
		totals->by_codec[e.codec]++;
		totals->class_bytes += e.class_bytes;
		totals->raw_bytes += e.raw_bytes;
		totals->exceptions += e.exceptions_count;
		totals->exception_bytes += e.exceptions_count * (EXCEPTION_INDEX_BYTES + element);
		if (e.codec == WIRE_CODEC_STORED)
			totals->stored_bytes += e.wire_bytes;
		else
			totals->verbatim_bytes += entry_stored_bytes(&h->shape, &e) /
						  h->shape.tokens * h->verbatim_tokens;
	}
}

static cJSON *segment_object(const struct container *container, uint32_t index)
{
	struct container_entry e;
	cJSON *object = cli_object();

	container_entry(container, index, &e);
	cli_add_number(object, "layer", e.layer + container->header.shape.layer0);
	cli_add_text(object, "part", role_name(container->header.shape.parts[e.part].role));
	cli_add_text(object, "codec", entry_codec_name(e.codec));
	cli_add_number(object, "group0", e.group0);
	cli_add_number(object, "groups", e.groups_count);
	cli_add_number(object, "tensors", e.tensors_count);
	cli_add_number(object, "streams", e.streams_count);
	cli_add_number(object, "offset", (double)e.offset);
	cli_add_number(object, "wire_bytes", e.wire_bytes);
	cli_add_number(object, "class_bytes", e.class_bytes);
	cli_add_number(object, "raw_bytes", e.raw_bytes);
	cli_add_number(object, "exceptions", e.exceptions_count);
	cli_add_number(object, "meta_bytes", e.meta_bytes);
	return object;
}

static cJSON *parts_array(const struct container_header *h)
{
	cJSON *parts = cli_array();

	for (uint32_t p = 0; p < h->shape.parts_count; p++) {
		const struct chunk_part *part = &h->shape.parts[p];
		cJSON *object = cli_object();

		cli_add_text(object, "role", role_name(part->role));
		cli_add_number(object, "head0", part->head0);
		cli_add_number(object, "heads", part->heads);
		cli_add_number(object, "dim", part->dim);
		cli_add_number(object, "relative_error", h->error[p]);
		cJSON_AddItemToArray(parts, object);
	}
	return parts;
}

static const char *hex8(const uint8_t *bytes, char *text)
{
	for (uint32_t i = 0; i < 8; i++)
		snprintf(text + 2 * i, 3, "%02x", bytes[i]);
	return text;
}

static cJSON *chunk_object(const struct container *container, const struct totals *totals)
{
	const struct container_header *h = &container->header;
	cJSON *object = cli_object(), *codecs = cli_object(), *segments = cli_array();
	char text[65];

	cli_add_text(object, "key", cli_key_text(&h->key, text));
	cli_add_text(object, "model", hex8(h->model, text));
	cli_add_text(object, "profile", hex8(h->profile, text));
	cli_add_number(object, "major", h->major);
	cli_add_number(object, "minor", h->minor);
	cli_add_text(object, "tier", tier_name(h->tier));
	cli_add_text(object, "dtype", dtype_name(h->shape.dtype));
	cli_add_number(object, "first_token", h->first_token);
	cli_add_number(object, "tokens", h->shape.tokens);
	cli_add_number(object, "verbatim_tokens", h->verbatim_tokens);
	cli_add_number(object, "layer0", h->shape.layer0);
	cli_add_number(object, "layers", h->shape.layers_count);
	cli_add_number(object, "layers_total", h->shape.layers_total);
	cli_add_number(object, "rank", h->shape.rank);
	cli_add_number(object, "ranks", h->shape.ranks_count);
	cli_add(object, "parts", parts_array(h));
	cli_add_number(object, "value_bytes", h->total_bytes);
	cli_add_number(object, "kv_bytes", (double)h->out_bytes);
	cli_add_number(object, "ratio", (double)h->out_bytes / h->total_bytes);
	cli_add_number(object, "segments_count", h->segments_count);
	for (uint32_t c = 0; c < ARRAY_COUNT(totals->by_codec); c++) {
		if (totals->by_codec[c])
			cli_add_number(codecs, entry_codec_name((uint8_t)c), totals->by_codec[c]);
	}
	cli_add(object, "segments_by_codec", codecs);
	cli_add_number(object, "table_and_meta_bytes",
		       CONTAINER_HEADER_BYTES + h->segments_count * CONTAINER_ENTRY_BYTES +
			   (double)h->meta_bytes);
	cli_add_number(object, "class_bytes", (double)totals->class_bytes);
	cli_add_number(object, "raw_bytes", (double)totals->raw_bytes);
	cli_add_number(object, "exceptions", (double)totals->exceptions);
	cli_add_number(object, "exception_bytes", (double)totals->exception_bytes);
	cli_add_number(object, "verbatim_bytes", (double)totals->verbatim_bytes);
	cli_add_number(object, "stored_bytes", (double)totals->stored_bytes);
	for (uint32_t i = 0; i < h->segments_count && option_segments; i++)
		cJSON_AddItemToArray(segments, segment_object(container, i));
	if (option_segments)
		cli_add(object, "segments", segments);
	else
		cJSON_Delete(segments);
	return object;
}

static void print_share(const char *name, uint64_t bytes, const struct container_header *h)
{
	char text[32];

	if (bytes)
		printf("  %-14s %12s  %5.1f %%\n", name, cli_bytes((double)bytes, text),
		       100.0 * (double)bytes / h->total_bytes);
}

static void print_segments(const struct container *container)
{
	const struct container_header *h = &container->header;

	printf("\n  layer part    codec    groups   wire bytes      class        raw  exceptions  "
	       "ratio\n");
	for (uint32_t i = 0; i < h->segments_count; i++) {
		struct container_entry e;

		container_entry(container, i, &e);
		printf("  %5u %-7s %-8s %2u..%-4u %11u %10u %10u %11u %6.2f\n",
		       e.layer + h->shape.layer0, role_name(h->shape.parts[e.part].role),
		       entry_codec_name(e.codec), e.group0, e.group0 + e.groups_count - 1,
		       e.wire_bytes, e.class_bytes, e.raw_bytes, e.exceptions_count,
		       (double)entry_stored_bytes(&h->shape, &e) / e.wire_bytes);
	}
}

static void print_chunk(const struct container *container, const struct totals *totals)
{
	const struct container_header *h = &container->header;
	const struct chunk_shape *s = &h->shape;
	static const uint8_t none[8];
	char key[65], model[17], value[32], kv[32];

	printf("key       %s\n", cli_key_text(&h->key, key));
	printf("container %u.%u, tier %s, model %s\n", h->major, h->minor, tier_name(h->tier),
	       hex8(h->model, model));
	if (memcmp(h->profile, none, sizeof(none)) != 0)
		printf("steps     of profile %s\n", hex8(h->profile, model));
	printf("tokens    %u..%u%s\n", h->first_token, h->first_token + s->tokens - 1,
	       h->verbatim_tokens ? " (the first ones verbatim)" : "");
	printf("layers    %u..%u of %u, rank %u of %u, %s\n", s->layer0,
	       s->layer0 + s->layers_count - 1u, s->layers_total, s->rank, s->ranks_count,
	       dtype_name(s->dtype));
	for (uint32_t p = 0; p < s->parts_count; p++)
		printf("part      %-6s heads %u..%u of %u, relative error %.4g\n",
		       role_name(s->parts[p].role), s->parts[p].head0,
		       s->parts[p].head0 + s->parts[p].heads - 1u, s->parts[p].dim, h->error[p]);
	printf("size      %s of KV in %s: ratio %.3f, %u segments\n",
	       cli_bytes((double)h->out_bytes, kv), cli_bytes(h->total_bytes, value),
	       (double)h->out_bytes / h->total_bytes, h->segments_count);
	print_share("table and meta",
		    CONTAINER_HEADER_BYTES + h->segments_count * CONTAINER_ENTRY_BYTES +
			(uint64_t)h->meta_bytes,
		    h);
	print_share("classes", totals->class_bytes, h);
	print_share("raw bits", totals->raw_bytes, h);
	print_share("exceptions", totals->exception_bytes, h);
	print_share("verbatim", totals->verbatim_bytes, h);
	print_share("stored", totals->stored_bytes, h);
	if (option_segments)
		print_segments(container);
}

static int answer(const uint8_t *bytes, uint64_t count, const struct ssv_key *key)
{
	enum container_fault fault = CONTAINER_FAULT_NONE;
	struct container container;
	struct totals totals;
	struct chunk_io io;
	cJSON *object;
	int err = chunk_io_open(&container, bytes, count, key, &fault);

	if (err)
		return cli_fail(EXIT_FOUND_BAD, "inspect: refused: %s",
				container_fault_text(fault));
	chunk_io_init(&io);
	err = chunk_io_decode(&io, &container, &fault);
	chunk_io_fini(&io);
	add_up(&container, &totals);
	if (option_json) {
		object = chunk_object(&container, &totals);
		cli_add_bool(object, "sound", !err);
		if (err)
			cli_add_text(object, "reason", container_fault_text(fault));
		return cli_print_json(object, err ? EXIT_FOUND_BAD : EXIT_OK);
	}
	print_chunk(&container, &totals);
	printf("checks    %s%s\n", err ? "FAILED: " : "all passed, every segment decodes",
	       err ? container_fault_text(fault) : "");
	return err ? EXIT_FOUND_BAD : EXIT_OK;
}

static int inspect_file(const char *path)
{
	uint64_t count;
	uint8_t *bytes;
	int err = chunk_io_read_file(path, &bytes, &count);

	if (err)
		return cli_fail(EXIT_USAGE,
				"inspect: %s: %s (expected a container's file, or a key of 64 "
				"hexadecimal digits)",
				path, strerror(-err));
	err = answer(bytes, count, NULL);
	free(bytes);
	return err;
}

static int run_inspect(int argc, char **argv)
{
	struct store_io io;
	struct ssv_key key;
	int err;

	(void)argc;
	if (cli_parse_key(argv[0], &key))
		return inspect_file(argv[0]);
	err = store_io_open(&io, "inspect", option_store, (uint32_t)option_timeout);
	if (err)
		return err;
	err = store_io_get(&io, &key);
	if (err == -ENOENT)
		err =
		    cli_fail(EXIT_FOUND_BAD, "inspect: the store holds nothing under %s", argv[0]);
	else if (err)
		err = cli_fail(EXIT_UNREACHABLE, "inspect: the store answers: %s", strerror(-err));
	else
		err = answer(io.value, io.value_bytes, &key);
	store_io_close(&io);
	return err;
}

const struct command inspect_command = {
    .name = "inspect",
    .operands = "FILE|KEY",
    .summary = "what a chunk holds: shape, tier, segments, ratio, checks",
    .text = "Read one chunk, from a file or by its key from a store, check and decode it, and\n"
	    "say what it holds and where its bytes go.\n"
	    "Exit 0: sound; 1: damaged, or not there; 2: no such file; 3: no store.\n\n"
	    "  shadowserve inspect chunk.skvc --segments\n"
	    "  shadowserve inspect --store redis://127.0.0.1:6379 KEY\n"
	    "  shadowserve inspect --json KEY | jq .ratio",
    .args = inspect_args,
    .operands_min = 1,
    .operands_max = 1,
    .run = run_inspect,
};
