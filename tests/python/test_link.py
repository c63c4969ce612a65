# SPDX-License-Identifier: Apache-2.0
"""A session that ends comes back, on a daemon that was started anew."""

import logging
import os
import signal
import time
from pathlib import Path

import pytest
from shadowserve import daemon, link, memory
from shadowserve.binding import KEY_BYTES, Op, Request, Session
from shadowserve.options import Options

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("SHADOWSERVE_BUILD", ROOT / "build" / "release"))
LOGGER = logging.getLogger("shadowserve.test")


@pytest.fixture
def options(tmp_path, monkeypatch):
    program = BUILD / "daemon" / "shadowserved"
    if not program.exists():
        pytest.skip(f"{program} is not built")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SHADOWSERVE_SOCKET", raising=False)
    monkeypatch.setattr(daemon, "IDLE_EXIT_S", 1)
    return Options(daemon=str(program), store="memory:")


def pid_of(session):
    return memory.pid_of_pidfd(session.daemon_pidfd)


def lookup(number):
    return Request(Op.LOOKUP, number, keys=bytes(KEY_BYTES), ranks_count=1)


def answers(made, timeout_s=20.0):
    """Poll until something completes or the session has ended."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        done = made.poll(10)
        if done or made._session is None:
            return done
    raise AssertionError(f"nothing within {timeout_s} s")


def test_a_killed_daemon_is_replaced(options, caplog):
    made = link.Link(lambda: Session.connect(daemon.find_or_start(options)), "test", LOGGER)
    try:
        assert made.connect()
        assert made.submit([lookup(1)]) == 1
        assert [done.user_data for done in answers(made)] == [1]
        pid = pid_of(made.session)
        os.kill(pid, signal.SIGSTOP)
        assert made.submit([lookup(2)]) == 1
        os.kill(pid, signal.SIGKILL)
        (lost,) = answers(made)
        assert lost.user_data == 2 and lost.status < 0
        answers(made)
        assert made._session is None
        deadline = time.monotonic() + 30
        while made.session is None:
            assert made.poll() == []
            assert time.monotonic() < deadline, "no new session"
            time.sleep(0.01)
        assert pid_of(made.session) != pid
        said = [record.getMessage() for record in caplog.records]
        assert sum("runs on without cache" in text for text in said) == 1
        assert sum("there again" in text for text in said) == 1
    finally:
        made.close()


def test_what_fails_is_said_once_and_tried_less_and_less(caplog):
    attempts = []

    def fail():
        attempts.append(time.monotonic())
        raise OSError("nobody there")

    made = link.Link(fail, "test", LOGGER)
    assert not made.connect()
    end = time.monotonic() + 2.2
    while time.monotonic() < end:
        assert made.session is None and made.submit([lookup(1)]) == 0 and made.poll() == []
        time.sleep(0.01)
    made.close()
    assert 2 <= len(attempts) <= 4
    assert len(caplog.records) == 1 and "nobody there" in caplog.text
    assert made.session is None
