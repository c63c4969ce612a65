# SPDX-License-Identifier: Apache-2.0
"""Card, relay and engine end at any moment: nobody hangs, and no byte is written afterwards.

SSV_SEED repeats a run, SSV_KILLS says how many times each is killed.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_rig import SANITIZED, SOON_S, Engine, Memory, key, keys, wait_until
from relay_rig import Relayed

Make = Callable[..., Relayed]
KILLS = int(os.environ.get("SSV_KILLS", "4" if SANITIZED else "15"))
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


@pytest.mark.parametrize("victim", ["card", "relay"])
def test_a_killed_card_or_relay_ends_requests_and_writes_nothing_later(
    relayed: Make, seed: random.Random, victim: str
) -> None:
    rig = relayed(workers=2, arena="128MiB")
    content = fill_store(rig)
    for _ in range(KILLS):
        engine = Engine(rig, BLOCKS)
        paint(engine.memory)
        count, free = submit_fetches(engine, seed)
        time.sleep(seed.random() * 0.01)
        rig.kill(rig.card if victim == "card" else rig.relay)
        statuses = ended(engine, count)
        assert set(statuses) <= {0, -errno.ENOTCONN}
        assert is_painted(engine.memory, free)
        # Completed is promised to be quiet: what the engine writes now is its own.
        paint(engine.memory)
        if victim == "card":
            rig.card_again()
        else:
            rig.relay_again()
        engine.session.close()
        engine.session = Engine(rig, 8, name="again").session
        assert is_painted(engine.memory, list(range(BLOCKS)))
        engine.close()
    witness = Engine(rig, BLOCKS)
    assert witness.do(witness.fetch(keys(1, CHUNKS), SOURCE)).tokens == CHUNKS * 256
    assert witness.memory.read(SOURCE) == content
    witness.close()


ENGINE = """
import sys
from daemon_rig import Engine, keys
class Card: socket = sys.argv[1]
engine = Engine(Card, 160, name="victim")
for i in range(1, 9):
    there = list(range(i * 8, i * 8 + 8))
    engine.submit(engine.fetch(keys(i, 1), there, position=256 * (i - 1)))
    engine.submit(engine.store(keys(100 + i, 1), list(range(80 + i * 8, 88 + i * 8))))
print("submitted", flush=True)
while True:
    engine.session.poll(1000)
"""


def test_a_killed_engine_leaves_nothing_behind(relayed: Make, seed: random.Random) -> None:
    rig = relayed(workers=2, arena="128MiB")
    fill_store(rig)
    witness = Engine(rig, BLOCKS, name="witness")
    for _ in range(max(2, KILLS // 3)):
        engine = subprocess.Popen(
            [sys.executable, "-c", ENGINE, rig.socket],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert engine.stdout
        assert engine.stdout.readline() == "submitted\n"
        time.sleep(seed.random() * 0.005)
        engine.kill()
        engine.wait()
        wait_until(lambda: len(witness.stat()["clients"]) == 1, "the card forgot the engine")
        assert len(witness.stat()["regions"]) == 1
    assert witness.lookup(keys(1, CHUNKS)) == CHUNKS * 256
    witness.close()


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
