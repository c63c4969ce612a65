# SPDX-License-Identifier: Apache-2.0
"""Engines that ask for everything at once and are killed at any moment leave nothing behind.

SSV_SEED replays a run's choices; SSV_SOAK_S makes it longer.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import time
from collections.abc import Callable

from daemon_rig import Daemon, Engine, key, keys, wait_until
from shadowserve import binding as ssv
from shadowserve.binding import Op, Request

Start = Callable[..., Daemon]

ENGINES = 3
# Blocks of the fetches of one batch do not overlap: two answers in one place have no right order.
PLACES = (16, 40)


def batch(engine: Engine, source: random.Random) -> list[Request]:
    requests: list[Request] = []
    places = list(PLACES)
    for _ in range(source.randrange(1, 12)):
        first, count = source.randrange(20), source.randrange(1, 4)
        chain, position = keys(first, count), 256 * first
        choice = source.randrange(6)
        if choice < 2 and places:
            place = places.pop()
            blocks = list(range(place, place + 8 * count))
            deadline = source.choice([1, 5, 50, 2000])
            requests.append(engine.fetch(chain, blocks, position=position, deadline_ms=deadline))
        elif choice == 2:
            blocks = list(range(8 * min(count, 2)))
            tier = source.randrange(6)
            requests.append(engine.store(chain[:64], blocks, position=position, tier=tier))
        elif choice == 3:
            requests.append(engine.request(Op.LOOKUP, keys=chain))
        elif choice == 4 and requests:
            requests.append(engine.request(Op.CANCEL, target=requests[-1].user_data))
        else:
            requests.append(engine.request(Op.FLUSH, deadline_ms=200))
    return requests


def live(daemon: Daemon, seed: int) -> None:
    """An engine's process, until it is killed."""
    source = random.Random(seed)
    engine = Engine(daemon, name=f"engine-{seed}")
    engine.memory.fill(seed, list(range(16)))
    while True:
        requests = batch(engine, source)
        engine.submit(*requests)
        engine.completions(len(requests))
        if source.random() < 0.05:
            engine.session.region_unregister(engine.region, 20000)
            engine.region = engine.session.region_register(
                ssv.Memory.MEMFD, engine.layout, engine.memory.bytes, fd=engine.memory.fd
            )


def spawn(daemon: Daemon, seed: int) -> int:
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        try:
            live(daemon, seed)
        except BaseException as failure:
            print(f"engine {seed}: {failure!r}", flush=True)
        os._exit(1)
    return pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "an engine ended by itself"


def test_engines_killed_at_any_moment_leave_nothing_behind(start: Start) -> None:
    seed = int(os.environ.get("SSV_SEED", time.time_ns() & 0xFFFFFFFF))
    print(f"SSV_SEED={seed}")
    source = random.Random(seed)
    faults = "get-delay-ms=3&put-delay-ms=2&get-error=2%&get-flip=2%&put-error=1%"
    daemon = start(workers=2, arena="128MiB", log_level="warn", store=f"fault+memory:?{faults}")
    witness = Engine(daemon, name="witness")
    end = time.monotonic() + float(os.environ.get("SSV_SOAK_S", "5"))
    engines = [spawn(daemon, seed + i) for i in range(ENGINES)]
    spawned = ENGINES
    while time.monotonic() < end:
        time.sleep(source.random() * 0.4)
        victim = engines.pop(source.randrange(ENGINES))
        if source.random() < 0.3:
            os.kill(victim, signal.SIGSTOP)
            time.sleep(0.05)
        kill(victim)
        witness.lookup(key(1))
        engines.append(spawn(daemon, seed + spawned))
        spawned += 1
    for pid in engines:
        kill(pid)
    wait_until(lambda: len(witness.stat()["clients"]) == 1, "the end of their sessions")
    wait_until(lambda: witness.stat()["jobs"] == 0, "the end of their jobs")
    state = witness.stat()
    assert len(state["regions"]) == 1
    for worker in state["workers"]:
        assert worker["lanes_busy"] == 0
        for pool in ("wire", "stage"):
            assert worker[f"{pool}_slots_free"] == worker[f"{pool}_slots"]
    assert witness.flush().status == 0
    witness.close()
    assert daemon.stop() == 0
