# SPDX-License-Identifier: Apache-2.0
"""Which engines are served: each refusal is one sentence."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from pathlib import Path

from shadowserve.vllm.support import NotServed, identity_of

MODEL = Path(__file__).resolve().parents[2] / "models" / "docs-6m"


def engine(load_format="auto", **changes):
    """As much of a vLLM configuration as the model's identity depends on."""
    config = {
        "model": str(MODEL),
        "revision": None,
        "code_revision": None,
        "hf_config_path": None,
        "config_format": "auto",
        "hf_overrides": {},
        "trust_remote_code": False,
        "quantization": None,
        "quantization_config": None,
        "dtype": "bfloat16",
        "hf_text_config": SimpleNamespace(),
        "max_model_len": 4096,
    }
    return SimpleNamespace(
        model_config=SimpleNamespace(**{**config, **changes}),
        load_config=SimpleNamespace(load_format=load_format, download_dir=None),
        cache_config=SimpleNamespace(),
    )


def test_a_model_is_itself():
    plain = identity_of(engine())
    assert identity_of(engine(hf_config_path=str(MODEL))) == plain
    assert identity_of(engine(trust_remote_code=True)) == plain, "there is no code of its own"


@pytest.mark.parametrize(
    "changes",
    [
        {"hf_config_path": "/somewhere/else"},
        {"config_format": "mistral"},
        {"hf_overrides": lambda config: config},
        {"quantization": "fp8"},
        {"trust_remote_code": True, "code_revision": "main"},
        {"load_format": "dummy"},
        {"model": "/no/such/model"},
    ],
    ids=str,
)
def test_what_cannot_be_keyed_is_not_served(changes):
    with pytest.raises(NotServed) as refusal:
        identity_of(engine(**changes))
    assert "\n" not in str(refusal.value) and not str(refusal.value).endswith(".")
