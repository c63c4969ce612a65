# SPDX-License-Identifier: Apache-2.0
"""Chunks of `deflate` through inflate engines and stages of a running daemon."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from daemon_rig import Daemon, Engine, keys
from shadowserve.binding import Codec, Tier

Start = Callable[..., Daemon]
CHUNKS = 2
SEGMENTS = CHUNKS * 4  # layers x parts


def start_or_skip(start: Start, **options: object) -> Daemon:
    try:
        return start(**options)
    except AssertionError as error:
        if "no DPDK" in str(error) or "no compression device" in str(error):
            pytest.skip(str(error).strip())
        raise


def round_trip(engine: Engine, codec: int, first: int) -> None:
    source, target = list(range(16)), list(range(63, 47, -1))
    engine.memory.fill(first, source)
    done = engine.do(engine.store(keys(first, CHUNKS), source, tier=Tier.STANDARD, codec=codec))
    assert (done.status, done.tokens) == (0, 512)
    assert engine.flush().status == 0
    done = engine.do(engine.fetch(keys(first, CHUNKS), source))
    assert (done.status, done.tokens) == (0, 512)
    done = engine.do(engine.fetch(keys(first, CHUNKS), target))
    assert (done.status, done.tokens) == (0, 512)
    assert engine.memory.read(target) == engine.memory.read(source)


@pytest.mark.parametrize("pipeline", ["one-pass", "stages"])
@pytest.mark.parametrize("inflate", ["dpdk", "dpdk:compress_zlib", "fault+cpu?error=50"])
def test_a_whole_fetch_goes_through_the_engine(start: Start, inflate: str, pipeline: str) -> None:
    daemon = start_or_skip(start, inflate=inflate, pipeline=pipeline, arena="96MiB")
    engine = Engine(daemon)
    round_trip(engine, Codec.DEFLATE, 1)
    state = engine.stat()
    assert state["pipeline"]["shape"] == pipeline
    assert state["pipeline"]["inflate"] == inflate
    assert state["counters"]["inflates"] == 2 * SEGMENTS
    again = state["counters"]["inflates_again"]
    assert again > 0 if inflate.startswith("fault") else again == 0
    if not inflate.startswith("fault"):
        assert state["path"]["bytes"]["inflated"] > 0
    # Chunks of another codec go the ordinary way.
    round_trip(engine, Codec.R16, 5)
    assert engine.stat()["counters"]["inflates"] == 2 * SEGMENTS
    engine.close()
    assert daemon.stop() == 0


def test_stages_are_threads_on_the_cores_that_were_said(start: Start) -> None:
    core = min(os.sched_getaffinity(0))
    daemon = start(pipeline="stages", arena="96MiB", dequantise_cores=core, inflate_cores=core)
    engine = Engine(daemon)
    round_trip(engine, Codec.DEFLATE, 1)
    names = {}
    for task in os.listdir(f"/proc/{daemon.pid}/task"):
        with open(f"/proc/{daemon.pid}/task/{task}/comm") as comm:
            names[comm.read().strip()] = os.sched_getaffinity(int(task))
    assert names["ssv-inflat-0"] == {core}
    assert names["ssv-dequan-0"] == {core}
    assert "ssv-delive-0" in names
    state = engine.stat()
    stations = {item["stage"]: item for item in state["pipeline"]["stations"]}
    assert stations["inflate"]["items"] == stations["dequantise"]["items"] == 2 * SEGMENTS
    named = [thread["thread"] for thread in state["threads"]]
    assert named == ["worker 0", "inflate 0", "dequantise 0", "deliver 0", "control"]
    engine.close()


def test_an_unknown_engine_is_a_mistake_that_names_what_is_expected(start: Start) -> None:
    for wrong in ("gpu", "cpu+dpdk", "fault+"):
        with pytest.raises(AssertionError, match="expected cpu, dpdk"):
            start(inflate=wrong)
