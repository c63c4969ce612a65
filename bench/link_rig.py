# SPDX-License-Identifier: Apache-2.0
"""What the part `link` measures with: Redis behind a shaped link, daemons, loads, processor times.

Core HOST is Redis, the kernel's work for packets and whatever only waits; core PLANE is the data
plane's. Everything that is started dies with this process.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from host_redis import PORT
from netns import DIES_WITH_US, Host, Network
from part import CORES, pinned
from servers import BUILD, Daemon, Server, ServerError
from three_hosts import Program

HOST, PLANE = CORES[0], CORES[-1]
ANSWER_S = 120.0
TICK = os.sysconf("SC_CLK_TCK")


class LinkDaemon(Daemon):
    """A shadowserved in the plane's namespace; `cores` are its workers', one each. `counted`: with
    a malloc that counts, for stat."""

    def __init__(
        self,
        name: str,
        out: Path,
        network: Network,
        store: str,
        cores: Sequence[int],
        counted: bool = False,
        **keys: str,
    ) -> None:
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.socket, self.cores = folder / "shadowserved.sock", list(cores)
        counter = BUILD / "tests" / "daemon" / "malloc_count.so"
        preload = ["env", f"LD_PRELOAD={counter}"] if counted and counter.exists() else []
        command = [*network.plane.prefix, *pinned(*cores), *preload]
        command.append(str(BUILD / "daemon" / "shadowserved"))
        command += ["--socket", str(self.socket), "--store", store, "--arena", "1GiB"]
        command += ["--workers", str(len(self.cores)), "--cores", ",".join(map(str, cores))]
        for key, value in keys.items():
            command += ["--" + key.replace("_", "-"), value]
        Server.__init__(self, "shadowserved", command, folder)
        self.wait_ready()


class Load:
    """A bench_link: one command at a time, each answered by one JSON object."""

    def __init__(
        self,
        daemon: LinkDaemon | Program,
        layers: int,
        chunks: int,
        batch: int,
        ahead: int,
        nodes: int = 1,
    ):
        arguments = [daemon.socket, layers, chunks, batch, ahead, nodes]
        program = [*DIES_WITH_US, *pinned(HOST), str(BUILD / "bench" / "bench_link")]
        self.daemon, self.batch, self.layers = daemon, batch, layers
        self.process = subprocess.Popen(
            [*program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __call__(self, *command: str | int) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write((" ".join(map(str, command)) + "\n").encode())
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], ANSWER_S)[0]:
            self.stop()
            raise ServerError(f"bench_link: no answer to {command} within {ANSWER_S:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            log = self.daemon.log.read_text()[-1500:]
            raise ServerError(f"bench_link ended at {command}; the daemon's log:\n{log}")
        return json.loads(line)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


def process_times(pid: int) -> tuple[float, float]:
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / TICK, int(fields[12]) / TICK


def core_times() -> dict[int, tuple[float, float]]:
    """For each core: seconds of soft interrupts, and of anything but idling."""
    times = {}
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("cpu") and line[3].isdigit():
            name, *fields = line.split()
            ticks = [int(field) for field in fields]
            idle = ticks[3] + ticks[4]
            times[int(name[3:])] = (ticks[6] / TICK, (sum(ticks[:8]) - idle) / TICK)
    return times


class Meter:
    """Processor seconds between begin() and end(): per process, and per core what the kernel
    counted as soft interrupts and as busy at all (which on a busy machine is others' work too)."""

    def __init__(self, **processes: int) -> None:
        self.processes = processes

    def begin(self) -> None:
        self.before = {name: process_times(pid) for name, pid in self.processes.items()}
        self.cores = core_times()

    def end(self) -> dict[str, float]:
        taken = {}
        for name, pid in self.processes.items():
            user, system = process_times(pid)
            taken[f"{name}_user_s"] = round(user - self.before[name][0], 3)
            taken[f"{name}_sys_s"] = round(system - self.before[name][1], 3)
        for name, core in (("host", HOST), ("plane", PLANE)):
            soft, busy = core_times()[core]
            taken[f"{name}_core_soft_s"] = round(soft - self.cores[core][0], 3)
            taken[f"{name}_core_busy_s"] = round(busy - self.cores[core][1], 3)
        return taken


def receive(
    network: Network, host: Host, values: Sequence[tuple[str, int]], round_bytes: int
) -> dict[str, Any]:
    """One round of the plain receive loop on core PLANE: the link's 100 %."""
    command = [*network.plane.prefix, *pinned(PLANE), str(BUILD / "bench" / "bench_receive")]
    arguments = [host.address, PORT, 4, 1024, 256, round_bytes, 1]
    answer = subprocess.run(
        [*command, *map(str, arguments)],
        input="\n".join(f"ssv:{key} {size}" for key, size in values),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=ANSWER_S,
    )
    result = json.loads(answer.stdout)
    taken: dict[str, Any] = result["rounds"][0]
    return {**taken, "user_s": result["user_s"], "sys_s": result["sys_s"]}


def iperf(network: Network, host: Host, seconds: float) -> float | None:
    """Gbit/s of one TCP stream from the host to the plane; None without iperf3."""
    if not shutil.which("iperf3"):
        return None
    server = [*host.namespace.prefix, *pinned(HOST), "iperf3", "-s", "-1"]
    server += ["--forceflush", "-B", host.address]
    with subprocess.Popen(server, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            assert process.stdout
            process.stdout.readline()  # it says so when it listens
            client = ["iperf3", "-c", host.address, "-R", "-J", "-t", str(seconds)]
            answer = subprocess.run(
                [*network.plane.prefix, *pinned(PLANE), *client],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                timeout=30,
            )
        finally:
            process.kill()
    return float(json.loads(answer.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e9
