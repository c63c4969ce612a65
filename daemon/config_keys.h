/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config_keys.h - the table of keys, shared by what reads them, prints them and explains them.
 */
#ifndef SSV_DAEMON_CONFIG_KEYS_H
#define SSV_DAEMON_CONFIG_KEYS_H

#include "config.h"

enum key_kind {
	KEY_TEXT = 1,      /* anything, at least one byte */
	KEY_PATH = 2,      /* anything, may be empty */
	KEY_SIZE = 3,      /* bytes, with KiB, MiB or GiB */
	KEY_COUNT = 4,     /* decimal */
	KEY_CORE = 5,      /* a core, or none */
	KEY_CORES = 6,     /* "1" or "2-5,8", or none */
	KEY_YES_NO = 7,    /* yes or no */
	KEY_LEVEL = 8,     /* of the log */
	KEY_AUTO_TIER = 9, /* of STORE, or auto */
	KEY_ANY_TIER = 10, /* coarsest of FETCH, or any */
	KEY_CODEC = 11,
	KEY_STORE = 12, /* a store's URI */
	KEY_OVERLAP = 13,
	KEY_PIPELINE = 14,
	KEY_INFLATE = 15, /* an inflate engine's name */
};

struct key_row {
	const char *name;
	enum key_kind kind;
	size_t offset;        /* in struct config */
	const char *standard; /* NULL: found at start */
	uint64_t min, max;    /* SIZE, COUNT */
	const char *help;
};

#define KEYS_MAX 64
/* The program's own: config_table.c of its folder. */
struct config_program {
	const char *name, *summary, *example, *exits;
	const char *notes; /* before the example, or "" */
	int detaches;      /* knows --detach */
};
extern const struct config_program config_program;
extern const struct key_row config_keys[];
extern const uint32_t config_keys_count;

/* Values as text, in the table's order; NULL: not said. Owned by malloc. */
struct key_texts {
	char *text[KEYS_MAX];
	char *place[KEYS_MAX]; /* "file:line" or "--flag" */
};

int key_find(const char *name, size_t name_bytes); /* '-' is '_'; index or -1 */
/* The nearest key's name, or NULL when none is near. */
const char *key_nearest(const char *name);
/* The names, with commas. */
void key_names(char *text, size_t text_bytes);

/* Read text into *config, or say in error what is allowed. 0 or -EINVAL. */
SSV_MUST_CHECK int key_parse(const struct key_row *row, const char *text, struct config *config,
			     char *error);
/* The value as text that key_parse() takes. */
void key_format(const struct key_row *row, const struct config *config, char *text,
		size_t text_bytes);
void key_allowed(const struct key_row *row, char *text, size_t text_bytes);

/* config_file.c: the YAML file into texts that are not said yet. */
SSV_MUST_CHECK int config_file_read(const char *path, struct key_texts *texts, char *error);

#endif
