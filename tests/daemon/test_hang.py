# SPDX-License-Identifier: Apache-2.0
"""A worker that hangs: the daemon leaves without it, and says so in its exit status."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from daemon_rig import BUILD, PROGRAM, SANITIZED, SOON_S

HANG = BUILD / "tests" / "daemon" / "worker_hang.so"


@pytest.mark.skipif(SANITIZED, reason="a sanitizer must be preloaded first")
def test_a_worker_left_behind_is_a_failure(tmp_path: Path) -> None:
    command = [PROGRAM, "--socket", tmp_path / "s", "--store", "memory:", "--arena", "64MiB"]
    daemon = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LD_PRELOAD": str(HANG)},
    )
    assert daemon.stdout and daemon.stderr
    assert daemon.stdout.readline().startswith("shadowserved ")
    # A worker that is told to end before it first sleeps would end.
    assert "worker asleep\n" in iter(daemon.stderr.readline, "")
    daemon.send_signal(signal.SIGTERM)
    _, log = daemon.communicate(timeout=SOON_S)
    assert daemon.returncode == 1, log
    assert "a worker hangs" in log
    assert not (tmp_path / "s").exists()
