# SPDX-License-Identifier: Apache-2.0
"""The programs that pip installs: each becomes the one that the package ships."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def _become(name: str) -> None:
    program = Path(__file__).resolve().parent / "native" / name
    if not os.access(program, os.X_OK):
        sys.exit(f"{name}: {program} is missing; install the package with pip")
    os.environ.setdefault("SHADOWSERVE_PYTHON", sys.executable)  # for what only Python knows
    os.execv(program, [name, *sys.argv[1:]])


def shadowserve() -> None:
    _become("shadowserve")


def shadowserved() -> None:
    _become("shadowserved")


def shadowserve_relay() -> None:
    _become("shadowserve-relay")
