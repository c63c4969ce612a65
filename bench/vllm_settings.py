# SPDX-License-Identifier: Apache-2.0
"""How every engine of demo and benchmark runs vLLM: on CPUs, in one process, offline, one thread;
and how it is told to use ShadowServe. Import settle() before vLLM.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from servers import BUILD, ROOT


def settle() -> None:
    """Sets what vLLM and its libraries read from this process's environment."""
    os.environ.update(
        VLLM_TARGET_DEVICE=os.environ.get("VLLM_TARGET_DEVICE", "cpu"),
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_NO_USAGE_STATS="1",
        VLLM_LOGGING_LEVEL=os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        OMP_NUM_THREADS="1",
    )


def environment() -> dict[str, str]:
    """For a child process that is an engine: where the binding and its library are."""
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "python"), env.get("PYTHONPATH")]))
    env.setdefault("SHADOWSERVE_LIBRARY", str(BUILD / "src" / "client" / "libshadowserve.so"))
    return env


def connector(socket: str | Path, **options: Any) -> dict[str, Any]:
    """vLLM's kv_transfer_config: store and fetch, whatever recomputing would cost."""
    return {
        "kv_connector": "ShadowServeConnector",
        "kv_connector_module_path": "shadowserve.vllm",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"socket": str(socket), "admission": "always", **options},
    }
