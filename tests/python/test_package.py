# SPDX-License-Identifier: Apache-2.0
"""The wheel: package, library, programs and entry points."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("SHADOWSERVE_BUILD", ROOT / "build" / "release"))


def test_the_wheel_ships_everything(tmp_path):
    setuptools = pytest.importorskip("setuptools")
    if tuple(map(int, setuptools.__version__.split(".")[:2])) < (70, 1):
        pytest.skip(f"setuptools {setuptools.__version__} cannot make wheels by itself")
    if not (BUILD / "cli" / "shadowserve").exists():
        pytest.skip(f"{BUILD} is not built")
    environment = {**os.environ, "SHADOWSERVE_BUILD": str(BUILD)}
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    command += ["build", "--build-base", str(tmp_path / "build")]
    command += ["bdist_wheel", "--dist-dir", str(tmp_path / "dist")]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=120)
    (wheel,) = (tmp_path / "dist").iterdir()
    assert wheel.name.startswith("shadowserve-0.1.0-py3-none-linux_")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for program in ("libshadowserve.so.0", "shadowserved", "shadowserve-relay", "shadowserve"):
            info = archive.getinfo(f"shadowserve/native/{program}")
            assert info.file_size > 10000
            assert info.external_attr >> 16 & 0o111 or program.startswith("lib")
        for source in (ROOT / "python" / "shadowserve").rglob("*.py"):
            assert str(source.relative_to(ROOT / "python")) in names
        entry = archive.read("shadowserve-0.1.0.dist-info/entry_points.txt").decode()
    assert "shadowserve = shadowserve.plugin:register" in entry
