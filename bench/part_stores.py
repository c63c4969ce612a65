# SPDX-License-Identifier: Apache-2.0
"""Part `stores`: puts, gets and look-ups straight through each store's back end, one core."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from part import RUNS, Figure, run_json, spread, summary, table
from servers import BUILD, Redis

TITLE = "put and get straight through each store's back end, one core"
BUDGET_S = 30
QUICK_S = 3


def run(out: Path, quick: bool) -> dict[str, Any]:
    folder = out / "store"
    redis = Redis(out / "redis")
    uris = {"memory": "memory:bench", "file": f"file:{folder}", "redis": redis.uri}
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in uris}
    try:
        for _ in range(1 if quick else RUNS):
            for name, uri in uris.items():
                answers[name].append(run_json(BUILD / "bench" / "bench_store", uri))
    finally:
        redis.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return {name: one_of(runs) for name, runs in answers.items()}


def one_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The runs of one store as medians and spreads."""
    one: dict[str, Any] = {n: runs[0][n] for n in ("value_bytes", "count", "in_flight")}
    for what in ("put", "get"):
        one[what] = {n: summary(r[what][n] for r in runs) for n in runs[0][what]}
    one["exists_per_s"] = summary(r["exists_per_s"] for r in runs)
    return one


def figures(data: dict[str, Any]) -> list[Figure]:
    return []


def tables(data: dict[str, Any]) -> str:
    some = next(iter(data.values()))
    runs = len(some["exists_per_s"]["runs"])
    text = (
        f"{some['count']} values of {some['value_bytes'] >> 20} MiB, {some['in_flight']} operations"
        f" in flight from one thread; medians of {runs}.\n\n"
    )
    head = ("store", "PUT, GB/s", "p50, p99, ms", "GET, GB/s", "p50, p99, ms", "look-ups a second")
    return text + table(head, [(f"`{name}:`", *cells(data[name])) for name in data])


def cells(one: dict[str, Any]) -> list[str]:
    row = []
    for what in ("put", "get"):
        rate, p50, p99 = (one[what][n] for n in ("gb_s", "p50_us", "p99_us"))
        row.append(f"{rate['median']:.2f} {spread(rate)}")
        row.append(f"{p50['median'] / 1e3:.1f}, {p99['median'] / 1e3:.1f}")
    return [*row, f"{one['exists_per_s']['median']:,.0f}"]
