# SPDX-License-Identifier: Apache-2.0
"""Part `codec`: ratio and speed of every tier and back end, one core."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from part import Figure, model_folder, run_json, table
from servers import BUILD, ROOT

TITLE = "encoding and decoding, one core"
BUDGET_S = 240
QUICK_S = 30


def run(out: Path, quick: bool) -> dict[str, Any]:
    dump = out / "docs-6m.kv"
    texts = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    script, model = ROOT / "tests" / "codec" / "make_kv.py", model_folder("docs-6m")
    tokens = "1024" if quick else "4096"
    command = [sys.executable, script, model, *texts, "--tokens", tokens, "--out", dump]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    answer: dict[str, Any] = run_json(BUILD / "bench" / "bench_codec", dump, "1" if quick else "5")
    return answer


def figures(data: dict[str, Any]) -> list[Figure]:
    return []


def tables(data: dict[str, Any]) -> str:
    head = ("tier", "codec", "ratio", "encode_gb_s", "decode_gb_s", "error_k", "error_v")
    return table(head, [[row[name] for name in head] for row in data["results"]])
