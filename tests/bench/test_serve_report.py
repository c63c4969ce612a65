# SPDX-License-Identifier: Apache-2.0
"""What part `serve` says of its numbers: a goal met at its limit and not beyond, whose figures are
whose, and what a reader has to know of a run."""

from __future__ import annotations

from typing import Any

import pytest
import serve_report
from part import summary


def made_up(engine_cpu_s: float) -> dict[str, Any]:
    """One hit at 5 Gbit/s: 12.5 MB, so 20 ms of wire."""
    row = {"tier": "standard", "gbit": 5, "wire_bytes": 12.5e6, "kv_bytes": 49e6}
    row |= {"daemon_cpu_s": 0.01, "redis_cpu_s": 0.01, "cached": 5984}
    row |= {"ttft_s": summary([0.060]), "local_ttft_s": summary([0.040])}
    row |= {"cpu_s": summary([0.030 + engine_cpu_s]), "local_cpu_s": summary([0.030])}
    steps = [serve_report.step(2.0, [{}, {}], 1.0, 0.03)]
    load = {"tier": "standard", "way": "async", "gbit": 5, "steps": steps, "largest": 1.8}
    return {
        "prompt_tokens": 6000,
        "documents": 1,
        "realtime": False,
        "late_lookups": 0,
        "load": {"shared": 5888, "own": 32, "answer": 16},
        "slo": {"ttft_s": 1.0, "tpot_s": 0.03, "share": 0.9},
        "recompute": {"ttft_s": summary([2.5]), "tpot_s": summary([0.01])},
        "unloaded": [row],
        "gaps": [],
        "loads": [load],
    }


@pytest.mark.parametrize(("engine_cpu_s", "met"), [(0.019, True), (0.021, False)])
def test_the_engines_time_of_a_hit_is_held_to_its_goal(engine_cpu_s: float, met: bool) -> None:
    rows = serve_report.figures(made_up(engine_cpu_s))
    assert [row.met for row in rows if row.what.startswith("engine CPU")] == [met]


def test_figures_of_others_are_named_as_theirs() -> None:
    (row,) = (row for row in serve_report.figures(made_up(0.0)) if row.number == "8")
    assert row.met
    assert "KVStash" in row.note
    assert "not in this run" in row.note


def test_a_run_says_what_was_odd_about_it() -> None:
    data = made_up(0.0)
    data["loads"][0]["cpu_s"], data["loads"][0]["wall_s"] = {"engine": 1.0}, 4.0
    assert "real-time" not in serve_report.tables(data)
    assert "too late" not in serve_report.tables(data)
    data |= {"realtime": True, "late_lookups": 2}
    assert "real-time" in serve_report.tables(data)
    assert "2 lookup(s) came too late" in serve_report.tables(data)
