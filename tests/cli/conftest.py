# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the program's tests: the program, and a store with sound chunks in it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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


@pytest.fixture
def daemon(store: str, tmp_path: Path) -> Iterator[str]:
    """The socket of a daemon that serves `store`."""
    path = tmp_path / "daemon.sock"
    program = BUILD / "daemon" / "shadowserved"
    command = [str(program), "--socket", str(path), "--store", store, "--arena", "128MiB"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        assert "serv" in process.stdout.readline()
        yield str(path)
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0
        process.stdout.close()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """The URI of a real Redis of this test's own."""
    program = shutil.which("redis-server")
    if not program:
        pytest.skip("redis-server is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen([*command, "--dir", str(tmp_path)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)
