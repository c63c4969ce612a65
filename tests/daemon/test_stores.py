# SPDX-License-Identifier: Apache-2.0
"""Stores that fill up, go away and come back: misses within the deadline, never a hang."""

from __future__ import annotations

import errno
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_rig import SOON_S, Daemon, Engine, Redis, free_port, key, keys, wait_until
from shadowserve.binding import Tier

Start = Callable[..., Daemon]


# ---- the folder ----------------------------------------------------------------------------------


def test_a_full_disk_drops_stores_and_serves_what_is_there(start: Start, small_disk: Path) -> None:
    engine = Engine(start(store=f"file:{small_disk}/store?bytes=1G"))
    engine.memory.fill(1, list(range(64)))
    for i in range(24):
        blocks = list(range(8 * (i % 8), 8 * (i % 8) + 8))
        done = engine.do(engine.store(key(i), blocks, tier=Tier.LOSSLESS))
        assert done.status == 0
    assert engine.flush().status == 0
    state = engine.stat()
    assert state["counters"]["put_errors"] > 0
    there = [i for i in range(24) if engine.lookup(key(i))]
    assert 0 < len(there) < 24
    assert engine.do(engine.fetch(key(there[0]), list(range(8)))).tokens == 256
    engine.close()


def test_a_disk_that_becomes_read_only_drops_stores(start: Start, small_disk: Path) -> None:
    engine = Engine(start(store=f"file:{small_disk}/store?bytes=1G"))
    engine.memory.fill(1, list(range(16)))
    engine.do(engine.store(key(0), list(range(8))))
    engine.flush()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert engine.do(engine.store(key(1), list(range(8, 16)))).status == 0
    assert engine.flush().status == 0
    assert engine.lookup(key(0)) == 256 and engine.lookup(key(1)) == 0
    assert engine.do(engine.fetch(key(0), list(range(8, 16)))).tokens == 256
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    engine.do(engine.store(key(1), list(range(8))))
    engine.flush()
    assert engine.lookup(key(1)) == 256
    engine.close()


def test_a_folder_that_vanishes_gives_misses(start: Start, folder: Path) -> None:
    engine = Engine(start())
    engine.memory.fill(1, list(range(8)))
    engine.do(engine.store(key(0), list(range(8))))
    engine.flush()
    shutil.rmtree(folder / "store")
    done = engine.do(engine.fetch(key(0), list(range(8, 16))))
    assert done.tokens == 0 and done.status < 0
    assert engine.lookup(key(0)) == 0
    engine.close()


def test_a_chunk_damaged_on_the_disk_is_a_miss_and_healed(start: Start, folder: Path) -> None:
    engine = Engine(start())
    engine.memory.fill(1, list(range(8)))
    engine.do(engine.store(key(0), list(range(8)), tier=Tier.LOSSLESS))
    engine.flush()
    files = [p for p in (folder / "store").rglob("*") if p.is_file() and p.stat().st_size > 65536]
    assert len(files) == 1
    content = bytearray(files[0].read_bytes())
    content[len(content) // 2] ^= 1
    files[0].write_bytes(content)
    done = engine.do(engine.fetch(key(0), list(range(8, 16))))
    assert (done.status, done.tokens) == (-errno.EBADMSG, 0)
    wait_until(lambda: engine.lookup(key(0)) == 0, "its removal")
    engine.do(engine.store(key(0), list(range(8)), tier=Tier.LOSSLESS))
    engine.flush()
    assert engine.do(engine.fetch(key(0), list(range(8, 16)))).tokens == 256
    assert engine.memory.read(list(range(8, 16))) == engine.memory.read(list(range(8)))
    engine.close()


# ---- redis ---------------------------------------------------------------------------------------


def test_redis_stopped_and_started_again_in_the_middle_of_fetches(
    start: Start, redis: Redis
) -> None:
    daemon = start(store=f"redis://127.0.0.1:{redis.port}", fetch_deadline_ms=1000)
    engine = Engine(daemon, blocks=128)
    source = list(range(64))
    engine.memory.fill(1, source)
    engine.do(engine.store(keys(0, 8), source, tier=Tier.LOSSLESS))
    engine.flush()
    target = list(range(64, 128))
    assert engine.do(engine.fetch(keys(0, 8), target)).tokens == 2048
    expected = engine.memory.read(source)
    assert redis.process
    # Stopped in the middle: deadlines end the fetches, whatever came is whole chunks' prefix.
    redis.process.send_signal(signal.SIGSTOP)
    fetches = [engine.fetch(keys(0, 8), target) for _ in range(4)]
    engine.submit(*fetches)
    done = engine.completions(4)
    assert all(c.status < 0 and c.tokens % 32 == 0 and c.tokens < 2048 for c in done.values())
    redis.stop()
    assert engine.do(engine.fetch(key(0), list(range(64, 72)))).tokens == 0
    assert engine.lookup(key(0)) == 0
    redis.start()
    started = time.monotonic()
    wait_until(
        lambda: engine.do(engine.fetch(keys(0, 8), target)).tokens == 2048, "fetches to work again"
    )
    assert time.monotonic() - started < SOON_S
    assert engine.memory.read(target) == expected
    engine.close()


def test_a_redis_that_is_away_at_start_is_named(folder: Path) -> None:
    port = free_port()
    with pytest.raises(AssertionError, match=f"exit 1: .*{port}"):
        Daemon(folder, "early", store=f"redis://127.0.0.1:{port}").start()


# ---- chunks that a session does not want ---------------------------------------------------------


def test_who_wants_finer_chunks_looks_up_and_misses_coarse_ones(start: Start) -> None:
    engine = Engine(start())
    blocks = list(range(8))
    engine.memory.fill(1, blocks)
    assert engine.do(engine.store(key(0), blocks, tier=Tier.COMPACT)).tokens == 256
    assert engine.flush().status == 0
    assert engine.lookup(key(0), min_tier=Tier.HIGH) == 256  # nobody has read its header yet
    refused = engine.do(engine.fetch(key(0), blocks, min_tier=Tier.HIGH))
    assert (refused.status, refused.tokens) == (-errno.ENOENT, 0)
    assert engine.lookup(key(0), min_tier=Tier.HIGH) == 0
    assert engine.lookup(key(0), min_tier=Tier.COMPACT) == engine.lookup(key(0)) == 256
    engine.close()
