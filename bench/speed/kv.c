/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv.c - KV that a real engine computed: the lossless chunks which its connector stored in a
 * file: store, decoded here by the same code as the daemon's.
 */
#include <dirent.h>
#include <stdio.h>
#include <string.h>

#include "chunk_io.h"
#include "speed.h"

struct found {
	uint8_t *bytes;
	uint64_t bytes_count;
	struct container container;
};

static int found_compare(const void *a, const void *b)
{
	uint32_t x = ((const struct found *)a)->container.header.first_token;
	uint32_t y = ((const struct found *)b)->container.header.first_token;

	return (x > y) - (x < y);
}

/* Returns 0 for a chunk that ends a prompt and is shorter than the others. */
static uint32_t found_add(struct found *found, const char *path)
{
	enum container_fault fault;

	if (chunk_io_read_file(path, &found->bytes, &found->bytes_count))
		speed_die("cannot read", path);
	if (chunk_io_open(&found->container, found->bytes, found->bytes_count, NULL, &fault))
		speed_die(container_fault_text(fault), path);
	return found->container.header.shape.tokens == SSV_CHUNK_TOKENS;
}

/* Values lie in folders named by the first byte of their key, in hex. */
static uint32_t found_walk(const char *folder, struct found found[SPEED_CHUNKS_MAX])
{
	uint32_t count = 0;

	for (uint32_t shard = 0; shard < 256; shard++) {
		char path[1024], file[2048];
		const struct dirent *entry;
		DIR *dir;

		snprintf(path, sizeof(path), "%s/%02x", folder, shard);
		dir = opendir(path);
		while (dir && (entry = readdir(dir)) && count < SPEED_CHUNKS_MAX) {
			if (entry->d_name[0] == '.')
				continue;
			snprintf(file, sizeof(file), "%s/%s", path, entry->d_name);
			count += found_add(&found[count], file);
		}
		if (dir)
			closedir(dir);
	}
	return count;
}

void kv_load(struct kv *kv, const char *folder)
{
	static struct found found[SPEED_CHUNKS_MAX];
	enum container_fault fault;
	struct chunk_io io;

	kv->chunks_count = found_walk(folder, found);
	if (!kv->chunks_count)
		speed_die("no chunk in the store", folder);
	qsort(found, kv->chunks_count, sizeof(found[0]), found_compare);
	kv->shape = found[0].container.header.shape;
	if (kv->shape.dtype != SSV_DTYPE_BF16 || kv->shape.parts_count != 2 ||
	    kv->shape.parts[0].heads != kv->shape.parts[1].heads ||
	    kv->shape.parts[0].dim != kv->shape.parts[1].dim)
		speed_die("expected bf16 K and V of one shape", folder);
	kv->channels = part_channels(&kv->shape.parts[0]);
	kv->chunk_bytes = shape_kv_bytes(&kv->shape);
	kv->tensor_bytes = shape_tensor_bytes(&kv->shape, 0);
	kv->tensors_count = shape_tensors(&kv->shape);
	kv->elements = speed_alloc(kv->chunk_bytes * kv->chunks_count);
	chunk_io_init(&io);
	for (uint32_t i = 0; i < kv->chunks_count; i++) {
		const struct container *container = &found[i].container;

		if (container->header.tier != SSV_TIER_LOSSLESS ||
		    !shape_equal(&container->header.shape, &kv->shape))
			speed_die("expected lossless chunks of one shape", folder);
		if (chunk_io_decode(&io, container, &fault))
			speed_die(container_fault_text(fault), folder);
		memcpy(kv->elements + i * kv->chunk_bytes, io.elements, kv->chunk_bytes);
		kv->first_token[i] = container->header.first_token;
		free(found[i].bytes);
	}
	chunk_io_fini(&io);
}
