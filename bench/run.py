# SPDX-License-Identifier: Apache-2.0
"""The measurements of README.md: codec on real KV, stores, fetches through a daemon, its memory
over 1,000 fetches, and a store of damaged chunks. Raw JSON is kept in build/bench, a file each.

Every figure is a median of several runs of one process on this machine; the machine is named in
the JSON. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from servers import BUILD, ROOT, Daemon, Redis

OUT = ROOT / "build" / "bench"
CORES = sorted(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "cpu": model,
        "cores": len(CORES),
        "kernel": platform.release(),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }


def run_json(*command: str | Path, timeout: float = 900) -> Any:
    """Runs a program on the last core and returns the JSON that it prints."""
    result = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        text=True,
        timeout=timeout,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, CORES[-1:]),
    )
    return json.loads(result.stdout)


def bench_codec() -> Any:
    """Ratio and speed of every tier and codec on what docs-6m really computed."""
    dump = OUT / "docs-6m.kv"
    texts = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    script, model = ROOT / "tests" / "codec" / "make_kv.py", ROOT / "models" / "docs-6m"
    command = [sys.executable, script, model, *texts, "--tokens", "4096", "--out", dump]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    answer = run_json(BUILD / "bench" / "bench_codec", dump, "5")
    print(f"{'tier':<10}{'codec':<9}{'ratio':>7}{'encode':>12}{'decode':>12}  error K, V")
    for row in answer["results"]:
        print(
            f"{row['tier']:<10}{row['codec']:<9}{row['ratio']:>7.3f}"
            f"{row['encode_gb_s']:>7.3f} GB/s{row['decode_gb_s']:>7.3f} GB/s"
            f"  {row['error_k']:.4f}, {row['error_v']:.4f}"
        )
    return answer


def bench_stores() -> Any:
    """Put and get of 1 MiB values, one core."""
    folder = OUT / "store"
    redis = Redis(OUT / "redis")
    try:
        uris = {"memory": "memory:bench", "file": f"file:{folder}", "redis": redis.uri}
        answers = {
            name: run_json(BUILD / "bench" / "bench_store", uri) for name, uri in uris.items()
        }
    finally:
        redis.stop()
        shutil.rmtree(folder, ignore_errors=True)
    for name, answer in answers.items():
        print(f"{name:<8}{json.dumps(answer)}")
    return answers


def bench_fetch() -> Any:
    """Fetches through a real daemon into shared memory, per store and tier."""
    answers = []
    for store in ("file", "redis"):
        for tier in ("lossless", "standard"):
            folder = OUT / f"fetch-{store}-{tier}"
            redis = Redis(folder) if store == "redis" else None
            uri = redis.uri if redis else f"file:{folder / 'store'}"
            daemon = Daemon(folder, uri, CORES[:1], tier)
            try:
                program = BUILD / "cli" / "shadowserve"
                answer = run_json(
                    program, "bench", "fetch", "--json", "--socket", daemon.socket, "--tier", tier
                )
            finally:
                daemon.stop()
                if redis:
                    redis.stop()
            print(f"{store:<6} {tier:<9}{json.dumps(answer)}")
            answers.append({"store": store, "tier": tier, "answer": answer})
    return answers


def bench_memory() -> Any:
    """Resident memory of the daemon before and after 1,000 fetches."""
    folder = OUT / "memory"
    daemon = Daemon(folder, f"file:{folder / 'store'}", CORES[:1], "lossless")

    def resident_kib() -> int:
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    try:
        program = BUILD / "cli" / "shadowserve"
        command = (program, "bench", "fetch", "--json", "--socket", daemon.socket)
        run_json(*command, "--count", "10")
        before = resident_kib()
        run_json(*command, "--count", "1000")
        after = resident_kib()
    finally:
        daemon.stop()
    answer = {"before_kib": before, "after_kib": after, "growth": round(after / before - 1, 4)}
    print(json.dumps(answer))
    return answer


def bench_damage() -> Any:
    """10,000 chunks, each damaged in its own way: every one must be a miss, read both ways."""
    folder = OUT / "damage"
    answers = {}
    for way in ("direct", "daemon"):
        uri = f"file:{folder / way}?sync=none"
        command = [BUILD / "bench" / "damage", "--json", "--chunks", "10000", "--store", uri]
        daemon = None
        if way == "daemon":
            daemon = Daemon(folder, uri, CORES[:1], "lossless")
            command += ["--socket", daemon.socket]
        try:
            answers[way] = run_json(*command)
        finally:
            if daemon:
                daemon.stop()
            shutil.rmtree(folder / way, ignore_errors=True)
        print(
            f"{way:<8}{answers[way]['chunks']} chunks damaged, {answers[way]['misses']} misses, "
            f"{answers[way]['wrong_bytes']} wrong bytes in {answers[way]['seconds']:.0f} s"
        )
    return answers


BENCHES: dict[str, Callable[[], Any]] = {
    "codec": bench_codec,
    "stores": bench_stores,
    "fetch": bench_fetch,
    "memory": bench_memory,
    "damage": bench_damage,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHES]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHES)}")
    OUT.mkdir(parents=True, exist_ok=True)
    for name in options.names or BENCHES:
        print(f"== {name}: {(BENCHES[name].__doc__ or '').strip()}", flush=True)
        answer = BENCHES[name]()
        text = json.dumps({"machine": machine(), "answer": answer}, indent=2)
        (OUT / f"{name}.json").write_text(text + "\n")
    print(f"raw results: {OUT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
