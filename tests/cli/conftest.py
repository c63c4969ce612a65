# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the program's tests: the program, and a store with sound chunks in it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cli_harness import BUILD, CHUNKS, Answer, run_program


@pytest.fixture
def cli() -> Callable[..., Answer]:
    def call(*args: object, env: dict[str, str] | None = None) -> Answer:
        return run_program(BUILD / "cli" / "shadowserve", *args, env=env)

    return call


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A file: store with CHUNKS sound chunks of mixed shapes, tiers and back ends."""
    uri = f"file:{tmp_path / 'store'}"
    done = run_program(BUILD / "bench" / "damage", "--store", uri, "--chunks", CHUNKS, "--fill")
    assert done.code == 0, done.err
    return uri
