# SPDX-License-Identifier: Apache-2.0
"""How far a coded cache may be from the exact one, and the coarsest scale that keeps to it.

A tier's promise is about the KL of next-token probabilities, beside that of a cache quantised the
way users already accept, on the same texts. It is held at a prefix length if the upper end of the
one-sided 95 % bootstrap interval over documents of the ratio of mean KLs is at most 1, and the 99th
percentile over tokens at most 1.25 times the reference's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
MARGIN = 0.66  # of a promise is taken while choosing: no kind of text here is the next one
GRID = (0.1, 0.22, 0.48, 1.06, 2.34)  # scales that are measured; what lies between is interpolated
GRID_STEP = 2.2
GRID_MORE = 4  # scales beyond either end, at most


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

    def of(self, places: Sequence[int]) -> Damage:
        """The same of some of the documents."""

        def some(values: list[Any]) -> list[Any]:
            return [values[place] for place in places]

        return Damage(
            {length: some(values) for length, values in self.kl.items()},
            {length: some(values) for length, values in self.same_top.items()},
            some(self.ratios),
            some(self.errors) if self.errors else [],
        )

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


def unlike(tier: str, ours: Damage, references: dict[str, Damage], kinds: Sequence[int]) -> float:
    """How much worse the worst kind of text is than all together, over all lengths; kinds: of each
    document. What one kind of text shows of the next is more than intervals over documents say."""
    name, _ = PROMISES[tier]

    def share(places: Sequence[int]) -> float:
        some, theirs = ours.of(places), references[name].of(places)
        ratios = [some.means(n).mean() / theirs.means(n).mean() for n in some.kl]
        return float(sum(ratios)) / len(ratios)

    every = range(len(kinds))
    each = [share([place for place in every if kinds[place] == kind]) for kind in set(kinds)]
    return max(max(each) / share(every), 1.0)


def used(tier: str, ours: Damage, references: dict[str, Damage], kinds: Sequence[int]) -> float:
    """Of what may be taken while scales are chosen; at most 1 is with margin. The mean of the worst
    kind of text counts like the bound over all documents."""
    found = kept(tier, ours, references)
    apart = max(one.ratio for one in found.values()) * unlike(tier, ours, references, kinds)
    return max(worst(found), apart) / MARGIN


def bracket(points: dict[float, float]) -> float | None:
    """The next scale to measure so that 1 lies between measured ones; None if it does."""
    low, high = min(points), max(points)
    if points[low] > 1:
        return low / GRID_STEP
    if points[high] < 1:
        return high * GRID_STEP
    return None


def crossing(points: dict[float, float]) -> float:
    """The scale up to which measured (scale, used) stay at most 1; between two of them on
    logarithms, where KL is nearly straight."""
    logs = sorted((math.log(scale), math.log(found)) for scale, found in points.items())
    for (x0, y0), (x1, y1) in pairwise(logs):
        if y0 <= 0 < y1:
            return math.exp(x0 - y0 * (x1 - x0) / (y1 - y0))
    if logs[-1][1] <= 0:
        return math.exp(logs[-1][0])
    raise ValueError(
        f"no step keeps the promise: at scale {min(points):.3g} it is {points[min(points)]:.3g}"
    )
