/* SPDX-License-Identifier: Apache-2.0 */
/*
 * transcode.c - `shadowserve transcode`: the same values with another lossless back end.
 *
 * From file to file, or chunks of a store in their place. A chunk in a store is replaced only when
 * the new one decodes to the same values.
 */
#include "codec/transcode.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "chunk_io.h"
#include "cli.h"
#include "store_io.h"

static const char *option_store, *option_codec;
static int option_all;
static uint64_t option_timeout = 10000;

static const struct arg transcode_args[] = {
    {"codec", "NAME", "the new back end: deflate, r16, zstd or stored", ARG_TEXT, &option_codec, 0,
     0},
    {"store", "URI", "chunks of this store, in place (default: $SHADOWSERVE_STORE)", ARG_TEXT,
     &option_store, 0, 0},
    {"all", NULL, "every chunk of the store", ARG_FLAG, &option_all, 0, 0},
    {"timeout", "MS", "give up on an operation after this long (default 10000)", ARG_NUMBER,
     &option_timeout, 1, 600000},
    ARG_END,
};

struct transcoding {
	struct chunk_io before, after;
	uint8_t codec;
	uint8_t *out;
	uint64_t out_capacity, out_bytes;
	uint64_t chunks, bytes_before, bytes_after, damaged;
};

/* Transcode into t->out and prove it; prints its own error. */
static int transcode(struct transcoding *t, const uint8_t *bytes, uint64_t count,
		     const struct ssv_key *key, const char *name)
{
	enum container_fault fault = CONTAINER_FAULT_NONE;
	struct container container, after;
	uint64_t capacity;
	int err = chunk_io_open(&container, bytes, count, key, &fault);

	if (!err)
		err = chunk_io_decode(&t->before, &container, &fault);
	if (err) {
		t->damaged++;
		if (!option_all)
			return cli_fail(EXIT_FOUND_BAD, "transcode: %s: %s", name,
					container_fault_text(fault));
		fprintf(stderr, "%s %s (left alone)\n", name, container_fault_text(fault));
		return EXIT_FOUND_BAD;
	}
	capacity = shape_container_bytes_max(&container.header.shape) + CONTAINER_SLACK_BYTES;
	if (capacity > t->out_capacity) {
		free(t->out);
		t->out = cli_alloc(capacity);
		t->out_capacity = capacity;
	}
	err = chunk_transcode(&container, t->codec, t->out, t->out_capacity, t->before.scratch,
			      &t->out_bytes, &fault);
	if (!err)
		err = chunk_io_open(&after, t->out, t->out_bytes, &container.header.key, &fault);
	if (!err)
		err = chunk_io_decode(&t->after, &after, &fault);
	if (err)
		return cli_fail(EXIT_BROKEN, "transcode: %s: %s (%s)", name, strerror(-err),
				container_fault_text(fault));
	if (memcmp(t->before.elements, t->after.elements, container.header.out_bytes))
		return cli_fail(EXIT_BROKEN, "transcode: %s: values changed; nothing was written",
				name);
	t->chunks++;
	t->bytes_before += count;
	t->bytes_after += t->out_bytes;
	return 0;
}

/* Written aside and renamed, so that OUT is whole or not there. */
static int write_file(const char *path, const uint8_t *bytes, uint64_t count)
{
	char aside[4096];
	FILE *file;
	int err = 0;

	if (snprintf(aside, sizeof(aside), "%s.new-%d", path, (int)getpid()) >= (int)sizeof(aside))
		return -ENAMETOOLONG;
	file = fopen(aside, "wbx");
	if (!file)
		return -errno;
	if (fwrite(bytes, 1, count, file) != count)
		err = -EIO;
	if (fclose(file) && !err)
		err = -EIO;
	if (!err && rename(aside, path))
		err = -errno;
	if (err)
		(void)unlink(aside);
	return err;
}

static int transcode_file(struct transcoding *t, const char *in, const char *out)
{
	uint64_t count;
	uint8_t *bytes;
	int err = chunk_io_read_file(in, &bytes, &count);

	if (err)
		return cli_fail(EXIT_USAGE, "transcode: %s: %s", in, strerror(-err));
	err = transcode(t, bytes, count, NULL, in);
	free(bytes);
	if (err)
		return err;
	err = write_file(out, t->out, t->out_bytes);
	return err ? cli_fail(EXIT_BROKEN, "transcode: %s: %s", out, strerror(-err)) : 0;
}

static int transcode_key(struct transcoding *t, struct store_io *io, const struct ssv_key *key)
{
	char name[65];
	int err = store_io_get(io, key);

	cli_key_text(key, name);
	if (err == -ENOENT && option_all)
		return 0; /* evicted since it was listed */
	if (err == -ENOENT)
		return cli_fail(EXIT_FOUND_BAD, "transcode: the store holds nothing under %s",
				name);
	if (!err) {
		err = transcode(t, io->value, io->value_bytes, key, name);
		if (err)
			return err;
		err = store_io_put(io, key, t->out, t->out_bytes);
	}
	return err ? cli_fail(EXIT_UNREACHABLE, "transcode: %s: the store answers: %s", name,
			      strerror(-err))
		   : 0;
}

/* The keys named, or all; damaged chunks are named and passed over with --all. */
static int transcode_store(struct transcoding *t, int argc, char **argv)
{
	struct ssv_key *keys = NULL;
	uint64_t count = (uint64_t)argc;
	struct store_io io;
	int err = store_io_open(&io, "transcode", option_store, (uint32_t)option_timeout);

	if (err)
		return err;
	if (option_all) {
		err = store_io_list(&io, &keys, &count);
		if (err)
			err = cli_fail(EXIT_UNREACHABLE, "transcode: listing the store: %s",
				       strerror(-err));
	} else {
		keys = cli_alloc(count * sizeof(*keys));
		for (uint64_t i = 0; i < count && !err; i++) {
			if (cli_parse_key(argv[i], &keys[i]))
				err = cli_fail(EXIT_USAGE,
					       "transcode: \"%s\" is no key: expected 64 "
					       "hexadecimal digits",
					       argv[i]);
		}
	}
	for (uint64_t i = 0; i < count && !err; i++) {
		cli_progress("transcoding", i, count);
		err = transcode_key(t, &io, &keys[i]);
		if (err == EXIT_FOUND_BAD && option_all)
			err = 0;
	}
	if (!err)
		cli_progress("transcoding", count, count);
	free(keys);
	store_io_close(&io);
	return err;
}

static int answer(const struct transcoding *t)
{
	enum exit_code code = t->damaged ? EXIT_FOUND_BAD : EXIT_OK;
	char before[32], after[32];

	if (option_json) {
		cJSON *object = cli_object();

		cli_add_text(object, "codec", codec_name(t->codec));
		cli_add_number(object, "chunks", (double)t->chunks);
		cli_add_number(object, "damaged", (double)t->damaged);
		cli_add_number(object, "bytes_before", (double)t->bytes_before);
		cli_add_number(object, "bytes_after", (double)t->bytes_after);
		return cli_print_json(object, code);
	}
	printf("%llu chunks to %s, values unchanged: %s before, %s after\n",
	       (unsigned long long)t->chunks, codec_name(t->codec),
	       cli_bytes((double)t->bytes_before, before),
	       cli_bytes((double)t->bytes_after, after));
	return (int)code;
}

static int run_transcode(int argc, char **argv)
{
	struct transcoding *t = cli_alloc(sizeof(*t));
	struct ssv_key key;
	int err;

	t->codec = option_codec ? codec_parse(option_codec) : 0;
	if (!t->codec) {
		err = cli_fail(EXIT_USAGE, "transcode: --codec %s%s%sdeflate, r16, zstd, stored",
			       option_codec ? "\"" : "", option_codec ? option_codec : "",
			       option_codec ? "\" is none of " : "NAME is needed: one of ");
		free(t);
		return err;
	}
	chunk_io_init(&t->before);
	chunk_io_init(&t->after);
	if (option_all && argc)
		err = cli_fail(EXIT_USAGE, "transcode: --all takes no \"%s\"", argv[0]);
	else if (option_all || (argc && !cli_parse_key(argv[0], &key)))
		err = transcode_store(t, argc, argv);
	else if (argc == 2)
		err = transcode_file(t, argv[0], argv[1]);
	else
		err = cli_fail(EXIT_USAGE, "transcode: expected IN OUT, keys, or --all");
	if (!err)
		err = answer(t);
	chunk_io_fini(&t->before);
	chunk_io_fini(&t->after);
	free(t->out);
	free(t);
	return err;
}

const struct command transcode_command = {
    .name = "transcode",
    .operands = "IN OUT | KEY... | --all",
    .summary = "the same values with another lossless back end",
    .text = "Code chunks anew with another back end, from file to file or in their store. Every\n"
	    "value stays the same (this is checked before anything is written); tiers cannot be\n"
	    "changed. Exit 1: some chunks were damaged, and left alone.\n\n"
	    "  shadowserve transcode --codec deflate chunk.skvc for-the-nic.skvc\n"
	    "  shadowserve transcode --codec r16 --store file:/var/cache/kv --all",
    .args = transcode_args,
    .operands_max = -1,
    .run = run_transcode,
};
