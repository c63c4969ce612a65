# SPDX-License-Identifier: Apache-2.0
"""One vLLM engine of the demo, as a process of its own: reads a plan (a line of JSON) from standard
input, runs its steps, prints one JSON line for each and waits for an empty line before the next.

A step is {"name", "tokens": [...], "max_tokens", "warm": [...] or null}. "warm" is a prefix that is
computed right before and stays in vLLM's own prefix cache; without it that cache is emptied, so
that whatever is cached came from the store.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import vllm_settings

vllm_settings.settle()


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


class Engine:
    def __init__(self, plan: dict[str, Any]) -> None:
        from vllm import LLM

        transfer = plan.get("connector")
        self.llm = LLM(
            plan["model"],
            dtype="bfloat16",
            enforce_eager=True,
            kv_cache_memory_bytes=256 << 20,
            block_size=32,
            max_model_len=8192,
            max_num_batched_tokens=2048,
            enable_prefix_caching=True,
            disable_log_stats=True,
            **({"kv_transfer_config": transfer} if transfer else {}),
        )
        self.engine = self.llm.llm_engine
        self.requests = 0

    def generate(self, tokens: list[int], max_tokens: int) -> dict[str, Any]:
        """Serves one prompt alone and measures it from outside the engine."""
        from vllm import SamplingParams

        self.requests += 1
        sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        start = time.perf_counter()
        self.engine.add_request(str(self.requests), {"prompt_token_ids": tokens}, sampling)
        first = last = None
        while last is None:
            for output in self.engine.step():
                if first is None and output.outputs[0].token_ids:
                    first = time.perf_counter()
                if output.finished:
                    last, final = time.perf_counter(), output
        text = list(final.outputs[0].token_ids)
        tpot = (last - first) / (len(text) - 1) if len(text) > 1 else 0.0
        return {
            "ttft_ms": 1e3 * (first - start),
            "tpot_ms": 1e3 * tpot,
            "cached_tokens": final.num_cached_tokens,
            "output": text,
        }

    def forget(self) -> None:
        """Empties vLLM's own prefix cache; stores in flight pin blocks, so this may take steps."""
        deadline = time.monotonic() + 30
        while not self.llm.reset_prefix_cache():
            if time.monotonic() > deadline:
                raise RuntimeError("vLLM's prefix cache did not empty within 30 s")
            self.engine.step()
            time.sleep(0.005)

    def settle(self) -> None:
        """Lets the connector finish its write-back: it reports with the engine's steps."""
        core = self.engine.engine_core.engine_core
        deadline = time.monotonic() + 30
        while core.scheduler.has_requests() and time.monotonic() < deadline:
            self.engine.step()
            time.sleep(0.002)


def main() -> int:
    plan = json.loads(sys.stdin.readline())
    if plan.get("cores"):
        os.sched_setaffinity(0, plan["cores"])
    engine = Engine(plan)
    engine.generate(plan["warm_up"], 4)
    say(event="ready")
    for step in plan["steps"]:
        engine.forget()
        if step.get("warm"):
            engine.generate(step["warm"], 1)
        say(event="step", name=step["name"], **engine.generate(step["tokens"], step["max_tokens"]))
        engine.settle()
        if not sys.stdin.readline():
            return 1  # the demo is gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
