# SPDX-License-Identifier: Apache-2.0
"""Tests of the Python package: the tree's package and the tree's library."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("SHADOWSERVE_BUILD", ROOT / "build" / "release"))

sys.path.insert(0, str(ROOT / "python"))
os.environ.setdefault("SHADOWSERVE_LIBRARY", str(next(BUILD.rglob("libshadowserve.so"), "")))
if not os.environ["SHADOWSERVE_LIBRARY"]:
    del os.environ["SHADOWSERVE_LIBRARY"]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
