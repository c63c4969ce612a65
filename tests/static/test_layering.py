# SPDX-License-Identifier: Apache-2.0
"""The house: who may include whom, how long files and functions may be, words that stay out."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Folder -> folders whose headers it may include ("api" is include/shadowserve.h).
ARROWS = {
    "base": {"base", "api"},
    "chunk": {"chunk", "base", "api"},
    "codec": {"codec", "chunk", "base", "api"},
    "store": {"store", "codec", "chunk", "base", "api"},
    "deliver": {"deliver", "codec", "chunk", "base", "api"},
    "inflate": {"inflate", "codec", "chunk", "base", "api"},
    "profile": {"profile", "codec", "chunk", "base", "api"},
    "stream": {"stream", "base", "api"},
    "plane": {
        "plane",
        "stream",
        "store",
        "deliver",
        "inflate",
        "profile",
        "codec",
        "chunk",
        "base",
        "api",
    },
    "client": {"client", "chunk", "base", "api"},
}
# Headers that the plane may know of the folders that hold back ends; the rest is theirs.
OPEN_HEADERS = {
    "stream": {"stream/stream.h"},
    "store": {"store/store.h"},
    "inflate": {"inflate/inflate.h"},
    "deliver": {"deliver/deliver.h", "deliver/layout.h"},
}
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def tracked(*patterns: str) -> list[Path]:
    out = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [ROOT / line for line in out.splitlines() if (ROOT / line).exists()]


def room_of(header: str, includer: Path) -> str:
    if header == "shadowserve.h":
        return "api"
    if "/" in header:
        return header.split("/")[0]
    return includer.parent.name


SOURCES = tracked("src/*.c", "src/*.h")


@pytest.mark.parametrize("room", sorted(ARROWS))
def test_a_room_includes_only_what_it_may(room: str) -> None:
    wrong = []
    for path in SOURCES:
        if path.relative_to(ROOT / "src").parts[0] != room:
            continue
        for header in INCLUDE.findall(path.read_text()):
            target = room_of(header, path)
            if target not in ARROWS[room]:
                wrong.append(f"{path.relative_to(ROOT)} includes {header}")
            elif room == "plane" and target in OPEN_HEADERS and header not in OPEN_HEADERS[target]:
                wrong.append(f"{path.relative_to(ROOT)} includes the back end {header}")
    assert not wrong, "\n".join(wrong)


def test_every_included_header_exists() -> None:
    roots = (ROOT / "src", ROOT / "include")
    missing = [
        f"{path.relative_to(ROOT)}: {header}"
        for path in SOURCES
        for header in INCLUDE.findall(path.read_text())
        if not any((base / header).exists() for base in (*roots, path.parent))
    ]
    assert not missing, "\n".join(missing)


def test_files_are_a_few_hundred_lines() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {count} lines"
        for path in tracked("*.c", "*.h", "*.py")
        if (count := len(path.read_text().splitlines())) > FILE_LINES_MAX
    ]
    assert not long, "\n".join(long)


def functions(path: Path) -> list[tuple[str, int]]:
    """Name and length of each function: in this format a body's braces stand in column 0."""
    found, start, name = [], 0, ""
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if line == "{":
            start, name = number, next((t for t in reversed(lines[:number]) if "(" in t), "")
        elif line == "}" and name:
            found.append((name.strip(), number - start + 1))
            name = ""
    return found


def test_functions_fit_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {name} has {length} lines"
        for path in tracked("src/*.c", "daemon/*.c", "relay/*.c", "cli/*.c")
        for name, length in functions(path)
        if length > FUNCTION_LINES_MAX
    ]
    assert not long, "\n".join(long)


def test_every_source_names_its_licence() -> None:
    licence = "SPDX-License-Identifier: Apache-2.0"
    bare = [
        str(path.relative_to(ROOT))
        for path in tracked("*.c", "*.h", "*.py", "*.sh")
        if path.stat().st_size and licence not in path.read_text()[:200]
    ]
    assert not bare, "\n".join(bare)


def test_nothing_is_left_open_in_the_sources() -> None:
    names = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")
    words = re.compile(rf"\b({'|'.join(names)})\b")
    left = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in tracked("*.c", "*.h", "*.py", "*.sh")
        if (match := words.search(path.read_text()))
    ]
    assert not left, "\n".join(left)


def test_every_ordered_atomic_names_its_partner() -> None:
    ordered = re.compile(r"memory_order_(acquire|release|acq_rel|seq_cst)|__atomic_")
    wrong = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if ordered.search(text := path.read_text()) and "pairs with" not in text.lower()
    ]
    assert not wrong, "\n".join(wrong)


def test_no_atomic_leaves_its_memory_order_unsaid() -> None:
    implicit = re.compile(r"\batomic_(?!thread_fence)\w+(?<!_explicit)\(|\batomic_thread_fence")
    wrong = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in SOURCES
        if (match := implicit.search(path.read_text())) and "atomic_init" not in match.group()
    ]
    assert not wrong, "\n".join(wrong)
