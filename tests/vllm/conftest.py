# SPDX-License-Identifier: Apache-2.0
"""Real vLLM on CPU. Everything below is set before torch and vLLM are imported."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = Path(os.environ.get("SHADOWSERVE_BUILD", ROOT / "build" / "release"))

for folder in (HERE, ROOT / "python", ROOT / "bench"):
    sys.path.insert(0, str(folder))
os.environ.update(
    VLLM_TARGET_DEVICE="cpu",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_NO_USAGE_STATS="1",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    OMP_NUM_THREADS="1",
)
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("SHADOWSERVE_LIBRARY", str(BUILD / "src" / "client" / "libshadowserve.so"))
