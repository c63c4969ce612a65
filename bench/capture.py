# SPDX-License-Identifier: Apache-2.0
"""KV that vLLM really computed, as lossless chunks in a folder.

A real engine with the ShadowServe connector serves one prompt; its daemon, with a file: store and
the lossless tier, keeps what the engine's paged memory held. Nothing else stands in between.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import vllm_settings
from part import CORES
from servers import ROOT, Daemon

CHUNK = 256
ENGINE_TIMEOUT_S = 300
STORED_TIMEOUT_S = 60


def chunks_in(store: Path) -> int:
    return sum(1 for shard in store.glob("[0-9a-f][0-9a-f]") for _ in shard.iterdir())


def capture(model: Path, tokens: list[int], out: Path) -> Path:
    """Serves the prompt and returns the store's folder, which then holds its whole chunks."""
    store = out / "store"
    daemon = Daemon(out, f"file:{store}?sync=none", CORES[-1:], "lossless")
    transfer = vllm_settings.connector(daemon.socket)
    step = {"name": "capture", "tokens": tokens, "max_tokens": 1, "warm": None}
    job = {"model": str(model), "cores": CORES[:1], "warm_up": tokens[-40:], "steps": [step]}
    try:
        with (out / "engine.log").open("w") as log:
            subprocess.run(
                [sys.executable, str(ROOT / "bench" / "demo_engine.py")],
                input=json.dumps({**job, "connector": transfer}) + "\n\n",
                text=True,
                stdout=log,
                stderr=log,
                env=vllm_settings.environment(),
                timeout=ENGINE_TIMEOUT_S,
                check=True,
            )
        deadline = time.monotonic() + STORED_TIMEOUT_S
        while chunks_in(store) < len(tokens) // CHUNK:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{chunks_in(store)} chunks stored, see {out}/engine.log")
            time.sleep(0.05)
    finally:
        daemon.stop()
    return store
