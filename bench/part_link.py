# SPDX-License-Identifier: Apache-2.0
"""Part `link`: a real Redis behind a shaped link, the data plane on one core or two, KV of
Llama-3-8B's shape into host memory. How much of the link is filled, what is delivered, what it
costs, and what each half of the pipeline gains.
"""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from host_redis import HostRedis
from link_page import figures, plots, tables
from link_rig import (
    HOST,
    PLANE,
    LinkDaemon,
    Load,
    Meter,
    iperf,
    receive,
)
from netns import Host, Network, why_not
from part import CORES, REALTIME, RUNS, Skip, Wrong, pinned, run_json
from servers import BUILD, RedisCluster

__all__ = ["BUDGET_S", "QUICK_S", "TITLE", "figures", "plots", "run", "tables"]

TITLE = "the share of a link that is filled, and what is delivered"
BUDGET_S = 340
QUICK_S = 25

TIERS = ("lossless", "high", "standard", "compact")
RATES = (1, 5, 10, 20, 40, None)  # Gbit/s; None: as the machine is
TWO_CORES_FROM = 10.0
UNSHAPED_GUESS = 45.0  # for the length of a round only
ROUND_S = 0.25
LAYERS, CHUNKS, BATCH, AHEAD = 32, 8, 8, 2

# Ablations: daemon keys, and options of the store.
ABLATIONS: dict[str, tuple[dict[str, str], str]] = {
    "all of it": ({}, "lanes=4"),
    "a chunk at a time is decoded": ({"overlap": "chunk"}, "lanes=4"),
    "received, then decoded": ({"overlap": "none"}, "lanes=4"),
    "whole values instead of pieces": ({}, "lanes=4&range=0"),
}
LANES: dict[str, tuple[dict[str, str], str]] = {
    "4 lanes, 8 chunks in flight": ({}, "lanes=4"),
    "1 lane, 8 chunks in flight": ({}, "lanes=1"),
    "1 lane, 1 chunk in flight": ({"lanes": "1"}, "lanes=1&pipeline=1"),
}
LANES_GBIT, ROUND_TRIP_MS = 10, 5
CLUSTER_NODES, CLUSTER_GBIT = (1, 2, 4), 5.0
ABLATION_TIERS = ("lossless", "standard")
ABLATION_RATES = (10, 20)


def requests(rate: float | None, request_bytes: int, seconds: float) -> int:
    """Requests that fill this many seconds at this rate."""
    return max(1, math.ceil((rate or UNSHAPED_GUESS) * 1e9 / 8 * seconds / request_bytes))


def decode_limits(runs: int) -> dict[str, float]:
    """GB/s of KV that one core decodes from memory, checks included: the other half of the roof."""
    limits = {}
    program = str(BUILD / "cli" / "shadowserve")
    for tier in TIERS:
        command = (*REALTIME, program, "bench", "codec", "--json", "--tier", tier, "--codec", "r16")
        rounds = [run_json(*command, "--time", "60") for _ in range(runs)]
        limits[tier] = statistics.median(row["results"][0]["decode_gb_s"] for row in rounds)
    return limits


class Bench:
    """The rig of a run: a network with one Redis, and daemons with a load each, made on demand."""

    def __init__(self, out: Path, quick: bool) -> None:
        self.out, self.quick = out, quick
        self.layers = 4 if quick else LAYERS
        self.stack = ExitStack()
        self.loads: dict[str, Load] = {}
        self.value_bytes: dict[str, int] = {}
        self.values: list[tuple[str, int]] = []

    def __enter__(self) -> Bench:
        try:
            self.network = self.stack.enter_context(Network())
            self.host: Host = self.network.add()
            self.network.join(self.host)
            self.redis = HostRedis(self.out / "redis", self.host, HOST, "4gb")
            self.stack.callback(self.redis.stop)
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        self.stack.close()

    def load(self, name: str, cores: Sequence[int], store: str, **keys: str) -> Load:
        if name not in self.loads:
            folder = f"daemon-{len(self.loads)}"
            counted = name == "counted"
            daemon = LinkDaemon(folder, self.out, self.network, store, cores, counted, **keys)
            self.stack.callback(daemon.stop)
            load = Load(daemon, self.layers, CHUNKS, BATCH, AHEAD)
            self.stack.callback(load.stop)
            self.loads[name] = load
        return self.loads[name]

    def one_core(self) -> Load:
        return self.load("one", [PLANE], self.redis.uri())

    def two_cores(self) -> Load:
        return self.load("two", [PLANE, HOST], self.redis.uri())

    def fill(self) -> None:
        """Stores every tier's chunks and reads them back right."""
        load = self.one_core()
        for tier in TIERS:
            load("store", tier)
            answer = load("check", tier)
            if not answer["right"]:
                raise Wrong(f"{tier}: what was fetched is not what was stored: {answer}")
            sizes = [(key, self.redis.value_bytes(key)) for key in load("keys", tier)]
            self.value_bytes[tier] = sum(size for _, size in sizes) // len(sizes)
            self.values += sizes

    def warm(self, load: Load) -> None:
        load("fetch", "compact", 2 * AHEAD, 1)

    def round(self, load: Load, tier: str, rate: float | None, seconds: float) -> dict[str, Any]:
        count = requests(rate, BATCH * self.value_bytes[tier], seconds)
        pids = {"plane": load.daemon.process.pid, "redis": self.redis.process.pid}
        meter = Meter(**pids, load=load.process.pid)
        meter.begin()
        taken: dict[str, Any] = load("fetch", tier, count, 1)["rounds"][0]
        return {**taken, **meter.end()}


def measure_links(bench: Bench, runs: int, seconds: float) -> dict[str, Any]:
    """Every rate: the yardsticks and every tier, in turn, runs times."""
    rates = (5, None) if bench.quick else RATES
    cells: list[dict[str, Any]] = []
    yardsticks = []
    for rate in rates:
        bench.host.shape(rate)
        contenders: list[tuple[str, int, Callable[[], Load]]] = []
        for tier in TIERS:
            contenders.append((tier, 1, bench.one_core))
            if rate is None or rate >= TWO_CORES_FROM:
                contenders.append((tier, 2, bench.two_cores))
        found: list[list[dict[str, Any]]] = [[] for _ in contenders]
        plain: list[dict[str, Any]] = []
        round_bytes = int((rate or UNSHAPED_GUESS) * 1e9 / 8 * seconds)
        stream = None if bench.quick else iperf(bench.network, bench.host, 1)
        for _, _, load in contenders:
            bench.warm(load())
        for _ in range(runs):
            plain.append(receive(bench.network, bench.host, bench.values, round_bytes))
            for (tier, _, load), rounds in zip(contenders, found, strict=True):
                rounds.append(bench.round(load(), tier, rate, seconds))
        dropped = bench.host.dropped()
        yardsticks.append({"rate": rate, "rounds": plain, "iperf": stream, "dropped": dropped})
        cells += [
            {"rate": rate, "tier": tier, "cores": cores, "rounds": rounds}
            for (tier, cores, _), rounds in zip(contenders, found, strict=True)
        ]
    return {"yardsticks": yardsticks, "cells": cells}


def measure_ablations(bench: Bench, runs: int, seconds: float) -> list[dict[str, Any]]:
    answers = []
    for rate in (None,) if bench.quick else ABLATION_RATES:
        bench.host.shape(rate)
        for tier in ABLATION_TIERS[-1:] if bench.quick else ABLATION_TIERS:
            loads = {}
            for name, (keys, options) in list(ABLATIONS.items())[: 2 if bench.quick else None]:
                loads[name] = bench.load(name, [PLANE], bench.redis.uri(options=options), **keys)
                bench.warm(loads[name])
            rounds: dict[str, list[Any]] = {name: [] for name in loads}
            for _ in range(runs):
                for name, load in loads.items():
                    rounds[name].append(bench.round(load, tier, rate, seconds))
            answers.append({"rate": rate, "tier": tier, "rounds": rounds})
    return answers


def measure_lanes(bench: Bench, runs: int, seconds: float) -> dict[str, Any]:
    """Several lanes against one, on a link with a round trip: what they are for."""
    if bench.quick:
        return {"skipped": "this was a small run"}
    rate, program = LANES_GBIT, [*pinned(HOST), str(BUILD / "bench" / "bench_delay")]
    bench.host.shape(rate)
    try:
        delay = bench.network.delay(bench.host, ROUND_TRIP_MS, program)
    except OSError as error:
        return {"skipped": str(error)}
    with delay:
        try:
            loads = {}
            for name, (keys, options) in LANES.items():
                loads[name] = bench.load(name, [PLANE], bench.redis.uri(options=options), **keys)
                bench.warm(loads[name])
            answers = []
            for tier in ABLATION_TIERS:
                rounds: dict[str, list[Any]] = {name: [] for name in loads}
                for _ in range(runs):
                    for name, load in loads.items():
                        rounds[name].append(bench.round(load, tier, rate, seconds))
                answers.append({"tier": tier, "rounds": rounds})
        finally:
            delay.kill()
    return {"rate": rate, "round_trip_ms": ROUND_TRIP_MS, "cells": answers}


def measure_paths(bench: Bench) -> list[dict[str, Any]]:
    """What one core does at 20 Gbit/s and unshaped, by its own count; mallocs are counted too."""
    load = bench.load("counted", [PLANE], bench.redis.uri())
    answers = []
    for rate in (None,) if bench.quick else (20, None):
        bench.host.shape(rate)
        for tier in TIERS:
            bench.warm(load)
            load("fetch", tier, 1, 1)  # the largest value of this tier is known from now on
            load.daemon.stat("--reset")
            taken = bench.round(load, tier, rate, 2 * ROUND_S)
            path = load.daemon.stat()["path"]
            path["stages"] = {
                name: {"count": stage["count"], "sum_us": stage["sum_us"]}
                for name, stage in path["stages"].items()
            }
            answers.append({"rate": rate, "tier": tier, "round": taken, "path": path})
    return answers


def measure_nodes(out: Path, nodes: int, quick: bool, runs: int, seconds: float) -> dict[str, Any]:
    """A cluster of so many masters, each behind a link of CLUSTER_GBIT."""
    tiers: dict[str, list[Any]] = {}
    layers = 4 if quick else LAYERS
    with Network() as network, ExitStack() as stack:
        hosts = [network.add() for _ in range(nodes)]
        for host in hosts:
            network.join(host)
        binds = [host.address for host in hosts]
        prefixes = [[*host.namespace.prefix, *pinned(HOST)] for host in hosts]
        folder = out / f"cluster-{nodes}"
        shutil.rmtree(folder, ignore_errors=True)  # a cluster remembers itself
        cluster = RedisCluster(folder, binds, prefixes)
        stack.callback(cluster.stop)
        name = f"daemon-cluster-{nodes}"
        daemon = LinkDaemon(name, out, network, cluster.uri("lanes=2"), [PLANE])
        stack.callback(daemon.stop)
        load = Load(daemon, layers, CHUNKS, BATCH, AHEAD, nodes)
        stack.callback(load.stop)
        for tier in ABLATION_TIERS:
            load("store", tier)
            if not load("check", tier)["right"]:
                raise Wrong(f"{tier}: what {nodes} nodes gave is not what was stored")
            before = load("fetch", tier, AHEAD, 1)["rounds"][0]
            for host in hosts:
                host.shape(CLUSTER_GBIT)
            count = requests(nodes * CLUSTER_GBIT, before["wire_bytes"] // AHEAD, seconds)
            tiers[tier] = load("fetch", tier, count, runs)["rounds"]
            for host in hosts:
                host.shape(None)
    return {"nodes": nodes, "rate": CLUSTER_GBIT, "tiers": tiers}


def run(out: Path, quick: bool) -> dict[str, Any]:
    reason = why_not()
    if reason:
        raise Skip(reason)
    if HOST == PLANE:
        raise Skip("needs two cores: one for Redis and the kernel, one for the data plane")
    if not shutil.which("redis-server"):
        raise Skip("needs redis-server (Debian: redis-server)")
    runs, seconds = (1, 0.1) if quick else (RUNS, ROUND_S)
    with Bench(out, quick) as bench:
        bench.fill()
        data = measure_links(bench, runs, seconds)
        data["ablations"] = measure_ablations(bench, runs, seconds)
        data["paths"] = measure_paths(bench)
        data["lanes"] = measure_lanes(bench, runs, seconds)
        data |= {
            "host_core": HOST,
            "layers": bench.layers,
            "chunks": CHUNKS,
            "in_flight": BATCH * AHEAD,
            "kv_bytes": bench.layers << 20,
            "value_bytes": bench.value_bytes,
            "realtime": bool(REALTIME),
        }
    counts = CLUSTER_NODES[1:2] if quick else CLUSTER_NODES
    data["cluster"] = [measure_nodes(out, nodes, quick, runs, seconds) for nodes in counts]
    data["decode_gb_s"] = decode_limits(runs)
    data["cores"] = len(CORES)
    return data
