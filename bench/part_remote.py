# SPDX-License-Identifier: Apache-2.0
"""Part `remote`: what the engine's host spends for KV when the data plane is another machine.

Engine host, card and store are network namespaces (three_hosts.py); the engine's host has one core,
the others have the other one. Beside one another in one run: a daemon on the host itself, and a
relay whose way is tcp; with an engine without a model (bench_link) and with a real vLLM.

The rdma way needs a device that is not here. What is left of the host's work there is what the
relay's control thread and the engine do for a prompt's messages. That is measured on the tcp way,
where a thread of its own receives the bytes; that the rdma way takes the same messages, the same
wakeups and nothing else is counted in the guest with a software device (tests/rdma).
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import netns
import remote_report
from link_rig import Load
from part import CORES, REALTIME, RUNS, Figure, Skip, Wrong, model_folder, pinned, run_json
from serve_rig import EngineProcess, documents
from servers import BUILD, ROOT
from three_hosts import Program, ThreeHosts

sys.path.append(str(ROOT / "tests"))

TITLE = "processor time on the engine's host when the data plane is another machine"
BUDGET_S = 240
QUICK_S = 10

GBIT = 10.0
LAYERS = 32  # Llama-3-8B's chunks: 32 MiB
CHUNKS = 24  # 6,144 tokens
HOST, OTHERS = CORES[0], CORES[-1]
PROMPT_TOKENS = 6000
HITS = 10  # of vLLM, a run
CALM_S = 75.0  # a daemon maps a new region's pages for at most a minute


# ---- processor time -----------------------------------------------------------------------------


def process_ns(pid: int) -> int:
    """User and system time of a process, exact: its CPU clock (clock_getcpuclockid())."""
    return time.clock_gettime_ns((~pid << 3) | 2)


def control_ns(pid: int) -> int:
    """Of the first thread, which serves the sessions."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0])


def wakeups(pid: int) -> int:
    text = Path(f"/proc/{pid}/task/{pid}/status").read_text()
    return int(text.split("\nvoluntary_ctxt_switches:")[1].split()[0])


def wait_calm(server: Program) -> None:
    """Until all pages of its regions are mapped, which is once a region and not for each GB."""
    deadline = time.monotonic() + CALM_S
    tasks = Path(f"/proc/{server.pid}/task")
    while any((task / "comm").read_text() == "prefault\n" for task in tasks.iterdir()):
        if time.monotonic() > deadline:
            raise Wrong(f"{server.name} maps pages for more than {CALM_S:.0f} s")
        time.sleep(0.05)


class Spent:
    """What server and engine have used since it was made."""

    def __init__(self, server: Program | None, engine: int) -> None:
        self.server, self.engine = server, engine
        self.before = self._now()

    def _now(self) -> dict[str, int]:
        now = {"engine_ns": process_ns(self.engine)}
        if self.server:
            pid = self.server.pid
            now["server_ns"] = process_ns(pid)
            now["control_ns"], now["control_wakeups"] = control_ns(pid), wakeups(pid)
        return now

    def taken(self) -> dict[str, int]:
        return {name: value - self.before[name] for name, value in self._now().items()}


# ---- an engine without a model ------------------------------------------------------------------


def prompts_run(load: Load, server: Program, tier: str, prompts: int) -> dict[str, Any]:
    spent = Spent(server, load.process.pid)
    (answer,) = load("prompt", tier, prompts, 1)["rounds"]
    return {"prompts": prompts, **answer, **spent.taken()}


def calls_counted(load: Load, server: Program, prompts: int) -> dict[str, Any] | None:
    """System calls of the control thread, in a run that is not timed; None without strace."""
    if not shutil.which("strace"):
        return None
    command = ["strace", "-qq", "-e", "trace=all", "-p", str(server.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        time.sleep(0.5)
        load("prompt", "lossless", prompts, 1)
        strace.send_signal(signal.SIGINT)
        _, said = strace.communicate(timeout=20)
    names = re.findall(r"^(\w+)\(.* = ", said, re.MULTILINE)
    counts = {name: names.count(name) for name in sorted(set(names))}
    return {"prompts": prompts, "calls": counts} if counts else None


def contenders(quick: bool) -> list[tuple[str, str, int, int]]:
    """Server, tier, chunks a prompt, prompts a run."""
    if quick:
        return [("in-host", "lossless", 2, 1), ("relay", "lossless", 2, 1)]
    rows = [
        (name, tier, 8, 4) for name in ("in-host", "relay") for tier in ("lossless", "standard")
    ]
    return [*rows, ("relay", "lossless", 1, 32), ("relay", "lossless", CHUNKS, 2)]


def without_model(hosts: ThreeHosts, servers: dict[str, Program], quick: bool) -> dict[str, Any]:
    chunks, layers, runs = (2, 8, 1) if quick else (CHUNKS, LAYERS, RUNS)
    wanted = contenders(quick)
    loads: dict[tuple[str, int], Load] = {}
    rows: list[dict[str, Any]] = [
        {"server": name, "tier": tier, "chunks": size, "runs": []} for name, tier, size, _ in wanted
    ]
    try:
        for name, _, size, _ in wanted:
            if (name, size) not in loads:
                total = chunks if size in (1, CHUNKS) else size
                loads[name, size] = Load(servers[name], layers, total, size, 1)
                hosts.stack.callback(loads[name, size].stop)
        for tier in sorted({w[1] for w in wanted}):
            loads["relay", wanted[-1][2]]("store", tier)
        for name, tier, size, _ in wanted:
            if not loads[name, size]("check", tier)["right"]:
                raise Wrong(f"{name}, {tier}: other bytes than were stored")
        for server in servers.values():
            wait_calm(server)
        for _ in range(runs):
            for (name, tier, size, prompts), row in zip(wanted, rows, strict=True):
                row["runs"].append(prompts_run(loads[name, size], servers[name], tier, prompts))
        calls = calls_counted(loads["relay", wanted[-1][2]], servers["relay"], 2)
    finally:
        for load in loads.values():
            load.stop()
    return {"layers": layers, "rows": rows, "calls": calls}


# ---- vLLM ---------------------------------------------------------------------------------------


def hits(engine: EngineProcess, server: Program | None, count: int) -> dict[str, Any]:
    before = server.stat()["counters"]["fetch_kv_bytes"] if server else 0
    engine.do("settle")
    spent = Spent(server, engine.process.pid)
    begin = time.monotonic()
    answers = [engine.alone("doc0", 1) for _ in range(count)]
    seconds = time.monotonic() - begin
    taken = spent.taken()
    short = [a["cached"] for a in answers if a["cached"] < PROMPT_TOKENS * 9 // 10]
    if short:
        raise Wrong(f"{len(short)} of {count} hits brought {min(short)} tokens at the least")
    kv = server.stat()["counters"]["fetch_kv_bytes"] - before if server else 0
    return {"hits": count, "kv_bytes": kv, "seconds": seconds, **taken}


def with_vllm(hosts: ThreeHosts, card: Program) -> dict[str, Any]:
    model = model_folder("docs-25m")
    socket = hosts.folder / "engine.sock"
    keys: dict[str, Any] = {"socket": socket, "prefix": pinned(OTHERS)}

    def start(name: str) -> Program:
        if name == "relay":
            return hosts.relay(card, receive_core=OTHERS, **keys)
        return hosts.daemon(tier="lossless", cores=OTHERS, arena="1GiB", **keys)

    server = start("relay")
    engine = EngineProcess(hosts.folder, model, socket, hosts.engine.namespace.prefix)
    hosts.stack.callback(engine.stop)
    file = hosts.folder / "prompts.json"
    file.write_text(json.dumps(documents(model, 1, PROMPT_TOKENS)))
    engine.do("prompts", file=str(file))
    engine.do("connect")
    engine.alone("doc0", 1)
    engine.do("flush")
    rows: dict[str, list[dict[str, Any]]] = {"own cache": [], "in-host": [], "relay": []}
    for _ in range(RUNS):
        engine.do("mode", mode="async", local=True)
        hits(engine, None, 1)
        rows["own cache"].append(hits(engine, None, HITS))
        engine.do("mode", mode="async", local=False)
        for name in ("in-host", "relay"):
            engine.do("settle")
            server.stop()
            engine.do("lost")
            server = start(name)
            engine.do("connect")
            hits(engine, server, 2)
            wait_calm(server)
            rows[name].append(hits(engine, server, HITS))
    engine.stop()
    return {"model": "docs-25m", "tokens": PROMPT_TOKENS, "rows": rows}


# ---- the rest -----------------------------------------------------------------------------------


def bare_loop(quick: bool) -> dict[str, Any]:
    rounds, mib = (1, 64) if quick else (3 * RUNS, 512)
    program = BUILD / "bench" / "bench_relay"
    result: dict[str, Any] = run_json(
        *REALTIME, program, str(mib), str(rounds), str(HOST), str(OTHERS)
    )
    return result


def in_guest(quick: bool) -> dict[str, Any]:
    """Messages and wakeups of the rdma way; {"missing": why} where they were not counted."""
    guest: Any = importlib.import_module("rdma.guest")
    if quick or not guest.CACHE.exists():
        return {"missing": "small run" if quick else "no guest here: make test-rdma makes one"}
    try:
        (ran,) = guest.run_tests(BUILD, (), ())
    except guest.Missing as missing:
        return {"missing": str(missing)}
    counted = re.search(r"^\{.*\}$", ran.output, re.MULTILINE)
    passed = re.search(r"session ends .*from_engine=(\d+) from_card=(\d+) asked=(\d+)", ran.output)
    if ran.status != 0 or not counted or not passed:
        raise Wrong(f"the guest's fetch: status {ran.status}\n{ran.output[-2000:]}")
    answer: dict[str, Any] = json.loads(counted[0])
    names = ("from_engine", "from_card", "asked")
    return {**answer, **{name: int(passed[i + 1]) for i, name in enumerate(names)}}


def run(out: Path, quick: bool) -> dict[str, Any]:
    if reason := netns.why_not():
        raise Skip(reason)
    if len(CORES) < 2:
        raise Skip("needs two cores: one is the engine's host")
    data: dict[str, Any] = {"gbit": GBIT, "realtime": bool(REALTIME)}
    data.update(bare=bare_loop(quick), guest=in_guest(quick))
    with ExitStack() as stack:
        hosts = ThreeHosts(stack, out, GBIT, pinned(OTHERS))
        card = hosts.card(pinned(OTHERS), cores=OTHERS, arena="1GiB", tier="lossless")
        host: dict[str, Any] = {"prefix": pinned(HOST)}
        servers = {
            "in-host": hosts.daemon(cores=HOST, arena="1GiB", **host),
            "relay": hosts.relay(card, receive_core=HOST, **host),
        }
        data["no_model"] = without_model(hosts, servers, quick)
        for server in servers.values():
            server.stop()
        data["vllm"] = {"missing": "small run"} if quick else with_vllm(hosts, card)
    return data


def figures(data: dict[str, Any]) -> list[Figure]:
    return remote_report.figures(data)


def tables(data: dict[str, Any]) -> str:
    return remote_report.tables(data)
