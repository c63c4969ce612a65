/* SPDX-License-Identifier: Apache-2.0 */
/*
 * main.c - shadowserved: configuration, plane, threads, server, in that order, and back.
 *
 * Exit status: 0 ended as asked, 1 cannot run or left a hanging worker behind, 2 configuration
 * mistake, 3 another daemon serves the socket.
 */
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/events.h"
#include "base/log.h"
#include "codec/kernels.h"
#include "config.h"
#include "detach.h"
#include "listener.h"
#include "listener_tls.h"
#include "plane/plane.h"
#include "profiles.h"
#include "server.h"
#include "shadowserve.h"
#include "worker_thread.h"

#define EXIT_CANNOT_RUN 1
#define EXIT_MISTAKE    2
#define EXIT_SERVED     3
#define TEXT_BYTES      (SSV_ERROR_TEXT_MAX * 2)
#define OTHER_WAIT_MS   15000 /* --detach: for another daemon to serve, or to be gone */

static int report = -1; /* --detach: the starter's pipe until it serves */

static int failed(const struct config *config, int status, const char *text)
{
	if (config->log_file[0])
		log_error("cannot run reason=\"%s\"", text);
	if (report >= 0)
		detach_report(report, status, text);
	else
		fprintf(stderr, "shadowserved: %s\n", text);
	return status;
}

/* ---- pieces of the start -------------------------------------------------------------------- */

/* Make a folder and those above it, 0700. */
static int folders_make(char *path)
{
	for (char *c = path + 1; *c; c++) {
		if (*c != '/')
			continue;
		*c = 0;
		if (mkdir(path, 0700) < 0 && errno != EEXIST) {
			*c = '/';
			return -errno;
		}
		*c = '/';
	}
	return mkdir(path, 0700) < 0 && errno != EEXIST ? -errno : 0;
}

static int log_begin(struct config *config, int detached, char *error)
{
	char folder[PATH_MAX];
	int err = 0;

	log_set_level(config->log_level);
	if (detached && !config->log_file[0]) {
		err = config_cache_folder(folder, sizeof(folder));
		if (!err)
			err = folders_make(folder);
		if (!err &&
		    (size_t)snprintf(config->log_file, sizeof(config->log_file),
				     "%s/shadowserved.log", folder) >= sizeof(config->log_file))
			err = -E2BIG;
	}
	if (!err && config->log_file[0])
		err = log_open(config->log_file);
	if (err)
		snprintf(error, TEXT_BYTES, "log file %.200s: %s", config->log_file,
			 strerror(-err));
	return err;
}

static int control_pin(const struct config *config)
{
	cpu_set_t core;

	if (config->control_core < 0)
		return 0;
	CPU_ZERO(&core);
	CPU_SET((size_t)config->control_core, &core);
	return sched_setaffinity(0, sizeof(core), &core) < 0 ? -errno : 0;
}

/* Allocations of this thread, where a library that counts them is preloaded (tests do). */
typedef uint64_t allocations_fn(void);

static allocations_fn *allocations_counter(void)
{
	allocations_fn *counter;

	*(void **)&counter = dlsym(RTLD_DEFAULT, "shadowserve_allocations_of_thread");
	return counter;
}

static int plane_open(const struct config *config, const struct profile_set *profiles,
		      struct plane **ret_plane, char *error)
{
	struct plane_config plane = {
	    .store_uri = config->store,
	    .arena_bytes = config->arena,
	    .workers_count = config->workers,
	    .sessions_max = config->sessions,
	    .regions_max = config->regions,
	    .jobs_max = config->requests,
	    .lanes = config->lanes,
	    .captures_max = config->captures,
	    .overlap = (uint8_t)config->overlap,
	    .pipeline = (uint8_t)config->pipeline,
	    /* On a worker's own core its decoder inflates what it is about to dequantise. */
	    .inflate = strcmp(config->inflate, "cpu") ? config->inflate : NULL,
	    .channels_max = config->channels,
	    .fetch_deadline_ms = config->fetch_deadline_ms,
	    .store_deadline_ms = config->store_deadline_ms,
	    .lookup_deadline_ms = config->lookup_deadline_ms,
	    .tier = (uint8_t)config->tier,
	    .codec = (uint8_t)config->codec,
	    .trellis = (uint8_t)config->trellis,
	    .min_tier = (uint8_t)config->min_tier,
	    .profiles = profiles,
	    .verbatim_tokens = (uint8_t)config->verbatim_tokens,
	    .huge_pages = (uint8_t)config->huge_pages,
	    .pin_memory = (uint8_t)config->pin_memory,
	    .rdma = config->rdma_device,
	    .clock_ns = clock_now_ns,
	    .allocations = allocations_counter(),
	    .trace_off = !config->trace,
	};
	char text[SSV_ERROR_TEXT_MAX] = "";
	int err;

	for (uint32_t i = 0; i < PLANE_STATIONS; i++)
		plane.stations[i] =
		    config->station_cores[i].count ? config->station_cores[i].count : 1;
	if (getrandom(&plane.seed, sizeof(plane.seed), 0) != (ssize_t)sizeof(plane.seed))
		plane.seed = clock_now_ns();
	err = plane_create(&plane, ret_plane, text);
	if (err)
		snprintf(error, TEXT_BYTES, "%s", text[0] ? text : strerror(-err));
	return err;
}

static void greeting(const struct config *config, const struct plane *plane, uint16_t tls_port,
		     int detached)
{
	char store[STORE_URI_MAX], line[2 * STORE_URI_MAX + 256];

	store_uri_redact(config->store, store, sizeof(store));
	snprintf(line, sizeof(line),
		 "version=%s pid=%d socket=%s tls_port=%u arena=%lluMiB allocated=%lluMiB "
		 "workers=%u simd=%s store=%s",
		 ssv_version(), (int)getpid(), config->socket, tls_port,
		 (unsigned long long)(config->arena / MIB),
		 (unsigned long long)(plane_bytes(plane) / MIB), config->workers,
		 kernels_get()->name, store);
	log_info("serving %s", line);
	if (detached)
		return;
	printf("shadowserved %s\n", line);
	fflush(stdout);
}

/* ---- running -------------------------------------------------------------------------------- */

static int serve(const struct config *config, struct listener *listener,
		 struct listener_tls *listener_tls, struct plane *plane, char *error)
{
	struct worker_threads *threads;
	int served, stopped;

	served = worker_threads_start(plane, config, &threads, error);
	if (served)
		return failed(config, EXIT_CANNOT_RUN, error);
	served = listener_listen(listener, error);
	if (served) {
		(void)!worker_threads_stop(threads, 2000);
		return failed(config, EXIT_CANNOT_RUN, error);
	}
	greeting(config, plane, listener_tls->port, report >= 0);
	detach_report(report, 0, "");
	report = -1;
	served = server_run(config, plane, listener, listener_tls, threads, error);
	stopped = worker_threads_stop(threads, 2000);
	if (served == -ETIMEDOUT)
		log_warn("drain cut short deadline_ms=%u", config->drain_timeout_ms);
	else if (served)
		return failed(config, EXIT_CANNOT_RUN, error);
	log_info("ended pid=%d", (int)getpid());
	if (stopped) {
		/* Its thread still uses the plane: the kernel frees what we cannot. */
		log_error("a worker hangs in its store; leaving without it");
		listener_close(listener);
		_exit(EXIT_CANNOT_RUN);
	}
	return 0;
}

static int run(const struct config *config, struct listener *listener)
{
	struct profile_set profiles = {.count = 0};
	struct listener_tls listener_tls;
	char error[CONFIG_ERROR_MAX] = "";
	struct plane *plane;
	int status, err;

	err = control_pin(config);
	if (err) {
		snprintf(error, sizeof(error), "control_core %d: %s", config->control_core,
			 strerror(-err));
		return failed(config, EXIT_CANNOT_RUN, error);
	}
	err = listener_tls_open(&listener_tls, config, error);
	if (err)
		return failed(config, EXIT_CANNOT_RUN, error);
	err = profiles_load(config, &profiles, error);
	if (!err)
		err = plane_open(config, &profiles, &plane, error);
	if (!err) {
		status = serve(config, listener, &listener_tls, plane, error);
		plane_destroy(plane);
	} else {
		status = failed(config, EXIT_CANNOT_RUN, error);
	}
	listener_tls_close(&listener_tls);
	profile_set_clear(&profiles);
	return status;
}

/* The lock may be held by a daemon that starts (then it will serve) or ends (then we will). */
static int listen_or_join(const struct config *config, struct listener *listener, int detached,
			  int *ret_joined, char *error)
{
	uint64_t deadline_ns = clock_now_ns() + OTHER_WAIT_MS * NS_PER_MS;
	pid_t owner;
	int err;

	*ret_joined = 0;
	for (;;) {
		err = listener_open(listener, config->socket, &owner, error);
		if (err != -EADDRINUSE || !detached || clock_now_ns() >= deadline_ns)
			return err;
		if (listener_probe(config->socket, &owner) == 0) {
			*ret_joined = 1;
			return 0;
		}
		usleep(20000);
	}
}

static int start(struct config *config, int detached)
{
	char error[TEXT_BYTES] = "";
	struct listener listener;
	int joined, status, err;

	err = log_begin(config, detached, error);
	if (err)
		return failed(config, EXIT_CANNOT_RUN, error);
	signals_block();
	err = listen_or_join(config, &listener, detached, &joined, error);
	if (err)
		return failed(config, err == -EADDRINUSE ? EXIT_SERVED : EXIT_CANNOT_RUN, error);
	if (joined) {
		detach_report(report, 0, "");
		return 0;
	}
	status = run(config, &listener);
	listener_close(&listener);
	return status;
}

/* Logs, `stat` and whoever asks for the socket know nothing of the starter's folder. */
static int make_absolute(const char *key, char name[CONFIG_TEXT_MAX], char *error)
{
	char folder[PATH_MAX], path[CONFIG_TEXT_MAX + PATH_MAX];

	if (name[0] == '/')
		return 0;
	if (!getcwd(folder, sizeof(folder)) ||
	    (size_t)snprintf(path, sizeof(path), "%s/%s", folder, name) >= CONFIG_TEXT_MAX) {
		snprintf(error, CONFIG_ERROR_MAX, "%s: \"%.200s\": cannot be made absolute", key,
			 name);
		return -EINVAL;
	}
	strcpy(name, path);
	return 0;
}

int main(int argc, char **argv)
{
	static struct config config;
	static struct arguments arguments;
	char error[CONFIG_ERROR_MAX];
	int err;

	err = config_read(argc, argv, &config, &arguments, error);
	if (arguments.help || arguments.version) {
		if (arguments.help)
			config_help(stdout);
		else
			printf("shadowserved %s\n", ssv_version());
		return 0;
	}
	if (!err && arguments.print_config)
		return config_print(&config, stdout) ? EXIT_CANNOT_RUN : 0;
	if (!err)
		err = make_absolute("socket", config.socket, error);
	if (!err && config.profiles[0] && strcmp(config.profiles, PROFILES_IN_STORE) != 0)
		err = make_absolute("profiles", config.profiles, error);
	if (!err)
		err = kernels_check(error, sizeof(error));
	if (err) {
		fprintf(stderr, "shadowserved: %s\n", error);
		return EXIT_MISTAKE;
	}
	if (arguments.detach) {
		err = detach(&report);
		if (err) {
			fprintf(stderr, "shadowserved: --detach: %s\n", strerror(-err));
			return EXIT_CANNOT_RUN;
		}
	}
	return start(&config, arguments.detach);
}
