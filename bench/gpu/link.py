# SPDX-License-Identifier: Apache-2.0
"""Hits over links: FETCH requests from a Redis Cluster behind one shaped link, and one step."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import netns
from rig import Daemon, Rig, fetch_all, store_chunks
from servers import RedisCluster
from shadowserve import binding
from steps import quantiles

NODES = 3  # of the Redis Cluster: one Redis sends 16 to 20 Gbit/s


def receive_on(network: netns.Network, host: netns.Host, cores: list[int]) -> None:
    """Receive packet steering of the plane's end; its /sys is that of its namespace."""
    mask = sum(1 << core for core in cores)
    rps = f"/sys/class/net/{host.peer}/queues/rx-0/rps_cpus"
    script = f"mount -t sysfs none /sys && echo {mask:x} > {rps}"
    network.plane.run("unshare", "--mount", "sh", "-c", script)


@contextmanager
def redis_behind_a_link(
    folder: Path, place: dict[str, list[int]]
) -> Iterator[tuple[netns.Network, netns.Host, str]]:
    """A cluster on one host, so behind one link. Packets are received on the workers' cores, as
    they would be by a network card."""
    with netns.Network() as network:
        host = network.add()
        network.join(host)
        receive_on(network, host, place["workers beside redis"])
        pin = ["taskset", "-c", ",".join(map(str, place["redis"]))]
        prefixes = [[*host.namespace.prefix, *pin]] * NODES
        cluster = RedisCluster(folder / "redis", [host.address] * NODES, prefixes, maxmemory="8gb")
        try:
            yield network, host, cluster.uri("lanes=2")
        finally:
            cluster.stop()


def link_cases(rig: Rig, folder: Path, place: dict[str, list[int]]) -> Iterator[dict[str, Any]]:
    """TTFT of a hit of 8,192 tokens: FETCH of all chunks, and one step."""
    with redis_behind_a_link(folder, place) as (network, host, uri):
        daemon = Daemon(folder / "link", uri, place, "workers beside redis", network.plane.prefix)
        session = binding.Session.connect(str(daemon.socket), "gpu-bench", 0, 1)
        try:
            region = rig.register(session)
            store_chunks(session, region, rig, binding.Tier.STANDARD)
            store_chunks(session, region, rig, binding.Tier.LOSSLESS)
            for rate in (5.0, 10.0, 20.0, 40.0, None):
                host.shape(rate)
                for tier in (binding.Tier.STANDARD, binding.Tier.LOSSLESS):
                    yield link_case(rig, session, region, rate, tier)
            yield {"case": "stat of the link's daemon", "stat": json.loads(session.stat())}
        finally:
            session.close()
            daemon.stop()


def link_case(
    rig: Rig, session: binding.Session, region: int, rate: float | None, tier: binding.Tier
) -> dict[str, Any]:
    times, wire = [], 0
    step = quantiles(rig.engine.decode(0.5))["p50_ms"]
    for _ in range(6):
        begin = time.monotonic()
        done = fetch_all(session, region, rig, tier)
        times.append(1e3 * (time.monotonic() - begin))
        wire = done.wire_bytes
    times = times[1:]
    wire_ms = 8e3 * wire / (rate * 1e9) if rate else None
    median = statistics.median(times)
    ratio = (median + step) / (1.15 * wire_ms + step) if wire_ms else None
    name = f"hit {tier.name.lower()} {f'{rate:g} Gbit/s' if rate else 'unshaped'}"
    print(
        f"{name:<34} fetch {median:7.1f} ms, wire {wire_ms or 0:7.1f} ms, step {step:.2f} ms"
        f"  {f'TTFT / goal {ratio:.3f}' if ratio else ''}",
        flush=True,
    )
    return {
        "case": name,
        "fetch_ms": times,
        "fetch_ms_median": median,
        "wire_bytes": wire,
        "wire_ms": wire_ms,
        "step_ms": step,
        "ttft_over_goal": ratio,
    }
