# SPDX-License-Identifier: Apache-2.0
"""Which engines are served: each refusal is one sentence."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from pathlib import Path

import torch
from shadowserve.vllm import connector
from shadowserve.vllm.messages import Orders
from shadowserve.vllm.support import NotServed, identity_of, served
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

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
        "get_total_num_kv_heads": lambda: 2,
    }
    return SimpleNamespace(
        model_config=SimpleNamespace(**{**config, **changes}),
        load_config=SimpleNamespace(load_format=load_format, download_dir=None),
        cache_config=SimpleNamespace(block_size=32, cache_dtype="auto"),
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
        speculative_config=None,
        kv_transfer_config=SimpleNamespace(
            engine_id="engine",
            is_kv_consumer=True,
            is_kv_producer=True,
            kv_load_failure_policy="fail",
            kv_connector_extra_config={"socket": "/no/such/socket"},
        ),
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


SHAPE = {"block_size": 32, "num_kv_heads": 2, "head_size": 64, "dtype": torch.bfloat16}
FULL = FullAttentionSpec(**SHAPE)
MLA = MLAAttentionSpec(**{**SHAPE, "num_kv_heads": 1, "head_size": 576})
MAMBA = MambaSpec(block_size=32, shapes=((4, 64), (8, 16)), dtypes=(torch.bfloat16, torch.float32))
WINDOW = SlidingWindowSpec(**SHAPE, sliding_window=128)
MIXED = UniformTypeKVCacheSpecs(
    block_size=32,
    kv_cache_specs={
        "model.layers.0": FULL,
        "model.layers.1": FullAttentionSpec(**SHAPE | {"head_size": 32}),
    },
)
NOT_SERVED = {
    "MLA": [MLA],
    "Mamba": [MAMBA],
    "window": [WINDOW],
    "two groups": [FULL, MAMBA],
    "two groups of one kind": [FULL, FULL],
    "two head sizes": [MIXED],
    "no cache": [],
}


def cache(specs):
    groups = [
        KVCacheGroupSpec(layer_names=[f"model.layers.{index}"], kv_cache_spec=spec)
        for index, spec in enumerate(specs)
    ]
    return KVCacheConfig(num_blocks=100, kv_cache_tensors=[], kv_cache_groups=groups)


def test_full_attention_is_served():
    what = served(engine(), cache([FULL]))
    (shape,) = what.shapes
    assert (shape.heads, shape.dim_k, shape.dim_v, shape.layers) == (2, 64, 64, 1)
    assert what.layer_names == ("model.layers.0",) and what.block_tokens == 32


@pytest.mark.parametrize("kind", NOT_SERVED)
def test_other_kinds_of_kv_run_on_without_cache(kind, monkeypatch):
    """One sentence, no hit, and nothing that vLLM calls fails."""
    said = []
    monkeypatch.setattr(connector.logger, "warning", lambda text, *args: said.append(text % args))
    config, kv = engine(), cache(NOT_SERVED[kind])
    sides = [
        connector.ShadowServeConnector(config, role, kv)
        for role in (KVConnectorRole.SCHEDULER, KVConnectorRole.WORKER)
    ]
    (sentence,) = said
    assert "served" in sentence and "runs on without cache" in sentence and "\n" not in sentence
    if kind in ("MLA", "Mamba", "two groups"):
        assert type(NOT_SERVED[kind][-1]).__name__ in sentence
    request = SimpleNamespace(request_id="request")
    for side in sides:
        side.on_new_request(request)
        assert side.get_num_new_matched_tokens(request, 0) == (0, False)
        orders = side.build_connector_meta(SimpleNamespace())
        assert orders == Orders()
        side.register_kv_caches({})
        side.handle_preemptions(orders)
        results = side.get_transfer_results({"request"})
        assert not results.finished_recving and not results.failed_recving
        assert side.get_block_ids_with_load_errors() == set()
        assert side.request_finished_all_groups(request, ()) == (False, None)
        assert side.get_mem_pool_context() is None and not side.has_pending_push_work()
        side.shutdown()
