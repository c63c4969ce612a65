# SPDX-License-Identifier: Apache-2.0
"""A pool too small for its requests: vLLM preempts, frees blocks that a store still reads or a load
has just filled, and gives them to others. What reaches the store is right all the same.
"""

import pytest
from harness import Daemon, Engine, Spy, prompt, wait_until

REQUESTS = 8
PROMPT_TOKENS = 700
OUTPUT_TOKENS = 400
PAUSE_STEPS = 40


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    daemon = Daemon(tmp_path_factory.mktemp("preemption"))
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module")
def engine(daemon):
    engine = Engine(
        {"socket": daemon.socket, "tier": "lossless"},
        num_gpu_blocks_override=100,
        max_model_len=3000,
        max_num_batched_tokens=1024,
        scheduler_reserve_full_isl=False,
    )
    yield engine
    engine.close()


def count_preemptions(engine, monkeypatch):
    seen = []
    original = engine.scheduler._preempt_request

    def preempt(request, *arguments, **named):
        seen.append(request.request_id)
        return original(request, *arguments, **named)

    monkeypatch.setattr(engine.scheduler, "_preempt_request", preempt)
    return seen


def run_with_a_slow_daemon(engine, daemon, names):
    """Run requests while the daemon stops and goes on, so that stores stay in flight for long."""
    steps = 0
    step = engine.step

    def stuttering():
        nonlocal steps
        if steps % PAUSE_STEPS == 0:
            daemon.resume() if steps // PAUSE_STEPS % 2 else daemon.pause()
        steps += 1
        step()

    engine.step = stuttering
    try:
        return engine.run(*names, timeout_s=200)
    finally:
        engine.step = step
        daemon.resume()


def texts(outputs):
    return [list(output.outputs[0].token_ids) for output in outputs]


def alone(engine):
    """The text of each prompt when it is computed by itself: no hit, no preemption."""
    outputs = []
    for seed in range(REQUESTS):
        engine.settle()
        tokens = prompt(seed, PROMPT_TOKENS)
        outputs += engine.run(engine.add(tokens, OUTPUT_TOKENS, skip_reading_prefix_cache=True))
    assert not any(output.num_cached_tokens for output in outputs)
    return texts(outputs)


def test_preemption_during_stores_and_loads(engine, daemon, monkeypatch):
    preempted = count_preemptions(engine, monkeypatch)
    spy = Spy(engine)
    try:
        names = [engine.add(prompt(seed, PROMPT_TOKENS), OUTPUT_TOKENS) for seed in range(REQUESTS)]
        outputs = run_with_a_slow_daemon(engine, daemon, names)
        computed = texts(outputs)
        assert preempted, "the pool was not small enough"
        engine.flush()
        engine.assert_nothing_leaked()
        assert len(spy.stored) > REQUESTS

        # The same prompts again: loads instead of prefill, in the same small pool.
        preempted.clear()
        engine.forget()
        spy.loads.clear()
        spy.after_load = None
        checked = []
        finish = spy.worker.finish

        def check(finished_requests):
            pending = {load.request_id: load for load in spy.loads}
            results = finish(finished_requests)
            for request_id in results.received - results.failed:
                load = pending[request_id]
                if not spy.worker._bad_blocks & set(load.blocks):
                    spy.assert_loaded(load, spy.stored)
                    checked.append(request_id)
            return results

        monkeypatch.setattr(spy.worker, "finish", check)
        names = [engine.add(prompt(seed, PROMPT_TOKENS), OUTPUT_TOKENS) for seed in range(REQUESTS)]
        outputs = engine.run(*names, timeout_s=200)
        loaded = texts(outputs)
        assert checked, "nothing was loaded"
        assert preempted, "the pool was not small enough"
        engine.flush()
        engine.assert_nothing_leaked()

        preempted.clear()
        expected = alone(engine)
        assert not preempted
        assert computed == expected
        assert loaded == expected
    finally:
        spy.close()


@pytest.mark.parametrize("how", ["aborted", "finished", "preempted"])
def test_blocks_in_capture_are_not_given_away(engine, daemon, how):
    """The daemon stops before it reads a block; the block's request lets go of it; others use up
    the pool. What the daemon reads at last is what it was asked to read."""
    seed = 30 + len(how)
    spy = Spy(engine)
    engine.settle()
    try:
        spy.before_store = lambda store: daemon.pause()
        name = engine.add(prompt(seed, 300), 2 if how == "finished" else 100)
        wait_until(lambda: engine.step() or spy.stores, "a store")
        spy.before_store = None
        if how == "aborted":
            engine.abort(name)
        elif how == "preempted":
            # vLLM complains, after preempting, that blocks are still held; they are.
            with pytest.raises(RuntimeError, match="Failed to reset KV cache"):
                engine.scheduler.reset_prefix_cache(reset_running_requests=True)
            engine.abort(name)
        else:
            engine.run(name)
        (store,) = spy.stores
        names = [engine.add(prompt(seed + 20 + index, 700), 20) for index in range(6)]
        engine.run(*names)
        assert spy.blocks(store.blocks) == spy.stored[store.keys[0]]
        daemon.resume()
        engine.flush()
        engine.forget()
        assert engine.generate(prompt(seed, 300))[0] == 256
        spy.assert_loaded(spy.loads[-1], spy.stored)
        engine.assert_nothing_leaked()
    finally:
        daemon.resume()
        spy.close()
