# SPDX-License-Identifier: Apache-2.0
"""A session that comes back, with a real daemon."""

import logging
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
from shadowserve.binding import Op, Request, Session
from shadowserve.link import Link

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("SHADOWSERVE_BUILD", ROOT / "build" / "release"))
PROGRAM = BUILD / "daemon" / "shadowserved"


@pytest.fixture
def path(tmp_path):
    """The socket of a daemon that lives through the test."""
    if not PROGRAM.exists():
        pytest.skip(f"{PROGRAM} is not built")
    path = tmp_path / "s"
    command = [PROGRAM, "--socket", path, "--store", "memory:", "--arena", "64MiB"]
    daemon = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert daemon.stdout.readline().startswith(b"shadowserved ")
    yield str(path)
    assert daemon.poll() is None, "the daemon must live through the test"
    daemon.terminate()
    daemon.wait(20)
    daemon.stdout.close()


def sockets_of_this_process():
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                found.add(int(name))
        except OSError:
            continue
    return found


def test_a_broken_socket_is_replaced_while_the_daemon_lives(path, caplog):
    caplog.set_level(logging.INFO)
    before = sockets_of_this_process()
    link = Link(lambda: Session.connect(path, "engine"), "test", logging.getLogger("test"))
    assert link.connect()
    first = link.session
    (ours,) = sockets_of_this_process() - before
    with socket.socket(fileno=os.dup(ours)) as broken:
        broken.shutdown(socket.SHUT_RDWR)
    deadline = time.monotonic() + 20
    while link.session is first or link.session is None:
        assert link.poll(10) == []
        assert time.monotonic() < deadline, "no other session was made"
        time.sleep(0.01)
    assert link.submit([Request(Op.FLUSH, 5)]) == 1
    done = []
    while not done:
        assert time.monotonic() < deadline
        done = link.poll(100)
    assert (done[0].user_data, done[0].status) == (5, 0)
    warnings = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(warnings) == 2, warnings
    assert "no daemon" in warnings[0] and "there again" in warnings[1]
    link.close()
