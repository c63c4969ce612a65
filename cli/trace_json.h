/* SPDX-License-Identifier: Apache-2.0 */
/*
 * trace_json.h - a daemon's events as the JSON that https://ui.perfetto.dev and chrome://tracing
 * open.
 *
 * A worker is a process of the picture: its own work, and a track for each lane and each capture.
 * Requests are asynchronous slices of the control thread; an arrow leads from where a chunk was
 * handed out to the lane that took it.
 */
#ifndef SSV_CLI_TRACE_JSON_H
#define SSV_CLI_TRACE_JSON_H

#include "base/trace.h"

struct seen_event {
	uint32_t track; /* worker, or the last: control */
	struct trace_event event;
};

struct seen_events {
	struct seen_event *events;
	size_t count, room;
	uint32_t tracks_count;
	uint64_t start_ns; /* the picture's time 0 */
};

/* What a thread is called: "control", "worker 0", or by the one stage that all its events are of,
 * "inflate 3": then it is a station, and its number is the track's. */
void trace_track_name(const struct seen_events *seen, uint32_t track, char *name, size_t bytes);

/* Sorts the events, and writes them. Returns 0 or -EIO. */
int trace_json_write(struct seen_events *seen, FILE *out);

#endif
