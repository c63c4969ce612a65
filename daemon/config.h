/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config.h - what an operator can say: one table of keys, read from a YAML file and from flags.
 *
 * Every value is text first, with the place where it was said, and becomes a number by the same
 * parser wherever it came from. So a mistake always names its place, the key, the value and what is
 * allowed, and --print-config prints what can be read back.
 */
#ifndef SSV_DAEMON_CONFIG_H
#define SSV_DAEMON_CONFIG_H

#include <limits.h>
#include <sched.h>

#include "base/base.h"
#include "base/log.h"
#include "plane/plane.h"
#include "store/store.h"

#define CONFIG_TEXT_MAX  STORE_URI_MAX
#define CONFIG_ERROR_MAX 1024
#define CONFIG_CORES_MAX 64

struct core_list {
	uint32_t cores[CONFIG_CORES_MAX];
	uint32_t count; /* 0: not pinned */
};

struct config {
	char socket[CONFIG_TEXT_MAX];
	char store[CONFIG_TEXT_MAX];
	char log_file[CONFIG_TEXT_MAX];   /* "": stderr */
	char listen_tls[CONFIG_TEXT_MAX]; /* "": no relays of other machines */
	char tls_cert[CONFIG_TEXT_MAX], tls_key[CONFIG_TEXT_MAX], tls_ca[CONFIG_TEXT_MAX];
	char tls_names[CONFIG_TEXT_MAX];   /* "": any certificate of tls_ca */
	char rdma_device[CONFIG_TEXT_MAX]; /* "": the first that is active; the relay's too */
	/* Of shadowserve-relay alone. */
	char card[CONFIG_TEXT_MAX], card_name[CONFIG_TEXT_MAX];
	char way[CONFIG_TEXT_MAX], data_listen[CONFIG_TEXT_MAX];
	int32_t receive_core; /* -1: not pinned */
	uint32_t call_timeout_ms, card_timeout_ms;
	char profiles[CONFIG_TEXT_MAX]; /* folder; "": none; "store" */
	uint64_t arena;
	uint32_t workers;
	struct core_list cores;
	int32_t control_core; /* -1: not pinned */
	uint32_t spin_us;
	uint32_t lanes, captures, overlap, trace;
	char inflate[CONFIG_TEXT_MAX]; /* "cpu": in the decoder, or by stations */
	uint32_t pipeline;
	struct core_list station_cores[PLANE_STATIONS];
	uint32_t fetch_deadline_ms, store_deadline_ms, lookup_deadline_ms, drain_timeout_ms;
	uint32_t tier, codec, trellis, min_tier, verbatim_tokens;
	uint32_t sessions, regions, requests, channels;
	uint32_t idle_exit_s;
	uint32_t pin_memory, huge_pages;
	enum log_level log_level;
};

/* What else the command line asks for. */
struct arguments {
	char config_file[PATH_MAX]; /* "": none */
	int print_config, detach, help, version;
};

/**
 * Defaults, then the file, then the flags. One line in error (CONFIG_ERROR_MAX bytes) on a mistake.
 * Errors: -EINVAL a mistake; -ENOENT, -EACCES ... the file cannot be read; -ENOMEM.
 */
SSV_MUST_CHECK int config_read(int argc, char **argv, struct config *ret_config,
			       struct arguments *ret_arguments, char *error);

/* Print the configuration as YAML that config_read() reads back. */
SSV_MUST_CHECK int config_print(const struct config *config, FILE *out);

/* Usage: every flag with its meaning, default and what is allowed. */
void config_help(FILE *out);

/* The cache folder of this user, for what no key names: $XDG_CACHE_HOME or ~/.cache, then
 * /shadowserve. -E2BIG; -ENOENT no home. */
SSV_MUST_CHECK int config_cache_folder(char *path, size_t path_bytes);

#endif
