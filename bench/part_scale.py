# SPDX-License-Identifier: Apache-2.0
"""Part `scale`: does anything grow faster than its input?

Keys in a store against the cost of a look-up and the store's memory (bench_keys, straight on the
store); chunks of a request and sessions of a daemon against the daemon's processor time and memory
(a real daemon on memory:, chunks of 16 KiB so that nothing but the number counts).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from part import CORES, RUNS, Figure, Plot, Wrong, proc_field, run_json, summary, table
from servers import BUILD, Daemon, Redis

TITLE = "what grows with keys, chunks and sessions"
BUDGET_S = 120
QUICK_S = 3

KEY_COUNTS = (100, 1000, 10_000, 100_000, 1_000_000)
FILE_KEYS_MAX = 100_000  # a file each
CHUNKS = (1, 4, 16, 64, 256, 1024, 4096, 8192)  # of a prompt; a request takes 4,096 keys
DAEMON_OPTIONS = ("--sessions", "128", "--regions", "128", "--lookup-deadline-ms", "60000")
SESSIONS = (1, 2, 4, 8, 16, 32, 64)
SESSION_REQUESTS = 640  # of all sessions together
SESSION_CHUNKS = 4
GROWTH_MAX = 1.15  # exponent of the whole cost; caches alone cost a little more than 1


def keys_cost(out: Path, quick: bool) -> dict[str, Any]:
    counts = [n for n in KEY_COUNTS if not quick or n <= 10_000]
    rounds, lookups = ("1", "5000") if quick else (str(RUNS), "20000")
    folder = out / "keys"
    shutil.rmtree(folder, ignore_errors=True)
    stores = {"memory": "memory:keys", "file": f"file:{folder}?sync=none"}
    redis = Redis(out / "redis")
    stores["redis"] = redis.uri
    found: dict[str, Any] = {}

    def redis_kib() -> int:
        return int(proc_field(f"/proc/{redis.process.pid}/status", "VmRSS").split()[0])

    try:
        for name, uri in stores.items():
            held = [str(n) for n in counts if name != "file" or n <= FILE_KEYS_MAX]
            rows = run_json(BUILD / "bench" / "bench_keys", uri, rounds, lookups, *held)
            for row in rows:
                look_ups = row.pop("lookup")
                row["cpu_ns"] = summary(cpu for cpu, _ in look_ups)
                row["wall_ns"] = summary(wall for _, wall in look_ups)
            found[name] = rows
            if name == "redis":
                rows[-1]["server_kib"] = redis_kib()
    finally:
        redis.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return found


@contextmanager
def daemon_on_memory(out: Path) -> Iterator[Daemon]:
    folder = out / "daemon"
    shutil.rmtree(folder, ignore_errors=True)
    daemon = Daemon(folder, "memory:scale", CORES[-1:], "standard", *DAEMON_OPTIONS)
    try:
        yield daemon
    finally:
        daemon.stop()


def chunks_cost(out: Path, quick: bool) -> list[dict[str, Any]]:
    import scale_engine as scale

    counts = [n for n in CHUNKS if not quick or n <= 64]
    most, runs = counts[-1], 1 if quick else RUNS
    rows = []
    with daemon_on_memory(out) as daemon:
        engine = scale.Engine(daemon, most)
        engine.store(scale.keys(0, most))
        for count in counts:
            looking, fetching = engine.look_up_all(count), engine.fetch_all(count)
            repeats = max(1, 64 // count)
            row: dict[str, Any] = {"chunks": count}
            for name, requests in (("lookup", looking), ("fetch", fetching)):
                engine.serve(requests, 1)
                costs = [scale.cost(daemon, engine, requests, repeats) for _ in range(runs)]
                row[f"{name}_cpu_ns"] = summary(cpu / repeats for cpu, _ in costs)
                row[f"{name}_wall_ns"] = summary(wall / repeats for _, wall in costs)
            rows.append(row)
        engine.close()
    return rows


def sessions_cost(out: Path, quick: bool) -> list[dict[str, Any]]:
    import scale_engine as scale

    counts = [n for n in SESSIONS if not quick or n <= 4]
    runs = 1 if quick else RUNS
    rows = []
    with daemon_on_memory(out) as daemon:
        engines = scale.Engines(daemon, SESSION_CHUNKS)
        for count in counts:
            engines.grow(count)
            rounds = max(1, SESSION_REQUESTS // count)
            requests = engines.all[0].fetch_all(SESSION_CHUNKS)
            engines.serve(requests, 1)
            costs = [scale.cost(daemon, engines, requests, rounds) for _ in range(runs)]
            status = f"/proc/{daemon.process.pid}/status"
            rows.append(
                {
                    "sessions": count,
                    "cpu_ns": summary(cpu / rounds / count for cpu, _ in costs),
                    "wall_ns": summary(wall / rounds / count for _, wall in costs),
                    "resident_kib": int(proc_field(status, "VmRSS").split()[0]),
                }
            )
        engines.close()
    return rows


def run(out: Path, quick: bool) -> dict[str, Any]:
    try:
        keys = keys_cost(out, quick)
    except OSError as error:
        raise Wrong(f"bench_keys: {error}") from None
    return {
        "keys": keys,
        "chunks": chunks_cost(out, quick),
        "sessions": sessions_cost(out, quick),
    }


# ---- what is shown ------------------------------------------------------------------------------


def slope(points: list[tuple[float, float]]) -> float:
    """Exponent of the power that fits best, by least squares of the logarithms."""
    logs = [(math.log(x), math.log(y)) for x, y in points if y > 0]
    mean_x = sum(x for x, _ in logs) / len(logs)
    mean_y = sum(y for _, y in logs) / len(logs)
    spread = sum((x - mean_x) ** 2 for x, _ in logs)
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / spread if spread else 0.0


def curves(data: dict[str, Any]) -> dict[str, tuple[str, list[tuple[float, float]]]]:
    """Whole costs by their input: name -> (unit of the input, points). The least of the runs: other
    work on the machine can only add to one, and would bend the curves."""
    found = {}
    for store, rows in data["keys"].items():
        cost = [(r["keys"], r["keys"] * r["cpu_ns"]["min"]) for r in rows]
        found[f"looking every key up, `{store}:`"] = ("keys", cost)
    cost = [(r["keys"], float(r["resident_kib"])) for r in data["keys"]["memory"]]
    found["memory of `memory:`"] = ("keys", cost)
    for name in ("lookup", "fetch"):
        cost = [(r["chunks"], r[f"{name}_cpu_ns"]["min"]) for r in data["chunks"]]
        found[f"a {name} of so many chunks, daemon"] = ("chunks", cost)
    cost = [(r["sessions"], r["sessions"] * r["cpu_ns"]["min"]) for r in data["sessions"]]
    found["a fetch by every session, daemon"] = ("sessions", cost)
    cost = [(r["sessions"], float(r["resident_kib"])) for r in data["sessions"]]
    found["memory of the daemon"] = ("sessions", cost)
    return found


def upper(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The larger half of the inputs, where fixed costs do not hide the growth."""
    return points[len(points) // 2 :] if len(points) > 3 else points


def figures(data: dict[str, Any]) -> list[Figure]:
    return []


def tables(data: dict[str, Any]) -> str:
    rows = []
    for name, (unit, points) in curves(data).items():
        whole, top = slope(points), slope(upper(points))
        verdict = "no" if top <= GROWTH_MAX else "yes"
        span = f"{points[0][0]:,} to {points[-1][0]:,} {unit}"
        rows.append((name, span, f"{whole:.2f}", f"{top:.2f}", verdict))
    text = [
        "The exponent e of cost ~ n^e (least of the runs), over all n and over the upper half of "
        f"them; 1 is in proportion. *Faster than its input* is an upper exponent beyond "
        f"{GROWTH_MAX:g}: what does not fit the processor's caches costs a little more each.\n",
        table(("cost", "input n", "e", "e, upper half", "faster than its input"), rows),
        "One look-up, microseconds of the worker's processor time / of wall time:\n",
    ]
    counts = [r["keys"] for r in data["keys"]["memory"]]
    cells = []
    for store, found in data["keys"].items():
        each = {r["keys"]: r for r in found}
        cells.append(
            [f"`{store}:`"]
            + [
                " / ".join(f"{each[n][k]['median'] / 1e3:.2f}" for k in ("cpu_ns", "wall_ns"))
                if n in each
                else "-"
                for n in counts
            ]
        )
    text.append(table(("store", *(f"{n:,} keys" for n in counts)), cells))
    head = (
        "chunks",
        "look-up, us a chunk",
        "fetch, us a chunk",
        "wall, look-up, ms",
        "wall, fetch, ms",
    )
    lines = [
        (
            f"{r['chunks']:,}",
            *(f"{r[f'{k}_cpu_ns']['median'] / r['chunks'] / 1e3:.2f}" for k in ("lookup", "fetch")),
            *(f"{r[f'{k}_wall_ns']['median'] / 1e6:.2f}" for k in ("lookup", "fetch")),
        )
        for r in data["chunks"]
    ]
    text += ["A prompt of so many chunks of 16 KiB; processor time of the daemon:\n"]
    text.append(table(head, lines))
    titles = ("sessions", "us a fetch of 4 chunks", "daemon, MiB resident")
    per_session = [
        (r["sessions"], f"{r['cpu_ns']['median'] / 1e3:.1f}", f"{r['resident_kib'] / 1024:.1f}")
        for r in data["sessions"]
    ]
    text += ["All sessions fetch at once, round after round:\n", table(titles, per_session)]
    return "\n".join(text)


def plots(data: dict[str, Any], folder: Path) -> list[Plot]:
    import plots as style

    drawn, axes = style.figure(9.0, 3.4, columns=3)
    for axis, unit in zip(axes, ("keys", "chunks", "sessions"), strict=True):
        for name, (of, points) in curves(data).items():
            if of == unit:
                base = points[0][1]
                label = name.replace("`", "")
                axis.plot(*zip(*[(x, y / base) for x, y in points], strict=True), "o-", label=label)
                first = points[0][0]
                last = points[-1][0]
        axis.plot([first, last], [1, last / first], ":", color=style.colour("limit"), label="n")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel(unit)
        axis.legend(fontsize=6)
    axes[0].set_ylabel("cost, of that of the smallest")
    style.save(drawn, folder, "scale")
    return [Plot("scale", "Whole cost against input; nothing should be steeper than the dotted n.")]
