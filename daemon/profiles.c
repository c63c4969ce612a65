/* SPDX-License-Identifier: Apache-2.0 */
/* profiles.c - models' profiles from a folder or the store (docs/profile.md). Blocks, bounded;
 * nothing is served yet. */
#include "profiles.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "chunk/container.h"
#include "codec/codec.h"
#include "store/wait.h"

#define PATH_BYTES    (CONFIG_TEXT_MAX + NAME_MAX + 2)
#define GET_MS        2000
#define STORE_LOAD_NS (5 * NS_PER_S) /* all of them together */

static int is_json(const struct dirent *entry)
{
	size_t length = strlen(entry->d_name);

	return entry->d_name[0] != '.' && length > 5 &&
	       strcmp(entry->d_name + length - 5, ".json") == 0;
}

static void profile_log(const struct profile *profile, const char *from)
{
	char kept[64] = "lossless", model[17];
	size_t n = strlen(kept);

	for (uint32_t i = 0; i < 8; i++)
		snprintf(model + 2 * i, 3, "%02x", profile->digest[i]);
	for (uint8_t t = SSV_TIER_HIGH; t <= SSV_TIER_TINY && n < sizeof(kept); t++)
		if (profile_keeps(profile, t, NULL))
			n += (size_t)snprintf(kept + n, sizeof(kept) - n, ",%s", tier_name(t));
	log_info("profile read model=%s dtype=%s name=\"%s\" kept=%s from=%s", model,
		 dtype_name(profile->steps.dtype), profile->name, kept, from);
}

static int file_load(const char *path, struct profile_set *set, char *error)
{
	char why[SSV_ERROR_TEXT_MAX] = "";
	struct profile *profile;
	int err = profile_read(path, &profile, why);

	if (!err) {
		err = profile_set_add(set, profile);
		if (err)
			profile_free(profile);
	}
	if (err == -EEXIST)
		snprintf(why, sizeof(why), "another file is of the same model and type");
	else if (err == -E2BIG && !why[0])
		snprintf(why, sizeof(why), "there are more than %u", PROFILES_MAX);
	if (err)
		snprintf(error, CONFIG_ERROR_MAX, "profiles: %.500s: %.250s", path, why);
	else
		profile_log(profile, path);
	return err;
}

static int folder_load(const char *folder, struct profile_set *set, char *error)
{
	struct dirent **names;
	char path[PATH_BYTES];
	int count, err = 0;

	count = scandir(folder, &names, is_json, alphasort);
	if (count < 0) {
		err = -errno;
		snprintf(error, CONFIG_ERROR_MAX, "profiles: %.500s: %s", folder, strerror(-err));
		return err;
	}
	for (int i = 0; i < count; i++) {
		snprintf(path, sizeof(path), "%s/%s", folder, names[i]->d_name);
		if (!err)
			err = file_load(path, set, error);
		free(names[i]);
	}
	free(names);
	return err;
}

/* ---- the store --------------------------------------------------------------------------------
 */

static int value_get(struct store *store, const struct ssv_key *key, uint8_t *value,
		     uint64_t *ret_bytes)
{
	struct store_op op = {
	    .kind = STORE_OP_GET, .key = *key, .data = value, .capacity = PROFILE_BYTES_MAX};
	int err = store_wait(store, &op, GET_MS);

	*ret_bytes = op.value_bytes;
	return err;
}

static void stored_load(struct store *store, const struct profile_name *name, uint8_t *value,
			struct profile_set *set)
{
	char why[SSV_ERROR_TEXT_MAX] = "", model[17];
	struct profile *profile = NULL;
	struct ssv_key key;
	uint64_t bytes;
	int err;

	for (uint32_t i = 0; i < 8; i++)
		snprintf(model + 2 * i, 3, "%02x", name->model[i]);
	profile_key(name->model, name->dtype, &key);
	err = value_get(store, &key, value, &bytes);
	if (err)
		snprintf(why, sizeof(why), "%s", strerror(-err));
	else
		err = profile_parse((const char *)value, bytes, &profile, why);
	if (!err &&
	    (memcmp(profile->digest, name->model, 8) != 0 || profile->steps.dtype != name->dtype)) {
		snprintf(why, sizeof(why), "it is another model's");
		err = -EBADMSG;
	}
	if (!err)
		err = profile_set_add(set, profile);
	if (!err) {
		profile_log(profile, "store");
		return;
	}
	log_warn("profile refused model=%s dtype=%s from=store reason=\"%s\"", model,
		 dtype_name(name->dtype), why[0] ? why : strerror(-err));
	profile_free(profile);
}

static void list_load(struct store *store, uint8_t *value, struct profile_set *set)
{
	const uint64_t end_ns = clock_now_ns() + STORE_LOAD_NS;
	struct profile_list list;
	struct ssv_key key;
	uint64_t bytes;
	int err;

	profile_list_key(&key);
	err = value_get(store, &key, value, &bytes);
	if (!err)
		err = profile_list_read(value, bytes, &list);
	if (err) {
		log_warn("no profiles from=store reason=\"%s\"",
			 err == -ENOENT    ? "the store has none"
			 : err == -EBADMSG ? "their list is damaged"
					   : strerror(-err));
		return;
	}
	for (uint32_t i = 0; i < list.count && clock_now_ns() < end_ns; i++)
		stored_load(store, &list.names[i], value, set);
}

static int store_load(const struct config *config, struct profile_set *set, char *error)
{
	const struct store_config store_config = {.uri = config->store,
						  .seed = clock_now_ns(),
						  .value_bytes_max = PROFILE_BYTES_MAX,
						  .ops_max = 1};
	uint8_t *value = malloc(PROFILE_BYTES_MAX + CONTAINER_SLACK_BYTES);
	char why[SSV_ERROR_TEXT_MAX] = "";
	struct store *store = NULL;
	int err = value ? store_open(&store_config, &store, why) : -ENOMEM;

	if (err)
		snprintf(error, CONFIG_ERROR_MAX, "profiles: %s", why[0] ? why : strerror(-err));
	else
		list_load(store, value, set);
	store_close(store);
	free(value);
	return err;
}

int profiles_load(const struct config *config, struct profile_set *ret_set, char *error)
{
	int err;

	if (!config->profiles[0])
		return 0;
	if (strcmp(config->profiles, PROFILES_IN_STORE) == 0)
		err = store_load(config, ret_set, error);
	else
		err = folder_load(config->profiles, ret_set, error);
	if (err)
		profile_set_clear(ret_set);
	return err;
}
