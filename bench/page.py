# SPDX-License-Identifier: Apache-2.0
"""Makes docs/benchmarks.md and docs/img/ from the JSON of the parts; measures nothing.

Raw results of `make bench` in build/bench are first copied to docs/benchmarks/PART.json, so that
the page can be made again from a clone and a part can be measured by itself without losing the
others. Paragraphs that a person wrote, docs/benchmarks/notes-PART.md, are included as they are.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from part import Figure, Plot, table
from servers import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
DATA = ROOT / "docs" / "benchmarks"
NOTES = DATA  # notes-PART.md
PUBLISHED_BYTES_MAX = 1 << 20

# Section order, and the goals that each part shows.
SECTIONS = {
    "codec": ("1", "2", "3", "4", "5"),
    "quality": (),
    "link": ("6", "7", "11"),
    "serve": ("8", "9", "9b", "9c"),
    "path": ("10",),
    "scale": (),
    "stores": (),
    "fetch": (),
    "memory": (),
    "damage": (),
    "remote": ("12", "13"),
}
HEAD = """# Benchmarks

Made by `make bench` from the raw JSON in `docs/benchmarks/`; do not edit, `make bench-page`
makes it again. Paragraphs under *Analysis* come from `docs/benchmarks/notes-*.md`. Every figure is
a median of at least 5 runs unless its table says otherwise, ± half the distance of its quartiles,
ratios are taken between contenders of one run. How a part is made:
[bench/README.md](../bench/README.md).

"""


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """The JSON of a part; None when there is none."""
    file = folder / f"{name}.json"
    if not file.exists():
        return None
    result: dict[str, Any] = json.loads(file.read_text())
    if result.get("part") != name:
        raise SystemExit(f"bench: {file}: it is of part {result.get('part')!r}, expected {name!r}")
    return result


def module(name: str) -> Any:
    return importlib.import_module(f"part_{name}")


def figure_rows(name: str, result: dict[str, Any] | None) -> list[Figure]:
    """The goals of a part; those that it did not measure say why."""
    rows: list[Figure] = module(name).figures(result["data"]) if result and "data" in result else []
    shown = {row.number for row in rows}
    why = "not run"
    if result:
        why = result.get("skipped") or result.get("wrong") or "not measured by this run"
    return rows + [
        Figure(number, "", "", "", None, why) for number in SECTIONS[name] if number not in shown
    ]


def goals(results: dict[str, dict[str, Any] | None]) -> str:
    rows: list[tuple[str, Figure]] = []
    for name in SECTIONS:
        rows += [(name, row) for row in figure_rows(name, results[name])]
    order = [number for numbers in SECTIONS.values() for number in numbers]
    order.sort(key=lambda number: (int(number.rstrip("abc")), number))
    rows.sort(key=lambda row: order.index(row[1].number) if row[1].number in order else len(order))
    mark = {True: "yes", False: "no", None: "-"}
    cells = [
        (
            row.number,
            name,
            row.what,
            row.goal,
            row.measured,
            mark[row.met] + (f" ({row.note})" if row.note else ""),
        )
        for name, row in rows
    ]
    return table(("#", "part", "figure", "goal", "measured", "met"), cells)


def origin(result: dict[str, Any]) -> str:
    m = result["machine"]
    kind = "virtual machine" if m.get("virtual") else "machine"
    flags = f" ({', '.join(m['flags'])})" if m.get("flags") else ""
    return (
        f"`{result['command']}`, {result['seconds']:.0f} s, {m['date']}, commit {m['commit']}: "
        f"{m['cpu']}{flags}, {m['cores']}-core {kind}, {m.get('memory_gib', '?')} GiB, "
        f"Linux {m['kernel']}; load before it {m.get('load_before', 0):.1f}.\n"
    )


def draw(name: str, result: dict[str, Any], folder: Path) -> list[Plot]:
    part = module(name)
    if not hasattr(part, "plots"):
        return []
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print(f"bench: {name}: no pictures, matplotlib is missing (make bench installs it)")
        return []
    drawn: list[Plot] = part.plots(result["data"], folder)
    return drawn


def section(name: str, result: dict[str, Any] | None, folder: Path) -> tuple[str, list[Plot]]:
    title = f"## {name}"
    if (ROOT / "bench" / f"part_{name}.py").exists():
        title += f": {module(name).TITLE}"
    text, drawn = [title + "\n"], []
    if result is None:
        text.append(f"Not run. `make bench PART={name}` runs it.\n")
    else:
        text.append(origin(result))
        for word in ("skipped", "wrong"):
            if word in result:
                text.append(f"**{word.capitalize()}**: {result[word]}\n")
    if result and "data" in result:
        text.append(module(name).tables(result["data"]))
        drawn = draw(name, result, folder)
        text += [f"![{plot.caption}](img/{plot.name}.svg)\n\n{plot.caption}\n" for plot in drawn]
    notes = NOTES / f"notes-{name}.md"
    if notes.exists():
        text.append(f"### Analysis\n\n{notes.read_text().strip()}\n")
    return "\n".join(text), drawn


def write(data: Path, file: Path, drawings: Path) -> Path:
    """Writes the page from the JSON in data; pictures are drawn in drawings (SVG and PNG), and the
    SVG files go to img/ beside the page."""
    results = {name: load(data, name) for name in SECTIONS}
    for name in SECTIONS:
        if not (ROOT / "bench" / f"part_{name}.py").exists():
            results[name] = None
    text = HEAD + "## Goals\n\n" + goals(results)
    for name in SECTIONS:
        part, drawn = section(name, results[name], drawings)
        text += "\n" + part
        for plot in drawn:
            target = file.parent / "img" / f"{plot.name}.svg"
            target.parent.mkdir(parents=True, exist_ok=True)
            if target != drawings / target.name:
                shutil.copyfile(drawings / target.name, target)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def publish(measured: Path, names: Iterable[str]) -> Path:
    """Copies new results of these parts into docs and writes the page from all that lie there."""
    DATA.mkdir(parents=True, exist_ok=True)
    for name in names:
        file = measured / f"{name}.json"
        result = load(measured, name)
        if not result or "data" not in result:
            continue
        size = file.stat().st_size
        if size > PUBLISHED_BYTES_MAX:
            sys.exit(f"bench: {file} has {size} bytes, at most {PUBLISHED_BYTES_MAX}")
        shutil.copyfile(file, DATA / f"{name}.json")
    return write(DATA, PAGE, measured / "img")
