# SPDX-License-Identifier: Apache-2.0
"""Python linter and type checker over the package, the tests and the scripts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str) -> None:
    command = (sys.executable, "-m", *command)
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_ruff_finds_nothing() -> None:
    run("ruff", "check", "python", "tests", "bench")


def test_mypy_finds_nothing_in_the_package() -> None:
    run("mypy", "python/shadowserve")
