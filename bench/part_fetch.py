# SPDX-License-Identifier: Apache-2.0
"""Part `fetch`: fetches through a real daemon into shared memory, per store and tier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from part import CORES, RUNS, Figure, Wrong, run_json, spread, summary, table
from servers import BUILD, Daemon, Redis

TITLE = "fetches through a daemon into shared memory"
BUDGET_S = 40
QUICK_S = 4
SHOWN = ("wire_gb_s", "kv_gb_s", "get_ms_p50", "get_ms_p99")


def run(out: Path, quick: bool) -> dict[str, Any]:
    answers = []
    for store in ("file", "redis"):
        for tier in ("lossless", "standard"):
            folder = out / f"{store}-{tier}"
            redis = Redis(folder) if store == "redis" else None
            uri = redis.uri if redis else f"file:{folder / 'store'}"
            try:
                runs = measure(folder, uri, tier, 1 if quick else RUNS)
            finally:
                if redis:
                    redis.stop()
            answers.append({"store": store, "tier": tier, **runs})
    return {"fetches": answers}


def measure(folder: Path, uri: str, tier: str, runs: int) -> dict[str, Any]:
    daemon = Daemon(folder, uri, CORES[:1], tier)
    try:
        program = BUILD / "cli" / "shadowserve"
        command = (program, "bench", "fetch", "--json", "--socket", daemon.socket, "--tier", tier)
        answers = [run_json(*command) for _ in range(runs)]
    finally:
        daemon.stop()
    if any(a["misses"] or a["damaged"] for a in answers):
        raise Wrong(f"{uri.partition(':')[0]}: {tier}: not every chunk came: {answers}")
    one = {n: answers[0][n] for n in ("chunks", "wire_bytes", "kv_bytes")}
    return one | {n: summary(a[n] for a in answers) for n in SHOWN}


def figures(data: dict[str, Any]) -> list[Figure]:
    return []


def tables(data: dict[str, Any]) -> str:
    some = data["fetches"][0]
    text = (
        f"{some['chunks']} chunks, {some['kv_bytes'] / some['chunks'] / 2**20:.0f} MiB of KV each;"
        f" medians of {len(some['kv_gb_s']['runs'])}.\n\n"
    )
    head = ("store", "tier", "KV, GB/s", "compressed, GB/s", "a chunk, p50, ms", "p99, ms")
    return text + table(head, [cells(row) for row in data["fetches"]])


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    wire, kv, p50, p99 = (row[n] for n in SHOWN)
    return (
        f"`{row['store']}:`",
        f"`{row['tier']}`",
        f"{kv['median']:.2f} {spread(kv)}",
        f"{wire['median']:.2f}",
        f"{p50['median']:.2f}",
        f"{p99['median']:.2f}",
    )
