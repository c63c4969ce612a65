# SPDX-License-Identifier: Apache-2.0
"""The picture of part `serve`: time to the first token against the link, and against the load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plots
from part import Plot
from serve_report import NAMES, loads_of

LOADED_GBIT = 10
WAYS = (
    ("standard", "async", "ShadowServe, standard", "standard", "-"),
    ("raw", "async", "uncompressed KV", "raw", "-"),
    ("standard", "in-process", "decoding on the engine's core", "lossless", "--"),
    ("standard", "sync", "loading blocks the engine", "compact", ":"),
)


def draw(data: dict[str, Any], folder: Path) -> list[Plot]:
    figure, (left, right) = plots.figure(8.4, 3.6, columns=2)
    _by_link(left, data)
    gbit = _by_load(right, data)
    plots.save(figure, folder, "serve")
    tokens = data["prompt_tokens"]
    caption = (
        f"Real vLLM on one core, data plane, Redis and clients on the other. Left: time to the "
        f"first token of a {tokens:,}-token prompt, alone, its KV coming over the link; computing "
        f"it and the engine's own cache beside it. Right: median time to the first token at rising "
        f"load, {gbit:g} Gbit/s; a curve ends where requests were no longer served in time."
    )
    return [Plot("serve", caption)]


def _by_link(axes: Any, data: dict[str, Any]) -> None:
    for tier in ("raw", "lossless", "standard", "compact"):
        rows = sorted(
            (row for row in data["unloaded"] if row["tier"] == tier), key=lambda row: row["gbit"]
        )
        if rows:
            label = "uncompressed" if tier == "raw" else tier
            x = [row["gbit"] for row in rows]
            y = [1e3 * row["ttft_s"]["median"] for row in rows]
            axes.plot(x, y, "o-", color=plots.colour(tier), label=label)
    local = sorted(row["local_ttft_s"]["median"] for row in data["unloaded"])
    cold = 1e3 * data["recompute"]["ttft_s"]["median"]
    for value, label, style in (
        (cold, "recompute", "--"),
        (1e3 * local[len(local) // 2], "engine's own cache", ":"),
    ):
        axes.axhline(value, color=plots.colour("recompute"), linestyle=style, label=label)
    axes.set(xscale="log", yscale="log", xlabel="link, Gbit/s", ylabel="time to first token, ms")
    links = sorted({row["gbit"] for row in data["unloaded"]})
    axes.set_xticks(links, [f"{link:g}" for link in links])
    axes.minorticks_off()
    axes.set_title("one request")
    axes.legend()


def _by_load(axes: Any, data: dict[str, Any]) -> float:
    links = {one["gbit"] for one in data["loads"] if one["way"] == "async"}
    gbit = float(min(links, key=lambda link: abs(link - LOADED_GBIT), default=LOADED_GBIT))
    for tier, way, label, colour, style in WAYS:
        found = loads_of(data, tier, way).get(gbit)
        if found:
            steps = [s for s in found["steps"] if s["ttft_s"]["n"]]
            axes.plot(
                [s["rate"] for s in steps],
                [1e3 * s["ttft_s"]["p50"] for s in steps],
                "o" + style,
                color=plots.colour(colour),
                label=label,
            )
    for found in loads_of(data, "recompute", "off").values():
        steps = [s for s in found["steps"] if s["ttft_s"]["n"]]
        axes.plot(
            [s["rate"] for s in steps],
            [1e3 * s["ttft_s"]["p50"] for s in steps],
            "s--",
            color=plots.colour("recompute"),
            label=NAMES["off"],
        )
    axes.axhline(1e3 * data["slo"]["ttft_s"], color=plots.colour("limit"), linewidth=0.8)
    axes.set(yscale="log", xlabel="requests a second", ylabel="median time to first token, ms")
    axes.set_title(f"under load, {gbit:g} Gbit/s")
    axes.legend()
    return gbit
