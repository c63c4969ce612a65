# SPDX-License-Identifier: Apache-2.0
"""Part `path`: what the hot path copies, allocates and asks of the kernel for a chunk (figure 10).

A real daemon fetches chunks of Llama-3-8B's shape into shared memory; each run is between a
`stat --reset` and the next. A malloc that counts by thread is preloaded into the daemon. Whether
the trace costs anything is seen beside a daemon that keeps none, in turn.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from part import CORES, RUNS, Figure, Wrong, run_json, summary, table
from servers import BUILD, Daemon, Redis

TITLE = "what a chunk costs on its way: copies, allocations, system calls, switches"
BUDGET_S = 120
QUICK_S = 6
COUNTER = BUILD / "tests" / "daemon" / "malloc_count.so"
PROGRAM = BUILD / "cli" / "shadowserve"
CONTENDERS = (
    ("redis", "lossless", True),
    ("redis", "standard", True),
    ("redis", "standard", False),
    ("file", "standard", True),
)
WAITS = ("wait_worker", "wait_lane", "wait_slots", "get", "wait_decode")
WORK = ("receive", "open", "decode", "deliver")


class Counted(Daemon):
    """A daemon under a malloc that counts."""

    def __init__(self, folder: Path, store: str, tier: str, trace: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        counts = folder / "allocations"
        counts.write_bytes(bytes(4096))
        added = {"LD_PRELOAD": str(COUNTER), "MALLOC_COUNT_FILE": str(counts)}
        kept = {name: os.environ.get(name) for name in added}
        os.environ.update(added)
        try:
            keep = "yes" if trace else "no"
            super().__init__(folder, store, CORES[:1], tier, f"--trace={keep}")
        finally:
            for name, value in kept.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def reset(self) -> None:
        command = [str(PROGRAM), "stat", "--reset", "--json", "--socket", str(self.socket)]
        subprocess.run(command, check=True, timeout=30, stdout=subprocess.DEVNULL)


def one_run(daemon: Counted, layers: int, count: int) -> dict[str, Any]:
    fetch = ["bench", "fetch", "--json", "--socket", str(daemon.socket), "--layers", str(layers)]
    run_json(PROGRAM, *fetch, "--count", "8", "--made-up", "8")  # stored, warm
    daemon.reset()
    run_json(PROGRAM, *fetch, "--count", str(count), "--made-up", "8")
    stat = daemon.stat()
    path, worker = stat["path"], stat["threads"][0]
    if path["chunks_fetched"] < count or path["bytes"]["decoded_per_delivered"] != 1:
        raise Wrong(f"{path['chunks_fetched']} chunks fetched of {count}: {path['bytes']}")
    return {"path": path, "worker": worker, "control": stat["threads"][-1]}


def run(out: Path, quick: bool) -> dict[str, Any]:
    layers, count, runs = (8, 16, 1) if quick else (32, 48, RUNS)
    answers: list[dict[str, Any]] = []
    daemons: list[Counted] = []
    redis = Redis(out / "redis")
    try:
        for store, tier, trace in CONTENDERS:
            uri = redis.uri if store == "redis" else f"file:{out / 'store'}"
            folder = out / f"{store}-{tier}-{'trace' if trace else 'no-trace'}"
            daemons.append(Counted(folder, uri, tier, trace))
            answers.append({"store": store, "tier": tier, "trace": trace, "runs": []})
        for _ in range(runs):
            for daemon, answer in zip(daemons, answers, strict=True):
                answer["runs"].append(one_run(daemon, layers, count))
    finally:
        for daemon in daemons:
            daemon.stop()
        redis.stop()
    return {"layers": layers, "count": count, "contenders": answers}


def each(answer: dict[str, Any], value: Any) -> dict[str, Any]:
    return summary(value(run) for run in answer["runs"])


def cost_of_trace(data: dict[str, Any]) -> dict[str, Any]:
    """Processor time with the trace over that without, run by run."""
    chosen = [a for a in data["contenders"] if (a["store"], a["tier"]) == ("redis", "standard")]
    on, off = ([r["worker"]["cpu_us"] for r in a["runs"]] for a in chosen)
    return summary(100 * (a / b - 1) for a, b in zip(on, off, strict=True))


def figures(data: dict[str, Any]) -> list[Figure]:
    paths = [run["path"] for answer in data["contenders"] for run in answer["runs"]]
    staged = max(path["bytes"]["staged_per_delivered"] for path in paths)
    header = max(path["bytes"]["header"] / path["chunks_fetched"] for path in paths)
    counted = [path["allocations"] for path in paths]
    known = all(value is not None for value in counted)
    allocations = max(value or 0 for value in counted)
    measured = f"{staged:g} staged bytes a byte, {allocations} mallocs"
    met = (staged == 0 and allocations == 0) if known else None
    note = f"bytes that came with a reply's header are copied once more: {header:.0f} a chunk"
    if not known:
        note = "allocations were not counted: built without tests"
    goal = "0 staging copies beyond the socket's own; 0 mallocs"
    return [Figure("10", "copies and mallocs on the fetch path", goal, measured, met, note)]


def tables(data: dict[str, Any]) -> str:
    count = data["count"]
    rows = []
    for a in data["contenders"]:

        def per_chunk(value: Any, of: dict[str, Any] = a) -> str:
            stat = each(of, lambda run: value(run) / run["path"]["chunks"])
            return f"{stat['median']:.2f}"

        rows.append(
            (
                f"`{a['store']}:` {a['tier']}" + ("" if a["trace"] else ", no trace"),
                f"{each(a, lambda r: r['path']['bytes']['staged'])['max']:.0f}",
                per_chunk(lambda r: r["path"]["bytes"]["header"]),
                f"{each(a, lambda r: r['path']['allocations'] or 0)['max']:.0f}",
                per_chunk(lambda r: r["path"]["calls"]["receive"] + r["path"]["calls"]["read"]),
                per_chunk(lambda r: r["path"]["calls"]["all"]),
                per_chunk(lambda r: r["path"]["control_calls"]["all"]),
                per_chunk(lambda r: r["worker"]["switches_voluntary"]),
                per_chunk(lambda r: r["worker"]["switches_involuntary"]),
                per_chunk(lambda r: r["worker"]["cpu_us"] / 1000),
            )
        )
    head = (
        "store, tier",
        "bytes staged",
        "header bytes a chunk",
        "mallocs",
        "receive, read a chunk",
        "calls a chunk, worker",
        "control",
        "switches a chunk, voluntary",
        "involuntary",
        "worker ms a chunk",
    )
    stages = []
    for a in data["contenders"]:
        cells = [f"`{a['store']}:` {a['tier']}" + ("" if a["trace"] else ", no trace")]
        for name in (*WAITS, *WORK):
            stage = [run["path"]["stages"][name] for run in a["runs"]]
            mean = summary(s["sum_us"] / s["count"] if s["count"] else 0 for s in stage)
            worst = summary(s["p99_us"] for s in stage)
            cells.append(f"{mean['median']:.0f} / {worst['median']:.0f}")
        stages.append(tuple(cells))
    trace = cost_of_trace(data)
    return (
        f"{count} chunks of {data['layers']} layers (8 heads of 128, bf16) a run, median of "
        f"{len(data['contenders'][0]['runs'])} runs; bytes staged and mallocs: the most of any.\n\n"
        + table(head, rows)
        + "\nTime of each stage and wait in us, mean / p99:\n\n"
        + table(("store, tier", *WAITS, *WORK), stages)
        + f"\nThe trace costs {trace['median']:+.2f} % of the worker's processor time "
        f"({spread_of(trace)}).\n"
    )


def spread_of(stat: dict[str, Any]) -> str:
    return f"runs {stat['min']:+.1f} to {stat['max']:+.1f} %"
