# SPDX-License-Identifier: Apache-2.0
"""A causal language model as calibration sees it: the KV of a prefix, and what it predicts from KV.

KV is [layer][part][token][head][dim] in the engine's dtype, as the codec takes it; weights, and so
everything that is predicted, are in fp32 unless asked otherwise, so that only the KV differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class NotCalibratable(ValueError):
    """The model's cache is none that profiles are for; the text is one sentence for a user."""


@dataclass(frozen=True)
class Shape:
    layers: int
    heads: int
    dim: int

    @property
    def token_elements(self) -> int:
        return 2 * self.layers * self.heads * self.dim


class Model:
    """One model on one device. Not for several threads."""

    def __init__(self, folder: Path, device: str = "cpu", dtype: str = "fp32", kv: str = "bf16"):
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()  # texts are longer than a model before they are cut
        self.folder, self.device, self.kv_dtype = folder, device, DTYPES[kv]
        load: Any = AutoModelForCausalLM.from_pretrained
        weights = torch.float32 if dtype == "fp32" else DTYPES[dtype]
        self.module = load(folder, dtype=weights, attn_implementation="sdpa").to(device).eval()
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        config = self.module.config.get_text_config()
        self.max_tokens = int(config.max_position_embeddings)
        self.vocabulary = int(config.vocab_size)
        bos = config.bos_token_id
        self.begin = [int(bos)] if isinstance(bos, int) else []
        self.parameters: int = sum(p.numel() for p in self.module.parameters())
        self.shape = self._measure_shape()

    def _measure_shape(self) -> Shape:
        kv = self._run(torch.zeros(1, 8, dtype=torch.long, device=self.device))
        shapes = {tuple(x.shape) for pair in kv for x in pair}
        if len(shapes) != 1 or next(iter(shapes))[2] != 8:
            raise NotCalibratable(
                f"layers of {self.folder} cache KV of different shapes {sorted(shapes)}: profiles "
                "are for models whose layers all have full attention over the same heads"
            )
        _, heads, _, dim = next(iter(shapes))
        return Shape(len(kv), heads, dim)

    @torch.no_grad()
    def _run(self, ids: Any) -> list[tuple[Any, Any]]:
        from transformers import DynamicCache

        cache = DynamicCache()
        self.module(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def prefix(self, ids: list[int]) -> Any:
        """KV of the tokens, on the host."""
        layers = self._run(torch.tensor([ids], device=self.device))
        pairs = [torch.stack((k[0], v[0])).to(self.kv_dtype).cpu() for k, v in layers]
        return torch.stack(pairs).transpose(2, 3).contiguous()

    def _cache(self, layers: list[tuple[Any, Any]]) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache()
        for index, (keys, values) in enumerate(layers):
            cache.update(keys, values, index)
        return cache

    def leaves(self, kv: Any, gradients: bool = False) -> list[tuple[Any, Any]]:
        """KV as the model takes it: a pair of [1][head][token][dim] a layer."""
        like = self.module.dtype
        moved = kv.transpose(2, 3).to(self.device, like)
        pairs = [(pair[0][None].contiguous(), pair[1][None].contiguous()) for pair in moved]
        if gradients:
            pairs = [(k.clone().requires_grad_(), v.clone().requires_grad_()) for k, v in pairs]
        return pairs

    def log_probabilities(self, ids: list[int], layers: list[tuple[Any, Any]]) -> Any:
        """Of the token after each of the ids, given the KV of what stands before them."""
        tokens = torch.tensor([ids], device=self.device)
        out = self.module(input_ids=tokens, past_key_values=self._cache(layers), use_cache=True)
        return out.logits[0].float().log_softmax(-1)

    @torch.no_grad()
    def predict(self, ids: list[int], kv: Any) -> Any:
        return self.log_probabilities(ids, self.leaves(kv))

    @torch.no_grad()
    def generate(self, kv: Any, last: int, count: int) -> list[int]:
        """Greedy tokens after a prefix and its last token, which is not in the KV."""
        cache, found = self._cache(self.leaves(kv)), []
        token = torch.tensor([[last]], device=self.device)
        for _ in range(count):
            out = self.module(input_ids=token, past_key_values=cache, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
            found.append(int(token))
        return found

    # ---- what it takes ---------------------------------------------------------------------------

    def forward_flops(self, tokens: int, before: int = 0) -> float:
        """Of a forward pass of so many tokens, that many standing in the cache."""
        config = self.module.config.get_text_config()
        width = int(config.num_attention_heads) * self.shape.dim
        seen = before + tokens / 2
        return 2.0 * tokens * self.parameters + 4.0 * tokens * seen * width * self.shape.layers

    def flops_per_second(self) -> float:
        """What this device makes of a product of matrices of the model's size, measured."""
        import time

        size = 4096 if self.device != "cpu" else 768
        a = torch.randn(size, size, device=self.device, dtype=self.module.dtype)
        best = float("inf")
        for _ in range(4):
            start = time.perf_counter()
            product = a @ a
            float(product[0, 0])  # waits for the device
            best = min(best, time.perf_counter() - start)
        return 2.0 * size * size * size / best


@contextmanager
def one_thread(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
