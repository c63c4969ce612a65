/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_lane.c - one data connection: jobs are cut into frames, sent as the socket takes them, and
 * handed back when the relay has answered.
 *
 * A job's staging memory is its runs one after another, so a frame is two pieces: its head and a
 * stretch of staging memory. Nothing is copied and nothing allocated.
 *
 * A lane that fails (the connection ends, an answer lies, nothing moves for TCP_STALL_NS) severs
 * its region before it hands its jobs back: what it has sent may still be on its way to the relay.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/log.h"
#include "base/tally.h"
#include "deliver/tcp.h"

int tcp_lane_is_busy(const struct tcp_lane *lane)
{
	return lane->count || lane->cutting || lane->waiting.first;
}

int tcp_lane_wants_out(const struct tcp_lane *lane)
{
	return lane->head_sent < lane->head_bytes || lane->payload_left;
}

/* ---- the end -------------------------------------------------------------------------------- */

static void job_end(struct deliver_job *job, int status, struct deliver_queue *done)
{
	job->status = status;
	deliver_queue_push(done, job);
}

static void lane_break(struct tcp_lane *lane, const char *why, struct deliver_queue *done)
{
	struct deliver_job *job;

	if (!lane->broken) {
		log_warn("data connection lost worker=%u reason=\"%s\"", lane->worker, why);
		region_sever(lane->region);
		lane->broken = 1;
	}
	if (lane->fd >= 0)
		close(lane->fd);
	lane->fd = -1;
	for (; lane->count; lane->count--) {
		const struct tcp_flight *flight = &lane->flights[lane->first];

		if (flight->last)
			job_end(flight->job, -EIO, done);
		lane->first = (lane->first + 1) % TCP_FLIGHTS;
	}
	if (lane->cutting)
		job_end(lane->cutting, -EIO, done);
	lane->cutting = NULL;
	while (deliver_queue_poll(&lane->waiting, &job, 1))
		job_end(job, -EIO, done);
	lane->head_sent = lane->head_bytes;
	lane->payload_left = lane->data_left = lane->bytes = 0;
	lane->reads = 0;
}

/* ---- sending -------------------------------------------------------------------------------- */

/* The next run of the job that is being cut, joined with those that follow it without a gap, at
 * most limit bytes. 0: the job has no more. */
static uint32_t run_take(struct tcp_lane *lane, uint32_t limit, uint64_t *ret_offset)
{
	const struct deliver_job *job = lane->cutting;
	const struct layout *layout = job->region->layout;
	const struct layout_part *part = layout_tensor_part(layout, job->tensor);
	uint64_t end = 0;
	uint32_t bytes = 0;

	while (lane->block < job->blocks_count) {
		const struct layout_run *run = &part->runs[lane->run];
		uint64_t offset =
		    layout_block_offset(layout, job->tensor, job->blocks[lane->block]) +
		    run->offset;

		if (bytes && (offset != end || run->bytes > limit - bytes))
			break;
		if (!bytes)
			*ret_offset = offset;
		bytes += run->bytes;
		end = offset + run->bytes;
		if (++lane->run == part->runs_count) {
			lane->run = 0;
			lane->block++;
		}
	}
	return bytes;
}

static void frame_begin(struct tcp_lane *lane)
{
	struct deliver_job *job = lane->cutting;
	struct tcp_flight *flight = &lane->flights[(lane->first + lane->count) % TCP_FLIGHTS];
	const int in = job->direction == DELIVER_IN;
	struct tcp_frame frame = {.kind = htole32(in ? TCP_WRITE : TCP_READ),
				  .epoch = htole64(lane->epoch)};
	uint32_t runs = 0;
	uint64_t bytes = 0, offset = 0;

	while (runs < TCP_RUNS_MAX && bytes < TCP_FRAME_BYTES_MAX / 2) {
		uint32_t n = run_take(lane, TCP_FRAME_BYTES_MAX / 2, &offset);
		const struct tcp_run run = {.offset = htole64(offset), .bytes = htole32(n)};

		if (!n)
			break;
		memcpy(lane->head + sizeof(frame) + runs * sizeof(run), &run, sizeof(run));
		bytes += n;
		runs++;
	}
	*flight = (struct tcp_flight){.job = job,
				      .sequence = ++lane->sequence,
				      .bytes = bytes,
				      .stage = lane->stage,
				      .last = lane->block == job->blocks_count};
	frame.runs_count = htole32(runs);
	frame.sequence = htole64(flight->sequence);
	frame.bytes = htole64(bytes);
	memcpy(lane->head, &frame, sizeof(frame));
	lane->head_bytes = (uint32_t)(sizeof(frame) + runs * sizeof(struct tcp_run));
	lane->head_sent = 0;
	lane->payload = lane->stage;
	lane->payload_left = in ? bytes : 0;
	lane->stage += bytes;
	lane->count++;
	lane->bytes += bytes;
	lane->reads += !in;
	if (flight->last)
		lane->cutting = NULL;
}

/* Returns 1 when a frame was begun. */
static int frame_next(struct tcp_lane *lane)
{
	if (lane->count == TCP_FLIGHTS || (lane->count && lane->bytes >= TCP_FLIGHT_BYTES))
		return 0;
	if (!lane->cutting) {
		if (!deliver_queue_poll(&lane->waiting, &lane->cutting, 1))
			return 0;
		lane->block = lane->run = 0;
		lane->stage = lane->cutting->stage;
	}
	if (lane->cutting->direction == DELIVER_OUT && lane->reads == TCP_READS_MAX)
		return 0;
	frame_begin(lane);
	return 1;
}

/* 0, or what is wrong with the connection. */
static int lane_send(struct tcp_lane *lane, uint64_t now_ns)
{
	while (tcp_lane_wants_out(lane) || frame_next(lane)) {
		const struct iovec parts[2] = {
		    {lane->head + lane->head_sent, lane->head_bytes - lane->head_sent},
		    {lane->payload, lane->payload_left}};
		const struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)parts,
					       .msg_iovlen = lane->payload_left ? 2 : 1};
		ssize_t n = sendmsg(lane->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
		uint64_t of_head;

		tally_add(TALLY_CALL_MOVE, 1);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : errno;
		of_head = u64_min((uint64_t)n, parts[0].iov_len);
		lane->head_sent += (uint32_t)of_head;
		lane->payload += (uint64_t)n - of_head;
		lane->payload_left -= (uint64_t)n - of_head;
		lane->progress_ns = now_ns;
	}
	return 0;
}

/* ---- answers -------------------------------------------------------------------------------- */

static void flight_end(struct tcp_lane *lane, struct deliver_queue *done)
{
	const struct tcp_flight *flight = &lane->flights[lane->first];

	lane->bytes -= flight->bytes;
	lane->reads -= flight->job->direction == DELIVER_OUT;
	tally_add(TALLY_BYTES_MOVED, flight->bytes);
	if (flight->last)
		job_end(flight->job, 0, done);
	lane->first = (lane->first + 1) % TCP_FLIGHTS;
	lane->count--;
}

/* Frames up to `sequence` were written; a frame that is still being sent cannot be among them. */
static int writes_end(struct tcp_lane *lane, uint64_t sequence, struct deliver_queue *done)
{
	const uint64_t sent = lane->sequence - (tcp_lane_wants_out(lane) ? 1 : 0);

	if (sequence > sent)
		return -EPROTO;
	while (lane->count && lane->flights[lane->first].sequence <= sequence) {
		if (lane->flights[lane->first].job->direction != DELIVER_IN)
			return -EPROTO;
		flight_end(lane, done);
	}
	return 0;
}

static int answer_take(struct tcp_lane *lane, struct deliver_queue *done)
{
	const uint64_t sequence = le64toh(lane->answer.sequence);
	const uint64_t bytes = le64toh(lane->answer.bytes);
	const struct tcp_flight *flight;
	int err;

	lane->answer_bytes = 0;
	if (lane->answer.reserved || !sequence)
		return -EPROTO;
	if (le32toh(lane->answer.kind) == TCP_ACK)
		return bytes ? -EPROTO : writes_end(lane, sequence, done);
	if (le32toh(lane->answer.kind) != TCP_DATA)
		return -EPROTO;
	err = writes_end(lane, sequence - 1, done);
	flight = &lane->flights[lane->first];
	if (err || !lane->count || flight->sequence != sequence || flight->bytes != bytes ||
	    flight->job->direction != DELIVER_OUT)
		return -EPROTO;
	lane->data = flight->stage;
	lane->data_left = bytes;
	return 0;
}

/* 0, or what is wrong with the connection. */
static int lane_receive(struct tcp_lane *lane, struct deliver_queue *done, uint64_t now_ns)
{
	while (lane->count) {
		uint8_t *to = (uint8_t *)&lane->answer + lane->answer_bytes;
		size_t room = sizeof(lane->answer) - lane->answer_bytes;
		ssize_t n;

		if (lane->data_left) {
			to = lane->data;
			room = lane->data_left;
		}
		n = recv(lane->fd, to, room, MSG_DONTWAIT);
		tally_add(TALLY_CALL_MOVE, 1);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : errno;
		if (n == 0)
			return ECONNRESET;
		lane->progress_ns = now_ns;
		if (lane->data_left) {
			lane->data += n;
			lane->data_left -= (uint64_t)n;
			if (!lane->data_left)
				flight_end(lane, done);
			continue;
		}
		lane->answer_bytes += (uint32_t)n;
		if (lane->answer_bytes == sizeof(lane->answer) && answer_take(lane, done))
			return EPROTO;
	}
	return 0;
}

void tcp_lane_work(struct tcp_lane *lane, struct deliver_queue *done)
{
	int error = lane->fd < 0 ? ENOTCONN : lane_receive(lane, done, done->now_ns);

	if (!error)
		error = lane_send(lane, done->now_ns);
	if (!error && tcp_lane_is_busy(lane) && done->now_ns > lane->progress_ns + TCP_STALL_NS)
		error = ETIMEDOUT;
	if (error)
		lane_break(lane, strerror(error), done);
}
