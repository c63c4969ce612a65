# SPDX-License-Identifier: Apache-2.0
"""Memory is a function of the configuration: allocated at start, and then no more."""

from __future__ import annotations

import json
import mmap
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from daemon_rig import BUILD, SANITIZED, Daemon, Engine, Redis, key, keys
from shadowserve.binding import Op, Tier

Start = Callable[..., Daemon]
COUNTER = BUILD / "tests" / "daemon" / "malloc_count.so"

pytestmark = pytest.mark.skipif(SANITIZED, reason="a sanitizer keeps memory of its own")


def test_memory_is_what_was_printed_and_does_not_grow(start: Start) -> None:
    daemon = start(arena="256MiB")
    allocated = int(daemon.greeting.split("allocated=")[1].split("MiB")[0]) << 20
    engine = Engine(daemon)
    engine.memory.fill(1, list(range(16)))
    engine.do(engine.store(keys(0, 2), list(range(16))))
    engine.flush()
    for _ in range(20):
        engine.do(engine.fetch(keys(0, 2), list(range(16, 32))))
    before = daemon.rss_bytes()
    for _ in range(334):
        fetches = [engine.fetch(keys(0, 2), list(range(16 * i, 16 * i + 16))) for i in range(1, 4)]
        lookup = engine.request(Op.LOOKUP, keys=keys(0, 2))
        engine.submit(*fetches, lookup)
        assert all(c.tokens == 512 for c in engine.completions(4).values())
    after = daemon.rss_bytes()
    assert abs(after - before) <= before * 0.05, (before, after)
    assert abs(after - allocated) <= allocated * 0.05, (allocated, after)
    engine.close()


class Counter:
    """The daemon's allocations so far."""

    def __init__(self, folder: Path) -> None:
        path = folder / "allocations"
        path.write_bytes(bytes(4096))
        self.environment = {"LD_PRELOAD": str(COUNTER), "MALLOC_COUNT_FILE": str(path)}
        with path.open("r+b") as file:
            self.map = mmap.mmap(file.fileno(), 4096)

    def read(self) -> int:
        return int(struct.unpack_from("<Q", self.map)[0])


def shadowserve_stat(daemon: Daemon, *options: str) -> Any:
    command = [BUILD / "cli" / "shadowserve", "stat", "--json", "--socket", daemon.socket]
    out = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def work(engine: Engine, number: int) -> None:
    """One of everything that engines ask for, hits and misses."""
    source, target = list(range(16)), list(range(16, 32))
    pair = keys(10 * number, 2)
    tier = (Tier.LOSSLESS, Tier.HIGH, Tier.STANDARD, Tier.COMPACT)[number % 4]
    engine.do(engine.store(pair, source, tier=tier))
    engine.flush()
    assert engine.lookup(pair + key(7)) == 512
    assert engine.do(engine.fetch(pair, target)).tokens == 512
    assert engine.do(engine.fetch(pair + key(7), list(range(16, 40)))).tokens == 512
    fetch = engine.fetch(pair, target)
    engine.submit(fetch, engine.request(Op.CANCEL, target=fetch.user_data))
    engine.completions(2)


# memory: keeps each value in an allocation of its own; it is no store for service.
@pytest.mark.parametrize("store", ["file", "redis"])
def test_nothing_is_allocated_once_it_serves(
    folder: Path, start: Start, request: pytest.FixtureRequest, store: str
) -> None:
    if not COUNTER.exists():
        pytest.skip("built without tests")
    counter = Counter(folder)
    uri = f"file:{folder}/store"
    if store == "redis":
        server: Redis = request.getfixturevalue("redis")
        uri = f"redis://127.0.0.1:{server.port}"
    os.environ.update(counter.environment)
    try:
        daemon = start(store=uri)
    finally:
        for name in counter.environment:
            del os.environ[name]
    assert counter.read() > 0, "the counter is not preloaded"
    engine = Engine(daemon)
    engine.memory.fill(1, list(range(16)))
    for number in range(8):  # first uses: connections, the folder's account
        work(engine, number)
    shadowserve_stat(daemon, "--reset")
    before = counter.read()
    for number in range(8, 48):
        work(engine, number)
    assert counter.read() == before
    path = shadowserve_stat(daemon)["path"]
    assert path["allocations"] == 0, "null: the counter is not found"
    assert path["chunks_put"] == 80 and path["chunks_fetched"] >= 160
    engine.close()
