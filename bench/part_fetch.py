# SPDX-License-Identifier: Apache-2.0
"""Part `fetch`: fetches through a real daemon into shared memory, per store and tier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from part import CORES, Figure, run_json, table
from servers import BUILD, Daemon, Redis

TITLE = "fetches through a daemon into shared memory"
BUDGET_S = 20
QUICK_S = 20


def run(out: Path, quick: bool) -> dict[str, Any]:
    answers = []
    for store in ("file", "redis"):
        for tier in ("lossless", "standard"):
            folder = out / f"{store}-{tier}"
            redis = Redis(folder) if store == "redis" else None
            uri = redis.uri if redis else f"file:{folder / 'store'}"
            try:
                daemon = Daemon(folder, uri, CORES[:1], tier)
                try:
                    program = BUILD / "cli" / "shadowserve"
                    command = (program, "bench", "fetch", "--json", "--socket", daemon.socket)
                    answer = run_json(*command, "--tier", tier)
                finally:
                    daemon.stop()
            finally:
                if redis:
                    redis.stop()
            answers.append({"store": store, "tier": tier, "answer": answer})
    return {"fetches": answers}


def figures(data: dict[str, Any]) -> list[Figure]:
    return []


def tables(data: dict[str, Any]) -> str:
    rows = data["fetches"]
    names = [k for k, v in rows[0]["answer"].items() if isinstance(v, int | float)]
    cells = [(f"`{r['store']}:`", r["tier"], *(r["answer"][n] for n in names)) for r in rows]
    return "One run each.\n\n" + table(("store", "tier", *names), cells)
