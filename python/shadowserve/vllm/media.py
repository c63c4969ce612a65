# SPDX-License-Identifier: Apache-2.0
"""Who a piece of multimodal input is, by content: a SHA-256 over the tensors that the model reads.

vLLM's own hash is no identity: a client may give any text in its place, also one that looks like a
hash. vLLM's caches of encoder output and KV do go by that text, so a text that was seen with two
contents says nothing of what the engine computed with, and is not cached any more.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch

from shadowserve import model

# Hashed on the scheduler's thread: about 50 ms.
BYTES_MAX = 64 << 20
NAMES_MAX = 65536
DEPTH_MAX = 8


class Media:
    """Digests of multimodal input, and which content each of vLLM's names stands for."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, bytes] = OrderedDict()  # b"": more than one content

    def digest(self, feature: Any) -> bytes:
        """Of one item of a request, or model.NotKeyable."""
        if not feature.data:
            raise model.NotKeyable("multimodal input that did not reach the scheduler")
        fields = [(name, feature.data[name].data) for name in sorted(feature.data)]
        fields.append(("is_embed", [] if (mask := feature.mm_position.is_embed) is None else mask))
        if sum(_bytes(value) for _, value in fields) > BYTES_MAX:
            raise model.NotKeyable(f"multimodal input of more than {BYTES_MAX} bytes")
        hasher = hashlib.sha256(b"shadowserve media 1")
        hasher.update(model.canonical([feature.modality, [name for name, _ in fields]]))
        for _, value in fields:
            for piece in _pieces(value):
                hasher.update(piece)
        return self._bound(feature.identifier, hasher.digest())

    def _bound(self, name: str, digest: bytes) -> bytes:
        known = self._known.pop(name, digest)
        self._known[name] = known if known == digest else b""
        if len(self._known) > NAMES_MAX:
            self._known.popitem(last=False)
        if known != digest:
            raise model.NotKeyable("multimodal input of one name and several contents")
        return digest


def _bytes(value: Any, depth: int = 0) -> int:
    """Size of nested tensors; anything else stands for content that is elsewhere."""
    if isinstance(value, list | tuple) and depth < DEPTH_MAX:
        return sum(_bytes(one, depth + 1) for one in value)
    if not isinstance(value, torch.Tensor):
        raise model.NotKeyable(f"multimodal input with a {type(value).__name__} for a tensor")
    if value.device.type != "cpu" or value.layout != torch.strided or value.is_quantized:
        raise model.NotKeyable("multimodal input whose tensors are not plain memory")
    return int(value.nbytes)


def _pieces(value: Any) -> Iterator[Any]:
    if not isinstance(value, torch.Tensor):
        yield model.canonical(["list", len(value)])
        for one in value:
            yield from _pieces(one)
        return
    yield model.canonical([str(value.dtype), list(value.shape)])
    yield value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
