/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config_file.c - the YAML file, by libcyaml with a schema made from the table of keys: a mapping
 * of known keys to scalars, nothing else. Values stay text here.
 *
 * libcyaml names the key but not always its line; libyaml, which it is built on, is asked for that.
 */
#include <cyaml/cyaml.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <yaml.h>

#include "config_keys.h"

#define FILE_BYTES_MAX MIB

static const cyaml_config_t cyaml_plain;

struct complaint {
	char text[256]; /* the first message of libcyaml */
};

static void complaint_log(cyaml_log_t level, void *context, const char *format, va_list arguments)
{
	struct complaint *complaint = context;

	(void)level;
	if (complaint->text[0])
		return;
	vsnprintf(complaint->text, sizeof(complaint->text), format, arguments);
	complaint->text[strcspn(complaint->text, "\n")] = 0;
}

static void schema_make(cyaml_schema_field_t *fields, cyaml_schema_value_t *schema)
{
	for (uint32_t i = 0; i < config_keys_count; i++) {
		fields[i] = (cyaml_schema_field_t){
		    .key = config_keys[i].name,
		    .value = {CYAML_VALUE_STRING(CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, char *,
						 0, CONFIG_TEXT_MAX)},
		    .data_offset = (uint32_t)(i * sizeof(char *)),
		};
	}
	fields[config_keys_count] = (cyaml_schema_field_t){.key = NULL};
	*schema = (cyaml_schema_value_t){
	    CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct key_texts, fields)};
	schema->data_size = KEYS_MAX * sizeof(char *);
}

/* ---- lines ---------------------------------------------------------------------------------- */

/* Follows the depth of a document's events and which scalars of its mapping are keys. */
struct walk {
	int depth, is_key;
	const char *key; /* looked for */
	uint32_t seen;
};

/* Returns 1 on the `which`-th (from 1) occurrence of the key. */
static int walk_event(struct walk *walk, const yaml_event_t *event, uint32_t which)
{
	int found = 0;

	switch (event->type) {
	case YAML_MAPPING_START_EVENT:
	case YAML_SEQUENCE_START_EVENT:
		walk->depth++;
		if (walk->depth == 1)
			walk->is_key = 1;
		break;
	case YAML_MAPPING_END_EVENT:
	case YAML_SEQUENCE_END_EVENT:
		walk->depth--;
		if (walk->depth == 1)
			walk->is_key = 1;
		break;
	case YAML_SCALAR_EVENT:
	case YAML_ALIAS_EVENT:
		if (walk->depth != 1)
			break;
		if (walk->is_key && event->type == YAML_SCALAR_EVENT &&
		    strcmp((const char *)event->data.scalar.value, walk->key) == 0)
			found = ++walk->seen == which;
		walk->is_key = !walk->is_key;
		break;
	default:
		break;
	}
	return found;
}

/* Line of a key at the top (its which-th occurrence), or of the first error; 1 when unknown. */
static uint32_t line_of(const char *yaml, size_t bytes, const char *key, uint32_t which)
{
	struct walk walk = {.key = key};
	yaml_parser_t parser;
	yaml_event_t event;
	uint32_t line = 1;
	int end = 0;

	if (!yaml_parser_initialize(&parser))
		return line;
	yaml_parser_set_input_string(&parser, (const unsigned char *)yaml, bytes);
	while (!end) {
		if (!yaml_parser_parse(&parser, &event)) {
			line = (uint32_t)parser.problem_mark.line + 1;
			break;
		}
		if (walk_event(&walk, &event, which)) {
			line = (uint32_t)event.start_mark.line + 1;
			end = 1;
		}
		if (event.type == YAML_STREAM_END_EVENT)
			end = 1;
		yaml_event_delete(&event);
	}
	yaml_parser_delete(&parser);
	return line;
}

/* Line of the second document's start; 0: there is none. */
static uint32_t line_of_second_document(const char *yaml, size_t bytes)
{
	yaml_parser_t parser;
	yaml_event_t event;
	uint32_t line = 0, documents = 0;
	int end = 0;

	if (!yaml_parser_initialize(&parser))
		return 0;
	yaml_parser_set_input_string(&parser, (const unsigned char *)yaml, bytes);
	while (!end && yaml_parser_parse(&parser, &event)) {
		if (event.type == YAML_DOCUMENT_START_EVENT && ++documents == 2)
			line = (uint32_t)event.start_mark.line + 1;
		end = line || event.type == YAML_STREAM_END_EVENT;
		yaml_event_delete(&event);
	}
	yaml_parser_delete(&parser);
	return line;
}

/* ---- what is wrong -------------------------------------------------------------------------- */

static void unknown_key(const char *path, uint32_t line, const char *key, char *error)
{
	const char *nearest = key_nearest(key);
	char names[512];

	key_names(names, sizeof(names));
	snprintf(error, CONFIG_ERROR_MAX, "%s:%u: %.64s: no such key;%s%s%s allowed: %s", path,
		 line, key, nearest ? " did you mean " : "", nearest ? nearest : "",
		 nearest ? "?" : "", names);
}

/* Which key of the table holds something that is no scalar. */
static uint32_t line_of_wrong_kind(const char *yaml, size_t bytes, const char **ret_key)
{
	yaml_document_t document;
	yaml_parser_t parser;
	uint32_t line = 1;
	yaml_node_t *root;

	*ret_key = NULL;
	if (!yaml_parser_initialize(&parser))
		return line;
	yaml_parser_set_input_string(&parser, (const unsigned char *)yaml, bytes);
	if (yaml_parser_load(&parser, &document)) {
		root = yaml_document_get_root_node(&document);
		if (root && root->type == YAML_MAPPING_NODE) {
			for (yaml_node_pair_t *p = root->data.mapping.pairs.start;
			     p < root->data.mapping.pairs.top && !*ret_key; p++) {
				yaml_node_t *key = yaml_document_get_node(&document, p->key);
				yaml_node_t *value = yaml_document_get_node(&document, p->value);
				int at = key->type != YAML_SCALAR_NODE
					     ? -1
					     : key_find((const char *)key->data.scalar.value,
							key->data.scalar.length);

				if (value->type == YAML_SCALAR_NODE || at < 0)
					continue;
				line = (uint32_t)value->start_mark.line + 1;
				*ret_key = config_keys[at].name;
			}
		}
		yaml_document_delete(&document);
	}
	yaml_parser_delete(&parser);
	return line;
}

static void explain(const char *path, const char *yaml, size_t bytes, const char *complaint,
		    char *error)
{
	static const char unknown[] = "Load: Unexpected key: ";
	static const char again[] = "Load: Mapping field already seen: ";
	static const char expecting[] = "Load: Expecting ";
	const char *key;
	uint32_t line;

	if (strncmp(complaint, unknown, strlen(unknown)) == 0) {
		key = complaint + strlen(unknown);
		unknown_key(path, line_of(yaml, bytes, key, 1), key, error);
	} else if (strncmp(complaint, again, strlen(again)) == 0) {
		key = complaint + strlen(again);
		snprintf(error, CONFIG_ERROR_MAX, "%s:%u: %s: said a second time", path,
			 line_of(yaml, bytes, key, 2), key);
	} else if (strncmp(complaint, expecting, strlen(expecting)) == 0) {
		line = line_of_wrong_kind(yaml, bytes, &key);
		if (key)
			snprintf(error, CONFIG_ERROR_MAX,
				 "%s:%u: %s: expected one value, not a list or a mapping", path,
				 line, key);
		else
			snprintf(error, CONFIG_ERROR_MAX,
				 "%s:1: expected lines of the form \"key: value\"", path);
	} else {
		if (strncmp(complaint, "Load: ", 6) == 0)
			complaint += 6;
		if (strncmp(complaint, "libyaml: ", 9) == 0)
			complaint += 9;
		snprintf(error, CONFIG_ERROR_MAX, "%s:%u: %s", path, line_of(yaml, bytes, "", 0),
			 complaint);
	}
}

/* ---- reading -------------------------------------------------------------------------------- */

static int file_load(const char *path, char **ret_bytes, size_t *ret_count, char *error)
{
	FILE *file = fopen(path, "re");
	char *bytes;
	int err = 0;

	if (!file) {
		err = -errno;
		snprintf(error, CONFIG_ERROR_MAX, "%s: %s", path, strerror(-err));
		return err;
	}
	bytes = malloc(FILE_BYTES_MAX + 1);
	if (!bytes) {
		fclose(file);
		return -ENOMEM;
	}
	*ret_count = fread(bytes, 1, FILE_BYTES_MAX + 1, file);
	if (ferror(file)) {
		err = errno ? -errno : -EIO;
		snprintf(error, CONFIG_ERROR_MAX, "%s: %s", path, strerror(-err));
	} else if (*ret_count > FILE_BYTES_MAX) {
		err = -EINVAL;
		snprintf(error, CONFIG_ERROR_MAX, "%s: longer than 1 MiB", path);
	}
	fclose(file);
	if (err)
		free(bytes);
	else
		*ret_bytes = bytes;
	return err;
}

static int texts_take(const char *path, const char *yaml, size_t bytes, char **values,
		      struct key_texts *texts)
{
	char place[PATH_MAX + 16];

	for (uint32_t i = 0; i < config_keys_count; i++) {
		if (!values[i] || texts->text[i])
			continue;
		snprintf(place, sizeof(place), "%s:%u", path,
			 line_of(yaml, bytes, config_keys[i].name, 1));
		texts->text[i] = strdup(values[i]);
		texts->place[i] = strdup(place);
		if (!texts->text[i] || !texts->place[i])
			return -ENOMEM;
	}
	return 0;
}

int config_file_read(const char *path, struct key_texts *texts, char *error)
{
	cyaml_schema_field_t fields[KEYS_MAX + 1];
	cyaml_schema_value_t schema;
	struct complaint complaint = {""};
	cyaml_config_t cyaml = cyaml_plain;
	char **values = NULL;
	char *yaml = NULL;
	size_t bytes = 0;
	uint32_t line;
	cyaml_err_t failed;
	int err;

	err = file_load(path, &yaml, &bytes, error);
	if (err)
		return err;
	line = line_of_second_document(yaml, bytes);
	if (line) {
		snprintf(error, CONFIG_ERROR_MAX, "%s:%u: a second document; expected only one",
			 path, line);
		free(yaml);
		return -EINVAL;
	}
	schema_make(fields, &schema);
	cyaml.log_fn = complaint_log;
	cyaml.log_ctx = &complaint;
	cyaml.log_level = CYAML_LOG_ERROR;
	cyaml.mem_fn = cyaml_mem;
	failed = cyaml_load_data((const uint8_t *)yaml, bytes, &cyaml, &schema,
				 (cyaml_data_t **)&values, NULL);
	if (failed) {
		explain(path, yaml, bytes,
			complaint.text[0] ? complaint.text : cyaml_strerror(failed), error);
		err = -EINVAL;
	} else if (values) {
		err = texts_take(path, yaml, bytes, values, texts);
		cyaml_free(&cyaml, &schema, values, 0);
	}
	free(yaml);
	return err;
}

int config_print(const struct config *config, FILE *out)
{
	cyaml_schema_field_t fields[KEYS_MAX + 1];
	cyaml_schema_value_t schema;
	struct complaint complaint = {""};
	cyaml_config_t cyaml = cyaml_plain;
	static char texts[KEYS_MAX][CONFIG_TEXT_MAX];
	char *values[KEYS_MAX] = {0};
	char *yaml = NULL;
	size_t bytes;

	schema_make(fields, &schema);
	for (uint32_t i = 0; i < config_keys_count; i++) {
		key_format(&config_keys[i], config, texts[i], CONFIG_TEXT_MAX);
		values[i] = texts[i];
	}
	cyaml.log_fn = complaint_log;
	cyaml.log_ctx = &complaint;
	cyaml.log_level = CYAML_LOG_ERROR;
	cyaml.mem_fn = cyaml_mem;
	if (cyaml_save_data(&yaml, &bytes, &cyaml, &schema, values, 0) != CYAML_OK)
		return -ENOMEM;
	fwrite(yaml, 1, bytes, out);
	cyaml_mem(NULL, yaml, 0);
	return ferror(out) ? -EIO : 0;
}
