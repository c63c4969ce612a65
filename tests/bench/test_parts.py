# SPDX-License-Identifier: Apache-2.0
"""Parts of the benchmark, as small as they can be made: what they return is whole and right."""

from __future__ import annotations

import json
from pathlib import Path

import part_codec
import part_scale
import pytest
from part import run_json
from servers import BUILD

SPEED = BUILD / "bench" / "bench_speed"


@pytest.mark.skipif(not SPEED.exists(), reason="bench_speed is built where liblz4 is")
def test_every_contender_of_codec_gives_the_right_bytes() -> None:
    """bench_speed ends with a complaint where a level, a layout or a library does not."""
    levels = run_json(SPEED, "levels")
    assert levels[-1] == "scalar"
    source = ["--destination", "8", "--made-up", "1,1"]
    data = {"levels": levels, "cores": [0]}
    for name in part_codec.SETS:
        wanted = part_codec.specs(levels, ("lossless", "standard"), full=name == "made-up")
        data[name] = part_codec.measure(source, wanted, 1)
    data = json.loads(json.dumps(data))
    for row in data["made-up"]["contenders"].values():
        assert row["gb_s"]["median"] > 0
    rows = {row.number for row in part_codec.figures(data)}
    assert rows == {"1", "2", "3", "4", "5"}
    assert "| `standard` |" in part_codec.tables(data)


def test_scale_measures_a_real_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_scale, "CHUNKS", (1, 2))
    monkeypatch.setattr(part_scale, "SESSIONS", (1, 2))
    monkeypatch.setattr(part_scale, "SESSION_REQUESTS", 2)
    chunks = part_scale.chunks_cost(tmp_path, quick=True)
    assert [row["chunks"] for row in chunks] == [1, 2]
    assert all(row["fetch_cpu_ns"]["median"] > 0 for row in chunks)
    sessions = part_scale.sessions_cost(tmp_path, quick=True)
    assert [row["sessions"] for row in sessions] == [1, 2]


def test_slope_is_the_exponent() -> None:
    assert part_scale.slope([(n, 3.0 * n**1.5) for n in (1, 10, 100)]) == pytest.approx(1.5)
    assert part_scale.slope([(n, 7.0) for n in (1, 10, 100)]) == pytest.approx(0)
