# SPDX-License-Identifier: Apache-2.0
"""What part `serve` says of its numbers: statistics of a step, the largest load, rows of the goals'
table, Markdown. Reads nothing but the part's data.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from part import Figure, spread, table

ADDED_S, WIRE_FACTOR = 0.015, 1.15  # what a hit may take beyond a local one
ENGINE_CPU_S = 0.020  # of a hit beyond a local one
# The fastest other connectors, by Gbit/s: uncompressed, same model, prompt and kind of machine,
# engine on one core, median of 5 hits. Measured by hand on PEERS_ON, not by this part.
PEERS_ON = "2026-11-23"
PEERS = {
    1: ("Mooncake 0.3.13 over TCP", 0.458),
    5: ("KVStash 0.1.0", 0.155),
    10: ("KVStash 0.1.0", 0.116),
}
NAMES = {
    "async": "ShadowServe",
    "sync": "loading blocks the step",
    "in-process": "decoding on the engine's core",
    "off": "recompute",
}


def at_rank(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {"n": 0}
    ordered = sorted(values)
    return {
        "n": len(ordered),
        "p50": statistics.median(ordered),
        "p99": at_rank(ordered, 0.99),
        "max": ordered[-1],
    }


def step(
    rate: float, answers: Sequence[dict[str, Any]], ttft_limit_s: float, tpot_limit_s: float
) -> dict[str, Any]:
    """One step of a staircase. A request without an answer counts as one that missed the SLO."""
    done = [one for one in answers if one]
    ttft = [one["times"][0] - one["due"] for one in done]
    tpot = [(one["times"][-1] - one["times"][0]) / (len(one["times"]) - 1) for one in done]
    gaps = [b - a for one in done for a, b in itertools.pairwise(one["times"])]
    good = sum(a <= ttft_limit_s and b <= tpot_limit_s for a, b in zip(ttft, tpot, strict=True))
    return {
        "rate": rate,
        "n": len(answers),
        "unfinished": len(answers) - len(done),
        "share": good / len(answers) if answers else 1.0,
        "ttft_s": percentiles(ttft),
        "tpot_s": percentiles(tpot),
        "gap_s": percentiles(gaps),
        "hits": sum(one["cached"] > 0 for one in done),
        "ttft_runs": [round(value, 4) for value in ttft],
        "tpot_runs": [round(value, 5) for value in tpot],
    }


def largest(steps: Sequence[dict[str, Any]], share: float) -> float:
    """The load up to which at least this share of the requests meets the SLO; between the last step
    that does and the first that does not, on a straight line."""
    rate, met = 0.0, 1.0
    for one in steps:
        if one["share"] < share:
            part = (met - share) / (met - one["share"])
            return float(rate + (one["rate"] - rate) * part)
        rate, met = one["rate"], one["share"]
    return float(rate)


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if seconds >= 0.02 else f"{1e3 * seconds:.1f}"


def wire_s(row: dict[str, Any]) -> float:
    return float(row["wire_bytes"] * 8 / (row["gbit"] * 1e9))


def limit_s(row: dict[str, Any]) -> float:
    """Goal 8 for one row."""
    return float(row["local_ttft_s"]["median"] + WIRE_FACTOR * wire_s(row) + ADDED_S)


def loads_of(data: dict[str, Any], tier: str, way: str) -> dict[float, dict[str, Any]]:
    return {one["gbit"]: one for one in data["loads"] if one["tier"] == tier and one["way"] == way}


# ---- goals ---------------------------------------------------------------------------------------


def figures(data: dict[str, Any]) -> list[Figure]:
    rows = []
    for row in data["unloaded"]:
        if row["tier"] != "standard" or row["gbit"] == 20:
            continue
        taken, limit = row["ttft_s"]["median"], limit_s(row)
        local, wire = row["local_ttft_s"]["median"], wire_s(row)
        rows.append(
            Figure(
                "8",
                f"TTFT of a {data['prompt_tokens']:,}-token hit, `standard`, {row['gbit']:g} "
                "Gbit/s",
                f"<= {milliseconds(limit)} ms (local hit {milliseconds(local)} + 1.15 x wire "
                f"{milliseconds(wire)} + 15)",
                f"{milliseconds(taken)} ms",
                taken <= limit,
                _peer(row["gbit"]),
            )
        )
    rows += _interference(data)
    rows += _load_figures(data)
    return rows


def _peer(gbit: float) -> str:
    if gbit not in PEERS:
        return ""
    name, taken = PEERS[int(gbit)]
    return f"{name}: {milliseconds(taken)} ms, measured by hand on {PEERS_ON}, not in this run"


def _interference(data: dict[str, Any]) -> list[Figure]:
    rows = []
    fetches = [row for row in data.get("beside", []) if row["what"] == "fetches"]
    for row in fetches:
        p50, p99 = (beside_ratio(row, name) for name in ("p50", "p99"))
        rows.append(
            Figure(
                "9",
                f"TPOT beside fetches without pause, {row['gbit']:g} Gbit/s "
                f"({beside_rate(row, 'kv_bytes'):.1f} GB/s of KV on the other core), p50 and p99",
                "<= 1.02 and <= 1.05 of without",
                f"{p50:.3f} and {p99:.3f}",
                p50 <= 1.02 and p99 <= 1.05,
            )
        )
    gaps = {row["way"]: row for row in data["gaps"] if "normal_s" in row}
    if "async" in gaps:
        row = gaps["async"]
        ratio_s = row["waiting_s"]["median"] / row["normal_s"]["median"]
        rows.append(
            Figure(
                "9b",
                f"longest token gap while a hit is on its way, {row['gbit']:g} Gbit/s",
                "<= 1.5 x normal",
                f"{ratio_s:.2f} x ({milliseconds(row['waiting_s']['median'])} ms)",
                ratio_s <= 1.5,
            )
        )
    for row in data["unloaded"]:
        if row["tier"] == "standard" and row["gbit"] == min(r["gbit"] for r in data["unloaded"]):
            extra = row["cpu_s"]["median"] - row["local_cpu_s"]["median"]
            rows.append(
                Figure(
                    "9b",
                    f"engine CPU of a hit beyond computing, {row['gbit']:g} Gbit/s",
                    "<= 20 ms",
                    f"{milliseconds(extra)} ms",
                    extra <= ENGINE_CPU_S,
                )
            )
    return rows


def _load_figures(data: dict[str, Any]) -> list[Figure]:
    rows = []
    ours = loads_of(data, "standard", "async")
    recompute = next(iter(loads_of(data, "recompute", "off").values()), None)
    for gbit, inside in loads_of(data, "standard", "in-process").items():
        if gbit not in ours or not inside["largest"]:
            continue
        ratio = ours[gbit]["largest"] / inside["largest"]
        tpot = shared_step(ours[gbit], inside)
        text = f"{ratio:.2f} x ({ours[gbit]['largest']:.1f} against {inside['largest']:.1f} req/s)"
        if tpot:
            text += f"; TPOT p50 {tpot[1]:.2f} x at {tpot[0]:g} req/s"
        if recompute:
            text += f"; recompute {recompute['largest']:.1f}"
        rows.append(
            Figure(
                "9c",
                "largest load within the SLO against decoding on the engine's core, "
                f"{gbit:g} Gbit/s",
                ">= 1.35 x",
                text,
                ratio >= 1.35,
            )
        )
    return rows


def beside_ratio(row: dict[str, Any], name: str) -> float:
    """Median over the windows with fetches of what each is of the mean of its neighbours."""
    around = itertools.pairwise(row["without"])
    ratios = [
        one[name] / statistics.mean((before[name], after[name]))
        for one, (before, after) in zip(row["with"], around, strict=True)
        if min(one["n"], before["n"], after["n"]) > 5
    ]
    return statistics.median(ratios) if ratios else float("nan")


def beside_rate(row: dict[str, Any], what: str) -> float:
    """GB a second while the client ran; what: kv_bytes or wire_bytes."""
    return float(sum(row[what]) / sum(row["window_s"]) / 1e9)


def shared_step(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, float] | None:
    """The highest load that both finished, and other's median TPOT there as a multiple of one's."""
    mine = {s["rate"]: s for s in one["steps"] if s["n"] and not s["unfinished"]}
    theirs = {s["rate"]: s for s in other["steps"] if s["n"] and not s["unfinished"]}
    both = sorted(set(mine) & set(theirs))
    if not both:
        return None
    rate = both[-1]
    return rate, theirs[rate]["tpot_s"]["p50"] / mine[rate]["tpot_s"]["p50"]


# ---- tables --------------------------------------------------------------------------------------


def tables(data: dict[str, Any]) -> str:
    parts = [_circumstances(data), _unloaded_table(data), _gap_table(data)]
    parts += [_load_table(data), _way_table(data)]
    return "\n".join(part for part in parts if part)


def _circumstances(data: dict[str, Any]) -> str:
    """What else the reader has to know of this run."""
    text = []
    if data["realtime"]:
        text.append(
            "All of it ran in the real-time class (`chrt --rr 1`), because the machine was busy."
        )
    if late := data.get("late_lookups"):
        text.append(
            f"{late} lookup(s) came too late and were misses; those requests were asked again, and "
            "their first times are in no table."
        )
    return " ".join(text) + "\n" if text else ""


def _unloaded_table(data: dict[str, Any]) -> str:
    cold = data["recompute"]["ttft_s"]
    rows = []
    for row in data["unloaded"]:
        extra = row["ttft_s"]["median"] - row["local_ttft_s"]["median"] - wire_s(row)
        rows.append(
            (
                f"`{row['tier']}`",
                f"{row['gbit']:g}",
                f"{milliseconds(row['ttft_s']['median'])} {spread(row['ttft_s'])}",
                milliseconds(row["local_ttft_s"]["median"]),
                milliseconds(wire_s(row)),
                milliseconds(max(0.0, extra)),
                f"{row['wire_bytes'] / 1e6:.1f}",
                f"{1e3 * (row['cpu_s']['median'] - row['local_cpu_s']['median']):.1f}",
                f"{1e3 * row['daemon_cpu_s']:.0f}",
                f"{1e3 * row['redis_cpu_s']:.0f}",
            )
        )
    head: tuple[str, ...] = (
        "tier",
        "Gbit/s",
        "TTFT ms",
        "local hit",
        "wire",
        "beyond both",
        "wire MB",
    )
    head += ("engine CPU ms beyond a local hit", "daemon CPU ms", "Redis CPU ms")
    return (
        f"A prompt of {data['prompt_tokens']:,} tokens, alone. Computing it takes "
        f"{cold['median']:.2f} s {spread(cold)}. Each hit comes after the engine's own prefix "
        "cache was emptied and is followed by a local one; `raw` is KV as it is, uncompressed. CPU "
        "times of daemon and Redis are a hit's, read from the scheduler.\n\n" + table(head, rows)
    )


def _gap_table(data: dict[str, Any]) -> str:
    rows = []
    names = {
        "local": "a hit of the engine's own cache",
        "async": "a hit of the store",
        "sync": "the same, loading blocks the step",
    }
    for row in data["gaps"]:
        if "normal_s" in row:
            rows.append(
                (
                    names[row["way"]],
                    f"{row['gbit']:g}",
                    milliseconds(row["normal_s"]["median"]),
                    milliseconds(row["waiting_s"]["median"]),
                    milliseconds(row["computing_s"]["median"]),
                    len(row["normal_s"]["runs"]),
                )
            )
    head = ("beside", "Gbit/s", "normal gap ms", "longest while it loads", "its own step", "runs")
    text = "A request decodes; another arrives. Times between two tokens of the first.\n\n"
    text += table(head, rows)
    if not rows:
        text = ""
    return text + _beside_table(data.get("beside", []))


def _beside_table(beside: Sequence[dict[str, Any]]) -> str:
    if not beside:
        return ""
    rows = [
        (
            row["what"],
            f"{row['gbit']:g}",
            f"{beside_rate(row, 'wire_bytes'):.2f}",
            f"{beside_rate(row, 'kv_bytes'):.2f}" if any(row["kv_bytes"]) else "",
            f"{beside_ratio(row, 'p50'):.3f}",
            f"{beside_ratio(row, 'p99'):.3f}",
        )
        for row in beside
    ]
    head = ("on the other core", "Gbit/s", "wire GB/s", "KV GB/s", "p50", "p99")
    return (
        f"\nTwo requests decode; time between their tokens in {len(beside[0]['with'])} windows "
        "with work on the other core, each as a multiple of its two neighbours without; median. "
        "The bare loop receives values from the same Redis and looks at nothing.\n\n"
        + table(head, rows)
    )


def _load_table(data: dict[str, Any]) -> str:
    slo, load = data["slo"], data["load"]
    links = sorted({one["gbit"] for one in data["loads"] if one["way"] != "off"})
    kinds = list(dict.fromkeys((one["tier"], one["way"]) for one in data["loads"]))
    rows = []
    for tier, way in kinds:
        found = loads_of(data, tier, way)
        if way == "off":
            cells = [f"{next(iter(found.values()))['largest']:.2f}"] * len(links)
        else:
            cells = [f"{found[g]['largest']:.1f}" if g in found else "" for g in links]
        rows.append((f"`{tier}`", NAMES[way], *cells))
    head = ("KV", "way", *(f"{gbit:g} Gbit/s" for gbit in links))
    return (
        f"Largest load, requests a second. Poisson arrivals at rising rates, "
        f"{data['documents']} documents; a request is {load['shared']:,} shared tokens, "
        f"{load['own']} of its own and {load['answer']} of answer; every prefix comes over the "
        f"link (the engine's own prefix cache is off). Each step was run once. Within the SLO: "
        f"{100 * slo['share']:.0f} % "
        f"of requests with TTFT <= {slo['ttft_s']:g} s and TPOT <= {milliseconds(slo['tpot_s'])} "
        "ms (3 times that of an idle engine).\n\n" + table(head, rows)
    )


def _way_table(data: dict[str, Any]) -> str:
    rows = []
    for one in data["loads"]:
        good = [s for s in one["steps"] if s["n"] and s["ttft_s"]["n"]]
        if not good:
            continue
        under = [s for s in good if s["rate"] <= max(one["largest"], good[0]["rate"])]
        shown = under[-1]
        cells = [f"{100 * one['cpu_s'][name] / one['wall_s']:.0f} %" for name in one["cpu_s"]]
        rows.append(
            (
                f"`{one['tier']}` {NAMES[one['way']]}",
                f"{one['gbit']:g}" if one["way"] != "off" else "",
                f"{shown['rate']:g}",
                *(milliseconds(shown["ttft_s"][k]) for k in ("p50", "p99")),
                *(milliseconds(shown["tpot_s"][k]) for k in ("p50", "p99")),
                *cells,
            )
        )
    head: tuple[str, ...] = ("way", "Gbit/s", "req/s", "TTFT p50 ms", "p99", "TPOT p50 ms", "p99")
    head += tuple(f"{name} CPU" for name in data["loads"][0]["cpu_s"]) if data["loads"] else ()
    return (
        "At the last step within the SLO (else the first); CPU of a core over the whole series.\n\n"
        + table(head, rows)
    )
