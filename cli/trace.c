/* SPDX-License-Identifier: Apache-2.0 */
/*
 * trace.c - `shadowserve trace`: what every thread of the daemon did in the last seconds.
 *
 * The daemon answers with a bounded piece of one ring at a time; this end asks until it is where
 * that ring's head was at the first answer. What was overwritten before it could be read is said,
 * per thread: as lost when it went away while being read, and by how far back the rest reaches.
 */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "cli.h"
#include "daemon.h"
#include "talk.h"
#include "trace_json.h"

#define TRACKS_MAX 65u /* of a daemon: its workers and control */
#define SLOTS_MAX  (1u << 17)
#define AHEAD_NS   (60 * NS_PER_S) /* events may be newer than the answer's clock, not by much */

static uint64_t option_seconds = 10;
static const char *option_out = "shadowserve-trace.json";

static const struct arg trace_args[] = {
    {"seconds", "N", "of the last N seconds (default 10)", ARG_NUMBER, &option_seconds, 1, 3600},
    {"out", "FILE", "where to (default shadowserve-trace.json); - for stdout", ARG_TEXT,
     &option_out, 0, 0},
    SOCKET_ARG,
    TIMEOUT_ARG,
    ARG_END,
};

struct track {
	uint64_t events;    /* in the file */
	uint64_t lost;      /* overwritten while they were read */
	uint64_t unknown;   /* of kinds that this program does not know */
	uint64_t oldest_ns; /* when the oldest event that was there ended; 0: none */
	int overwritten;    /* there were older ones once */
};

struct reading {
	struct talk talk;
	struct seen_events seen;
	struct track tracks[TRACKS_MAX];
	uint64_t now_ns; /* the daemon's, at the first answer */
};

static int nonsense(const char *what, uint64_t value)
{
	return cli_fail(EXIT_BROKEN, "trace: the daemon's answer makes no sense: %s %llu", what,
			(unsigned long long)value);
}

static void seen_add(struct seen_events *seen, uint32_t track, const struct trace_event *event)
{
	if (seen->count == seen->room) {
		size_t room = seen->room ? 2 * seen->room : 16384;
		struct seen_event *events = cli_alloc(room * sizeof(*events));

		if (seen->count)
			memcpy(events, seen->events, seen->count * sizeof(*events));
		free(seen->events);
		seen->events = events;
		seen->room = room;
	}
	seen->events[seen->count++] = (struct seen_event){.track = track, .event = *event};
}

static int take_event(struct reading *reading, uint32_t index, const struct trace_event *event)
{
	struct track *track = &reading->tracks[index];
	const uint64_t end_ns = event->start_ns + trace_duration_ns(event);

	if (event->start_ns > reading->now_ns + AHEAD_NS || end_ns > reading->now_ns + AHEAD_NS)
		return nonsense("an event that ends at", end_ns);
	if (!track->oldest_ns)
		track->oldest_ns = end_ns;
	if (end_ns < reading->seen.start_ns)
		return 0;
	if (trace_kind(event) == TRACE_NONE || trace_kind(event) >= TRACE_KINDS_COUNT) {
		track->unknown++;
		return 0;
	}
	seen_add(&reading->seen, index, event);
	track->events++;
	return 0;
}

/* The first answer of all says how many threads there are and what time it is. */
static int take_first(struct reading *reading, const struct message_events *head)
{
	const uint64_t window_ns = option_seconds * NS_PER_S;

	if (head->tracks_count < 2 || head->tracks_count > TRACKS_MAX)
		return nonsense("a number of threads of", head->tracks_count);
	reading->seen.tracks_count = head->tracks_count;
	reading->now_ns = head->now_ns;
	reading->seen.start_ns = head->now_ns > window_ns ? head->now_ns - window_ns : 0;
	return 0;
}

static int read_track(struct reading *reading, uint32_t index)
{
	struct track *track = &reading->tracks[index];
	uint64_t from = 0, limit = 0;
	int exit_code = 0, first = 1;

	do {
		struct message_events head;
		struct trace_event event;
		struct message answer;

		exit_code = talk_trace(&reading->talk, index, from, &head, &answer);
		if (!exit_code && !reading->seen.tracks_count)
			exit_code = take_first(reading, &head);
		if (exit_code)
			return exit_code;
		if (head.slots_count > SLOTS_MAX)
			return nonsense("a ring of", head.slots_count);
		if (head.head - head.first > head.slots_count)
			return nonsense("events in a smaller ring:", head.head - head.first);
		if (first) {
			limit = head.head;
			track->overwritten = head.first > 0;
		} else {
			track->lost += u64_min(head.first, limit) - from;
		}
		first = 0;
		for (uint32_t i = 0; i < head.count && !exit_code; i++) {
			message_event_at(&answer, i, &event);
			exit_code = take_event(reading, index, &event);
		}
		/* No event though there should be some: all were overwritten. */
		from = head.count ? head.first + head.count : limit;
	} while (!exit_code && from < limit);
	return exit_code;
}

static int write_file(struct seen_events *seen)
{
	const int to_stdout = !strcmp(option_out, "-");
	FILE *out = to_stdout ? stdout : fopen(option_out, "we");
	int err;

	if (!out)
		return cli_fail(EXIT_USAGE, "trace: %s: %s", option_out, strerror(errno));
	err = trace_json_write(seen, out);
	if (!to_stdout && fclose(out))
		err = -EIO;
	if (err)
		return cli_fail(EXIT_BROKEN, "trace: %s: could not be written", option_out);
	return EXIT_OK;
}

/* ---- the answer ----------------------------------------------------------------------------- */

/* Seconds that the events of a thread reach back, at most what was asked for. */
static double reach_s(const struct reading *reading, const struct track *track)
{
	if (!track->overwritten || track->oldest_ns <= reading->seen.start_ns)
		return (double)option_seconds;
	return reading->now_ns > track->oldest_ns
		   ? (double)(reading->now_ns - track->oldest_ns) / 1e9
		   : 0;
}

static int answer_json(const struct reading *reading)
{
	cJSON *object = cli_object(), *threads = cli_array();

	cli_add_text(object, "file", option_out);
	cli_add_number(object, "seconds", (double)option_seconds);
	cli_add_number(object, "events", (double)reading->seen.count);
	cli_add(object, "threads", threads);
	for (uint32_t i = 0; i < reading->seen.tracks_count; i++) {
		const struct track *track = &reading->tracks[i];
		cJSON *thread = cli_object();
		char name[32];

		trace_track_name(&reading->seen, i, name, sizeof(name));
		cli_add_text(thread, "thread", name);
		cli_add_number(thread, "events", (double)track->events);
		cli_add_number(thread, "lost", (double)track->lost);
		cli_add_number(thread, "unknown", (double)track->unknown);
		cli_add_number(thread, "reaches_back_s", reach_s(reading, track));
		cJSON_AddItemToArray(threads, thread);
	}
	return cli_print_json(object, EXIT_OK);
}

static int answer(const struct reading *reading)
{
	if (!strcmp(option_out, "-"))
		return EXIT_OK; /* stdout is the trace */
	if (option_json)
		return answer_json(reading);
	printf("%s: %zu events; open it at https://ui.perfetto.dev\n", option_out,
	       reading->seen.count);
	for (uint32_t i = 0; i < reading->seen.tracks_count; i++) {
		const struct track *track = &reading->tracks[i];
		char name[32];

		trace_track_name(&reading->seen, i, name, sizeof(name));
		printf("  %-10s %8llu events", name, (unsigned long long)track->events);
		if (reach_s(reading, track) < (double)option_seconds)
			printf(", only the last %.2f s: older ones were overwritten",
			       reach_s(reading, track));
		if (track->lost)
			printf(", %llu lost while reading", (unsigned long long)track->lost);
		if (track->unknown)
			printf(", %llu of unknown kinds left out",
			       (unsigned long long)track->unknown);
		putchar('\n');
	}
	return EXIT_OK;
}

static int run_trace(int argc, char **argv)
{
	struct reading *reading = cli_alloc(sizeof(*reading));
	int exit_code = talk_open(&reading->talk, "trace", option_socket, (uint32_t)option_timeout);

	(void)argc;
	(void)argv;
	if (exit_code)
		goto free_reading;
	for (uint32_t i = 0; !exit_code && (i == 0 || i < reading->seen.tracks_count); i++)
		exit_code = read_track(reading, i);
	if (!exit_code)
		exit_code = write_file(&reading->seen);
	if (!exit_code)
		exit_code = answer(reading);
	talk_close(&reading->talk);
free_reading:
	free(reading->seen.events);
	free(reading);
	return exit_code;
}

const struct command trace_command = {
    .name = "trace",
    .operands = "",
    .summary = "what every thread of the daemon did in the last seconds, for Perfetto",
    .text =
	"Write the daemon's last events as a trace that https://ui.perfetto.dev opens: every\n"
	"chunk and segment, each stage, each worker and lane, requests, queues. The daemon keeps\n"
	"them always (configuration: trace); what was overwritten already is said.\n\n"
	"  shadowserve trace\n"
	"  shadowserve trace --seconds 2 --out slow.json\n"
	"  shadowserve trace --out - | gzip > trace.json.gz",
    .args = trace_args,
    .run = run_trace,
};
