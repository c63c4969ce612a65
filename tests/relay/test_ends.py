# SPDX-License-Identifier: Apache-2.0
"""Card and relay stop, shut down or take memory back: nobody hangs, and no byte is written
afterwards. Kills at any moment: test_kills.py. SSV_SEED repeats a run."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_rig import SANITIZED, SOON_S, Engine, Memory, key, keys, wait_until
from relay_rig import Relayed

Make = Callable[..., Relayed]
BLOCKS, CHUNKS = 160, 8
SOURCE = list(range(CHUNKS * 8))
CANARY = 0xC5


@pytest.fixture
def seed() -> random.Random:
    number = int(os.environ.get("SSV_SEED", "0")) or random.SystemRandom().getrandbits(32)
    print(f"SSV_SEED={number}")
    return random.Random(number)


def fill_store(rig: Relayed) -> bytes:
    """Chunks that later engines fetch; what they must become."""
    engine = Engine(rig, BLOCKS, name="source")
    engine.memory.fill(3, SOURCE)
    content = engine.memory.read(SOURCE)
    assert engine.do(engine.store(keys(1, CHUNKS), SOURCE)).status == 0
    assert engine.flush().status == 0
    engine.close()
    return content


def paint(memory: Memory) -> None:
    memory.map[:] = bytes([CANARY]) * memory.bytes


def is_painted(memory: Memory, blocks: list[int]) -> bool:
    content = memory.read(blocks)
    return content == bytes([CANARY]) * len(content)


def submit_fetches(engine: Engine, source: random.Random) -> tuple[int, list[int]]:
    """Fetches of chunks into blocks of their own; how many, and the blocks nobody may write."""
    places = list(range(BLOCKS // 8))
    source.shuffle(places)
    count = source.randrange(1, len(places) - 2)
    for i in range(count):
        first = places[i] * 8
        number = source.randrange(1, CHUNKS + 1)
        there = list(range(first, first + 8))
        engine.submit(engine.fetch(keys(number, 1), there, position=256 * (number - 1)))
    return count, [place * 8 + k for place in places[count:] for k in range(8)]


def ended(engine: Engine, count: int) -> list[int]:
    """The status of every request; the session is over."""
    return [c.status for c in engine.completions(count).values()]


def test_a_stopped_card_is_lost_in_time_and_its_late_frames_are_dropped(
    relayed: Make, seed: random.Random
) -> None:
    rig = relayed(workers=2, arena="128MiB", card_timeout_ms=600)
    fill_store(rig)
    for _ in range(2 if SANITIZED else 4):
        engine = Engine(rig, BLOCKS)
        paint(engine.memory)
        count, free = submit_fetches(engine, seed)
        rig.card.signal(signal.SIGSTOP)
        started = time.monotonic()
        statuses = ended(engine, count)
        assert set(statuses) <= {0, -errno.ENOTCONN}
        assert time.monotonic() - started < SOON_S / 2
        assert is_painted(engine.memory, free)
        paint(engine.memory)
        rig.card.signal(signal.SIGCONT)
        again = Engine(rig, 8, name="again")  # the card serves again
        assert again.lookup(key(1)) == 256
        assert is_painted(engine.memory, list(range(BLOCKS)))
        again.close()
        engine.close()


def test_a_request_that_arrives_as_the_card_ends_is_answered(relayed: Make) -> None:
    rig = relayed()
    engine = Engine(rig)
    rig.relay.signal(signal.SIGSTOP)
    rig.kill(rig.card)  # the relay hears of this first
    engine.submit(engine.fetch(keys(1, 1), list(range(8))))
    rig.relay.signal(signal.SIGCONT)
    assert ended(engine, 1) == [-errno.ENOTCONN]
    engine.close()


def test_a_card_that_shuts_down_says_so(relayed: Make) -> None:
    rig = relayed()
    engine = Engine(rig)
    assert rig.card.stop() == 0
    with pytest.raises(OSError, match="shutting down"):
        while True:
            engine.session.poll(1000)
    engine.close()


def test_a_relay_that_shuts_down_takes_back_the_memory_first(relayed: Make) -> None:
    rig = relayed()
    engine = Engine(rig)
    assert rig.relay.stop() == 0
    assert rig.card.log_text().count("session ends engine=engine") == 1 or wait_until(
        lambda: "session ends engine=engine" in rig.card.log_text(), "the card noticed"
    )
    engine.close()


def test_an_idle_relay_sleeps(relayed: Make) -> None:
    rig = relayed()
    engine = Engine(rig)
    engine.lookup(key(1))
    time.sleep(0.3)

    def switches() -> int:
        total = 0
        for task in Path(f"/proc/{rig.relay.pid}/task").iterdir():
            receives = (task / "comm").read_text() == "relay-receiver\n"
            if task.name != str(rig.relay.pid) and not receives:
                continue  # the prefault of a new region is busy for a while
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    total += int(line.split()[1])
        return total

    before = switches()
    time.sleep(1.0)
    assert switches() - before <= 1
    engine.close()


def test_unregistered_memory_is_left_alone(relayed: Make) -> None:
    rig = relayed()
    engine = Engine(rig)
    engine.memory.fill(1, list(range(8)))
    assert engine.do(engine.store(keys(1, 1), list(range(8)))).status == 0
    assert engine.flush().status == 0
    engine.submit(*[engine.fetch(keys(1, 1), list(range(8, 16))) for _ in range(8)])
    engine.session.region_unregister(engine.region, 20000)
    paint(engine.memory)
    engine.completions(8)
    time.sleep(0.05)
    assert is_painted(engine.memory, list(range(64)))
    region = engine.session.region_register(1, engine.layout, engine.memory.bytes, engine.memory.fd)
    engine.region = region
    assert engine.do(engine.fetch(keys(1, 1), list(range(8)))).tokens == 256
    engine.close()
