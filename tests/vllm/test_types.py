# SPDX-License-Identifier: Apache-2.0
"""KV of other types than bf16: what is loaded is what was stored, bit for bit."""

import pytest
from harness import Daemon, Engine, Spy, chunks_end, prompt

TOKENS = prompt(1, 900)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    daemon = Daemon(tmp_path_factory.mktemp("types"))
    yield daemon
    daemon.stop()


@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": "float16"},
        {"dtype": "float32"},
        {"kv_cache_dtype": "fp8_e4m3"},
        {"block_size": 128},
    ],
    ids=str,
)
def test_lossless(daemon, settings):
    engine = Engine({"socket": daemon.socket, "tier": "lossless"}, max_model_len=2048, **settings)
    spy = Spy(engine)
    try:
        end = chunks_end(len(TOKENS))
        engine.generate(TOKENS[:end])
        cached, text, _ = engine.generate(TOKENS, 8)
        assert cached == end
        engine.flush()
        engine.forget()
        assert engine.generate(TOKENS, 8)[:2] == (end, text)
        spy.assert_loaded(spy.loads[-1], spy.stored)
        engine.assert_nothing_leaked()
    finally:
        spy.close()
        engine.close()
