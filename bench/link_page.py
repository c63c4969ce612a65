# SPDX-License-Identifier: Apache-2.0
"""What the data of part `link` say: rows of the goals, tables, the picture. Measures nothing.

Names of tiers and ablations are read from the data, in the order they were measured; of the
contenders in a comparison the first is the whole.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from part import Figure, Plot, spread, summary, table

PAPER_GBIT = 20.6  # ShadowServe (arXiv 2509.16857), BlueField-3, whole pipeline: the paper's figure


def rate_name(rate: float | None) -> str:
    return "unshaped" if rate is None else f"{rate:g}"


def gbit(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return summary(row["wire_bytes"] * 8e-9 / row["seconds"] for row in rounds)


def kv_rate(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return summary(row["kv_bytes"] / 1e9 / row["seconds"] for row in rounds)


def full(data: dict[str, Any], rate: float | None) -> float:
    """What the plain receive loop got from this link in its best round: 100 %."""
    for row in data["yardsticks"]:
        if row["rate"] == rate:
            return float(gbit(row["rounds"])["max"])
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
    low = [
        (share(data, rate, tier), rate, tier) for rate in (1, 5, 10) for tier in data["value_bytes"]
    ]
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
        whole = kv_rate(next(iter(row["rounds"].values())))["median"]
        without = kv_rate(row["rounds"][name])["median"]
        best = max(best, (whole / without, f"{row['tier']}, {rate_name(row['rate'])}"))
    return best


def figure_10(data: dict[str, Any]) -> list[Figure]:
    paths = [row["path"] for row in data["paths"]]
    staged = max(path["bytes"]["staged_per_delivered"] for path in paths)
    what = "bytes copied through staging a byte delivered, into shared memory"
    rows = [Figure("10", what, "0", f"{staged:g}", staged == 0)]
    counts = [path["allocations"] for path in paths if path["allocations"] is not None]
    chunks = sum(path["chunks_fetched"] for path in paths)
    if counts:
        what = f"mallocs of the worker in {chunks} chunks"
        rows.append(Figure("10", what, "0", f"{sum(counts)}", sum(counts) == 0))
    return rows


def lanes_gain(data: dict[str, Any]) -> list[Figure]:
    rows: list[Figure] = []
    lanes = data["lanes"]
    if "skipped" in lanes:
        return rows
    where = f"{lanes['rate']} Gbit/s, {lanes['round_trip_ms']} ms"
    for row in lanes["cells"]:
        names = list(row["rounds"])
        speeds = [kv_rate(row["rounds"][name])["median"] for name in names]
        for name, speed in zip(names[1:], speeds[1:], strict=True):
            what = f"gain of {names[0]} over {name}, {where}"
            gain = speeds[0] / speed
            rows.append(Figure("11", what, "> 1", f"{gain:.2f} x ({row['tier']})", gain > 1.02))
    return rows


def figures(data: dict[str, Any]) -> list[Figure]:
    rows = figure_6(data) + figure_7(data) + figure_10(data)
    for name in list(data["ablations"][0]["rounds"])[1:]:
        gain, where = ablation_gain(data, name)
        if gain:
            what = f'gain over "{name}", KV a second'
            rows.append(Figure("11", what, "> 1", f"{gain:.2f} x ({where})", gain > 1.02))
    return rows + lanes_gain(data)


def seconds_per_gb(rounds: Sequence[dict[str, Any]], name: str, unit: str = "kv_bytes") -> float:
    return float(sum(row[name] for row in rounds) / (sum(row[unit] for row in rounds) / 1e9))


def yardstick_rows(row: dict[str, Any]) -> list[list[object]]:
    loop, rate = gbit(row["rounds"]), rate_name(row["rate"])
    cost = f"{loop_cost(row['rounds']):.3f} a GB of wire"
    got = f"{loop['median']:.2f} {spread(loop)}"
    rows: list[list[object]] = [
        [
            rate,
            "plain receive loop",
            "1",
            got,
            percent(loop["median"] / loop["max"]),
            "",
            cost,
            "",
            "",
        ]
    ]
    if row["iperf"]:
        of = percent(row["iperf"] / loop["max"])
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
    for tier in data["value_bytes"]:
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
        whole = kv_rate(next(iter(row["rounds"].values())))["median"]
        for name in row["rounds"]:
            kv = kv_rate(row["rounds"][name])
            got, of = f"{kv['median']:.2f} {spread(kv)}", f"{kv['median'] / whole:.2f}"
            rows.append([rate_name(row["rate"]), row["tier"], name, got, of])
    return table(["Gbit/s", "tier", "what", "KV GB/s", "of the whole"], rows)


def path_table(data: dict[str, Any]) -> str:
    """Where the worker's time went, by its own stages."""
    rows = []
    for row in data["paths"]:
        path, seconds = row["path"], row["round"]["seconds"]
        spent = {name: path["stages"][name]["sum_us"] / 1e6 for name in ("receive", "decode")}
        slept = path["stages"]["sleep"]["sum_us"] / 1e6
        rest = seconds - sum(spent.values()) - slept
        cells = [f"{100 * part / seconds:.0f} %" for part in (*spent.values(), slept, rest)]
        speeds = [
            path["bytes"]["received"] / 1e9 / spent["receive"],
            path["bytes"]["delivered"] / 1e9 / spent["decode"],
        ]
        calls = path["calls"]
        each = path["bytes"]["received"] / max(1, calls["receive"]) / 1024
        mallocs = path["allocations"]
        rows.append(
            [rate_name(row["rate"]), row["tier"], *cells]
            + [f"{speed:.1f}" for speed in speeds]
            + [f"{calls['per_chunk']:.0f}", f"{each:.0f}", f"{path['bytes']['staged']:g}"]
            + ["-" if mallocs is None else mallocs]
        )
    head = ["Gbit/s", "tier", "receive", "decode", "sleep", "rest", "receive GB/s of wire"]
    head += [
        "decode GB/s of KV",
        "system calls a chunk",
        "KiB a receive",
        "bytes staged",
        "mallocs",
    ]
    return table(head, rows)


def cluster_rows(data: dict[str, Any]) -> list[list[object]]:
    rows: list[list[object]] = []
    for row in data["cluster"]:
        links = row["nodes"] * row["rate"]
        for tier, rounds in row["tiers"].items():
            got, kv = gbit(rounds), kv_rate(rounds)
            wire = f"{got['median']:.2f} {spread(got)}"
            share_of = percent(got["median"] / links)
            rows.append([row["nodes"], links, tier, wire, share_of, f"{kv['median']:.2f}"])
    return rows


def cluster_table(data: dict[str, Any]) -> str:
    about = """Redis Cluster (`redis+cluster:`): each master in a namespace of its own behind its
own shaped link, all of them on one core, the data plane on the other. A request's chunks are spread
equally: the keys are chosen so.\n\n"""
    head = ["nodes", "Gbit/s of their links", "tier", "wire Gbit/s", "of the links", "KV GB/s"]
    return about + table(head, cluster_rows(data))


def lanes_table(data: dict[str, Any]) -> str:
    lanes = data["lanes"]
    if "skipped" in lanes:
        return f"Lanes on a link with a round trip: not measured, {lanes['skipped']}.\n"
    rows = []
    for row in lanes["cells"]:
        for name in row["rounds"]:
            got = gbit(row["rounds"][name])
            rows.append([row["tier"], name, f"{got['median']:.2f} {spread(got)}"])
    about = f"Lanes at {lanes['rate']} Gbit/s with a round trip of {lanes['round_trip_ms']} ms:\n\n"
    return about + table(["tier", "what", "wire Gbit/s"], rows)


def tables(data: dict[str, Any]) -> str:
    host = data["host_core"]
    how = f"""One real Redis on core {host} in a network namespace of its own, one daemon in
another, joined by a veth pair (MTU 9000) that tbf shapes. Chunks of {data["layers"]} layers
x 8 heads x 128, bf16, 256 tokens ({data["kv_bytes"] >> 20} MiB), {data["in_flight"]} in flight,
into a memfd of the client. The link's 100 % is the best round of a plain receive loop of
the same values in the same run (iperf3 ran once, before); what it throws away the daemon checks,
decodes and delivers. With 2 cores the second worker shares Redis's core. Processor times are of
whole processes; soft interrupts are of core {host}."""
    if data["realtime"]:
        how += """ All of it ran in the real-time class (`chrt --rr 1`), because the machine was
busy; the kernel leaves that class 95 % of a core, so these are lower bounds."""
    about_roof = f"""The roof of one core: the plain loop receives {receive_limit(data):.2f} GB in a
second of its core; `bench codec` decodes as below; a core that does both in turn moves
1 / (1 / receive + ratio / decode) of wire bytes. Both halves were measured with their own data in
their own loops, so the roof is an estimate that a good pipeline may pass a little."""
    about_path = """Where one core's time goes, by the daemon's own count (`stat --json`, `path`),
with a malloc that counts, in one run each. Receive is what the worker spends in the store:
polling, the copy out of the socket, acknowledgements."""
    about = "Ablations, one core, each beside the whole in the same rounds."
    parts = [how, link_table(data), about_roof, roof_table(data), about_path, path_table(data)]
    parts += [about, ablation_table(data), lanes_table(data), cluster_table(data)]
    return "\n".join(f"{part.rstrip()}\n" for part in parts)


# ---- the picture ---------------------------------------------------------------------------------


def plots(data: dict[str, Any], folder: Path) -> list[Plot]:
    import plots as style

    rates = [row["rate"] for row in data["yardsticks"]]
    wire = [rate or full(data, None) for rate in rates]
    labels = [f"{rate:g}" if rate else f"unshaped\n({full(data, None):.0f})" for rate in rates]
    drawn, (left, right) = style.figure(9.6, 4.2, columns=2)
    for tier in data["value_bytes"]:
        shares = [100 * (share(data, rate, tier) or math.nan) for rate in rates]
        left.plot(range(len(rates)), shares, "o-", color=style.colour(tier), label=tier)
        speeds = [kv_rate(cell(data, rate, tier, 1) or [])["median"] for rate in rates]
        right.plot(wire, speeds, "o-", color=style.colour(tier), label=tier)
        top = roof(data, tier) * data["kv_bytes"] / data["value_bytes"][tier]
        ends = (roof(data, tier) * 8, max(wire) * 1.25)
        right.plot(ends, (top, top), ":", color=style.colour(tier), linewidth=1.2)
    left.axhline(100, color=style.colour("limit"), linewidth=0.8)
    left.set_xticks(range(len(rates)), labels)
    left.set_ylim(0, 108)
    left.set(xlabel="link, Gbit/s", ylabel="of the link filled, %")
    left.set_title("Share of the link, data plane on one core")
    left.legend(loc="lower left", title="tier")
    raw = [rate / 8 for rate in wire]
    right.plot(wire, raw, "--", color=style.colour("raw"), label="uncompressed at link rate")
    right.axvline(PAPER_GBIT, color=style.colour("other"), linewidth=1)
    right.text(
        PAPER_GBIT * 0.96,
        min(raw) * 1.1,
        f"ShadowServe paper, BlueField-3:\n{PAPER_GBIT} Gbit/s (their figure)",
        **{"fontsize": 7, "rotation": 90, "ha": "right", "va": "bottom", "color": "#495057"},
    )
    right.plot([], [], ":", color=style.colour("limit"), label="roof of one core")
    right.set(xscale="log", yscale="log", xlabel="link, Gbit/s", ylabel="KV delivered, GB/s")
    right.set_xticks(wire, [f"{rate:g}" if rate else f"\n{full(data, None):.0f}" for rate in rates])
    right.minorticks_off()
    right.set_ylim(min(raw) * 0.9, 60)
    ticks = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
    right.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    right.set_title("KV delivered into host memory")
    right.legend(loc="upper left", ncols=2)
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
