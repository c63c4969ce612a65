/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp.c - the "tcp" way, the card's side: the region is memory of another machine, reached through
 * that machine's relay. Blocks are decoded into staging memory in packed form and sent as frames;
 * captures are asked for and come back the same way. The relay's side is relay/receiver.c.
 *
 * A job is handed back only when the relay has said that its bytes are written, so a completion
 * that leaves afterwards promises what it always does.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "deliver/tcp.h"

extern const struct deliver_ops deliver_tcp;

#define USER_TIMEOUT_MS 5000 /* the kernel's own: bytes that nobody acknowledges */

/* ---- attaching ------------------------------------------------------------------------------ */

static int offer_read(const struct blob *blob, struct tcp_offer *ret_offer,
		      struct sockaddr_storage *ret_address, socklen_t *ret_bytes, char *error)
{
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)ret_address;
	struct sockaddr_in *v4 = (struct sockaddr_in *)ret_address;
	uint16_t family;

	if (!blob || blob->bytes != sizeof(*ret_offer)) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "tcp: an offer of %u bytes, expected %zu",
			 blob ? blob->bytes : 0, sizeof(*ret_offer));
		return -EINVAL;
	}
	memcpy(ret_offer, blob->data, sizeof(*ret_offer));
	family = le16toh(ret_offer->family);
	if (memcmp(ret_offer->magic, TCP_MAGIC, sizeof(ret_offer->magic)) != 0 ||
	    le16toh(ret_offer->version) != TCP_VERSION || !ret_offer->port || ret_offer->reserved ||
	    (family != 4 && family != 6)) {
		snprintf(error, SSV_ERROR_TEXT_MAX,
			 "tcp: an offer of version %u, family %u, port %u, expected version %d and "
			 "an address",
			 le16toh(ret_offer->version), family, le16toh(ret_offer->port),
			 TCP_VERSION);
		return -EINVAL;
	}
	memset(ret_address, 0, sizeof(*ret_address));
	if (family == 4) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(le16toh(ret_offer->port));
		memcpy(&v4->sin_addr, ret_offer->address, sizeof(v4->sin_addr));
	} else {
		v6->sin6_family = AF_INET6;
		v6->sin6_port = htons(le16toh(ret_offer->port));
		memcpy(&v6->sin6_addr, ret_offer->address, sizeof(v6->sin6_addr));
	}
	*ret_bytes = family == 4 ? sizeof(*v4) : sizeof(*v6);
	return 0;
}

/* Begin to connect, with the worker's first job: the relay gives a connection that says nothing
 * little time, and HELLO leaves with that job. It finds out how it went when it sends. */
static void lane_connect(struct tcp_lane *lane, const struct tcp_region *way)
{
	const struct sockaddr *address = (const struct sockaddr *)&way->address;
	const unsigned int timeout_ms = USER_TIMEOUT_MS;
	const int one = 1;

	lane->begun = 1;
	lane->fd =
	    socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);
	if (lane->fd < 0)
		return;
	(void)setsockopt(lane->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	(void)setsockopt(lane->fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof(timeout_ms));
	if (connect(lane->fd, address, way->address_bytes) == 0 || errno == EINPROGRESS)
		return;
	close(lane->fd);
	lane->fd = -1;
}

static void lane_init(struct tcp_lane *lane, struct region *region, uint32_t worker,
		      const struct tcp_offer *offer)
{
	struct tcp_hello hello = {.version = htole16(TCP_VERSION),
				  .worker = htole16((uint16_t)worker),
				  .epoch = offer->epoch};

	memcpy(hello.magic, TCP_MAGIC, sizeof(hello.magic));
	memcpy(hello.token, offer->token, sizeof(hello.token));
	memcpy(lane->head, &hello, sizeof(hello));
	lane->head_bytes = sizeof(hello);
	lane->region = region;
	lane->worker = (uint16_t)worker;
	lane->epoch = le64toh(offer->epoch);
	lane->fd = -1;
}

static void tcp_detach(struct region *region)
{
	struct tcp_region *way = region->way;

	for (uint32_t i = 0; i < way->lanes_count; i++) {
		ssv_assert(!way->lanes[i].listed);
		if (way->lanes[i].fd >= 0)
			close(way->lanes[i].fd);
	}
	free(way);
	region->way = NULL;
}

static int tcp_attach(struct region *region, const struct ssv_region *offer,
		      const struct deliver_owner *owner, const struct deliver_host *host,
		      char *error)
{
	const uint32_t workers = host ? host->workers_count : 1;
	struct sockaddr_storage address;
	struct tcp_offer read;
	struct tcp_region *way;
	socklen_t bytes;
	int err = offer_read(owner->offered, &read, &address, &bytes, error);

	(void)offer;
	if (err)
		return err;
	way = calloc(1, sizeof(*way) + workers * sizeof(way->lanes[0]));
	if (!way) {
		snprintf(error, SSV_ERROR_TEXT_MAX, "tcp: no memory for %u connections", workers);
		return -ENOMEM;
	}
	region->way = way;
	way->address = address;
	way->address_bytes = bytes;
	way->lanes_count = workers;
	for (uint32_t i = 0; i < workers; i++)
		lane_init(&way->lanes[i], region, i, &read);
	return 0;
}

/* ---- jobs ----------------------------------------------------------------------------------- */

static uint64_t tcp_stage_bytes(const struct region *region, uint32_t tensor, uint32_t blocks_count)
{
	return (uint64_t)layout_tensor_part(region->layout, tensor)->packed.block_bytes *
	       blocks_count;
}

static void tcp_submit(struct deliver_queue *queue, struct deliver_job *job)
{
	struct tcp_region *way = job->region->way;
	struct tcp_lane *lane = &way->lanes[queue->worker];

	ssv_assert(queue->worker < way->lanes_count);
	if (!tcp_lane_is_busy(lane))
		lane->progress_ns = queue->now_ns;
	if (!lane->listed) {
		lane->listed = 1;
		lane->next = queue->lanes[DELIVER_LANES_TCP];
		queue->lanes[DELIVER_LANES_TCP] = lane;
	}
	if (!lane->begun)
		lane_connect(lane, way);
	deliver_queue_push(&lane->waiting, job);
	tcp_lane_work(lane, queue);
}

static uint32_t tcp_poll(struct deliver_queue *queue, struct deliver_job **done, uint32_t max)
{
	struct tcp_lane **at = (struct tcp_lane **)&queue->lanes[DELIVER_LANES_TCP];

	while (*at) {
		struct tcp_lane *lane = *at;

		tcp_lane_work(lane, queue);
		if (tcp_lane_is_busy(lane)) {
			at = &lane->next;
			continue;
		}
		lane->listed = 0;
		*at = lane->next;
	}
	return deliver_queue_poll(queue, done, max);
}

static uint32_t tcp_pollfds(const struct deliver_queue *queue, struct pollfd *fds, uint32_t max)
{
	const struct tcp_lane *lane = queue->lanes[DELIVER_LANES_TCP];
	uint32_t n = 0;

	for (; lane && n < max; lane = lane->next) {
		if (lane->fd >= 0)
			fds[n++] = (struct pollfd){
			    .fd = lane->fd,
			    .events = (short)(POLLIN | (tcp_lane_wants_out(lane) ? POLLOUT : 0))};
	}
	return n;
}

const struct deliver_ops deliver_tcp = {
    .name = "tcp",
    .memory = SSV_MEMORY_TCP,
    .attach = tcp_attach,
    .detach = tcp_detach,
    .stage_bytes = tcp_stage_bytes,
    .open = deliver_open_packed,
    .submit = tcp_submit,
    .poll = tcp_poll,
    .pollfds = tcp_pollfds,
};
