# SPDX-License-Identifier: Apache-2.0
"""The built programs, and the values of a file: store."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("SHADOWSERVE_BUILD", ROOT / "build" / "release"))
CHUNKS = 24


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run_program(path: Path, *args: object, env: dict[str, str] | None = None) -> Answer:
    base = {k: v for k, v in os.environ.items() if not k.startswith(("SHADOWSERVE_", "XDG_"))}
    base["HOME"] = "/nonexistent"
    done = subprocess.run(
        [path, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**base, **(env or {})},
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def values(store: str) -> list[Path]:
    """The files of a file: store's values, by size."""
    folder = Path(store.removeprefix("file:"))
    found = [p for p in folder.rglob("*") if p.is_file() and p.read_bytes()[:4] == b"SKVC"]
    return sorted(found, key=lambda p: (p.stat().st_size, p.name))


def key_of(path: Path) -> str:
    """The key that a container names in its header."""
    return path.read_bytes()[24:56].hex()
