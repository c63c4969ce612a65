# SPDX-License-Identifier: Apache-2.0
"""make bench: runs the parts of the benchmark, keeps their raw JSON and writes docs/benchmarks.md.

Each part is a file part_NAME.py (bench/README.md) and runs as a process of its own, so that none
leaves threads, pinned cores or servers to the next. A part that is slow is slow; only wrong
results, and parts that hang or break, make the exit status 1. --quick (PART=smoke) runs small
versions of all parts and writes its page beside its JSON, not into docs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import page
from part import Skip, Wrong, machine
from servers import ROOT

PARTS = (
    *("codec", "quality", "link", "serve", "path", "scale"),
    *("stores", "fetch", "memory", "damage", "remote"),
)
OUT = ROOT / "build" / "bench"
QUICK_OUT = ROOT / "build" / "bench-quick"
HANG_FACTOR = 5  # a part that takes so many times its budget is ended
STOP_S = 20.0


def say(text: str) -> None:
    print(f"bench: {text}", flush=True)


def measure(name: str, out: Path, quick: bool) -> int:
    """Runs one part in this process and writes its JSON. 0, or 1 for a wrong result."""
    part: Any = importlib.import_module(f"part_{name}")
    command = "make bench PART=" + ("smoke" if quick else name)
    result: dict[str, Any] = {"part": name, "quick": quick, "command": command}
    result["machine"] = machine()
    folder = out / f"{name}.work"
    folder.mkdir(parents=True, exist_ok=True)
    start, status = time.monotonic(), 0
    try:
        result["data"] = part.run(folder, quick)
    except Skip as skip:
        result["skipped"] = str(skip)
        say(f"{name}: skipped: {skip}")
    except Wrong as wrong:
        result["wrong"] = str(wrong)
        say(f"{name}: WRONG RESULT: {wrong}")
        status = 1
    result["seconds"] = round(time.monotonic() - start, 1)
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    if "data" in result and not quick:  # goals are for the whole thing
        for row in part.figures(result["data"]):
            met = {True: "met", False: "NOT met", None: "not shown"}[row.met]
            say(f"figure {row.number}: {row.what}: {row.measured} (goal {row.goal}): {met}")
    return status


def stop_group(child: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(STOP_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
        return


def run_part(name: str, out: Path, quick: bool) -> bool:
    """Runs a part as a process; False when it broke, hung or found something wrong."""
    if not (Path(__file__).parent / f"part_{name}.py").exists():
        say(f"{name}: not in this checkout")
        return True
    part: Any = importlib.import_module(f"part_{name}")
    budget = part.QUICK_S if quick else part.BUDGET_S
    print(f"== {name}: {part.TITLE} (about {budget} s)", flush=True)
    (out / f"{name}.json").unlink(missing_ok=True)
    command = [sys.executable, __file__, "--measure", name, *(["--quick"] if quick else [])]
    child = subprocess.Popen(command, start_new_session=True)
    start = time.monotonic()
    try:
        status = child.wait(HANG_FACTOR * budget + 60)
    except subprocess.TimeoutExpired:
        say(f"{name}: ended after {time.monotonic() - start:.0f} s, {HANG_FACTOR} times its budget")
        stop_group(child)
        return False
    except KeyboardInterrupt:
        stop_group(child)
        raise
    say(f"{name}: {time.monotonic() - start:.0f} s")
    return status == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="PART", help=", ".join((*PARTS, "smoke")))
    parser.add_argument("--quick", action="store_true", help="small versions, as PART=smoke")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    parser.add_argument("--measure", metavar="PART", help=argparse.SUPPRESS)
    options = parser.parse_args()
    quick = options.quick or "smoke" in options.names
    out = QUICK_OUT if quick else OUT
    out.mkdir(parents=True, exist_ok=True)
    if options.measure:
        try:
            return measure(options.measure, out, quick)
        except Exception:
            traceback.print_exc()
            return 1
    names = [name for name in options.names if name != "smoke"]
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join((*PARTS, 'smoke'))}")
    wanted = () if options.page else names or PARTS
    failed = [name for name in wanted if not run_part(name, out, quick)]
    if quick:
        written = page.write(out, out / "benchmarks.md", out / "img")
    else:
        written = page.publish(out, [name for name in wanted if name not in failed])
    say(f"raw results: {out}; page: {written}")
    if failed:
        say(f"FAILED: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
