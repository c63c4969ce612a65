# SPDX-License-Identifier: Apache-2.0
"""Part `memory`: the daemon's resident memory before and after 1,000 fetches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from part import CORES, Figure, proc_field, run_json, table
from servers import BUILD, Daemon

TITLE = "the daemon's resident memory over 1,000 fetches"
BUDGET_S = 60
QUICK_S = 3


def run(out: Path, quick: bool) -> dict[str, Any]:
    daemon = Daemon(out, f"file:{out / 'store'}", CORES[:1], "lossless")

    def resident_kib() -> int:
        return int(proc_field(f"/proc/{daemon.process.pid}/status", "VmRSS").split()[0])

    count = 50 if quick else 1000
    try:
        program = BUILD / "cli" / "shadowserve"
        command = (program, "bench", "fetch", "--json", "--socket", daemon.socket)
        run_json(*command, "--count", "10")
        before = resident_kib()
        run_json(*command, "--count", str(count))
        after = resident_kib()
    finally:
        daemon.stop()
    return {"fetches": count, "before_kib": before, "after_kib": after}


def figures(data: dict[str, Any]) -> list[Figure]:
    return []


def tables(data: dict[str, Any]) -> str:
    before, after = data["before_kib"], data["after_kib"]
    row = (data["fetches"], before, after, f"{100 * (after / before - 1):+.2f} %")
    return "One run.\n\n" + table(("fetches", "KiB before", "KiB after", "growth"), [row])
