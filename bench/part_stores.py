# SPDX-License-Identifier: Apache-2.0
"""Part `stores`: puts and gets of 1 MiB values straight through each store's back end, one core."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from part import Figure, run_json, table
from servers import BUILD, Redis

TITLE = "put and get of 1 MiB values, one core"
BUDGET_S = 20
QUICK_S = 20


def run(out: Path, quick: bool) -> dict[str, Any]:
    folder = out / "store"
    redis = Redis(out / "redis")
    try:
        uris = {"memory": "memory:bench", "file": f"file:{folder}", "redis": redis.uri}
        return {name: run_json(BUILD / "bench" / "bench_store", uri) for name, uri in uris.items()}
    finally:
        redis.stop()
        shutil.rmtree(folder, ignore_errors=True)


def figures(data: dict[str, Any]) -> list[Figure]:
    return []


def tables(data: dict[str, Any]) -> str:
    names = sorted({name for answer in data.values() for name in answer})
    rows = [(f"`{store}:`", *(answer.get(n, "") for n in names)) for store, answer in data.items()]
    return "One run each.\n\n" + table(("store", *names), rows)
