# SPDX-License-Identifier: Apache-2.0
"""A daemon that is started on first need, shared, and ends by itself."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shadowserve import binding, daemon, memory
from shadowserve.options import Options

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("SHADOWSERVE_BUILD", ROOT / "build" / "release"))
PROGRAM = BUILD / "daemon" / "shadowserved"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A user of its own: folders of cache and sockets, a daemon that ends after a second."""
    if not PROGRAM.exists():
        pytest.skip(f"{PROGRAM} is not built")
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SHADOWSERVE_SOCKET", raising=False)
    monkeypatch.setattr(daemon, "IDLE_EXIT_S", 1)
    return tmp_path


def pid_of(session):
    return memory.pid_of_pidfd(session.daemon_pidfd)


def wait_until(condition, what, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.05)


def test_started_shared_and_ended(place):
    socket = daemon.find_or_start(Options(daemon=str(PROGRAM)))
    first = binding.Session.connect(socket)
    assert daemon.find_or_start(Options(daemon=str(PROGRAM))) == socket
    second = binding.Session.connect(socket)
    pid = pid_of(first)
    assert pid_of(second) == pid
    assert str(place / "cache" / "shadowserve") in first.stat()
    mask = os.sched_getaffinity(pid)
    assert mask >= os.sched_getaffinity(0)
    first.close()
    time.sleep(1.5)
    assert daemon.answers(socket), "it must not end while it is used"
    second.close()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "its end")
    assert not daemon.answers(socket)


def test_many_engines_start_one_daemon(place):
    text = (
        "import sys; from shadowserve import daemon, binding, memory\n"
        "from shadowserve.options import Options\n"
        "daemon.IDLE_EXIT_S = 1\n"
        f"s = daemon.find_or_start(Options(daemon={str(PROGRAM)!r}))\n"
        "session = binding.Session.connect(s)\n"
        "print(memory.pid_of_pidfd(session.daemon_pidfd), flush=True)\n"
        "sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
    engines = [
        subprocess.Popen(
            [sys.executable, "-c", text],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    pids = {int(engine.stdout.readline()) for engine in engines}
    for engine in engines:
        engine.stdin.close()
        engine.wait(20)
        engine.stdout.close()
    assert len(pids) == 1
    (pid,) = pids
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "its end")


def test_another_store_has_another_daemon(place):
    default = daemon._private_socket("")
    assert daemon._private_socket("memory:") != default
    assert daemon._private_socket("memory:") == daemon._private_socket("memory:")


def test_a_named_socket_is_never_started(place, monkeypatch):
    assert daemon.find_or_start(Options(socket="/nobody")) == "/nobody"
    monkeypatch.setenv("SHADOWSERVE_SOCKET", "/from/environment")
    assert daemon.find_or_start(Options()) == "/from/environment"


def test_why_it_did_not_start_is_told(place):
    with pytest.raises(daemon.DaemonError, match="no program"):
        daemon.find_or_start(Options(daemon="/no/such/program"))
    with pytest.raises(daemon.DaemonError, match="nonsense"):
        daemon.find_or_start(Options(daemon=str(PROGRAM), store="nonsense://x"))
