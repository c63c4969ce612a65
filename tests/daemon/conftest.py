# SPDX-License-Identifier: Apache-2.0
"""The real shadowserved, driven through the library."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import tree  # noqa: F401
from daemon_rig import Daemon, Redis, short_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for a Unix socket."""
    with short_folder() as path:
        yield path


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Daemon]]:
    """start(**keys) runs a daemon; whatever is left of it at the end is killed."""
    daemons: list[Daemon] = []

    def starter(**keys: object) -> Daemon:
        daemon = Daemon(folder, f"d{len(daemons)}", **keys)
        daemons.append(daemon)
        return daemon.start()

    yield starter
    for daemon in daemons:
        daemon.discard()


@pytest.fixture
def redis(folder: Path) -> Iterator[Redis]:
    if not shutil.which("redis-server"):
        pytest.skip("no redis-server here")
    server = Redis(folder)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    disk = folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a small disk here")
    yield disk
    # Lazily: a daemon that a failed test left may still use it.
    subprocess.run(["umount", "-l", disk], check=True)
