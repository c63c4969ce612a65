# SPDX-License-Identifier: Apache-2.0
"""Part `link`: its namespaces come and go without a trace, and a small run yields sound JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import netns
import part_link
import pytest
from part import Skip

BENCH = Path(netns.__file__).parent
RATE_GBIT = 1.0


@pytest.fixture(scope="module", autouse=True)
def allowed() -> None:
    reason = netns.why_not()
    if reason:
        pytest.skip(reason)


def held() -> set[str]:
    """Network namespaces that any process is in."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found.add(os.readlink(process / "ns" / "net"))
        except OSError:  # ended meanwhile
            continue
    return found


def wait_gone(namespaces: set[str]) -> bool:
    deadline = time.monotonic() + 10
    while namespaces & held():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def namespace_of(namespace: netns.Namespace) -> str:
    return os.readlink(f"/proc/{namespace.holder.pid}/ns/net")


def test_a_closed_network_leaves_no_namespace() -> None:
    with netns.Network() as network:
        hosts = [network.add(), network.add()]
        for host in hosts:
            network.join(host)
        made = {namespace_of(one) for one in (network.plane, *(h.namespace for h in hosts))}
        assert len(made) == 3
        assert made <= held()
    assert wait_gone(made)


def test_a_killed_bench_leaves_no_namespace() -> None:
    script = (
        "import netns, os, time; network = netns.Network(); host = network.add();"
        "network.join(host);"
        "print(*[os.readlink(f'/proc/{n.holder.pid}/ns/net')"
        " for n in (network.plane, host.namespace)], flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=BENCH, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout
        made = set(child.stdout.readline().split())
        assert len(made) == 2
        assert made <= held()
        child.send_signal(signal.SIGKILL)
        child.wait(10)
    assert wait_gone(made)


def test_hosts_reach_the_plane_and_one_another() -> None:
    with netns.Network() as network:
        hosts = [network.add(), network.add()]
        for host in hosts:
            network.join(host)
            assert host.address in host.namespace.run("ip", "address")
            network.plane.run("ip", "route", "get", host.address)
        table = hosts[0].namespace.run("ip", "route", "get", hosts[1].address)
        assert f"via {hosts[0].gateway}" in table


def test_the_shaper_is_set_replaced_and_removed() -> None:
    with netns.Network() as network:
        host = network.add()
        network.join(host)
        for rate in (RATE_GBIT, 2 * RATE_GBIT):
            host.shape(rate)
            shown = host.namespace.run("tc", "qdisc", "show", "dev", host.device)
            assert f"rate {rate:g}Gbit" in shown
        host.shape(None)
        assert "tbf" not in host.namespace.run("tc", "qdisc", "show", "dev", host.device)


def test_a_small_run_yields_sound_json(tmp_path: Path) -> None:
    try:
        data = json.loads(json.dumps(part_link.run(tmp_path, quick=True)))
    except Skip as skip:
        pytest.skip(str(skip))
    cells = {(cell["rate"], cell["tier"], cell["cores"]) for cell in data["cells"]}
    assert {(None, tier, cores) for tier in part_link.TIERS for cores in (1, 2)} <= cells
    for cell in data["cells"]:
        for row in cell["rounds"]:
            assert row["seconds"] > 0
            assert row["kv_bytes"] > row["wire_bytes"] > 0
    assert data["value_bytes"]["compact"] < data["value_bytes"]["lossless"] < data["kv_bytes"]
    assert {row.number for row in part_link.figures(data)} >= {"6", "7"}
    assert "| lossless |" in part_link.tables(data)
