/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config.c - defaults, file and flags put together, and the help text.
 */
#include "config.h"

#include <errno.h>
#include <pwd.h>
#include <string.h>
#include <unistd.h>

#include "config_keys.h"
#include "shadowserve.h"

#define MISTAKE(error, ...) (snprintf(error, CONFIG_ERROR_MAX, __VA_ARGS__), -EINVAL)

/* ---- what is found at start ----------------------------------------------------------------- */

int config_cache_folder(char *path, size_t path_bytes)
{
	const char *folder = getenv("XDG_CACHE_HOME");
	const char *home = getenv("HOME");
	struct passwd *user;
	int n;

	if (folder && folder[0] == '/') {
		n = snprintf(path, path_bytes, "%s/shadowserve", folder);
	} else {
		if (!home || home[0] != '/') {
			user = getpwuid(geteuid());
			home = user ? user->pw_dir : NULL;
		}
		if (!home)
			return -ENOENT;
		n = snprintf(path, path_bytes, "%s/.cache/shadowserve", home);
	}
	return n < 0 || (size_t)n >= path_bytes ? -E2BIG : 0;
}

static int standard_text(const struct key_row *row, char *text, size_t text_bytes)
{
	const char *socket = getenv("SHADOWSERVE_SOCKET");
	char folder[PATH_MAX];
	int err;

	if (row->standard) {
		snprintf(text, text_bytes, "%s", row->standard);
		return 0;
	}
	if (strcmp(row->name, "socket") == 0) {
		if (!socket || !socket[0])
			return ssv_default_socket(text, text_bytes);
		snprintf(text, text_bytes, "%s", socket);
		return 0;
	}
	err = config_cache_folder(folder, sizeof(folder));
	if (!err)
		err = snprintf(text, text_bytes, "file:%s/chunks", folder) >= (int)text_bytes
			  ? -E2BIG
			  : 0;
	return err;
}

/* ---- flags ---------------------------------------------------------------------------------- */

static int unknown_flag(const char *flag, char *error)
{
	const char *nearest = flag[0] == '-' && flag[1] == '-' ? key_nearest(flag + 2) : NULL;
	char dashed[64];

	if (flag[0] != '-')
		return MISTAKE(
		    error, "\"%.200s\": no arguments are expected, only options: see --help", flag);
	if (!nearest)
		return MISTAKE(error, "%.200s: no such option; see --help", flag);
	snprintf(dashed, sizeof(dashed), "%s", nearest);
	for (char *c = dashed; *c; c++)
		*c = *c == '_' ? '-' : *c;
	return MISTAKE(error, "%.200s: no such option; did you mean --%s? see --help", flag,
		       dashed);
}

static int *switch_find(struct arguments *arguments, const char *name)
{
	if (strcmp(name, "--print-config") == 0)
		return &arguments->print_config;
	if (config_program.detaches && strcmp(name, "--detach") == 0)
		return &arguments->detach;
	if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
		return &arguments->help;
	if (strcmp(name, "--version") == 0)
		return &arguments->version;
	return NULL;
}

static int text_say(struct key_texts *texts, int index, const char *value, const char *place)
{
	free(texts->text[index]);
	free(texts->place[index]);
	texts->text[index] = strdup(value);
	texts->place[index] = strdup(place);
	return texts->text[index] && texts->place[index] ? 0 : -ENOMEM;
}

/* One flag that takes a value; *at moves on when the value is an argument of its own. */
static int flag_take(int argc, char **argv, int *at, struct key_texts *texts,
		     struct arguments *arguments, char *error)
{
	const char *flag = argv[*at];
	const char *equals = strchr(flag, '=');
	size_t name_bytes = equals ? (size_t)(equals - flag) : strlen(flag);
	const char *value = equals ? equals + 1 : *at + 1 < argc ? argv[*at + 1] : NULL;
	int is_file = name_bytes == 8 && strncmp(flag, "--config", 8) == 0;
	int index = -1;
	char name[64];

	if (name_bytes > 2 && strncmp(flag, "--", 2) == 0)
		index = key_find(flag + 2, name_bytes - 2);
	snprintf(name, sizeof(name), "%.*s", (int)name_bytes, flag);
	if (index < 0 && !is_file)
		return unknown_flag(name, error);
	if (index >= 0 && config_keys[index].kind == KEY_YES_NO && !equals)
		return text_say(texts, index, "yes", name);
	if (!value)
		return MISTAKE(error, "%s: expected a value", name);
	*at += !equals;
	if (!is_file)
		return text_say(texts, index, value, name);
	if (strlen(value) >= sizeof(arguments->config_file) || !value[0])
		return MISTAKE(error, "--config: expected a file's path");
	strcpy(arguments->config_file, value);
	return 0;
}

static int flags_take(int argc, char **argv, struct key_texts *texts, struct arguments *arguments,
		      char *error)
{
	for (int i = 1; i < argc; i++) {
		int *asked = switch_find(arguments, argv[i]);
		int err = 0;

		if (asked)
			*asked = 1;
		else
			err = flag_take(argc, argv, &i, texts, arguments, error);
		if (err)
			return err;
	}
	return 0;
}

/* ---- together ------------------------------------------------------------------------------- */

static int values_read(const struct key_texts *texts, struct config *config, char *error)
{
	char text[CONFIG_TEXT_MAX], wrong[CONFIG_ERROR_MAX];
	int err;

	for (uint32_t i = 0; i < config_keys_count; i++) {
		const struct key_row *row = &config_keys[i];

		if (texts->text[i]) {
			err = key_parse(row, texts->text[i], config, wrong);
			if (err)
				return MISTAKE(error, "%.400s: %.600s", texts->place[i], wrong);
			continue;
		}
		err = standard_text(row, text, sizeof(text));
		if (!err)
			err = key_parse(row, text, config, wrong);
		if (err)
			return MISTAKE(error, "%s: no default can be found here: say it",
				       row->name);
	}
	if (!config->workers)
		config->workers = config->cores.count ? config->cores.count : 1;
	return 0;
}

int config_read(int argc, char **argv, struct config *ret_config, struct arguments *ret_arguments,
		char *error)
{
	struct key_texts texts = {0};
	int err;

	memset(ret_config, 0, sizeof(*ret_config));
	memset(ret_arguments, 0, sizeof(*ret_arguments));
	snprintf(error, CONFIG_ERROR_MAX, "out of memory");
	err = flags_take(argc, argv, &texts, ret_arguments, error);
	if (!err && ret_arguments->config_file[0])
		err = config_file_read(ret_arguments->config_file, &texts, error);
	if (!err)
		err = values_read(&texts, ret_config, error);
	for (uint32_t i = 0; i < KEYS_MAX; i++) {
		free(texts.text[i]);
		free(texts.place[i]);
	}
	return err;
}

void config_help(FILE *out)
{
	char text[CONFIG_TEXT_MAX], allowed[256], name[64];

	fprintf(out,
		"%s - %s\n\n"
		"usage: %s [--config FILE] [--KEY VALUE]...\n\n"
		"  --config FILE      YAML file of the keys below (flags win over it)\n"
		"  --print-config     print the effective configuration as YAML and exit\n"
		"%s"
		"  --version, --help\n\n"
		"keys, each also a line \"key: value\" of the file:\n\n",
		config_program.name, config_program.summary, config_program.name,
		config_program.detaches
		    ? "  --detach           run in the background; returns when it serves\n"
		    : "");
	for (uint32_t i = 0; i < config_keys_count; i++) {
		const struct key_row *row = &config_keys[i];

		snprintf(name, sizeof(name), "%s", row->name);
		for (char *c = name; *c; c++)
			*c = *c == '_' ? '-' : *c;
		if (standard_text(row, text, sizeof(text)))
			snprintf(text, sizeof(text), "must be said");
		key_allowed(row, allowed, sizeof(allowed));
		fprintf(out, "  --%s\n      %s\n      %s; default: %s\n", name, row->help, allowed,
			text[0] ? text : "empty");
	}
	fprintf(out,
		"%s\nexample:\n"
		"  %s\n\n"
		"exit status: %s\n",
		config_program.notes, config_program.example, config_program.exits);
}
