# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters: each has KV of its own, known by the content of its files."""

import json
import shutil

import pytest
import torch
from harness import Daemon, Engine, Spy, chunks_end, prompt, wait_until
from safetensors.torch import save_file
from shadowserve import model

TOKENS = prompt(1, 900)
RANK = 8
LAYERS, HIDDEN, KV = 6, 256, 128  # of docs-6m


def write_adapter(folder, seed):
    """Random changes to K and V of every layer."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(LAYERS):
        for name in ("k_proj", "v_proj"):
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            for part, shape in (("lora_A", (RANK, HIDDEN)), ("lora_B", (KV, RANK))):
                values = torch.randn(shape, generator=random) * 0.2
                tensors[f"{place}.{part}.weight"] = values.to(torch.bfloat16)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "bias": "none"}
    about["target_modules"] = ["k_proj", "v_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    daemon = Daemon(tmp_path_factory.mktemp("lora"))
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module")
def engine(daemon):
    engine = Engine(
        {"socket": daemon.socket, "tier": "lossless"},
        max_model_len=2048,
        enable_lora=True,
        max_lora_rank=RANK,
        max_loras=1,
    )
    yield engine
    engine.close()


def ask(engine, tokens, number=0, folder=None):
    """(cached tokens, text) with an adapter, or with none."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    lora = LoRARequest(f"adapter-{number}", number, str(folder)) if folder else None
    engine._names += 1
    name = f"request-{engine._names}"
    engine.engine.add_request(
        name,
        {"prompt_token_ids": list(tokens)},
        SamplingParams(temperature=0, max_tokens=8, ignore_eos=True),
        lora_request=lora,
    )
    (output,) = engine.run(name)
    return output.num_cached_tokens, list(output.outputs[0].token_ids)


def test_two_adapters_never_share(engine, tmp_path):
    one, other = write_adapter(tmp_path / "one", 1), write_adapter(tmp_path / "other", 2)
    copy = shutil.copytree(one, tmp_path / "copy")
    adapters = engine.connector._scheduler._adapters
    for number, folder in enumerate((one, other, copy), 1):
        ask(engine, prompt(90, 40), number, folder)  # the first request has it read
        known = adapters._known[number, str(folder)]
        wait_until(lambda known=known: known.result is not None, "the adapter's digest")
        assert known.result == model.adapter_digest(folder)
    end = chunks_end(len(TOKENS))
    spy, texts = Spy(engine), []
    try:
        for which in ((0, None), (1, one), (2, other)):
            engine.forget()
            assert ask(engine, TOKENS[:end], *which)[0] == 0, "KV of another adapter"
            cached, text = ask(engine, TOKENS, *which)
            assert cached == end
            texts.append(text)
            engine.flush()
        assert len({*map(tuple, texts)}) == 3, "the adapters do nothing"
        engine.forget()
        spy.loads.clear()
        for which, text in (((0, None), 0), ((2, other), 2), ((1, one), 1), ((3, copy), 1)):
            engine.forget()
            assert ask(engine, TOKENS, *which) == (end, texts[text])
            spy.assert_loaded(spy.loads[-1], spy.stored)
        assert len({spy.loads[0].keys[0], spy.loads[1].keys[0], spy.loads[2].keys[0]}) == 3
        assert spy.loads[3].keys == spy.loads[2].keys, "a copy is the same adapter"
        engine.assert_nothing_leaked()
    finally:
        spy.close()
