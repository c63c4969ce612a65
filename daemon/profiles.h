/* SPDX-License-Identifier: Apache-2.0 */
/* profiles.h - the profiles that the configuration names, read once before anything is served. */
#ifndef SSV_DAEMON_PROFILES_H
#define SSV_DAEMON_PROFILES_H

#include "config.h"
#include "profile/profile.h"

#define PROFILES_IN_STORE "store" /* the key's value that is no folder */

/**
 * Read them. A folder is what the user named: a file in it that is no profile is a mistake, with
 * one line in error (CONFIG_ERROR_MAX bytes). What a store holds may be missing or damaged: that is
 * logged, and the daemon serves without.
 */
SSV_MUST_CHECK int profiles_load(const struct config *config, struct profile_set *ret_set,
				 char *error);

#endif
