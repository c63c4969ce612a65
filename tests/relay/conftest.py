# SPDX-License-Identifier: Apache-2.0
"""Real relays between real daemons and the library; the daemon's rig is used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent

sys.path[:0] = [str(HERE), str(HERE.parent / "daemon")]

import tree  # noqa: E402, F401
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
