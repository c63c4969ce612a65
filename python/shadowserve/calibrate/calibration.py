# SPDX-License-Identifier: Apache-2.0
"""The calibration itself: from a model and a text to weights, scales and what they were measured to
do. Sensitivities, scales and the final test each see documents of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from shadowserve.calibrate import sensitivity
from shadowserve.calibrate.measure import Bench, Sample, Tick
from shadowserve.calibrate.search import (
    GRID,
    GRID_MORE,
    PROMISES,
    TIERS,
    Damage,
    bracket,
    crossing,
    kept,
    used,
    worst,
)
from shadowserve.calibrate.sensitivity import Weights
from shadowserve.calibrate.texts import Splits

FEW = 2  # documents of the picture's other curves
CHANNELS_PAY = 0.02  # bits of an element that factors must save at least, at equal KL
PICTURE_REFERENCES = ("FP8", "int8", "int4", "CacheGen")
TIGHTENINGS = 4
TIGHT = 0.97  # of the promise, where the test asks for finer steps


@dataclass
class Result:
    weights: Weights
    scales: dict[str, float]
    test_split: dict[str, Damage]  # tiers and references
    curve: list[tuple[float, Damage]]  # of calibrated steps, few documents
    uniform: dict[str, Damage]  # likewise
    others: dict[str, Damage]  # likewise, entropy coded where it has a coder
    tightened: dict[str, float] = field(default_factory=dict)  # by the test split, factor
    left_out: dict[str, str] = field(default_factory=dict)  # tiers that no step can keep, and why


def work(splits: Splits, lengths: list[int]) -> float:
    """Documents that are evaluated or prepared, about: what the progress bar counts."""
    scale, test = len(splits.scale), len(splits.test)
    prepared = 3.0 * (2 * len(splits.sensitivity) + scale + test)
    shown = FEW * (2 + len(TIERS) + len(PICTURE_REFERENCES))
    return prepared + (2 + len(GRID)) * scale + (2 + len(TIERS)) * test + shown


class Calibration:
    def __init__(self, bench: Bench, splits: Splits, say: Callable[[str], None], tick: Tick):
        self.bench, self.splits, self.say, self.tick = bench, splits, say, tick

    def run(self) -> Result:
        self.say("sensitivities")
        lengths = self.bench.lengths
        found = sensitivity.measure(
            self.bench.model,
            self.splits.sensitivity,
            lengths,
            self.bench.scored,
            lambda: self.tick(6 / len(lengths)),
        )
        self.say("exact caches")
        samples = self.bench.prepare(self.splits.scale, lambda n: self.tick(3 * n))
        weights = self._choose_weights(found, samples[:FEW])
        result = Result(weights, {}, {}, [], {}, {})
        self.say("references")
        references = self._references(samples)
        self.say("scales")
        self._scales(result, samples, references)
        self.say("picture")
        self._draw(result, samples[:FEW])
        samples.clear()
        self._test(result)
        return result

    def _references(self, samples: list[Sample]) -> dict[str, Damage]:
        names = sorted({reference for reference, _ in PROMISES.values()})
        return {name: self.bench.reference(samples, name, self.tick) for name in names}

    def _evaluate(self, samples: list[Sample], weights: Weights, scale: float, tier: str) -> Damage:
        steps = self.bench.coder.steps(weights, scale)
        return self.bench.tier(samples, tier, steps, self.tick)

    def _choose_weights(self, found: sensitivity.Sensitivity, few: list[Sample]) -> Weights:
        """Factors of K channels, or a step a head alone: fewer bits at equal KL wins."""
        cost = []
        choices = [sensitivity.weights(found, by_channel) for by_channel in (False, True)]
        for weights in choices:
            damage = self._evaluate(few, weights, 0.6, "standard")
            means = torch.stack([damage.means(length).mean() for length in self.bench.lengths])
            cost.append(16 / damage.ratio() + 0.5 * float(means.log2().mean()))
        return choices[1] if cost[1] < cost[0] - CHANNELS_PAY else choices[0]

    def _draw(self, result: Result, few: list[Sample]) -> None:
        result.curve = [(scale, damage.of(range(len(few)))) for scale, damage in result.curve]
        for tier in TIERS:
            result.uniform[tier] = self.bench.tier(few, tier, None, self.tick)
        for name in PICTURE_REFERENCES:
            entropy = name == "CacheGen"
            result.others[name] = self.bench.reference(few, name, self.tick, entropy)

    def _scales(self, result: Result, samples: list[Sample], references: dict[str, Damage]) -> None:
        """A curve of KL over scales serves all tiers; it grows until it holds each one's place."""
        curve: dict[float, Damage] = {}

        def measure(scale: float) -> None:
            curve[scale] = self._evaluate(samples, result.weights, scale, TIERS[0])

        def points(tier: str) -> dict[float, float]:
            kinds = self.splits.kinds
            return {s: used(tier, damage, references, kinds) for s, damage in curve.items()}

        for scale in GRID:
            measure(scale)
        for tier in TIERS:
            for _ in range(GRID_MORE):
                more = bracket(points(tier))
                if more is None:
                    break
                measure(more)
            try:
                result.scales[tier] = crossing(points(tier))
            except ValueError as failure:
                result.left_out[tier] = str(failure)
        result.curve = sorted(curve.items())

    def _test(self, result: Result) -> None:
        """On documents that chose nothing. What breaks its promise there becomes finer."""
        self.say("test")
        samples = self.bench.prepare(self.splits.test, lambda n: self.tick(3 * n))
        result.test_split.update(self._references(samples))
        for tier in list(result.scales):
            first = result.scales[tier]
            for _ in range(TIGHTENINGS):
                scale = result.scales[tier]
                damage = self._evaluate(samples, result.weights, scale, tier)
                result.test_split[tier] = damage
                found = worst(kept(tier, damage, result.test_split))
                if found <= 1:
                    break
                result.scales[tier] = scale * (TIGHT / found) ** 0.5
            if result.scales[tier] != first:
                result.tightened[tier] = result.scales[tier] / first


def expected_errors(damage: Damage) -> Any:
    """[layer][part]: a tensor's relative error, over all documents."""
    return torch.stack(damage.errors).pow(2).mean(0).sqrt()
