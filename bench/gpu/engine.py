# SPDX-License-Identifier: Apache-2.0
"""A small decoding engine: the shape of Llama-3-8B with random weights, KV in pages, one CUDA graph
a decode step. It serves nobody; it is what must not become slower while KV arrives.

KV is one allocation, [block][layer][token][head][K, V][dim] in bf16: what vLLM has on a GPU when a
connector asks for blocks outermost (BLNHC). 16 tokens a block, 64 KiB a layer of it, 2 MiB in all.
"""

from __future__ import annotations

import time

import torch
import triton
import triton.language as tl

LAYERS, HIDDEN, FEED, HEADS, KV_HEADS, DIM = 32, 4096, 14336, 32, 8, 128
BLOCK = 16
LAYER_ELEMENTS = BLOCK * KV_HEADS * 2 * DIM
BLOCK_ELEMENTS = LAYERS * LAYER_ELEMENTS


@triton.jit
def paged_attention(
    query,
    kv,
    table,
    out,
    layer,
    tokens,
    table_stride,
    layer_elements: tl.constexpr,
    layers: tl.constexpr,
    block: tl.constexpr,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    dim: tl.constexpr,
    step: tl.constexpr,
):
    """One decode token of one (sequence, KV head) over all its pages."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    rows = tl.arange(0, 16)
    dims = tl.arange(0, dim)
    places = (sequence * kv_heads * group + head * group + rows[:, None]) * dim + dims[None, :]
    q = tl.load(query + places, mask=rows[:, None] < group, other=0.0)
    best = tl.full([16], -1e30, tl.float32)
    total = tl.zeros([16], tl.float32)
    sum_v = tl.zeros([16, dim], tl.float32)
    for first in range(0, tokens, step):
        token = first + tl.arange(0, step)
        page = tl.load(table + sequence * table_stride + token // block).to(tl.int64)
        at = (page * layers + layer) * layer_elements
        at += ((token % block) * kv_heads + head) * 2 * dim
        k = tl.load(kv + at[:, None] + dims[None, :])
        v = tl.load(kv + at[:, None] + dim + dims[None, :])
        score = tl.dot(q, tl.trans(k)) * 0.08838834764831845
        new = tl.maximum(best, tl.max(score, 1))
        weight = tl.exp(score - new[:, None])
        scale = tl.exp(best - new)
        total = total * scale + tl.sum(weight, 1)
        sum_v = sum_v * scale[:, None] + tl.dot(weight.to(v.dtype), v)
        best = new
    result = (sum_v / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + places, result, mask=rows[:, None] < group)


class Engine:
    def __init__(self, batch: int, context: int, blocks: int) -> None:
        torch.manual_seed(0)
        make = {"device": "cuda", "dtype": torch.bfloat16}
        self.batch, self.context = batch, context
        self.weights = [
            {
                "qkv": torch.randn(HIDDEN, (HEADS + 2 * KV_HEADS) * DIM, **make) * 0.02,
                "out": torch.randn(HEADS * DIM, HIDDEN, **make) * 0.02,
                "up": torch.randn(HIDDEN, 2 * FEED, **make) * 0.02,
                "down": torch.randn(FEED, HIDDEN, **make) * 0.02,
            }
            for _ in range(LAYERS)
        ]
        self.ones = torch.ones(HIDDEN, **make)
        self.kv = torch.zeros(blocks, LAYERS, BLOCK, KV_HEADS, 2, DIM, **make)
        pages = context // BLOCK
        self.used = batch * pages  # the engine's own blocks; those above are for fetches
        self.table = torch.randperm(self.used, device="cuda", dtype=torch.int32).view(batch, pages)
        for first in range(0, self.used, 256):
            self.kv[first : min(first + 256, self.used)].normal_()
        self.input = torch.randn(batch, HIDDEN, **make)
        self.stream = torch.cuda.Stream(priority=-1)
        self.graph = self._capture()

    def _mlp(self, x: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
        h = torch.nn.functional.rms_norm(x, (HIDDEN,), self.ones) @ w["up"]
        return x + (torch.nn.functional.silu(h[..., :FEED]) * h[..., FEED:]) @ w["down"]

    def _step(self, x: torch.Tensor) -> torch.Tensor:
        for layer, w in enumerate(self.weights):
            qkv = torch.nn.functional.rms_norm(x, (HIDDEN,), self.ones) @ w["qkv"]
            q = qkv[:, : HEADS * DIM].contiguous()
            attended = torch.empty_like(q)
            paged_attention[(self.batch, KV_HEADS)](
                q,
                self.kv,
                self.table,
                attended,
                layer,
                self.context,
                self.context // BLOCK,
                LAYER_ELEMENTS,
                LAYERS,
                BLOCK,
                KV_HEADS,
                HEADS // KV_HEADS,
                DIM,
                64,
            )
            x = self._mlp(x + attended @ w["out"], w)
        return x

    def _capture(self) -> torch.cuda.CUDAGraph:
        with torch.cuda.stream(self.stream):
            for _ in range(3):
                self._step(self.input)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self.output = self._step(self.input)
        return graph

    def decode(self, seconds: float, ahead: bool = True) -> list[float]:
        """Times of decode steps in milliseconds, by events of the GPU, for this long.

        ahead: the next step is enqueued while one runs, as engines with asynchronous scheduling
        do, so that a time is the GPU's alone; else a step is launched when the last has ended, and
        the launch counts."""
        times = []
        end = time.monotonic() + seconds
        with torch.cuda.stream(self.stream):
            last = self._mark()
            waiting = [self._launch()] if ahead else []
            while time.monotonic() < end:
                if not ahead:
                    last = self._mark()
                waiting.append(self._launch())
                done = waiting.pop(0)
                done.synchronize()
                times.append(last.elapsed_time(done))
                last = done
            torch.cuda.current_stream().synchronize()
        return times[3:]

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(self.stream)
        return event

    def _launch(self) -> torch.cuda.Event:
        self.graph.replay()
        return self._mark()

    def prefill(self, tokens: int) -> float:
        """Milliseconds to compute this many tokens' KV: the time that a hit saves."""
        x = torch.randn(1, tokens, HIDDEN, device="cuda", dtype=torch.bfloat16)
        times = []
        for _ in range(4):
            torch.cuda.synchronize()
            begin = time.monotonic()
            y = x
            for w in self.weights:
                qkv = torch.nn.functional.rms_norm(y, (HIDDEN,), self.ones) @ w["qkv"]
                q, k, v = qkv.split([HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM], -1)
                a = torch.nn.functional.scaled_dot_product_attention(
                    q.view(1, tokens, HEADS, DIM).transpose(1, 2),
                    k.view(1, tokens, KV_HEADS, DIM).transpose(1, 2),
                    v.view(1, tokens, KV_HEADS, DIM).transpose(1, 2),
                    is_causal=True,
                    enable_gqa=True,
                )
                y = self._mlp(y + a.transpose(1, 2).reshape(1, tokens, HIDDEN) @ w["out"], w)
            torch.cuda.synchronize()
            times.append(1e3 * (time.monotonic() - begin))
        return sorted(times[1:])[1]
