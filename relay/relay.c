/* SPDX-License-Identifier: Apache-2.0 */
/* relay.c - the loop: who is ready, which pair is his, what it waits for next. */
#include "relay.h"

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

#define EVENTS_A_ROUND  64
#define ACCEPTS_A_ROUND 16
#define GUESTS_MAX      16 /* sessions that are greeted or end, beyond config->sessions */
#define DRAIN_NS        (3 * NS_PER_S)

enum watch {
	WATCH_LISTENER = 1,
	WATCH_SIGNALS = 2,
	WATCH_WAY = 3,
	WATCH_ENGINE = 4,
	WATCH_PROCESS = 5,
	WATCH_CARD = 6,
};

struct relay {
	struct pair_world *world;
	struct listener *listener;
	int epoll, signals;
	struct pair **pairs;
	uint8_t *touched; /* [pairs_max]: something happened to this one */
	uint32_t pairs_max, pairs_count;
	int all_touched;
	int draining;
	uint64_t drain_deadline_ns;
};

static int watch(struct relay *relay, int op, int fd, enum watch what, uint32_t index,
		 uint32_t events)
{
	struct epoll_event event = {.events = events, .data.u64 = (uint64_t)what << 32 | index};

	return epoll_ctl(relay->epoll, op, fd, &event) < 0 ? -errno : 0;
}

static void end_watch(struct relay *relay, struct end *end, enum watch what, uint32_t index)
{
	short wants = end_wants(end);
	int op = !end->watched ? EPOLL_CTL_ADD : wants ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;

	if (!end->stream || wants == end->watched)
		return;
	if (watch(relay, op, stream_fd(end->stream), what, index, (uint32_t)wants) == 0)
		end->watched = wants;
}

/* ---- pairs ---------------------------------------------------------------------------------- */

static void engine_take(struct relay *relay, int fd, int pidfd, pid_t pid, uint64_t now_ns)
{
	uint32_t index = 0;

	while (index < relay->pairs_max && relay->pairs[index])
		index++;
	if (index == relay->pairs_max) {
		log_warn("connection refused pid=%d reason=\"all %u sessions are taken\"", (int)pid,
			 relay->pairs_max);
		close(fd);
		if (pidfd >= 0)
			close(pidfd);
		return;
	}
	if (pair_create(relay->world, fd, pidfd, pid, now_ns, &relay->pairs[index])) {
		log_error("connection refused pid=%d reason=\"out of memory\"", (int)pid);
		return;
	}
	relay->pairs_count++;
	relay->touched[index] = 1;
	if (pidfd >= 0)
		(void)!watch(relay, EPOLL_CTL_ADD, pidfd, WATCH_PROCESS, index, EPOLLIN);
}

static void engines_accept(struct relay *relay, uint64_t now_ns)
{
	pid_t pid;
	int pidfd;

	for (int i = 0; i < ACCEPTS_A_ROUND && relay->listener->fd >= 0; i++) {
		int fd = listener_accept(relay->listener, &pid, &pidfd);

		if (fd >= 0) {
			engine_take(relay, fd, pidfd, pid, now_ns);
			continue;
		}
		if (fd == -EMFILE || fd == -ENFILE)
			listener_shed(relay->listener, relay->listener->fd);
		if (fd != -EACCES && fd != -EINTR && fd != -ECONNABORTED)
			break;
	}
}

/* Those that something happened to or is due; sessions that only wait cost a message nothing. */
static void pairs_settle(struct relay *relay, uint64_t now_ns)
{
	for (uint32_t i = 0; i < relay->pairs_max; i++) {
		struct pair *pair = relay->pairs[i];

		if (!pair ||
		    (!relay->all_touched && !relay->touched[i] && now_ns < pair_next_ns(pair)))
			continue;
		relay->touched[i] = 0;
		pair_settle(pair, now_ns);
		if (pair->state == PAIR_DONE) {
			pair_destroy(pair);
			relay->pairs[i] = NULL;
			relay->pairs_count--;
			continue;
		}
		end_watch(relay, &pair->engine, WATCH_ENGINE, i);
		end_watch(relay, &pair->card, WATCH_CARD, i);
	}
	relay->all_touched = 0;
}

/* ---- the loop ------------------------------------------------------------------------------- */

static void signals_take(struct relay *relay, uint64_t now_ns)
{
	struct signalfd_siginfo info;

	while (read(relay->signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
		if (info.ssi_signo == SIGHUP) {
			log_info("log reopened status=%d", log_reopen());
			continue;
		}
		log_info("ending reason=\"signal %u\" sessions=%u", info.ssi_signo,
			 relay->pairs_count);
		relay->drain_deadline_ns = relay->draining ? now_ns : now_ns + DRAIN_NS;
		relay->draining = 1;
		relay->all_touched = 1;
		listener_stop(relay->listener);
		for (uint32_t i = 0; i < relay->pairs_max; i++) {
			if (relay->pairs[i])
				pair_end(relay->pairs[i], -ENOTCONN, "the relay is shutting down",
					 now_ns);
		}
	}
}

static void event_take(struct relay *relay, const struct epoll_event *event, uint64_t now_ns)
{
	uint32_t index = (uint32_t)event->data.u64;
	enum watch what = (enum watch)(event->data.u64 >> 32);
	struct pair *pair = what >= WATCH_ENGINE ? relay->pairs[index] : NULL;

	if (pair)
		relay->touched[index] = 1;
	switch (what) {
	case WATCH_LISTENER:
		engines_accept(relay, now_ns);
		break;
	case WATCH_SIGNALS:
		signals_take(relay, now_ns);
		break;
	case WATCH_WAY:
		relay->world->way.ops->changed(relay->world->way.way);
		relay->all_touched = 1; /* whose grant it is is not said */
		break;
	case WATCH_ENGINE:
		if (event->events & ~(uint32_t)EPOLLOUT)
			pair_engine_ready(pair, (event->events & (EPOLLHUP | EPOLLERR)) != 0,
					  now_ns);
		break;
	case WATCH_CARD:
		if (event->events & ~(uint32_t)EPOLLOUT)
			pair_card_ready(pair, now_ns);
		break;
	case WATCH_PROCESS:
		epoll_ctl(relay->epoll, EPOLL_CTL_DEL, pair->pidfd, NULL);
		pair_engine_died(pair, now_ns);
		break;
	}
}

static uint64_t next_ns(const struct relay *relay)
{
	uint64_t next = relay->draining ? relay->drain_deadline_ns : TIME_NEVER;

	for (uint32_t i = 0; i < relay->pairs_max; i++) {
		if (relay->pairs[i])
			next = u64_min(next, pair_next_ns(relay->pairs[i]));
	}
	return next;
}

static void wait_and_dispatch(struct relay *relay)
{
	struct epoll_event events[EVENTS_A_ROUND];
	uint64_t now_ns = clock_now_ns(), next = next_ns(relay);
	int n;

	n = events_wait(relay->epoll, events, EVENTS_A_ROUND, now_ns, next);
	now_ns = clock_now_ns();
	for (int i = 0; i < n; i++)
		event_take(relay, &events[i], now_ns);
	pairs_settle(relay, now_ns);
}

static int watch_all(struct relay *relay)
{
	const struct relay_way *way = &relay->world->way;
	int err;

	relay->epoll = epoll_create1(EPOLL_CLOEXEC);
	err = relay->epoll < 0 ? -errno : 0;
	relay->signals = signals_open();
	if (!err && relay->signals < 0)
		err = relay->signals;
	if (!err)
		err = watch(relay, EPOLL_CTL_ADD, relay->listener->fd, WATCH_LISTENER, 0, EPOLLIN);
	if (!err)
		err = watch(relay, EPOLL_CTL_ADD, relay->signals, WATCH_SIGNALS, 0, EPOLLIN);
	if (!err && way->ops->fd(way->way) >= 0)
		err = watch(relay, EPOLL_CTL_ADD, way->ops->fd(way->way), WATCH_WAY, 0, EPOLLIN);
	return err;
}

int relay_run(const struct config *config, struct pair_world *world, struct listener *listener,
	      char *error)
{
	struct relay relay = {
	    .world = world,
	    .listener = listener,
	    .epoll = -1,
	    .signals = -1,
	    .pairs_max = config->sessions + GUESTS_MAX,
	};
	int err;

	relay.pairs = calloc(relay.pairs_max, sizeof(*relay.pairs));
	relay.touched = calloc(relay.pairs_max, 1);
	err = relay.pairs && relay.touched ? watch_all(&relay) : -ENOMEM;
	if (err)
		snprintf(error, SSV_ERROR_TEXT_MAX * 2, "%s", strerror(-err));
	while (!err && !(relay.draining &&
			 (!relay.pairs_count || clock_now_ns() >= relay.drain_deadline_ns)))
		wait_and_dispatch(&relay);
	listener_stop(listener);
	/* What is left did not let itself be revoked in time: this process's end does it. */
	if (relay.pairs_count)
		_exit(1);
	free(relay.pairs);
	free(relay.touched);
	if (relay.epoll >= 0)
		close(relay.epoll);
	if (relay.signals >= 0)
		close(relay.signals);
	return err;
}
