# SPDX-License-Identifier: Apache-2.0
"""Engines that cannot use the cache run on without it, and say why once."""

import json
import shutil

import pytest
from harness import MODEL, Engine, prompt


@pytest.fixture
def warnings(monkeypatch):
    """What the connector says to the user. vLLM configures logging anew with each engine, which
    takes other handlers away."""
    from shadowserve.vllm import connector

    said = []
    monkeypatch.setattr(connector.logger, "warning", lambda text, *args: said.append(text % args))
    return lambda: list(said)


def test_no_daemon(tmp_path, warnings):
    engine = Engine({"socket": str(tmp_path / "nobody.sock")}, max_model_len=2048)
    try:
        assert engine.generate(prompt(1, 700), 4)[0] == 0
        assert engine.generate(prompt(1, 700), 4)[0] == 672  # vLLM's own prefix cache
        engine.assert_nothing_leaked()
        said = [text for text in warnings() if "runs on without cache" in text]
        assert len(said) == 2, "once a side"
        assert "nobody.sock" in said[0]
    finally:
        engine.close()


def test_a_model_with_sliding_windows(tmp_path, warnings):
    model = tmp_path / "sliding"
    shutil.copytree(MODEL, model)
    config = json.loads((model / "config.json").read_text())
    config.update(architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=128)
    (model / "config.json").write_text(json.dumps(config))
    engine = Engine({"socket": str(tmp_path / "nobody.sock")}, model=model, max_model_len=2048)
    try:
        (sentence,) = warnings()
        assert "sliding" in sentence.lower() and "runs on without cache" in sentence
        assert len(engine.generate(prompt(1, 700), 4)[1]) == 4
        engine.assert_nothing_leaked()
    finally:
        engine.close()


def test_random_weights(tmp_path, warnings):
    engine = Engine(
        {"socket": str(tmp_path / "nobody.sock")}, load_format="dummy", max_model_len=2048
    )
    try:
        (sentence,) = warnings()
        assert "'dummy'" in sentence and "keyed" in sentence
        assert len(engine.generate(prompt(1, 300), 2)[1]) == 2
    finally:
        engine.close()


def test_a_mistyped_option_is_an_error(tmp_path):
    with pytest.raises(Exception, match="'tier'"):
        Engine({"teir": "high"}, max_model_len=2048)
