# SPDX-License-Identifier: Apache-2.0
"""How far a coded cache may be from the exact one, and the coarsest scale that keeps to it.

A tier's promise is about the KL of next-token probabilities, beside that of a cache quantised the
way users already accept, on the same texts. It is held at a prefix length if the upper end of the
one-sided 95 % bootstrap interval over documents of the ratio of mean KLs is at most 1, and the 99th
percentile over tokens at most 1.25 times the reference's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

TIERS = ("high", "standard", "compact", "tiny")
# Of which reference's KL, and how much of it, a tier may have.
PROMISES: dict[str, tuple[str, float]] = {
    "high": ("FP8", 1 / 8),
    "standard": ("FP8", 1.0),
    "compact": ("int4", 1.0),
    "tiny": ("int4", 4.0),
}
P99_RATIO_MAX = 1.25
CONFIDENCE = 0.95
RESAMPLES = 2000
FIRST_POSITIONS = 32  # right after the prefix, reported of their own
MARGIN = 0.6  # of what a promise allows is taken while choosing: other texts are not these
AIM = 0.97  # of that, so that the last step is not a coin's toss
CLOSE = 0.06  # a bound this close below 1 is not worth another evaluation
TRIES = 5
SLOPES = (1.0, 4.0)  # of KL over the step, on logarithms: what is believed


@dataclass
class Damage:
    """What one way of coding did, at each prefix length: KL of each scored token by document."""

    kl: dict[int, list[Any]] = field(default_factory=dict)
    same_top: dict[int, list[float]] = field(default_factory=dict)
    ratios: list[float] = field(default_factory=list)
    errors: list[Any] = field(default_factory=list)

    def add(self, length: int, reference: Any, ours: Any) -> None:
        reference = reference.to(ours.device)
        kl = (reference.exp() * (reference - ours)).sum(-1).double().clamp_min(0).cpu()
        same = (reference.argmax(-1) == ours.argmax(-1)).double().mean()
        self.kl.setdefault(length, []).append(kl)
        self.same_top.setdefault(length, []).append(float(same))

    def means(self, length: int) -> Any:
        return torch.stack([kl.mean() for kl in self.kl[length]])

    def tokens(self, length: int) -> Any:
        return torch.cat(self.kl[length])

    def ratio(self) -> float:
        """Of whole containers: as many bytes from each document."""
        return len(self.ratios) / sum(1 / ratio for ratio in self.ratios)


@dataclass(frozen=True)
class Kept:
    """A promise at one length: 1 is what is allowed."""

    ratio: float  # of mean KLs
    bound: float  # upper end of its interval
    p99: float  # of the 99th percentiles

    @property
    def worst(self) -> float:
        return max(self.bound, self.p99 / P99_RATIO_MAX)


def bound_of(ours: Any, theirs: Any) -> float:
    """Upper end of the one-sided interval of mean(ours) / mean(theirs), documents drawn again."""
    generator = torch.Generator().manual_seed(0)
    count = len(ours)
    drawn = torch.randint(count, (RESAMPLES, count), generator=generator)
    ratios = ours[drawn].mean(1) / theirs[drawn].mean(1)
    return float(ratios.quantile(CONFIDENCE))


def kept(tier: str, ours: Damage, references: dict[str, Damage]) -> dict[int, Kept]:
    name, share = PROMISES[tier]
    theirs, found = references[name], {}
    for length in ours.kl:
        mine, allowed = ours.means(length), theirs.means(length) * share
        tail = float(theirs.tokens(length).quantile(0.99)) * share
        found[length] = Kept(
            float(mine.mean() / allowed.mean()),
            bound_of(mine, allowed),
            float(ours.tokens(length).quantile(0.99)) / tail,
        )
    return found


def worst(found: dict[int, Kept]) -> float:
    """At the worst length; at most 1 is a promise kept."""
    return max(one.worst for one in found.values())


def used(found: dict[int, Kept]) -> float:
    """Of what may be taken while scales are chosen; at most 1 is with margin."""
    return worst(found) / MARGIN


def find_scale(
    first: float, evaluate: Callable[[float], float], aim: float = AIM
) -> tuple[float, float]:
    """The coarsest scale whose evaluate() is at most 1, about, and what it was there.

    KL grows with about the square of the step, so a secant on logarithms is near after one or two
    evaluations; when it leaves the bracket, that is halved.
    """
    low: tuple[float, float] | None = None  # the coarsest that keeps the promise
    high: tuple[float, float] | None = None  # the finest that does not
    last: tuple[float, float] | None = None
    scale, slope = first, 2.0
    for _ in range(TRIES):
        found = evaluate(scale)
        if last and scale != last[0]:
            slope = math.log(found / last[1]) / math.log(scale / last[0])
            slope = min(max(slope, SLOPES[0]), SLOPES[1])
        last = (scale, found)
        if found <= 1 and (low is None or scale > low[0]):
            low = last
        elif found > 1 and (high is None or scale < high[0]):
            high = last
        if low and low[1] >= 1 - CLOSE:
            break
        guess = scale * (aim / found) ** (1 / slope)
        if low and high and not low[0] < guess < high[0]:
            guess = (low[0] * high[0]) ** 0.5
        scale = guess
    while low is None:  # far off: finer until it holds
        scale *= 0.7
        if scale < first * 1e-4:
            raise ValueError(f"no step keeps the promise: at scale {scale:.3g} it is {found:.3g}")
        found = evaluate(scale)
        if found <= 1:
            low = (scale, found)
    return low


def interpolate(points: Sequence[tuple[float, float]], value: float) -> float:
    """Scale at which a curve of (scale, worst) takes the value, on logarithms."""
    logs = sorted((math.log(scale), math.log(found)) for scale, found in points)
    target = math.log(value)
    pairs = list(pairwise(logs))
    (x0, y0), (x1, y1) = next((pair for pair in pairs if pair[1][1] >= target), pairs[-1])
    slope = max((y1 - y0) / (x1 - x0), 0.5)
    return math.exp(x0 + (target - y0) / slope)
