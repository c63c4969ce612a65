/* SPDX-License-Identifier: Apache-2.0 */
/*
 * receiver.c - the data port: accepting, the thread, granting and revoking.
 *
 * Revoking is asked of the thread, which closes the grant's connections between two receives and
 * says so: from then on no system call of this process writes to the memory for the card. What
 * was sent late lies in a closed socket.
 *
 * Whoever reaches the port may connect. Until its HELLO has come a connection is a guest: it has
 * one of 64 places, for 2 s at most, and less when others want it (stream/crowd.h).
 */
#include "receiver.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <openssl/crypto.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "connection.h"
#include "shadowserve.h"
#include "stream/address.h"
#include "stream/crowd.h"

#define BACKLOG         128
#define CONNECTIONS_MAX 1024u
#define GUESTS_MAX      64u /* connections without HELLO */
#define GRANTS_MAX      1024u
#define A_GRANT_MAX     256u /* connections of one grant: threads of a card */
#define HELLO_NS        (2 * NS_PER_S)
#define ACCEPTS_A_ROUND 16
#define EVENTS_A_ROUND  32
#define STRANGE_LOG_NS  NS_PER_S /* between two lines about strangers */

static_assert(GUESTS_MAX < CROWD_MAX, "with the newcomer");

struct receiver {
	pthread_t thread;
	pthread_mutex_t lock; /* grants, stats, stop */
	struct grant *grants;
	uint32_t grants_count;
	uint64_t epoch;
	struct receiver_stats stats;
	int stop;

	int listener, epoll;
	int asked;   /* eventfd: the control thread wants something */
	int changed; /* eventfd: a grant's state changed */
	uint16_t port;

	/* The thread's own. */
	struct connection *connections[CONNECTIONS_MAX];
	uint32_t guests[GUESTS_MAX]; /* their indices, in order of arrival */
	uint32_t guests_count;
	uint64_t strange_ns, strange; /* since when and how many strangers went unsaid */
};

/* ---- grants --------------------------------------------------------------------------------- */

/* Release, pairs with grant_state(). */
static void grant_set(struct grant *grant, enum grant_state state)
{
	atomic_store_explicit(&grant->state, (int)state, memory_order_release);
}

/* Acquire, pairs with grant_set(). */
static enum grant_state grant_state(struct grant *grant)
{
	return (enum grant_state)atomic_load_explicit(&grant->state, memory_order_acquire);
}

static void tell(int eventfd)
{
	const uint64_t one = 1;

	(void)!write(eventfd, &one, sizeof(one)); /* full: told already */
}

struct grant *receiver_find(void *context, uint64_t epoch, const uint8_t *token)
{
	struct receiver *receiver = context;
	struct grant *grant;

	pthread_mutex_lock(&receiver->lock);
	grant = receiver->grants;
	while (grant && grant->epoch != epoch)
		grant = grant->next;
	pthread_mutex_unlock(&receiver->lock);
	if (!grant || grant_state(grant) != GRANT_HELD || grant->connections == A_GRANT_MAX ||
	    CRYPTO_memcmp(grant->token, token, TCP_TOKEN_BYTES) != 0)
		return NULL;
	return grant;
}

static int offer_make(const struct receiver *receiver, const struct grant *grant,
		      const struct sockaddr_storage *here, struct blob *ret_offer, char *error)
{
	struct tcp_offer offer = {.version = htole16(TCP_VERSION),
				  .port = htole16(receiver->port),
				  .epoch = htole64(grant->epoch)};

	memcpy(offer.magic, TCP_MAGIC, sizeof(offer.magic));
	memcpy(offer.token, grant->token, sizeof(offer.token));
	if (here->ss_family == AF_INET) {
		offer.family = htole16(4);
		memcpy(offer.address, &((const struct sockaddr_in *)here)->sin_addr, 4);
	} else if (here->ss_family == AF_INET6) {
		offer.family = htole16(6);
		memcpy(offer.address, &((const struct sockaddr_in6 *)here)->sin6_addr, 16);
	} else {
		snprintf(error, SSV_ERROR_TEXT_MAX, "no address that the card could reach");
		return -EINVAL;
	}
	ret_offer->bytes = sizeof(offer);
	memcpy(ret_offer->data, &offer, sizeof(offer));
	return 0;
}

static int tcp_grant(void *way, uint8_t *map, uint64_t bytes, const struct sockaddr_storage *here,
		     struct blob *ret_offer, struct grant **ret_grant, char *error)
{
	struct receiver *receiver = way;
	struct grant *grant;
	int err;

	if (receiver->grants_count == GRANTS_MAX) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "%u regions are granted already", GRANTS_MAX);
		return -E2BIG;
	}
	grant = calloc(1, sizeof(*grant));
	if (!grant ||
	    getrandom(grant->token, sizeof(grant->token), 0) != (ssize_t)sizeof(grant->token)) {
		free(grant);
		snprintf(error, SSV_ERROR_TEXT_MAX, "no memory or no random bytes for a token");
		return -ENOMEM;
	}
	grant->map = map;
	grant->bytes = bytes;
	grant->epoch = ++receiver->epoch;
	grant_set(grant, GRANT_HELD);
	err = offer_make(receiver, grant, here, ret_offer, error);
	if (err) {
		free(grant);
		return err;
	}
	pthread_mutex_lock(&receiver->lock);
	grant->next = receiver->grants;
	receiver->grants = grant;
	receiver->grants_count++;
	pthread_mutex_unlock(&receiver->lock);
	*ret_grant = grant;
	return 0;
}

static int tcp_answered(void *way, struct grant *grant, const struct blob *answer, char *error)
{
	(void)way;
	(void)grant;
	if (!answer->bytes)
		return 0;
	snprintf(error, SSV_ERROR_TEXT_MAX, "the card answers %u bytes where none were expected",
		 answer->bytes);
	return -EPROTO;
}

static void tcp_revoke(void *way, struct grant *grant)
{
	struct receiver *receiver = way;

	if (grant_state(grant) >= GRANT_LEAVING)
		return;
	pthread_mutex_lock(&receiver->lock);
	grant_set(grant, GRANT_LEAVING);
	pthread_mutex_unlock(&receiver->lock);
	tell(receiver->asked);
}

static enum grant_state tcp_state(void *way, struct grant *grant)
{
	(void)way;
	return grant_state(grant);
}

static void tcp_release(void *way, struct grant *grant)
{
	struct receiver *receiver = way;
	struct grant **at = &receiver->grants;

	ssv_assert(grant_state(grant) == GRANT_REVOKED);
	pthread_mutex_lock(&receiver->lock);
	while (*at != grant)
		at = &(*at)->next;
	*at = grant->next;
	receiver->grants_count--;
	pthread_mutex_unlock(&receiver->lock);
	free(grant);
}

static int tcp_fd(void *way)
{
	return ((struct receiver *)way)->changed;
}

static void tcp_changed(void *way)
{
	uint64_t count;

	(void)!read(((struct receiver *)way)->changed, &count, sizeof(count));
}

/* ---- connections (the thread) --------------------------------------------------------------- */

static int watch(struct receiver *receiver, int op, int fd, uint32_t index, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.u32 = index};

	return epoll_ctl(receiver->epoll, op, fd, &event) < 0 ? -errno : 0;
}

/* It is no guest any more. */
static void guest_leaves(struct receiver *receiver, uint32_t index)
{
	uint32_t at = 0;

	while (receiver->guests[at] != index)
		at++;
	receiver->guests_count--;
	memmove(&receiver->guests[at], &receiver->guests[at + 1],
		(receiver->guests_count - at) * sizeof(receiver->guests[0]));
}

static void connection_close(struct receiver *receiver, uint32_t index)
{
	struct connection *c = receiver->connections[index];

	if (c->grant)
		c->grant->connections--;
	else
		guest_leaves(receiver, index);
	close(c->fd);
	free(c);
	receiver->connections[index] = NULL;
}

/* Who is no card of ours can make as many such lines as connections: one a second is enough. */
static void stranger_log(struct receiver *receiver, const char *why)
{
	uint64_t now_ns = clock_now_ns();

	receiver->strange++;
	if (receiver->strange_ns && now_ns < receiver->strange_ns + STRANGE_LOG_NS)
		return;
	log_warn("data connections without greeting end count=%llu reason=\"%s\"",
		 (unsigned long long)receiver->strange, why);
	receiver->strange_ns = now_ns;
	receiver->strange = 0;
}

/* Receive and answer; it may be closed. */
static void connection_serve(struct receiver *receiver, uint32_t index)
{
	struct connection *c = receiver->connections[index];
	int was_out = c->wants_out, was_guest = !c->grant;
	char why[64];
	uint64_t bytes;
	int err = connection_work(c, receiver, &bytes, why);

	if (was_guest && c->grant) {
		c->grant->connections++;
		guest_leaves(receiver, index);
	}
	if (bytes || err < 0) {
		pthread_mutex_lock(&receiver->lock);
		receiver->stats.bytes += bytes;
		receiver->stats.broken += err < 0;
		if (err == -EPROTO && c->grant && grant_state(c->grant) == GRANT_HELD)
			grant_set(c->grant, GRANT_BROKEN);
		pthread_mutex_unlock(&receiver->lock);
	}
	if (err < 0 && c->grant)
		log_warn("data connection ends epoch=%llu reason=\"%s\"",
			 (unsigned long long)c->grant->epoch, why);
	else if (err < 0)
		stranger_log(receiver, why);
	if (err == -EPROTO && c->grant)
		tell(receiver->changed);
	if (err)
		connection_close(receiver, index);
	else if (was_out != c->wants_out)
		(void)!watch(receiver, EPOLL_CTL_MOD, c->fd, index,
			     EPOLLIN | (c->wants_out ? (uint32_t)EPOLLOUT : 0));
}

/* 1: there is a place for one more guest of `host`. Whose greeting lies unread does not lose his.
 */
static int guest_place(struct receiver *receiver, uint64_t host)
{
	while (receiver->guests_count == GUESTS_MAX) {
		uint64_t hosts[GUESTS_MAX + 1];
		struct connection *c;
		uint32_t pays, index;

		for (uint32_t i = 0; i < GUESTS_MAX; i++)
			hosts[i] = receiver->connections[receiver->guests[i]]->host;
		hosts[GUESTS_MAX] = host;
		pays = crowd_pays(hosts, GUESTS_MAX + 1);
		if (pays == GUESTS_MAX)
			return 0;
		index = receiver->guests[pays];
		connection_serve(receiver, index);
		c = receiver->connections[index];
		if (!c || c->grant)
			continue;
		stranger_log(receiver, "its place was needed");
		connection_close(receiver, index);
	}
	return 1;
}

static void connection_add(struct receiver *receiver, int fd, uint64_t host)
{
	const int one = 1;
	struct connection *c = NULL;
	uint32_t index = 0;

	while (index < CONNECTIONS_MAX && receiver->connections[index])
		index++;
	if (index < CONNECTIONS_MAX && guest_place(receiver, host))
		c = calloc(1, sizeof(*c));
	pthread_mutex_lock(&receiver->lock);
	receiver->stats.connections += c != NULL;
	receiver->stats.refused += c == NULL;
	pthread_mutex_unlock(&receiver->lock);
	if (!c || watch(receiver, EPOLL_CTL_ADD, fd, index, EPOLLIN)) {
		free(c);
		close(fd);
		return;
	}
	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	c->fd = fd;
	c->host = host;
	c->deadline_ns = clock_now_ns() + HELLO_NS;
	receiver->connections[index] = c;
	receiver->guests[receiver->guests_count++] = index;
}

static void connections_accept(struct receiver *receiver)
{
	for (int i = 0; i < ACCEPTS_A_ROUND; i++) {
		struct sockaddr_storage from = {0};
		socklen_t bytes = sizeof(from);
		int fd = accept4(receiver->listener, (struct sockaddr *)&from, &bytes,
				 SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd < 0) {
			/* Without a descriptor the queue would wake the thread for ever. */
			if (errno == EMFILE || errno == ENFILE || errno == ENOMEM)
				usleep(10000);
			return;
		}
		connection_add(receiver, fd, crowd_host(&from));
	}
}

/* Close what was revoked, and say so. Returns 1 when the thread shall end. */
static int asked_take(struct receiver *receiver)
{
	uint64_t count;
	int stop;

	(void)!read(receiver->asked, &count, sizeof(count));
	pthread_mutex_lock(&receiver->lock);
	for (uint32_t i = 0; i < CONNECTIONS_MAX; i++) {
		struct connection *c = receiver->connections[i];

		if (c && c->grant && grant_state(c->grant) == GRANT_LEAVING)
			connection_close(receiver, i);
	}
	for (struct grant *grant = receiver->grants; grant; grant = grant->next) {
		if (grant_state(grant) == GRANT_LEAVING)
			grant_set(grant, GRANT_REVOKED);
	}
	stop = receiver->stop;
	pthread_mutex_unlock(&receiver->lock);
	tell(receiver->changed);
	return stop;
}

/* Guests that said nothing go; milliseconds until the next must, -1: there is none. */
static int guests_check(struct receiver *receiver)
{
	uint64_t now_ns = clock_now_ns();

	while (receiver->guests_count) {
		uint64_t deadline_ns = receiver->connections[receiver->guests[0]]->deadline_ns;

		if (now_ns < deadline_ns)
			return (int)((deadline_ns - now_ns) / NS_PER_MS + 1);
		connection_close(receiver, receiver->guests[0]);
	}
	return -1;
}

#define INDEX_LISTENER UINT32_MAX
#define INDEX_ASKED    (UINT32_MAX - 1)

static void *receiver_main(void *context)
{
	struct receiver *receiver = context;
	int stop = 0;

	while (!stop) {
		struct epoll_event events[EVENTS_A_ROUND];
		int wait_ms = guests_check(receiver);
		int n = epoll_wait(receiver->epoll, events, EVENTS_A_ROUND, wait_ms);

		for (int i = 0; i < n; i++) {
			uint32_t index = events[i].data.u32;

			if (index == INDEX_LISTENER)
				connections_accept(receiver);
			else if (index == INDEX_ASKED)
				stop = asked_take(receiver);
			else if (receiver->connections[index])
				connection_serve(receiver, index);
		}
	}
	return NULL;
}

/* ---- opening and closing -------------------------------------------------------------------- */

static int port_listen(struct receiver *receiver, const struct sockaddr_storage *address)
{
	struct sockaddr_storage bound;
	socklen_t bytes = sizeof(bound);

	receiver->listener = address_listen(address, BACKLOG);
	if (receiver->listener < 0)
		return receiver->listener;
	if (getsockname(receiver->listener, (struct sockaddr *)&bound, &bytes) < 0)
		return -errno;
	receiver->port = address_port(&bound);
	return 0;
}

static int thread_start(struct receiver *receiver, int core)
{
	pthread_attr_t attributes;
	cpu_set_t set;
	int err = pthread_attr_init(&attributes);

	if (err)
		return -err;
	CPU_ZERO(&set);
	if (core >= 0) {
		CPU_SET((size_t)core, &set);
		err = pthread_attr_setaffinity_np(&attributes, sizeof(set), &set);
	}
	if (!err)
		err = pthread_create(&receiver->thread, &attributes, receiver_main, receiver);
	pthread_attr_destroy(&attributes);
	if (!err)
		pthread_setname_np(receiver->thread, "relay-receiver");
	return -err;
}

static void fd_close(int fd)
{
	if (fd >= 0)
		close(fd);
}

static void receiver_free(struct receiver *receiver)
{
	for (uint32_t i = 0; i < CONNECTIONS_MAX; i++) {
		if (receiver->connections[i])
			connection_close(receiver, i);
	}
	fd_close(receiver->listener);
	fd_close(receiver->epoll);
	fd_close(receiver->asked);
	fd_close(receiver->changed);
	pthread_mutex_destroy(&receiver->lock);
	free(receiver);
}

int receiver_open(const struct sockaddr_storage *address, int core, struct receiver **ret_receiver,
		  char *error)
{
	struct receiver *receiver = calloc(1, sizeof(*receiver));
	int err;

	if (!receiver)
		return -ENOMEM;
	pthread_mutex_init(&receiver->lock, NULL);
	receiver->listener = -1;
	receiver->epoll = epoll_create1(EPOLL_CLOEXEC);
	receiver->asked = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	receiver->changed = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	err = receiver->epoll < 0 || receiver->asked < 0 || receiver->changed < 0 ? -errno : 0;
	/* Epochs of different runs differ: an old card's frame finds nothing. */
	if (!err && getrandom(&receiver->epoch, sizeof(receiver->epoch), 0) < 0)
		err = -errno;
	receiver->epoch >>= 16;
	if (!err)
		err = port_listen(receiver, address);
	if (!err)
		err = watch(receiver, EPOLL_CTL_ADD, receiver->listener, INDEX_LISTENER, EPOLLIN);
	if (!err)
		err = watch(receiver, EPOLL_CTL_ADD, receiver->asked, INDEX_ASKED, EPOLLIN);
	if (!err)
		err = thread_start(receiver, core);
	if (err) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "data port: %s", strerror(-err));
		receiver_free(receiver);
		return err;
	}
	*ret_receiver = receiver;
	return 0;
}

static void tcp_close(void *way)
{
	struct receiver *receiver = way;

	pthread_mutex_lock(&receiver->lock);
	receiver->stop = 1;
	pthread_mutex_unlock(&receiver->lock);
	tell(receiver->asked);
	pthread_join(receiver->thread, NULL);
	receiver_free(receiver);
}

uint16_t receiver_port(const struct receiver *receiver)
{
	return receiver->port;
}

uint64_t receiver_cpu_ns(const struct receiver *receiver)
{
	struct timespec used = {0};
	clockid_t clock;

	if (pthread_getcpuclockid(receiver->thread, &clock) == 0)
		(void)clock_gettime(clock, &used);
	return (uint64_t)used.tv_sec * NS_PER_S + (uint64_t)used.tv_nsec;
}

void receiver_stats(struct receiver *receiver, struct receiver_stats *ret_stats)
{
	pthread_mutex_lock(&receiver->lock);
	*ret_stats = receiver->stats;
	pthread_mutex_unlock(&receiver->lock);
}

const struct relay_way_ops relay_way_tcp = {
    .name = "tcp",
    .memory = SSV_MEMORY_TCP,
    .grant = tcp_grant,
    .answered = tcp_answered,
    .revoke = tcp_revoke,
    .state = tcp_state,
    .release = tcp_release,
    .fd = tcp_fd,
    .changed = tcp_changed,
    .close = tcp_close,
};
