# SPDX-License-Identifier: Apache-2.0
"""Part `remote`, small: three hosts, both data planes, bytes compared, and a report of it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import netns
import part_remote
import pytest
from part import Skip


@pytest.fixture(scope="module", autouse=True)
def allowed() -> None:
    if reason := netns.why_not():
        pytest.skip(reason)


def test_a_small_run_yields_sound_json(tmp_path: Path) -> None:
    try:
        data = json.loads(json.dumps(part_remote.run(tmp_path, quick=True)))
    except Skip as skip:
        pytest.skip(str(skip))
    rows = data["no_model"]["rows"]
    assert [row["server"] for row in rows] == ["in-host", "relay"]
    for row in rows:
        for run in row["runs"]:
            assert run["kv_bytes"] == 2 * 8 << 20
            assert 0 < run["control_ns"] < run["server_ns"]
            assert run["engine_ns"] > 0
    assert {row.number: row.met for row in part_remote.figures(data)}["12"] is None
    assert "| relay, `tcp` |" in part_remote.tables(data)


def test_a_process_is_charged_for_what_it_does() -> None:
    before, own = part_remote.process_ns(os.getpid()), time.process_time_ns()
    while time.process_time_ns() < own + 20_000_000:
        pass
    assert part_remote.process_ns(os.getpid()) - before >= 20_000_000 * 0.99
    other = part_remote.process_ns(os.getppid())
    assert other != part_remote.process_ns(os.getpid())
