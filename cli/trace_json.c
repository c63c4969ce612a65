/* SPDX-License-Identifier: Apache-2.0 */
/*
 * trace_json.c - events to JSON, one line each; see trace_json.h. Slices of a track are written in
 * the order of their beginning, the longer first, so that they nest as they are read.
 */
#include "trace_json.h"

#include <errno.h>
#include <string.h>

#include "shadowserve.h"

#define CONTROL_PROCESS 1u
#define WORKER_PROCESS  10u
#define WORK_THREAD     1u
#define LANE_THREAD     100u
#define CAPTURE_THREAD  400u
#define HAND_NS         1000u /* a moment, made long enough to be seen and to hold an arrow */

static const char *const kind_names[TRACE_KINDS_COUNT] = {
#define KIND_NAME(symbol, name) [TRACE_##symbol] = name,
    TRACE_KINDS(KIND_NAME)
#undef KIND_NAME
};

static const char *const gauge_names[] = {"tasks waiting", "lanes busy", "wire slots used",
					  "captures busy"};

static const char *const op_names[] = {[SSV_OP_LOOKUP] = "LOOKUP",
				       [SSV_OP_FETCH] = "FETCH",
				       [SSV_OP_STORE] = "STORE",
				       [SSV_OP_CANCEL] = "CANCEL",
				       [SSV_OP_FLUSH] = "FLUSH"};

struct writer {
	FILE *out;
	const struct seen_events *seen;
	int begun; /* something was written: a comma comes next */
};

/* ---- where an event is drawn ---------------------------------------------------------------- */

static uint32_t process_of(const struct seen_events *seen, const struct seen_event *event)
{
	return event->track + 1 == seen->tracks_count ? CONTROL_PROCESS
						      : WORKER_PROCESS + event->track;
}

static uint32_t thread_of(const struct seen_event *event)
{
	switch (trace_kind(&event->event)) {
	case TRACE_CHUNK:
	case TRACE_GET:
		return LANE_THREAD + trace_place(&event->event);
	case TRACE_STORE:
	case TRACE_PUT:
		return CAPTURE_THREAD + trace_place(&event->event);
	default:
		return WORK_THREAD;
	}
}

static int compare(uint64_t a, uint64_t b)
{
	return a < b ? -1 : a > b;
}

static int event_compare(const void *left, const void *right)
{
	const struct seen_event *a = left, *b = right;
	int order = compare(a->track, b->track);

	if (!order)
		order = compare(thread_of(a), thread_of(b));
	if (!order)
		order = compare(a->event.start_ns, b->event.start_ns);
	return order ? order : compare(trace_duration_ns(&b->event), trace_duration_ns(&a->event));
}

/* ---- pieces of JSON ------------------------------------------------------------------------- */

/* Microseconds, which is the format's unit, from nanoseconds. */
static void put_time(struct writer *writer, const char *name, uint64_t ns)
{
	fprintf(writer->out, ",\"%s\":%llu.%03llu", name, (unsigned long long)(ns / 1000),
		(unsigned long long)(ns % 1000));
}

static uint64_t since_start(const struct writer *writer, uint64_t ns)
{
	return ns > writer->seen->start_ns ? ns - writer->seen->start_ns : 0;
}

static void put_begin(struct writer *writer, const char *phase, uint32_t process, uint32_t thread)
{
	fprintf(writer->out, "%s\n{\"ph\":\"%s\",\"pid\":%u,\"tid\":%u", writer->begun ? "," : "",
		phase, process, thread);
	writer->begun = 1;
}

static void put_name(struct writer *writer, const char *what, uint32_t process, uint32_t thread,
		     const char *name, uint32_t number)
{
	put_begin(writer, "M", process, thread);
	fprintf(writer->out, ",\"name\":\"%s\",\"args\":{\"name\":\"%s", what, name);
	if (number != UINT32_MAX)
		fprintf(writer->out, " %u", number);
	fputs("\"}}", writer->out);
}

/* ---- events --------------------------------------------------------------------------------- */

static void put_slice(struct writer *writer, const struct seen_event *seen, uint64_t duration_ns)
{
	const struct trace_event *event = &seen->event;
	const uint32_t kind = trace_kind(event);
	/* What began before the window is drawn from the window's begin to its own end. */
	const uint64_t start_ns = since_start(writer, event->start_ns);
	const uint64_t end_ns = since_start(writer, event->start_ns + duration_ns);
	FILE *out = writer->out;

	put_begin(writer, "X", process_of(writer->seen, seen), thread_of(seen));
	fprintf(out, ",\"name\":\"%s\",\"cat\":\"%s\"", kind_names[kind], kind_names[kind]);
	put_time(writer, "ts", start_ns);
	put_time(writer, "dur", end_ns - start_ns);
	fputs(",\"args\":{", out);
	if (event->request)
		fprintf(out, "\"request\":%u,\"chunk\":%u,", event->request, event->piece);
	if (kind == TRACE_DECODE || kind == TRACE_INFLATE)
		fprintf(out, "\"segment\":%u,\"lane\":%u,", event->detail, trace_place(event));
	else if (kind == TRACE_ENCODE)
		fprintf(out, "\"tensor\":%u,", event->detail);
	else if (kind == TRACE_CHUNK)
		fprintf(out, "\"status\":%d,", -(int)event->detail);
	else if (kind == TRACE_HAND)
		fprintf(out, "\"worker\":%u,", trace_place(event));
	fprintf(out, "\"bytes\":%llu}}", (unsigned long long)event->value);
}

/* An arrow from where a chunk was handed out ("s") to the lane or capture that took it ("f"). */
static void put_arrow(struct writer *writer, const struct seen_event *seen, const char *phase)
{
	put_begin(writer, phase, process_of(writer->seen, seen), thread_of(seen));
	fputs(",\"name\":\"chunk\",\"cat\":\"chunk\",\"bp\":\"e\"", writer->out);
	put_time(writer, "ts", since_start(writer, seen->event.start_ns));
	fprintf(writer->out, ",\"id\":\"%u.%u\"}", seen->event.request, seen->event.piece);
}

static void put_async(struct writer *writer, const struct seen_event *seen, const char *phase,
		      const char *name, uint64_t ns)
{
	const struct trace_event *event = &seen->event;

	put_begin(writer, phase, process_of(writer->seen, seen), thread_of(seen));
	fprintf(writer->out, ",\"name\":\"%s\",\"cat\":\"%s\",\"id\":\"%u.%u.%u\"", name,
		trace_kind(event) == TRACE_REQUEST ? "request" : "wait", seen->track,
		event->request, event->piece);
	put_time(writer, "ts", since_start(writer, ns));
	if (phase[0] == 'b' && trace_kind(event) == TRACE_REQUEST)
		fprintf(writer->out,
			",\"args\":{\"request\":%u,\"session\":%u,\"tokens\":%u,\"status\":%d}",
			event->request, event->detail >> 4, (uint32_t)event->value,
			(int32_t)(event->value >> 32));
	fputc('}', writer->out);
}

static void put_async_pair(struct writer *writer, const struct seen_event *seen)
{
	const struct trace_event *event = &seen->event;
	const uint32_t op = event->detail & 15;
	const char *name = kind_names[trace_kind(event)];

	if (trace_kind(event) == TRACE_REQUEST && op < ARRAY_COUNT(op_names) && op_names[op])
		name = op_names[op];
	put_async(writer, seen, "b", name, event->start_ns);
	put_async(writer, seen, "e", name, event->start_ns + trace_duration_ns(event));
}

static void put_gauges(struct writer *writer, const struct seen_event *seen)
{
	for (uint32_t i = 0; i < ARRAY_COUNT(gauge_names); i++) {
		put_begin(writer, "C", process_of(writer->seen, seen), WORK_THREAD);
		fprintf(writer->out, ",\"name\":\"%s\"", gauge_names[i]);
		put_time(writer, "ts", since_start(writer, seen->event.start_ns));
		fprintf(writer->out, ",\"args\":{\"now\":%u}}",
			(uint32_t)(seen->event.value >> (16 * i)) & 0xffff);
	}
}

/* Long enough to be seen, but not into the next one. */
static uint64_t hand_duration(const struct seen_events *seen, size_t index)
{
	const struct seen_event *events = seen->events;
	size_t next = index + 1;

	while (next < seen->count && events[next].track == events[index].track &&
	       events[next].event.start_ns == events[index].event.start_ns)
		next++;
	if (next == seen->count || events[next].track != events[index].track)
		return HAND_NS;
	return u64_min(HAND_NS, events[next].event.start_ns - events[index].event.start_ns);
}

static void put_event(struct writer *writer, size_t index)
{
	const struct seen_event *seen = &writer->seen->events[index];
	const uint64_t duration_ns = trace_duration_ns(&seen->event);

	switch (trace_kind(&seen->event)) {
	case TRACE_GAUGE:
		put_gauges(writer, seen);
		return;
	case TRACE_REQUEST:
		put_async_pair(writer, seen);
		return;
	case TRACE_WAIT_LANE:
	case TRACE_WAIT_SLOTS:
	case TRACE_INFLATING:
		if (duration_ns)
			put_async_pair(writer, seen);
		return;
	case TRACE_HAND:
		put_slice(writer, seen, hand_duration(writer->seen, index));
		put_arrow(writer, seen, "s");
		return;
	case TRACE_CHUNK:
	case TRACE_STORE:
		put_slice(writer, seen, duration_ns);
		put_arrow(writer, seen, "f");
		return;
	default:
		put_slice(writer, seen, duration_ns);
		return;
	}
}

/* ---- threads -------------------------------------------------------------------------------- */

/* The one kind of work that a track shows beside sleeping; 0: none, or several. */
static uint32_t only_kind(const struct seen_events *seen, uint32_t track)
{
	uint32_t only = TRACE_NONE;

	for (size_t i = 0; i < seen->count; i++) {
		const uint32_t kind = trace_kind(&seen->events[i].event);

		if (seen->events[i].track != track || kind == TRACE_SLEEP || kind == only)
			continue;
		if (only != TRACE_NONE)
			return TRACE_NONE;
		only = kind;
	}
	return only;
}

void trace_track_name(const struct seen_events *seen, uint32_t track, char *name, size_t bytes)
{
	const uint32_t kind = only_kind(seen, track);

	if (track + 1 == seen->tracks_count)
		snprintf(name, bytes, "control");
	else if (track && (kind == TRACE_INFLATE || kind == TRACE_DECODE || kind == TRACE_DELIVER))
		snprintf(name, bytes, "%s %u", kind_names[kind], track);
	else
		snprintf(name, bytes, "worker %u", track);
}

/* ---- the file ------------------------------------------------------------------------------- */

static void put_names(struct writer *writer)
{
	const struct seen_events *seen = writer->seen;
	uint32_t process = 0, thread = 0;
	char name[32];

	put_name(writer, "process_name", CONTROL_PROCESS, 0, "control", UINT32_MAX);
	for (uint32_t i = 0; i + 1 < seen->tracks_count; i++) {
		trace_track_name(seen, i, name, sizeof(name));
		put_name(writer, "process_name", WORKER_PROCESS + i, 0, name, UINT32_MAX);
	}
	for (size_t i = 0; i < seen->count; i++) {
		const struct seen_event *event = &seen->events[i];

		if (process == process_of(seen, event) && thread == thread_of(event))
			continue;
		process = process_of(seen, event);
		thread = thread_of(event);
		if (thread == WORK_THREAD)
			put_name(writer, "thread_name", process, thread, "work", UINT32_MAX);
		else if (thread < CAPTURE_THREAD)
			put_name(writer, "thread_name", process, thread, "lane",
				 thread - LANE_THREAD);
		else
			put_name(writer, "thread_name", process, thread, "capture",
				 thread - CAPTURE_THREAD);
	}
}

int trace_json_write(struct seen_events *seen, FILE *out)
{
	struct writer writer = {.out = out, .seen = seen};

	qsort(seen->events, seen->count, sizeof(*seen->events), event_compare);
	fputs("{\"displayTimeUnit\":\"ns\",\"traceEvents\":[", out);
	put_names(&writer);
	for (size_t i = 0; i < seen->count; i++)
		put_event(&writer, i);
	fputs("\n]}\n", out);
	return fflush(out) || ferror(out) ? -EIO : 0;
}
