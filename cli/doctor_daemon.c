/* SPDX-License-Identifier: Apache-2.0 */
/*
 * doctor_daemon.c - is there a daemon, and is the store that it reads well?
 *
 * The store that matters is the daemon's, so that one is looked at unless another is named. What
 * cannot be judged from here is never called fine: the store of a card behind a relay, and one
 * whose password the daemon does not tell. A file: store is not made by looking at it.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli.h"
#include "daemon.h"
#include "doctor.h"
#include "store/uri.h"
#include "store_io.h"

/* ---- the daemon ----------------------------------------------------------------------------- */

static void socket_name(const char *socket, char *path, size_t path_bytes)
{
	if (!socket)
		socket = getenv("SHADOWSERVE_SOCKET");
	if (socket && socket[0])
		snprintf(path, path_bytes, "%s", socket);
	else if (ssv_default_socket(path, path_bytes))
		path[0] = 0;
}

/* A session that came through a relay is one of another machine's to the daemon. */
static bool is_relayed(const cJSON *state, const char *engine_id)
{
	const cJSON *client;

	cJSON_ArrayForEach(client, cJSON_GetObjectItemCaseSensitive(state, "clients"))
	{
		const char *engine =
		    cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(client, "engine"));

		if (engine && !strcmp(engine, engine_id))
			return cJSON_GetObjectItemCaseSensitive(client, "peer") != NULL;
	}
	return false;
}

/* 0, or a negative errno. */
static int daemon_ask(struct ssv *ssv, const char *engine_id, uint32_t timeout_ms,
		      struct doctor_daemon *daemon)
{
	char *json = cli_alloc(STAT_BYTES_MAX);
	int bytes = ssv_stat(ssv, json, STAT_BYTES_MAX, timeout_ms);
	cJSON *state = bytes < 0 ? NULL : cJSON_ParseWithLength(json, (size_t)bytes);
	const cJSON *said = cJSON_GetObjectItemCaseSensitive(state, "daemon");
	const char *store = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(said, "store"));

	if (store) {
		daemon->answers = true;
		daemon->relayed = is_relayed(state, engine_id);
		daemon->store = cli_alloc(strlen(store) + 1);
		strcpy(daemon->store, store);
	}
	cJSON_Delete(state);
	free(json);
	return bytes < 0 ? bytes : store ? 0 : -EPROTO;
}

/* Nobody listens: what is left of a daemon that was killed. */
static bool is_stale(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	bool refused;

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	refused = fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 &&
		  errno == ECONNREFUSED;
	if (fd >= 0)
		close(fd);
	return refused;
}

static void daemon_missed(struct doctor *doctor, const char *path, int err, const char *error,
			  struct doctor_daemon *daemon)
{
	struct stat status;

	if (lstat(path, &status))
		doctor_say(doctor, VERDICT_NOTE, "daemon",
			   "start shadowserved; vLLM's connector starts one by itself",
			   "none at %s", path);
	else if (!S_ISSOCK(status.st_mode))
		doctor_say(doctor, VERDICT_PROBLEM, "daemon", "remove it, or name another --socket",
			   "%s is no socket", path);
	else if (is_stale(path))
		doctor_say(
		    doctor, VERDICT_NOTE, "daemon",
		    "a stale socket of a daemon that was killed: the next shadowserved takes "
		    "it over; to be rid of it, remove the file",
		    "nobody listens at %s", path);
	else
		daemon->silent = true;
	if (daemon->silent)
		doctor_say(doctor, VERDICT_PROBLEM, "daemon",
			   "another user's: name your own with --socket; another version's: start "
			   "this one's; a relay that does not reach its card: start the card",
			   "%s: %s", path, error[0] ? error : strerror(-err));
}

void doctor_check_daemon(struct doctor *doctor, const char *socket, uint32_t timeout_ms,
			 struct doctor_daemon *ret_daemon)
{
	char path[256] = "", error[SSV_ERROR_TEXT_MAX] = "", engine_id[SSV_ENGINE_ID_MAX];
	struct ssv_options options = {.struct_size = sizeof(options),
				      .connect_timeout_ms = timeout_ms,
				      .engine_id = engine_id,
				      .socket_path = socket};
	struct ssv *ssv;
	int err;

	*ret_daemon = (struct doctor_daemon){.answers = false};
	/* Nobody else's, on whatever machine: our session is found by it. */
	snprintf(engine_id, sizeof(engine_id), "doctor-%d-%llx", (int)getpid(),
		 (unsigned long long)clock_now_ns());
	socket_name(socket, path, sizeof(path));
	err = ssv_connect(&options, &ssv, error);
	if (err) {
		daemon_missed(doctor, path, err, error, ret_daemon);
		return;
	}
	err = daemon_ask(ssv, engine_id, timeout_ms, ret_daemon);
	ssv_close(ssv);
	ret_daemon->silent = err != 0;
	if (err)
		doctor_say(doctor, VERDICT_PROBLEM, "daemon",
			   "it took the session and tells no state: look into its log",
			   "%s: no state within %u ms: %s", path, timeout_ms, strerror(-err));
	else if (ret_daemon->relayed)
		doctor_say(doctor, VERDICT_FINE, "daemon", "",
			   "a relay answers at %s, and its card; the card reads %s", path,
			   ret_daemon->store);
	else
		doctor_say(doctor, VERDICT_FINE, "daemon", "", "answers at %s, reads %s", path,
			   ret_daemon->store);
}

void doctor_daemon_clear(struct doctor_daemon *daemon)
{
	free(daemon->store);
	*daemon = (struct doctor_daemon){.answers = false};
}

/* ---- the store ------------------------------------------------------------------------------ */

/* Does it lie in one machine, or even one process? */
static bool is_local(const char *uri, const char *scheme)
{
	const char *after = !strncmp(uri, "fault+", 6) ? uri + 6 : uri;

	return !strncmp(after, scheme, strlen(scheme));
}

/* Options may differ: a size, a number of lanes. */
static bool is_same_place(const char *a, const char *b)
{
	const size_t a_bytes = strcspn(a, "?"), b_bytes = strcspn(b, "?");

	return a_bytes == b_bytes && !strncmp(a, b, a_bytes);
}

static int store_try(const char *uri, uint32_t timeout_ms, char *error)
{
	struct store_config config = {.uri = uri, .seed = 1, .value_bytes_max = GIB, .ops_max = 4};
	struct store_io io = {.timeout_ms = timeout_ms};
	const struct ssv_key key = {{0xd0, 0xc7, 0x04}};
	struct uri parsed;
	uint64_t bytes;
	int err;

	if (!uri_parse(uri, &parsed, error) && !strcmp(parsed.scheme, "file") &&
	    access(parsed.path, F_OK)) {
		err = -errno;
		snprintf(error, SSV_ERROR_TEXT_MAX, "there is no store at %.200s: %s", parsed.path,
			 strerror(-err));
		return err;
	}
	error[0] = 0;
	err = store_open(&config, &io.store, error);
	if (err)
		return err;
	err = store_io_exists(&io, &key, &bytes);
	if (err == -ENOENT)
		err = 0;
	if (err)
		snprintf(error, SSV_ERROR_TEXT_MAX, "no answer: %s", strerror(-err));
	/* One key can be well while others are not. */
	if (io.store->ops->describe && io.store->ops->describe(io.store, error, SSV_ERROR_TEXT_MAX))
		err = -ENOTCONN;
	store_io_close(&io);
	return err;
}

/* Is what was looked at what the daemon reads? */
static void store_compare(struct doctor *doctor, const struct doctor_daemon *daemon,
			  const char *shown, double ms)
{
	if (daemon->answers && !is_same_place(shown, daemon->store))
		doctor_say(doctor, VERDICT_NOTE, "store",
			   "fine if these are two names of one store; else name the daemon's with "
			   "--store, or none",
			   "%s answers, in %.2f ms, but the daemon%s reads %s", shown, ms,
			   daemon->relayed ? " on the card" : "", daemon->store);
	else if (daemon->relayed && is_local(shown, "file:"))
		doctor_say(doctor, VERDICT_NOTE, "store", "run shadowserve doctor on the card",
			   "%s is a folder of this machine; the card reads its own of this name",
			   shown);
	else
		doctor_say(doctor, VERDICT_FINE, "store", "", "%s answers%s, in %.2f ms", shown,
			   daemon->relayed ? " to this machine" : "", ms);
}

static void store_check(struct doctor *doctor, const struct doctor_daemon *daemon, const char *uri,
			uint32_t timeout_ms)
{
	char error[SSV_ERROR_TEXT_MAX] = "", shown[STORE_URI_MAX];
	const uint64_t start_ns = clock_now_ns();
	int err = store_try(uri, timeout_ms, error);

	store_uri_redact(uri, shown, sizeof(shown));
	if (err)
		doctor_say(doctor, VERDICT_PROBLEM, "store",
			   "is the server running, and reachable from here? Password and user are "
			   "part of the URI; a file: store is made by the daemon",
			   "%s: %s", shown, error[0] ? error : strerror(-err));
	else
		store_compare(doctor, daemon, shown, (double)(clock_now_ns() - start_ns) / 1e6);
}

void doctor_check_store(struct doctor *doctor, const struct doctor_daemon *daemon,
			const char *named, uint32_t timeout_ms)
{
	if (!named)
		named = getenv("SHADOWSERVE_STORE");
	if (!named || !named[0])
		named = daemon->answers || daemon->silent ? NULL : store_io_uri(NULL);
	if (named)
		store_check(doctor, daemon, named, timeout_ms);
	else if (daemon->silent)
		doctor_say(doctor, VERDICT_NOTE, "store",
			   "mend what is said of the daemon first, or give --store URI",
			   "not looked at: the daemon does not say which it reads");
	else if (!daemon->answers)
		doctor_say(doctor, VERDICT_NOTE, "store",
			   "give --store URI to have it checked, for example "
			   "redis://127.0.0.1:6379",
			   "none named");
	else if (daemon->relayed)
		doctor_say(doctor, VERDICT_NOTE, "store",
			   "run shadowserve doctor on the card; --store URI looks from this "
			   "machine",
			   "not looked at: the card reads %s", daemon->store);
	else if (strstr(daemon->store, "***"))
		doctor_say(doctor, VERDICT_NOTE, "store",
			   "give its URI, with the password, as --store or SHADOWSERVE_STORE",
			   "not looked at: the daemon reads %s and tells no password",
			   daemon->store);
	else if (is_local(daemon->store, "memory:"))
		doctor_say(doctor, VERDICT_FINE, "store", "", "%s, in the daemon's own memory",
			   daemon->store);
	else
		store_check(doctor, daemon, daemon->store, timeout_ms);
}
