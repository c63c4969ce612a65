# SPDX-License-Identifier: Apache-2.0
"""How much the next token's probabilities move when a cached key or value does.

The KL that small independent noise of variance v in one channel causes is v/2 times its Fisher
information: the expected squared gradient of log-probabilities of tokens that the model itself
would draw. One backward pass a sequence gives it for every cached element; random signs make the
cross terms between scored positions cancel in the mean. Summed over tokens, kept per channel, and
the largest of several prefix lengths: some heads matter far more when much stands before them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from shadowserve.calibrate.model import Model

SIGMA_FACTOR = 1.06  # of the median channel, as the codec's own steps have it
CLIP = 8.0  # a step is at most so many times coarser or finer than its share of uniform steps
VERBATIM = 4  # leading tokens that are never quantised
CHUNK = 256
FACTOR_ONE, FACTOR_STEPS = 128, 8  # step factors of docs/codec.md: eight to an octave
REPEATS = 1  # draws of tokens and signs for a sequence: another document says more


@dataclass
class Sensitivity:
    fisher: Any  # [layer][part][head][dim], per unit of variance in all tokens
    sigma: Any  # [layer][part][head]: what a uniform step is measured by


@dataclass
class Weights:
    """step of a head = scale x head; of a channel that times its factor byte's value."""

    head: Any  # float [layer][part][head]
    factor: Any | None  # uint8 [layer][head][dim] of K, None: no factors


def _fisher(model: Model, ids: list[int], kv: Any, generator: Any) -> Any:
    layers = model.leaves(kv, gradients=True)
    found = torch.zeros(model.shape.layers, 2, model.shape.heads, model.shape.dim)
    with torch.enable_grad():
        logs = model.log_probabilities(ids, layers)
        for repeat in range(REPEATS):
            drawn = torch.multinomial(logs.detach().exp().cpu(), 1, generator=generator)
            signs = torch.randint(0, 2, drawn.shape, generator=generator) * 2 - 1
            chosen = logs.gather(1, drawn.to(logs.device))
            keep = repeat + 1 < REPEATS
            total = (chosen * signs.to(logs.device)).sum()
            leaves = [x for pair in layers for x in pair]
            gradients = torch.autograd.grad(total, leaves, retain_graph=keep)
            for index, gradient in enumerate(gradients):
                squares = gradient[0, :, VERBATIM:].float().pow(2).sum(1)
                found[index // 2, index % 2] += squares.cpu() / REPEATS
    return found / len(ids)


def _sigma(kv: Any) -> Any:
    """Logarithm of each head's spread, averaged over chunks."""
    logs = []
    begin = CHUNK if kv.shape[2] >= 2 * CHUNK else 0  # the first chunk has the sinks
    for first in range(begin, kv.shape[2] - CHUNK + 1, CHUNK):
        x = kv[:, :, first : first + CHUNK].float()
        keys = SIGMA_FACTOR * x[:, 0].std(1).median(-1).values
        values = x[:, 1].pow(2).mean((1, 3)).sqrt()
        logs.append(torch.stack((keys, values), 1).clamp_min(1e-6).log())
    return torch.stack(logs).mean(0)


def measure(
    model: Model, documents: list[list[int]], lengths: list[int], scored: int, tick: Any
) -> Sensitivity:
    generator = torch.Generator().manual_seed(0)
    fisher: Any = 0
    sigma: Any = 0
    for document in documents:
        kv = model.prefix(document[: lengths[-1]])
        sigma = sigma + _sigma(kv) / len(documents)
        rows = []
        for length in lengths:
            ids = document[length : length + scored]
            rows.append(_fisher(model, ids, kv[:, :, :length], generator) / len(documents))
            tick()
        fisher = fisher + torch.stack(rows)
    return Sensitivity(fisher.amax(0), sigma.exp())


def weights(found: Sensitivity, by_channel: bool) -> Weights:
    """Steps of equal slope: proportional to sensitivity^-1/2, clipped."""
    fisher = found.fisher.clamp_min(1e-30).double()
    sigma = found.sigma.double()
    head = fisher.mean(-1)
    if by_channel:
        head[:, 0] = fisher[:, 0].log().mean(-1).exp()
    relative = (head * sigma.pow(2)).rsqrt()
    relative = relative / relative.log().mean().exp()
    step = sigma * relative.clamp(1 / CLIP, CLIP)
    if not by_channel:
        return Weights(step.float(), None)
    spread = (fisher[:, 0] / head[:, 0, :, None]).rsqrt().clamp(1 / CLIP, CLIP)
    factor = (FACTOR_ONE + FACTOR_STEPS * spread.log2()).round().clamp(0, 255)
    return Weights(step.float(), factor.to(torch.uint8))
