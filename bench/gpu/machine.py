# SPDX-License-Identifier: Apache-2.0
"""The machine that the GPU bench runs on: who gets which cores, huge pages, what it is."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

HUGE_PAGES = 2200  # of 2 MiB: an arena of 4 GiB and what lies beside it


def cores() -> dict[str, list[int]]:
    have = sorted(os.sched_getaffinity(0))
    if len(have) < 8:
        raise SystemExit(f"{len(have)} cores: this bench needs 8 or more")
    half = len(have) // 2
    return {
        "engine": have[:3],
        "control": have[3:4],
        "workers": have[4:],
        # Where a store runs here as well, it takes cores away.
        "redis": have[4:half],
        "workers beside redis": have[half:],
    }


def reserve_huge_pages(count: int) -> int:
    """Huge pages for the arena, as an operator would set them aside; how many there are."""
    setting = Path("/proc/sys/vm/nr_hugepages")
    with contextlib.suppress(OSError):
        setting.write_text(str(count))
    return int(setting.read_text())


def _lscpu() -> dict[str, str]:
    """What of the processor bears on moving memory: threads a core, caches, NUMA."""
    if not shutil.which("lscpu"):
        return {}
    text = subprocess.run(["lscpu"], check=False, capture_output=True, text=True).stdout
    pairs = [line.split(":", 1) for line in text.splitlines() if ":" in line]
    return {k: v.strip() for k, v in pairs if k.startswith(("Thread", "Core", "L", "NUMA", "Sock"))}


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = [line for line in info if "model name" in line]
    flags = set(" ".join(line for line in info if line.startswith("flags")).split())
    return {
        "gpu": torch.cuda.get_device_name(0),
        "cpu": cpu[0].split(":", 1)[1].strip() if cpu else "unknown",
        "cores": os.cpu_count(),
        "lscpu": _lscpu(),
        "copies by the kernel": sorted(flags & {"rep_good", "erms", "fsrm", "smap"}),
        "vllm": importlib.util.find_spec("vllm") is not None,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
