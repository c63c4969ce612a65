# SPDX-License-Identifier: Apache-2.0
"""A pool too small for its requests: vLLM preempts, frees blocks that a store still reads or a load
has just filled, and gives them to others. What reaches the store is right all the same.
"""

import pytest
from harness import Daemon, Engine, Spy, prompt

REQUESTS = 8
PROMPT_TOKENS = 700
OUTPUT_TOKENS = 400


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


def test_preemption_during_stores_and_loads(engine, monkeypatch):
    preempted = count_preemptions(engine, monkeypatch)
    spy = Spy(engine)
    try:
        names = [engine.add(prompt(seed, PROMPT_TOKENS), OUTPUT_TOKENS) for seed in range(REQUESTS)]
        outputs = engine.run(*names, timeout_s=200)
        assert [len(out.outputs[0].token_ids) for out in outputs] == [OUTPUT_TOKENS] * REQUESTS
        assert preempted, "the pool was not small enough"
        engine.flush()
        engine.assert_nothing_leaked()
        assert len(spy.stored) >= REQUESTS

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
        assert [len(out.outputs[0].token_ids) for out in outputs] == [OUTPUT_TOKENS] * REQUESTS
        assert checked, "nothing was loaded"
        assert preempted, "the pool was not small enough"
        engine.flush()
        engine.assert_nothing_leaked()
    finally:
        spy.close()
