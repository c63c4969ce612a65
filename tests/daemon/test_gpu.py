# SPDX-License-Identifier: Apache-2.0
"""GPU memory of another process, through the daemon: a stand-in driver in place of libcuda.so.1."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_rig import BUILD, SANITIZED, Daemon, Engine

STANDIN = BUILD / "tests" / "deliver"
HERE = Path(__file__).resolve().parent


def run(program: str, *arguments: object) -> None:
    """An engine in a process of its own."""
    engine = subprocess.run(
        [sys.executable, HERE / program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=dict(os.environ),
    )
    assert engine.stdout.splitlines()[-1:] == ["ok"], engine.stdout + engine.stderr


@pytest.mark.skipif(SANITIZED, reason="Python has no sanitizer: the stand-in cannot be loaded")
def test_chunks_go_from_gpu_to_gpu(
    start: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(STANDIN))
    monkeypatch.setenv("PYTHONPATH", str(HERE.parents[1] / "python"))
    daemon = start()
    for _ in range(2):  # the GPU is given up with its last region, and opened again
        run("gpu_engine.py", daemon.socket)
    assert daemon.stop() == 0


@pytest.mark.skipif(SANITIZED, reason="Python has no sanitizer: the stand-in cannot be loaded")
@pytest.mark.parametrize("case", ["direct", "staged", "packing"])
def test_the_worker_of_an_engine_on_a_gpu(
    start: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    pytest.importorskip("vllm")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(STANDIN))
    monkeypatch.setenv("PYTHONPATH", str(HERE.parents[1] / "python"))
    run("gpu_worker.py", start().socket, case)


def test_gpu_memory_is_refused_where_there_is_no_driver(start: Callable[..., Daemon]) -> None:
    from shadowserve import binding as ssv

    engine = Engine(start())
    block = 8 << 20
    layout = ssv.Layout(**{**engine.layout.__dict__})
    with pytest.raises(ssv.Error) as refusal:
        engine.session.region_register(
            ssv.Memory.GPU_IPC, layout, block, gpu=ssv.GpuMemory(bytes(16), bytes(64), 0)
        )
    assert "GPU memory" in str(refusal.value)
