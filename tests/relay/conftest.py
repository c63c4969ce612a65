# SPDX-License-Identifier: Apache-2.0
"""Real relays between real daemons and the library; the daemon's rig is used."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = Path(os.environ.get("SHADOWSERVE_BUILD", ROOT / "build" / "release")).resolve()
IS_OTHER = BUILD.name in ("asan", "tsan", "aarch64-run")
LIBRARY_BUILD = ROOT / "build" / "release" if IS_OTHER else BUILD

sys.path[:0] = [
    str(HERE),
    str(ROOT / "tests" / "daemon"),
    str(ROOT / "python"),
    str(ROOT / "bench"),
]
os.environ["SHADOWSERVE_LIBRARY"] = str(LIBRARY_BUILD / "src" / "client" / "libshadowserve.so")
os.environ.setdefault("SHADOWSERVE_BUILD", str(BUILD))

from daemon_rig import Daemon, short_folder  # noqa: E402
from relay_rig import Authority, Relay, Relayed  # noqa: E402


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.fixture
def authority(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture
def relayed(folder: Path, authority: Authority) -> Iterator[Callable[..., Relayed]]:
    """relayed(**keys) runs a card and a relay in front of it."""
    made: list[Relayed] = []

    def maker(**keys: object) -> Relayed:
        made.append(Relayed(folder, authority, **keys))
        return made[-1]

    yield maker
    for one in made:
        one.discard()


@pytest.fixture
def processes() -> Iterator[list[Daemon | Relay]]:
    """What is put in is ended."""
    running: list[Daemon | Relay] = []
    yield running
    for process in running:
        process.discard()
