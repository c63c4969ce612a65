# SPDX-License-Identifier: Apache-2.0
"""Where vLLM's KV lies, as the daemon must be told, or NotServed.

vLLM gives a view [block][head][token][content] a layer, of one allocation for all; content is K
and V side by side. On GPUs a block is best one run over all layers. Where it is not, the daemon is
shown staging memory that is (shadowserve/staging.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from shadowserve import binding, gpu, layout, memory
from shadowserve.binding import CHUNK_TOKENS, Memory
from shadowserve.vllm.support import NotServed, Served

# update(key, value, cache, slots): the engine's own operator that writes into a cache.
CacheUpdate = Callable[[Any, Any, Any, Any], None]


@dataclass
class Registration:
    kind: Memory
    layout: binding.Layout
    bytes: int
    fd: int = -1
    address: int = 0
    gpu: binding.GpuMemory | None = None


class KvMemory:
    """The KV tensors of one worker, in the model's order."""

    def __init__(self, served: Served, rank: int, tensors: list[Any]) -> None:
        self.served = served
        self.shape = served.shapes[rank]
        self.tensors = tensors
        self.first = first = tensors[0]
        self.storage = first.untyped_storage()
        if any(one.untyped_storage().data_ptr() != self.storage.data_ptr() for one in tensors):
            raise NotServed("KV memory in more than one allocation is not served")
        if any((one.shape, one.stride()) != (first.shape, first.stride()) for one in tensors):
            raise NotServed("KV tensors of different shapes are not served")
        shape = self.shape
        _, heads, self.kernel_tokens, content = first.shape
        self.pieces = served.block_tokens // self.kernel_tokens
        if heads != shape.heads or content != shape.dim_k + shape.dim_v or not self.pieces:
            raise NotServed(f"KV tensors of shape {tuple(first.shape)} are not served")
        self.blocks = first.shape[0] // self.pieces

    @property
    def on_gpu(self) -> bool:
        return bool(self.first.device.type != "cpu")

    # ---- as it lies ------------------------------------------------------------------------------

    def registration(
        self, isa: str, update: CacheUpdate | None, shared: memory.SharedAllocation | None
    ) -> Registration:
        """isa: of CPU attention; update: of GPU backends; shared: the allocation, if it is one."""
        first = self.first
        size = first.element_size()
        packings = self._probe_gpu(update) if self.on_gpu else self._probe_cpu(isa)
        places = [
            layout.LayerPlace(
                one.data_ptr() - self.storage.data_ptr(), first.stride(0) * size * self.pieces
            )
            for one in self.tensors
        ]
        made = self._layout(packings, first.stride(0), places, self.blocks)
        if self.on_gpu:
            return self._gpu_registration(made, self.storage.data_ptr(), self.storage.nbytes())
        if shared is not None and shared.fd >= 0 and shared.address == self.storage.data_ptr():
            return Registration(Memory.MEMFD, made, shared.bytes, shared.fd)
        return Registration(
            Memory.ADDRESS, made, self.storage.nbytes(), address=self.storage.data_ptr()
        )

    def _layout(
        self,
        packings: tuple[layout.Packing, layout.Packing],
        piece_stride: int,
        places: list[layout.LayerPlace],
        blocks: int,
    ) -> binding.Layout:
        split = [layout.split_blocks(one, self.pieces, piece_stride) for one in packings]
        return layout.region_layout(
            self.shape,
            (split[0], split[1]),
            places,
            self.first.element_size(),
            self.served.block_tokens,
            blocks,
            self.served.identity.fingerprint,
        )

    def _gpu_registration(self, made: binding.Layout, pointer: int, size: int) -> Registration:
        try:
            exported = gpu.export(pointer, self.first.device.index or 0)
        except gpu.GpuError as reason:
            raise NotServed(
                f"the KV memory cannot be exported to another process ({reason}; expandable "
                f"segments and sleep mode allocate memory that cannot)"
            ) from reason
        return Registration(Memory.GPU_IPC, made, size, gpu=exported)

    def _probe_gpu(self, update: CacheUpdate | None) -> tuple[layout.Packing, layout.Packing]:
        """What the strides say, after the engine's operator has written just so."""
        first, shape = self.first, self.shape
        said = self._strided(first.stride(2), first.stride(1))
        if update is None:
            raise NotServed("this attention backend has no operator that writes a KV cache")
        found = layout.probe_cache_update(update, first, _compute_dtype(shape.dtype), shape.dim_k)
        if shape.heads == 1:
            said = (replace(said[0], head_stride=0), replace(said[1], head_stride=0))
        if found != said:
            raise NotServed("this attention backend packs KV in another way than side by side")
        return said

    def _strided(self, token_stride: int, head_stride: int) -> tuple[Any, Any]:
        return layout.strided_packings(
            self.kernel_tokens, self.shape.dim_k, self.shape.dim_v, token_stride, head_stride
        )

    def _probe_cpu(self, isa: str) -> tuple[layout.Packing, layout.Packing]:
        shape = self.shape
        if shape.dim_k != shape.dim_v:
            raise NotServed("K and V of different head sizes are not served on CPUs")
        return layout.probe_cpu_attention(
            isa,
            _compute_dtype(shape.dtype),
            self.kernel_tokens,
            shape.dim_k,
            self.served.kv_cache_dtype,
        )

    # ---- by way of staging -----------------------------------------------------------------------

    def staged(self, budget: int, streams: Any) -> tuple[Registration, gpu.BlockCopies, int]:
        """A staging region of at most so many bytes, its copies, and the chunks it holds. The
        engine's memory as one tensor has a block's number first; the dimensions behind it are in
        the order of their strides, so that the staging memory, in the same order, is contiguous."""
        import torch

        first = self.first
        offsets = [one.storage_offset() for one in self.tensors]
        step = offsets[1] - offsets[0] if len(offsets) > 1 else 0
        if any(b - a != step for a, b in itertools.pairwise(offsets)):
            raise NotServed("KV layers at irregular distances are not served by way of staging")
        # Layers, pieces of a block, heads, tokens, content.
        sizes = [len(offsets), self.pieces, *first.shape[1:]]
        strides = [step, first.stride(0), *first.stride()[1:]]
        order = sorted(range(5), key=lambda i: (-strides[i], sizes[i]))
        engine = torch.as_strided(
            first,
            (self.blocks, *(sizes[i] for i in order)),
            (first.stride(0) * self.pieces, *(strides[i] for i in order)),
        )
        chunk_blocks = CHUNK_TOKENS // self.served.block_tokens
        block_bytes = engine[0].numel() * engine.element_size()
        chunks = budget // (block_bytes * chunk_blocks)
        if chunks < 1:
            raise NotServed(
                f"staging of {budget} bytes holds no chunk of {block_bytes * chunk_blocks} bytes"
            )
        try:
            staging = streams.empty(engine, chunks * chunk_blocks)
        except RuntimeError as reason:
            raise NotServed(f"no GPU memory for staging: {reason}") from reason
        lies = {axis: staging.stride(1 + place) for place, axis in enumerate(order)}
        size = first.element_size()
        places = [
            layout.LayerPlace(lies[0] * size * layer, block_bytes) for layer in range(len(offsets))
        ]
        made = self._layout(self._strided(lies[3], lies[2]), lies[1], places, staging.shape[0])
        registration = self._gpu_registration(
            made, staging.data_ptr(), staging.numel() * staging.element_size()
        )
        return registration, gpu.BlockCopies(engine, staging, streams), chunks


def _compute_dtype(dtype: binding.Dtype) -> Any:
    """Of keys and values on their way into the cache."""
    import torch

    return {binding.Dtype.FP16: torch.float16, binding.Dtype.FP32: torch.float32}.get(
        dtype, torch.bfloat16
    )
