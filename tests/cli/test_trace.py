# SPDX-License-Identifier: Apache-2.0
"""`shadowserve trace` and `stat --reset`: what they say, and what a lying daemon gets."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_harness import Answer

Cli = Callable[..., Answer]
Event = dict[str, Any]

HELLO, WELCOME, STATUS, RESET, TRACE, EVENTS = 1, 2, 12, 13, 14, 15


@pytest.fixture
def busy(cli: Cli, daemon: str) -> str:
    """A daemon that has just fetched chunks of 8 layers."""
    answer = cli("bench", "fetch", "--socket", daemon, "--count", 24, "--layers", 8)
    assert answer.code == 0, answer.err
    return daemon


def hits(cli: Cli, daemon: str) -> int:
    """How many chunks it has fetched."""
    found = int(cli("stat", "--socket", daemon, "--json").json["counters"]["fetch_hits"])
    assert found >= 24
    return found


def trace_of(cli: Cli, daemon: str, tmp_path: Path) -> list[Event]:
    path = tmp_path / "trace.json"
    answer = cli("trace", "--socket", daemon, "--out", path, "--seconds", 3600)
    assert answer.code == 0, answer.err
    assert "ui.perfetto.dev" in answer.out
    events: list[Event] = json.loads(path.read_text())["traceEvents"]
    return events


# ---- the trace -------------------------------------------------------------------------------


def test_a_trace_has_every_chunk_and_segment_on_its_track(
    cli: Cli, busy: str, tmp_path: Path
) -> None:
    events = trace_of(cli, busy, tmp_path)
    fetched = hits(cli, busy)
    slices = [e for e in events if e["ph"] == "X"]
    chunks = [e for e in slices if e["name"] == "chunk"]
    assert len(chunks) == fetched
    assert all(e["args"]["status"] == 0 and e["args"]["bytes"] > 0 for e in chunks)
    assert sum(e["name"] == "get" for e in slices) == fetched
    assert sum(e["name"] == "hand out" for e in slices) >= fetched
    segments = defaultdict(set)
    for e in slices:
        if e["name"] == "decode":
            segments[e["args"]["request"], e["args"]["chunk"]].add(e["args"]["segment"])
    assert len(segments) == fetched
    assert all(found == set(range(len(found))) and len(found) >= 8 for found in segments.values())
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {names[e["pid"], e["tid"]] for e in chunks} <= {f"lane {i}" for i in range(64)}
    assert {names[e["pid"], e["tid"]] for e in slices if e["name"] == "decode"} == {"work"}
    processes = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert processes == {"control", "worker 0"}


def test_slices_of_a_track_nest_and_go_forward(cli: Cli, busy: str, tmp_path: Path) -> None:
    tracks: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for e in trace_of(cli, busy, tmp_path):
        if e["ph"] == "X":
            tracks[e["pid"], e["tid"]].append(e)
    assert len(tracks) >= 3
    for track in tracks.values():
        open_until: list[float] = []
        last = 0.0
        for e in track:
            begin, end = e["ts"], e["ts"] + e["dur"]
            assert begin >= last
            last = begin
            while open_until and open_until[-1] <= begin + 1e-6:
                open_until.pop()
            assert not open_until or end <= open_until[-1] + 1e-6, (e, open_until)
            open_until.append(end)


def test_every_asynchronous_slice_ends_and_every_arrow_arrives(
    cli: Cli, busy: str, tmp_path: Path
) -> None:
    events = trace_of(cli, busy, tmp_path)
    begun = [(e["cat"], e["id"]) for e in events if e["ph"] == "b"]
    ended = [(e["cat"], e["id"]) for e in events if e["ph"] == "e"]
    assert sorted(begun) == sorted(ended) and begun
    fetches = [e for e in events if e["ph"] == "b" and e["name"] == "FETCH"]
    assert len(fetches) == hits(cli, busy), "one chunk a request"
    assert all(e["args"]["tokens"] == 256 and e["args"]["status"] == 0 for e in fetches)
    left = {e["id"]: e["ts"] for e in events if e["ph"] == "s"}
    came = {e["id"]: e["ts"] for e in events if e["ph"] == "f"}
    assert came and set(came) <= set(left)
    assert all(left[id_] <= came[id_] for id_ in came)
    gauges = {e["name"] for e in events if e["ph"] == "C"}
    assert gauges == {"tasks waiting", "lanes busy", "wire slots used", "captures busy"}


def test_trace_answers_with_counts_and_writes_to_stdout(
    cli: Cli, busy: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.json"
    answer = cli("trace", "--socket", busy, "--out", path, "--json").json
    assert answer["file"] == str(path)
    assert [t["thread"] for t in answer["threads"]] == ["worker 0", "control"]
    assert answer["events"] == sum(t["events"] for t in answer["threads"])
    assert all(t["lost"] == t["unknown"] == 0 for t in answer["threads"])
    assert len(json.loads(cli("trace", "--socket", busy, "--out", "-").out)["traceEvents"]) > 100
    nowhere = cli("trace", "--socket", busy, "--out", tmp_path / "no" / "t.json")
    assert nowhere.code == 2 and "No such file" in nowhere.err


# ---- reset -----------------------------------------------------------------------------------


def test_reset_begins_an_epoch_and_takes_nothing_from_the_counters(cli: Cli, busy: str) -> None:
    before, fetched = cli("stat", "--socket", busy, "--json").json, hits(cli, busy)
    assert before["path"]["epoch"] == 1 and before["path"]["seconds"] is None
    assert before["path"]["chunks_fetched"] == fetched
    last = cli("stat", "--socket", busy, "--reset", "--json")
    assert last.code == 0 and last.json["path"]["epoch"] == 1
    assert last.json["path"]["chunks_fetched"] == fetched
    after = cli("stat", "--socket", busy, "--json").json
    assert after["path"]["epoch"] == 2 and after["path"]["seconds"] >= 0
    assert after["path"]["chunks"] == 0 and after["path"]["bytes"]["delivered"] == 0
    assert all(stage["count"] == 0 for stage in after["path"]["stages"].values())
    for name, value in before["counters"].items():
        assert after["counters"][name] >= value
    for name, stage in before["stages"].items():
        assert after["stages"][name]["count"] >= stage["count"]


def test_stat_says_what_the_hot_path_cost(cli: Cli, busy: str) -> None:
    stat = cli("stat", "--socket", busy, "--json").json
    path, fetched = stat["path"], hits(cli, busy)
    assert path["bytes"]["decoded_per_delivered"] == 1
    assert path["bytes"]["staged_per_delivered"] == 0, "a memfd region is written in place"
    assert path["bytes"]["received"] >= path["bytes"]["wire"] > 0
    assert path["calls"]["read"] > 0 and path["calls"]["per_chunk"] > 0
    assert path["allocations"] is None, "nobody counts them here"
    decode = path["stages"]["decode"]
    assert decode["count"] >= 8 * fetched
    assert 0 < decode["p50_us"] <= decode["p99_us"] <= decode["max_us"]
    assert path["stages"]["wait_decode"]["count"] == decode["count"]
    assert [t["thread"] for t in stat["threads"]] == ["worker 0", "control"]
    assert stat["threads"][0]["cpu_us"] > 0
    worker = stat["workers"][0]
    assert 0 < worker["wire_slots_high"] <= worker["wire_slots"]
    text = cli("stat", "--socket", busy).out
    assert "p99" in text and "wait_decode" in text


# ---- a daemon that lies ----------------------------------------------------------------------


def message(type_: int, id_: int, body: bytes) -> bytes:
    return struct.pack("<IHHQ", 16 + len(body), type_, 0, id_) + body


def welcome(id_: int) -> bytes:
    body = struct.pack("<HHIIIII", 1, 0, 1, 1024, 4096, 65536, 1 << 20) + b"0".ljust(16, b"\0")
    return message(WELCOME, id_, body)


def events(
    id_: int,
    track: int = 0,
    tracks: int = 2,
    count: int = 0,
    slots: int = 64,
    first: int = 0,
    head: int = 0,
    payload: bytes = b"",
) -> bytes:
    now_ns = 10**12
    body = struct.pack("<IIIIQQQQ", track, tracks, count, 0, slots, first, head, now_ns)
    return message(EVENTS, id_, body + payload)


def event(start_ns: int, span: int) -> bytes:
    return struct.pack("<QQIHHQ", start_ns, span, 1, 0, 0, 0)


@pytest.fixture
def liar(tmp_path: Path) -> Iterator[Callable[[Callable[[int, bytes], bytes]], str]]:
    """A daemon that answers what it is told to: answer(id of the question, its body)."""
    path = str(tmp_path / "liar.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(4)
    threads: list[threading.Thread] = []

    def serve(answer: Callable[[int, bytes], bytes]) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.settimeout(30)
            while True:
                question = connection.recv(4096)
                if not question:
                    return
                _, type_, _, id_ = struct.unpack_from("<IHHQ", question)
                reply = welcome(id_) if type_ == HELLO else answer(id_, question[16:])
                try:
                    connection.sendall(reply)
                except OSError:
                    return

    def start(answer: Callable[[int, bytes], bytes]) -> str:
        threads.append(threading.Thread(target=serve, args=(answer,)))
        threads[-1].start()
        return path

    yield start
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in threads:
        thread.join(timeout=30)


DECODE_SPAN = 2 << 56

LIES: dict[str, tuple[Callable[[int, bytes], bytes], str]] = {
    "another type": (lambda id_, _: message(STATUS, id_, bytes(8)), "STATUS"),
    "another question": (lambda id_, _: events(id_ + 1), "expected EVENTS"),
    "no such type": (lambda id_, _: message(77, id_, b""), "no such type"),
    "no message": (lambda id_, _: b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(64), "no such type"),
    "more events than bytes": (lambda id_, _: events(id_, count=3, head=3), "3 events"),
    "no threads": (lambda id_, _: events(id_, tracks=0), "threads"),
    "too many threads": (lambda id_, _: events(id_, tracks=1000), "1000"),
    "another track": (lambda id_, _: events(id_, track=1), "track 1"),
    "a head before the first": (lambda id_, _: events(id_, first=9, head=3), "9 to 9 of 3"),
    "a ring beyond measure": (lambda id_, _: events(id_, slots=1 << 60), "ring"),
    "more events than slots": (lambda id_, _: events(id_, head=65), "smaller ring"),
    "a time to come": (
        lambda id_, _: events(id_, count=1, head=1, payload=event(1 << 63, DECODE_SPAN)),
        "an event that ends at",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lying_daemon_is_named_as_such(cli: Cli, liar: Any, tmp_path: Path, name: str) -> None:
    answer, word = LIES[name]
    out = tmp_path / "t.json"
    said = cli("trace", "--socket", liar(answer), "--out", out, "--timeout", 3000)
    assert said.code == 4, said.err
    assert said.err.startswith("shadowserve: trace: the daemon's answer makes no sense")
    assert word in said.err and said.err.count("\n") == 1
    assert not out.exists()


def test_a_daemon_without_these_messages_is_quoted(cli: Cli, liar: Any) -> None:
    reason = b"message of type 14: no such type"
    body = struct.pack("<iI", -71, len(reason)) + reason
    path = liar(lambda id_, _: message(4, 0, body + bytes(-len(body) % 8)))
    said = cli("trace", "--socket", path, "--out", "-")
    assert said.code == 3 and reason.decode() in said.err


def test_a_silent_daemon_is_waited_for_no_longer_than_asked(cli: Cli, liar: Any) -> None:
    path = liar(lambda id_, _: b"")
    said = cli("trace", "--socket", path, "--out", "-", "--timeout", 200)
    assert said.code == 3 and "no answer in time" in said.err


def test_unknown_kinds_are_left_out_and_lost_events_are_said(
    cli: Cli, liar: Any, tmp_path: Path
) -> None:
    """The ring is overwritten while it is read: 0..1, then 5 instead of 2."""
    known = event(999_999_999_000, DECODE_SPAN | 500)
    unknown = event(999_999_999_500, 99 << 56)

    def answer(id_: int, body: bytes) -> bytes:
        track, _, start = struct.unpack("<IIQ", body)
        if track == 1:
            return events(id_, track=1)
        if start == 0:
            return events(id_, count=2, head=6, slots=8, payload=known + unknown)
        return events(id_, count=1, first=5, head=9, slots=8, payload=known)

    out = tmp_path / "t.json"
    said = cli("trace", "--socket", liar(answer), "--out", out, "--json").json
    assert said["threads"][0] == {
        "thread": "worker 0",
        "events": 2,
        "lost": 3,
        "unknown": 1,
        "reaches_back_s": 10,
    }
    slices = [e for e in json.loads(out.read_text())["traceEvents"] if e["ph"] == "X"]
    assert [e["name"] for e in slices] == ["decode", "decode"]


def test_what_began_before_the_window_is_cut_at_its_begin(
    cli: Cli, liar: Any, tmp_path: Path
) -> None:
    """Of the last 10 s: a decode from 11 s to 9 s ago."""
    half_outside = event(989 * 10**9, DECODE_SPAN | 2 * 10**9)

    def answer(id_: int, body: bytes) -> bytes:
        track, _, _ = struct.unpack("<IIQ", body)
        if track == 1:
            return events(id_, track=1)
        return events(id_, count=1, head=1, payload=half_outside)

    out = tmp_path / "t.json"
    assert cli("trace", "--socket", liar(answer), "--out", out).code == 0
    slices = [e for e in json.loads(out.read_text())["traceEvents"] if e["ph"] == "X"]
    assert [(e["ts"], e["dur"]) for e in slices] == [(0, 10**6)]
