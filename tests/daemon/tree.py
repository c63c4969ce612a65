# SPDX-License-Identifier: Apache-2.0
"""Which build is tested; importing this makes the package and the rigs of bench/ importable.

SHADOWSERVE_BUILD names the build folder whose programs run. The library is loaded into Python,
which has no sanitizer in it and runs on this machine's processor, so with a build for neither it
is taken from build/release.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("SHADOWSERVE_BUILD", ROOT / "build" / "release")).resolve()
IS_OTHER = BUILD.name in ("asan", "tsan", "aarch64-run")
LIBRARY_BUILD = ROOT / "build" / "release" if IS_OTHER else BUILD

sys.path[:0] = [str(ROOT / "python"), str(ROOT / "bench")]
os.environ["SHADOWSERVE_LIBRARY"] = str(LIBRARY_BUILD / "src" / "client" / "libshadowserve.so")
os.environ.setdefault("SHADOWSERVE_BUILD", str(BUILD))
