/* SPDX-License-Identifier: Apache-2.0 */
/*
 * server.c - accept, hand bytes to sessions, hand the plane's events to sessions, drain.
 *
 * A session's slot number is what epoll carries. A slot is freed only between two rounds, so that a
 * late event of the same round never reaches a new session.
 */
#include "server.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/events.h"
#include "base/log.h"
#include "base/tally.h"
#include "plane/session.h"
#include "stream/crowd.h"
#include "stream/stream.h"

#define EVENTS_A_ROUND  64
#define DRAIN_LOOK_NS   (20 * NS_PER_MS) /* puts end without an event */
#define ACCEPTS_A_ROUND 64
#define HUNG_UP         ((uint32_t)EPOLLHUP | (uint32_t)EPOLLERR)
#define GUESTS_MAX      16 /* connections that have not said HELLO, beyond config->sessions */
#define STRANGERS_MAX   8  /* of them from other machines: engines of this one still get in */

enum watch {
	WATCH_LISTENER = 1,
	WATCH_SIGNALS = 2,
	WATCH_PLANE = 3,
	WATCH_SESSION = 4,
	WATCH_PROCESS = 5,
	WATCH_LISTENER_TLS = 6,
};

struct slot {
	struct session *session; /* NULL: free */
	short watched;           /* poll events of the socket in the epoll set; 0: not in it */
	int process_watched;
};

struct server {
	const struct config *config;
	struct plane *plane;
	struct listener *listener;
	struct listener_tls *listener_tls;
	const struct worker_threads *threads;
	struct thread_usage *usage; /* at the last reset: of the workers, then of control */
	struct session_world world;
	int epoll, signals;
	struct slot *slots;
	uint32_t slots_count, sessions_count;
	uint64_t started_ns, idle_since_ns;
	int draining;
	uint64_t drain_deadline_ns;
	uint64_t connections, refused;
};

/* ---- epoll ---------------------------------------------------------------------------------- */

static int watch(struct server *server, int op, int fd, enum watch what, uint32_t slot,
		 uint32_t events)
{
	struct epoll_event event = {.events = events, .data.u64 = (uint64_t)what << 32 | slot};

	return epoll_ctl(server->epoll, op, fd, &event) < 0 ? -errno : 0;
}

static_assert(POLLIN == EPOLLIN && POLLOUT == EPOLLOUT && POLLHUP == EPOLLHUP,
	      "session_wants() speaks poll(2)");

static void slot_watch(struct server *server, uint32_t index)
{
	struct slot *slot = &server->slots[index];
	short wants = session_wants(slot->session);
	int op = !slot->watched ? EPOLL_CTL_ADD : wants ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;

	if (wants == slot->watched)
		return;
	if (watch(server, op, session_socket(slot->session), WATCH_SESSION, index,
		  (uint32_t)wants) == 0)
		slot->watched = wants;
}

/* ---- sessions ------------------------------------------------------------------------------- */

static uint32_t slot_free(const struct server *server)
{
	uint32_t i = 0;

	while (i < server->slots_count && server->slots[i].session)
		i++;
	return i;
}

static void connection_take(struct server *server, struct stream *stream, int pidfd, pid_t pid,
			    uint64_t now_ns)
{
	uint32_t index = slot_free(server);
	struct slot *slot = &server->slots[index];

	server->connections++;
	if (index == server->slots_count) {
		server->refused++;
		log_warn("connection refused pid=%d reason=\"all %u sessions are taken\"", (int)pid,
			 server->slots_count);
		stream_destroy(stream);
		if (pidfd >= 0)
			close(pidfd);
		return;
	}
	if (session_create(&server->world, stream, pidfd, pid, now_ns, &slot->session)) {
		log_error("connection refused pid=%d reason=\"out of memory\"", (int)pid);
		return;
	}
	slot->watched = 0;
	slot->process_watched =
	    pidfd >= 0 && watch(server, EPOLL_CTL_ADD, pidfd, WATCH_PROCESS, index, EPOLLIN) == 0;
	server->sessions_count++;
}

static void connections_accept(struct server *server, uint64_t now_ns)
{
	pid_t pid;
	int pidfd;

	for (int i = 0; i < ACCEPTS_A_ROUND && server->listener->fd >= 0; i++) {
		int fd = listener_accept(server->listener, &pid, &pidfd);

		if (fd >= 0) {
			struct stream *stream;

			if (stream_plain(fd, &stream) == 0)
				connection_take(server, stream, pidfd, pid, now_ns);
			else if (pidfd >= 0)
				close(pidfd);
			continue;
		}
		if (fd == -EMFILE || fd == -ENFILE) {
			server->refused++;
			log_error("connection refused reason=\"%s\"", strerror(-fd));
			listener_shed(server->listener, server->listener->fd);
		}
		if (fd != -EACCES && fd != -EINTR && fd != -ECONNABORTED)
			break;
	}
}

/* Those of other machines whose handshake and HELLO are still to come, in order of arrival. */
static uint32_t strangers_list(const struct server *server, struct session **ret_strangers)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < server->slots_count; i++) {
		struct session *session = server->slots[i].session;
		uint32_t at = n;

		if (!session || !session_is_remote(session) ||
		    session_state(session) != SESSION_GREETING)
			continue;
		for (; at &&
		       session_deadline_ns(ret_strangers[at - 1]) > session_deadline_ns(session);
		     at--)
			ret_strangers[at] = ret_strangers[at - 1];
		ret_strangers[at] = session;
		n++;
	}
	return n;
}

/* 0: there is a place for one more; 1: there is, and somebody gave his; -EBUSY: there is none. */
static int stranger_place(struct server *server, const struct stream *newcomer, uint64_t now_ns)
{
	struct session *strangers[STRANGERS_MAX];
	uint64_t hosts[STRANGERS_MAX + 1];
	uint32_t pays;

	if (strangers_list(server, strangers) < STRANGERS_MAX)
		return 0;
	for (uint32_t i = 0; i < STRANGERS_MAX; i++)
		hosts[i] = crowd_host_of(session_socket(strangers[i]));
	hosts[STRANGERS_MAX] = crowd_host_of(stream_fd(newcomer));
	pays = crowd_pays(hosts, STRANGERS_MAX + 1);
	server->refused++;
	if (pays == STRANGERS_MAX)
		return -EBUSY;
	session_turn_away(strangers[pays], "no HELLO yet, and its place was needed", now_ns);
	return 1;
}

static void relays_accept(struct server *server, uint64_t now_ns)
{
	for (int i = 0; i < ACCEPTS_A_ROUND && server->listener_tls->fd >= 0; i++) {
		struct stream *stream;
		int err = listener_tls_accept(server->listener_tls, &stream);

		if (err == -EMFILE || err == -ENFILE) {
			server->refused++;
			log_error("connection refused reason=\"%s\"", strerror(-err));
			listener_shed(server->listener, server->listener_tls->fd);
		}
		if (err == -EINTR || err == -ECONNABORTED)
			continue;
		if (err)
			break;
		err = stranger_place(server, stream, now_ns);
		if (err < 0) {
			log_warn("connection refused reason=\"%d handshakes are under way\"",
				 STRANGERS_MAX);
			stream_destroy(stream);
			continue;
		}
		connection_take(server, stream, -1, 0, now_ns);
		if (err) /* the slot of who went is free in the next round */
			break;
	}
}

static void slot_clear(struct server *server, uint32_t index, uint64_t now_ns)
{
	struct slot *slot = &server->slots[index];

	/* Closing would do unless a fork of ours held the file; we never fork while serving. */
	session_destroy(slot->session);
	*slot = (struct slot){0};
	server->sessions_count--;
	server->idle_since_ns = now_ns;
}

/* Flush, deadlines, interest, and the end of those that are done. */
static void sessions_settle(struct server *server, uint64_t now_ns)
{
	for (uint32_t i = 0; i < server->slots_count; i++) {
		struct session *session = server->slots[i].session;

		if (!session)
			continue;
		session_flush(session, now_ns);
		session_tick(session, now_ns);
		if (session_state(session) == SESSION_DONE)
			slot_clear(server, i, now_ns);
		else
			slot_watch(server, i);
	}
}

static void event_deliver(struct server *server, const struct plane_event *event, uint64_t now_ns)
{
	for (uint32_t i = 0; i < server->slots_count; i++) {
		struct session *session = server->slots[i].session;
		enum session_state state = session ? session_state(session) : SESSION_DONE;

		if ((state == SESSION_OPEN || state == SESSION_ENDING) &&
		    session_plane_id(session) == event->session) {
			session_event(session, event, now_ns);
			return;
		}
	}
}

/* Returns 1 when something was done. */
static int plane_serve(struct server *server, uint64_t now_ns)
{
	struct plane_event events[EVENTS_A_ROUND];
	int busy = plane_step(server->plane, now_ns);
	uint32_t n = plane_poll(server->plane, events, EVENTS_A_ROUND);

	for (uint32_t i = 0; i < n; i++)
		event_deliver(server, &events[i], now_ns);
	return busy || n;
}

/* ---- stat ----------------------------------------------------------------------------------- */

static cJSON *daemon_json(const struct server *server, uint64_t now_ns)
{
	char store[STORE_URI_MAX];
	cJSON *daemon = cJSON_CreateObject();

	store_uri_redact(server->config->store, store, sizeof(store));
	cJSON_AddStringToObject(daemon, "version", server->world.daemon_version);
	cJSON_AddNumberToObject(daemon, "protocol", MESSAGE_VERSION_MAX);
	cJSON_AddNumberToObject(daemon, "pid", getpid());
	cJSON_AddNumberToObject(daemon, "uptime_s",
				(double)((now_ns - server->started_ns) / NS_PER_S));
	cJSON_AddStringToObject(daemon, "socket", server->config->socket);
	cJSON_AddStringToObject(daemon, "store", store);
	cJSON_AddNumberToObject(daemon, "arena_bytes", (double)server->config->arena);
	cJSON_AddNumberToObject(daemon, "bytes", (double)plane_bytes(server->plane));
	cJSON_AddNumberToObject(daemon, "workers", server->config->workers);
	cJSON_AddBoolToObject(daemon, "draining", server->draining);
	cJSON_AddNumberToObject(daemon, "connections", (double)server->connections);
	cJSON_AddNumberToObject(daemon, "connections_refused", (double)server->refused);
	cJSON_AddNumberToObject(daemon, "sessions_malformed", (double)server->world.malformed);
	cJSON_AddNumberToObject(daemon, "sessions_unread", (double)server->world.unread);
	return daemon;
}

static void usage_read(const struct server *server, uint32_t thread, struct thread_usage *usage)
{
	if (thread < plane_threads(server->plane))
		worker_threads_usage(server->threads, thread, usage);
	else
		thread_usage_read(gettid(), usage);
}

/* What the threads used since the last reset, beside the plane's own account of that time. */
static void add_threads(const struct server *server, cJSON *root)
{
	const cJSON *path = cJSON_GetObjectItem(root, "path");
	double chunks = cJSON_GetNumberValue(cJSON_GetObjectItem(path, "chunks"));
	cJSON *threads = cJSON_AddArrayToObject(root, "threads");

	for (uint32_t i = 0; i <= plane_threads(server->plane); i++) {
		struct thread_usage usage;
		char name[PLANE_THREAD_NAME_MAX];

		plane_thread_name(server->plane, i, name);
		usage_read(server, i, &usage);
		thread_usage_add(threads, name, &usage, &server->usage[i],
				 chunks > 0 ? (uint64_t)chunks : 0);
	}
}

static void stat_reset(struct server *server, uint64_t now_ns)
{
	plane_stat_reset(server->plane, now_ns);
	for (uint32_t i = 0; i <= plane_threads(server->plane); i++)
		usage_read(server, i, &server->usage[i]);
}

static int stat_text(void *context, char *json, size_t room, int reset, uint64_t now_ns)
{
	struct server *server = context;
	cJSON *root = cJSON_CreateObject();
	cJSON *clients = cJSON_CreateArray();
	int err;

	cJSON_AddItemToObject(root, "daemon", daemon_json(server, now_ns));
	for (uint32_t i = 0; i < server->slots_count; i++) {
		if (server->slots[i].session)
			session_stat(server->slots[i].session, clients);
	}
	cJSON_AddItemToObject(root, "clients", clients);
	err = plane_stat(server->plane, now_ns, root);
	add_threads(server, root);
	if (!err && !cJSON_PrintPreallocated(root, json, (int)room, 0))
		err = -E2BIG;
	cJSON_Delete(root);
	if (!err && reset)
		stat_reset(server, now_ns);
	return err ? err : (int)strlen(json);
}

/* ---- ending --------------------------------------------------------------------------------- */

static void drain_begin(struct server *server, const char *reason, uint64_t now_ns)
{
	if (server->draining) {
		server->drain_deadline_ns = now_ns; /* asked twice: at once */
		return;
	}
	server->draining = 1;
	server->drain_deadline_ns = now_ns + server->config->drain_timeout_ms * NS_PER_MS;
	log_info("draining reason=\"%s\" sessions=%u deadline_ms=%u", reason,
		 server->sessions_count, server->config->drain_timeout_ms);
	listener_stop(server->listener);
	listener_tls_stop(server->listener_tls);
	for (uint32_t i = 0; i < server->slots_count; i++) {
		if (server->slots[i].session)
			session_end(server->slots[i].session, -ENOTCONN,
				    "the daemon is shutting down", now_ns);
	}
}

/* Returns 1 when the loop is over. */
static int drain_over(struct server *server, uint64_t now_ns, int *ret_result)
{
	if (!server->draining)
		return 0;
	if (plane_drain(server->plane, now_ns) && !server->sessions_count) {
		*ret_result = 0;
		return 1;
	}
	*ret_result = -ETIMEDOUT;
	return now_ns >= server->drain_deadline_ns;
}

static void idle_check(struct server *server, uint64_t now_ns)
{
	uint64_t limit_ns = server->config->idle_exit_s * NS_PER_S;

	if (!limit_ns || server->draining || server->sessions_count ||
	    now_ns < server->idle_since_ns + limit_ns)
		return;
	connections_accept(server, now_ns); /* somebody may just have come */
	if (!server->sessions_count)
		drain_begin(server, "idle", now_ns);
}

static void signals_take(struct server *server, uint64_t now_ns)
{
	struct signalfd_siginfo info;

	while (read(server->signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
		if (info.ssi_signo == SIGHUP) {
			int err = log_reopen();

			log_info("log reopened status=%d", err);
		} else {
			drain_begin(server, info.ssi_signo == SIGTERM ? "SIGTERM" : "SIGINT",
				    now_ns);
		}
	}
}

/* ---- the loop ------------------------------------------------------------------------------- */

static uint64_t wake_ns(const struct server *server, uint64_t now_ns)
{
	uint64_t wake = plane_next_ns(server->plane);

	for (uint32_t i = 0; i < server->slots_count; i++) {
		if (server->slots[i].session)
			wake = u64_min(wake, session_deadline_ns(server->slots[i].session));
	}
	if (server->draining)
		wake = u64_min(wake, u64_min(server->drain_deadline_ns, now_ns + DRAIN_LOOK_NS));
	else if (server->config->idle_exit_s && !server->sessions_count)
		wake =
		    u64_min(wake, server->idle_since_ns + server->config->idle_exit_s * NS_PER_S);
	return wake;
}

static void wait_and_dispatch(struct server *server, int busy)
{
	struct epoll_event events[EVENTS_A_ROUND];
	uint64_t now_ns = clock_now_ns();
	uint64_t wake = busy ? now_ns : wake_ns(server, now_ns);
	int n;

	tally_add(TALLY_CALL_WAIT, 1);
	n = events_wait(server->epoll, events, EVENTS_A_ROUND, now_ns, wake);
	now_ns = clock_now_ns();
	for (int i = 0; i < n; i++) {
		uint32_t index = (uint32_t)events[i].data.u64;

		switch ((enum watch)(events[i].data.u64 >> 32)) {
		case WATCH_LISTENER:
			connections_accept(server, now_ns);
			break;
		case WATCH_LISTENER_TLS:
			relays_accept(server, now_ns);
			break;
		case WATCH_SIGNALS:
			signals_take(server, now_ns);
			break;
		case WATCH_PLANE:
			break; /* plane_step() takes it back */
		case WATCH_SESSION:
			if (events[i].events & ~(uint32_t)EPOLLOUT)
				session_receive(server->slots[index].session,
						(events[i].events & HUNG_UP) != 0, now_ns);
			break;
		case WATCH_PROCESS:
			epoll_ctl(server->epoll, EPOLL_CTL_DEL,
				  session_pidfd(server->slots[index].session), NULL);
			session_peer_died(server->slots[index].session, now_ns);
			break;
		}
	}
}

static int server_watch_all(struct server *server, char *error)
{
	int err;

	server->epoll = epoll_create1(EPOLL_CLOEXEC);
	err = server->epoll < 0 ? -errno : 0;
	server->signals = signals_open();
	if (!err && server->signals < 0)
		err = server->signals;
	if (!err)
		err =
		    watch(server, EPOLL_CTL_ADD, server->listener->fd, WATCH_LISTENER, 0, EPOLLIN);
	if (!err && server->listener_tls->fd >= 0)
		err = watch(server, EPOLL_CTL_ADD, server->listener_tls->fd, WATCH_LISTENER_TLS, 0,
			    EPOLLIN);
	if (!err)
		err = watch(server, EPOLL_CTL_ADD, server->signals, WATCH_SIGNALS, 0, EPOLLIN);
	/* Edge: plane_step() empties the counter, whether or not this loop looks at it. */
	if (!err)
		err = watch(server, EPOLL_CTL_ADD, plane_control_fd(server->plane), WATCH_PLANE, 0,
			    EPOLLIN | EPOLLET);
	if (err)
		snprintf(error, SSV_ERROR_TEXT_MAX * 2, "epoll: %s", strerror(-err));
	return err;
}

static void server_serve(struct server *server, int *ret_result)
{
	uint64_t now_ns = clock_now_ns();
	int busy;

	server->started_ns = now_ns;
	server->idle_since_ns = now_ns;
	for (;;) {
		busy = plane_serve(server, now_ns);
		sessions_settle(server, now_ns);
		idle_check(server, now_ns);
		if (drain_over(server, now_ns, ret_result))
			return;
		wait_and_dispatch(server, busy);
		now_ns = clock_now_ns();
	}
}

static void server_free(struct server *server)
{
	for (uint32_t i = 0; server->slots && i < server->slots_count; i++)
		session_destroy(server->slots[i].session);
	free(server->slots);
	free(server->usage);
	free(server->world.tensors);
	free(server->world.json);
	if (server->epoll >= 0)
		close(server->epoll);
	if (server->signals >= 0)
		close(server->signals);
}

int server_run(const struct config *config, struct plane *plane, struct listener *listener,
	       struct listener_tls *listener_tls, const struct worker_threads *threads, char *error)
{
	struct server server = {
	    .config = config,
	    .plane = plane,
	    .listener = listener,
	    .listener_tls = listener_tls,
	    .threads = threads,
	    .world = {.plane = plane, .stat = stat_text, .daemon_version = ssv_version()},
	    .epoll = -1,
	    .signals = -1,
	    .slots_count = config->sessions + GUESTS_MAX,
	};
	int result;

	server.world.context = &server;
	server.world.tensors = calloc(SSV_TENSORS_MAX, sizeof(*server.world.tensors));
	server.world.json = malloc(MESSAGE_STAT_BYTES_MAX);
	server.usage = calloc(plane_threads(plane) + 1, sizeof(*server.usage));
	server.slots = calloc(server.slots_count, sizeof(*server.slots));
	if (!server.world.tensors || !server.world.json || !server.slots || !server.usage) {
		snprintf(error, SSV_ERROR_TEXT_MAX * 2, "out of memory");
		result = -ENOMEM;
	} else {
		result = server_watch_all(&server, error);
	}
	if (!result)
		server_serve(&server, &result);
	listener_stop(listener);
	listener_tls_stop(listener_tls);
	server_free(&server);
	return result;
}
