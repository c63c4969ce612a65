# SPDX-License-Identifier: Apache-2.0
"""A prefix through the C codec: chunk by chunk into whole containers and back, as the daemon does.

Sizes are those of the containers, headers and checksums included. Leading tokens of the first chunk
are verbatim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from shadowserve.calibrate.model import Shape
from shadowserve.calibrate.sensitivity import CHUNK, VERBATIM, Weights
from shadowserve.codec import Codec, Part, Steps
from shadowserve.codec import Shape as ChunkShape

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass
class Coded:
    kv: Any
    ratio: float
    errors: Any  # [layer][part]: relative L2 error, mean square over chunks


class Coder:
    """Codes prefixes of one model. One thread at a time."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.codec = Codec()

    def steps(self, weights: Weights, scale: float) -> Steps:
        heads = weights.head.transpose(0, 1).flatten(1)
        factors: tuple[bytes | None, ...] = ()
        if weights.factor is not None:
            factors = (weights.factor.flatten().numpy().tobytes(), None)
        return Steps(scale, [part.tolist() for part in heads], factors)

    def _chunk(self, tokens: int, dtype: Any) -> ChunkShape:
        part = Part("K", self.shape.heads, self.shape.dim)
        return ChunkShape(NAMES[dtype], self.shape.layers, tokens, (part, replace(part, role="V")))

    def code(self, kv: Any, tier: str, steps: Steps | None = None) -> Coded:
        """kv: [layer][part][token][head][dim]. Without steps: the tier's uniform ones."""
        back, count = torch.empty_like(kv), 0
        squares = torch.zeros(kv.shape[:2], dtype=torch.float64)
        chunks = 0
        for first in range(0, kv.shape[2], CHUNK):
            chunk = kv[:, :, first : first + CHUNK].contiguous()
            size, errors = self.codec.round_trip(
                self._chunk(chunk.shape[2], kv.dtype),
                chunk.data_ptr(),
                chunk.data_ptr(),
                tier,
                steps,
                verbatim_tokens=0 if first else VERBATIM,
            )
            back[:, :, first : first + CHUNK] = chunk
            squares += torch.tensor(errors, dtype=torch.float64).pow(2)
            count, chunks = count + size, chunks + 1
        ratio = kv.numel() * kv.element_size() / count
        return Coded(back, ratio, (squares / chunks).sqrt())
