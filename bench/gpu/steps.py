# SPDX-License-Identifier: Apache-2.0
"""Step times of the engine, alone and beside something that moves KV.

A case lies between two runs of the engine alone, which it shares with its neighbours; its ratios
are to their mean. Cases of one name are rounds of it: their steps are pooled at the end, and
compared with the pooled steps of the runs alone beside them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from engine import Engine

FRESH_S = 1.0
QUANTILES = ("p50_ms", "p99_ms", "mean_ms")


def quantiles(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        "steps": len(ordered),
        "p50_ms": ordered[len(ordered) // 2],
        "p99_ms": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
        "max_ms": ordered[-1],
        "mean_ms": statistics.fmean(ordered),
    }


@dataclass
class Pool:
    alone: list[float] = field(default_factory=list)
    during: list[float] = field(default_factory=list)
    ratios: list[dict[str, float]] = field(default_factory=list)
    got: list[float] = field(default_factory=list)


class Steps:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.pools: dict[str, Pool] = {}
        self._alone: list[float] = []
        self._alone_end = -FRESH_S

    def _run_alone(self, seconds: float, ahead: bool) -> list[float]:
        self._alone = self.engine.decode(seconds, ahead)
        self._alone_end = time.monotonic()
        return self._alone

    def beside(
        self, name: str, seconds: float, start: Callable[[], Any], ahead: bool = True
    ) -> dict[str, Any]:
        """start() gives a mover at work; its stop() gives a report."""
        before = self._alone
        if not ahead or time.monotonic() - self._alone_end > FRESH_S:
            before = self._run_alone(seconds / 2, ahead)
        mover = start()
        time.sleep(0.3)
        during = self.engine.decode(seconds, ahead)
        report = mover.stop()
        torch.cuda.synchronize()
        after = self._run_alone(seconds / 2, ahead)
        if not ahead:
            self._alone_end = -FRESH_S
        alone = [quantiles(before), quantiles(after)]
        beside = quantiles(during)
        ratio = {q: beside[q] / statistics.fmean(a[q] for a in alone) for q in QUANTILES}
        pool = self.pools.setdefault(name, Pool())
        pool.alone += before + after
        pool.during += during
        pool.ratios.append(ratio)
        pool.got.append(report.get("got_gb_s", 0.0))
        print(
            f"{name:<44} p50 x{ratio['p50_ms']:.4f}  p99 x{ratio['p99_ms']:.4f}"
            f"  mean x{ratio['mean_ms']:.4f}  {pool.got[-1]:6.2f} GB/s of KV",
            flush=True,
        )
        return {"case": name, "alone": alone, "during": beside, "ratio": ratio, **report}

    def pooled(self) -> Iterator[dict[str, Any]]:
        """Of every case that had more than one round."""
        for name, pool in self.pools.items():
            if len(pool.ratios) < 2:
                continue
            alone, during = quantiles(pool.alone), quantiles(pool.during)
            ratio = {q: during[q] / alone[q] for q in QUANTILES}
            spread = {q: [r[q] for r in pool.ratios] for q in QUANTILES}
            got = statistics.fmean(pool.got)
            print(
                f"pooled: {name:<36} p50 x{ratio['p50_ms']:.4f}  p99 x{ratio['p99_ms']:.4f}"
                f"  mean x{ratio['mean_ms']:.4f}  {got:6.2f} GB/s of KV",
                flush=True,
            )
            yield {
                "case": f"pooled: {name}",
                "alone": alone,
                "during": during,
                "ratio": ratio,
                "rounds": spread,
                "got_gb_s": pool.got,
            }
