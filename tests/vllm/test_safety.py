# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to a daemon or a request in the middle of a load or a store: every request is
answered, with the tokens it would have had, and no block is lost.

Reference texts come from computing the same prompt alone, without a hit.
"""

import time
from dataclasses import replace

import pytest
from harness import Daemon, Engine, Spy, chunks_end, prompt, wait_until
from shadowserve.vllm import scheduler

TOKENS = prompt(1, 4000)
DEADLINE_MS = 400
STALL_MS = 3000


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    daemon = Daemon(tmp_path_factory.mktemp("safety"))
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module")
def engine(daemon):
    engine = Engine({"socket": daemon.socket, "tier": "lossless", "deadline_ms": DEADLINE_MS})
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def computed(engine):
    """The text of TOKENS when all of it is computed; afterwards it is in the store."""
    cached, text, _ = engine.generate(TOKENS, 16)
    assert cached == 0
    engine.flush()
    return text


@pytest.fixture
def spy(engine, computed, daemon):
    engine.forget()
    spy = Spy(engine)
    yield spy
    spy.close()
    daemon.resume()
    engine.assert_nothing_leaked()


def assert_hits(engine):
    """The store serves this engine."""
    engine.forget()
    wait_until(engine.connected, "a new session", 40.0)

    def hit():
        engine.forget()
        return engine.generate(TOKENS, 2)[0] == chunks_end(len(TOKENS))

    wait_until(hit, "a hit", 20.0)


def first_block_changes(spy, load):
    """Wait until the daemon has begun to write into a load's blocks."""
    before = spy.blocks(load.blocks[:1])
    wait_until(lambda: spy.blocks(load.blocks[:1]) != before, "a write", 5.0)


def test_abort_during_a_load(engine, computed, spy, daemon):
    spy.before_load = lambda load: daemon.pause()
    name = engine.add(TOKENS, 4)
    wait_until(lambda: engine.step() or spy.loads, "a load")
    engine.abort(name)
    for _ in range(5):
        engine.step()
    assert engine.free_blocks() < engine.free_at_rest, "blocks were freed during a load"
    daemon.resume()
    engine.assert_nothing_leaked()
    assert engine.generate(prompt(9, 300), 2)[1]


def test_abort_of_one_of_two_loads(engine, computed, spy, daemon):
    spy.before_load = lambda load: daemon.pause()
    dropped, kept = engine.add(TOKENS, 4), engine.add(TOKENS, 16)
    side = engine.connector._scheduler
    states = side._requests.values()
    wait_until(lambda: side._poll() or all(one.answered for one in states), "both answers")
    engine.step()
    first, second = spy.loads
    assert not set(first.blocks) & set(second.blocks)
    engine.abort(dropped)
    engine.step()
    daemon.resume()
    (output,) = engine.run(kept)
    assert len(output.outputs[0].token_ids) == 16
    assert output.num_cached_tokens == chunks_end(len(TOKENS))


@pytest.fixture
def stalling(engine, computed, daemon, monkeypatch):
    """A store whose third answer stops in its value, while the chunks before it are written."""
    side, plain = engine.connector._scheduler, daemon.store
    patient = replace(side._options, deadline_ms=STALL_MS)
    monkeypatch.setattr(side, "_options", patient)
    daemon.stop()
    daemon.store = f"fault+{plain}&nth=3&get-stall=100%"
    daemon.start()
    engine.generate(prompt(29, 40))  # notices that the old one is gone
    wait_until(engine.connected, "a new session", 40.0)
    yield
    daemon.resume()
    daemon.stop()
    daemon.store = plain
    daemon.start()
    assert_hits(engine)


def test_daemon_stopped_in_mid_write(engine, stalling, computed, spy, daemon):
    """It may go on writing at any time: its blocks stay held until it has answered."""

    def stop_it(load):
        first_block_changes(spy, load)
        daemon.pause()

    spy.after_load = stop_it
    _, text, _ = engine.generate(TOKENS, 16)
    assert text == computed
    (load,) = spy.loads
    assert engine.connector._scheduler.pinned_blocks() == len(load.blocks)
    blocks = engine.pool.blocks
    assert all(blocks[number].ref_cnt == 1 for number in load.blocks)
    assert not any(blocks[number].block_hash for number in load.blocks)
    assert engine.counts["loads_silent"]
    spy.after_load = None
    for seed in range(3):  # others are served meanwhile, and get other blocks
        assert engine.generate(prompt(20 + seed, 2000), 4)[1]
    daemon.resume()
    wait_until(
        lambda: (
            engine.generate(prompt(30, 40))
            and not engine.scheduler.connector._scheduler.pinned_blocks()
        ),
        "the held blocks' return",
    )
    engine.assert_nothing_leaked()


def test_silent_daemon_costs_a_bounded_time(engine, computed, spy, daemon, monkeypatch):
    monkeypatch.setattr(scheduler, "LOOKUP_WAIT_S", 0.020)  # what users have
    daemon.pause()
    try:
        start = time.monotonic()
        cached, text, _ = engine.generate(TOKENS, 16)
        assert cached == 0 and text == computed
        assert not spy.loads, "a lookup without an answer is a miss"
        assert engine.counts["lookups_late"]
        assert time.monotonic() - start < 30
    finally:
        daemon.resume()
    assert_hits(engine)


def test_daemon_killed_in_mid_write(engine, computed, spy, daemon):
    def kill_it(load):
        first_block_changes(spy, load)
        daemon.kill()

    spy.after_load = kill_it
    _, text, _ = engine.generate(TOKENS, 16)
    assert text == computed
    spy.after_load = None
    engine.assert_nothing_leaked()
    engine.forget()
    assert engine.generate(TOKENS, 16)[:2] == (0, computed)
    daemon.start()
    assert_hits(engine)


def test_daemon_restarted_while_idle(engine, computed, spy, daemon):
    daemon.stop()
    daemon.start()
    assert_hits(engine)


def test_daemon_killed_during_stores(engine, computed, spy, daemon):
    fresh = prompt(40, 3000)
    name = engine.add(fresh, 16)
    wait_until(lambda: engine.step() or spy.stored, "a store")
    daemon.kill()
    (output,) = engine.run(name)
    assert len(output.outputs[0].token_ids) == 16
    engine.assert_nothing_leaked()
    daemon.start()
    assert_hits(engine)


def test_daemon_stopped_during_stores(engine, computed, spy, daemon):
    """Blocks that a stopped daemon may still read are not given to others."""
    fresh = prompt(50, 3000)
    name = engine.add(fresh, 16)
    wait_until(lambda: engine.step() or spy.stored, "a store")
    daemon.pause()
    (output,) = engine.run(name)
    assert len(output.outputs[0].token_ids) == 16
    side = engine.connector._scheduler
    held = {block.block_id for one in side._stores.values() for block in one.blocks}
    assert len(held) <= max(8, engine.pool.num_gpu_blocks // 50)
    for seed in range(3):
        assert engine.generate(prompt(60 + seed, 2000), 4)[1]
    assert all(engine.pool.blocks[number].ref_cnt for number in held)
    daemon.resume()
    engine.flush()
    engine.forget()
    cached, _, _ = engine.generate(fresh)
    assert cached >= 256
    spy.assert_loaded(spy.loads[-1], spy.stored)


def test_damaged_chunk_is_computed_and_heals(engine, computed, spy, daemon):
    files = sorted(path for path in (daemon.folder / "store").rglob("*") if path.is_file())
    fresh = prompt(41, 1200)
    cold = engine.generate(fresh, 4)[1]
    engine.flush()
    new = [
        path
        for path in (daemon.folder / "store").rglob("*")
        if path.is_file() and path not in files and path.stat().st_size > 10000
    ]
    assert len(new) == 4
    for path in new:
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 0x10
        path.write_bytes(raw)
    engine.forget()
    spy.loads.clear()
    cached, text, output = engine.generate(fresh, 4)
    assert text == cold
    assert len(spy.loads) == 1, "a load that failed is not tried again"

    def healed():
        engine.flush()
        engine.forget()
        return engine.generate(fresh, 4)[0] == 1024

    wait_until(healed, "the store's healing", 30.0)
    assert output.finished and cached <= 1024
