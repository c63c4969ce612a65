# SPDX-License-Identifier: Apache-2.0
"""KV that one engine stored serves another, bit for bit.

Greedy text after a hit is compared with a run of the storing engine that was split at the same
token: another split may change text by rounding alone, in any engine.
"""

from dataclasses import replace

import pytest
from harness import Daemon, Engine, Spy, chunks_end, prompt, worker_of

SHARED = prompt(1, 3000)
PROMPTS = {
    "whole": SHARED,
    "short": prompt(2, 513),
    "multiple": prompt(3, 1024),
}
TURN = 300  # generated tokens of the first turn of a chat


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    daemon = Daemon(tmp_path_factory.mktemp("hit"))
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module")
def stored(daemon):
    """What the storing engine answered, by prompt: split where a later hit will end."""
    engine = Engine({"socket": daemon.socket, "tier": "lossless"})
    spy = Spy(engine)
    answers = {"kv": spy.stored}
    for name, tokens in PROMPTS.items():
        end = chunks_end(len(tokens))
        assert engine.generate(tokens[:end])[0] == 0
        cached, answers[name], _ = engine.generate(tokens, 32)
        assert cached == end
        engine.settle()
    _, answers["turn"], _ = engine.generate(prompt(4, 400), TURN)
    engine.flush()
    engine.assert_nothing_leaked()
    spy.close()
    engine.close()
    return answers


@pytest.fixture(scope="module")
def engine(daemon, stored):
    options = {"socket": daemon.socket, "tier": "lossless", "min_tier": "lossless"}
    engine = Engine(options, max_num_batched_tokens=512)
    yield engine
    engine.close()


@pytest.fixture
def spy(engine):
    spy = Spy(engine)
    yield spy
    spy.close()


@pytest.mark.parametrize("name", PROMPTS)
def test_hit_after_restart(engine, stored, spy, name):
    engine.forget()
    cached, text, _ = engine.generate(PROMPTS[name], 32)
    assert cached == chunks_end(len(PROMPTS[name]))
    assert text == stored[name]
    spy.assert_loaded(spy.loads[0], stored["kv"])
    engine.assert_nothing_leaked()


def test_memory_is_shared_from_its_birth(engine):
    from shadowserve.binding import Memory

    assert worker_of(engine)._registration.kind == Memory.MEMFD


@pytest.mark.parametrize("shared", [256, 300, 1000, 2816])
def test_partial_hits(engine, stored, shared):
    engine.forget()
    tokens = SHARED[:shared] + prompt(50 + shared, 200)
    cached, _, _ = engine.generate(tokens)
    assert cached == shared // 256 * 256


def test_a_tail_is_found_by_the_same_prompt_alone(engine, stored, spy):
    """The blocks behind the last whole chunk are a short chunk, when they are few."""
    engine.forget()
    longer = [*SHARED[:-1], SHARED[-1] + 1, *prompt(91, 400)]
    assert engine.generate(longer)[0] == 2816
    engine.forget()
    other_end = [*SHARED[:-1], SHARED[-1] + 1]
    assert engine.generate(other_end)[0] == chunks_end(3000) == 2976
    assert len(spy.loads[-1].blocks) == 2976 // 32
    engine.settle()
    spy.stores.clear()
    engine.forget()
    for count, tail in ((256 + 160, 0), (256 + 48, 32), (512 + 96, 64)):
        engine.generate(prompt(92 + count, count))
        engine.settle()
        short = [len(store.blocks) * 32 for store in spy.stores if len(store.blocks) < 8]
        assert short == ([tail] if tail else []), count
        spy.stores.clear()


@pytest.mark.parametrize("local", [32, 320, 512, 1984])
def test_a_load_begins_where_the_engine_has_no_kv(engine, stored, spy, local):
    """Blocks that the engine has are not touched; a load may begin inside a chunk."""
    engine.forget()
    engine.generate(SHARED[:local] + prompt(80, 40))
    engine.settle()
    spy.loads.clear()
    cached, _, _ = engine.generate(SHARED)
    assert cached == chunks_end(len(SHARED))
    (load,) = spy.loads
    assert load.position + load.first_token == local
    assert len(load.blocks) == (cached - local) // 32
    spy.assert_loaded(load, stored["kv"])


def test_generated_tokens_are_stored(engine, stored):
    """The next turn of a chat finds the previous answer in the store."""
    engine.forget()
    turn = stored["turn"]
    tokens = prompt(4, 400) + turn + prompt(90, 50)
    cached, _, _ = engine.generate(tokens)
    # The last generated token was never computed.
    assert cached == (400 + TURN - 1) // 256 * 256


def test_a_tenants_salt_separates(engine, stored):
    engine.forget()
    from vllm import SamplingParams

    engine.engine.add_request(
        "salted",
        {"prompt_token_ids": SHARED, "cache_salt": "tenant"},
        SamplingParams(temperature=0, max_tokens=1),
    )
    (output,) = engine.run("salted")
    assert output.num_cached_tokens == 0


def test_prompt_logprobs_are_not_served_from_the_cache(engine, stored):
    engine.forget()
    cached, _, _ = engine.generate(SHARED, prompt_logprobs=1)
    assert cached == 0


def test_two_requests_for_the_same_prefix_at_once(engine, stored):
    engine.forget()
    names = [engine.add(SHARED, 32) for _ in range(2)]
    outputs = engine.run(*names)
    assert [list(out.outputs[0].token_ids) for out in outputs] == [stored["whole"]] * 2
    assert all(out.num_cached_tokens == chunks_end(len(SHARED)) for out in outputs)
    engine.assert_nothing_leaked()


@pytest.fixture
def admission(engine, monkeypatch):
    """The engine's scheduler side, set to admission by time."""
    scheduler = engine.connector._scheduler
    monkeypatch.setattr(scheduler, "_options", replace(scheduler._options, admission="auto"))
    return scheduler


@pytest.mark.parametrize(("tokens_per_s", "hit"), [(1e12, False), (1.0, True), (0.0, True)])
def test_admission_by_time(engine, stored, admission, tokens_per_s, hit):
    """Declined only when computing is known to be faster."""
    engine.forget()
    engine.generate(SHARED)  # the daemon has measured a fetch
    engine.forget()
    admission._admission.rate.tokens_per_s = tokens_per_s
    before = engine.counts["declined"], engine.counts["declined_tokens"]
    cached, _, _ = engine.generate(SHARED)
    assert cached == (chunks_end(len(SHARED)) if hit else 0)
    declined = engine.counts["declined"] - before[0], engine.counts["declined_tokens"] - before[1]
    assert declined == ((0, 0) if hit else (1, chunks_end(len(SHARED))))


def test_roles(engine, stored, spy, monkeypatch):
    """A producer does not load, a consumer does not store."""
    side = engine.connector._scheduler
    engine.forget()
    monkeypatch.setattr(side, "_served", replace(side._served, may_load=False))
    assert engine.generate(SHARED)[0] == 0
    engine.forget()
    monkeypatch.setattr(side, "_served", replace(side._served, may_load=True, may_store=False))
    assert engine.generate(SHARED)[0] == chunks_end(len(SHARED))
    spy.stores.clear()
    engine.generate(prompt(75, 700), 4)
    engine.settle()
    assert not spy.stores


def test_only_kv_that_is_in_place_is_stored(engine, stored, spy):
    """vLLM lets a request hit blocks that another one fills in the very same step. When they are
    given to a store, they must be full."""
    engine.forget()
    fresh = prompt(70, 400)
    names = [engine.add(fresh, 8) for _ in range(2)]
    outputs = engine.run(*names)
    assert max(output.num_cached_tokens for output in outputs) == 384, "not in the same step"
    (store,) = spy.stores
    assert spy.blocks(store.blocks) == spy.stored[store.keys[0]]
    engine.assert_nothing_leaked()


def test_what_is_stored_is_not_stored_again(engine, stored, daemon):
    engine.forget()
    engine.generate(SHARED, 4)
    engine.flush()
    connector = engine.connector._scheduler
    assert not connector._stores and not connector._offers


def test_new_weights_mean_a_new_namespace(engine, stored):
    """Last here: nothing of before is found any more."""
    engine.forget()
    assert engine.llm.reset_prefix_cache(reset_connector=True)
    cached, _, _ = engine.generate(SHARED)
    assert cached == 0
