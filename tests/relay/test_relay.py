# SPDX-License-Identifier: Apache-2.0
"""Through a relay an engine has what it has of a daemon: memory, requests, endings."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable

import pytest
from daemon_rig import Engine, keys
from relay_rig import RELAY_BUILD, Relayed
from shadowserve import binding as ssv

Make = Callable[..., Relayed]


def test_what_is_stored_through_a_relay_is_fetched_through_it(relayed: Make) -> None:
    rig = relayed()
    engine = Engine(rig)
    blocks = list(range(16))
    engine.memory.fill(1, blocks)
    before = engine.memory.read(blocks)
    stored = engine.do(engine.store(keys(1, 2), blocks))
    assert (stored.status, stored.tokens) == (0, 512)
    assert engine.flush().status == 0
    assert engine.lookup(keys(1, 2)) == 512
    there = list(range(32, 48))
    fetched = engine.do(engine.fetch(keys(1, 2), there))
    assert (fetched.status, fetched.tokens) == (0, 512)
    assert engine.memory.read(there) == before
    assert engine.memory.read(list(range(16, 32))) == bytes(len(before))
    assert engine.stat()["clients"][0]["peer"] == "host"
    engine.close()


def test_an_engine_may_be_idle_before_its_first_request(relayed: Make) -> None:
    """Longer than the relay bears connections that say nothing; and of two workers the second
    may have nothing to do for as long."""
    rig = relayed(workers=2, arena="128MiB")
    engine = Engine(rig)
    time.sleep(3)
    for number in range(8):  # each goes to the worker that its key chooses
        engine.memory.fill(number, list(range(8)))
        assert engine.do(engine.store(keys(number, 1), list(range(8)))).status == 0
        time.sleep(0.5)
    assert engine.flush().status == 0
    for number in range(8):
        assert engine.do(engine.fetch(keys(number, 1), list(range(8)))).tokens == 256
    engine.close()


@pytest.mark.parametrize("kind", [ssv.Memory.ADDRESS, ssv.Memory.GPU_IPC, ssv.Memory.GPU_FD])
def test_memory_that_is_no_memfd_is_refused_and_the_session_lives(
    relayed: Make, kind: ssv.Memory
) -> None:
    engine = Engine(relayed())
    memory = engine.memory
    fd = memory.fd if kind == ssv.Memory.GPU_FD else -1
    address = 4096 if kind == ssv.Memory.ADDRESS else 0
    with pytest.raises(ssv.Error, match=f"kind {kind:d}: a relay maps memfds alone"):
        engine.session.region_register(kind, engine.layout, memory.bytes, fd=fd, address=address)
    assert engine.lookup(keys(1, 1)) == 0
    engine.close()


def doctor(rig: Relayed, *args: str) -> dict[str, dict[str, str]]:
    program = RELAY_BUILD / "cli" / "shadowserve"
    command = [program, "doctor", "--json", "--socket", rig.socket, *args]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SHADOWSERVE_")}
    env = {**kept, "XDG_CACHE_HOME": str(rig.folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    return {check["check"]: check for check in json.loads(done.stdout)["checks"]}


def test_doctor_calls_no_folder_of_the_engines_host_the_cards_store(relayed: Make) -> None:
    """The card's folder has the same name, and another machine may well have a folder there."""
    rig = relayed()
    (rig.folder / "shadowserve" / "chunks").mkdir(parents=True)  # of daemons that are given none
    store = rig.card.keys["store"]
    found = doctor(rig)
    assert found["daemon"]["verdict"] == "fine" and "a relay answers" in found["daemon"]["found"]
    assert (
        found["store"]["verdict"] == "note" and f"the card reads {store}" in found["store"]["found"]
    )
    assert "on the card" in found["store"]["advice"]
    found = doctor(rig, "--store", store)
    assert (
        found["store"]["verdict"] == "note" and "the card reads its own" in found["store"]["found"]
    )
    found = doctor(rig, "--store", f"file:{rig.folder}/shadowserve/chunks")
    assert (
        found["store"]["verdict"] == "note"
        and f"on the card reads {store}" in found["store"]["found"]
    )


def test_doctor_tells_a_card_that_is_away_from_a_stale_socket(relayed: Make) -> None:
    rig = relayed()
    (rig.folder / "shadowserve" / "chunks").mkdir(parents=True)
    rig.kill(rig.card)
    checks = doctor(rig, "--timeout", "15000")
    assert checks["daemon"]["verdict"] == "problem" and "the card at" in checks["daemon"]["found"]
    assert checks["store"]["verdict"] == "note", "which store the card reads is not known"
    rig.kill(rig.relay)
    assert "stale socket" in doctor(rig)["daemon"]["advice"]
