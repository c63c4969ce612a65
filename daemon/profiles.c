/* SPDX-License-Identifier: Apache-2.0 */
/* profiles.c - models' profiles from a folder (docs/profile.md). Blocks; nothing is served yet. */
#include "profiles.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>

#include "codec/codec.h"

#define PATH_BYTES (CONFIG_TEXT_MAX + NAME_MAX + 2)

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

int profiles_load(const struct config *config, struct profile_set *ret_set, char *error)
{
	struct dirent **names;
	char path[PATH_BYTES];
	int count, err = 0;

	if (!config->profiles[0])
		return 0;
	count = scandir(config->profiles, &names, is_json, alphasort);
	if (count < 0) {
		err = -errno;
		snprintf(error, CONFIG_ERROR_MAX, "profiles: %.500s: %s", config->profiles,
			 strerror(-err));
		return err;
	}
	for (int i = 0; i < count; i++) {
		snprintf(path, sizeof(path), "%s/%s", config->profiles, names[i]->d_name);
		if (!err)
			err = file_load(path, ret_set, error);
		free(names[i]);
	}
	free(names);
	if (err)
		profile_set_clear(ret_set);
	return err;
}
