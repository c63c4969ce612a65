# SPDX-License-Identifier: Apache-2.0
"""What a part of the benchmark is made of: bench/README.md tells the contract.

Kept here: the rows and pictures a part returns, statistics over repeated runs, the machine's
description, and running a program on one core. Nothing here measures.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers import ROOT

CORES = sorted(os.sched_getaffinity(0))
CPU_FLAGS = ("avx2", "bmi2", "avx512f", "avx512bw", "avx512vbmi", "avx512_vbmi2", "asimd", "sve")
RUNS = 5  # a median is of at least so many
# Where other people's work runs beside the measurement: a real-time class keeps it off our cores.
REALTIME = ["chrt", "--rr", "1"] if os.environ.get("SHADOWSERVE_BENCH_REALTIME") else []


class Skip(Exception):
    """This machine cannot run the part; the text says what it needs."""


class Wrong(Exception):
    """A result is wrong (not slow): the one thing that makes a benchmark fail."""


@dataclass(frozen=True)
class Figure:
    """One row of the goals' table. met: None when this run could not show it, as note says."""

    number: str  # "1" .. "13", "9b"
    what: str
    goal: str
    measured: str
    met: bool | None
    note: str = ""


@dataclass(frozen=True)
class Plot:
    """A picture that a part drew; name is the file's without suffix (plots.save)."""

    name: str
    caption: str


def summary(values: Iterable[float]) -> dict[str, Any]:
    """Median and spread of repeated runs, with the runs themselves."""
    runs = sorted(values)
    if not runs:
        raise ValueError("no runs to summarise")
    quarter = len(runs) // 4
    return {
        "median": statistics.median(runs),
        "min": runs[0],
        "max": runs[-1],
        "quartiles": [runs[quarter], runs[-1 - quarter]],
        "runs": runs,
    }


def spread(stat: dict[str, Any]) -> str:
    """How far the runs lie apart, in percent of the median: half the distance of the quartiles."""
    low, high = stat["quartiles"]
    return f"±{50 * (high - low) / stat['median']:.0f} %" if stat["median"] else "±0 %"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def proc_field(file: str, name: str) -> str:
    for line in Path(file).read_text().splitlines():
        if line.split(":", 1)[0].strip() == name:
            return line.split(":", 1)[1].strip()
    return ""


def machine() -> dict[str, Any]:
    def git(*words: str) -> str:
        run = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return run.stdout.strip()

    present = set(f"{proc_field('/proc/cpuinfo', 'flags')} ".split())
    present |= set(proc_field("/proc/cpuinfo", "Features").split())
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "daemon", "python")
    memory_kib = int(proc_field("/proc/meminfo", "MemTotal").split()[0])
    return {
        "cpu": proc_field("/proc/cpuinfo", "model name") or platform.machine(),
        "family": proc_field("/proc/cpuinfo", "cpu family"),
        "flags": [flag for flag in CPU_FLAGS if flag in present],
        "cores": len(CORES),
        "memory_gib": round(memory_kib / 2**20, 1),
        "kernel": platform.release().split("-")[0],
        "virtual": "hypervisor" in present,
        "load_before": os.getloadavg()[0],
        "commit": git("rev-parse", "--short", "HEAD") + ("+" if changed else ""),
        "date": time.strftime("%Y-%m-%d"),
    }


def pinned(*cores: int) -> list[str]:
    """What a command is put behind to run on these cores alone."""
    return [*REALTIME, "taskset", "-c", ",".join(map(str, sorted(set(cores))))]


def run_json(*command: str | Path, timeout: float = 900, cores: Sequence[int] = ()) -> Any:
    """Runs a program on the last core (or on cores) and returns the JSON that it prints."""
    result = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        text=True,
        timeout=timeout,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores or CORES[-1:]),
    )
    return json.loads(result.stdout)


def model_folder(name: str) -> Path:
    """models/NAME, or where SHADOWSERVE_MODEL_<NAME without dashes> says."""
    variable = "SHADOWSERVE_MODEL_" + name.replace("-", "").upper()
    folder = Path(os.environ.get(variable, ROOT / "models" / name))
    if not (folder / "config.json").exists():
        raise Skip(f"no model in {folder}: a folder with config.json is needed ({variable} names)")
    return folder
