/* SPDX-License-Identifier: Apache-2.0 */
/*
 * connection.c - one data connection's state: what is received where, and what is answered.
 *
 * A receive takes the rest of a frame's payload into its runs and, behind it, as much of the next
 * frame's head as the last head was long: in a steady flow one system call a frame. When the next
 * head is shorter, the few bytes of payload that came with it are copied.
 */
#include "connection.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define ROUNDS_MAX   16u            /* receives before others come */
#define ANSWER_BYTES (512u * 1024u) /* written and not said, at most, while more comes */
#define WHY_BYTES    64

#define BROKEN(why, ...) (snprintf(why, WHY_BYTES, __VA_ARGS__), -EPROTO)

/* ---- heads ---------------------------------------------------------------------------------- */

static int hello_take(struct connection *c, void *receiver, char *why)
{
	struct tcp_hello hello;

	memcpy(&hello, c->head, sizeof(hello));
	if (memcmp(hello.magic, TCP_MAGIC, sizeof(hello.magic)) != 0 ||
	    le16toh(hello.version) != TCP_VERSION || hello.reserved)
		return BROKEN(why, "no greeting of this protocol");
	c->grant = receiver_find(receiver, le64toh(hello.epoch), hello.token);
	if (!c->grant)
		return BROKEN(why, "a token that opens nothing");
	return 0;
}

static int runs_take(struct connection *c, uint32_t count, uint64_t bytes, struct iovec *runs,
		     char *why)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < count; i++) {
		struct tcp_run run;
		uint64_t offset, n;

		memcpy(&run, c->head + sizeof(struct tcp_frame) + i * sizeof(run), sizeof(run));
		offset = le64toh(run.offset);
		n = le32toh(run.bytes);
		if (run.reserved || n == 0 || offset > c->grant->bytes ||
		    n > c->grant->bytes - offset)
			return BROKEN(why, "%u bytes at %llu of a region of %llu", (uint32_t)n,
				      (unsigned long long)offset,
				      (unsigned long long)c->grant->bytes);
		runs[i] = (struct iovec){c->grant->map + offset, n};
		sum += n;
	}
	if (sum != bytes)
		return BROKEN(why, "runs of %llu bytes in a frame of %llu", (unsigned long long)sum,
			      (unsigned long long)bytes);
	return 0;
}

static int frame_check(const struct connection *c, const struct tcp_frame *frame, char *why)
{
	const uint32_t kind = le32toh(frame->kind), runs = le32toh(frame->runs_count);
	const uint64_t bytes = le64toh(frame->bytes);

	if (kind != TCP_WRITE && kind != TCP_READ)
		return BROKEN(why, "a frame of kind %u", kind);
	if (runs == 0 || runs > TCP_RUNS_MAX || bytes == 0 || bytes > TCP_FRAME_BYTES_MAX)
		return BROKEN(why, "a frame of %u runs and %llu bytes", runs,
			      (unsigned long long)bytes);
	if (le64toh(frame->epoch) != c->grant->epoch)
		return BROKEN(why, "a frame of another epoch");
	if (le64toh(frame->sequence) != c->sequence + 1)
		return BROKEN(why, "frame %llu after %llu",
			      (unsigned long long)le64toh(frame->sequence),
			      (unsigned long long)c->sequence);
	if (kind == TCP_READ && c->reads_count == TCP_READS_MAX)
		return BROKEN(why, "more than %u reads at once", TCP_READS_MAX);
	return 0;
}

static int frame_begin(struct connection *c, const struct tcp_frame *frame, char *why)
{
	const uint32_t runs = le32toh(frame->runs_count);
	struct connection_read *read;
	int err;

	c->sequence++;
	if (le32toh(frame->kind) == TCP_WRITE) {
		err = runs_take(c, runs, le64toh(frame->bytes), c->runs, why);
		c->run = 0;
		c->runs_count = runs;
		c->left = err ? 0 : le64toh(frame->bytes);
		return err;
	}
	read = &c->reads[(c->reads_first + c->reads_count) % TCP_READS_MAX];
	err = runs_take(c, runs, le64toh(frame->bytes), read->runs, why);
	if (err)
		return err;
	read->sequence = c->sequence;
	read->bytes = le64toh(frame->bytes);
	read->runs_count = runs;
	c->reads_count++;
	return 0;
}

/* n more bytes of the payload are there. */
static void payload_advance(struct connection *c, uint64_t n)
{
	c->left -= n;
	c->unanswered_bytes += n;
	while (n) {
		struct iovec *run = &c->runs[c->run];
		uint64_t part = u64_min(n, run->iov_len);

		run->iov_base = (uint8_t *)run->iov_base + part;
		run->iov_len -= part;
		n -= part;
		if (!run->iov_len)
			c->run++;
	}
	if (!c->left)
		c->written = c->sequence;
}

/* Payload that came into the head's buffer; returns how much of it. */
static uint32_t payload_copy(struct connection *c, const uint8_t *from, uint32_t bytes)
{
	uint32_t taken = 0;

	while (taken < bytes && c->left) {
		uint64_t part = u64_min(bytes - taken, c->runs[c->run].iov_len);

		memcpy(c->runs[c->run].iov_base, from + taken, part);
		payload_advance(c, part);
		taken += (uint32_t)part;
	}
	return taken;
}

/* Bytes that the head needs before it means something. */
static uint32_t head_needs(const struct connection *c)
{
	struct tcp_frame frame;

	if (!c->grant)
		return sizeof(struct tcp_hello);
	if (c->head_bytes < sizeof(frame))
		return sizeof(frame);
	memcpy(&frame, c->head, sizeof(frame));
	return (uint32_t)sizeof(frame) + le32toh(frame.runs_count) * sizeof(struct tcp_run);
}

/* Deal with the whole heads in the buffer. */
static int heads_take(struct connection *c, void *receiver, char *why)
{
	while (!c->left && c->head_bytes >= sizeof(struct tcp_frame)) {
		struct tcp_frame frame;
		uint32_t used;
		int err = 0;

		memcpy(&frame, c->head, sizeof(frame));
		if (c->grant)
			err = frame_check(c, &frame, why);
		if (err)
			return err;
		used = head_needs(c);
		if (c->head_bytes < used)
			return 0;
		err = c->grant ? frame_begin(c, &frame, why) : hello_take(c, receiver, why);
		if (err)
			return err;
		c->ahead = used;
		used += payload_copy(c, c->head + used, c->head_bytes - used);
		c->head_bytes -= used;
		memmove(c->head, c->head + used, c->head_bytes);
	}
	return 0;
}

/* ---- receiving ------------------------------------------------------------------------------ */

/* One receive; bytes, 0: nothing there now, 1 in *ret_closed: the peer closed. *ret_drained: it
 * took all there was. */
static int bytes_receive(struct connection *c, int *ret_closed, int *ret_drained)
{
	uint32_t needs = c->left ? 0 : head_needs(c);
	uint32_t count = c->left ? c->runs_count - c->run : 0;
	struct iovec *parts = c->left ? &c->runs[c->run] : c->runs;
	size_t room = (size_t)u64_max(c->ahead, needs) - c->head_bytes;
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = count + 1};
	uint64_t of_payload;
	ssize_t n;

	/* Behind the last run: it is in the array, which has one place more. */
	parts[count] = (struct iovec){c->head + c->head_bytes, room};
	n = recvmsg(c->fd, &message, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
		*ret_drained = 1;
		return 0;
	}
	if (n < 0)
		return -errno;
	*ret_closed = n == 0;
	*ret_drained = (uint64_t)n < c->left + room;
	of_payload = u64_min((uint64_t)n, c->left);
	if (of_payload)
		payload_advance(c, of_payload);
	c->head_bytes += (uint32_t)((uint64_t)n - of_payload);
	return 0;
}

/* ---- answering ------------------------------------------------------------------------------ */

/* Make the next answer ready to be sent; 0: there is none. */
static int answer_next(struct connection *c, int now)
{
	if (c->reads_count) {
		const struct connection_read *read = &c->reads[c->reads_first];

		c->answer = (struct tcp_answer){.kind = htole32(TCP_DATA),
						.sequence = htole64(read->sequence),
						.bytes = htole64(read->bytes)};
		c->data_left = read->bytes;
		c->data_run = 0;
		c->answered = read->sequence;
	} else if (c->written > c->answered && (now || c->unanswered_bytes >= ANSWER_BYTES)) {
		c->answer =
		    (struct tcp_answer){.kind = htole32(TCP_ACK), .sequence = htole64(c->written)};
		c->answered = c->written;
		c->unanswered_bytes = c->left ? c->unanswered_bytes : 0;
	} else {
		return 0;
	}
	c->answer_left = sizeof(c->answer);
	return 1;
}

static void answer_advance(struct connection *c, uint64_t n)
{
	uint64_t of_head = u64_min(n, c->answer_left);
	struct connection_read *read = &c->reads[c->reads_first];

	c->answer_left -= (uint32_t)of_head;
	n -= of_head;
	if (!c->data_left)
		return;
	c->data_left -= n;
	while (n) {
		struct iovec *run = &read->runs[c->data_run];
		uint64_t part = u64_min(n, run->iov_len);

		run->iov_base = (uint8_t *)run->iov_base + part;
		run->iov_len -= part;
		n -= part;
		c->data_run += !run->iov_len;
	}
	if (!c->data_left) {
		c->reads_first = (c->reads_first + 1) % TCP_READS_MAX;
		c->reads_count--;
	}
}

/* now: whatever was written is said. */
static int answers_send(struct connection *c, int now, uint64_t *bytes)
{
	c->wants_out = 0;
	while (c->answer_left || c->data_left || answer_next(c, now)) {
		struct connection_read *read = &c->reads[c->reads_first];
		struct iovec parts[1 + TCP_RUNS_MAX];
		struct msghdr message = {.msg_iov = parts, .msg_iovlen = 1};
		ssize_t n;

		parts[0] = (struct iovec){
		    (uint8_t *)&c->answer + sizeof(c->answer) - c->answer_left, c->answer_left};
		if (c->data_left) {
			uint32_t count = read->runs_count - c->data_run;

			memcpy(parts + 1, &read->runs[c->data_run], count * sizeof(parts[0]));
			message.msg_iovlen += count;
		}
		n = sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
			c->wants_out = 1;
			return 0;
		}
		if (n < 0)
			return -errno;
		*bytes += (uint64_t)n - u64_min((uint64_t)n, c->answer_left);
		answer_advance(c, (uint64_t)n);
	}
	return 0;
}

int connection_work(struct connection *c, void *receiver, uint64_t *ret_bytes, char *why)
{
	int closed = 0, drained = 0, err = 0;

	*ret_bytes = 0;
	why[0] = 0;
	for (uint32_t i = 0; i < ROUNDS_MAX && !drained && !closed && !err; i++) {
		uint64_t left = c->left;

		err = bytes_receive(c, &closed, &drained);
		*ret_bytes += left - c->left;
		if (!err)
			err = heads_take(c, receiver, why);
		/* A reader of much that never takes what it asked for would fill the ring. */
		if (!err)
			err = answers_send(c, drained, ret_bytes);
	}
	if (err && !why[0])
		snprintf(why, WHY_BYTES, "%s", strerror(-err));
	return err ? err : closed;
}
