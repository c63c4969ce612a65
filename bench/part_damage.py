# SPDX-License-Identifier: Apache-2.0
"""Part `damage`: chunks damaged each in its own way; every one must be a miss, read both ways."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from part import CORES, Figure, Wrong, run_json, table
from servers import BUILD, Daemon

TITLE = "a store of damaged chunks"
BUDGET_S = 60
QUICK_S = 5


def run(out: Path, quick: bool) -> dict[str, Any]:
    answers = {}
    chunks = "240" if quick else "10000"
    for way in ("direct", "daemon"):
        uri = f"file:{out / way}?sync=none"
        program = BUILD / "bench" / "damage"
        command: list[str | Path] = [program, "--json", "--chunks", chunks, "--store", uri]
        daemon = None
        if way == "daemon":
            daemon = Daemon(out, uri, CORES[:1], "lossless")
            command += ["--socket", daemon.socket]
        try:
            answers[way] = answer = run_json(*command)
        finally:
            if daemon:
                daemon.stop()
            shutil.rmtree(out / way, ignore_errors=True)
        if answer["wrong_bytes"] or answer["misses"] != answer["chunks"]:
            raise Wrong(f"{way}: {answer}")
    return answers


def figures(data: dict[str, Any]) -> list[Figure]:
    return []


def tables(data: dict[str, Any]) -> str:
    rows = [(w, a["chunks"], a["misses"], a["wrong_bytes"]) for w, a in data.items()]
    return table(("read", "chunks damaged", "misses", "wrong bytes"), rows)
