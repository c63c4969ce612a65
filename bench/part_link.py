# SPDX-License-Identifier: Apache-2.0
"""Part `link`: a real Redis behind a shaped link, the data plane on one core or two, KV of
Llama-3-8B's shape into host memory. How much of the link is filled, what is delivered, what it
costs, and what each half of the pipeline gains.
"""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from link_rig import HOST, PLANE, REALTIME, LinkDaemon, LinkRedis, Load, Meter, iperf, receive
from netns import Host, Network, why_not
from part import CORES, RUNS, Figure, Plot, Skip, Wrong, run_json, spread, summary, table
from servers import BUILD

TITLE = "the share of a link that is filled, and what is delivered"
BUDGET_S = 330
QUICK_S = 30

TIERS = ("lossless", "high", "standard", "compact")
RATES = (1, 5, 10, 20, 40, None)  # Gbit/s; None: as the machine is
TWO_CORES_FROM = 10.0
UNSHAPED_GUESS = 45.0  # for the length of a round only
ROUND_S = 0.3
LAYERS, CHUNKS, BATCH, AHEAD = 32, 8, 8, 2
PAPER_GBIT = 20.6  # ShadowServe (arXiv 2509.16857), BlueField-3, whole pipeline: the paper's figure

# Ablations: daemon keys, and options of the store.
ABLATIONS: dict[str, tuple[dict[str, str], str]] = {
    "all of it": ({}, "lanes=4"),
    "a chunk at a time is decoded": ({"overlap": "chunk"}, "lanes=4"),
    "received, then decoded": ({"overlap": "none"}, "lanes=4"),
    "one lane, one chunk in flight": ({"lanes": "1"}, "lanes=1&pipeline=1"),
    "whole values instead of pieces": ({}, "lanes=4&range=0"),
}
ABLATION_TIERS = ("lossless", "standard")
ABLATION_RATES = (10, 20, None)


def rate_name(rate: float | None) -> str:
    return "unshaped" if rate is None else f"{rate:g}"


def requests(rate: float | None, request_bytes: int, seconds: float) -> int:
    """Requests that fill this many seconds at this rate."""
    return max(1, math.ceil((rate or UNSHAPED_GUESS) * 1e9 / 8 * seconds / request_bytes))


def decode_limits() -> dict[str, float]:
    """GB/s of KV that one core decodes from memory, checks included: the other half of the roof."""
    limits = {}
    program = str(BUILD / "cli" / "shadowserve")
    for tier in TIERS:
        command = (*REALTIME, program, "bench", "codec", "--json", "--tier", tier, "--codec", "r16")
        rounds = [run_json(*command, "--time", "60") for _ in range(RUNS)]
        limits[tier] = statistics.median(row["results"][0]["decode_gb_s"] for row in rounds)
    return limits


class Bench:
    """The rig of a run: a network with one Redis, and daemons with a load each, made on demand."""

    def __init__(self, out: Path, quick: bool) -> None:
        self.out, self.quick = out, quick
        self.layers = 4 if quick else LAYERS
        self.stack = ExitStack()
        self.loads: dict[str, Load] = {}
        self.value_bytes: dict[str, int] = {}
        self.values: list[tuple[str, int]] = []

    def __enter__(self) -> Bench:
        try:
            self.network = self.stack.enter_context(Network())
            self.host: Host = self.network.add()
            self.network.join(self.host)
            self.redis = LinkRedis(self.out / "redis", self.host)
            self.stack.callback(self.redis.stop)
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        self.stack.close()

    def load(self, name: str, cores: Sequence[int], store: str, **keys: str) -> Load:
        if name not in self.loads:
            folder = f"daemon-{len(self.loads)}"
            daemon = LinkDaemon(folder, self.out, self.network, store, cores, **keys)
            self.stack.callback(daemon.stop)
            load = Load(daemon, self.layers, CHUNKS, BATCH, AHEAD)
            self.stack.callback(load.stop)
            self.loads[name] = load
        return self.loads[name]

    def one_core(self) -> Load:
        return self.load("one", [PLANE], self.redis.uri())

    def two_cores(self) -> Load:
        return self.load("two", [PLANE, HOST], self.redis.uri())

    def fill(self) -> None:
        """Stores every tier's chunks and reads them back right."""
        load = self.one_core()
        for tier in TIERS:
            load("store", tier)
            answer = load("check", tier)
            if not answer["right"]:
                raise Wrong(f"{tier}: what was fetched is not what was stored: {answer}")
            sizes = [(key, self.redis.value_bytes(key)) for key in load("keys", tier)]
            self.value_bytes[tier] = sum(size for _, size in sizes) // len(sizes)
            self.values += sizes

    def warm(self, load: Load) -> None:
        load("fetch", "compact", 2 * AHEAD, 1)

    def round(self, load: Load, tier: str, rate: float | None, seconds: float) -> dict[str, Any]:
        count = requests(rate, BATCH * self.value_bytes[tier], seconds)
        pids = {"plane": load.daemon.process.pid, "redis": self.redis.process.pid}
        meter = Meter(**pids, load=load.process.pid)
        meter.begin()
        taken: dict[str, Any] = load("fetch", tier, count, 1)["rounds"][0]
        return {**taken, **meter.end()}


def measure_links(bench: Bench, runs: int, seconds: float) -> dict[str, Any]:
    """Every rate: the yardsticks and every tier, in turn, runs times."""
    rates = (5, None) if bench.quick else RATES
    cells: list[dict[str, Any]] = []
    yardsticks = []
    for rate in rates:
        bench.host.shape(rate)
        contenders: list[tuple[str, int, Callable[[], Load]]] = []
        for tier in TIERS:
            contenders.append((tier, 1, bench.one_core))
            if rate is None or rate >= TWO_CORES_FROM:
                contenders.append((tier, 2, bench.two_cores))
        found: list[list[dict[str, Any]]] = [[] for _ in contenders]
        plain: list[dict[str, Any]] = []
        round_bytes = int((rate or UNSHAPED_GUESS) * 1e9 / 8 * seconds)
        stream = None if bench.quick else iperf(bench.network, bench.host, 1)
        for _, _, load in contenders:
            bench.warm(load())
        for _ in range(runs):
            plain.append(receive(bench.network, bench.host, bench.values, round_bytes))
            for (tier, _, load), rounds in zip(contenders, found, strict=True):
                rounds.append(bench.round(load(), tier, rate, seconds))
        dropped = bench.host.dropped()
        yardsticks.append({"rate": rate, "rounds": plain, "iperf": stream, "dropped": dropped})
        cells += [
            {"rate": rate, "tier": tier, "cores": cores, "rounds": rounds}
            for (tier, cores, _), rounds in zip(contenders, found, strict=True)
        ]
    return {"yardsticks": yardsticks, "cells": cells}


def measure_ablations(bench: Bench, runs: int, seconds: float) -> list[dict[str, Any]]:
    answers = []
    for rate in (None,) if bench.quick else ABLATION_RATES:
        bench.host.shape(rate)
        for tier in ABLATION_TIERS[-1:] if bench.quick else ABLATION_TIERS:
            loads = {}
            for name, (keys, options) in ABLATIONS.items():
                loads[name] = bench.load(name, [PLANE], bench.redis.uri(options), **keys)
                bench.warm(loads[name])
            rounds: dict[str, list[Any]] = {name: [] for name in loads}
            for _ in range(runs):
                for name, load in loads.items():
                    rounds[name].append(bench.round(load, tier, rate, seconds))
            answers.append({"rate": rate, "tier": tier, "rounds": rounds})
    return answers


def run(out: Path, quick: bool) -> dict[str, Any]:
    reason = why_not()
    if reason:
        raise Skip(reason)
    if HOST == PLANE:
        raise Skip("needs two cores: one for Redis and the kernel, one for the data plane")
    if not shutil.which("redis-server"):
        raise Skip("needs redis-server (Debian: redis-server)")
    runs, seconds = (1, 0.1) if quick else (RUNS, ROUND_S)
    with Bench(out, quick) as bench:
        bench.fill()
        data = measure_links(bench, runs, seconds)
        data["ablations"] = measure_ablations(bench, runs, seconds)
        stat = bench.one_core().daemon.stat()
        data |= {
            "layers": bench.layers,
            "chunks": CHUNKS,
            "in_flight": BATCH * AHEAD,
            "kv_bytes": bench.layers << 20,
            "value_bytes": bench.value_bytes,
            "realtime": bool(REALTIME),
            "stat": stat,
        }
    data["decode_gb_s"] = decode_limits()
    data["cores"] = len(CORES)
    return data


# ---- what the data say ---------------------------------------------------------------------------


def gbit(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return summary(row["wire_bytes"] * 8e-9 / row["seconds"] for row in rounds)


def kv_rate(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return summary(row["kv_bytes"] / 1e9 / row["seconds"] for row in rounds)


def full(data: dict[str, Any], rate: float | None) -> float:
    """What the plain receive loop got from this link: 100 %."""
    for row in data["yardsticks"]:
        if row["rate"] == rate:
            return float(gbit(row["rounds"])["median"])
    raise KeyError(rate)


def cell(data: dict[str, Any], rate: float | None, tier: str, cores: int) -> list[Any] | None:
    for row in data["cells"]:
        if (row["rate"], row["tier"], row["cores"]) == (rate, tier, cores):
            rounds: list[Any] = row["rounds"]
            return rounds
    return None


def share(data: dict[str, Any], rate: float | None, tier: str, cores: int = 1) -> float | None:
    rounds = cell(data, rate, tier, cores)
    return gbit(rounds)["median"] / full(data, rate) if rounds else None


def loop_cost(rounds: Sequence[dict[str, Any]]) -> float:
    """Seconds of a core that the plain loop takes a GB."""
    taken = sum(row["user_s"] + row["sys_s"] for row in rounds)
    return float(taken / (sum(row["wire_bytes"] for row in rounds) / 1e9))


def receive_limit(data: dict[str, Any]) -> float:
    """GB of wire bytes that one core receives in a second of its time, from the plain loop."""
    rows = [row for one in data["yardsticks"] if one["rate"] is None for row in one["rounds"]]
    return statistics.median(1 / loop_cost([row]) for row in rows)


def roof(data: dict[str, Any], tier: str) -> float:
    """Wire GB/s at which one core that receives and decodes is full."""
    ratio = data["kv_bytes"] / data["value_bytes"][tier]
    return float(1 / (1 / receive_limit(data) + ratio / data["decode_gb_s"][tier]))


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def figure_6(data: dict[str, Any]) -> list[Figure]:
    rows = []
    low = [(share(data, rate, tier), rate, tier) for rate in (1, 5, 10) for tier in TIERS]
    shown = [entry for entry in low if entry[0] is not None]
    if shown:
        least = min(shown, key=lambda entry: entry[0] or 0)
        rows.append(
            Figure(
                "6",
                "link filled at 1, 5, 10 Gbit/s, every tier, data plane on one core",
                ">= 95 %",
                f"{percent(least[0])} at the least ({least[2]}, {least[1]} Gbit/s)",
                (least[0] or 0) >= 0.95,
            )
        )
    for tier, goal in (("lossless", 0.9), ("standard", 0.7)):
        got = share(data, 20, tier)
        if got is not None:
            what = f"link filled at 20 Gbit/s, {tier}"
            note = f"roof of one core here: {roof(data, tier) * 8:.1f} Gbit/s"
            rows.append(
                Figure("6", what, f">= {100 * goal:.0f} %", percent(got), got >= goal, note)
            )
    return rows


def figure_7(data: dict[str, Any]) -> list[Figure]:
    rows = []
    gains = []
    for rate in (1, 5, 10):
        rounds = cell(data, rate, "standard", 1)
        if rounds:
            gains.append((kv_rate(rounds)["median"] / (full(data, rate) / 8), rate))
    if gains:
        least, rate = min(gains)
        what = "KV delivered a second, times the link's bytes, standard, 1 to 10 Gbit/s"
        measured = f"{least:.2f} at the least ({rate} Gbit/s)"
        rows.append(Figure("7", what, ">= 3.8", measured, least >= 3.8))
    rounds = cell(data, 20, "standard", 1)
    if rounds:
        got = kv_rate(rounds)["median"]
        what = "KV delivered a second at 20 Gbit/s, standard"
        rows.append(Figure("7", what, ">= 7 GB/s", f"{got:.2f} GB/s", got >= 7))
    return rows


def ablation_gain(data: dict[str, Any], name: str) -> tuple[float, str]:
    """The largest gain of the whole over this ablation, and where it was seen."""
    best = (0.0, "")
    for row in data["ablations"]:
        whole = kv_rate(row["rounds"]["all of it"])["median"]
        without = kv_rate(row["rounds"][name])["median"]
        best = max(best, (whole / without, f"{row['tier']}, {rate_name(row['rate'])}"))
    return best


def figures(data: dict[str, Any]) -> list[Figure]:
    rows = figure_6(data) + figure_7(data)
    for name in list(ABLATIONS)[1:]:
        gain, where = ablation_gain(data, name)
        if gain:
            what = f'gain over "{name}", KV a second'
            rows.append(Figure("11", what, "> 1", f"{gain:.2f} x ({where})", gain > 1.02))
    return rows


def seconds_per_gb(rounds: Sequence[dict[str, Any]], name: str, unit: str = "kv_bytes") -> float:
    return float(sum(row[name] for row in rounds) / (sum(row[unit] for row in rounds) / 1e9))


def yardstick_rows(row: dict[str, Any]) -> list[list[object]]:
    loop, rate = gbit(row["rounds"]), rate_name(row["rate"])
    cost = f"{loop_cost(row['rounds']):.3f} a GB of wire"
    got = f"{loop['median']:.2f} {spread(loop)}"
    rows: list[list[object]] = [[rate, "plain receive loop", "1", got, "100 %", "", cost, "", ""]]
    if row["iperf"]:
        of = percent(row["iperf"] / loop["median"])
        rows.append([rate, "iperf3", "1", f"{row['iperf']:.2f}", of, "", "", "", ""])
    return rows


def cell_row(one: dict[str, Any], loop: float) -> list[object]:
    rounds = one["rounds"]
    wire, kv = gbit(rounds), kv_rate(rounds)
    plane, redis = (
        " + ".join(f"{seconds_per_gb(rounds, f'{name}_{kind}_s'):.3f}" for kind in ("user", "sys"))
        for name in ("plane", "redis")
    )
    return [
        rate_name(one["rate"]),
        one["tier"],
        one["cores"],
        f"{wire['median']:.2f} {spread(wire)}",
        percent(wire["median"] / loop),
        f"{kv['median']:.2f}",
        plane,
        redis,
        f"{seconds_per_gb(rounds, 'host_core_soft_s'):.3f}",
    ]


def link_table(data: dict[str, Any]) -> str:
    rows = []
    for row in data["yardsticks"]:
        rows += yardstick_rows(row)
        loop = full(data, row["rate"])
        rows += [cell_row(one, loop) for one in data["cells"] if one["rate"] == row["rate"]]
    head = ["Gbit/s", "tier", "cores", "wire Gbit/s", "of the plain loop", "KV GB/s"]
    head += ["plane: user + sys s a GB of KV", "Redis: user + sys s", "soft interrupts s"]
    return table(head, rows)


def roof_table(data: dict[str, Any]) -> str:
    rows = []
    for tier in TIERS:
        ratio = data["kv_bytes"] / data["value_bytes"][tier]
        top = roof(data, tier)
        got = gbit(cell(data, None, tier, 1) or [])["median"]
        numbers = (data["decode_gb_s"][tier], top * 8, top * ratio, got)
        cells = [f"{number:.1f}" for number in numbers]
        rows.append([tier, f"{ratio:.2f}", *cells, percent(got / (top * 8))])
    head = ["tier", "ratio", "decode GB/s of KV", "roof Gbit/s", "roof GB/s of KV"]
    return table([*head, "measured Gbit/s, unshaped", "of the roof"], rows)


def ablation_table(data: dict[str, Any]) -> str:
    rows = []
    for row in data["ablations"]:
        whole = kv_rate(row["rounds"]["all of it"])["median"]
        for name in ABLATIONS:
            kv = kv_rate(row["rounds"][name])
            got, of = f"{kv['median']:.2f} {spread(kv)}", f"{kv['median'] / whole:.2f}"
            rows.append([rate_name(row["rate"]), row["tier"], name, got, of])
    return table(["Gbit/s", "tier", "what", "KV GB/s", "of the whole"], rows)


def tables(data: dict[str, Any]) -> str:
    how = f"""One real Redis on core {HOST} in a network namespace of its own, one daemon in
another, joined by a veth pair (MTU 9000) that tbf shapes. Chunks of {data["layers"]} layers x 8
heads x 128, bf16, 256 tokens ({data["kv_bytes"] >> 20} MiB), {data["in_flight"]} in flight, into a
memfd of the client. The link's 100 % is a plain receive loop of the same values in the same rounds;
what it throws away the daemon checks, decodes and delivers. With 2 cores the second worker shares
Redis's core. Processor times are of whole processes; soft interrupts are of core {HOST}."""
    if data["realtime"]:
        how += " All of it ran in the real-time class (`chrt --rr 1`): the machine was busy."
    about_roof = f"""The roof of one core: the plain loop receives {receive_limit(data):.2f} GB in a
second of its core; `bench codec` decodes as below; a core that does both in turn moves
1 / (1 / receive + ratio / decode) of wire bytes."""
    about = "Ablations, one core, each beside the whole in the same rounds."
    parts = (how, link_table(data), about_roof, roof_table(data), about, ablation_table(data))
    return "\n".join(f"{part.rstrip()}\n" for part in parts)


# ---- the picture ---------------------------------------------------------------------------------


def plots(data: dict[str, Any], folder: Path) -> list[Plot]:
    import plots as style

    rates = [row["rate"] for row in data["yardsticks"]]
    wire = [rate or full(data, None) for rate in rates]
    labels = [f"{rate:g}" if rate else f"unshaped\n({full(data, None):.0f})" for rate in rates]
    drawn, (left, right) = style.figure(9.6, 4.0, columns=2)
    for tier in TIERS:
        shares = [100 * (share(data, rate, tier) or math.nan) for rate in rates]
        left.plot(range(len(rates)), shares, "o-", color=style.colour(tier), label=tier)
        speeds = [kv_rate(cell(data, rate, tier, 1) or [])["median"] for rate in rates]
        right.plot(wire, speeds, "o-", color=style.colour(tier), label=tier)
        ratio = data["kv_bytes"] / data["value_bytes"][tier]
        top = roof(data, tier) * ratio
        ends = (roof(data, tier) * 8, max(wire) * 1.15)
        right.plot(ends, (top, top), ":", color=style.colour(tier), linewidth=1)
    left.axhline(100, color=style.colour("limit"), linewidth=0.8)
    left.set_xticks(range(len(rates)), labels)
    left.set_ylim(0, 108)
    left.set(xlabel="link, Gbit/s", ylabel="of the link filled, %")
    left.set_title("Share of the link, data plane on one core")
    left.legend(loc="lower left", title="tier")
    raw = [rate / 8 for rate in wire]
    right.plot(wire, raw, "--", color=style.colour("raw"), label="uncompressed KV at link rate")
    right.axvline(PAPER_GBIT, color=style.colour("other"), linewidth=1)
    right.text(
        PAPER_GBIT * 0.96,
        min(raw) * 1.1,
        f"ShadowServe paper, BlueField-3:\n{PAPER_GBIT} Gbit/s (their figure)",
        **{"fontsize": 7, "rotation": 90, "ha": "right", "va": "bottom", "color": "#495057"},
    )
    right.plot([], [], ":", color=style.colour("limit"), label="roof: one core receives + decodes")
    right.set(xscale="log", yscale="log", xlabel="link, Gbit/s", ylabel="KV delivered, GB/s")
    right.set_xticks(wire, [label.split("\n")[0] for label in labels])
    right.minorticks_off()
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if tick < 12]
    right.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    right.set_title("KV delivered into host memory")
    right.legend(loc="upper left")
    style.save(drawn, folder, "link")
    return [
        Plot(
            "link",
            "Chunks of Llama-3-8B's shape from a real Redis over a shaped link into host memory, "
            "the data plane on one core. Left: how much of the link is filled (100 %: a plain "
            "receive loop that discards the same values). Right: KV delivered a second; dotted, "
            "where one core that receives and decodes is full.",
        )
    ]
