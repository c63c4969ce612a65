# SPDX-License-Identifier: Apache-2.0
"""docs/benchmarks.md is made from the parts' JSON, whatever of it is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import page
import part
import pytest
import run

SAMPLE: dict[str, Any] = {
    "part": "memory",
    "quick": False,
    "command": "make bench PART=memory",
    "machine": {
        "cpu": "Sample CPU",
        "flags": ["avx2"],
        "cores": 2,
        "kernel": "6.1",
        "commit": "0123abc",
        "date": "2026-01-02",
    },
    "seconds": 12.3,
    "data": {"fetches": 1000, "before_kib": 1000, "after_kib": 1010},
}


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    monkeypatch.setattr(page, "NOTES", folder)
    return folder


def write(tmp_path: Path, *results: dict[str, Any]) -> str:
    for result in results:
        (tmp_path / f"{result['part']}.json").write_text(json.dumps(result))
    file = page.write(tmp_path, tmp_path / "out" / "benchmarks.md", tmp_path / "img")
    return file.read_text()


def section(text: str, name: str) -> str:
    return text.split(f"\n## {name}")[1].split("\n## ")[0]


def test_a_page_without_any_result_names_every_goal_as_not_run(tmp_path: Path) -> None:
    text = write(tmp_path)
    for name, numbers in page.SECTIONS.items():
        assert "Not run" in section(text, name)
        for number in numbers:
            assert f"| {number} | {name} |  |  |  | - (not run) |" in text


def test_a_result_is_shown_with_command_machine_and_date(tmp_path: Path) -> None:
    text = section(write(tmp_path, SAMPLE), "memory")
    for word in (
        "make bench PART=memory",
        "Sample CPU",
        "avx2",
        "0123abc",
        "2026-01-02",
        "+1.00 %",
    ):
        assert word in text


def test_a_skipped_part_says_why(tmp_path: Path) -> None:
    skipped = {k: v for k, v in SAMPLE.items() if k != "data"} | {"skipped": "needs root: netns"}
    assert "needs root: netns" in section(write(tmp_path, skipped), "memory")


def test_a_result_under_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "memory.json").write_text(json.dumps(SAMPLE | {"part": "damage"}))
    with pytest.raises(SystemExit, match="damage"):
        write(tmp_path)


def test_notes_are_included_as_they_are(tmp_path: Path, notes: Path) -> None:
    (notes / "notes-memory.md").write_text("Where *it* goes: nowhere.\n")
    assert "Where *it* goes: nowhere." in section(write(tmp_path, SAMPLE), "memory")


def test_every_part_that_runs_has_a_section_and_the_contract() -> None:
    assert set(run.PARTS) == set(page.SECTIONS)
    for name in run.PARTS:
        if (page.ROOT / "bench" / f"part_{name}.py").exists():
            module = page.module(name)
            for attribute in ("TITLE", "BUDGET_S", "QUICK_S", "run", "figures", "tables"):
                assert hasattr(module, attribute), f"part_{name}.py has no {attribute}"


def test_summary_is_median_and_spread_of_all_runs() -> None:
    stat = part.summary([4.0, 1.0, 2.0, 3.0, 90.0])
    assert stat["median"] == 3.0
    assert stat["quartiles"] == [2.0, 4.0]
    assert stat["runs"] == [1.0, 2.0, 3.0, 4.0, 90.0]
    assert part.spread(stat) == "±33 %"
    with pytest.raises(ValueError, match="no runs"):
        part.summary([])


def test_the_published_page_belongs_to_the_published_results(tmp_path: Path) -> None:
    """docs/benchmarks.md was made from docs/benchmarks/*.json, not by hand."""
    published = {f.stem for f in page.DATA.glob("*.json")} if page.DATA.exists() else set()
    assert published <= set(page.SECTIONS)
    results = {name: page.load(page.DATA, name) for name in page.SECTIONS}
    assert page.goals(results) in page.PAGE.read_text(), "run make bench-page"
    for name in published:
        result = page.load(page.DATA, name)
        assert result and not result["quick"], f"{name}: a smoke run was published"
        assert page.origin(result) in page.PAGE.read_text(), "run make bench-page"
        if "data" in result:
            part_module = page.module(name)
            assert part_module.tables(result["data"]).strip()
            assert all(row.measured or row.note for row in part_module.figures(result["data"]))
