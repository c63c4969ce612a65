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
    AIM,
    PROMISES,
    TIERS,
    Damage,
    find_scale,
    interpolate,
    kept,
    used,
)
from shadowserve.calibrate.sensitivity import Weights
from shadowserve.calibrate.texts import Splits

CURVE = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # scales of the picture's curve, and where to start from
CURVE_DOCUMENTS = 2
CHANNELS_PAY = 0.02  # bits of an element that factors must save at least, at equal KL
PICTURE_REFERENCES = ("FP8", "int8", "int4", "CacheGen")
SCALE_EVALUATIONS = 2.5  # of a tier, about
TIGHTENINGS = 4


@dataclass
class Result:
    weights: Weights
    scales: dict[str, float]
    scale_split: dict[str, Damage]  # tiers and references
    test_split: dict[str, Damage]
    curve: list[tuple[float, Damage]]  # of calibrated steps, few documents
    uniform: dict[str, Damage]  # likewise
    others: dict[str, Damage]  # likewise, entropy coded where it has a coder
    tightened: dict[str, float] = field(default_factory=dict)  # by the test split, factor
    left_out: dict[str, str] = field(default_factory=dict)  # tiers that no step can keep, and why


def work(splits: Splits, lengths: list[int]) -> float:
    """Documents that are evaluated or prepared, about: what the progress bar counts."""
    scale, test, few = len(splits.scale), len(splits.test), CURVE_DOCUMENTS
    evaluations = 2 + SCALE_EVALUATIONS * len(TIERS)
    prepared = 3.0 * (len(splits.sensitivity) + scale + test)
    shown = few * (len(CURVE) + 2 + len(TIERS) + len(PICTURE_REFERENCES))
    return prepared + evaluations * scale + (2 + len(TIERS)) * test + shown


class Calibration:
    def __init__(self, bench: Bench, splits: Splits, say: Callable[[str], None], tick: Tick):
        self.bench, self.splits, self.say, self.tick = bench, splits, say, tick
        self.correction = 1.0  # of a scale that the curve gives

    def run(self) -> Result:
        self.say("sensitivities")
        lengths = self.bench.lengths
        found = sensitivity.measure(
            self.bench.model,
            self.splits.sensitivity,
            lengths,
            self.bench.scored,
            lambda: self.tick(3 / len(lengths)),
        )
        self.say("exact caches")
        samples = self.bench.prepare(self.splits.scale, lambda n: self.tick(3 * n))
        few = samples[:CURVE_DOCUMENTS]
        weights = self._choose_weights(found, few)
        self.say("curve")
        result = Result(weights, {}, {}, {}, [], {}, {})
        self._draw(result, few)
        self.say("references")
        for name in {reference for reference, _ in PROMISES.values()}:
            result.scale_split[name] = self.bench.reference(samples, name, self.tick)
        for tier in TIERS:
            self.say(f"scale of {tier}")
            self._scale(result, tier, samples)
        samples.clear()
        self._test(result)
        return result

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
        for scale in CURVE:
            damage = self._evaluate(few, result.weights, scale, "standard")
            result.curve.append((scale, damage))
        for tier in TIERS:
            result.uniform[tier] = self.bench.tier(few, tier, None, self.tick)
        for name in PICTURE_REFERENCES:
            entropy = name == "CacheGen"
            result.others[name] = self.bench.reference(few, name, self.tick, entropy)

    def _scale(self, result: Result, tier: str, samples: list[Sample]) -> None:
        few = {
            name: damage
            for name, damage in result.others.items()
            if name in {reference for reference, _ in PROMISES.values()}
        }
        points = [(scale, used(kept(tier, damage, few))) for scale, damage in result.curve]
        first = interpolate(points, AIM)
        tried: dict[float, Damage] = {}

        def evaluate(scale: float) -> float:
            tried[scale] = self._evaluate(samples, result.weights, scale, tier)
            return used(kept(tier, tried[scale], result.scale_split))

        # Few documents say too much or too little alike for all tiers: learn from the last one.
        try:
            scale, _ = find_scale(first * self.correction, evaluate)
        except ValueError as failure:
            result.left_out[tier] = str(failure)
            return
        self.correction = min(max(scale / first, 0.5), 2.0)
        result.scales[tier] = scale
        result.scale_split[tier] = tried[scale]

    def _test(self, result: Result) -> None:
        """On documents that chose nothing. What goes beyond the margin there becomes finer."""
        self.say("test")
        samples = self.bench.prepare(self.splits.test, lambda n: self.tick(3 * n))
        for name in {reference for reference, _ in PROMISES.values()}:
            result.test_split[name] = self.bench.reference(samples, name, self.tick)
        for tier in list(result.scales):
            first = result.scales[tier]
            for _ in range(TIGHTENINGS):
                scale = result.scales[tier]
                damage = self._evaluate(samples, result.weights, scale, tier)
                result.test_split[tier] = damage
                found = used(kept(tier, damage, result.test_split))
                if found <= 1:
                    break
                result.scales[tier] = scale * (AIM / found) ** 0.5
            if result.scales[tier] != first:
                result.tightened[tier] = result.scales[tier] / first


def expected_errors(damage: Damage) -> Any:
    """[layer][part]: a tensor's relative error, over all documents."""
    return torch.stack(damage.errors).pow(2).mean(0).sqrt()
